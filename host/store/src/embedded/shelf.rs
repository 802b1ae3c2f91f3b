//! Checkpoints in sled databases, one directory each.
//!
//! A database is open only while it is written or read. Its own flush does not reach the disk for certain (on
//! Linux it is `sync_file_range`), so every file is synced here before a checkpoint counts.

use std::fs::{self, File};
use std::io;
use std::panic::{self, AssertUnwindSafe};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use bytes::Bytes;

use super::checkpoint::Shelf;
use crate::KeyValue;

/// Memory a database may use as its cache while open, in bytes.
const CACHE_BYTES: u64 = 16 << 20;
/// Changes handed to sled at once.
const BATCH: usize = 1024;
/// Longest wait for a database that is locked, and the time between two looks.
const LOCKED: Duration = Duration::from_secs(2);
const PAUSE: Duration = Duration::from_millis(5);
/// Bytes of the two revisions before a value.
const REVISIONS: usize = 16;

/// The checkpoints of a data directory.
pub(crate) struct SledShelf {
    dir: PathBuf,
}

impl SledShelf {
    pub(crate) fn new(dir: &Path) -> Self {
        Self { dir: dir.to_path_buf() }
    }

    fn path(&self, slot: usize) -> PathBuf {
        self.dir.join(format!("checkpoint-{slot}"))
    }

    /// A database that was closed just now may be locked a moment longer: a process that is being started holds its
    /// files until it runs a program of its own.
    fn open(&self, slot: usize) -> sled::Result<sled::Db> {
        let begun = Instant::now();
        loop {
            let config = sled::Config::new().path(self.path(slot)).cache_capacity(CACHE_BYTES);
            match config.mode(sled::Mode::LowSpace).flush_every_ms(None).open() {
                Err(error) if is_locked(&error) && begun.elapsed() < LOCKED => thread::sleep(PAUSE),
                outcome => return outcome,
            }
        }
    }

    fn update(&self, slot: usize, changes: &[(Bytes, Option<KeyValue>)]) -> sled::Result<()> {
        let db = self.open(slot)?;
        for part in changes.chunks(BATCH) {
            let mut batch = sled::Batch::default();
            for (key, kv) in part {
                match kv {
                    Some(kv) => batch.insert(&key[..], encode(kv)),
                    None => batch.remove(&key[..]),
                }
            }
            db.apply_batch(batch)?;
        }
        db.flush().map(drop)
    }
}

/// Whether somebody holds the database; sled says so in words alone.
fn is_locked(error: &sled::Error) -> bool {
    matches!(error, sled::Error::Io(error) if error.to_string().starts_with("could not acquire lock"))
}

/// Turns a panic into an error: sled has some for files it does not like, and a checkpoint is replaceable.
fn contained<T>(work: impl FnOnce() -> Result<T, String>) -> Result<T, String> {
    let result = panic::catch_unwind(AssertUnwindSafe(work));
    result.unwrap_or_else(|_| Err("sled gave up on its files".into()))
}

impl Shelf for SledShelf {
    fn write(&self, slot: usize, full: bool, changes: &[(Bytes, Option<KeyValue>)]) -> Result<(), String> {
        contained(|| self.write_slot(slot, full, changes))
    }

    fn load(&self, slot: usize) -> Result<Vec<KeyValue>, String> {
        contained(|| self.load_slot(slot))
    }
}

impl SledShelf {
    fn write_slot(
        &self,
        slot: usize,
        full: bool,
        changes: &[(Bytes, Option<KeyValue>)],
    ) -> Result<(), String> {
        let path = self.path(slot);
        if full && path.exists() {
            fs::remove_dir_all(&path).map_err(|error| error.to_string())?;
        }
        self.update(slot, changes).map_err(|error| error.to_string())?;
        sync_all(&path).and_then(|()| File::open(&self.dir)?.sync_all()).map_err(|error| error.to_string())
    }

    fn load_slot(&self, slot: usize) -> Result<Vec<KeyValue>, String> {
        if !self.path(slot).exists() {
            return Err("its directory is missing".into());
        }
        let db = self.open(slot).map_err(|error| error.to_string())?;
        let decode = |(key, value): (sled::IVec, sled::IVec)| {
            decode(&key, &value).ok_or_else(|| "an entry is too short".to_string())
        };
        db.iter().map(|item| item.map_err(|error| error.to_string()).and_then(decode)).collect()
    }
}

fn encode(kv: &KeyValue) -> Vec<u8> {
    let mut out = Vec::with_capacity(REVISIONS + kv.value.len());
    out.extend_from_slice(&kv.create_revision.to_le_bytes());
    out.extend_from_slice(&kv.mod_revision.to_le_bytes());
    out.extend_from_slice(&kv.value);
    out
}

fn decode(key: &[u8], data: &[u8]) -> Option<KeyValue> {
    let (create, rest) = data.split_first_chunk()?;
    let (modified, value) = rest.split_first_chunk()?;
    Some(KeyValue {
        key: Bytes::copy_from_slice(key),
        value: Bytes::copy_from_slice(value),
        create_revision: u64::from_le_bytes(*create),
        mod_revision: u64::from_le_bytes(*modified),
    })
}

/// Syncs every file and directory below `dir`.
fn sync_all(dir: &Path) -> io::Result<()> {
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            sync_all(&entry.path())?;
        } else {
            match File::open(entry.path()) {
                // sled renames and removes its own snapshots in the background.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                file => file?.sync_all()?,
            }
        }
    }
    File::open(dir)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kv(key: &str, value: &str, revision: u64) -> (Bytes, Option<KeyValue>) {
        let key = Bytes::copy_from_slice(key.as_bytes());
        let value = Bytes::copy_from_slice(value.as_bytes());
        (key.clone(), Some(KeyValue { key, value, create_revision: 2, mod_revision: revision }))
    }

    #[test]
    fn holds_what_was_written_in_full_and_after() {
        let dir = tempfile::tempdir().unwrap();
        let shelf = SledShelf::new(dir.path());
        assert!(shelf.load(0).is_err(), "no checkpoint yet");
        shelf.write(0, true, &[kv("a", "1", 2), kv("b", "", 3)]).unwrap();
        shelf.write(0, false, &[kv("c", "3", 5), ("a".into(), None)]).unwrap();
        let expected: Vec<KeyValue> =
            [kv("b", "", 3), kv("c", "3", 5)].into_iter().filter_map(|(_, kv)| kv).collect();
        assert_eq!(shelf.load(0).unwrap(), expected);
        shelf.write(0, true, &[kv("z", "9", 9)]).unwrap();
        assert_eq!(shelf.load(0).unwrap().len(), 1);
        assert!(shelf.load(1).is_err(), "the other slot is apart");
    }

    #[test]
    fn waits_for_a_database_that_is_being_closed() {
        let dir = tempfile::tempdir().unwrap();
        let shelf = SledShelf::new(dir.path());
        let open = shelf.open(0).unwrap();
        let closing = thread::spawn(move || {
            thread::sleep(PAUSE * 10);
            drop(open);
        });
        shelf.write(0, false, &[kv("a", "1", 2)]).unwrap();
        closing.join().unwrap();
    }
}
