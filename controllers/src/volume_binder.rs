//! Brings claims and volumes together, makes volumes for classes of the built-in
//! provisioner, and deals with volumes whose claim is gone.
//!
//! Reads claims, volumes, storage classes. Writes both sides of a binding: first the
//! volume's `claimRef` (which settles who has it), then the claim's `volumeName`, then
//! both phases; a pass that stops between is continued by the next. Volumes of the
//! built-in provisioner are directories on one node.

use std::{collections::BTreeMap, sync::Arc};

use k8s_openapi::{
    api::{
        core::v1::{PersistentVolume, PersistentVolumeClaim},
        storage::v1::StorageClass,
    },
    apimachinery::pkg::api::resource::Quantity as ApiQuantity,
};
use serde_json::json;
use wasmk_api::{LabelSelector, Quantity};

use crate::{
    base::{Context, EventKind, Informer, Key, Next, Queue, Result, is_deleting, on_change, uid},
    scheduler::volumes::SELECTED_NODE,
};

const NAME: &str = "persistentvolume-binder-controller";
/// Who is to make a claim's volume, as provisioners look for it, today and before.
const ASKED: [&str; 2] =
    ["volume.kubernetes.io/storage-provisioner", "volume.beta.kubernetes.io/storage-provisioner"];
/// The built-in provisioner's name in storage classes.
pub(crate) const PROVISIONER: &str = "wasmk.dev/local-path";
const COMPLETED: &str = "pv.kubernetes.io/bind-completed";
const BY_CONTROLLER: &str = "pv.kubernetes.io/bound-by-controller";
pub(crate) const PROVISIONED_BY: &str = "pv.kubernetes.io/provisioned-by";

struct Binder {
    cx: Context,
    claims: Arc<Informer<PersistentVolumeClaim>>,
    volumes: Arc<Informer<PersistentVolume>>,
    classes: Arc<Informer<StorageClass>>,
}

pub(crate) async fn run(cx: Context) {
    // One queue for both: keys with a namespace are claims. One worker, so that a volume is
    // not promised twice.
    let queue = Arc::new(Queue::default());
    let binder = Binder { claims: cx.cache(), volumes: cx.cache(), classes: cx.cache(), cx: cx.clone() };
    on_change(&binder.claims, &queue);
    on_change(&binder.volumes, &queue);
    let (claims, sink) = (binder.claims.clone(), queue.clone());
    // A volume or class that comes may be what a claim waits for.
    binder.volumes.subscribe(move |_, new| {
        if new.is_some_and(|v| phase(v) != "Bound") {
            claims.list().iter().filter(|c| !is_bound(c)).for_each(|c| sink.add(Key::of(&c.metadata)));
        }
    });
    let (volumes, sink) = (binder.volumes.clone(), queue.clone());
    binder.claims.subscribe(move |old, new| {
        if let (Some(gone), None) = (old, new) {
            let names = volumes.list().into_iter().filter(|v| claim_uid(v) == Some(uid(&**gone)));
            names.for_each(|v| sink.add(Key::of(&v.metadata)));
        }
    });
    let (claims, sink) = (binder.claims.clone(), queue.clone());
    binder.classes.subscribe(move |_, new| {
        if new.is_some() {
            claims.list().iter().filter(|c| !is_bound(c)).for_each(|c| sink.add(Key::of(&c.metadata)));
        }
    });
    binder.claims.ready().await;
    binder.volumes.ready().await;
    binder.classes.ready().await;
    cx.work(NAME, &queue, 1, |key| binder.reconcile(key)).await;
}

fn phase(volume: &PersistentVolume) -> &str {
    volume.status.as_ref().and_then(|s| s.phase.as_deref()).unwrap_or("")
}

pub(crate) fn is_bound(claim: &PersistentVolumeClaim) -> bool {
    claim.status.as_ref().and_then(|s| s.phase.as_deref()) == Some("Bound")
}

fn claim_uid(volume: &PersistentVolume) -> Option<&str> {
    volume.spec.as_ref()?.claim_ref.as_ref()?.uid.as_deref()
}

pub(crate) fn class_of(claim: &PersistentVolumeClaim) -> &str {
    let old = || claim.metadata.annotations.as_ref()?.get("volume.beta.kubernetes.io/storage-class");
    let named = claim.spec.as_ref().and_then(|s| s.storage_class_name.as_ref());
    named.or_else(old).map_or("", String::as_str)
}

impl Binder {
    async fn reconcile(&self, key: Key) -> Result<Next> {
        if key.namespace.is_empty() {
            if let Some(volume) = self.volumes.get(&key) {
                self.sync_volume(&volume).await?;
            }
        } else if let Some(claim) = self.claims.get(&key).filter(|c| !is_deleting(&**c)) {
            self.sync_claim(&claim).await?;
        }
        Ok(Next::Change)
    }

    async fn sync_claim(&self, claim: &Arc<PersistentVolumeClaim>) -> Result<()> {
        let named = claim.spec.as_ref().and_then(|s| s.volume_name.clone()).filter(|n| !n.is_empty());
        if let Some(name) = named {
            return match self.volumes.get(&Key::new("", name)) {
                Some(volume) if claim_uid(&volume).is_none_or(|u| u == uid(&**claim)) => {
                    self.bind(claim, &volume).await
                }
                Some(_) => Ok(()),
                None if is_bound(claim) => self.set_phase(claim, "Lost").await,
                None => self.set_phase(claim, "Pending").await,
            };
        }
        if let Some(mine) = self.volumes.list().iter().find(|v| claim_uid(v) == Some(uid(&**claim))) {
            return self.bind(claim, mine).await;
        }
        let claim = &self.with_class(claim).await?;
        let class = self.classes.get(&Key::new("", class_of(claim)));
        let node = claim.metadata.annotations.as_ref().and_then(|a| a.get(SELECTED_NODE)).cloned();
        let waits =
            class.as_ref().is_some_and(|c| c.volume_binding_mode.as_deref() == Some("WaitForFirstConsumer"));
        if waits && node.is_none() {
            self.tell(
                claim,
                EventKind::Normal,
                "WaitForFirstConsumer",
                "waiting for first consumer to be created before binding",
            );
            return self.set_phase(claim, "Pending").await;
        }
        if let Some(volume) = choose(claim, &self.volumes.list(), node.as_deref()) {
            return self.bind(claim, &volume).await;
        }
        match class {
            Some(class) if class.provisioner == PROVISIONER && !self.cx.settings.volume_root.is_empty() => {
                self.provision(claim, &class, node.as_deref()).await
            }
            Some(class) => {
                self.ask(claim, &class.provisioner).await?;
                let message = format!(
                    "Waiting for a volume to be created either by the external provisioner '{}' or manually by the system administrator.",
                    class.provisioner
                );
                self.tell(claim, EventKind::Normal, "ExternalProvisioning", &message);
                self.set_phase(claim, "Pending").await
            }
            None => {
                let why = if class_of(claim).is_empty() {
                    "no persistent volumes available for this claim and no storage class is set".to_owned()
                } else {
                    format!("storageclass.storage.k8s.io {:?} not found", class_of(claim))
                };
                let reason = if class_of(claim).is_empty() { "FailedBinding" } else { "ProvisioningFailed" };
                self.tell(claim, EventKind::Normal, reason, &why);
                self.set_phase(claim, "Pending").await
            }
        }
    }

    /// Names the provisioner whose volume the claim waits for: it acts on nothing else.
    async fn ask(&self, claim: &Arc<PersistentVolumeClaim>, provisioner: &str) -> Result<()> {
        let known = |key| claim.metadata.annotations.as_ref().and_then(|a| a.get(key));
        if ASKED.iter().all(|key| known(*key).is_some_and(|name| name == provisioner)) {
            return Ok(());
        }
        let annotations = ASKED.map(|key| (key.to_owned(), json!(provisioner)));
        let annotations: serde_json::Map<_, _> = annotations.into_iter().collect();
        self.cx.patch(&**claim, json!({"metadata": {"annotations": annotations}})).await.map(drop)
    }

    /// A claim that names no class, not even the empty one, gets the default class once there is one.
    async fn with_class(&self, claim: &Arc<PersistentVolumeClaim>) -> Result<Arc<PersistentVolumeClaim>> {
        let silent =
            claim.spec.as_ref().is_none_or(|s| s.storage_class_name.is_none()) && class_of(claim).is_empty();
        let Some(class) = default_class(&self.classes.list()).filter(|_| silent) else {
            return Ok(claim.clone());
        };
        let patch = json!({
            "metadata": {"resourceVersion": claim.metadata.resource_version},
            "spec": {"storageClassName": class},
        });
        self.cx.patch(&**claim, patch).await
    }

    fn tell(&self, claim: &PersistentVolumeClaim, kind: EventKind, reason: &str, message: &str) {
        self.cx.events.record(NAME, claim, kind, reason, message);
    }

    async fn set_phase(&self, claim: &Arc<PersistentVolumeClaim>, phase: &str) -> Result<()> {
        if claim.status.as_ref().and_then(|s| s.phase.as_deref()) == Some(phase) {
            return Ok(());
        }
        self.cx.patch_sub(&**claim, "status", json!({"status": {"phase": phase}})).await.map(drop)
    }

    async fn bind(&self, claim: &Arc<PersistentVolumeClaim>, volume: &Arc<PersistentVolume>) -> Result<()> {
        let mut volume = volume.clone();
        if claim_uid(&volume) != Some(uid(&**claim)) {
            let reference = json!({
                "apiVersion": "v1", "kind": "PersistentVolumeClaim", "namespace": claim.metadata.namespace,
                "name": claim.metadata.name, "uid": uid(&**claim), "resourceVersion": claim.metadata.resource_version,
            });
            let patch = json!({
                "metadata": {"resourceVersion": volume.metadata.resource_version, "annotations": {BY_CONTROLLER: "yes"}},
                "spec": {"claimRef": reference},
            });
            volume = self.cx.patch(&*volume, patch).await?;
        }
        if phase(&volume) != "Bound" {
            volume = self.cx.patch_sub(&*volume, "status", json!({"status": {"phase": "Bound"}})).await?;
        }
        let mut claim = claim.clone();
        let named = claim.spec.as_ref().and_then(|s| s.volume_name.as_deref());
        let noted = claim.metadata.annotations.as_ref().is_some_and(|a| a.contains_key(COMPLETED));
        if named != volume.metadata.name.as_deref() || !noted {
            let patch = json!({
                "metadata": {"resourceVersion": claim.metadata.resource_version,
                    "annotations": {COMPLETED: "yes", BY_CONTROLLER: "yes"}},
                "spec": {"volumeName": volume.metadata.name},
            });
            claim = self.cx.patch(&*claim, patch).await?;
        }
        if !is_bound(&claim) {
            let spec = volume.spec.as_ref();
            let status = json!({"status": {
                "phase": "Bound",
                "accessModes": spec.and_then(|s| s.access_modes.as_ref()),
                "capacity": spec.and_then(|s| s.capacity.as_ref()),
            }});
            self.cx.patch_sub(&*claim, "status", status).await?;
        }
        Ok(())
    }

    /// Makes a volume: a directory on the node that the scheduler chose.
    async fn provision(
        &self,
        claim: &Arc<PersistentVolumeClaim>,
        class: &StorageClass,
        node: Option<&str>,
    ) -> Result<()> {
        let name = format!("pvc-{}", uid(&**claim));
        let volume = provisioned(claim, class, node, &name, &self.cx.settings.volume_root);
        let volume: PersistentVolume = match serde_json::from_value(volume) {
            Ok(volume) => volume,
            Err(error) => return Err(crate::base::Error::Invalid(error.to_string())),
        };
        match self.cx.create(&volume).await {
            Ok(_) => {
                let message = format!("Successfully provisioned volume {name}");
                self.tell(claim, EventKind::Normal, "ProvisioningSucceeded", &message);
            }
            Err(error) if error.is_already_exists() => {
                self.cx.fetch::<PersistentVolume>(&Key::new("", name.clone())).await?;
            }
            Err(error) => {
                self.tell(claim, EventKind::Warning, "ProvisioningFailed", &error.message());
                return Err(error);
            }
        }
        match self.volumes.get(&Key::new("", name)) {
            Some(volume) => self.bind(claim, &volume).await,
            None => Ok(()),
        }
    }

    async fn sync_volume(&self, volume: &Arc<PersistentVolume>) -> Result<()> {
        let spec = volume.spec.as_ref();
        let Some(reference) = spec.and_then(|s| s.claim_ref.as_ref()) else {
            return self.set_volume_phase(volume, "Available").await;
        };
        let Some(owner) = reference.uid.as_deref() else {
            // Reserved for a claim that has not come yet.
            return self.set_volume_phase(volume, "Available").await;
        };
        let key = Key::new(
            reference.namespace.clone().unwrap_or_default(),
            reference.name.clone().unwrap_or_default(),
        );
        let mut claim = self.claims.get(&key);
        if claim.is_none() && phase(volume) != "Released" {
            // The cache may be behind: ask before a volume is let go.
            claim = self.cx.fetch::<PersistentVolumeClaim>(&key).await?;
        }
        if claim.as_ref().is_some_and(|c| uid(&**c) == owner) {
            return match claim {
                Some(claim) if !is_bound(&claim) && !is_deleting(&*claim) => self.bind(&claim, volume).await,
                _ => Ok(()),
            };
        }
        self.set_volume_phase(volume, "Released").await?;
        let delete = spec.and_then(|s| s.persistent_volume_reclaim_policy.as_deref()) == Some("Delete");
        let ours = volume
            .metadata
            .annotations
            .as_ref()
            .and_then(|a| a.get(PROVISIONED_BY))
            .is_some_and(|p| p == PROVISIONER);
        if delete && ours && !is_deleting(&**volume) {
            self.cx.delete(&**volume, Default::default()).await?;
        }
        Ok(())
    }

    async fn set_volume_phase(&self, volume: &Arc<PersistentVolume>, wanted: &str) -> Result<()> {
        if phase(volume) == wanted {
            return Ok(());
        }
        self.cx.patch_sub(&**volume, "status", json!({"status": {"phase": wanted}})).await.map(drop)
    }
}

pub(crate) fn size(list: Option<&BTreeMap<String, ApiQuantity>>) -> Quantity {
    list.and_then(|l| l.get("storage")).and_then(|q| q.0.parse().ok()).unwrap_or_default()
}

/// The class for claims that name none: the youngest that is marked so.
fn default_class(classes: &[Arc<StorageClass>]) -> Option<String> {
    let marked = |class: &&Arc<StorageClass>| {
        let notes = class.metadata.annotations.as_ref();
        ["storageclass.kubernetes.io/is-default-class", "storageclass.beta.kubernetes.io/is-default-class"]
            .iter()
            .any(|key| notes.and_then(|n| n.get(*key)).is_some_and(|v| v == "true"))
    };
    let age = |class: &&Arc<StorageClass>| {
        (
            class.metadata.creation_timestamp.as_ref().map(|t| t.0),
            std::cmp::Reverse(class.metadata.name.clone()),
        )
    };
    classes.iter().filter(marked).max_by_key(age)?.metadata.name.clone()
}

/// The smallest free volume that satisfies a claim; one reserved for it comes first.
fn choose(
    claim: &PersistentVolumeClaim,
    volumes: &[Arc<PersistentVolume>],
    node: Option<&str>,
) -> Option<Arc<PersistentVolume>> {
    let order = |volume: &&Arc<PersistentVolume>| {
        let spec = volume.spec.as_ref();
        let free = spec.is_none_or(|s| s.claim_ref.is_none());
        (free, size(spec.and_then(|s| s.capacity.as_ref())), volume.metadata.name.clone())
    };
    volumes.iter().filter(|volume| fits(claim, volume, node)).min_by_key(order).cloned()
}

/// Whether a volume is free, or reserved for the claim, and is all that it asks for.
pub(crate) fn fits(claim: &PersistentVolumeClaim, volume: &PersistentVolume, node: Option<&str>) -> bool {
    let (Some(wanted), Some(spec)) = (&claim.spec, &volume.spec) else { return false };
    let Ok(selector) = wanted.selector.as_ref().map(LabelSelector::from_api).transpose() else {
        return false;
    };
    let reserved = spec.claim_ref.as_ref();
    let mine = reserved.is_some_and(|r| {
        r.uid.is_none() && r.name == claim.metadata.name && r.namespace == claim.metadata.namespace
    });
    let has = |mode: &String| spec.access_modes.iter().flatten().any(|m| m == mode);
    let default = "Filesystem".to_owned();
    (reserved.is_none() || mine)
        && !is_deleting(volume)
        && spec.storage_class_name.as_deref().unwrap_or("") == class_of(claim)
        && wanted.access_modes.iter().flatten().all(has)
        && spec.volume_mode.as_ref().unwrap_or(&default) == wanted.volume_mode.as_ref().unwrap_or(&default)
        && size(spec.capacity.as_ref()) >= size(wanted.resources.as_ref().and_then(|r| r.requests.as_ref()))
        && selector.as_ref().is_none_or(|s| s.matches(volume.metadata.labels.as_ref()))
        && node.is_none_or(|node| is_on(volume, node))
}

/// Whether a volume with a place is on that node; others can be anywhere.
fn is_on(volume: &PersistentVolume, node: &str) -> bool {
    let required = volume.spec.as_ref().and_then(|s| s.node_affinity.as_ref()?.required.as_ref());
    let Some(required) = required else { return true };
    let names = |key: &str| key == "kubernetes.io/hostname" || key == "metadata.name";
    required.node_selector_terms.iter().any(|term| {
        let all = term.match_expressions.iter().flatten().chain(term.match_fields.iter().flatten());
        let mut all = all.filter(|r| names(&r.key)).peekable();
        all.peek().is_none() || all.any(|r| r.values.iter().flatten().any(|v| v == node))
    })
}

fn provisioned(
    claim: &PersistentVolumeClaim,
    class: &StorageClass,
    node: Option<&str>,
    name: &str,
    root: &str,
) -> serde_json::Value {
    let spec = claim.spec.as_ref();
    let need = spec.and_then(|s| s.resources.as_ref()?.requests.as_ref()?.get("storage"));
    let (namespace, claim_name) =
        (claim.metadata.namespace.as_deref().unwrap_or(""), claim.metadata.name.as_deref().unwrap_or(""));
    let mut volume = json!({
        "metadata": {"name": name, "annotations": {PROVISIONED_BY: PROVISIONER}},
        "spec": {
            "accessModes": spec.and_then(|s| s.access_modes.clone()),
            "capacity": {"storage": need},
            "claimRef": {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "namespace": namespace,
                "name": claim_name, "uid": uid(claim)},
            "hostPath": {"path": format!("{}/{name}_{namespace}_{claim_name}", root.trim_end_matches('/')), "type": "DirectoryOrCreate"},
            "persistentVolumeReclaimPolicy": class.reclaim_policy.as_deref().unwrap_or("Delete"),
            "storageClassName": class.metadata.name,
            "volumeMode": "Filesystem",
        },
    });
    if let Some(node) = node {
        volume["spec"]["nodeAffinity"] = json!({"required": {"nodeSelectorTerms": [{"matchExpressions":
            [{"key": "kubernetes.io/hostname", "operator": "In", "values": [node]}]}]}});
    }
    volume
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `name SIZE [class=C] [label=L] [for=CLAIM] [taken] [on=NODE]`.
    fn volume(text: &str) -> Arc<PersistentVolume> {
        let words: Vec<&str> = text.split_whitespace().collect();
        let mut meta = json!({"name": words[0], "uid": words[0]});
        let mut spec = json!({"capacity": {"storage": words[1]}, "accessModes": ["ReadWriteOnce"]});
        for word in &words[2..] {
            match word.split_once('=') {
                Some(("class", class)) => spec["storageClassName"] = json!(class),
                Some(("label", label)) => meta["labels"] = json!({"tier": label}),
                Some(("for", claim)) => spec["claimRef"] = json!({"namespace": "ns", "name": claim}),
                Some(("on", node)) => {
                    spec["nodeAffinity"] = json!({"required": {"nodeSelectorTerms": [{"matchExpressions":
                        [{"key": "kubernetes.io/hostname", "operator": "In", "values": [node]}]}]}});
                }
                _ => spec["claimRef"] = json!({"namespace": "ns", "name": "other", "uid": "other"}),
            }
        }
        Arc::new(serde_json::from_value(json!({"metadata": meta, "spec": spec})).unwrap())
    }

    fn check(spec: serde_json::Value, volumes: &[&str], node: Option<&str>, expect: Option<&str>) {
        let mut whole =
            json!({"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "5Gi"}}});
        whole.as_object_mut().unwrap().extend(spec.as_object().unwrap().clone());
        let meta = json!({"name": "c", "namespace": "ns", "uid": "c"});
        let claim = serde_json::from_value(json!({"metadata": meta, "spec": whole})).unwrap();
        let volumes: Vec<_> = volumes.iter().map(|v| volume(v)).collect();
        let found = choose(&claim, &volumes, node);
        assert_eq!(found.and_then(|v| v.metadata.name.clone()).as_deref(), expect, "{spec} {volumes:?}");
    }

    #[test]
    fn the_smallest_volume_that_satisfies() {
        check(json!({}), &["a 10Gi", "b 5Gi", "c 4Gi"], None, Some("b"));
        check(json!({}), &["a 10Gi", "b 5Gi taken"], None, Some("a"));
        check(json!({}), &["a 10Gi for=c", "b 5Gi"], None, Some("a"));
        check(json!({}), &["a 10Gi for=d"], None, None);
        check(json!({"storageClassName": "fast"}), &["a 10Gi", "b 20Gi class=fast"], None, Some("b"));
        check(
            json!({"selector": {"matchLabels": {"tier": "x"}}}),
            &["a 10Gi", "b 20Gi label=x"],
            None,
            Some("b"),
        );
        check(json!({"accessModes": ["ReadWriteMany"]}), &["a 10Gi"], None, None);
        check(json!({}), &["a 10Gi on=n1", "b 20Gi on=n2"], Some("n2"), Some("b"));
    }
}
