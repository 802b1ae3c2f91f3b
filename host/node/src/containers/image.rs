//! Images of containers.

use std::{collections::BTreeSet, path::PathBuf};

use parking_lot::Mutex;
use wasmk_cri::v1::{AuthConfig, Image, ImageSpec, ImageStatusRequest, PullImageRequest, RemoveImageRequest};

use super::{Containers, failure};
use crate::engine::{Failure, Login, PullPolicy, Wanted};

/// Registry of names that name none.
const DEFAULT_REGISTRY: &str = "docker.io";
/// Fetched images that are remembered; more are left to the administrator.
const MOST_FETCHED: usize = 10_000;

/// A container image that is here.
#[derive(Clone, Debug)]
pub(crate) struct Pulled {
    /// What the runtime calls it; containers are made from this.
    pub(crate) reference: String,
    /// Reference by digest, for the status.
    pub(crate) image_id: String,
    /// Size in bytes.
    pub(crate) size: u64,
    /// It was fetched just now.
    pub(crate) fetched: bool,
    /// Who its program runs as: a number, or a name.
    pub(crate) user: User,
}

/// Who an image's program runs as.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum User {
    /// A number.
    Id(i64),
    /// A name, which only the image's own files can explain.
    Name(String),
}

impl Containers {
    /// An image, if it is here and the runtime says so.
    pub(crate) async fn present(&self, image: &str) -> Option<Image> {
        self.image(image).await.ok().flatten()
    }

    async fn image(&self, image: &str) -> Result<Option<Image>, wasmk_cri::Error> {
        let request = ImageStatusRequest { image: Some(spec(image)), verbose: false };
        self.client.image_status(request).await.map(|a| a.image)
    }

    /// Gets an image by its policy; `known` is what it was found to be just now.
    ///
    /// # Errors
    /// With the reason a container waits for.
    pub(crate) async fn pull(&self, wanted: &Wanted, known: Option<Image>) -> Result<Pulled, Failure> {
        let name = &wanted.image;
        if wanted.policy == PullPolicy::Always {
            return self.fetch(wanted).await;
        }
        let present = match known {
            Some(image) => Some(image),
            None => self.image(name).await.map_err(failure("ErrImagePull"))?,
        };
        match (present, wanted.policy) {
            (Some(image), PullPolicy::IfNotPresent | PullPolicy::Never) => Ok(pulled(name, image, false)),
            (None, PullPolicy::Never) => {
                let text = format!("Container image \"{name}\" is not present with pull policy of Never");
                Err(Failure::new("ErrImageNeverPull", text))
            }
            _ => self.fetch(wanted).await,
        }
    }

    async fn fetch(&self, wanted: &Wanted) -> Result<Pulled, Failure> {
        let name = &wanted.image;
        let registry = registry(name);
        let same = |l: &&Login| l.registry == registry || (is_hub(&l.registry) && is_hub(registry));
        let mut logins = wanted.logins.iter().filter(same).map(Some).collect::<Vec<_>>();
        if logins.is_empty() {
            logins.push(None);
        }
        let mut last = None;
        for login in logins {
            let request = PullImageRequest {
                image: Some(spec(name)),
                auth: login.map(|l| AuthConfig {
                    username: l.username.clone(),
                    password: l.password.clone(),
                    server_address: String::new(),
                }),
                sandbox_config: None,
            };
            match self.client.pull_image(request).await {
                Ok(answer) => {
                    let image = self.image(&answer.image_ref).await.map_err(failure("ErrImagePull"))?;
                    // With another name it was here before, and is somebody else's.
                    if let Some(image) = image.as_ref().filter(|i| i.repo_tags.len() <= 1) {
                        self.fetched.add(&image.id);
                    }
                    let gone = || Failure::new("ErrImagePull", format!("image {name} is gone again"));
                    return image.map(|i| pulled(name, i, true)).ok_or_else(gone);
                }
                Err(error) => last = Some(failure("ErrImagePull")(error)),
            }
        }
        Err(last.unwrap_or_else(|| Failure::new("ErrImagePull", format!("image {name} was not pulled"))))
    }
}

impl Containers {
    /// Images that this agent fetched and that stand for none of the names `used`; none while the runtime
    /// does not answer.
    pub(crate) async fn unused_images(&self, used: &[String]) -> Vec<String> {
        let mut kept = Vec::new();
        for name in used {
            match self.image(name).await {
                Ok(image) => kept.extend(image.map(|i| i.id)),
                Err(_) => return Vec::new(),
            }
        }
        self.fetched.list().into_iter().filter(|id| !kept.contains(id)).collect()
    }

    /// Removes an image.
    ///
    /// # Errors
    /// In words.
    pub(crate) async fn remove_image(&self, id: &str) -> Result<(), String> {
        match self.client.remove_image(RemoveImageRequest { image: Some(spec(id)) }).await {
            Err(error) if !error.is_not_found() => Err(error.message),
            _ => {
                self.fetched.remove(id);
                Ok(())
            }
        }
    }
}

/// A list of images that outlives this process.
pub(super) struct Fetched {
    file: PathBuf,
    ids: Mutex<BTreeSet<String>>,
}

impl Fetched {
    pub(super) fn open(file: PathBuf) -> Self {
        let ids = std::fs::read(&file).ok().and_then(|bytes| serde_json::from_slice(&bytes).ok());
        Self { file, ids: Mutex::new(ids.unwrap_or_default()) }
    }

    fn list(&self) -> Vec<String> {
        self.ids.lock().iter().cloned().collect()
    }

    fn add(&self, id: &str) {
        let mut ids = self.ids.lock();
        if ids.len() < MOST_FETCHED && ids.insert(id.into()) {
            self.save(&ids);
        }
    }

    fn remove(&self, id: &str) {
        let mut ids = self.ids.lock();
        if ids.remove(id) {
            self.save(&ids);
        }
    }

    /// What cannot be kept means that an image stays longer than it must.
    fn save(&self, ids: &BTreeSet<String>) {
        let fresh = self.file.with_extension("new");
        let bytes = serde_json::to_vec(ids).unwrap_or_default();
        if let Err(error) = std::fs::write(&fresh, bytes).and_then(|()| std::fs::rename(&fresh, &self.file)) {
            tracing::warn!(%error, "cannot keep the list of fetched images");
        }
    }
}

fn spec(image: &str) -> ImageSpec {
    ImageSpec { image: image.into(), ..ImageSpec::default() }
}

fn is_hub(registry: &str) -> bool {
    registry.ends_with(DEFAULT_REGISTRY)
}

/// Host of the registry an image name stands for.
fn registry(name: &str) -> &str {
    match name.split_once('/') {
        Some((host, _)) if host.contains(['.', ':']) || host == "localhost" => host,
        _ => DEFAULT_REGISTRY,
    }
}

fn pulled(name: &str, image: Image, fetched: bool) -> Pulled {
    let repository = name.split('@').next().unwrap_or(name);
    let repository = match repository.rsplit_once(':') {
        Some((before, tag)) if !tag.contains('/') => before,
        _ => repository,
    };
    let digests = &image.repo_digests;
    let own = digests.iter().find(|d| d.split('@').next().is_some_and(|r| r.ends_with(repository)));
    let user = match &image.uid {
        Some(uid) => User::Id(uid.value),
        None if image.username.is_empty() => User::Id(0),
        None => User::Name(image.username.clone()),
    };
    Pulled {
        image_id: own.or(digests.first()).unwrap_or(&image.id).clone(),
        reference: image.id,
        size: image.size,
        fetched,
        user,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fetched_images_are_remembered() {
        let dir = tempfile::tempdir().unwrap();
        let open = || Fetched::open(dir.path().join("list.json"));
        let list = open();
        list.add("sha256:1");
        list.add("sha256:2");
        list.remove("sha256:1");
        assert_eq!(open().list(), ["sha256:2"]);
    }

    #[test]
    fn names_tell_their_registry() {
        for (name, expect) in [
            ("busybox", "docker.io"),
            ("library/busybox:1", "docker.io"),
            ("localhost/a:1", "localhost"),
            ("127.0.0.1:5000/a/b@sha256:00", "127.0.0.1:5000"),
            ("ghcr.io/a", "ghcr.io"),
        ] {
            assert_eq!(registry(name), expect, "{name}");
        }
    }

    #[test]
    fn the_digest_of_the_right_repository_is_shown() {
        let digests = ["docker.io/library/busybox@sha256:1", "localhost/busybox@sha256:1"];
        let image = |digests: &[&str]| Image {
            id: "sha256:9".into(),
            repo_digests: digests.iter().map(|d| (*d).into()).collect(),
            ..Image::default()
        };
        for (name, digests, expect) in [
            ("localhost/busybox:1", &digests[..], "localhost/busybox@sha256:1"),
            ("busybox", &digests[..], "docker.io/library/busybox@sha256:1"),
            ("other", &digests[..1], "docker.io/library/busybox@sha256:1"),
            ("x:1", &[], "sha256:9"),
        ] {
            assert_eq!(pulled(name, image(digests), false).image_id, expect, "{name}");
        }
    }
}
