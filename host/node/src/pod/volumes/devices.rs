//! Volumes that a container is given as devices.

use std::{os::unix::fs::FileTypeExt, path::Path};

use wasmk_api::k8s_openapi::api::core::v1::{Container, Pod, VolumeDevice};

use super::{super::env::CONFIG_ERROR, claim_of};
use crate::{containers::Device, engine::Failure};

/// The devices that a container names; `dir` is where the pod's volumes are.
///
/// # Errors
/// [`CONFIG_ERROR`] for a volume that is not there, or no block device.
pub fn devices(pod: &Pod, container: &Container, dir: &Path) -> Result<Vec<Device>, Failure> {
    let volumes = pod.spec.as_ref().and_then(|s| s.volumes.as_deref()).unwrap_or_default();
    let one = |device: &VolumeDevice| {
        let bad =
            |what: &str| Failure::new(CONFIG_ERROR, format!("volumeDevice {}: {what}", device.device_path));
        let volume = volumes.iter().find(|v| v.name == device.name && claim_of(pod, v).is_some());
        let volume = volume.ok_or_else(|| bad("no volume of that name is a claim"))?;
        let host = dir.join(&device.name).canonicalize().map_err(|e| bad(&e.to_string()))?;
        if !host.metadata().is_ok_and(|meta| meta.file_type().is_block_device()) {
            return Err(bad("the volume is no block device; its claim needs volumeMode Block"));
        }
        let read_only = volume.persistent_volume_claim.as_ref().and_then(|c| c.read_only) == Some(true);
        let permissions = if read_only { "mr" } else { "mrw" };
        Ok(Device { host, guest: device.device_path.clone(), permissions: permissions.into() })
    };
    container.volume_devices.iter().flatten().map(one).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    #[test]
    fn only_claims_that_are_devices_are_given() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("directory")).unwrap();
        let check = |devices: Value, expect: &str| {
            let pod: Pod = serde_json::from_value(
                json!({"spec": {"containers": [{"name": "c", "volumeDevices": devices}],
                "volumes": [
                    {"name": "directory", "persistentVolumeClaim": {"claimName": "a"}},
                    {"name": "absent", "persistentVolumeClaim": {"claimName": "b"}},
                    {"name": "scratch", "emptyDir": {}}]}}),
            )
            .unwrap();
            let container = &pod.spec.as_ref().unwrap().containers[0];
            let found = super::devices(&pod, container, dir.path()).map(|d| d.len().to_string());
            let found = found.unwrap_or_else(|e| e.message);
            assert!(found.contains(expect), "{found}");
        };
        let device = |name: &str| json!([{"name": name, "devicePath": "/dev/x"}]);
        check(json!([]), "0");
        check(device("directory"), "volumeDevice /dev/x: the volume is no block device");
        check(device("absent"), "No such file");
        check(device("scratch"), "no volume of that name is a claim");
    }
}
