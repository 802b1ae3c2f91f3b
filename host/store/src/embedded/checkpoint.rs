//! Checkpoints keep the log short: the state as of one revision, after which older segments can go.
//!
//! There are two, written in turn, each only with what changed since it was written last. The log reaches back to
//! the older one, so when the newer proves damaged nothing is lost. They are written off the write path, and a
//! checkpoint counts only once the file `checkpoints` names it with the number of keys and the sum it must have.

use std::collections::HashSet;
use std::sync::Arc;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::disk::{self, Disk};
use super::log::segment_name;
use crate::mvcc::{Change, State};
use crate::{Error, KeyValue, Revision};

/// Number of checkpoints.
pub(crate) const SLOTS: usize = 2;
/// Most changed keys remembered per checkpoint; beyond, it is written in full.
const MAX_CHANGED: usize = 1 << 20;
const MANIFEST: &str = "checkpoints";

/// Where checkpoints are kept.
pub(crate) trait Shelf: Send + Sync + 'static {
    /// Brings a checkpoint up to date, durably: all of it (`full`), or these keys only.
    fn write(&self, slot: usize, full: bool, changes: &[(Bytes, Option<KeyValue>)]) -> Result<(), String>;
    /// Everything a checkpoint holds.
    fn load(&self, slot: usize) -> Result<Vec<KeyValue>, String>;
}

/// A checkpoint and what it must hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct SlotInfo {
    pub(crate) slot: usize,
    pub(crate) revision: Revision,
    pub(crate) keys: u64,
    pub(crate) digest: u64,
}

/// The checkpoints that are complete.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Manifest {
    slots: Vec<SlotInfo>,
}

impl Manifest {
    pub(crate) fn read(disk: &dyn Disk) -> Result<Self, Error> {
        let path = disk.path(MANIFEST);
        let text = match disk.read(MANIFEST, usize::MAX) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Self::default()),
            Err(error) => return Err(Error::io("read", &path, error)),
        };
        let corrupt = |reason: &str| Error::Corrupt {
            path: path.clone(),
            offset: 0,
            revision: 0,
            reason: reason.into(),
        };
        let (sum, body) = text.split_at_checked(9).ok_or_else(|| corrupt("it is cut short"))?;
        if sum != format!("{:08x}\n", crc32c::crc32c(body)).as_bytes() {
            return Err(corrupt("its checksum does not match"));
        }
        serde_json::from_slice(body).map_err(|error| corrupt(&error.to_string()))
    }

    pub(crate) fn write(&self, disk: &dyn Disk) -> Result<(), Error> {
        let failed = |error| Error::io("write", &disk.path(MANIFEST), error);
        let body = serde_json::to_vec(self).map_err(|error| failed(error.into()))?;
        let mut text = format!("{:08x}\n", crc32c::crc32c(&body)).into_bytes();
        text.extend(body);
        disk::replace(disk, MANIFEST, &text).map_err(failed)
    }

    /// A manifest of these checkpoints.
    pub(crate) fn of(slots: Vec<SlotInfo>) -> Self {
        Self { slots }
    }

    pub(crate) fn newest_first(&self) -> Vec<SlotInfo> {
        let mut slots = self.slots.clone();
        slots.sort_unstable_by_key(|info| std::cmp::Reverse(info.revision));
        slots
    }

    /// The revision of a checkpoint; 0 when there is none.
    pub(crate) fn revision(&self, slot: usize) -> Revision {
        self.slots.iter().find(|info| info.slot == slot).map_or(0, |info| info.revision)
    }

    pub(crate) fn without(&self, slot: usize) -> Self {
        Self { slots: self.slots.iter().copied().filter(|info| info.slot != slot).collect() }
    }

    fn with(&self, info: SlotInfo) -> Self {
        let mut next = self.without(info.slot);
        next.slots.push(info);
        next
    }

    /// How far back the log must reach.
    pub(crate) fn oldest(&self) -> Revision {
        (0..SLOTS).map(|slot| self.revision(slot)).min().unwrap_or(0)
    }
}

/// Decides when a checkpoint is due and what goes into it.
pub(crate) struct Keeper {
    manifest: Manifest,
    /// Keys changed since each checkpoint was written; `None` when it must be written in full.
    changed: [Option<HashSet<Bytes>>; SLOTS],
    log_bytes: u64,
    running: bool,
}

impl Keeper {
    /// `loaded` is the checkpoint the state came from, `changed` the keys the log changed after it.
    pub(crate) fn new(manifest: Manifest, loaded: Option<usize>, changed: Vec<Bytes>) -> Self {
        let mut keeper = Self { manifest, changed: [None, None], log_bytes: 0, running: false };
        if let Some(slot) = loaded {
            keeper.changed[slot] = Some(changed.into_iter().collect());
        }
        keeper
    }

    /// Notes changes and the bytes they took in the log.
    pub(crate) fn note<'a>(&mut self, changes: impl Iterator<Item = &'a Change>, bytes: u64) {
        self.log_bytes += bytes;
        for change in changes {
            for changed in self.changed.iter_mut().flatten() {
                changed.insert(change.key.clone());
            }
        }
        for changed in &mut self.changed {
            if changed.as_ref().is_some_and(|keys| keys.len() > MAX_CHANGED) {
                *changed = None;
            }
        }
    }

    /// Bytes of log since the last checkpoint was begun.
    pub(crate) fn log_bytes(&self) -> u64 {
        self.log_bytes
    }

    pub(crate) fn is_due(&self, every_bytes: u64) -> bool {
        !self.running && self.log_bytes >= every_bytes
    }

    /// Counts again from here, whether or not a checkpoint could be started.
    pub(crate) fn postpone(&mut self) {
        self.log_bytes = 0;
    }

    /// The checkpoint of `state`, whose log is durable and split at its revision.
    pub(crate) fn start(&mut self, state: &State, segments: Vec<(u64, Revision)>) -> Job {
        let slot = (0..SLOTS).min_by_key(|slot| self.manifest.revision(*slot)).unwrap_or(0);
        let changed = self.changed[slot].replace(HashSet::new());
        let full = changed.is_none();
        let changes = match changed {
            Some(keys) => keys.into_iter().map(|key| (key.clone(), state.current(&key))).collect(),
            None => state.all().map(|kv| (kv.key.clone(), Some(kv))).collect(),
        };
        self.running = true;
        let info = SlotInfo { slot, revision: state.revision(), keys: state.live(), digest: state.digest() };
        Job { info, full, changes, manifest: self.manifest.clone(), segments }
    }

    /// Takes note of how a checkpoint went.
    pub(crate) fn finish(&mut self, slot: usize, result: Result<Manifest, Error>) {
        self.running = false;
        match result {
            Ok(manifest) => {
                tracing::debug!(slot, revision = manifest.revision(slot), "checkpoint written");
                self.manifest = manifest;
            }
            Err(error) => {
                tracing::warn!(slot, %error, "checkpoint failed; the log stays until the next one");
                self.manifest = self.manifest.without(slot);
                self.changed[slot] = None;
            }
        }
    }
}

/// One checkpoint to write.
pub(crate) struct Job {
    pub(crate) info: SlotInfo,
    full: bool,
    changes: Vec<(Bytes, Option<KeyValue>)>,
    manifest: Manifest,
    segments: Vec<(u64, Revision)>,
}

impl Job {
    /// Writes it and removes the segments no checkpoint needs any more.
    pub(crate) fn run(mut self, disk: &Arc<dyn Disk>, shelf: &dyn Shelf) -> Result<Manifest, Error> {
        // In order, neighbours land in the same page of the tree: fewer pages are written, and fewer times.
        self.changes.sort_unstable_by(|a, b| a.0.cmp(&b.0));
        let slot = self.info.slot;
        // What the disk lists counts: an earlier attempt may have got no further than here.
        if Manifest::read(&**disk)?.revision(slot) != 0 {
            self.manifest.without(slot).write(&**disk)?;
        }
        shelf.write(slot, self.full, &self.changes).map_err(|reason| {
            Error::io("write checkpoint in", &disk.path(""), std::io::Error::other(reason))
        })?;
        let manifest = self.manifest.with(self.info);
        manifest.write(&**disk)?;
        let oldest = manifest.oldest();
        for pair in self.segments.windows(2).filter(|pair| pair[1].1 <= oldest) {
            let name = segment_name(pair[0].0);
            match disk.remove(&name) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                    return Err(Error::io("remove", &disk.path(&name), error));
                }
                _ => {}
            }
        }
        Ok(manifest)
    }
}
