//! Lets volumes grow that were enlarged: their file systems are the node's to enlarge.

use kube::{
    Api,
    api::{Patch, PatchParams},
};
use serde_json::json;
use wasmk_api::{
    Quantity,
    k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim, Pod},
};
use wasmk_csi::v1::{CapacityRange, NodeExpandVolumeRequest, node_service_capability::rpc::Type as Ability};

use super::{
    Csi, MOUNT_ERROR, Registered,
    request::{self, Wanted, uid},
};
use crate::{engine::Failure, pod::env::Sources};

/// What a claim says while its file system is to be enlarged.
const PENDING: &str = "FileSystemResizePending";

impl Csi {
    /// Enlarges a volume's file system if its claim waits for that.
    pub(super) async fn expand(
        &self,
        pod: &Pod,
        name: &str,
        wanted: &Wanted,
        driver: &Registered,
        sources: &dyn Sources,
    ) -> Result<(), Failure> {
        let Some((volume, claim)) = &wanted.from else { return Ok(()) };
        if !driver.can(Ability::ExpandVolume) {
            return Ok(());
        }
        let namespace = pod.metadata.namespace.as_deref().unwrap_or("default");
        let Some(claim) = sources.claim(namespace, claim).await? else { return Ok(()) };
        let Some(bytes) = growth(volume, &claim) else { return Ok(()) };
        let request = NodeExpandVolumeRequest {
            volume_id: wanted.handle.clone(),
            volume_path: self.records.target(uid(pod), name).display().to_string(),
            capacity_range: Some(CapacityRange { required_bytes: bytes, limit_bytes: 0 }),
            staging_target_path: self.records.staging(&wanted.driver, &wanted.handle).display().to_string(),
            volume_capability: Some(wanted.capability(driver.can(Ability::SingleNodeMultiWriter), None)),
            secrets: request::secret(wanted.expand_secret.as_ref(), sources).await?.into_iter().collect(),
        };
        let key = format!("expand {}^{}", wanted.driver, wanted.handle);
        let failed = |e: &dyn std::fmt::Display| {
            Failure::new(MOUNT_ERROR, format!("MountVolume.NodeExpandVolume failed: {e}"))
        };
        self.rest.call(&key, driver.client.node_expand_volume(request)).await.map_err(|e| failed(&e))?;
        self.note_grown(volume, &claim).await.map_err(|e| failed(&e))
    }

    async fn note_grown(
        &self,
        volume: &PersistentVolume,
        claim: &PersistentVolumeClaim,
    ) -> Result<(), kube::Error> {
        let namespace = claim.metadata.namespace.as_deref().unwrap_or("default");
        let api: Api<PersistentVolumeClaim> = Api::namespaced(self.client.clone(), namespace);
        let status = claim.status.clone().unwrap_or_default();
        let left: Vec<_> = status
            .conditions
            .into_iter()
            .flatten()
            .filter(|c| c.type_ != PENDING && c.type_ != "Resizing")
            .collect();
        let capacity = volume.spec.as_ref().and_then(|s| s.capacity.clone());
        let patch = Patch::Merge(json!({"status": {"capacity": capacity, "conditions": left}}));
        let name = claim.metadata.name.as_deref().unwrap_or_default();
        api.patch_status(name, &PatchParams::default(), &patch).await.map(drop)
    }
}

/// The size in bytes that a claim's file system is to grow to.
fn growth(volume: &PersistentVolume, claim: &PersistentVolumeClaim) -> Option<i64> {
    let status = claim.status.as_ref()?;
    let pending = status.conditions.iter().flatten().any(|c| c.type_ == PENDING && c.status == "True");
    let capacity = volume.spec.as_ref()?.capacity.as_ref()?.get("storage")?;
    pending.then(|| capacity.0.parse::<Quantity>().ok().map(Quantity::value)).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_claim_says_when_it_waits_to_grow() {
        let volume: PersistentVolume =
            serde_json::from_value(json!({"spec": {"capacity": {"storage": "2Mi"}}})).unwrap();
        for (conditions, expect) in [
            (json!([]), None),
            (json!([{"type": "Resizing", "status": "True"}]), None),
            (json!([{"type": PENDING, "status": "True"}]), Some(2 << 20)),
        ] {
            let claim = json!({"status": {"conditions": conditions}});
            assert_eq!(growth(&volume, &serde_json::from_value(claim).unwrap()), expect);
        }
    }
}
