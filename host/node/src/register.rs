//! Keeps the Node object and its Lease: registers the node, renews the Lease, brings the
//! status up to date, and learns the node's pod range.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use futures::future::BoxFuture;
use kube::{
    Api,
    api::{Patch, PatchParams, PostParams},
};
use serde_json::json;
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;
use wasmk_api::{
    Timestamp,
    k8s_openapi::{
        api::{
            coordination::v1::{Lease, LeaseSpec},
            core::v1::{
                DaemonEndpoint, Node, NodeAddress, NodeCondition, NodeDaemonEndpoints, NodeRuntimeHandler,
                NodeSpec, NodeStatus,
            },
        },
        apimachinery::pkg::{
            api::resource::Quantity as ApiQuantity,
            apis::meta::v1::{MicroTime, ObjectMeta, OwnerReference, Time},
        },
    },
};
use wasmk_cri::Info;
use wasmk_net::AddressPool;

use crate::{
    devices::Amounts,
    machine,
    settings::{Capacity, Settings},
    shortage::Short,
};

/// Namespace of the nodes' Leases.
const LEASES: &str = "kube-node-lease";
/// How long a Lease holds without renewal, in seconds.
const LEASE_SECONDS: i32 = 40;
/// After so long without a renewal, in seconds, the cluster may take the node for lost.
const LAPSE_SECONDS: i64 = LEASE_SECONDS as i64 / 2;
/// The status is written at least this often.
const STATUS_PERIOD: Duration = Duration::from_secs(300);
/// How often it is seen whether the node has become short of something, or no longer is.
const SHORT_PERIOD: Duration = Duration::from_secs(10);
/// Wait before a failed write is tried again.
const RETRY: Duration = Duration::from_secs(1);
/// How often the Node is read while it has no pod range yet.
const RANGE_PERIOD: Duration = Duration::from_millis(250);
/// Longest time for one exchange with the API.
const LIMIT: Duration = Duration::from_secs(10);

/// Says that this node runs Wasm.
pub const WASM_LABEL: &str = "wasmk.dev/runtime-wasm";
/// Says whether this node runs OCI containers now.
pub const CONTAINER_LABEL: &str = "wasmk.dev/runtime-container";
/// Runtime handlers that stand for the Wasm runtime of this program.
pub const WASM_HANDLERS: &[&str] = &["wasmtime", "wasmtime-spin-v2", "spin", ISOLATED_HANDLER];
/// The one of them that stands for the Wasm runtime in a process apart, behind a second wall.
pub const ISOLATED_HANDLER: &str = "wasmtime-isolated";

fn range_file(data_dir: &Path) -> PathBuf {
    data_dir.join("pod-range")
}

/// The pod range this node had when it last ran.
pub(crate) fn known_range(data_dir: &Path) -> Option<String> {
    let text = std::fs::read_to_string(range_file(data_dir)).ok()?;
    Some(text.trim().to_string()).filter(|t| AddressPool::new(t).is_ok())
}

/// What other parts of the node tell of it.
pub(crate) struct News {
    /// How the container runtime is, if one is named.
    pub(crate) containers: watch::Receiver<Option<Info>>,
    /// Volumes that may not be detached from this node.
    pub(crate) volumes: watch::Receiver<Vec<String>>,
    /// Devices that plugins announce.
    pub(crate) devices: watch::Receiver<Amounts>,
}

/// Keeps one node registered.
pub(crate) struct Registrar {
    settings: Settings,
    capacity: Capacity,
    runtime: String,
    client: kube::Client,
    addresses: watch::Sender<Option<Arc<AddressPool>>>,
    news: News,
    /// The Lease was renewed after a lapse, so that the Node may say what is no longer true.
    lapsed: Notify,
}

impl Registrar {
    /// Nothing happens before [`run`](Self::run).
    pub(crate) fn new(
        settings: Settings,
        capacity: Capacity,
        runtime: String,
        client: kube::Client,
        addresses: watch::Sender<Option<Arc<AddressPool>>>,
        news: News,
    ) -> Self {
        Self { settings, capacity, runtime, client, addresses, news, lapsed: Notify::new() }
    }

    /// Registers, then renews and updates until told to stop.
    pub(crate) async fn run(self, stop: CancellationToken) {
        let work = async {
            let node = self.until_done("register the node", || Box::pin(self.register())).await;
            tokio::join!(self.learn_range(&node), self.renew(&node), self.update());
        };
        tokio::select! {
            () = stop.cancelled() => {}
            () = work => {}
        }
    }

    async fn until_done<'a, T>(
        &self,
        what: &str,
        work: impl Fn() -> BoxFuture<'a, Result<T, kube::Error>>,
    ) -> T {
        let mut said = false;
        loop {
            match limited(work()).await {
                Ok(value) => return value,
                Err(error) if !said => {
                    said = true;
                    tracing::info!(node = %self.settings.name, %error, "cannot {what} yet");
                }
                Err(error) => tracing::debug!(node = %self.settings.name, %error, "cannot {what} yet"),
            }
            tokio::time::sleep(RETRY).await;
        }
    }

    fn nodes(&self) -> Api<Node> {
        Api::all(self.client.clone())
    }

    /// Creates the Node, or brings labels and status of the one that is there up to date.
    async fn register(&self) -> Result<Node, kube::Error> {
        let name = &self.settings.name;
        let now = Timestamp::now();
        let wanted = Node {
            metadata: ObjectMeta {
                name: Some(name.clone()),
                labels: Some(self.labels()),
                annotations: Some([("node.alpha.kubernetes.io/ttl".into(), "0".into())].into()),
                ..ObjectMeta::default()
            },
            spec: Some(NodeSpec {
                taints: (!self.settings.taints.is_empty()).then(|| self.settings.taints.clone()),
                pod_cidr: self.settings.pod_cidr.clone(),
                pod_cidrs: self.settings.pod_cidr.clone().map(|c| vec![c]),
                ..NodeSpec::default()
            }),
            status: Some(self.status(&NodeStatus::default(), now)),
        };
        match self.nodes().create(&PostParams::default(), &wanted).await {
            Ok(_) => {}
            Err(kube::Error::Api(status)) if status.code == 409 => {
                let labels = json!({"metadata": {"labels": self.labels()}});
                self.nodes().patch(name, &PatchParams::default(), &Patch::Merge(labels)).await?;
            }
            Err(error) => return Err(error),
        }
        self.write_status().await
    }

    fn labels(&self) -> BTreeMap<String, String> {
        let mut labels: BTreeMap<String, String> = [
            ("kubernetes.io/hostname", self.settings.name.as_str()),
            ("kubernetes.io/os", "linux"),
            ("kubernetes.io/arch", machine::architecture()),
            ("beta.kubernetes.io/os", "linux"),
            ("beta.kubernetes.io/arch", machine::architecture()),
            (WASM_LABEL, "true"),
            (CONTAINER_LABEL, if self.runs_containers() { "true" } else { "false" }),
        ]
        .map(|(k, v)| (k.into(), v.into()))
        .into();
        labels.extend(self.settings.labels.clone());
        labels
    }

    fn runs_containers(&self) -> bool {
        self.news.containers.borrow().as_ref().is_some_and(|i| i.trouble.is_none())
    }

    /// The default handler, ours, and the container runtime's while it is there.
    fn handlers(&self) -> Vec<NodeRuntimeHandler> {
        let containers = self.news.containers.borrow();
        let theirs = containers.iter().flat_map(|i| i.handlers.iter().map(String::as_str));
        let names = std::iter::once("").chain(WASM_HANDLERS.iter().copied()).chain(theirs);
        names.map(|h| NodeRuntimeHandler { name: Some(h.into()), features: None }).collect()
    }

    /// Brings labels and status up to date.
    async fn write_all(&self) -> Result<Node, kube::Error> {
        let labels = json!({"metadata": {"labels": self.labels()}});
        self.nodes().patch(&self.settings.name, &PatchParams::default(), &Patch::Merge(labels)).await?;
        self.write_status().await
    }

    async fn write_status(&self) -> Result<Node, kube::Error> {
        let name = &self.settings.name;
        let current = self.nodes().get(name).await?;
        let status = self.status(&current.status.unwrap_or_default(), Timestamp::now());
        let patch = Patch::Strategic(json!({"status": status}));
        self.nodes().patch_status(name, &PatchParams::default(), &patch).await
    }

    async fn update(&self) {
        let mut news = self.addresses.subscribe();
        // The registration may have told of a node that had no range at the time.
        news.mark_changed();
        let mut containers = self.news.containers.clone();
        let mut volumes = self.news.volumes.clone();
        let mut devices = self.news.devices.clone();
        loop {
            tokio::select! {
                changed = news.changed() => if changed.is_err() { return },
                // Without a container runtime there is no news of one.
                Ok(()) = containers.changed() => {}
                Ok(()) = volumes.changed() => {}
                Ok(()) = devices.changed() => {}
                () = self.shortness_changed() => {}
                () = self.lapsed.notified() => {}
                () = tokio::time::sleep(STATUS_PERIOD) => {}
            }
            containers.mark_unchanged();
            volumes.mark_unchanged();
            devices.mark_unchanged();
            self.until_done("write the node's status", || Box::pin(self.write_all())).await;
        }
    }

    async fn shortness_changed(&self) {
        let look = || Short::now(&self.settings.data_dir, &self.settings.thresholds);
        let before = look();
        while look() == before {
            tokio::time::sleep(SHORT_PERIOD).await;
        }
    }

    fn status(&self, previous: &NodeStatus, now: Timestamp) -> NodeStatus {
        // No more pods than there are addresses.
        let addresses = self.addresses.borrow().as_ref().map(|pool| pool.size());
        let most = addresses.and_then(|n| u32::try_from(n).ok()).unwrap_or(u32::MAX);
        let mut capacity = amounts(&self.capacity, self.settings.max_pods.min(most));
        let mut allocatable = capacity.clone();
        for (resource, (all, good)) in &*self.news.devices.borrow() {
            capacity.insert(resource.clone(), ApiQuantity(all.to_string()));
            allocatable.insert(resource.clone(), ApiQuantity(good.to_string()));
        }
        let in_use = self.news.volumes.borrow().clone();
        let address = |kind: &str, value: String| NodeAddress { type_: kind.into(), address: value };
        NodeStatus {
            addresses: Some(vec![
                address("InternalIP", self.settings.address.to_string()),
                address("Hostname", self.settings.name.clone()),
            ]),
            capacity: Some(capacity),
            allocatable: Some(allocatable),
            conditions: Some(conditions(
                self.addresses.borrow().is_some(),
                Short::now(&self.settings.data_dir, &self.settings.thresholds),
                previous,
                now,
            )),
            daemon_endpoints: Some(NodeDaemonEndpoints {
                kubelet_endpoint: Some(DaemonEndpoint { port: self.settings.port.into() }),
            }),
            node_info: Some(machine::system_info(&self.runtime_version())),
            runtime_handlers: Some(self.handlers()),
            // An empty list takes back what was said before.
            volumes_in_use: Some(in_use).filter(|now| !now.is_empty() || previous.volumes_in_use.is_some()),
            ..NodeStatus::default()
        }
    }

    /// The container runtime's name and version while it is there, else the Wasm runtime's.
    fn runtime_version(&self) -> String {
        let containers = self.news.containers.borrow();
        containers.as_ref().map_or_else(|| self.runtime.clone(), |i| format!("{}://{}", i.name, i.version))
    }

    /// Opens the address pool as soon as the node has a range.
    async fn learn_range(&self, node: &Node) {
        let mut range = node.spec.as_ref().and_then(|s| s.pod_cidr.clone());
        while self.addresses.borrow().is_none() {
            if let Some(cidr) = range.take().filter(|c| !c.is_empty()) {
                match AddressPool::new(&cidr) {
                    Ok(pool) => {
                        self.remember(&cidr);
                        self.addresses.send_replace(Some(Arc::new(pool)));
                        return;
                    }
                    Err(error) => tracing::warn!(%error, "spec.podCIDR of the node is not usable"),
                }
            }
            tokio::time::sleep(RANGE_PERIOD).await;
            range = limited(self.nodes().get(&self.settings.name)).await.ok().and_then(|n| n.spec?.pod_cidr);
        }
    }

    /// Keeps the range for a start without the API.
    fn remember(&self, cidr: &str) {
        if let Err(error) = std::fs::write(range_file(&self.settings.data_dir), cidr) {
            tracing::warn!(%error, "cannot keep the node's pod range");
        }
    }

    /// Renews the Lease each period.
    async fn renew(&self, node: &Node) {
        let mut ticks = tokio::time::interval(self.settings.lease_period);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        // By the clock on the wall, which goes on while the machine sleeps.
        let mut last = Timestamp::now();
        loop {
            ticks.tick().await;
            self.until_done("renew the node's lease", || Box::pin(self.beat(node))).await;
            let now = Timestamp::now();
            if now.0.as_second() - last.0.as_second() >= LAPSE_SECONDS {
                self.lapsed.notify_one();
            }
            last = now;
        }
    }

    async fn beat(&self, node: &Node) -> Result<(), kube::Error> {
        let api: Api<Lease> = Api::namespaced(self.client.clone(), LEASES);
        let name = &self.settings.name;
        let now = MicroTime(Timestamp::now().0);
        let patch = Patch::Merge(json!({"spec": {"renewTime": now, "holderIdentity": name}}));
        match api.patch(name, &PatchParams::default(), &patch).await {
            Err(kube::Error::Api(status)) if status.code == 404 => {}
            other => return other.map(drop),
        }
        let owner = OwnerReference {
            api_version: "v1".into(),
            kind: "Node".into(),
            name: name.clone(),
            uid: node.metadata.uid.clone().unwrap_or_default(),
            ..OwnerReference::default()
        };
        let lease = Lease {
            metadata: ObjectMeta {
                name: Some(name.clone()),
                namespace: Some(LEASES.into()),
                owner_references: Some(vec![owner]),
                ..ObjectMeta::default()
            },
            spec: Some(LeaseSpec {
                holder_identity: Some(name.clone()),
                lease_duration_seconds: Some(LEASE_SECONDS),
                renew_time: Some(now),
                ..LeaseSpec::default()
            }),
        };
        api.create(&PostParams::default(), &lease).await.map(drop)
    }
}

async fn limited<T>(work: impl Future<Output = Result<T, kube::Error>>) -> Result<T, kube::Error> {
    match tokio::time::timeout(LIMIT, work).await {
        Ok(outcome) => outcome,
        Err(elapsed) => Err(kube::Error::Service(elapsed.into())),
    }
}

/// Capacity as the API writes it.
pub(crate) fn amounts(capacity: &Capacity, max_pods: u32) -> BTreeMap<String, ApiQuantity> {
    let cpu = match capacity.cpu_millis {
        millis if millis % 1000 == 0 => (millis / 1000).to_string(),
        millis => format!("{millis}m"),
    };
    [
        ("cpu", cpu),
        ("memory", format!("{}Ki", capacity.memory / 1024)),
        ("ephemeral-storage", format!("{}Ki", capacity.storage / 1024)),
        ("pods", max_pods.to_string()),
    ]
    .map(|(k, v)| (k.into(), ApiQuantity(v)))
    .into()
}

fn conditions(has_range: bool, short: Short, previous: &NodeStatus, now: Timestamp) -> Vec<NodeCondition> {
    let low = short.memory;
    let memory = if low {
        ("True", "KubeletHasInsufficientMemory", "kubelet has insufficient memory available")
    } else {
        ("False", "KubeletHasSufficientMemory", "kubelet has sufficient memory available")
    };
    let disk = if short.disk {
        ("True", "KubeletHasDiskPressure", "kubelet has disk pressure")
    } else {
        ("False", "KubeletHasNoDiskPressure", "kubelet has no disk pressure")
    };
    let processes = if short.processes {
        ("True", "KubeletHasInsufficientPID", "kubelet has insufficient PID available")
    } else {
        ("False", "KubeletHasSufficientPID", "kubelet has sufficient PID available")
    };
    let ready = if has_range {
        ("True", "KubeletReady", "kubelet is posting ready status")
    } else {
        ("False", "KubeletNotReady", "container runtime network not ready: the node has no pod range yet")
    };
    let rows =
        [("MemoryPressure", memory), ("DiskPressure", disk), ("PIDPressure", processes), ("Ready", ready)];
    let condition = |(kind, (status, reason, message)): (&str, (&str, &str, &str))| {
        let before = previous.conditions.iter().flatten().find(|c| c.type_ == kind && c.status == status);
        NodeCondition {
            type_: kind.into(),
            status: status.into(),
            reason: Some(reason.into()),
            message: Some(message.into()),
            last_heartbeat_time: Some(Time(now.0)),
            last_transition_time: before.and_then(|c| c.last_transition_time.clone()).or(Some(Time(now.0))),
        }
    };
    rows.into_iter().map(condition).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn amounts_are_written_as_kubernetes_does() {
        let capacity = Capacity { cpu_millis: 2500, memory: 4 << 20, storage: 1 << 20 };
        let shown: Vec<String> =
            amounts(&capacity, 7).into_iter().map(|(k, v)| format!("{k}={}", v.0)).collect();
        assert_eq!(shown, ["cpu=2500m", "ephemeral-storage=1024Ki", "memory=4096Ki", "pods=7"]);
    }

    #[test]
    fn readiness_follows_the_range_and_keeps_its_time() {
        let at = |s| Timestamp(wasmk_api::k8s_openapi::jiff::Timestamp::from_second(s).unwrap());
        let first =
            conditions(false, Short { disk: true, ..Short::default() }, &NodeStatus::default(), at(1));
        let before = NodeStatus { conditions: Some(first), ..NodeStatus::default() };
        let second = conditions(true, Short::default(), &before, at(2));
        let time = |list: &[NodeCondition], kind: &str| {
            let c = list.iter().find(|c| c.type_ == kind).unwrap();
            (c.status.clone(), c.last_transition_time.clone().unwrap().0.as_second())
        };
        assert_eq!(time(&second, "Ready"), ("True".into(), 2));
        assert_eq!(time(&before.conditions.unwrap(), "DiskPressure"), ("True".into(), 1));
        assert_eq!(time(&second, "DiskPressure"), ("False".into(), 2));
        assert_eq!(time(&second, "MemoryPressure"), ("False".into(), 1));
    }
}
