//! What goes on beside a run: hooks at its beginning and end, and probes in between.

use std::{convert::Infallible, time::Duration};

use parking_lot::Mutex;
use wasmk_api::k8s_openapi::api::core::v1::LifecycleHandler;
use wasmk_runtime::StopSignal;

use super::{
    actions::Reach,
    container::{Progress, Run, Started},
    plan::grace,
    probe::{self, Which},
};
use crate::{
    engine::{End, Exec},
    events::Level,
};

/// Time a container has at least to stop after its preStop hook.
const AFTER_HOOK: Duration = Duration::from_secs(2);

/// A run with what its hooks and probes need.
pub(super) struct Attended<'a> {
    pub(super) run: &'a Run,
    pub(super) exec: &'a dyn Exec,
}

impl Attended<'_> {
    /// Stays with a run until its end. `started` is reported once the postStart hook is over; it is
    /// `None` for a run that was found going on.
    pub(super) async fn attend<F>(&self, started: Option<Started>, run: impl FnOnce(StopSignal) -> F) -> End
    where
        F: Future<Output = End>,
    {
        let inner = if self.hook(|l| l.pre_stop.as_ref()).is_some() {
            StopSignal::new()
        } else {
            self.run.stop.clone()
        };
        let run = run(inner.clone());
        tokio::pin!(run);
        let untold = Mutex::new(started);
        let found = untold.lock().is_none();
        let end = {
            let beside = async { tokio::join!(self.beside(&untold, found), self.relay(inner)).0 };
            tokio::select! {
                // The end of a run that was too quick to be told of is told after its beginning.
                biased;
                never = beside => match never {},
                end = &mut run => end,
            }
        };
        let started = untold.lock().take();
        if let Some(started) = started {
            self.run.report(Progress::Started(started)).await;
        }
        end
    }

    fn hook(
        &self,
        which: impl Fn(&wasmk_api::k8s_openapi::api::core::v1::Lifecycle) -> Option<&LifecycleHandler>,
    ) -> Option<&LifecycleHandler> {
        which(self.run.container.lifecycle.as_ref()?)
    }

    fn reach(&self) -> Reach<'_> {
        let place = &self.run.place;
        Reach {
            address: place.pod_ip.unwrap_or(place.host_ip),
            exec: self.exec,
            policies: &self.run.cx.policies,
            container: &self.run.container,
        }
    }

    async fn beside(&self, untold: &Mutex<Option<Started>>, found: bool) -> Infallible {
        if !found {
            let name = &self.run.container.name;
            self.run.event(Level::Normal, "Started", &format!("Container started: {name}"));
            let failed = match self.hook(|l| l.post_start.as_ref()) {
                Some(hook) => self.post_start(hook).await,
                None => false,
            };
            let started = untold.lock().take();
            if let Some(started) = started {
                self.run.report(Progress::Started(started)).await;
            }
            if failed {
                self.run.stop.stop(grace(&self.run.pod));
                std::future::pending::<()>().await;
            }
        }
        self.probes(found).await
    }

    /// Whether it failed. It may take as long as it likes: the container does not count as running.
    async fn post_start(&self, hook: &LifecycleHandler) -> bool {
        let outcome = self.reach().hook(hook, Duration::from_secs(24 * 3600)).await;
        let Err(text) = outcome else { return false };
        self.run.event(Level::Warning, "FailedPostStartHook", &format!("PostStartHook failed: {text}"));
        true
    }

    /// Passes the request to stop on to the run when the preStop hook is over.
    async fn relay(&self, inner: StopSignal) {
        let Some(hook) = self.hook(|l| l.pre_stop.as_ref()) else { return };
        let outer = &self.run.stop;
        let grace = outer.requested().await;
        let began = tokio::time::Instant::now();
        if !grace.is_zero() {
            let reach = self.reach();
            tokio::select! {
                outcome = reach.hook(hook, grace) => if let Err(text) = outcome {
                    let text = format!("PreStopHook failed: {text}");
                    self.run.event(Level::Warning, "FailedPreStopHook", &text);
                },
                () = outer.expired() => {}
            }
        }
        inner.stop(grace.saturating_sub(began.elapsed()).max(AFTER_HOOK.min(grace)));
        outer.expired().await;
        inner.stop(AFTER_HOOK.min(grace));
    }

    /// Runs the probes beside the container; never ends.
    async fn probes(&self, found: bool) -> Infallible {
        let reach = self.reach();
        if !self.run.found.as_ref().is_some_and(|f| f.started) {
            probe::watch(Which::Startup, &reach, found, self.run).await;
        }
        // Of a container that is to end nobody asks whether it should.
        let liveness = async {
            tokio::select! {
                () = probe::watch(Which::Liveness, &reach, found, self.run) => {}
                _ = self.run.stop.requested() => {}
            }
        };
        tokio::join!(liveness, probe::watch(Which::Readiness, &reach, found, self.run));
        std::future::pending().await
    }
}
