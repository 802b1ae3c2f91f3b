//! Images: fetched from registries, kept by digest, pushed.

mod archive;
mod inflate;
mod inspect;
mod layout;
mod registry;
mod store;
mod trees;
mod unpack;

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Weak};

use bytes::Bytes;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use tokio::sync::OnceCell;

pub use oci_client::Reference;

use crate::error::PullError;
use crate::metrics::Phases;
use crate::settings::Settings;
use registry::Registry;
use store::Store;
pub use trees::Tree;
use trees::Trees;

/// When to ask the registry.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum PullPolicy {
    /// At every start; blobs that are here already are not fetched again.
    Always,
    /// Only if the image is not here.
    IfNotPresent,
    /// Not at all.
    Never,
}

/// Credentials for a registry.
#[derive(Clone, PartialEq, Eq, Hash)]
pub enum Auth {
    /// User name and password.
    Basic {
        /// User name.
        username: String,
        /// Password or access token used as one.
        password: String,
    },
    /// A token of the registry.
    Bearer(String),
}

impl std::fmt::Debug for Auth {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Basic { username, .. } => {
                f.debug_struct("Basic").field("username", username).finish_non_exhaustive()
            }
            Self::Bearer(_) => f.write_str("Bearer"),
        }
    }
}

/// A Wasm image in the local store.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Image {
    reference: String,
    digest: String,
    module_digest: String,
    module_size: u64,
    annotations: BTreeMap<String, String>,
    config: ImageConfig,
    #[serde(skip)]
    module_path: PathBuf,
}

/// What an image says about how to run it; empty for images that are only a program.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageConfig {
    /// Command and leading arguments.
    pub entrypoint: Vec<String>,
    /// Further arguments, replaced by those of whoever runs it.
    pub cmd: Vec<String>,
    /// Environment variables, as `NAME=value`.
    pub env: Vec<String>,
    /// Directory to start in.
    pub working_dir: Option<String>,
}

impl Image {
    /// The reference it was pulled by, in full.
    pub fn reference(&self) -> &str {
        &self.reference
    }

    /// Digest of its manifest.
    pub fn digest(&self) -> &str {
        &self.digest
    }

    /// Digest of the Wasm in it.
    pub fn module_digest(&self) -> &str {
        &self.module_digest
    }

    /// Length of the Wasm in it, in bytes.
    pub fn size(&self) -> u64 {
        self.module_size
    }

    /// Annotations of its manifest.
    pub fn annotations(&self) -> &BTreeMap<String, String> {
        &self.annotations
    }

    /// How it wants to be run.
    pub fn config(&self) -> &ImageConfig {
        &self.config
    }

    /// Where the Wasm lies.
    pub fn module_path(&self) -> &Path {
        &self.module_path
    }
}

/// The images of one runtime. Clones are the same images.
#[derive(Clone)]
pub struct Images(Arc<Inner>);

struct Inner {
    store: Store,
    trees: Trees,
    registry: Registry,
    pulls: Pulls<Image>,
    tree_pulls: Pulls<Tree>,
    phases: Arc<Phases>,
}

type PullKey = (String, Option<Auth>);
type Pull<T> = OnceCell<Result<Arc<T>, PullError>>;

/// Pulls under way; those of the same image with the same credentials are one.
struct Pulls<T>(Mutex<HashMap<PullKey, Weak<Pull<T>>>>);

impl<T> Default for Pulls<T> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

impl<T> Pulls<T> {
    async fn once(
        &self,
        key: PullKey,
        work: impl Future<Output = Result<Arc<T>, PullError>>,
    ) -> Result<Arc<T>, PullError> {
        let pull = self.under_way(key);
        let result = pull.get_or_init(|| work).await.clone();
        drop(pull);
        self.0.lock().retain(|_, pull| pull.strong_count() > 0);
        result
    }

    fn under_way(&self, key: PullKey) -> Arc<Pull<T>> {
        let mut pulls = self.0.lock();
        if let Some(pull) = pulls.get(&key).and_then(Weak::upgrade).filter(|pull| !pull.initialized()) {
            return pull;
        }
        let pull = Arc::new(Pull::new());
        pulls.insert(key, Arc::downgrade(&pull));
        pull
    }
}

/// Pushes like [`Images::push`], for a program that has no runtime. Of the settings only the limits, the
/// plain-HTTP registries and the timeout are used; nothing is written to disk.
///
/// # Errors
/// If `wasm` is no WebAssembly or the registry refuses it.
pub async fn push(
    settings: &Settings,
    reference: &Reference,
    wasm: Bytes,
    annotations: BTreeMap<String, String>,
    credentials: Option<Auth>,
) -> Result<String, PullError> {
    Registry::new(settings).push(reference, wasm, annotations, credentials).await
}

impl Images {
    pub(crate) fn open(settings: &Settings, phases: Arc<Phases>) -> io::Result<Self> {
        let store = Store::open(settings.data_dir.join("images"))?;
        let trees = Trees::open(settings.data_dir.join("images/trees"))?;
        let registry = Registry::new(settings);
        let (pulls, tree_pulls) = (Pulls::default(), Pulls::default());
        let inner = Inner { store, trees, registry, pulls, tree_pulls, phases };
        Ok(Self(Arc::new(inner)))
    }

    /// The image `reference` names, fetched if `policy` says so. Concurrent pulls of the same image with
    /// the same credentials are one.
    ///
    /// # Errors
    /// See [`PullError`].
    pub async fn pull(
        &self,
        reference: &Reference,
        policy: PullPolicy,
        credentials: Option<Auth>,
    ) -> Result<Arc<Image>, PullError> {
        // Content named by its digest cannot have changed.
        if (policy != PullPolicy::Always || reference.digest().is_some())
            && let Some(image) = self.get(reference).await
        {
            return Ok(image);
        }
        if policy == PullPolicy::Never {
            return Err(PullError::NotPresent { reference: reference.whole() });
        }
        let key = (reference.whole(), credentials.clone());
        let inner = &self.0;
        let fetch = async {
            let started = std::time::Instant::now();
            let result = inner.registry.pull(&inner.store, reference, credentials).await;
            if result.is_ok() {
                inner.phases.pull.record(started.elapsed());
            }
            result
        };
        inner.pulls.once(key, fetch).await
    }

    /// The files of the image or artifact `reference` names, fetched and unpacked if `policy` says so.
    /// Unlike [`pull`](Self::pull) it may hold anything.
    ///
    /// # Errors
    /// See [`PullError`]; also when the content leads out of its directory or is larger than allowed.
    pub async fn pull_tree(
        &self,
        reference: &Reference,
        policy: PullPolicy,
        credentials: Option<Auth>,
    ) -> Result<Arc<Tree>, PullError> {
        if (policy != PullPolicy::Always || reference.digest().is_some())
            && let Some(tree) = self.get_tree(reference).await
        {
            return Ok(tree);
        }
        if policy == PullPolicy::Never {
            return Err(PullError::NotPresent { reference: reference.whole() });
        }
        let key = (reference.whole(), credentials.clone());
        let inner = &self.0;
        let fetch = inner.registry.pull_tree(&inner.store, &inner.trees, reference, credentials);
        inner.tree_pulls.once(key, fetch).await
    }

    /// The image's files if they are here.
    pub async fn get_tree(&self, reference: &Reference) -> Option<Arc<Tree>> {
        let inner = Arc::clone(&self.0);
        let whole = reference.whole();
        let found = tokio::task::spawn_blocking(move || inner.trees.find(&whole)).await;
        found.ok().flatten().map(Arc::new)
    }

    /// All unpacked images by all their references; one whose references have come to mean others is under
    /// none.
    ///
    /// # Errors
    /// If the store cannot be read.
    pub async fn list_trees(&self) -> io::Result<Vec<Tree>> {
        let inner = Arc::clone(&self.0);
        blocking(move || inner.trees.list()).await
    }

    /// Removes an unpacked image, by its digest. Nothing may use its files any longer.
    ///
    /// # Errors
    /// If the store cannot be changed.
    pub async fn remove_tree(&self, digest: &str) -> io::Result<()> {
        let inner = Arc::clone(&self.0);
        let digest = digest.to_owned();
        blocking(move || inner.trees.remove(&digest)).await
    }

    /// Pushes `wasm` as an image of one layer, the layout of the CNCF's Wasm working group; the digest of
    /// its manifest. The same bytes and annotations always give the same digest.
    ///
    /// # Errors
    /// If `wasm` is no WebAssembly or the registry refuses it.
    pub async fn push(
        &self,
        reference: &Reference,
        wasm: Bytes,
        annotations: BTreeMap<String, String>,
        credentials: Option<Auth>,
    ) -> Result<String, PullError> {
        self.0.registry.push(reference, wasm, annotations, credentials).await
    }

    /// The image if it is here.
    pub async fn get(&self, reference: &Reference) -> Option<Arc<Image>> {
        let inner = Arc::clone(&self.0);
        let whole = reference.whole();
        let found = tokio::task::spawn_blocking(move || inner.store.find(&whole)).await;
        found.ok().flatten().map(Arc::new)
    }

    /// All images that are here, by reference.
    ///
    /// # Errors
    /// If the store cannot be read.
    pub async fn list(&self) -> io::Result<Vec<Image>> {
        let inner = Arc::clone(&self.0);
        blocking(move || inner.store.list()).await
    }

    /// Forgets an image and removes content that no other image uses; the bytes freed. Programs already
    /// prepared go on.
    ///
    /// # Errors
    /// If the store cannot be changed.
    pub async fn remove(&self, reference: &Reference) -> io::Result<u64> {
        let inner = Arc::clone(&self.0);
        let whole = reference.whole();
        blocking(move || inner.store.remove(&whole)).await
    }
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> io::Result<T> + Send + 'static) -> io::Result<T> {
    tokio::task::spawn_blocking(work).await.unwrap_or_else(|error| Err(io::Error::other(error)))
}
