//! What a pod's loop writes to the API, and how the pod leaves this node.

use std::{path::PathBuf, sync::Arc, time::Duration};

use kube::{
    Api,
    api::{DeleteParams, Patch, PatchParams, Preconditions},
};
use serde_json::json;
use wasmk_api::{
    Timestamp,
    k8s_openapi::api::core::v1::{Pod, PodStatus},
};

use super::{
    super::{status, store},
    Done, WRITE_LIMIT, WRITE_RETRY, Worker,
};
use crate::{context::Context, static_pods};

impl Worker {
    fn api(&self) -> Api<Pod> {
        Api::namespaced(self.cx.client.clone(), self.pod.metadata.namespace.as_deref().unwrap_or("default"))
    }

    /// Writes the status when it differs from what the API has.
    pub(super) fn write_status(&mut self) {
        if self.busy.writing || self.retry_at.is_some() || self.state.settled || self.released {
            return;
        }
        let now = Timestamp::now();
        let wanted = status::build(&self.pod, &self.state, self.cx.host_ip, &self.written, now);
        if self.synced && wanted == self.written {
            return;
        }
        let ends = self.pod.metadata.deletion_timestamp.is_some();
        if !ends && self.begins_until().is_some() && is_beginning(&wanted) {
            return;
        }
        self.busy.writing = true;
        let (api, name) = (self.api(), self.pod.metadata.name.clone().unwrap_or_default());
        // A pod of the node's own has another uid in the API than here.
        let mut body = json!({"status": status::patch(&wanted)});
        if !static_pods::is_static(&self.pod) {
            body["metadata"] = json!({"uid": self.uid()});
        }
        self.jobs.spawn(async move {
            let params = PatchParams::default();
            let patch = Patch::Strategic(body);
            let write = api.patch_status(&name, &params, &patch);
            Done::Written(Box::new(wanted), limited(write).await.map(drop))
        });
    }

    /// The object in the API is another than the one written to: it gets the whole status.
    pub(super) fn write_anew(&mut self) {
        (self.synced, self.stale, self.retry_at) = (false, self.busy.writing, None);
    }

    pub(super) fn wrote(&mut self, status: PodStatus, outcome: Result<(), kube::Error>) {
        match outcome {
            Ok(()) => {
                self.written = status;
                self.synced = !std::mem::take(&mut self.stale);
            }
            // The watch will say so too; until then there is nobody to tell.
            Err(error) if is_gone(&error) => {
                self.retry_at = Some(tokio::time::Instant::now() + WRITE_RETRY * 5)
            }
            Err(error) => {
                tracing::debug!(pod = %self.name(), %error, "cannot write the status of a pod");
                self.retry_at = Some(tokio::time::Instant::now() + WRITE_RETRY);
            }
        }
    }

    /// Frees what the pod holds, writes its last status, then deletes it.
    pub(super) fn remove(&mut self) {
        if self.busy.writing || self.busy.deleting || self.retry_at.is_some() {
            return;
        }
        if !self.released && !self.state.settled {
            let now = Timestamp::now();
            let last = status::build(&self.pod, &self.state, self.cx.host_ip, &self.written, now);
            if !self.synced || last != self.written {
                return;
            }
        }
        let left = self.release();
        self.busy.deleting = true;
        let (api, name) = (self.api(), self.pod.metadata.name.clone().unwrap_or_default());
        let uid = self.pod.metadata.uid.clone().filter(|_| !static_pods::is_static(&self.pod));
        let preconditions = uid.map(|uid| Preconditions { uid: Some(uid), resource_version: None });
        let params = DeleteParams { grace_period_seconds: Some(0), preconditions, ..DeleteParams::default() };
        let sandbox = self.state.sandbox.clone();
        let containers = self.cx.containers.clone();
        let (csi, own_uid) = (self.cx.csi.clone(), self.uid().to_string());
        self.jobs.spawn(async move {
            if let Some(left) = left {
                left.remove().await;
            }
            if let (Some(sandbox), Some(containers)) = (sandbox, containers)
                && let Err(error) = containers.discard(&sandbox.id).await
            {
                return Done::Deleted(Err(error.to_string()));
            }
            if let Err(error) = csi.unmount(&own_uid).await {
                return Done::Deleted(Err(error));
            }
            Done::Deleted(match limited(api.delete(&name, &params)).await {
                Err(error) if !is_gone(&error) => Err(error.to_string()),
                _ => Ok(()),
            })
        });
    }

    /// Gives back what the pod holds; the first time, what is still to be removed.
    fn release(&mut self) -> Option<Left> {
        if self.released {
            return None;
        }
        self.released = true;
        for (_, live) in self.runs.drain() {
            live.stop.kill();
            live.task.abort();
        }
        // Nothing may write into the pod's directory once it is set aside.
        self.jobs.abort_all();
        if let Some(pool) = &*self.cx.addresses.borrow() {
            pool.give_back(self.uid());
        }
        self.cx.devices.release(self.uid());
        self.cx.policies.leave(&self.pod);
        self.cx.running.set_namespace(self.uid(), None);
        self.cx.running.clear_ports(self.uid());
        Some(Left {
            cx: self.cx.clone(),
            pod: self.pod.clone(),
            aside: self.cx.records.set_aside(self.uid()),
        })
    }

    pub(super) fn gone(mut self) {
        for live in self.runs.values() {
            live.stop.kill();
        }
        let left = self.release();
        let sandbox = self.state.sandbox.take().zip(self.cx.containers.clone());
        let (csi, uid) = (self.cx.csi.clone(), self.uid().to_string());
        // The API does not wait for it; what fails now is removed when the agent is next started.
        tokio::spawn(async move {
            if let Some((sandbox, containers)) = sandbox
                && let Err(error) = containers.discard(&sandbox.id).await
            {
                tracing::warn!(sandbox = sandbox.id, %error, "cannot remove the sandbox of a pod that is gone");
            }
            csi.leave(&uid);
            if let Some(left) = left {
                left.remove().await;
            }
        });
    }

    /// The agent ends: stop what runs in it, leave what the container runtime runs, keep the record.
    pub(super) async fn quit(mut self) {
        for (name, live) in &self.runs {
            if self.state.containers.get(name).is_some_and(|c| c.foreign) {
                live.task.abort();
            } else {
                live.stop.stop(Duration::ZERO);
            }
        }
        while let Some(done) = self.jobs.join_next().await {
            drop(done);
        }
    }
}

/// The directories of a pod that holds nothing any longer.
struct Left {
    cx: Arc<Context>,
    pod: Arc<Pod>,
    /// Its own directory, if it had one.
    aside: Option<PathBuf>,
}

impl Left {
    /// Removes them on a thread of its own: a volume may hold a million files.
    async fn remove(self) {
        let work = move || {
            let part = |s: &Option<String>| s.clone().unwrap_or_default();
            let meta = &self.pod.metadata;
            let uid = part(&meta.uid);
            if let Some(memory) = &self.cx.memory_dir {
                store::remove(&memory.join(&uid));
            }
            if let Some(aside) = &self.aside {
                store::remove(aside);
            }
            self.cx.logs.remove(&part(&meta.namespace), &part(&meta.name), &uid);
        };
        if let Err(error) = tokio::task::spawn_blocking(work).await {
            tracing::error!(%error, "the removal of a pod's directories broke");
        }
    }
}

/// Whether a status says nothing but that containers are being made.
fn is_beginning(status: &PodStatus) -> bool {
    let containers = status.init_container_statuses.iter().chain(&status.container_statuses).flatten();
    let mut reasons = containers.map(|c| c.state.as_ref()?.waiting.as_ref()?.reason.as_deref());
    status.phase.as_deref() == Some("Pending")
        && reasons.all(|reason| matches!(reason, Some("ContainerCreating" | "PodInitializing")))
}

fn is_gone(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(status) if matches!(status.code, 404 | 409))
}

/// A write that does not hang for ever.
async fn limited<T>(work: impl Future<Output = Result<T, kube::Error>>) -> Result<T, kube::Error> {
    match tokio::time::timeout(WRITE_LIMIT, work).await {
        Ok(outcome) => outcome,
        Err(elapsed) => Err(kube::Error::Service(elapsed.into())),
    }
}
