//! OCI containers, run by a container runtime beside the Wasm that this process runs itself.
//!
//! The runtime is reached through the container runtime interface. It may come, go and come back:
//! [`Containers::info`] says how it is now. What it runs lives on without this agent, which finds it
//! again by the labels it gave ([`labels`]).

mod config;
mod image;
mod operations;
pub(crate) mod run;
mod sandbox;
mod stats;
mod watch;

use std::{
    collections::HashMap,
    net::IpAddr,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use sha2::{Digest, Sha256};
use tokio::sync::watch as channel;
use wasmk_api::k8s_openapi::api::core::v1::Pod;
use wasmk_cri::{Client, Info};
use wasmk_net::View;

use crate::engine::Failure;

pub(crate) use config::Device;
pub(crate) use config::{Identity, hosts};
pub(crate) use sandbox::Before;
pub use sandbox::Sandbox;
pub(crate) use stats::ContainerUsage;
pub(crate) use watch::{Seen, States};

/// How often the runtime is asked how it is.
const HEALTH: Duration = Duration::from_secs(10);
/// How often a runtime that does not answer is asked.
const AWAY: Duration = Duration::from_secs(1);

/// Labels that name what a sandbox or container is for; other tools know them, too.
pub(crate) mod labels {
    pub(crate) const POD: &str = "io.kubernetes.pod.name";
    pub(crate) const NAMESPACE: &str = "io.kubernetes.pod.namespace";
    pub(crate) const UID: &str = "io.kubernetes.pod.uid";
    pub(crate) const CONTAINER: &str = "io.kubernetes.container.name";
    /// Which agent made it; several may share a runtime.
    pub(crate) const OWNER: &str = "wasmk.dev/agent";
}

/// The container runtime of a node.
pub(crate) struct Containers {
    pub(crate) client: Client,
    pub(crate) states: States,
    info: channel::Sender<Option<Info>>,
    owner: String,
    logs: PathBuf,
    view: View,
    /// IDs of the images that this agent fetched; others are not its to remove.
    fetched: image::Fetched,
}

impl Containers {
    /// The runtime at a socket. `home` is the agent's own directory, which tells its things from
    /// another's; `logs` is where container logs go; the cluster's name server is found in `view`.
    pub(crate) fn new(socket: &Path, home: &Path, logs: PathBuf, view: View) -> Arc<Self> {
        let client = Client::new(socket);
        let home = home.canonicalize().unwrap_or_else(|_| home.into());
        let digest = Sha256::digest(home.as_os_str().as_encoded_bytes());
        let owner = hex::encode(&digest[..8]);
        let states = States::new(client.clone(), &owner);
        let fetched = image::Fetched::open(home.join("fetched-images.json"));
        Arc::new(Self { client, states, info: channel::Sender::new(None), owner, logs, view, fetched })
    }

    /// The cluster's name server as pods reach it, if there is one.
    fn dns(&self) -> Option<IpAddr> {
        let service = self.view.service("kube-system", "kube-dns")?;
        service.spec.as_ref()?.cluster_ip.as_ref()?.parse().ok()
    }

    /// Asks the runtime how it is, again and again.
    pub(crate) async fn keep(self: Arc<Self>) {
        loop {
            self.ask().await;
            let rest = if self.info.borrow().is_some() { HEALTH } else { AWAY };
            tokio::time::sleep(rest).await;
        }
    }

    /// Asks the runtime how it is.
    pub(crate) async fn ask(&self) {
        let answer = self.client.info().await;
        if let Err(error) = &answer
            && self.info.borrow().is_some()
        {
            tracing::warn!(socket = %self.client.socket().display(), %error, "the container runtime is away");
        }
        let info = answer.ok();
        self.info.send_if_modified(|known| {
            let changed = *known != info;
            *known = info;
            changed
        });
    }

    /// How the runtime is; `None` while it cannot be reached.
    pub(crate) fn info(&self) -> channel::Receiver<Option<Info>> {
        self.info.subscribe()
    }

    /// Name of the runtime, as it stands in container IDs.
    pub(crate) fn name(&self) -> String {
        self.info.borrow().as_ref().map_or_else(|| "cri".into(), |i| i.name.clone())
    }

    fn pod_labels(&self, pod: &Pod) -> HashMap<String, String> {
        let meta = &pod.metadata;
        let part = |s: &Option<String>| s.clone().unwrap_or_default();
        [
            (labels::POD, part(&meta.name)),
            (labels::NAMESPACE, part(&meta.namespace)),
            (labels::UID, part(&meta.uid)),
            (labels::OWNER, self.owner.clone()),
        ]
        .map(|(k, v)| (k.to_string(), v))
        .into()
    }
}

/// A failed call as a container's waiting reason.
fn failure(reason: &'static str) -> impl Fn(wasmk_cri::Error) -> Failure {
    move |error| Failure::new(reason, error.message)
}
