//! What stands beside a driver and knows the API: makes and removes volumes for claims of the driver's
//! classes, attaches and detaches them. Ordinary clients; every call to the driver is made twice, for a
//! driver has to bear that.

use std::{path::Path, sync::Arc, time::Duration};

use k8s_openapi::api::{
    core::v1::{PersistentVolume, PersistentVolumeClaim},
    storage::v1::{CSINode, StorageClass, VolumeAttachment},
};
use kube::{
    Api, Client, ResourceExt,
    api::{DeleteParams, ListParams, Patch, PatchParams, PostParams},
};
use serde_json::json;
use wasmk_csi::{Driver, v1};

use super::driver::NAME;

const PERIOD: Duration = Duration::from_millis(200);
const FINALIZER: &str = "external-attacher/directories-example-com";

type Outcome = Result<(), Box<dyn std::error::Error>>;

/// Runs for ever; what fails is tried again.
pub(crate) async fn run(client: Client, endpoint: Arc<Path>) {
    let driver = Driver::new(&endpoint);
    loop {
        // The driver may be away; errors show in what the test waits for.
        let _ = provision(&client, &driver).await;
        let _ = remove(&client, &driver).await;
        let _ = attach(&client, &driver).await;
        tokio::time::sleep(PERIOD).await;
    }
}

fn capability(mode: Option<&str>) -> v1::VolumeCapability {
    use v1::volume_capability::{AccessMode, AccessType, BlockVolume, MountVolume, access_mode::Mode};
    v1::VolumeCapability {
        access_mode: Some(AccessMode { mode: Mode::SingleNodeWriter.into() }),
        access_type: Some(match mode {
            Some("Block") => AccessType::Block(BlockVolume {}),
            _ => AccessType::Mount(MountVolume::default()),
        }),
    }
}

/// Makes volumes for claims that wait for this driver.
async fn provision(client: &Client, driver: &Driver) -> Outcome {
    let claims: Api<PersistentVolumeClaim> = Api::all(client.clone());
    for claim in claims.list(&ListParams::default()).await? {
        let spec = claim.spec.clone().unwrap_or_default();
        let ours =
            claim.annotations().get("volume.kubernetes.io/storage-provisioner").is_some_and(|p| p == NAME);
        if !ours || spec.volume_name.is_some() {
            continue;
        }
        let classes: Api<StorageClass> = Api::all(client.clone());
        let class = classes.get(spec.storage_class_name.as_deref().unwrap_or_default()).await?;
        let name = format!("pvc-{}", claim.uid().unwrap_or_default());
        let storage = spec.resources.and_then(|r| r.requests).and_then(|r| r.get("storage").cloned());
        let storage = storage.map(|q| q.0).unwrap_or_default();
        let mib: i64 = storage.trim_end_matches("Mi").parse()?;
        let request = v1::CreateVolumeRequest {
            name: name.clone(),
            capacity_range: Some(v1::CapacityRange { required_bytes: mib << 20, limit_bytes: 0 }),
            volume_capabilities: vec![capability(spec.volume_mode.as_deref())],
            parameters: class.parameters.clone().unwrap_or_default().into_iter().collect(),
            ..Default::default()
        };
        driver.create_volume(request.clone()).await?;
        let made = driver.create_volume(request).await?.volume.unwrap_or_default();
        let volume: PersistentVolume = serde_json::from_value(json!({
            "metadata": {"name": name, "annotations": {"pv.kubernetes.io/provisioned-by": NAME}},
            "spec": {
                "capacity": {"storage": storage},
                "accessModes": spec.access_modes,
                "volumeMode": spec.volume_mode,
                "persistentVolumeReclaimPolicy": class.reclaim_policy,
                "storageClassName": class.name_any(),
                "mountOptions": class.mount_options,
                "claimRef": {"kind": "PersistentVolumeClaim", "apiVersion": "v1", "name": claim.name_any(),
                    "namespace": claim.namespace(), "uid": claim.uid()},
                "csi": {"driver": NAME, "volumeHandle": made.volume_id, "volumeAttributes": made.volume_context,
                    "nodeStageSecretRef": {"name": "disk-key", "namespace": "default"}},
            },
        }))?;
        let volumes: Api<PersistentVolume> = Api::all(client.clone());
        volumes.create(&PostParams::default(), &volume).await?;
    }
    Ok(())
}

/// Removes volumes that were given back.
async fn remove(client: &Client, driver: &Driver) -> Outcome {
    let volumes: Api<PersistentVolume> = Api::all(client.clone());
    for volume in volumes.list(&ListParams::default()).await? {
        let ours = volume.annotations().get("pv.kubernetes.io/provisioned-by").is_some_and(|p| p == NAME);
        let released = volume.status.as_ref().and_then(|s| s.phase.as_deref()) == Some("Released");
        let spec = volume.spec.clone().unwrap_or_default();
        if !ours || !released || spec.persistent_volume_reclaim_policy.as_deref() != Some("Delete") {
            continue;
        }
        let id = spec.csi.map(|c| c.volume_handle).unwrap_or_default();
        for _ in 0..2 {
            let request = v1::DeleteVolumeRequest { volume_id: id.clone(), ..Default::default() };
            driver.delete_volume(request).await?;
        }
        volumes.delete(&volume.name_any(), &DeleteParams::default()).await?;
    }
    Ok(())
}

/// Attaches what is to be attached, and the reverse.
async fn attach(client: &Client, driver: &Driver) -> Outcome {
    let api: Api<VolumeAttachment> = Api::all(client.clone());
    for attachment in api.list(&ListParams::default()).await? {
        if attachment.spec.attacher != NAME {
            continue;
        }
        let name = attachment.name_any();
        let volumes: Api<PersistentVolume> = Api::all(client.clone());
        let volume = attachment.spec.source.persistent_volume_name.clone().unwrap_or_default();
        let volume = volumes.get(&volume).await?.spec.unwrap_or_default();
        let mode = volume.volume_mode.clone();
        let volume = volume.csi.ok_or("no volume of a driver")?;
        let nodes: Api<CSINode> = Api::all(client.clone());
        let node = nodes.get(&attachment.spec.node_name).await?;
        let node = node.spec.drivers.into_iter().find(|d| d.name == NAME).ok_or("no such node")?;
        if attachment.metadata.deletion_timestamp.is_some() {
            for _ in 0..2 {
                let request = v1::ControllerUnpublishVolumeRequest {
                    volume_id: volume.volume_handle.clone(),
                    node_id: node.node_id.clone(),
                    ..Default::default()
                };
                driver.controller_unpublish_volume(request).await?;
            }
            let patch = Patch::Merge(json!({"metadata": {"finalizers": null}}));
            api.patch(&name, &PatchParams::default(), &patch).await?;
        } else if !attachment.status.as_ref().is_some_and(|s| s.attached) {
            let patch = Patch::Merge(json!({"metadata": {"finalizers": [FINALIZER]}}));
            api.patch(&name, &PatchParams::default(), &patch).await?;
            let request = v1::ControllerPublishVolumeRequest {
                volume_id: volume.volume_handle,
                node_id: node.node_id,
                volume_capability: Some(capability(mode.as_deref())),
                ..Default::default()
            };
            driver.controller_publish_volume(request.clone()).await?;
            let said = driver.controller_publish_volume(request).await?.publish_context;
            let patch = Patch::Merge(json!({"status": {"attached": true, "attachmentMetadata": said}}));
            api.patch_status(&name, &PatchParams::default(), &patch).await?;
        }
    }
    Ok(())
}
