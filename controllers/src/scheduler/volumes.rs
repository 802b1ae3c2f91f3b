//! What a pod's volumes say about where it can be.

use std::sync::Arc;

use k8s_openapi::api::{
    core::v1::{
        NodeSelector, NodeSelectorRequirement, NodeSelectorTerm, PersistentVolume, PersistentVolumeClaim, Pod,
    },
    storage::v1::StorageClass,
};

use crate::{
    base::{Informer, Key, is_deleting},
    ephemeral_volume::is_of,
};

/// Where a claim's volume is to be made; the scheduler's word to the provisioner.
pub(crate) const SELECTED_NODE: &str = "volume.kubernetes.io/selected-node";

/// What the volumes ask for.
#[derive(Debug, Default)]
pub(super) struct Volumes {
    /// Nodes must match each of these.
    pub(super) nodes: Vec<NodeSelector>,
    /// Claims that get their volume once a node is chosen.
    pub(super) to_select: Vec<Arc<PersistentVolumeClaim>>,
    /// Claims that have a node but no volume yet.
    pub(super) pending: bool,
}

/// The caches it reads.
pub(super) struct Caches {
    pub(super) claims: Arc<Informer<PersistentVolumeClaim>>,
    pub(super) volumes: Arc<Informer<PersistentVolume>>,
    pub(super) classes: Arc<Informer<StorageClass>>,
}

impl Caches {
    /// Looks at all claims of a pod.
    ///
    /// # Errors
    /// In words for the user, when the pod cannot run anywhere yet.
    pub(super) fn examine(&self, pod: &Pod) -> Result<Volumes, String> {
        let mut all = Volumes::default();
        for name in claim_names(pod) {
            let key = Key::new(pod.metadata.namespace.clone().unwrap_or_default(), &*name);
            let claim = self.claims.get(&key).filter(|c| !is_deleting(&**c));
            let claim = claim.ok_or_else(|| missing(pod, &name))?;
            if is_ephemeral(pod, &name) && !is_of(&claim, pod) {
                return Err(format!(
                    "PVC {key} was not created for pod {} (pod is not owner)",
                    Key::of(&pod.metadata)
                ));
            }
            self.examine_claim(&claim, &mut all)?;
        }
        Ok(all)
    }

    fn examine_claim(&self, claim: &Arc<PersistentVolumeClaim>, all: &mut Volumes) -> Result<(), String> {
        let spec = claim.spec.as_ref();
        let bound = claim.status.as_ref().and_then(|s| s.phase.as_deref()) == Some("Bound");
        if let Some(name) = spec.and_then(|s| s.volume_name.as_deref()).filter(|n| !n.is_empty() && bound) {
            let volume = self.volumes.get(&Key::new("", name));
            let volume = volume.ok_or_else(|| format!("persistentvolume {name:?} not found"))?;
            let affinity = volume.spec.as_ref().and_then(|s| s.node_affinity.as_ref()?.required.clone());
            all.nodes.extend(affinity);
            return Ok(());
        }
        let class = spec.and_then(|s| s.storage_class_name.as_deref()).unwrap_or("");
        let class = self.classes.get(&Key::new("", class));
        let waits = class.is_some_and(|c| c.volume_binding_mode.as_deref() == Some("WaitForFirstConsumer"));
        if !waits {
            return Err("pod has unbound immediate PersistentVolumeClaims".into());
        }
        match claim.metadata.annotations.as_ref().and_then(|a| a.get(SELECTED_NODE)) {
            Some(node) => {
                all.nodes.push(only(node));
                all.pending = true;
            }
            None => all.to_select.push(claim.clone()),
        }
        Ok(())
    }
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
