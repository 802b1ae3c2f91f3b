//! What a container mounts where.

use std::{
    collections::HashMap,
    io,
    path::{Path, PathBuf},
};

use wasmk_api::k8s_openapi::api::core::v1::{Container, Pod, VolumeMount};

use super::{
    super::env::{self, CONFIG_ERROR},
    claim_of,
    files::is_inside,
    is_empty_dir, make_dir,
};
use crate::engine::{Failure, Mount};

/// What a container mounts. Content that follows the API is always read-only. `files` says whether
/// single files can be mounted; `env` is the container's environment, for `subPathExpr`.
///
/// # Errors
/// [`CONFIG_ERROR`] for a mount without volume, one that leads out of its volume, or a file for a
/// Wasm container, which is given directories.
pub fn mounts(
    pod: &Pod,
    container: &Container,
    dir: &Path,
    env: &[(String, String)],
    files: bool,
) -> Result<Vec<Mount>, Failure> {
    let volumes = pod.spec.as_ref().and_then(|s| s.volumes.as_deref()).unwrap_or_default();
    let known: HashMap<String, String> = env.iter().cloned().collect();
    let one = |mount: &VolumeMount| {
        let bad =
            |what: &str| Failure::new(CONFIG_ERROR, format!("volumeMount {}: {what}", mount.mount_path));
        let volume = volumes.iter().find(|v| v.name == mount.name).ok_or_else(|| bad("no such volume"))?;
        let mut host = match &volume.host_path {
            Some(path) => PathBuf::from(&path.path),
            None => dir.join(&mount.name),
        };
        let claim = claim_of(pod, volume).is_some();
        let writable = is_empty_dir(volume) || volume.host_path.is_some() || volume.csi.is_some() || claim;
        let sub = match mount.sub_path_expr.as_deref().filter(|s| !s.is_empty()) {
            Some(expression) => Some(env::expand(expression, &known)),
            None => mount.sub_path.clone().filter(|s| !s.is_empty()),
        };
        if let Some(sub) = sub {
            host = inside(&host, &sub, writable).map_err(|e| bad(&format!("subPath {sub}: {e}")))?;
        }
        if !files && !host.is_dir() {
            return Err(bad("a Wasm container can be given directories only, and this is none"));
        }
        let claim_read_only = volume.persistent_volume_claim.as_ref().and_then(|c| c.read_only);
        let read_only = claim_read_only.or(volume.csi.as_ref().and_then(|c| c.read_only));
        Ok(Mount {
            host,
            guest: mount.mount_path.clone(),
            read_only: !writable || mount.read_only == Some(true) || read_only == Some(true),
            propagation: mount.mount_propagation.clone(),
        })
    };
    container.volume_mounts.iter().flatten().map(one).collect()
}

/// A path below a volume's root, also after links are followed; made when it may be.
fn inside(root: &Path, sub: &str, writable: bool) -> io::Result<PathBuf> {
    let refused = || io::Error::other("must be a path inside the volume");
    if !is_inside(sub) {
        return Err(refused());
    }
    let root = root.canonicalize()?;
    let path = root.join(sub);
    if writable && !path.exists() {
        // The part that is there must not lead out, or the rest would be made elsewhere.
        let there = path.ancestors().find(|p| p.exists()).unwrap_or(&root);
        if !there.canonicalize()?.starts_with(&root) {
            return Err(refused());
        }
        make_dir(&path)?;
    }
    let path = path.canonicalize()?;
    if path.starts_with(&root) { Ok(path) } else { Err(refused()) }
}
