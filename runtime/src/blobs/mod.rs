//! Objects that guests keep beyond a request, in containers, of each owner on its own.
//!
//! What there is stands in a [`Database`] of keys and values; an object's bytes are a file that is written once, on
//! the disk before the object is there, and never changed. Files that no object has are removed when an owner's
//! objects are first used.

mod handles;
mod wish;

use std::collections::{HashMap, HashSet};
use std::fs::{DirBuilder, File, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::PathBuf;
use std::sync::{Arc, Weak};
use std::time::{SystemTime, UNIX_EPOCH};

use parking_lot::{Mutex, MutexGuard};
use tokio::sync::OnceCell;

pub(crate) use self::handles::{Handles, MAX_PIECE};
pub use self::wish::{BlobTold, BlobWish};
use crate::keyvalue::{Database, Databases, KeyValueError, MAX_KEY};

/// Longest name of an object, in bytes.
pub(crate) const MAX_NAME: usize = MAX_KEY;
/// Most bytes of an object.
pub(crate) const MAX_OBJECT: u64 = 64 << 20;
/// Most bytes of all objects of an owner, those that are being written among them.
pub(crate) const MAX_OWNER: u64 = 512 << 20;
/// Most objects of an owner.
pub(crate) const MAX_OBJECTS: u64 = 10_000;
/// Most containers of an owner.
pub(crate) const MAX_CONTAINERS: u64 = 256;
/// Most names in one list.
pub(crate) const PAGE: usize = 256;
/// Most objects that one call removes.
pub(crate) const MAX_BATCH: usize = 1000;
/// Where the containers are in an index; none of them can be called that.
const CONTAINERS: &str = ".containers";
/// Longest name of a container, in bytes.
const MAX_CONTAINER: usize = 63;

/// Why a guest's wish was not done.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BlobError {
    #[error("container {0} was not given to this guest")]
    NotGiven(String),
    #[error("container {0} does not exist")]
    NoContainer(String),
    #[error("container {0} is there already")]
    Exists(String),
    #[error("object {object} does not exist in container {container}")]
    NoObject { container: String, object: String },
    #[error("an object's name has 1 to {MAX_NAME} bytes, this one has {0}")]
    Name(usize),
    #[error("an object has at most {MAX_OBJECT} bytes")]
    TooLong,
    #[error("the objects of this namespace would take more than {MAX_OWNER} bytes")]
    OwnerFull,
    #[error("this namespace has {MAX_OBJECTS} objects, which is the most")]
    Objects,
    #[error("this namespace has {MAX_CONTAINERS} containers, which is the most")]
    Containers,
    #[error("a call is about at most {MAX_BATCH} objects, this one about {0}")]
    Batch(usize),
    #[error("the range from {first} to {last} is not in an object of {size} bytes")]
    Range { first: u64, last: u64, size: u64 },
    #[error("a guest reads and writes at most {0} objects at a time")]
    Handles(usize),
    #[error("a write of this object has failed before")]
    Broken,
    #[error("what is read or written there is over")]
    NoHandle,
    #[error("{0}")]
    Index(#[from] KeyValueError),
    #[error("the objects cannot be used: {0}")]
    Io(#[from] io::Error),
}

type Result<T, E = BlobError> = std::result::Result<T, E>;

/// All owners' objects.
pub(crate) struct Stores {
    dir: PathBuf,
    indexes: Databases,
    open: Mutex<HashMap<String, Weak<Store>>>,
}

impl Stores {
    pub(crate) fn new(dir: PathBuf) -> Self {
        Self { indexes: Databases::new(dir.clone()), dir, open: Mutex::default() }
    }

    /// The objects of an owner; nothing is read or made before they are used. The same for all who ask while
    /// somebody has them.
    pub(crate) fn get(&self, owner: &str) -> Arc<Store> {
        let mut open = self.open.lock();
        if let Some(store) = open.get(owner).and_then(Weak::upgrade) {
            return store;
        }
        open.retain(|_, store| store.strong_count() > 0);
        let (index, dir) = (self.indexes.get(owner), self.dir.join(owner));
        let store = Arc::new(Store { index, dir, state: OnceCell::new() });
        open.insert(owner.to_owned(), Arc::downgrade(&store));
        store
    }

    /// Owners that have something on disk.
    pub(crate) fn owners(&self) -> io::Result<Vec<String>> {
        self.indexes.owners()
    }

    /// Removes what an owner kept. Guests that have it open are told so from now on.
    pub(crate) fn forget(&self, owner: &str) -> io::Result<()> {
        self.open.lock().remove(owner);
        // What is lost between the two is found by nobody.
        self.indexes.forget(owner)?;
        match std::fs::remove_dir_all(self.dir.join(owner)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }
}

/// What one owner keeps.
pub(crate) struct Store {
    index: Arc<Database>,
    dir: PathBuf,
    state: OnceCell<Mutex<State>>,
}

#[derive(Default)]
struct State {
    bytes: u64,
    objects: u64,
    containers: u64,
    /// The last file's number.
    last: u64,
}

/// An object, as the index has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Entry {
    file: u64,
    pub(crate) size: u64,
    /// Seconds since 1970.
    pub(crate) created: u64,
}

impl Entry {
    fn bytes(self) -> Vec<u8> {
        [self.file, self.size, self.created].iter().flat_map(|number| number.to_le_bytes()).collect()
    }

    fn read(bytes: &[u8]) -> Option<Self> {
        let number = |at: usize| Some(u64::from_le_bytes(bytes.get(at..at + 8)?.try_into().ok()?));
        Some(Self { file: number(0)?, size: number(8)?, created: number(16)? })
    }
}

impl Store {
    /// Reads what there is unless that was done already.
    pub(crate) async fn load(self: &Arc<Self>) -> Result<()> {
        self.index.load().await?;
        let load = || async {
            let this = Arc::clone(self);
            let task = tokio::task::spawn_blocking(move || this.read()).await;
            Ok::<_, BlobError>(Mutex::new(task.map_err(io::Error::other)??))
        };
        self.state.get_or_try_init(load).await.map(drop)
    }

    fn read(&self) -> Result<State> {
        DirBuilder::new().recursive(true).mode(0o700).create(&self.dir)?;
        let mut state = State::default();
        let mut used = HashSet::new();
        for container in all_keys(&self.index, CONTAINERS)? {
            state.containers += 1;
            for object in all_keys(&self.index, &container)? {
                if let Some(entry) = self.entry(&container, &object)? {
                    state.bytes += entry.size;
                    state.objects += 1;
                    used.insert(entry.file);
                }
            }
        }
        for file in std::fs::read_dir(&self.dir)? {
            let name = file?.file_name();
            let Some(number) = name.to_str().and_then(|name| name.parse().ok()) else { continue };
            state.last = state.last.max(number);
            if !used.contains(&number) {
                // Its object was never finished, or had been removed.
                std::fs::remove_file(self.path(number))?;
            }
        }
        Ok(state)
    }

    fn state(&self) -> Result<MutexGuard<'_, State>> {
        Ok(self.state.get().ok_or(KeyValueError::Gone)?.lock())
    }

    fn path(&self, file: u64) -> PathBuf {
        self.dir.join(file.to_string())
    }

    fn entry(&self, container: &str, object: &str) -> Result<Option<Entry>> {
        Ok(self.index.get(container, object)?.as_deref().and_then(Entry::read))
    }

    /// When a container was made, if it is there.
    pub(crate) fn container(&self, name: &str) -> Result<Option<u64>> {
        let created = self.index.get(CONTAINERS, name)?;
        Ok(created.and_then(|bytes| Some(u64::from_le_bytes(bytes.try_into().ok()?))))
    }

    fn need(&self, container: &str) -> Result<u64> {
        self.container(container)?.ok_or_else(|| BlobError::NoContainer(container.to_owned()))
    }

    pub(crate) fn create(&self, container: &str) -> Result<u64> {
        let mut state = self.state()?;
        if self.container(container)?.is_some() {
            return Err(BlobError::Exists(container.to_owned()));
        }
        if state.containers >= MAX_CONTAINERS || container.len() > MAX_CONTAINER {
            return Err(BlobError::Containers);
        }
        let created = now();
        self.index.set(CONTAINERS, container, created.to_le_bytes().to_vec())?;
        state.containers += 1;
        Ok(created)
    }

    /// Removes all objects of a container; and the container, if that is wished.
    pub(crate) fn clear(&self, container: &str, whole: bool) -> Result<()> {
        let mut state = self.state()?;
        self.need(container)?;
        for object in all_keys(&self.index, container)? {
            self.remove(&mut state, container, &object)?;
        }
        if whole {
            self.index.delete(CONTAINERS, container)?;
            state.containers -= 1;
        }
        Ok(())
    }

    /// Removes objects; those that are not there are no error.
    pub(crate) fn delete(&self, container: &str, objects: &[String]) -> Result<()> {
        if objects.len() > MAX_BATCH {
            return Err(BlobError::Batch(objects.len()));
        }
        let mut state = self.state()?;
        self.need(container)?;
        objects.iter().try_for_each(|object| self.remove(&mut state, container, object))
    }

    fn remove(&self, state: &mut State, container: &str, object: &str) -> Result<()> {
        let Some(entry) = self.entry(container, object)? else { return Ok(()) };
        self.index.delete(container, object)?;
        state.objects -= 1;
        self.drop_file(state, entry);
        Ok(())
    }

    fn drop_file(&self, state: &mut State, entry: Entry) {
        state.bytes -= entry.size;
        // A file that stays is removed when the objects are read next.
        if let Err(error) = std::fs::remove_file(self.path(entry.file)) {
            tracing::warn!("{}: {error}", self.path(entry.file).display());
        }
    }

    pub(crate) fn object(&self, container: &str, object: &str) -> Result<Option<Entry>> {
        self.need(container)?;
        self.entry(container, object)
    }

    /// At most `most` names in order, those after `after`; whether there are more.
    pub(crate) fn objects(
        &self,
        container: &str,
        after: Option<&str>,
        most: usize,
    ) -> Result<(Vec<String>, bool)> {
        self.need(container)?;
        let (mut names, more) = self.index.keys(container, after)?;
        let all = names.len();
        names.truncate(most.min(PAGE));
        Ok((names, more || all > most.min(PAGE)))
    }

    /// An object's file, and how many bytes there are from the first to the last that are wanted.
    pub(crate) fn open(&self, container: &str, object: &str, first: u64, last: u64) -> Result<(File, u64)> {
        // Between the two the object might be replaced.
        let _state = self.state()?;
        let entry = self.object(container, object)?;
        let missing = || BlobError::NoObject { container: container.to_owned(), object: object.to_owned() };
        let Entry { file, size, .. } = entry.ok_or_else(missing)?;
        if first > last || (first >= size && first > 0) {
            return Err(BlobError::Range { first, last, size });
        }
        let file = File::open(self.path(file))?;
        let length = if size == 0 { 0 } else { last.min(size - 1) - first + 1 };
        Ok((file, length))
    }

    /// An empty file for an object to come.
    fn begin(&self) -> Result<(File, u64)> {
        let number = {
            let mut state = self.state()?;
            state.last += 1;
            state.last
        };
        let mut options = OpenOptions::new();
        let file = options.write(true).create_new(true).mode(0o600).open(self.path(number))?;
        Ok((file, number))
    }

    /// Makes room for bytes of an object to come.
    fn reserve(&self, bytes: u64) -> Result<()> {
        let mut state = self.state()?;
        if state.bytes + bytes > MAX_OWNER {
            return Err(BlobError::OwnerFull);
        }
        state.bytes += bytes;
        Ok(())
    }

    fn abandon(&self, file: u64, bytes: u64) {
        // It may be gone with its owner.
        let _ = std::fs::remove_file(self.path(file));
        if let Ok(mut state) = self.state() {
            state.bytes -= bytes;
        }
    }

    /// Has a file, whose bytes are counted already, be an object, in place of what was there.
    fn put(&self, state: &mut State, container: &str, object: &str, file: u64, size: u64) -> Result<()> {
        if object.is_empty() || object.len() > MAX_NAME {
            return Err(BlobError::Name(object.len()));
        }
        self.need(container)?;
        let old = self.entry(container, object)?;
        if old.is_none() && state.objects >= MAX_OBJECTS {
            return Err(BlobError::Objects);
        }
        self.index.set(container, object, Entry { file, size, created: now() }.bytes())?;
        match old {
            Some(old) => self.drop_file(state, old),
            None => state.objects += 1,
        }
        Ok(())
    }

    /// Copies or moves an object. The copy shares the file, which never changes, and counts in full.
    pub(crate) fn copy(&self, from: (&str, &str), to: (&str, &str), keep: bool) -> Result<()> {
        let mut state = self.state()?;
        let missing = || BlobError::NoObject { container: from.0.to_owned(), object: from.1.to_owned() };
        let entry = self.object(from.0, from.1)?.ok_or_else(missing)?;
        if from == to {
            return Ok(());
        }
        if keep && state.bytes + entry.size > MAX_OWNER {
            return Err(BlobError::OwnerFull);
        }
        state.last += 1;
        let file = state.last;
        std::fs::hard_link(self.path(entry.file), self.path(file))?;
        state.bytes += entry.size;
        if let Err(error) = self.put(&mut state, to.0, to.1, file, entry.size) {
            self.drop_file(&mut state, Entry { file, ..entry });
            return Err(error);
        }
        if keep { Ok(()) } else { self.remove(&mut state, from.0, from.1) }
    }
}

fn all_keys(index: &Database, store: &str) -> Result<Vec<String>> {
    let mut all: Vec<String> = Vec::new();
    loop {
        let (page, more) = index.keys(store, all.last().map(String::as_str))?;
        all.extend(page);
        if !more {
            return Ok(all);
        }
    }
}

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

#[cfg(test)]
mod tests;
