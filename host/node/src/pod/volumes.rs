//! Puts a pod's volumes on disk, under the agent's own directory, and says what each
//! container mounts where.

mod devices;
mod files;
mod mounts;

use std::{
    collections::BTreeMap,
    io,
    os::unix::fs::{DirBuilderExt, FileTypeExt},
    path::{Path, PathBuf},
};

use wasmk_api::k8s_openapi::api::core::v1::{
    ConfigMapVolumeSource, DownwardAPIVolumeFile, HostPathVolumeSource, KeyToPath, Pod,
    ProjectedVolumeSource, Volume, VolumeProjection,
};

pub use devices::devices;
use files::{Files, write_files};
pub use mounts::mounts;

use super::{
    claims,
    env::{self, CONFIG_ERROR, Place, Sources},
    own,
};
use crate::engine::Failure;

/// Reason of a pod whose volumes cannot be made.
pub(super) const VOLUME_ERROR: &str = "FailedMount";
/// Mode of files when nothing is said.
const DEFAULT_MODE: i32 = 0o644;
/// Life of a service account token when nothing is said, in seconds.
const TOKEN_SECONDS: i64 = 3600;

/// Makes all volumes of a pod under `dir`, or brings them up to date.
///
/// # Errors
/// Naming the volume and what it lacks.
pub async fn prepare(pod: &Pod, dir: &Path, place: &Place, sources: &dyn Sources) -> Result<(), Failure> {
    for volume in pod.spec.iter().flat_map(|s| s.volumes.iter().flatten()) {
        let target = dir.join(&volume.name);
        let mut made = match place.memory.as_deref().filter(|_| in_memory(volume)) {
            Some(memory) => match linked(&target, &memory.join(uid(pod)).join(&volume.name)) {
                Ok(real) => one(pod, volume, &real, place, sources).await,
                Err(error) => Err(Failure::new(VOLUME_ERROR, error)),
            },
            None => one(pod, volume, &target, place, sources).await,
        };
        // What is there already stays in use while its source cannot be read.
        if let Err(failure) = &made
            && target.join("..data").exists()
        {
            tracing::debug!(volume = volume.name, %failure, "a volume could not be brought up to date");
            made = Ok(());
        }
        made.map_err(|e| {
            Failure::new(e.reason, format!("MountVolume.SetUp failed for volume \"{}\" : {e}", volume.name))
        })?;
    }
    Ok(())
}

/// Whether a pod has volumes whose content follows objects in the API.
pub fn follows_api(pod: &Pod) -> bool {
    let volumes = pod.spec.iter().flat_map(|s| s.volumes.iter().flatten());
    volumes.into_iter().any(|v| {
        v.config_map.is_some() || v.secret.is_some() || v.projected.is_some() || v.downward_api.is_some()
    })
}

async fn one(
    pod: &Pod,
    volume: &Volume,
    target: &Path,
    place: &Place,
    sources: &dyn Sources,
) -> Result<(), Failure> {
    let disk = |e: io::Error| Failure::new(VOLUME_ERROR, e);
    if is_empty_dir(volume) {
        make_dir(target).map_err(disk)?;
        return own::scratch(target, own::group(pod)).map_err(disk);
    }
    if let Some(path) = &volume.host_path {
        return host_path(path)
            .map_err(|e| Failure::new(VOLUME_ERROR, format!("hostPath {}: {e}", path.path)));
    }
    if volume.image.is_some() || volume.csi.is_some() {
        // The containers that mount an image fetch it; a driver mounts its own.
        return Ok(());
    }
    if let Some(claim) = claim_of(pod, volume) {
        return claims::attach(pod, &claim, target, sources).await;
    }
    let mut files = Files::new();
    if let Some(map) = &volume.config_map {
        config_map(pod, map, sources, &mut files).await?;
    } else if let Some(secret) = &volume.secret {
        let (name, optional) = (secret.secret_name.as_deref().unwrap_or(""), secret.optional == Some(true));
        let mode = secret.default_mode.unwrap_or(DEFAULT_MODE);
        secret_files(pod, name, secret.items.as_deref(), optional, mode, sources, &mut files).await?;
    } else if let Some(projected) = &volume.projected {
        projection(pod, projected, place, sources, &mut files).await?;
    } else if let Some(downward) = &volume.downward_api {
        let mode = downward.default_mode.unwrap_or(DEFAULT_MODE);
        downward_files(pod, downward.items.as_deref(), mode, place, &mut files)?;
    } else {
        let kind = kind_of(volume);
        let instead = match kind.as_str() {
            "flexVolume" => {
                "FlexVolume drivers are superseded by CSI drivers; use a claim of a CSI driver's storage class"
            }
            _ => "use a claim of a storage class",
        };
        let text = format!("volumes of kind {kind} are not available on this node; {instead}");
        return Err(Failure::new(VOLUME_ERROR, text));
    }
    let (target, group) = (target.to_path_buf(), own::group(pod));
    let written = tokio::task::spawn_blocking(move || write_files(&target, &files, group)).await;
    written.map_err(|e| Failure::new(VOLUME_ERROR, e))?.map_err(disk)
}

/// Everything above is the agent's own, so this may be open to all who are given it.
fn make_dir(path: &Path) -> io::Result<()> {
    std::fs::DirBuilder::new().recursive(true).mode(0o755).create(path)
}

fn uid(pod: &Pod) -> &str {
    pod.metadata.uid.as_deref().unwrap_or_default()
}

/// A volume without any source is an empty directory, too.
fn is_empty_dir(volume: &Volume) -> bool {
    volume.empty_dir.is_some() || *volume == Volume { name: volume.name.clone(), ..Volume::default() }
}

/// Whether the content of a volume is never to be on a disk.
fn in_memory(volume: &Volume) -> bool {
    let memory = volume.empty_dir.as_ref().and_then(|e| e.medium.as_deref()) == Some("Memory");
    memory || volume.secret.is_some() || volume.projected.is_some()
}

/// A volume that is elsewhere: its place under the pod's directory is a link.
fn linked(target: &Path, real: &Path) -> io::Result<PathBuf> {
    make_dir(real)?;
    own::link(target, real)?;
    Ok(real.to_path_buf())
}

/// The claim that a volume stands for.
pub(crate) fn claim_of(pod: &Pod, volume: &Volume) -> Option<String> {
    if let Some(claim) = &volume.persistent_volume_claim {
        return Some(claim.claim_name.clone());
    }
    volume.ephemeral.as_ref()?;
    Some(format!("{}-{}", pod.metadata.name.as_deref().unwrap_or_default(), volume.name))
}

/// The name of a volume's source as manifests write it.
fn kind_of(volume: &Volume) -> String {
    let value = serde_json::to_value(volume).unwrap_or_default();
    let keys = value.as_object().into_iter().flat_map(|o| o.keys());
    keys.filter(|k| *k != "name").map(String::as_str).next().unwrap_or("unknown").to_string()
}

pub(super) fn host_path(volume: &HostPathVolumeSource) -> io::Result<()> {
    let path = Path::new(&volume.path);
    let is = |good: bool, what: &str| {
        if good { Ok(()) } else { Err(io::Error::other(format!("is not {what}"))) }
    };
    let file_type = || std::fs::metadata(path).map(|m| m.file_type());
    match volume.type_.as_deref().unwrap_or("") {
        // Unchecked; what is not there becomes a directory.
        "" if path.exists() => Ok(()),
        "" => std::fs::create_dir_all(path),
        "Socket" => is(file_type()?.is_socket(), "a socket"),
        "CharDevice" => is(file_type()?.is_char_device(), "a character device"),
        "BlockDevice" => is(file_type()?.is_block_device(), "a block device"),
        "DirectoryOrCreate" => std::fs::create_dir_all(path),
        "Directory" => is(path.is_dir(), "a directory"),
        "File" => is(path.is_file(), "a file"),
        "FileOrCreate" => std::fs::OpenOptions::new().create(true).append(true).open(path).map(drop),
        other => Err(io::Error::other(format!("type {other} is not known"))),
    }
}

async fn config_map(
    pod: &Pod,
    volume: &ConfigMapVolumeSource,
    sources: &dyn Sources,
    files: &mut Files,
) -> Result<(), Failure> {
    let mode = volume.default_mode.unwrap_or(DEFAULT_MODE);
    let optional = volume.optional == Some(true);
    config_map_files(pod, &volume.name, volume.items.as_deref(), optional, mode, sources, files).await
}

async fn config_map_files(
    pod: &Pod,
    name: &str,
    items: Option<&[KeyToPath]>,
    optional: bool,
    mode: i32,
    sources: &dyn Sources,
    files: &mut Files,
) -> Result<(), Failure> {
    let namespace = pod.metadata.namespace.as_deref().unwrap_or("default");
    let Some(map) = sources.config_map(namespace, name).await? else {
        return absent("configmap", name, optional);
    };
    let mut data: BTreeMap<String, Vec<u8>> =
        map.data.into_iter().flatten().map(|(k, v)| (k, v.into_bytes())).collect();
    data.extend(map.binary_data.into_iter().flatten().map(|(k, v)| (k, v.0)));
    pick(data, items, optional, mode, files)
}

async fn secret_files(
    pod: &Pod,
    name: &str,
    items: Option<&[KeyToPath]>,
    optional: bool,
    mode: i32,
    sources: &dyn Sources,
    files: &mut Files,
) -> Result<(), Failure> {
    let namespace = pod.metadata.namespace.as_deref().unwrap_or("default");
    let Some(secret) = sources.secret(namespace, name).await? else {
        return absent("secret", name, optional);
    };
    let data = secret.data.into_iter().flatten().map(|(k, v)| (k, v.0)).collect();
    pick(data, items, optional, mode, files)
}

fn absent(what: &str, name: &str, optional: bool) -> Result<(), Failure> {
    if optional {
        return Ok(());
    }
    Err(Failure::new(VOLUME_ERROR, format!("{what} \"{name}\" not found")))
}

/// All keys, or the listed ones under their paths.
fn pick(
    mut data: BTreeMap<String, Vec<u8>>,
    items: Option<&[KeyToPath]>,
    optional: bool,
    mode: i32,
    files: &mut Files,
) -> Result<(), Failure> {
    let Some(items) = items.filter(|i| !i.is_empty()) else {
        files.extend(data.into_iter().map(|(k, v)| (k, (v, mode))));
        return Ok(());
    };
    for item in items {
        match data.remove(&item.key) {
            Some(content) => {
                files.insert(item.path.clone(), (content, item.mode.unwrap_or(mode)));
            }
            None if optional => {}
            None => {
                let text = format!("references non-existent key: {}", item.key);
                return Err(Failure::new(VOLUME_ERROR, text));
            }
        }
    }
    Ok(())
}

async fn projection(
    pod: &Pod,
    volume: &ProjectedVolumeSource,
    place: &Place,
    sources: &dyn Sources,
    files: &mut Files,
) -> Result<(), Failure> {
    let mode = volume.default_mode.unwrap_or(DEFAULT_MODE);
    for source in volume.sources.iter().flatten() {
        project(pod, source, mode, place, sources, files).await?;
    }
    Ok(())
}

async fn project(
    pod: &Pod,
    source: &VolumeProjection,
    mode: i32,
    place: &Place,
    sources: &dyn Sources,
    files: &mut Files,
) -> Result<(), Failure> {
    if let Some(map) = &source.config_map {
        let optional = map.optional == Some(true);
        config_map_files(pod, &map.name, map.items.as_deref(), optional, mode, sources, files).await?;
    }
    if let Some(secret) = &source.secret {
        let optional = secret.optional == Some(true);
        secret_files(pod, &secret.name, secret.items.as_deref(), optional, mode, sources, files).await?;
    }
    if let Some(downward) = &source.downward_api {
        downward_files(pod, downward.items.as_deref(), mode, place, files)?;
    }
    if let Some(token) = &source.service_account_token {
        let seconds = token.expiration_seconds.unwrap_or(TOKEN_SECONDS);
        let text = sources.token(pod, token.audience.as_deref(), seconds).await?;
        files.insert(token.path.clone(), (text.into_bytes(), mode));
    }
    if source.cluster_trust_bundle.is_some() || source.pod_certificate.is_some() {
        return Err(Failure::new(VOLUME_ERROR, "this projected source is not available on this node"));
    }
    Ok(())
}

fn downward_files(
    pod: &Pod,
    items: Option<&[DownwardAPIVolumeFile]>,
    mode: i32,
    place: &Place,
    files: &mut Files,
) -> Result<(), Failure> {
    for item in items.unwrap_or_default() {
        let text = match (&item.field_ref, &item.resource_field_ref) {
            (Some(field), _) => env::field_value(pod, &field.field_path, place)?,
            (None, Some(resource)) => {
                let spec = pod.spec.as_ref();
                let first = spec.and_then(|s| s.containers.first());
                let container = first.ok_or_else(|| Failure::new(CONFIG_ERROR, "pod has no container"))?;
                env::resource_value(pod, container, resource, place)?
            }
            (None, None) => continue,
        };
        files.insert(item.path.clone(), (text.into_bytes(), item.mode.unwrap_or(mode)));
    }
    Ok(())
}

#[cfg(test)]
#[path = "volumes_tests.rs"]
mod tests;
