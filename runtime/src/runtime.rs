//! The runtime: engine, programs and images together.

use std::collections::HashMap;
use std::fs::{DirBuilder, File};
use std::io::{Seek, Write};
use std::os::unix::fs::DirBuilderExt;
use std::sync::Arc;

use bytes::Bytes;
use nix::sys::memfd::{MFdFlags, memfd_create};
use parking_lot::Mutex;
use tokio::sync::{OnceCell, Semaphore};

use crate::blobs::Stores;
use crate::cache::{CodeCache, Found};
use crate::capabilities::blobstore::Blobs;
use crate::capabilities::keyvalue::KeyValue;
use crate::engine::Allocation;
use crate::error::{Error, PrepareError};
use crate::images::{Image, Images};
use crate::keyvalue::Databases;
use crate::metrics::{Metrics, Phases, Tally};
use crate::prepare::{compile, digest_of, link};
use crate::program::Program;
use crate::settings::Settings;
use crate::shared::Shared;

/// Runs WebAssembly programs. Clones are the same runtime.
#[derive(Clone)]
pub struct Runtime(Arc<Inner>);

struct Inner {
    settings: Settings,
    shared: Arc<Shared>,
    cache: CodeCache,
    images: Images,
    databases: Databases,
    blobs: Stores,
    programs: Mutex<Programs>,
    compiling: Semaphore,
}

/// A program that is loaded or on its way.
type Cell = Arc<OnceCell<Arc<Program>>>;

/// Programs by digest, with the order of their last use.
#[derive(Default)]
struct Programs {
    loaded: HashMap<String, (u64, Cell)>,
    uses: u64,
}

impl Runtime {
    /// Starts the engine and opens the directories.
    ///
    /// # Errors
    /// If the engine refuses its configuration or a directory cannot be used.
    pub fn new(settings: Settings) -> Result<Self, Error> {
        let dir = &settings.data_dir;
        let fail = |source| Error::Directory { path: dir.clone(), source };
        DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(fail)?;
        let shared = Arc::new(Shared::new(&settings)?);
        let cache = CodeCache::open(dir.join("compiled"), &shared.engine, settings.max_compiled_bytes)
            .map_err(|source| Error::Directory { path: dir.join("compiled"), source })?;
        let images = Images::open(&settings, Arc::clone(&shared.phases))
            .map_err(|source| Error::Directory { path: dir.join("images"), source })?;
        let compiling = Semaphore::new(settings.compile_threads.max(1));
        let databases = Databases::new(dir.join("keyvalue"));
        let blobs = Stores::new(dir.join("blobs"));
        let programs = Mutex::default();
        Ok(Self(Arc::new(Inner { settings, shared, cache, images, databases, blobs, programs, compiling })))
    }

    /// The images of this runtime.
    pub fn images(&self) -> &Images {
        &self.0.images
    }

    /// Where instances come from.
    pub fn allocation(&self) -> Allocation {
        self.0.shared.allocation
    }

    /// The program of a pulled image: loaded already, mapped from disk, or compiled.
    ///
    /// # Errors
    /// See [`PrepareError`].
    pub async fn prepare(&self, image: &Image) -> Result<Arc<Program>, PrepareError> {
        let path = image.module_path().to_owned();
        let digest = image.module_digest().to_owned();
        self.prepared(&digest, move || Ok(Bytes::from(std::fs::read(path)?))).await
    }

    /// The program in `bytes`, whose digest is `digest` (`sha256:` and hexadecimal).
    ///
    /// # Errors
    /// See [`PrepareError`].
    pub async fn prepare_bytes(&self, bytes: Bytes, digest: &str) -> Result<Arc<Program>, PrepareError> {
        self.prepared(digest, move || Ok(bytes)).await
    }

    /// The program with this digest if it is loaded now.
    pub fn loaded(&self, digest: &str) -> Option<Arc<Program>> {
        self.0.programs.lock().cell_if_present(digest)?.get().cloned()
    }

    /// Stores by these names for guests of `owner`, who all see the same keys. What they keep outlives them and
    /// this runtime.
    ///
    /// # Errors
    /// If a name is no file's: 1 to 200 lower-case letters, digits, `-` and `.`, beginning with a letter or digit.
    pub fn keyvalue(&self, owner: &str, stores: Vec<String>) -> Result<KeyValue, Error> {
        all_fit(owner, &stores)?;
        Ok(KeyValue::new(self.0.databases.get(owner), stores))
    }

    /// Containers of these names for guests of `owner`, who all see the same objects. What they keep outlives them
    /// and this runtime.
    ///
    /// # Errors
    /// As [`keyvalue`](Self::keyvalue).
    pub fn blobs(&self, owner: &str, containers: Vec<String>) -> Result<Blobs, Error> {
        all_fit(owner, &containers)?;
        Ok(Blobs::new(self.0.blobs.get(owner), containers))
    }

    /// Owners for whom objects are kept.
    ///
    /// # Errors
    /// If the directory cannot be read.
    pub fn blob_owners(&self) -> std::io::Result<Vec<String>> {
        self.0.blobs.owners()
    }

    /// Removes the objects that are kept for an owner.
    ///
    /// # Errors
    /// If a file cannot be removed.
    pub fn forget_blobs(&self, owner: &str) -> std::io::Result<()> {
        if fit(owner) { self.0.blobs.forget(owner) } else { Ok(()) }
    }

    /// Owners for whom keys and values are kept.
    ///
    /// # Errors
    /// If the directory cannot be read.
    pub fn keyvalue_owners(&self) -> std::io::Result<Vec<String>> {
        self.0.databases.owners()
    }

    /// Removes what is kept for an owner.
    ///
    /// # Errors
    /// If the file cannot be removed.
    pub fn forget_keyvalue(&self, owner: &str) -> std::io::Result<()> {
        if fit(owner) { self.0.databases.forget(owner) } else { Ok(()) }
    }

    /// Counters and gauges of this moment.
    pub fn metrics(&self) -> Metrics {
        self.0.shared.metrics(self.0.programs.lock().loaded.len() as u64)
    }

    /// Adds what was counted in another process to this runtime's counters.
    pub fn count(&self, since: &Tally) {
        let counters = &self.0.shared.counters;
        counters.instances.add(since.instances);
        counters.waits.add(since.waits);
        counters.refused.add(since.refused);
        counters.requests.add(since.requests);
        counters.traps.add(since.traps);
        counters.out_of_memory.add(since.out_of_memory);
        counters.timeouts.add(since.timeouts);
        counters.over_cpu.add(since.over_cpu);
        self.0.shared.phases.instantiate.add(&since.instantiate);
    }

    /// The machine code of a program that this runtime has prepared, as a file open for reading only: for
    /// [`Isolated::load`](crate::Isolated::load) in another process. May read or write the disk.
    ///
    /// # Errors
    /// If the code is neither on disk nor to be had again.
    pub fn code(&self, program: &Program) -> std::io::Result<File> {
        if let Some(file) = self.0.cache.open_code(program.digest()) {
            return Ok(file);
        }
        let code = program.serialize().map_err(|error| std::io::Error::other(format!("{error:#}")))?;
        let mut file = File::from(memfd_create(c"code", MFdFlags::MFD_CLOEXEC)?);
        file.write_all(&code)?;
        file.rewind()?;
        Ok(file)
    }

    /// How long the steps to an instance took so far.
    pub fn phases(&self) -> &Phases {
        &self.0.shared.phases
    }

    /// Loads a program once, however many ask for it at the same time.
    async fn prepared(
        &self,
        digest: &str,
        read: impl FnOnce() -> Result<Bytes, PrepareError> + Send + 'static,
    ) -> Result<Arc<Program>, PrepareError> {
        let cell = self.0.programs.lock().cell(digest);
        let result = cell.get_or_try_init(|| self.load(digest.to_owned(), read)).await.cloned();
        drop(cell);
        self.0.programs.lock().trim(self.0.settings.max_idle_programs);
        result
    }

    async fn load(
        &self,
        digest: String,
        read: impl FnOnce() -> Result<Bytes, PrepareError> + Send + 'static,
    ) -> Result<Arc<Program>, PrepareError> {
        let inner = Arc::clone(&self.0);
        let name = digest.clone();
        if let Some(program) = blocking(move || inner.load_compiled(&name)).await? {
            return Ok(program);
        }
        // Never closed.
        let _turn = self.0.compiling.acquire().await;
        let inner = Arc::clone(&self.0);
        blocking(move || inner.compile(digest, read()?)).await
    }
}

fn all_fit(owner: &str, names: &[String]) -> Result<(), Error> {
    match std::iter::once(owner).chain(names.iter().map(String::as_str)).find(|name| !fit(name)) {
        Some(bad) => Err(Error::Name(bad.to_owned())),
        None => Ok(()),
    }
}

/// Whether a file can have that name.
fn fit(name: &str) -> bool {
    (1..=200).contains(&name.len())
        && name.starts_with(|c: char| c.is_ascii_lowercase() || c.is_ascii_digit())
        && name.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-' || c == '.')
}

impl Inner {
    fn load_compiled(&self, digest: &str) -> Result<Option<Arc<Program>>, PrepareError> {
        let started = std::time::Instant::now();
        match self.cache.load(&self.shared.engine, digest) {
            Found::Code(compiled) => {
                self.shared.counters.cache_hits.add(1);
                let program = link(&self.shared, digest.to_owned(), 0, &compiled)?;
                self.shared.phases.load.record(started.elapsed());
                Ok(Some(Arc::new(program)))
            }
            Found::Nothing => Ok(None),
            Found::Rejected => {
                self.shared.counters.cache_rejected.add(1);
                Ok(None)
            }
        }
    }

    fn compile(&self, digest: String, bytes: Bytes) -> Result<Arc<Program>, PrepareError> {
        let (size, limit) = (bytes.len() as u64, self.settings.max_program_bytes);
        if size > limit {
            return Err(PrepareError::TooLarge { size, limit });
        }
        let actual = digest_of(&bytes);
        if actual != digest {
            return Err(PrepareError::Digest { expected: digest, actual });
        }
        let started = std::time::Instant::now();
        let compiled = compile(&self.shared.engine, &bytes)?;
        self.shared.counters.compiled.add(1);
        let program = link(&self.shared, digest.clone(), size, &compiled)?;
        self.shared.phases.compile.record(started.elapsed());
        tracing::info!(%digest, size, took = ?started.elapsed(), "compiled {}", program.kind().as_str());
        if let Err(error) = self.cache.store(&digest, &compiled) {
            // The program runs all the same; it will be compiled again after a restart.
            tracing::warn!(%digest, "compiled code is not kept: {error}");
        }
        Ok(Arc::new(program))
    }
}

impl Programs {
    fn cell(&mut self, digest: &str) -> Cell {
        self.uses += 1;
        let uses = self.uses;
        let entry = self.loaded.entry(digest.to_owned()).or_default();
        entry.0 = uses;
        Arc::clone(&entry.1)
    }

    fn cell_if_present(&mut self, digest: &str) -> Option<Cell> {
        self.uses += 1;
        let entry = self.loaded.get_mut(digest)?;
        entry.0 = self.uses;
        Some(Arc::clone(&entry.1))
    }

    /// Forgets failed loads, and the least recently used programs beyond `most` that nobody holds.
    fn trim(&mut self, most: usize) {
        let busy = |cell: &Cell| Arc::strong_count(cell) > 1;
        self.loaded.retain(|_, (_, cell)| busy(cell) || cell.initialized());
        let unused =
            |cell: &Cell| !busy(cell) && cell.get().is_some_and(|program| Arc::strong_count(program) == 1);
        let idle = self.loaded.values().filter(|(_, cell)| unused(cell)).count();
        if idle <= most {
            return;
        }
        let mut idle: Vec<(u64, String)> = self
            .loaded
            .iter()
            .filter(|(_, (_, cell))| unused(cell))
            .map(|(digest, (used, _))| (*used, digest.clone()))
            .collect();
        idle.sort();
        let excess = idle.len() - most;
        for (_, digest) in idle.into_iter().take(excess) {
            self.loaded.remove(&digest);
        }
    }
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, PrepareError> + Send + 'static,
) -> Result<T, PrepareError> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) => Err(PrepareError::Compile(format!("compilation was interrupted: {error}"))),
    }
}
