//! What every part of the agent shares.

use std::{collections::BTreeMap, net::IpAddr, path::PathBuf, sync::Arc};

use tokio::sync::{Semaphore, watch};
use wasmk_api::{Quantity, Timestamp};
use wasmk_net::{AddressPool, View, policy::Policies};

use crate::{
    containers::Containers,
    csi::Csi,
    devices::Devices,
    engine::Engine,
    events::Events,
    functions::Functions,
    logs::Logs,
    network::Neighbours,
    pod::{Classes, Records, env::Sources},
    running::Registry,
    starts::Starts,
};

/// Images prepared (fetched, compiled) at the same time.
pub(crate) const STARTS: usize = 64;

/// Shared by all pods of a node.
pub(crate) struct Context {
    /// Name of the node.
    pub node: String,
    /// When this agent was started.
    pub began: Timestamp,
    /// Address of the node.
    pub host_ip: IpAddr,
    /// To the API.
    pub client: kube::Client,
    /// Runs containers.
    pub engine: Arc<dyn Engine>,
    /// Volumes of storage drivers.
    pub csi: Arc<Csi>,
    /// Devices that plugins announce.
    pub devices: Arc<Devices>,
    /// The container runtime beside it, if one is named.
    pub containers: Option<Arc<Containers>>,
    /// What runs now.
    pub running: Registry,
    /// Directory for volumes that are never to be on a disk, if there is one.
    pub memory_dir: Option<PathBuf>,
    /// ConfigMaps, Secrets, Services, tokens.
    pub sources: Arc<dyn Sources>,
    /// Which RuntimeClasses ask for a process apart.
    pub classes: Classes,
    /// Services and endpoints of the cluster.
    pub view: View,
    /// Who may talk to whom.
    pub policies: Policies,
    /// Serve Services' addresses in the pods' network namespaces.
    pub proxy: bool,
    /// Permits for the connections to Services that are passed on.
    pub connections: Arc<Semaphore>,
    /// Container logs.
    pub logs: Arc<Logs>,
    /// Event recorder.
    pub events: Events,
    /// Functions answered without a pod.
    pub functions: Functions,
    /// What is on record of the node's pods.
    pub records: Records,
    /// Pod addresses, once the node has a range.
    pub addresses: watch::Receiver<Option<Arc<AddressPool>>>,
    /// What pods may use altogether.
    pub allocatable: BTreeMap<String, Quantity>,
    /// How long pods took to start.
    pub started: Starts,
    /// Permits for preparing images.
    pub starts: Semaphore,
}

impl Context {
    /// What the networks of pods are made of.
    pub(crate) fn neighbours(&self) -> Neighbours {
        let (view, policies) = (self.view.clone(), self.policies.clone());
        Neighbours { view, policies, node: self.node.as_str().into() }
    }

    /// What pods may use of the memory, in bytes.
    pub(crate) fn memory(&self) -> i64 {
        self.allocatable.get("memory").copied().map_or(0, Quantity::value)
    }
}
