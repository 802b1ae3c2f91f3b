//! Volumes that a pod claims: finds the persistent volume that is bound to a claim and where it is
//! on this machine.

use std::{
    io,
    os::unix::fs::FileTypeExt,
    path::{Path, PathBuf},
};

use wasmk_api::k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim, Pod};

use super::{env::Sources, own, volumes::VOLUME_ERROR};
use crate::engine::Failure;

/// Makes the pod's place for the claim a link to the volume bound to it.
///
/// # Errors
/// When the claim is not there, not bound, or bound to a volume of a kind that this node cannot mount.
pub(super) async fn attach(
    pod: &Pod,
    claim: &str,
    target: &Path,
    sources: &dyn Sources,
) -> Result<(), Failure> {
    let failed = |text: String| Failure::new(VOLUME_ERROR, text);
    let volume = volume(pod, claim, sources).await?;
    if volume.spec.as_ref().is_some_and(|s| s.csi.is_some()) {
        // Its driver mounts it.
        return Ok(());
    }
    let name = volume.metadata.name.as_deref().unwrap_or_default();
    let directory = directory(&volume).map_err(|e| failed(format!("persistentvolume \"{name}\": {e}")))?;
    own::link(target, &directory).map_err(|e| failed(e.to_string()))?;
    let Some(group) = own::group(pod).filter(|_| directory.is_dir()) else { return Ok(()) };
    own::scratch(&directory, Some(group)).map_err(|e| failed(e.to_string()))
}

/// The volume that is bound to a claim of a pod.
///
/// # Errors
/// When the claim is not there or not bound, or its volume is not there.
pub(crate) async fn volume(
    pod: &Pod,
    claim: &str,
    sources: &dyn Sources,
) -> Result<PersistentVolume, Failure> {
    let namespace = pod.metadata.namespace.as_deref().unwrap_or("default");
    let failed = |text: String| Failure::new(VOLUME_ERROR, text);
    let found = sources.claim(namespace, claim).await?;
    let found = found.ok_or_else(|| failed(format!("persistentvolumeclaim \"{claim}\" not found")))?;
    let name =
        bound(&found).ok_or_else(|| failed(format!("persistentvolumeclaim \"{claim}\" is not bound")))?;
    let volume = sources.volume(name).await?;
    volume.ok_or_else(|| failed(format!("persistentvolume \"{name}\" not found")))
}

fn bound(claim: &PersistentVolumeClaim) -> Option<&str> {
    let phase = claim.status.as_ref()?.phase.as_deref()?;
    claim.spec.as_ref()?.volume_name.as_deref().filter(|n| phase == "Bound" && !n.is_empty())
}

/// Where a volume is on this machine; made when it is this node's to make.
fn directory(volume: &PersistentVolume) -> io::Result<PathBuf> {
    let spec = volume.spec.clone().unwrap_or_default();
    if let Some(path) = &spec.host_path {
        super::volumes::host_path(path)?;
        return Ok(path.path.clone().into());
    }
    if let Some(local) = &spec.local {
        let path = PathBuf::from(&local.path);
        let kind = match std::fs::metadata(&path) {
            Ok(meta) => meta.file_type(),
            Err(_) => return Err(io::Error::other(format!("path \"{}\" does not exist", local.path))),
        };
        if spec.volume_mode.as_deref() == Some("Block") && !kind.is_block_device() {
            let text = format!("path \"{}\" is no block device, which volumeMode Block asks for", local.path);
            return Err(io::Error::other(text));
        }
        return Ok(path);
    }
    Err(io::Error::other("this node mounts volumes of kind csi, hostPath and local only"))
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    #[test]
    fn volumes_of_this_machine_are_found() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("made").display().to_string();
        let check = |spec: Value, expect: Result<&str, &str>| {
            let volume: PersistentVolume = serde_json::from_value(json!({"spec": spec})).unwrap();
            let found = directory(&volume).map(|p| p.display().to_string()).map_err(|e| e.to_string());
            assert_eq!(found, expect.map(String::from).map_err(String::from), "{spec}");
        };
        let missing = format!("path \"{path}\" does not exist");
        check(json!({"local": {"path": path}}), Err(&missing));
        check(json!({"hostPath": {"path": path, "type": "DirectoryOrCreate"}}), Ok(&path));
        check(json!({"local": {"path": path}}), Ok(&path));
        let no_device = format!("path \"{path}\" is no block device, which volumeMode Block asks for");
        check(json!({"local": {"path": path}, "volumeMode": "Block"}), Err(&no_device));
        check(
            json!({"nfs": {"server": "a", "path": "/"}}),
            Err("this node mounts volumes of kind csi, hostPath and local only"),
        );
    }

    #[test]
    fn a_claim_counts_once_it_is_bound() {
        let check = |claim: Value, expect: Option<&str>| {
            let claim: PersistentVolumeClaim = serde_json::from_value(claim).unwrap();
            assert_eq!(bound(&claim), expect);
        };
        check(json!({"spec": {"volumeName": "v"}, "status": {"phase": "Bound"}}), Some("v"));
        check(json!({"spec": {"volumeName": "v"}, "status": {"phase": "Pending"}}), None);
        check(json!({"spec": {}, "status": {"phase": "Bound"}}), None);
    }
}
