//! Grows volumes whose claim asks for more.
//!
//! Reads claims, volumes, storage classes. Writes the capacity of volumes of the built-in
//! provisioner (directories, which have no size of their own to change) and then of their
//! claims; about others it says that somebody else has to.

use std::sync::Arc;

use k8s_openapi::{
    api::{
        core::v1::{PersistentVolume, PersistentVolumeClaim},
        storage::v1::StorageClass,
    },
    apimachinery::pkg::api::resource::Quantity as ApiQuantity,
};
use serde_json::json;

use crate::{
    base::{Context, EventKind, Informer, Key, Next, Queue, Result, is_deleting, on_change},
    volume_binder::{PROVISIONED_BY, PROVISIONER, class_of, is_bound, size},
};

const NAME: &str = "persistentvolume-expander-controller";

struct Expander {
    cx: Context,
    claims: Arc<Informer<PersistentVolumeClaim>>,
    volumes: Arc<Informer<PersistentVolume>>,
    classes: Arc<Informer<StorageClass>>,
}

pub(crate) async fn run(cx: Context) {
    let queue = Arc::new(Queue::default());
    let expander = Expander { claims: cx.cache(), volumes: cx.cache(), classes: cx.cache(), cx: cx.clone() };
    on_change(&expander.claims, &queue);
    expander.claims.ready().await;
    expander.volumes.ready().await;
    expander.classes.ready().await;
    cx.work(NAME, &queue, 1, |key| expander.reconcile(key)).await;
}

/// What a claim's wish for more needs.
#[derive(Debug, PartialEq)]
enum Step {
    Nothing,
    /// Somebody else's volume.
    Elsewhere,
    /// The volume's capacity, then the claim's.
    Volume(ApiQuantity),
    /// The claim's capacity only.
    Claim(ApiQuantity),
}

impl Expander {
    async fn reconcile(&self, key: Key) -> Result<Next> {
        let Some(claim) = self.claims.get(&key) else { return Ok(Next::Change) };
        let name = claim.spec.as_ref().and_then(|s| s.volume_name.clone()).unwrap_or_default();
        let Some(volume) = self.volumes.get(&Key::new("", name)) else { return Ok(Next::Change) };
        let class = self.classes.get(&Key::new("", class_of(&claim)));
        let capacity = match plan(&claim, &volume, class.as_deref()) {
            Step::Nothing => return Ok(Next::Change),
            Step::Elsewhere => {
                let message = "waiting for an external controller to expand this PVC";
                self.cx.events.record(NAME, &*claim, EventKind::Normal, "ExternalExpanding", message);
                return Ok(Next::Change);
            }
            Step::Volume(capacity) => {
                let patch = json!({
                    "metadata": {"resourceVersion": volume.metadata.resource_version},
                    "spec": {"capacity": {"storage": capacity}},
                });
                self.cx.patch(&*volume, patch).await?;
                capacity
            }
            Step::Claim(capacity) => capacity,
        };
        let mut next = (*claim).clone();
        let status = next.status.get_or_insert_default();
        status.capacity.get_or_insert_default().insert("storage".into(), capacity);
        if let Some(conditions) = &mut status.conditions {
            conditions.retain(|c| !matches!(&*c.type_, "Resizing" | "FileSystemResizePending"));
        }
        self.cx.replace_status(&next).await?;
        let message = "MountVolume.NodeExpandVolume succeeded: a directory needs no more";
        self.cx.events.record(NAME, &*claim, EventKind::Normal, "FileSystemResizeSuccessful", message);
        Ok(Next::Change)
    }
}

fn plan(claim: &PersistentVolumeClaim, volume: &PersistentVolume, class: Option<&StorageClass>) -> Step {
    let asked = claim.spec.as_ref().and_then(|s| s.resources.as_ref()?.requests.as_ref());
    let has = claim.status.as_ref().and_then(|s| s.capacity.as_ref());
    let holds = volume.spec.as_ref().and_then(|s| s.capacity.as_ref());
    if !is_bound(claim) || is_deleting(claim) || size(asked) <= size(has) || has.is_none() {
        return Step::Nothing;
    }
    if class.and_then(|c| c.allow_volume_expansion) != Some(true) {
        return Step::Nothing;
    }
    let by = volume.metadata.annotations.as_ref().and_then(|a| a.get(PROVISIONED_BY));
    if by.is_none_or(|p| p != PROVISIONER) {
        return Step::Elsewhere;
    }
    let wanted = asked.and_then(|a| a.get("storage")).cloned().unwrap_or_default();
    if size(holds) < size(asked) { Step::Volume(wanted) } else { Step::Claim(wanted) }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Asked, had and held sizes; whether the class allows growth, and whether the volume is ours.
    fn check(asked: &str, had: &str, held: &str, allowed: bool, ours: bool, expect: &Step) {
        let claim = serde_json::from_value(json!({
            "spec": {"resources": {"requests": {"storage": asked}}},
            "status": {"phase": "Bound", "capacity": {"storage": had}},
        }));
        let by = if ours { PROVISIONER } else { "other" };
        let volume = serde_json::from_value(json!({
            "metadata": {"annotations": {PROVISIONED_BY: by}}, "spec": {"capacity": {"storage": held}}}));
        let class = serde_json::from_value(json!({"provisioner": by, "allowVolumeExpansion": allowed}));
        let found = plan(&claim.unwrap(), &volume.unwrap(), Some(&class.unwrap()));
        assert_eq!(found, *expect, "{asked} {had} {held}");
    }

    #[test]
    fn the_volume_grows_before_its_claim() {
        let amount = || ApiQuantity("2Gi".into());
        check("2Gi", "1Gi", "1Gi", true, true, &Step::Volume(amount()));
        check("2Gi", "1Gi", "2Gi", true, true, &Step::Claim(amount()));
        check("2Gi", "2Gi", "2Gi", true, true, &Step::Nothing);
        check("1Gi", "2Gi", "2Gi", true, true, &Step::Nothing);
        check("2Gi", "1Gi", "1Gi", false, true, &Step::Nothing);
        check("2Gi", "1Gi", "1Gi", true, false, &Step::Elsewhere);
    }
}
