//! Keys and values that guests keep beyond a request, of each owner a database of its own.
//!
//! A database is in memory while a guest has it, and a log on disk: a change is in the log before the guest hears
//! of it, so it outlives the program, and reaches the disk within [`SYNC_AFTER`]. The log is written anew when
//! most of it is out of date.

use std::collections::{BTreeMap, HashMap};
use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, Read, Write};
use std::ops::Bound;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::OnceCell;

use crate::log_record::{Record, read, write};

/// Longest key, in bytes.
pub(crate) const MAX_KEY: usize = 1024;
/// Longest value, in bytes.
pub(crate) const MAX_VALUE: usize = 1 << 20;
/// Most bytes of one owner's keys and values, each with [`ENTRY`] on top.
pub(crate) const MAX_OWNER: u64 = 16 << 20;
/// Most bytes of all owners' keys and values that are in memory.
pub(crate) const MAX_LOADED: u64 = 256 << 20;
/// Keys told at a time.
pub(crate) const PAGE: usize = 256;
/// What an entry costs besides its key and value.
const ENTRY: u64 = 64;
/// Out of date parts of a log that are not worth the work.
const SLACK: u64 = 1 << 20;
/// Longest time until a change is on the disk.
const SYNC_AFTER: Duration = Duration::from_secs(1);
const SUFFIX: &str = ".keyvalue";

/// Why a guest's wish was not done.
#[derive(Debug, thiserror::Error)]
pub(crate) enum KeyValueError {
    #[error("a key has 1 to {MAX_KEY} bytes, this one has {0}")]
    Key(usize),
    #[error("a value has at most {MAX_VALUE} bytes, this one has {0}")]
    Value(usize),
    #[error("the keys and values of this namespace would take more than {MAX_OWNER} bytes")]
    OwnerFull,
    #[error("the keys and values in this machine's memory would take more than {MAX_LOADED} bytes")]
    MachineFull,
    #[error("the value is no decimal number that can be added to")]
    NoNumber,
    #[error("a call is about at most 1000 keys, this one about {0}")]
    Batch(usize),
    /// What the process that keeps them says.
    #[error("{0}")]
    Elsewhere(String),
    #[error("the database is gone")]
    Gone,
    #[error("the database cannot be used: {0}")]
    Io(#[from] io::Error),
}

/// All databases of a runtime.
pub(crate) struct Databases {
    dir: PathBuf,
    open: Mutex<HashMap<String, Weak<Database>>>,
    loaded: Arc<AtomicU64>,
}

impl Databases {
    pub(crate) fn new(dir: PathBuf) -> Self {
        Self { dir, open: Mutex::default(), loaded: Arc::default() }
    }

    /// The database of an owner; nothing is read or made before a guest opens a store. The same for all who ask
    /// while somebody has it.
    pub(crate) fn get(&self, owner: &str) -> Arc<Database> {
        let mut open = self.open.lock();
        if let Some(database) = open.get(owner).and_then(Weak::upgrade) {
            return database;
        }
        open.retain(|_, database| database.strong_count() > 0);
        let path = self.path(owner);
        let database = Arc::new(Database { path, loaded: Arc::clone(&self.loaded), state: OnceCell::new() });
        open.insert(owner.to_owned(), Arc::downgrade(&database));
        database
    }

    /// Owners that have a database on disk.
    pub(crate) fn owners(&self) -> io::Result<Vec<String>> {
        let entries = match std::fs::read_dir(&self.dir) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries?,
        };
        let names = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
        Ok(names.filter_map(|name| name.strip_suffix(SUFFIX).map(str::to_owned)).collect())
    }

    /// Removes what an owner kept. Guests that have it open are told so from now on.
    pub(crate) fn forget(&self, owner: &str) -> io::Result<()> {
        let open = self.open.lock().remove(owner).and_then(|database| database.upgrade());
        if let Some(state) = open.as_ref().and_then(|database| database.state.get()) {
            state.lock().gone = true;
        }
        match std::fs::remove_file(self.path(owner)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }

    fn path(&self, owner: &str) -> PathBuf {
        self.dir.join(format!("{owner}{SUFFIX}"))
    }
}

/// What one owner keeps.
pub(crate) struct Database {
    path: PathBuf,
    loaded: Arc<AtomicU64>,
    state: OnceCell<Mutex<State>>,
}

struct State {
    stores: Stores,
    log: Arc<File>,
    /// Bytes of the log, and those of them that are up to date.
    written: u64,
    live: u64,
    sync_planned: bool,
    gone: bool,
}

type Stores = BTreeMap<String, BTreeMap<String, Vec<u8>>>;

impl Database {
    /// Reads the log unless it was read already.
    pub(crate) async fn load(&self) -> Result<(), KeyValueError> {
        let load = || async {
            let path = self.path.clone();
            let task = tokio::task::spawn_blocking(move || State::load(&path));
            let state = task.await.map_err(io::Error::other)??;
            let before = self.loaded.fetch_add(state.live, Ordering::Relaxed);
            if before + state.live > MAX_LOADED {
                self.loaded.fetch_sub(state.live, Ordering::Relaxed);
                return Err(KeyValueError::MachineFull);
            }
            Ok(Mutex::new(state))
        };
        self.state.get_or_try_init(load).await.map(drop)
    }

    fn state(&self) -> Result<parking_lot::MutexGuard<'_, State>, KeyValueError> {
        let state = self.state.get().ok_or(KeyValueError::Gone)?.lock();
        if state.gone { Err(KeyValueError::Gone) } else { Ok(state) }
    }

    pub(crate) fn get(&self, store: &str, key: &str) -> Result<Option<Vec<u8>>, KeyValueError> {
        Ok(self.state()?.get(store, key).cloned())
    }

    pub(crate) fn exists(&self, store: &str, key: &str) -> Result<bool, KeyValueError> {
        Ok(self.state()?.get(store, key).is_some())
    }

    pub(crate) fn set(self: &Arc<Self>, store: &str, key: &str, value: Vec<u8>) -> Result<(), KeyValueError> {
        self.update(store, key, |_| Ok(Some(value)))
    }

    pub(crate) fn delete(self: &Arc<Self>, store: &str, key: &str) -> Result<(), KeyValueError> {
        let mut state = self.state()?;
        if state.get(store, key).is_none() {
            return Ok(());
        }
        let freed = state.remove(store, key)?;
        self.loaded.fetch_sub(freed, Ordering::Relaxed);
        self.after_change(&mut state)
    }

    /// At most [`PAGE`] keys in order, those after `after`; whether there are more.
    pub(crate) fn keys(
        &self,
        store: &str,
        after: Option<&str>,
    ) -> Result<(Vec<String>, bool), KeyValueError> {
        let state = self.state()?;
        let Some(entries) = state.stores.get(store) else {
            return Ok((Vec::new(), false));
        };
        let from = after.map_or(Bound::Unbounded, Bound::Excluded);
        let mut rest = entries.range::<str, _>((from, Bound::Unbounded)).map(|(key, _)| key.clone());
        let keys = rest.by_ref().take(PAGE).collect();
        Ok((keys, rest.next().is_some()))
    }

    /// At most [`PAGE`] keys in order, without the first `skip`; whether there are more.
    pub(crate) fn keys_from(&self, store: &str, skip: u64) -> Result<(Vec<String>, bool), KeyValueError> {
        let state = self.state()?;
        let Some(entries) = state.stores.get(store) else {
            return Ok((Vec::new(), false));
        };
        let mut rest = entries.keys().skip(usize::try_from(skip).unwrap_or(usize::MAX)).cloned();
        let keys = rest.by_ref().take(PAGE).collect();
        Ok((keys, rest.next().is_some()))
    }

    /// Adds to a decimal number; a key that is not there counts as 0.
    pub(crate) fn add(self: &Arc<Self>, store: &str, key: &str, delta: i64) -> Result<i64, KeyValueError> {
        let mut sum = 0;
        self.update(store, key, |value| {
            let before = match value {
                Some(value) => std::str::from_utf8(value).ok().and_then(|text| text.parse::<i64>().ok()),
                None => Some(0),
            };
            sum = before.and_then(|n| n.checked_add(delta)).ok_or(KeyValueError::NoNumber)?;
            Ok(Some(sum.to_string().into_bytes()))
        })?;
        Ok(sum)
    }

    /// Sets a value if the key still has the one that was seen; otherwise what it has now.
    #[allow(clippy::type_complexity, reason = "the inner result is the answer, the outer the failure")]
    pub(crate) fn swap(
        self: &Arc<Self>,
        store: &str,
        key: &str,
        seen: Option<&[u8]>,
        value: Vec<u8>,
    ) -> Result<Result<(), Option<Vec<u8>>>, KeyValueError> {
        let mut other = None;
        self.update(store, key, |now| {
            if now == seen {
                return Ok(Some(value));
            }
            other = Some(now.map(<[u8]>::to_vec));
            Ok(None)
        })?;
        Ok(other.map_or(Ok(()), Err))
    }

    /// Sets what `change` makes of the value; `None` leaves it as it is.
    fn update(
        self: &Arc<Self>,
        store: &str,
        key: &str,
        change: impl FnOnce(Option<&[u8]>) -> Result<Option<Vec<u8>>, KeyValueError>,
    ) -> Result<(), KeyValueError> {
        if key.is_empty() || key.len() > MAX_KEY {
            return Err(KeyValueError::Key(key.len()));
        }
        let mut state = self.state()?;
        let Some(value) = change(state.get(store, key).map(Vec::as_slice))? else {
            return Ok(());
        };
        if value.len() > MAX_VALUE {
            return Err(KeyValueError::Value(value.len()));
        }
        let old = state.get(store, key).map_or(0, |old| cost(key, old));
        let new = cost(key, &value);
        if new > old && state.live - old + new > MAX_OWNER {
            return Err(KeyValueError::OwnerFull);
        }
        if new > old && self.loaded.fetch_add(new - old, Ordering::Relaxed) + (new - old) > MAX_LOADED {
            self.loaded.fetch_sub(new - old, Ordering::Relaxed);
            return Err(KeyValueError::MachineFull);
        }
        if let Err(error) = state.put(store, key, value) {
            self.loaded.fetch_sub(new.saturating_sub(old), Ordering::Relaxed);
            return Err(error.into());
        }
        self.loaded.fetch_sub(old.saturating_sub(new), Ordering::Relaxed);
        self.after_change(&mut state)
    }

    /// Plans to have the log on the disk soon, and writes it anew when it has grown. Whoever does that pays for
    /// at least as many bytes as were written since the last time.
    fn after_change(self: &Arc<Self>, state: &mut State) -> Result<(), KeyValueError> {
        if state.written > 2 * state.live + SLACK {
            state.compact(&self.path)?;
        }
        if !std::mem::replace(&mut state.sync_planned, true) {
            let this = Arc::clone(self);
            tokio::spawn(async move {
                tokio::time::sleep(SYNC_AFTER).await;
                // What cannot be written to the disk now is tried again with the next change.
                let _ = tokio::task::spawn_blocking(move || this.sync()).await;
            });
        }
        Ok(())
    }

    fn sync(&self) {
        let Ok(log) = self.state().map(|mut state| {
            state.sync_planned = false;
            Arc::clone(&state.log)
        }) else {
            return;
        };
        if let Err(error) = log.sync_data() {
            tracing::warn!("{} is not on the disk: {error}", self.path.display());
        }
    }
}

impl Drop for Database {
    fn drop(&mut self) {
        if let Some(state) = self.state.get() {
            self.loaded.fetch_sub(state.lock().live, Ordering::Relaxed);
        }
    }
}

fn cost(key: &str, value: &[u8]) -> u64 {
    ENTRY + (key.len() + value.len()) as u64
}

impl State {
    fn load(path: &Path) -> io::Result<Self> {
        if let Some(dir) = path.parent() {
            DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
        }
        let mut log = OpenOptions::new().read(true).append(true).create(true).mode(0o600).open(path)?;
        let mut bytes = Vec::new();
        log.read_to_end(&mut bytes)?;
        let mut stores = Stores::new();
        let mut written = 0;
        while let Some((record, length)) = read(&bytes[written..]) {
            written += length;
            let entries = stores.entry(record.store.to_owned()).or_default();
            match record.value {
                Some(value) => entries.insert(record.key.to_owned(), value.to_vec()),
                None => entries.remove(record.key),
            };
        }
        if written < bytes.len() {
            // The last change was cut short, and nobody was told that it is done.
            tracing::warn!("{}: {} bytes at the end are no change", path.display(), bytes.len() - written);
            log.set_len(written as u64)?;
        }
        let live = stores.values().flatten().map(|(key, value)| cost(key, value)).sum();
        let written = written as u64;
        Ok(Self { stores, log: Arc::new(log), written, live, sync_planned: false, gone: false })
    }

    fn get(&self, store: &str, key: &str) -> Option<&Vec<u8>> {
        self.stores.get(store)?.get(key)
    }

    fn put(&mut self, store: &str, key: &str, value: Vec<u8>) -> io::Result<()> {
        self.append(&Record { store, key, value: Some(&value) })?;
        self.live += cost(key, &value);
        let entries = self.stores.entry(store.to_owned()).or_default();
        if let Some(old) = entries.insert(key.to_owned(), value) {
            self.live -= cost(key, &old);
        }
        Ok(())
    }

    /// Removes an entry; what it cost.
    fn remove(&mut self, store: &str, key: &str) -> io::Result<u64> {
        self.append(&Record { store, key, value: None })?;
        let old = self.stores.get_mut(store).and_then(|entries| entries.remove(key));
        let freed = old.map_or(0, |old| cost(key, &old));
        self.live -= freed;
        Ok(freed)
    }

    fn append(&mut self, record: &Record<'_>) -> io::Result<()> {
        let mut bytes = Vec::new();
        write(record, &mut bytes);
        if let Err(error) = (&*self.log).write_all(&bytes) {
            // Half a record would hide all that come after it.
            self.log.set_len(self.written)?;
            return Err(error);
        }
        self.written += bytes.len() as u64;
        Ok(())
    }

    fn compact(&mut self, path: &Path) -> io::Result<()> {
        let mut bytes = Vec::new();
        for (store, entries) in &self.stores {
            for (key, value) in entries {
                write(&Record { store, key, value: Some(value) }, &mut bytes);
            }
        }
        let fresh = path.with_extension("new");
        let _ = std::fs::remove_file(&fresh);
        let file = OpenOptions::new().append(true).create_new(true).mode(0o600).open(&fresh)?;
        (&file).write_all(&bytes)?;
        file.sync_data()?;
        std::fs::rename(&fresh, path)?;
        self.stores.retain(|_, entries| !entries.is_empty());
        (self.log, self.written) = (Arc::new(file), bytes.len() as u64);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn open(databases: &Databases) -> Arc<Database> {
        let database = databases.get("shop.1");
        database.load().await.unwrap();
        database
    }

    #[tokio::test]
    async fn changes_outlive_the_database() {
        let dir = tempfile::tempdir().unwrap();
        let databases = Databases::new(dir.path().join("kv"));
        let first = open(&databases).await;
        first.set("s", "a", b"1".to_vec()).unwrap();
        first.set("s", "b", b"2".to_vec()).unwrap();
        first.set("t", "a", b"other".to_vec()).unwrap();
        first.delete("s", "b").unwrap();
        first.delete("s", "never").unwrap();
        assert_eq!(first.add("s", "a", 41).unwrap(), 42);
        assert_eq!(first.add("s", "new", -1).unwrap(), -1);
        drop(first);
        // A planned write to the disk may still have it; a fresh set of databases reads the log.
        let again = Databases::new(dir.path().join("kv"));
        let second = open(&again).await;
        assert_eq!(second.get("s", "a").unwrap().as_deref(), Some(&b"42"[..]));
        assert_eq!(second.keys("s", None).unwrap(), (vec!["a".into(), "new".into()], false));
        assert!(!second.exists("s", "b").unwrap() && second.exists("t", "a").unwrap());
        assert_eq!(again.owners().unwrap(), ["shop.1"]);
    }

    #[tokio::test]
    async fn half_a_change_is_none() {
        let dir = tempfile::tempdir().unwrap();
        let databases = Databases::new(dir.path().into());
        open(&databases).await.set("s", "a", b"whole".to_vec()).unwrap();
        let path = dir.path().join("shop.1.keyvalue");
        let mut log = OpenOptions::new().append(true).open(&path).unwrap();
        log.write_all(&[7; 20]).unwrap();
        let again = Databases::new(dir.path().into());
        let database = open(&again).await;
        database.set("s", "b", b"after".to_vec()).unwrap();
        let third = Databases::new(dir.path().into());
        let database = open(&third).await;
        assert_eq!(database.keys("s", None).unwrap().0, ["a", "b"]);
    }

    #[tokio::test]
    async fn a_log_does_not_grow_with_changes() {
        let dir = tempfile::tempdir().unwrap();
        let databases = Databases::new(dir.path().into());
        let database = open(&databases).await;
        for n in 0..400_u32 {
            database.set("s", "same", vec![n as u8; 64 << 10]).unwrap();
        }
        let size = std::fs::metadata(dir.path().join("shop.1.keyvalue")).unwrap().len();
        assert!(size < 2 * SLACK, "{size}");
        assert_eq!(database.get("s", "same").unwrap().unwrap()[0], 399_u32 as u8);
    }

    #[tokio::test]
    async fn bounds_are_kept_and_named() {
        let dir = tempfile::tempdir().unwrap();
        let databases = Databases::new(dir.path().into());
        let database = open(&databases).await;
        let fails = |key: &str, size: usize| database.set("s", key, vec![0; size]).unwrap_err().to_string();
        assert!(fails("", 1).contains("this one has 0"));
        assert!(fails(&"k".repeat(MAX_KEY + 1), 1).contains("1025"));
        assert!(fails("k", MAX_VALUE + 1).contains("1048577"));
        for n in 0..15 {
            database.set("s", &format!("k{n}"), vec![0; MAX_VALUE]).unwrap();
        }
        assert!(matches!(database.set("s", "last", vec![0; MAX_VALUE]), Err(KeyValueError::OwnerFull)));
        database.delete("s", "k0").unwrap();
        database.set("s", "last", vec![0; MAX_VALUE]).unwrap();
        database.set("s", "text", b"abc".to_vec()).unwrap();
        assert!(matches!(database.add("s", "text", 1), Err(KeyValueError::NoNumber)));
    }

    #[tokio::test]
    async fn a_swap_needs_what_was_seen_and_keys_come_in_pages() {
        let dir = tempfile::tempdir().unwrap();
        let databases = Databases::new(dir.path().into());
        let database = open(&databases).await;
        assert_eq!(database.swap("s", "k", None, b"1".to_vec()).unwrap(), Ok(()));
        assert_eq!(database.swap("s", "k", None, b"2".to_vec()).unwrap(), Err(Some(b"1".to_vec())));
        assert_eq!(database.swap("s", "k", Some(b"1"), b"2".to_vec()).unwrap(), Ok(()));
        for n in 0..PAGE {
            database.set("p", &format!("{n:04}"), Vec::new()).unwrap();
        }
        database.set("p", "z", Vec::new()).unwrap();
        let (page, more) = database.keys("p", None).unwrap();
        assert!(more && page.len() == PAGE);
        assert_eq!(database.keys("p", page.last().map(String::as_str)).unwrap(), (vec!["z".into()], false));
    }

    #[tokio::test]
    async fn what_is_forgotten_is_gone_for_those_who_have_it() {
        let dir = tempfile::tempdir().unwrap();
        let databases = Databases::new(dir.path().into());
        let database = open(&databases).await;
        database.set("s", "a", b"1".to_vec()).unwrap();
        databases.forget("shop.1").unwrap();
        assert!(matches!(database.get("s", "a"), Err(KeyValueError::Gone)));
        assert!(databases.owners().unwrap().is_empty());
        assert_eq!(open(&databases).await.get("s", "a").unwrap(), None);
    }
}
