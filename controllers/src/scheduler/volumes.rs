//! What a pod's volumes say about where it can be.

use std::sync::Arc;

use k8s_openapi::api::{
    core::v1::{
        NodeSelector, NodeSelectorRequirement, NodeSelectorTerm, PersistentVolume, PersistentVolumeClaim,
        Pod, TopologySelectorTerm,
    },
    storage::v1::StorageClass,
};

use crate::{
    base::{Informer, Key, PodView, is_deleting, is_finished, uid},
    ephemeral_volume::is_of,
    volume_binder,
};

use super::explain::Plugin;

/// Where a claim's volume is to be made; the scheduler's word to the provisioner.
pub(crate) const SELECTED_NODE: &str = "volume.kubernetes.io/selected-node";

/// Zones of volumes, as labels that are compared with nodes'; several zones are separated by `__`.
const ZONES: [&str; 4] = [
    "topology.kubernetes.io/zone",
    "topology.kubernetes.io/region",
    "failure-domain.beta.kubernetes.io/zone",
    "failure-domain.beta.kubernetes.io/region",
];
/// The provisioner of classes whose volumes are all made by hand.
const NO_PROVISIONER: &str = "kubernetes.io/no-provisioner";

/// A demand of a volume on its node.
#[derive(Clone, Debug)]
pub(super) struct Place {
    pub(super) nodes: NodeSelector,
    /// Who says no to others, and in which words.
    pub(super) filter: Plugin,
    pub(super) reason: &'static str,
}

impl Place {
    fn reached_from(nodes: NodeSelector) -> Self {
        let reason = "node(s) didn't match PersistentVolume's node affinity";
        Self { nodes, filter: Plugin::VolumeBinding, reason }
    }

    fn found_on(nodes: NodeSelector) -> Self {
        let reason = "node(s) didn't find available persistent volumes to bind";
        Self { nodes, filter: Plugin::VolumeBinding, reason }
    }
}

/// What the volumes ask for.
#[derive(Debug, Default)]
pub(super) struct Volumes {
    /// Nodes must match each of these.
    pub(super) nodes: Vec<Place>,
    /// Claims that get their volume once a node is chosen.
    pub(super) to_select: Vec<Arc<PersistentVolumeClaim>>,
    /// Claims that have a node but no volume yet.
    pub(super) pending: bool,
}

/// Why a pod cannot run anywhere yet: who says so, and in words for the user.
pub(super) type Refusal = (Plugin, String);

/// The caches it reads.
pub(super) struct Caches {
    pub(super) claims: Arc<Informer<PersistentVolumeClaim>>,
    pub(super) volumes: Arc<Informer<PersistentVolume>>,
    pub(super) classes: Arc<Informer<StorageClass>>,
    pub(super) pods: Arc<Informer<Pod>>,
}

impl Caches {
    /// Looks at all claims of a pod.
    ///
    /// # Errors
    /// When the pod cannot run anywhere yet.
    pub(super) fn examine(&self, pod: &Pod) -> Result<Volumes, Refusal> {
        let mut all = Volumes::default();
        for name in claim_names(pod) {
            let key = Key::new(pod.metadata.namespace.clone().unwrap_or_default(), &*name);
            let claim = self.claims.get(&key).filter(|c| !is_deleting(&**c));
            let claim = claim.ok_or_else(|| (Plugin::VolumeBinding, missing(pod, &name)))?;
            if is_ephemeral(pod, &name) && !is_of(&claim, pod) {
                let pod = Key::of(&pod.metadata);
                let why = format!("PVC {key} was not created for pod {pod} (pod is not owner)");
                return Err((Plugin::VolumeBinding, why));
            }
            self.refuse_second_user(pod, &key, &claim)?;
            self.examine_claim(&claim, &mut all).map_err(|why| (Plugin::VolumeBinding, why))?;
        }
        Ok(all)
    }

    /// A claim for one pod is used by one pod.
    fn refuse_second_user(&self, pod: &Pod, key: &Key, claim: &PersistentVolumeClaim) -> Result<(), Refusal> {
        let modes = claim.spec.as_ref().and_then(|s| s.access_modes.as_deref()).unwrap_or(&[]);
        if !modes.iter().any(|m| m == "ReadWriteOncePod") {
            return Ok(());
        }
        let uses = |other: &Arc<Pod>| {
            uid(&**other) != uid(pod)
                && !PodView(other).node().is_empty()
                && !is_finished(other)
                && claim_names(other).contains(&key.name)
        };
        if !self.pods.in_namespace(&key.namespace).iter().any(uses) {
            return Ok(());
        }
        let why =
            "node has pod using PersistentVolumeClaim with the same name and ReadWriteOncePod access mode";
        Err((Plugin::VolumeRestrictions, why.into()))
    }

    fn examine_claim(&self, claim: &Arc<PersistentVolumeClaim>, all: &mut Volumes) -> Result<(), String> {
        let spec = claim.spec.as_ref();
        let bound = claim.status.as_ref().and_then(|s| s.phase.as_deref()) == Some("Bound");
        if let Some(name) = spec.and_then(|s| s.volume_name.as_deref()).filter(|n| !n.is_empty() && bound) {
            let volume = self.volumes.get(&Key::new("", name));
            let volume = volume.ok_or_else(|| format!("persistentvolume {name:?} not found"))?;
            all.nodes.extend(affinity(&volume).map(Place::reached_from));
            all.nodes.extend(zone(&volume));
            return Ok(());
        }
        let class = spec.and_then(|s| s.storage_class_name.as_deref()).unwrap_or("");
        let class = self.classes.get(&Key::new("", class));
        let class = class.filter(|c| c.volume_binding_mode.as_deref() == Some("WaitForFirstConsumer"));
        let class = class.ok_or("pod has unbound immediate PersistentVolumeClaims")?;
        match claim.metadata.annotations.as_ref().and_then(|a| a.get(SELECTED_NODE)) {
            Some(node) => {
                all.nodes.push(Place::reached_from(only(node)));
                all.pending = true;
            }
            None => {
                all.nodes.extend(self.possible(claim, &class)?.map(Place::found_on));
                all.to_select.push(claim.clone());
            }
        }
        Ok(())
    }

    /// The nodes on which an unbound claim can get a volume; `None` for all.
    fn possible(
        &self,
        claim: &PersistentVolumeClaim,
        class: &StorageClass,
    ) -> Result<Option<NodeSelector>, String> {
        if class.provisioner != NO_PROVISIONER {
            return Ok(class.allowed_topologies.as_deref().filter(|t| !t.is_empty()).map(allowed));
        }
        let mut terms = Vec::new();
        let volumes = self.volumes.list();
        for volume in volumes.iter().filter(|v| volume_binder::fits(claim, v, None)) {
            match affinity(volume) {
                Some(nodes) => terms.extend(nodes.node_selector_terms),
                None => return Ok(None),
            }
        }
        if terms.is_empty() {
            return Err("node(s) didn't find available persistent volumes to bind".into());
        }
        Ok(Some(NodeSelector { node_selector_terms: terms }))
    }
}

fn affinity(volume: &PersistentVolume) -> Option<NodeSelector> {
    volume.spec.as_ref()?.node_affinity.as_ref()?.required.clone()
}

/// The zones a volume is labelled with.
fn zone(volume: &PersistentVolume) -> Option<Place> {
    let labels = volume.metadata.labels.as_ref()?;
    let demands = ZONES.iter().filter_map(|key| {
        let zones = labels.get(*key)?.split("__").map(|zone| zone.trim().to_owned()).collect();
        Some(NodeSelectorRequirement { key: (*key).into(), operator: "In".into(), values: Some(zones) })
    });
    let demands: Vec<_> = demands.collect();
    let term = NodeSelectorTerm { match_expressions: Some(demands), match_fields: None };
    let some = term.match_expressions.as_ref().is_some_and(|d| !d.is_empty());
    let nodes = NodeSelector { node_selector_terms: vec![term] };
    some.then_some(Place {
        nodes,
        filter: Plugin::VolumeZone,
        reason: "node(s) had no available volume zone",
    })
}

/// Where a class makes volumes.
fn allowed(topologies: &[TopologySelectorTerm]) -> NodeSelector {
    let term = |topology: &TopologySelectorTerm| {
        let demands = topology.match_label_expressions.iter().flatten().map(|e| NodeSelectorRequirement {
            key: e.key.clone(),
            operator: "In".into(),
            values: Some(e.values.clone()),
        });
        NodeSelectorTerm { match_expressions: Some(demands.collect()), match_fields: None }
    };
    NodeSelector { node_selector_terms: topologies.iter().map(term).collect() }
}

/// Whether a claim of that name is made for one of the pod's own volumes.
fn is_ephemeral(pod: &Pod, claim: &str) -> bool {
    let volumes = pod.spec.iter().flat_map(|s| s.volumes.iter().flatten());
    let pod_name = pod.metadata.name.as_deref().unwrap_or("");
    volumes.filter(|v| v.ephemeral.is_some()).any(|v| format!("{pod_name}-{}", v.name) == claim)
}

fn missing(pod: &Pod, claim: &str) -> String {
    if is_ephemeral(pod, claim) {
        return format!(
            "waiting for ephemeral volume controller to create the persistentvolumeclaim {claim:?}"
        );
    }
    format!("persistentvolumeclaim {claim:?} not found")
}

fn only(node: &str) -> NodeSelector {
    let field = NodeSelectorRequirement {
        key: "metadata.name".into(),
        operator: "In".into(),
        values: Some(vec![node.into()]),
    };
    let term = NodeSelectorTerm { match_fields: Some(vec![field]), match_expressions: None };
    NodeSelector { node_selector_terms: vec![term] }
}

/// The claims of a pod's volumes, those made for the pod included.
pub(crate) fn claim_names(pod: &Pod) -> Vec<String> {
    let volumes = pod.spec.iter().flat_map(|s| s.volumes.iter().flatten());
    let pod_name = pod.metadata.name.as_deref().unwrap_or("");
    let name = |v: &k8s_openapi::api::core::v1::Volume| match (&v.persistent_volume_claim, &v.ephemeral) {
        (Some(claim), _) => Some(claim.claim_name.clone()),
        (None, Some(_)) => Some(format!("{pod_name}-{}", v.name)),
        (None, None) => None,
    };
    volumes.filter_map(name).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn read<T: serde::de::DeserializeOwned>(value: Value) -> T {
        serde_json::from_value(value).unwrap()
    }

    fn caches() -> Caches {
        Caches {
            claims: Arc::default(),
            volumes: Arc::default(),
            classes: Arc::default(),
            pods: Arc::default(),
        }
    }

    fn claim(caches: &Caches, name: &str, mode: &str, bound_to: Option<&str>) {
        let phase = if bound_to.is_some() { "Bound" } else { "Pending" };
        drop(caches.claims.assume(read(json!({"metadata": {"name": name, "namespace": "ns", "uid": name},
            "spec": {"accessModes": [mode], "storageClassName": "local", "volumeName": bound_to,
                "resources": {"requests": {"storage": "1Gi"}}},
            "status": {"phase": phase}}))));
    }

    fn volume(caches: &Caches, name: &str, labels: Value, nodes: &[&str]) {
        let affinity = json!({"required": {"nodeSelectorTerms": [{"matchExpressions":
            [{"key": "kubernetes.io/hostname", "operator": "In", "values": nodes}]}]}});
        let affinity = if nodes.is_empty() { Value::Null } else { affinity };
        drop(caches.volumes.assume(read(json!({"metadata": {"name": name, "uid": name, "labels": labels},
            "spec": {"accessModes": ["ReadWriteOnce"], "capacity": {"storage": "1Gi"}, "storageClassName": "local",
                "nodeAffinity": affinity}}))));
    }

    fn pod(name: &str, node: &str, claim: &str) -> Pod {
        read(
            json!({"metadata": {"name": name, "namespace": "ns", "uid": name}, "spec": {"nodeName": node, "containers": [],
            "volumes": [{"name": "v", "persistentVolumeClaim": {"claimName": claim}}]}}),
        )
    }

    /// The demands of the claim `c`, or why there is no node for it.
    fn shown(caches: &Caches) -> String {
        match caches.examine(&pod("new", "", "c")) {
            Err((filter, why)) => format!("{filter:?}: {why}"),
            Ok(found) => {
                let values = |p: &Place| {
                    let terms = p.nodes.node_selector_terms.iter();
                    let all = terms.flat_map(|t| t.match_expressions.iter().flatten());
                    let all: Vec<_> = all.flat_map(|r| r.values.clone().unwrap_or_default()).collect();
                    format!("{:?} in {}", p.filter, all.join(" or "))
                };
                found.nodes.iter().map(values).collect::<Vec<_>>().join(", ")
            }
        }
    }

    #[test]
    fn a_bound_claim_is_where_its_volume_is() {
        let caches = caches();
        claim(&caches, "c", "ReadWriteOnce", Some("pv"));
        assert!(shown(&caches).contains("persistentvolume \"pv\" not found"));
        volume(&caches, "pv", json!({"topology.kubernetes.io/zone": "a__b"}), &["n1"]);
        assert_eq!(shown(&caches), "VolumeBinding in n1, VolumeZone in a or b");
    }

    #[test]
    fn a_waiting_claim_goes_where_it_can_get_a_volume() {
        let caches = caches();
        claim(&caches, "c", "ReadWriteOnce", None);
        assert!(shown(&caches).contains("unbound immediate"));
        let class = |provisioner: &str, zones: Value| {
            let class = json!({"metadata": {"name": "local", "uid": provisioner}, "provisioner": provisioner,
                "volumeBindingMode": "WaitForFirstConsumer", "allowedTopologies": zones});
            drop(caches.classes.assume(read(class)));
        };
        class(NO_PROVISIONER, Value::Null);
        assert!(shown(&caches).contains("didn't find available persistent volumes to bind"));
        volume(&caches, "one", json!({}), &["n1"]);
        volume(&caches, "two", json!({}), &["n2", "n3"]);
        assert_eq!(shown(&caches), "VolumeBinding in n1 or n2 or n3");
        volume(&caches, "anywhere", json!({}), &[]);
        assert_eq!(shown(&caches), "");
        let zones = json!([{"matchLabelExpressions": [{"key": "zone", "values": ["a", "b"]}]}]);
        class("example.com/disk", zones);
        assert_eq!(shown(&caches), "VolumeBinding in a or b");
    }

    #[test]
    fn a_claim_for_one_pod_is_used_once() {
        let caches = caches();
        claim(&caches, "c", "ReadWriteOncePod", Some("pv"));
        volume(&caches, "pv", json!({}), &[]);
        assert_eq!(shown(&caches), "");
        drop(caches.pods.assume(pod("old", "n1", "c")));
        assert!(shown(&caches).starts_with("VolumeRestrictions: node has pod using"));
    }
}
