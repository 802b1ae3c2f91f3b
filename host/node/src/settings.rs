//! What a node is told by the program around it.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr},
    path::PathBuf,
    time::Duration,
};

use wasmk_api::k8s_openapi::api::core::v1::Taint;

use crate::{garbage::ImageCollection, shortage::Thresholds};

/// Pods a node takes when nothing is said: Wasm pods are small.
pub const DEFAULT_MAX_PODS: u32 = 10_000;

/// Settings of a node.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Name of the Node object.
    pub name: String,
    /// Directory of the agent's own: pod records, volumes, logs.
    pub data_dir: PathBuf,
    /// Range of pod addresses. `None`: what `spec.podCIDR` of the Node says, once it does.
    pub pod_cidr: Option<String>,
    /// More labels for the Node.
    pub labels: BTreeMap<String, String>,
    /// Taints for the Node when it is registered.
    pub taints: Vec<Taint>,
    /// Address of the node (`InternalIP`, `hostIP`).
    pub address: IpAddr,
    /// Port of the node's HTTP API, when it has one; 0 when it is reached otherwise.
    pub port: u16,
    /// Pods at a time.
    pub max_pods: u32,
    /// Cores and bytes of memory; `None`: what the machine has.
    pub capacity: Option<Capacity>,
    /// Time between two renewals of the node's Lease.
    pub lease_period: Duration,
    /// Time between two looks at what pods take of the node.
    pub pressure_period: Duration,
    /// What is to be left of the node's resources; below it pods are evicted.
    pub thresholds: Thresholds,
    /// When images that nothing uses are removed.
    pub images: ImageCollection,
    /// Directory of links to containers' logs, named as collectors of logs expect it:
    /// `POD_NAMESPACE_CONTAINER-ID.log`.
    pub log_links: PathBuf,
    /// Run the service proxy.
    pub proxy: bool,
    /// Socket of the container runtime that runs OCI containers; `None` when there is none.
    pub container_runtime: Option<PathBuf>,
    /// Directory where device plugins register, at the socket `kubelet.sock`.
    pub device_plugins: PathBuf,
    /// Directory of manifests of pods that this node runs without being told by the API.
    pub manifests: Option<PathBuf>,
}

/// What a machine has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capacity {
    /// Thousandths of a core.
    pub cpu_millis: i64,
    /// Bytes of memory.
    pub memory: i64,
    /// Bytes of disk under the data directory.
    pub storage: i64,
}

impl Settings {
    /// The usual settings of a node that keeps its things in `data_dir`.
    pub fn new(name: impl Into<String>, data_dir: impl Into<PathBuf>) -> Self {
        let data_dir = data_dir.into();
        Self {
            name: name.into(),
            log_links: data_dir.join("logs/containers"),
            device_plugins: data_dir.join("device-plugins"),
            data_dir,
            pod_cidr: None,
            labels: BTreeMap::new(),
            taints: Vec::new(),
            address: IpAddr::V4(Ipv4Addr::LOCALHOST),
            port: 0,
            max_pods: DEFAULT_MAX_PODS,
            capacity: None,
            lease_period: Duration::from_secs(10),
            pressure_period: Duration::from_secs(10),
            thresholds: Thresholds::default(),
            images: ImageCollection::default(),
            proxy: true,
            container_runtime: None,
            manifests: None,
        }
    }
}
