//! One container in the runtime, from its making to its end.

use std::{collections::HashMap, sync::Arc, time::Duration};

use wasmk_api::{Timestamp, k8s_openapi::api::core::v1::Pod};
use wasmk_cri::v1::{
    ContainerFilter, ContainerState, ContainerStatus, ContainerStatusRequest, CreateContainerRequest,
    ListContainersRequest, RemoveContainerRequest, ReopenContainerLogRequest, StartContainerRequest,
};
use wasmk_runtime::StopSignal;

use super::{Containers, Identity, Sandbox, Seen, config, failure, labels};
use crate::{
    engine::{End, ExecEnd, Failure, Mount},
    logs::FileLog,
};

/// Rest before something is asked of a runtime again that did not answer.
const RETRY: Duration = Duration::from_secs(1);
/// Status of a container whose end nobody saw.
const UNKNOWN: i32 = 137;
/// Most bytes of a command's output that are kept.
const OUTPUT: usize = 10 * 1024;

impl Containers {
    /// Makes and starts a container; what the runtime calls it. It is the first one of its name in a sandbox that has
    /// just been made, or `before` there may be others, which go.
    ///
    /// # Errors
    /// With the reason the container waits for; nothing of it is left then.
    pub(crate) async fn launch(
        &self,
        sandbox: &Sandbox,
        of: Identity<'_>,
        before: bool,
    ) -> Result<String, Failure> {
        let pod = of.pod;
        let labels = self.container_labels(pod, &of.container.name);
        if before {
            self.clear(&labels).await.map_err(failure("CreateContainerError"))?;
        }
        let config = config::container(of, labels)?;
        let request = CreateContainerRequest {
            pod_sandbox_id: sandbox.id.clone(),
            sandbox_config: Some(config::sandbox(
                pod,
                sandbox.attempt,
                self.pod_labels(pod),
                &self.logs,
                self.dns(),
            )),
            config: Some(config),
        };
        let made = self.client.create_container(request).await;
        let id = made.map_err(failure("CreateContainerError"))?.container_id;
        let start = StartContainerRequest { container_id: id.clone() };
        if let Err(error) = self.client.start_container(start).await {
            self.remove(&id).await;
            return Err(failure("RunContainerError")(error));
        }
        Ok(id)
    }

    fn container_labels(&self, pod: &Pod, name: &str) -> HashMap<String, String> {
        let mut labels = self.pod_labels(pod);
        labels.insert(labels::CONTAINER.into(), name.into());
        labels
    }

    /// Removes what an earlier, broken off start left.
    async fn clear(&self, labels: &HashMap<String, String>) -> Result<(), wasmk_cri::Error> {
        let filter = ContainerFilter { label_selector: labels.clone(), ..ContainerFilter::default() };
        let old = self.client.list_containers(ListContainersRequest { filter: Some(filter) }).await?;
        for container in old.containers {
            let request = RemoveContainerRequest { container_id: container.id };
            self.client.remove_container(request).await?;
        }
        Ok(())
    }

    /// A container's termination message is read before this: it is gone afterwards.
    async fn remove(&self, id: &str) {
        let request = RemoveContainerRequest { container_id: id.into() };
        if let Err(error) = self.client.remove_container(request).await
            && !error.is_not_found()
        {
            // It goes with its sandbox, or before the container is started again.
            tracing::debug!(id, %error, "cannot remove a container that has ended");
        }
    }

    /// Waits for a container's end, which `stop` brings about; then removes it.
    pub(crate) async fn attend(self: &Arc<Self>, id: &str, stop: StopSignal) -> (End, Option<Ran>) {
        let seen = tokio::select! {
            seen = self.states.ended(id) => seen,
            seen = self.stop(id, &stop) => seen,
        };
        let status = match seen {
            Seen::Gone => None,
            Seen::Ended => self.final_status(id).await,
        };
        let Some(status) = status else {
            let message = "the container could not be located in the container runtime";
            let end = End { code: UNKNOWN, reason: "ContainerStatusUnknown".into(), message: message.into() };
            return (end, None);
        };
        self.remove(id).await;
        (end(&status), ran(&status))
    }

    async fn stop(&self, id: &str, stop: &StopSignal) -> Seen {
        let grace = stop.requested().await;
        loop {
            let outcome = tokio::select! {
                outcome = self.client.stop_container(id, grace) => outcome,
                () = stop.expired() => self.client.stop_container(id, Duration::ZERO).await,
            };
            match outcome {
                Ok(()) => return Seen::Ended,
                Err(error) if error.is_not_found() => return Seen::Gone,
                Err(error) => tracing::debug!(id, %error, "cannot stop a container yet"),
            }
            tokio::time::sleep(RETRY).await;
        }
    }

    /// The status of a container that has ended; `None` when the runtime does not know it.
    async fn final_status(&self, id: &str) -> Option<ContainerStatus> {
        loop {
            match self.status(id).await {
                Ok(Some(status)) if status.state() != ContainerState::ContainerRunning => {
                    return Some(status);
                }
                Ok(None) => return None,
                Ok(Some(_)) => {}
                Err(error) => tracing::debug!(id, %error, "cannot tell yet how a container ended"),
            }
            tokio::time::sleep(RETRY).await;
        }
    }

    async fn status(&self, id: &str) -> Result<Option<ContainerStatus>, wasmk_cri::Error> {
        let request = ContainerStatusRequest { container_id: id.into(), verbose: false };
        match self.client.container_status(request).await {
            Ok(answer) => Ok(answer.status),
            Err(error) if error.is_not_found() => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Keeps followers of a container's log awake and the log within its bounds; never ends.
    pub(crate) async fn keep_log(&self, id: &str, log: &FileLog) -> std::convert::Infallible {
        loop {
            log.watch().await;
            let request = ReopenContainerLogRequest { container_id: id.into() };
            if let Err(error) = self.client.reopen_container_log(request).await {
                tracing::debug!(id, %error, "the runtime did not reopen a container's log");
            }
        }
    }

    /// Runs a command in a container to its end.
    ///
    /// # Errors
    /// In words, when it cannot be run or takes too long.
    pub(crate) async fn exec(
        &self,
        id: &str,
        command: &[String],
        limit: Duration,
    ) -> Result<ExecEnd, String> {
        match self.client.exec_sync(id, command, limit).await {
            Ok(answer) => {
                let mut output = answer.stdout;
                output.extend_from_slice(&answer.stderr);
                output.truncate(OUTPUT);
                let output = String::from_utf8_lossy(&output).into_owned();
                Ok(ExecEnd { code: answer.exit_code, output })
            }
            Err(error) if error.is_timeout() => {
                Err(format!("command timed out: {} after {} s", command.join(" "), limit.as_secs()))
            }
            Err(error) => Err(error.message),
        }
    }
}

/// When a container ran.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Ran {
    pub(crate) from: Timestamp,
    pub(crate) to: Timestamp,
}

fn ran(status: &ContainerStatus) -> Option<Ran> {
    let time = |nanos: i64| {
        let time = wasmk_api::k8s_openapi::jiff::Timestamp::from_nanosecond(nanos.into()).ok()?;
        (nanos > 0).then_some(Timestamp(time))
    };
    Some(Ran { from: time(status.started_at)?, to: time(status.finished_at)? })
}

fn end(status: &ContainerStatus) -> End {
    let reason = match (status.reason.as_str(), status.exit_code) {
        ("", 0) => "Completed",
        ("", _) => "Error",
        (given, _) => given,
    };
    End { code: status.exit_code, reason: reason.into(), message: status.message.clone() }
}

/// The agent's file at a path in the container, unless the pod mounts something there.
pub(crate) fn file_mount(mounts: &mut Vec<Mount>, host: std::path::PathBuf, guest: &str) {
    if mounts.iter().all(|m| m.guest.trim_end_matches('/') != guest) {
        mounts.push(config::own_file(host, guest));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ends_are_named() {
        for (code, reason, expect) in
            [(0, "", "Completed"), (3, "", "Error"), (137, "OOMKilled", "OOMKilled"), (1, "Error", "Error")]
        {
            let status = ContainerStatus { exit_code: code, reason: reason.into(), ..Default::default() };
            assert_eq!((end(&status).code, end(&status).reason.as_str()), (code, expect));
        }
    }
}
