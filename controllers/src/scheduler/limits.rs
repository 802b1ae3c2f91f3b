//! How many volumes of storage drivers a node can have, and which it has because of its pods.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
};

use k8s_openapi::api::{core::v1::Pod, storage::v1::CSINode};

use crate::base::{Informer, Key};

use super::{
    node::NodeInfo,
    snapshot::Snapshot,
    volumes::{Caches, claim_names},
};

/// A volume by its driver, and what it is called there.
type Attached = (String, String);

/// What matters for a pod with volumes of drivers that have a limit somewhere.
#[derive(Clone, Debug, Default)]
pub(super) struct Limits {
    /// The pod's own volumes.
    wanted: BTreeSet<Attached>,
    /// Limits by driver, by node.
    most: HashMap<String, BTreeMap<String, usize>>,
    /// Volumes of pods on nodes with limits, by the pods' uid.
    held: HashMap<String, Vec<Attached>>,
}

impl Limits {
    /// Looks at a pod; `None` if no limit is about it.
    pub(super) fn of(
        pod: &Pod,
        snapshot: &Snapshot,
        caches: &Caches,
        nodes: &Informer<CSINode>,
    ) -> Option<Arc<Self>> {
        let wanted: BTreeSet<Attached> = attached(pod, caches).into_iter().collect();
        if wanted.is_empty() {
            return None;
        }
        let drivers: BTreeSet<&str> = wanted.iter().map(|(driver, _)| driver.as_str()).collect();
        let mut all = Self::default();
        for node in &*snapshot.nodes {
            let Some(object) = nodes.get(&Key::new("", &*node.name)) else { continue };
            let most = limits(&object, &drivers);
            if most.is_empty() {
                continue;
            }
            for (uid, pod) in &node.pods {
                let volumes = attached(&pod.pod, caches);
                if !volumes.is_empty() {
                    all.held.insert(uid.clone(), volumes);
                }
            }
            all.most.insert(node.name.clone(), most);
        }
        if all.most.is_empty() {
            return None;
        }
        all.wanted = wanted;
        Some(Arc::new(all))
    }

    /// Whether a node can have the pod's volumes beside those of the pods that are on it.
    pub(super) fn allow(&self, node: &NodeInfo) -> bool {
        let Some(most) = self.most.get(&node.name) else { return true };
        let held: BTreeSet<&Attached> =
            node.pods.keys().filter_map(|uid| self.held.get(uid)).flatten().collect();
        most.iter().all(|(driver, most)| {
            let of = |volume: &&&Attached| volume.0 == *driver;
            let fresh = self.wanted.iter().filter(|v| of(&v) && !held.contains(v)).count();
            // Without a new volume the pod adds nothing, however many there are.
            fresh == 0 || held.iter().filter(of).count() + fresh <= *most
        })
    }
}

/// The limits of these drivers on a node.
fn limits(node: &CSINode, drivers: &BTreeSet<&str>) -> BTreeMap<String, usize> {
    let of = node.spec.drivers.iter().filter(|driver| drivers.contains(driver.name.as_str()));
    of.filter_map(|driver| {
        let count = driver.allocatable.as_ref()?.count?;
        Some((driver.name.clone(), usize::try_from(count).ok()?))
    })
    .collect()
}

/// The volumes of drivers that a pod has, or will get once it has a node.
fn attached(pod: &Pod, caches: &Caches) -> Vec<Attached> {
    let namespace = pod.metadata.namespace.as_deref().unwrap_or("");
    claim_names(pod).into_iter().filter_map(|name| of_claim(&Key::new(namespace, name), caches)).collect()
}

fn of_claim(key: &Key, caches: &Caches) -> Option<Attached> {
    let claim = caches.claims.get(key)?;
    let spec = claim.spec.as_ref()?;
    if let Some(name) = spec.volume_name.as_deref().filter(|name| !name.is_empty()) {
        let volume = caches.volumes.get(&Key::new("", name))?;
        let csi = volume.spec.as_ref()?.csi.as_ref()?;
        return Some((csi.driver.clone(), csi.volume_handle.clone()));
    }
    // It has no volume yet: the provisioner is the driver whose volume it will be.
    let class = caches.classes.get(&Key::new("", spec.storage_class_name.as_deref()?))?;
    Some((class.provisioner.clone(), format!("claim {key}")))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use k8s_openapi::api::core::v1::Node;
    use serde_json::{Value, json};

    use super::{super::pod::PodInfo, super::snapshot::Cluster, *};

    const DRIVER: &str = "disk.example.com";

    fn read<T: serde::de::DeserializeOwned>(value: Value) -> T {
        serde_json::from_value(value).unwrap()
    }

    fn pod(name: &str, claims: &[&str]) -> Arc<PodInfo> {
        let volumes: Vec<Value> = claims
            .iter()
            .map(|claim| json!({"name": claim, "persistentVolumeClaim": {"claimName": claim}}))
            .collect();
        Arc::new(PodInfo::new(Arc::new(read(json!({
            "metadata": {"name": name, "namespace": "ns", "uid": name},
            "spec": {"containers": [], "volumes": volumes},
        })))))
    }

    /// A node with room for two volumes, pods on it, and claims: those that begin with `v` have a volume of that
    /// name, others wait for one.
    struct Case {
        caches: Caches,
        nodes: Informer<CSINode>,
        cluster: Cluster,
    }

    impl Case {
        fn new(claims: &[(&str, &str)], placed: &[(&str, &[&str])]) -> Self {
            let caches = Caches {
                claims: Arc::default(),
                volumes: Arc::default(),
                classes: Arc::default(),
                pods: Arc::default(),
            };
            drop(
                caches.classes.assume(read(
                    json!({"metadata": {"name": "fast", "uid": "fast"}, "provisioner": DRIVER}),
                )),
            );
            for (claim, volume) in claims {
                drop(caches.claims.assume(read(json!({
                    "metadata": {"name": claim, "namespace": "ns", "uid": claim},
                    "spec": {"storageClassName": "fast", "volumeName": volume},
                }))));
                if !volume.is_empty() {
                    drop(caches.volumes.assume(read(json!({
                        "metadata": {"name": volume, "uid": volume},
                        "spec": {"csi": {"driver": DRIVER, "volumeHandle": volume}},
                    }))));
                }
            }
            let nodes: Informer<CSINode> = Informer::default();
            drop(nodes.assume(read(json!({
                "metadata": {"name": "n", "uid": "n"},
                "spec": {"drivers": [{"name": DRIVER, "nodeID": "n", "allocatable": {"count": 2}}]},
            }))));
            let mut cluster = Cluster::default();
            cluster.put_node(Arc::new(read::<Node>(json!({"metadata": {"name": "n"}}))));
            placed.iter().for_each(|(name, claims)| cluster.place("n", pod(name, claims)));
            Self { caches, nodes, cluster }
        }

        fn allows(&self, claims: &[&str]) -> bool {
            let snapshot = self.cluster.snapshot();
            let limits = Limits::of(&pod("new", claims).pod, &snapshot, &self.caches, &self.nodes);
            limits.is_none_or(|limits| limits.allow(&snapshot.nodes[0]))
        }
    }

    #[test]
    fn volumes_are_counted_once_and_up_to_the_limit() {
        let claims = [("a", "v1"), ("b", "v2"), ("c", "v3"), ("d", "v3"), ("e", ""), ("f", "")];
        let case = Case::new(&claims, &[("one", &["a"]), ("two", &["a"])]);
        assert!(case.allows(&["b"]), "two pods with one volume have one");
        assert!(case.allows(&["c", "d"]), "two claims of one volume are one");
        assert!(!case.allows(&["b", "c"]));
        assert!(case.allows(&["e"]), "a volume that is to be made");
        assert!(!case.allows(&["e", "f"]));
        let full = Case::new(&claims, &[("one", &["a", "e"])]);
        assert!(!full.allows(&["b"]));
        assert!(full.allows(&["a"]), "it is there already");
        assert!(full.allows(&[]) && full.allows(&["unknown"]));
        let mut less = full;
        less.cluster.remove_pod("one");
        assert!(less.allows(&["b"]));
    }
}
