//! The runs of a pod's containers: begun, ended and heard by the pod's loop.

use std::{sync::Arc, time::Duration};

use wasmk_api::{Timestamp, k8s_openapi::api::core::v1::Container};
use wasmk_runtime::StopSignal;

use super::{
    super::{
        container::{Found, Progress, Run},
        probe::{Finding, Which},
        setup,
        state::Phase,
    },
    Done, Live, Worker,
};
use crate::{events::Level, logs::LogName};

impl Worker {
    fn find(&self, name: &str) -> Option<&Container> {
        let spec = self.pod.spec.as_ref()?;
        spec.containers.iter().chain(spec.init_containers.iter().flatten()).find(|c| c.name == name)
    }

    pub(super) fn start(&mut self, name: &str) {
        self.state.container(name).begin_start();
        self.state.container(name).foreign = false;
        self.attend(name, None);
    }

    /// Attends to a container that the container runtime went on with.
    pub(super) fn adopt(&mut self, name: &str) {
        let container = self.state.container(name);
        container.orphan = false;
        let id = container.id.split_once("://").map_or("", |(_, id)| id).to_string();
        let found = Found { id, started: container.started };
        self.attend(name, Some(found));
    }

    fn attend(&mut self, name: &str, found: Option<Found>) {
        let Some(container) = self.find(name).cloned() else { return };
        self.next_run += 1;
        let stop = StopSignal::new();
        let run = Run {
            cx: self.cx.clone(),
            pod: self.pod.clone(),
            container: Arc::new(container),
            number: self.next_run,
            attempt: self.state.container(name).restarts,
            place: setup::place(&self.cx, &self.pod, self.state.ip),
            dir: self.cx.records.pod_dir(self.uid()),
            sandbox: self.state.sandbox.clone(),
            first: self.firsts.remove(name),
            found,
            stop: stop.clone(),
            news: self.news_in.clone(),
        };
        let task = self.jobs.spawn(async move {
            run.go().await;
            Done::Run
        });
        self.runs.insert(name.into(), Live { number: self.next_run, stop, task });
    }

    pub(super) fn stop(&mut self, name: &str, grace: Duration, why: &str, now: Timestamp) {
        if self.state.container(name).orphan {
            self.adopt(name);
        }
        let container = self.state.container(name);
        let Phase::Running { since } = container.phase else { return };
        container.phase = Phase::Stopping { since, deadline: now.after(grace), killed: false };
        self.cx.events.container(&self.pod, name, Level::Normal, "Killing", why);
        match self.runs.get(name) {
            Some(live) => live.stop.stop(grace),
            // No run of that name: it ended with an earlier life of this agent.
            None => self.state.container(name).end(137, "Error", "the run was lost", now),
        }
    }

    pub(super) fn kill(&mut self, name: &str, now: Timestamp) {
        if let Phase::Stopping { killed, .. } = &mut self.state.container(name).phase {
            *killed = true;
        }
        match self.runs.get(name) {
            Some(live) => live.stop.kill(),
            None => self.state.container(name).end(137, "Error", "the run was lost", now),
        }
    }

    /// What a run reports. News of an earlier run of the same container is ignored.
    pub(super) fn hear(&mut self, name: &str, number: u64, progress: Progress) {
        if self.runs.get(name).is_none_or(|live| live.number != number) {
            return;
        }
        let now = Timestamp::now();
        let uid = self.uid().to_string();
        let has_startup = self.find(name).is_some_and(|c| c.startup_probe.is_some());
        let has_readiness = self.find(name).is_some_and(|c| c.readiness_probe.is_some());
        let container = self.state.container(name);
        match progress {
            Progress::Started(started) => {
                container.image_id = started.image_id;
                container.foreign = started.foreign.is_some();
                container.id = match (&started.foreign, &self.cx.containers) {
                    (Some(id), Some(containers)) => format!("{}://{id}", containers.name()),
                    _ => format!("wasmtime://{uid}-{name}-{}", container.restarts),
                };
                container.served = started.served;
                container.phase = Phase::Running { since: now };
                container.started = !has_startup;
                container.ready = !has_startup && !has_readiness;
                if container.restarts == 0 {
                    // Waits of failed pulls do not count against the first run.
                    container.delay = 0;
                }
                let (id, run) = (container.id.clone(), container.restarts);
                self.link_log(name, &id, run);
                self.count_start();
            }
            Progress::Blocked(failure) => {
                container.block(failure.reason, &failure.message, now);
                self.runs.remove(name);
            }
            Progress::Ended(end, ran) => {
                container.end(end.code, &end.reason, &end.message, now);
                if let (Phase::Ended(ended), Some(ran)) = (&mut container.phase, ran) {
                    (ended.started, ended.finished) = (ran.from, ran.to);
                }
                self.runs.remove(name);
            }
            Progress::Probed(which, finding) => self.probed(name, which, finding),
        }
    }

    fn count_start(&mut self) {
        let containers = self.pod.spec.iter().flat_map(|s| &s.containers);
        if containers.into_iter().all(|c| self.state.containers.get(&c.name).is_some_and(|k| k.is_live()))
            && let Some(arrived) = self.arrived.take()
        {
            self.cx.started.add(arrived.elapsed());
        }
    }

    fn link_log(&self, container: &str, id: &str, run: u32) {
        let part = |s: &'_ Option<String>| s.clone().unwrap_or_default();
        let (namespace, pod) = (part(&self.pod.metadata.namespace), part(&self.pod.metadata.name));
        let name = LogName { namespace: &namespace, pod: &pod, uid: self.uid(), container, run };
        let id = id.split_once("://").map_or(id, |(_, id)| id);
        if let Err(error) = self.cx.logs.link(&name, id) {
            tracing::warn!(pod = %self.name(), %error, "cannot link to a container's log");
        }
    }

    fn probed(&mut self, name: &str, which: Which, finding: Finding) {
        let has_readiness = self.find(name).is_some_and(|c| c.readiness_probe.is_some());
        let container = self.state.container(name);
        match (which, finding) {
            (_, Finding::Failed(text)) => {
                self.cx.events.container(&self.pod, name, Level::Warning, "Unhealthy", &text);
            }
            (Which::Startup, Finding::Good) => {
                container.started = true;
                container.ready = !has_readiness;
            }
            (Which::Readiness, Finding::Good) => container.ready = true,
            (Which::Readiness, Finding::Bad(_)) => container.ready = false,
            (Which::Liveness, Finding::Good) => {}
            (Which::Startup | Which::Liveness, Finding::Bad(_)) => {
                let kind = which.name().to_lowercase();
                container.unhealthy =
                    Some(format!("Container {name} failed {kind} probe, will be restarted"));
            }
        }
    }

    /// Ends the runs whose task is over without a word.
    pub(super) fn lost_runs(&mut self, now: Timestamp) {
        let lost: Vec<String> =
            self.runs.iter().filter(|(_, l)| l.task.is_finished()).map(|(n, _)| n.clone()).collect();
        for name in lost {
            self.runs.remove(&name);
            self.state.container(&name).end(255, "Error", "the run broke inside the node agent", now);
        }
    }
}
