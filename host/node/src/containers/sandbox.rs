//! Sandboxes: the namespaces that a pod's containers share, made before the first of them and kept
//! until the pod goes.

use std::{net::Ipv4Addr, path::PathBuf};

use serde::{Deserialize, Serialize};
use wasmk_api::k8s_openapi::api::core::v1::Pod;
use wasmk_cri::v1::{
    ListPodSandboxRequest, PodSandboxFilter, PodSandboxState, PodSandboxStatusRequest,
    RemovePodSandboxRequest, RunPodSandboxRequest, StopPodSandboxRequest,
};

use super::{Containers, config, failure, labels};
use crate::engine::Failure;

/// Reason of a pod whose sandbox cannot be made.
const SANDBOX_ERROR: &str = "FailedCreatePodSandBox";

/// A pod's sandbox, as the pod's record keeps it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sandbox {
    /// What the runtime calls it.
    pub id: String,
    /// Counts sandboxes of the pod.
    pub attempt: u32,
    /// Its network namespace, when it has one of its own and the runtime tells.
    pub netns: Option<PathBuf>,
    /// Its address, when it has one of its own.
    pub ip: Option<Ipv4Addr>,
}

/// What sandbox a pod had before.
pub(crate) enum Before {
    /// None: it has just come.
    Nothing,
    /// Nobody remembers.
    Unknown,
    /// This one.
    Known(Sandbox),
}

/// A sandbox that can be used.
pub(crate) struct Ready {
    /// Which.
    pub(crate) sandbox: Sandbox,
    /// It was made just now: whatever ran in an earlier one is lost.
    pub(crate) fresh: bool,
}

impl Containers {
    /// The pod's sandbox: the one it has, if that is still ready, or a new one.
    ///
    /// # Errors
    /// When none can be made.
    pub(crate) async fn sandbox(&self, pod: &Pod, before: Before, handler: &str) -> Result<Ready, Failure> {
        let attempt = match before {
            Before::Nothing => 0,
            Before::Unknown => self.clear_sandboxes(pod, 0).await?,
            Before::Known(known) => match self.look(&known.id, known.attempt).await? {
                Some(sandbox) => return Ok(Ready { sandbox, fresh: false }),
                None => self.clear_sandboxes(pod, known.attempt + 1).await?,
            },
        };
        let sandbox = config::sandbox(pod, attempt, self.pod_labels(pod), &self.logs, self.dns());
        let request = RunPodSandboxRequest { config: Some(sandbox), runtime_handler: handler.into() };
        let id = self.client.run_pod_sandbox(request).await.map_err(failure(SANDBOX_ERROR))?.pod_sandbox_id;
        let made = self.look(&id, attempt).await?;
        let gone = || Failure::new(SANDBOX_ERROR, "the sandbox ended as soon as it was made");
        Ok(Ready { sandbox: made.ok_or_else(gone)?, fresh: true })
    }

    /// Discards what an earlier life of this agent made and had no time to write down, or what died; the number of the
    /// next sandbox, `attempt` or more.
    async fn clear_sandboxes(&self, pod: &Pod, mut attempt: u32) -> Result<u32, Failure> {
        let uid = pod.metadata.uid.as_deref().unwrap_or_default();
        for old in self.sandboxes(Some(uid)).await.map_err(failure(SANDBOX_ERROR))? {
            attempt = attempt.max(old.attempt + 1);
            self.discard(&old.id).await.map_err(failure(SANDBOX_ERROR))?;
        }
        Ok(attempt)
    }

    /// A sandbox if it is there and ready.
    async fn look(&self, id: &str, attempt: u32) -> Result<Option<Sandbox>, Failure> {
        let request = PodSandboxStatusRequest { pod_sandbox_id: id.into(), verbose: true };
        let answer = match self.client.pod_sandbox_status(request).await {
            Ok(answer) => answer,
            Err(error) if error.is_not_found() => return Ok(None),
            Err(error) => return Err(failure(SANDBOX_ERROR)(error)),
        };
        let Some(status) = answer.status else { return Ok(None) };
        if status.state() != PodSandboxState::SandboxReady {
            return Ok(None);
        }
        let ip = status.network.and_then(|n| n.ip.parse().ok());
        let netns = answer.info.get("info").and_then(|text| namespace(text));
        Ok(Some(Sandbox { id: id.into(), attempt, netns: netns.filter(|_| ip.is_some()), ip }))
    }

    /// Stops and removes a sandbox with everything in it; one that is not there is fine.
    ///
    /// # Errors
    /// When the runtime cannot do it now.
    pub(crate) async fn discard(&self, id: &str) -> Result<(), wasmk_cri::Error> {
        let missing_is_fine = |outcome: Result<(), wasmk_cri::Error>| match outcome {
            Err(error) if error.is_not_found() => Ok(()),
            other => other,
        };
        let stop = StopPodSandboxRequest { pod_sandbox_id: id.into() };
        missing_is_fine(self.client.stop_pod_sandbox(stop).await.map(drop))?;
        let remove = RemovePodSandboxRequest { pod_sandbox_id: id.into() };
        missing_is_fine(self.client.remove_pod_sandbox(remove).await.map(drop))
    }

    /// Discards this agent's sandboxes whose pods are not among `uids`.
    pub(crate) async fn discard_strays(&self, uids: &[String]) {
        let Ok(all) = self.sandboxes(None).await else { return };
        for stray in all.into_iter().filter(|s| !uids.contains(&s.uid)) {
            tracing::info!(sandbox = stray.id, uid = stray.uid, "a sandbox of a pod that is gone is removed");
            if let Err(error) = self.discard(&stray.id).await {
                tracing::warn!(sandbox = stray.id, %error, "cannot remove a sandbox");
            }
        }
    }

    async fn sandboxes(&self, uid: Option<&str>) -> Result<Vec<Listed>, wasmk_cri::Error> {
        let mut wanted = vec![(labels::OWNER.to_string(), self.owner.clone())];
        wanted.extend(uid.map(|u| (labels::UID.to_string(), u.to_string())));
        let filter = PodSandboxFilter { label_selector: wanted.into_iter().collect(), ..Default::default() };
        let list = self.client.list_pod_sandbox(ListPodSandboxRequest { filter: Some(filter) }).await?;
        let listed = list.items.into_iter().map(|s| {
            let meta = s.metadata.unwrap_or_default();
            Listed { id: s.id, uid: meta.uid, attempt: meta.attempt }
        });
        Ok(listed.collect())
    }
}

struct Listed {
    id: String,
    uid: String,
    attempt: u32,
}

/// The network namespace's path in what a runtime says of a sandbox.
fn namespace(info: &str) -> Option<PathBuf> {
    let info: serde_json::Value = serde_json::from_str(info).ok()?;
    let namespaces = info.pointer("/runtimeSpec/linux/namespaces")?.as_array()?;
    let network = namespaces.iter().find(|n| n["type"] == "network")?;
    network["path"].as_str().filter(|p| !p.is_empty()).map(PathBuf::from)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_namespace_is_found() {
        let check = |info: &str, expect: Option<&str>| {
            assert_eq!(namespace(info), expect.map(PathBuf::from), "{info}");
        };
        let info = r#"{"pid": 1, "runtimeSpec": {"linux": {"namespaces": [{"type": "pid"}, {"type": "network", "path": "/x"}]}}}"#;
        check(info, Some("/x"));
        check(r#"{"runtimeSpec": {"linux": {"namespaces": [{"type": "pid"}]}}}"#, None);
        check("", None);
    }
}
