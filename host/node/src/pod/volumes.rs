//! Puts a pod's volumes on disk, under the agent's own directory, and says what each
//! container mounts where.

use std::{
    collections::BTreeMap,
    io,
    os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt, symlink},
    path::{Component, Path, PathBuf},
};

use wasmk_api::k8s_openapi::api::core::v1::{
    ConfigMapVolumeSource, Container, DownwardAPIVolumeFile, HostPathVolumeSource, KeyToPath, Pod,
    ProjectedVolumeSource, Volume, VolumeProjection,
};

use super::env::{self, CONFIG_ERROR, Place, Sources};
use crate::engine::{Failure, Mount};

/// Reason of a pod whose volumes cannot be made.
const VOLUME_ERROR: &str = "FailedMount";
/// Mode of files when nothing is said.
const DEFAULT_MODE: i32 = 0o644;
/// Life of a service account token when nothing is said, in seconds.
const TOKEN_SECONDS: i64 = 3600;

/// The files of a volume: path in it, content, mode.
type Files = BTreeMap<String, (Vec<u8>, i32)>;

/// Makes all volumes of a pod under `dir`, or brings them up to date.
///
/// # Errors
/// Naming the volume and what it lacks.
pub async fn prepare(pod: &Pod, dir: &Path, place: &Place, sources: &dyn Sources) -> Result<(), Failure> {
    for volume in pod.spec.iter().flat_map(|s| s.volumes.iter().flatten()) {
        let target = dir.join(&volume.name);
        let mut made = one(pod, volume, &target, place, sources).await;
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
    if volume.empty_dir.is_some() {
        return make_dir(target).map_err(disk);
    }
    if let Some(path) = &volume.host_path {
        return host_path(path)
            .map_err(|e| Failure::new(VOLUME_ERROR, format!("hostPath {}: {e}", path.path)));
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
        return Err(Failure::new(VOLUME_ERROR, "this kind of volume is not available to Wasm pods"));
    }
    let target = target.to_path_buf();
    let written = tokio::task::spawn_blocking(move || write_files(&target, &files)).await;
    written.map_err(|e| Failure::new(VOLUME_ERROR, e))?.map_err(disk)
}

fn make_dir(path: &Path) -> io::Result<()> {
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(path)
}

fn host_path(volume: &HostPathVolumeSource) -> io::Result<()> {
    let path = Path::new(&volume.path);
    let is = |good: bool, what: &str| {
        if good { Ok(()) } else { Err(io::Error::other(format!("is not {what}"))) }
    };
    match volume.type_.as_deref().unwrap_or("") {
        "" => is(path.exists(), "there"),
        "DirectoryOrCreate" => std::fs::create_dir_all(path),
        "Directory" => is(path.is_dir(), "a directory"),
        "File" => is(path.is_file(), "a file"),
        "FileOrCreate" => std::fs::OpenOptions::new().create(true).append(true).open(path).map(drop),
        other => Err(io::Error::other(format!("type {other} is not available to Wasm pods"))),
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
        return Err(Failure::new(VOLUME_ERROR, "this projected source is not available to Wasm pods"));
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

/// Replaces the volume's content in one step: the files stand in a directory of their own,
/// `..data` points to it, and each name in the volume is a link through `..data`.
fn write_files(target: &Path, files: &Files) -> io::Result<()> {
    make_dir(target)?;
    if !files.keys().all(|p| is_inside(p)) {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "a path leads out of the volume"));
    }
    let data = target.join("..data");
    let old = std::fs::read_link(&data).ok();
    if old.is_some() && same(&data, files) {
        return Ok(());
    }
    let fresh = format!("..{:.9}", wasmk_api::Timestamp::now().0).replace([':', '-', 'T', 'Z'], "_");
    let folder = target.join(&fresh);
    for (path, (content, mode)) in files {
        let path = folder.join(path);
        if let Some(parent) = path.parent() {
            make_dir(parent)?;
        }
        write_file(&path, content, *mode)?;
    }
    make_dir(&folder)?;
    let link = target.join("..data_tmp");
    let _ = std::fs::remove_file(&link);
    symlink(&fresh, &link)?;
    std::fs::rename(&link, &data)?;
    link_names(target, files)?;
    match old {
        Some(old) => std::fs::remove_dir_all(target.join(old)),
        None => Ok(()),
    }
}

fn write_file(path: &Path, content: &[u8], mode: i32) -> io::Result<()> {
    let mode = u32::try_from(mode).unwrap_or(0o644) & 0o777;
    let mut file = std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    io::Write::write_all(&mut file, content)?;
    // After writing: a mode without the write bit is allowed, and the umask has no say.
    file.set_permissions(std::fs::Permissions::from_mode(mode | 0o400))
}

/// Links each top-level name, removes links to names that are gone.
fn link_names(target: &Path, files: &Files) -> io::Result<()> {
    let first = |p: &str| p.split('/').next().unwrap_or(p).to_string();
    let wanted: std::collections::BTreeSet<String> = files.keys().map(|p| first(p)).collect();
    for entry in std::fs::read_dir(target)? {
        let name = entry?.file_name().to_string_lossy().into_owned();
        if !name.starts_with("..") && !wanted.contains(&name) {
            std::fs::remove_file(target.join(name))?;
        }
    }
    for name in wanted {
        let link = target.join(&name);
        if link.symlink_metadata().is_err() {
            symlink(Path::new("..data").join(&name), link)?;
        }
    }
    Ok(())
}

fn same(data: &Path, files: &Files) -> bool {
    let count = files.len();
    let equal =
        files.iter().all(|(path, (content, _))| std::fs::read(data.join(path)).is_ok_and(|c| c == *content));
    equal && count_files(data) == count
}

fn count_files(dir: &Path) -> usize {
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    entries.map(|e| if e.path().is_dir() { count_files(&e.path()) } else { 1 }).sum()
}

fn is_inside(path: &str) -> bool {
    let mut parts = Path::new(path).components().peekable();
    parts.peek().is_some() && parts.all(|p| matches!(p, Component::Normal(_)))
}

/// What a container mounts. Content that follows the API is always read-only.
///
/// # Errors
/// [`CONFIG_ERROR`] for a mount without volume, one that leads out of its volume, or a file
/// (a Wasm container is given directories).
pub fn mounts(pod: &Pod, container: &Container, dir: &Path) -> Result<Vec<Mount>, Failure> {
    let volumes = pod.spec.as_ref().and_then(|s| s.volumes.as_deref()).unwrap_or_default();
    let mut out = Vec::new();
    for mount in container.volume_mounts.iter().flatten() {
        let bad =
            |what: &str| Failure::new(CONFIG_ERROR, format!("volumeMount {}: {what}", mount.mount_path));
        let volume = volumes.iter().find(|v| v.name == mount.name).ok_or_else(|| bad("no such volume"))?;
        let mut host = match &volume.host_path {
            Some(path) => PathBuf::from(&path.path),
            None => dir.join(&mount.name),
        };
        let writable = volume.empty_dir.is_some() || volume.host_path.is_some();
        if let Some(sub) = mount.sub_path.as_deref().filter(|s| !s.is_empty()) {
            if !is_inside(sub) {
                return Err(bad("subPath must be a path inside the volume"));
            }
            host.push(sub);
            if writable && !host.exists() {
                make_dir(&host).map_err(|e| bad(&format!("subPath {sub}: {e}")))?;
            }
        }
        if !host.is_dir() {
            return Err(bad("a Wasm container can be given directories only, and this is none"));
        }
        let read_only = !writable || mount.read_only == Some(true);
        out.push(Mount { host, guest: mount.mount_path.clone(), read_only });
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::{
        super::env::tests::{Fixed, place},
        *,
    };

    fn pod() -> Pod {
        serde_json::from_value(json!({
            "metadata": {"name": "p", "namespace": "default", "labels": {"app": "x"}},
            "spec": {
                "containers": [{"name": "c", "volumeMounts": [
                    {"name": "conf", "mountPath": "/conf"},
                    {"name": "tmp", "mountPath": "/tmp", "subPath": "a/b"},
                ]}],
                "volumes": [
                    {"name": "conf", "configMap": {"name": "settings", "items": [{"key": "color", "path": "deep/color"}]}},
                    {"name": "tmp", "emptyDir": {}},
                    {"name": "all", "projected": {"sources": [
                        {"serviceAccountToken": {"path": "sa/token", "expirationSeconds": 3607}},
                        {"secret": {"name": "keys"}},
                        {"downwardAPI": {"items": [{"path": "labels", "fieldRef": {"fieldPath": "metadata.labels"}}]}},
                    ]}},
                ],
            },
        }))
        .unwrap()
    }

    #[tokio::test]
    async fn volumes_hold_what_they_name_and_can_be_made_again() {
        let dir = tempfile::tempdir().unwrap();
        let pod = pod();
        for _ in 0..2 {
            prepare(&pod, dir.path(), &place(), &Fixed).await.unwrap();
        }
        let read = |path: &str| std::fs::read_to_string(dir.path().join(path)).unwrap();
        assert_eq!(read("conf/deep/color"), "blue");
        assert_eq!(read("all/labels"), "app=\"x\"");
        assert!(read("all/sa/token") == "token for api 3607");
        let mounts = mounts(&pod, &pod.spec.as_ref().unwrap().containers[0], dir.path()).unwrap();
        let shown: Vec<_> = mounts.iter().map(|m| (m.guest.as_str(), m.read_only)).collect();
        assert_eq!(shown, [("/conf", true), ("/tmp", false)]);
        assert!(mounts[1].host.is_dir());
    }

    #[tokio::test]
    async fn content_is_replaced_whole() {
        let dir = tempfile::tempdir().unwrap();
        let file = |text: &str| (text.as_bytes().to_vec(), 0o400);
        let volume = dir.path().join("v");
        write_files(&volume, &[("a".into(), file("1")), ("b/c".into(), file("2"))].into()).unwrap();
        write_files(&volume, &[("a".into(), file("3"))].into()).unwrap();
        assert_eq!(std::fs::read(volume.join("a")).unwrap(), b"3");
        assert!(!volume.join("b").exists());
        assert_eq!(std::fs::read_dir(&volume).unwrap().count(), 3);
        assert!(write_files(&volume, &[("../x".into(), file("4"))].into()).is_err());
    }

    #[tokio::test]
    async fn what_is_missing_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let mut pod = pod();
        let volumes = pod.spec.as_mut().unwrap().volumes.as_mut().unwrap();
        volumes[0].config_map.as_mut().unwrap().name = "no".into();
        let error = prepare(&pod, dir.path(), &place(), &Fixed).await.unwrap_err();
        assert_eq!(
            error.to_string(),
            "MountVolume.SetUp failed for volume \"conf\" : configmap \"no\" not found"
        );
    }
}
