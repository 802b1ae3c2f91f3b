//! Volumes that are the files of an image or artifact. They are fetched when a container that mounts them
//! starts, so that the container waits and says why, as for its own image.

use std::{io, path::Path};

use wasmk_api::k8s_openapi::api::core::v1::{Container, ImageVolumeSource, Pod, PodSpec};

use super::{
    env::{CONFIG_ERROR, Sources},
    images::{logins, pull_policy},
    own,
};
use crate::engine::{Failure, Wanted};

/// The images that a pod's volumes name.
pub(crate) fn references(spec: &PodSpec) -> impl Iterator<Item = &str> {
    let volumes = spec.volumes.iter().flatten();
    volumes.filter_map(|v| v.image.as_ref()?.reference.as_deref()).filter(|r| !r.is_empty())
}

/// The image volumes that a container mounts, by name.
pub(super) fn mounted<'a>(pod: &'a Pod, container: &Container) -> Vec<(&'a str, &'a ImageVolumeSource)> {
    let volumes = pod.spec.iter().flat_map(|s| s.volumes.iter().flatten());
    let used = |name: &str| container.volume_mounts.iter().flatten().any(|m| m.name == name);
    let images = volumes.filter_map(|v| Some((v.name.as_str(), v.image.as_ref()?)));
    images.filter(|(name, _)| used(name)).collect()
}

/// The image of a volume.
///
/// # Errors
/// When it names none, or a pull secret cannot be read.
pub(super) async fn wanted(
    sources: &dyn Sources,
    pod: &Pod,
    volume: &ImageVolumeSource,
) -> Result<Wanted, Failure> {
    let image = volume.reference.clone().filter(|r| !r.is_empty());
    let image = image.ok_or_else(|| Failure::new("InvalidImageName", "volume names no image"))?;
    let policy = pull_policy(volume.pull_policy.as_deref(), &image);
    let logins = logins(sources, pod).await?;
    Ok(Wanted { image, policy, logins })
}

/// Makes a volume of these files; several containers may do so at the same time.
///
/// # Errors
/// [`CONFIG_ERROR`] when the pod's directory cannot be changed.
pub(super) fn place(place: &Path, files: &Path) -> Result<(), Failure> {
    if place.is_dir() {
        return Ok(());
    }
    match own::link(place, files) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        linked => linked.map_err(|e| Failure::new(CONFIG_ERROR, format!("{}: {e}", place.display()))),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn images_of_volumes_are_found() {
        let pod: Pod = serde_json::from_value(json!({"spec": {
            "containers": [{"name": "c", "volumeMounts": [{"name": "a", "mountPath": "/a"}, {"name": "e", "mountPath": "/e"}]}],
            "volumes": [
                {"name": "a", "image": {"reference": "r/a:1"}},
                {"name": "b", "image": {"reference": "r/b:1"}},
                {"name": "e", "emptyDir": {}},
            ],
        }}))
        .unwrap();
        let spec = pod.spec.as_ref().unwrap();
        assert_eq!(references(spec).collect::<Vec<_>>(), ["r/a:1", "r/b:1"]);
        let mounted: Vec<_> = mounted(&pod, &spec.containers[0]).into_iter().map(|(name, _)| name).collect();
        assert_eq!(mounted, ["a"]);
    }

    #[test]
    fn the_first_to_place_a_volume_decides() {
        let dir = tempfile::tempdir().unwrap();
        let (one, two) = (dir.path().join("one"), dir.path().join("volumes/two"));
        std::fs::create_dir(&one).unwrap();
        place(&two, &one).unwrap();
        place(&two, dir.path()).unwrap();
        assert_eq!(std::fs::read_link(&two).unwrap(), one);
    }
}
