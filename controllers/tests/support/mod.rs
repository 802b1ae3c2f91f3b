//! A cluster in this process: API server on a store in memory, controllers, scheduler, and
//! hollow nodes that only say that pods run.
#![allow(dead_code)]

pub(crate) mod hollow;
pub(crate) mod story;

use std::{collections::BTreeMap, fmt::Debug, sync::Arc, time::Duration};

use k8s_openapi::api::{
    coordination::v1::Lease,
    core::v1::{Node, Pod, ServiceAccount},
};
use kube::{
    Api, Client, ResourceExt,
    api::{ListParams, Patch, PatchParams, PostParams},
    core::{NamespaceResourceScope, Resource},
};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;
use wasmk_apiserver::{ApiServer, Config};
use wasmk_controllers::{Clock, Context, Settings, run_in, scheduler};
use wasmk_store::Memory;

pub(crate) const NS: &str = "default";
/// Looks at the cluster before a value counts as not coming; a tenth of a second apart.
const MAX_LOOKS: usize = 9000;

pub(crate) struct Cluster {
    pub(crate) client: Client,
    pub(crate) clock: Clock,
    pub(crate) shutdown: CancellationToken,
    pub(crate) server: ApiServer,
    _folder: tempfile::TempDir,
}

impl Drop for Cluster {
    fn drop(&mut self) {
        self.shutdown.cancel();
    }
}

impl Cluster {
    /// A cluster with that many nodes of 4 CPUs, one set of controllers and a scheduler.
    pub(crate) async fn with_nodes(count: usize) -> Self {
        let cluster = Self::bare().await;
        for i in 0..count {
            cluster.add_node(&format!("n{i}"), json!({})).await;
        }
        cluster.run_controllers();
        cluster.run_scheduler();
        // Pods are refused until their service account is there.
        cluster.until::<ServiceAccount>("default", |_| true).await;
        cluster
    }

    /// Only the API and hollow nodes.
    pub(crate) async fn bare() -> Self {
        let cluster = Self::bare_without_nodes().await;
        let (client, clock) = (cluster.client.clone(), cluster.clock);
        tokio::spawn(hollow::run(Context::new(client, Settings::default(), clock, cluster.shutdown.clone())));
        cluster
    }

    /// Only the API.
    pub(crate) async fn bare_without_nodes() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let key = rcgen::KeyPair::generate().unwrap().serialize_pem();
        let config = Config::new(Arc::new(Memory::new()), key, String::new());
        let server = ApiServer::start(config).await.unwrap();
        let client = server.client("admin", &["system:masters"]);
        let shutdown = CancellationToken::new();
        let clock = Clock::runtime();
        Self { client, clock, shutdown, server, _folder: folder }
    }

    pub(crate) fn run_controllers(&self) {
        let settings =
            Settings { ca_pem: "PEM".into(), volume_root: "/var/volumes".into(), ..Settings::default() };
        self.run_controllers_with(settings);
    }

    pub(crate) fn run_controllers_with(&self, settings: Settings) {
        let client = self.server.client("system:kube-controller-manager", &["system:masters"]);
        let cx = Context::new(client, settings, self.clock, self.shutdown.clone());
        tokio::spawn(async move { run_in(cx).await.unwrap() });
    }

    pub(crate) fn run_scheduler(&self) {
        let client = self.server.client("system:kube-scheduler", &["system:masters"]);
        let cx = Context::new(client, Settings::default(), self.clock, self.shutdown.clone());
        tokio::spawn(async move { scheduler::run_in(cx, Default::default()).await.unwrap() });
    }

    pub(crate) async fn add_node(&self, name: &str, labels: Value) {
        let mut all = json!({"kubernetes.io/hostname": name});
        all.as_object_mut().unwrap().extend(labels.as_object().unwrap().clone());
        let node = json!({"metadata": {"name": name, "labels": all}});
        let api: Api<Node> = Api::all(self.client.clone());
        api.create(&PostParams::default(), &serde_json::from_value(node).unwrap()).await.unwrap();
        let allocatable = json!({"cpu": "4", "memory": "8Gi", "pods": "110"});
        let ready = json!([{"type": "Ready", "status": "True", "reason": "KubeletReady", "message": "",
            "lastHeartbeatTime": now(self.clock), "lastTransitionTime": now(self.clock)}]);
        let status =
            json!({"status": {"allocatable": allocatable, "capacity": allocatable, "conditions": ready}});
        api.patch_status(name, &PatchParams::default(), &Patch::Merge(status)).await.unwrap();
        let lease = json!({"metadata": {"name": name}, "spec": {"holderIdentity": name}});
        let leases: Api<Lease> = Api::namespaced(self.client.clone(), "kube-node-lease");
        leases.create(&PostParams::default(), &serde_json::from_value(lease).unwrap()).await.unwrap();
    }

    /// Creates an object of the namespace `default`.
    pub(crate) async fn create<K>(&self, value: Value) -> K
    where
        K: Resource<DynamicType = (), Scope = NamespaceResourceScope>,
        K: Clone + Debug + Serialize + DeserializeOwned,
    {
        let object: K = serde_json::from_value(value).unwrap();
        self.api::<K>().create(&PostParams::default(), &object).await.unwrap()
    }

    pub(crate) fn api<K: Resource<DynamicType = (), Scope = NamespaceResourceScope>>(&self) -> Api<K> {
        Api::namespaced(self.client.clone(), NS)
    }

    pub(crate) async fn patch<K>(&self, name: &str, value: Value) -> K
    where
        K: Resource<DynamicType = (), Scope = NamespaceResourceScope> + Clone + Debug + DeserializeOwned,
    {
        self.api::<K>().patch(name, &PatchParams::default(), &Patch::Merge(value)).await.unwrap()
    }

    /// Waits until an object is as wanted.
    pub(crate) async fn until<K>(&self, name: &str, wanted: impl Fn(&K) -> bool) -> K
    where
        K: Resource<DynamicType = (), Scope = NamespaceResourceScope> + Clone + Debug + DeserializeOwned,
    {
        let api = self.api::<K>();
        let mut last = None;
        for _ in 0..MAX_LOOKS {
            last = api.get_opt(name).await.unwrap();
            if let Some(object) = last.as_ref().filter(|o| wanted(o)) {
                return object.clone();
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        panic!("{name} did not become as wanted, but {last:#?}");
    }

    /// Waits until the list of objects is as wanted.
    pub(crate) async fn until_all<K>(&self, selector: &str, wanted: impl Fn(&[K]) -> bool) -> Vec<K>
    where
        K: Resource<DynamicType = (), Scope = NamespaceResourceScope> + Clone + Debug + DeserializeOwned,
    {
        let api = self.api::<K>();
        for look in 0..MAX_LOOKS {
            let items = api.list(&ListParams::default().labels(selector)).await.unwrap().items;
            if wanted(&items) {
                return items;
            }
            if look + 1 == MAX_LOOKS {
                let names: Vec<_> = items.iter().map(ResourceExt::name_any).collect();
                panic!("objects {selector:?} did not become as wanted: {names:?}");
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        unreachable!()
    }

    /// Lets everything settle for a while, to see that nothing more happens.
    pub(crate) async fn rest(&self, seconds: u64) {
        tokio::time::sleep(Duration::from_secs(seconds)).await;
    }
}

fn now(clock: Clock) -> String {
    clock.now().to_string()
}

pub(crate) fn deployment(name: &str, replicas: i32, image: &str) -> Value {
    json!({
        "metadata": {"name": name},
        "spec": {
            "replicas": replicas,
            "selector": {"matchLabels": {"app": name}},
            "template": {
                "metadata": {"labels": {"app": name}},
                "spec": {"containers": [{"name": "c", "image": image}]},
            },
        },
    })
}

pub(crate) fn is_ready(pod: &Pod) -> bool {
    let conditions = pod.status.iter().flat_map(|s| s.conditions.iter().flatten());
    conditions.into_iter().any(|c| c.type_ == "Ready" && c.status == "True")
}

pub(crate) fn is_going(pod: &Pod) -> bool {
    pod.metadata.deletion_timestamp.is_some()
}

/// How many pods run each image.
pub(crate) fn images(pods: &[Pod]) -> BTreeMap<String, usize> {
    let mut counts = BTreeMap::new();
    for pod in pods.iter().filter(|p| !is_going(p)) {
        *counts.entry(pod.spec.as_ref().unwrap().containers[0].image.clone().unwrap()).or_insert(0) += 1;
    }
    counts
}
