//! Looking into a data directory that no process has open: what it holds, what is wrong, and how to go on.
//!
//! Nothing here writes into the directory it looks at, but for the lock, and what sled tidies in its own files when
//! a checkpoint is read. A repair builds a new directory beside it and swaps the two.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::checkpoint::{Manifest, Shelf};
use super::dir::{self, Found};
use super::disk::{Disk, RealDisk};
use super::log::segment_name;
use super::record::{Header, Kind, Record, SEGMENT_HEADER};
use super::recover::{Headers, Reading, headers, read};
use super::shelf::SledShelf;
use crate::mvcc::{History, State};
use crate::snapshot::REVISION_GAP;
use crate::{Error, KeyValue, Revision};

/// Longest name tried for the directory that a repair keeps.
const MAX_KEPT: usize = 1000;

/// One segment of the log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SegmentInfo {
    /// Its file name.
    pub file: String,
    /// The store's revision before its first record.
    pub base: Revision,
    /// Records that can be read in it.
    pub records: u64,
    /// Its length in bytes, with space laid out ahead.
    pub bytes: u64,
}

/// One checkpoint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CheckpointInfo {
    /// Its directory's name.
    pub name: String,
    /// The revision it holds.
    pub revision: Revision,
    /// The keys it must have.
    pub keys: u64,
    /// What is wrong with it, if anything; another one or the log makes up for it.
    pub problem: Option<String>,
}

/// What a data directory holds.
#[derive(Debug, Clone)]
pub struct Inspection {
    /// Its format.
    pub format: String,
    /// Whether it was closed properly.
    pub clean: bool,
    /// The revision that can be reached.
    pub revision: Revision,
    /// Keys at that revision.
    pub keys: u64,
    /// The log, oldest segment first.
    pub segments: Vec<SegmentInfo>,
    /// The checkpoints, newest first.
    pub checkpoints: Vec<CheckpointInfo>,
    /// Bytes of an unfinished, never acknowledged write at the end; opening cuts them off.
    pub unfinished_bytes: u64,
    /// What keeps the store from opening, if anything.
    pub damage: Option<Error>,
    /// Transactions that can be read behind the damage; a repair gives them up.
    pub stranded: u64,
}

/// The readable part of a data directory.
#[derive(Debug, Clone)]
pub struct Contents {
    /// The revision it shows.
    pub revision: Revision,
    /// Every key, in order.
    pub items: Vec<KeyValue>,
    /// The damage behind that revision, if any.
    pub damage: Option<Error>,
}

/// A change as the log has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LoggedChange {
    /// The key.
    pub key: Vec<u8>,
    /// Length of its new value in bytes; `None` when it was removed.
    pub value_bytes: Option<usize>,
}

/// One record of the log, or a place that is none.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogEntry {
    /// The segment's file name.
    pub file: String,
    /// Where it begins.
    pub offset: u64,
    /// `txn`, `edit`, `reserve`, `compact` or `skip`; `unreadable` for what is no record.
    pub kind: &'static str,
    /// The store's revision after it; 0 where unreadable.
    pub revision: Revision,
    /// Its length in bytes.
    pub bytes: u64,
    /// The changes of a transaction.
    pub changes: Vec<LoggedChange>,
}

/// What a repair did.
#[derive(Debug, Clone)]
pub struct Repair {
    /// The last revision that was saved.
    pub saved: Revision,
    /// The keys that were saved.
    pub keys: u64,
    /// Where the store goes on: beyond every revision that may have been seen.
    pub revision: Revision,
    /// Readable transactions behind the damage that were given up.
    pub stranded: u64,
    /// The damage.
    pub damage: Error,
    /// Where the directory as it was is kept.
    pub kept: PathBuf,
}

/// A directory held open for looking.
struct Opened {
    disk: Arc<dyn Disk>,
    shelf: SledShelf,
    format: String,
    _lock: std::fs::File,
}

fn open(path: &Path) -> Result<Opened, Error> {
    if !path.is_dir() {
        return Err(Error::Invalid(format!("{} is not a directory", path.display())));
    }
    let disk: Arc<dyn Disk> = Arc::new(RealDisk::new(path));
    let format = match dir::find(&disk)? {
        Found::Current => dir::VERSION,
        Found::Older(format) => format,
        Found::Nothing => return Err(Error::Invalid(format!("there is no store in {}", path.display()))),
    };
    let lock = dir::hold(path)?;
    Ok(Opened { disk, shelf: SledShelf::new(path), format: format.into(), _lock: lock })
}

impl Opened {
    fn read(&self) -> Result<Reading, Error> {
        let closed = dir::read_closed(&*self.disk)?;
        read(&self.disk, &self.shelf, false, closed, &History::default())
    }

    fn segment(&self, header: &Header) -> Result<Vec<u8>, Error> {
        let name = segment_name(header.number);
        self.disk.read(&name, usize::MAX).map_err(|error| Error::io("read", &self.disk.path(&name), error))
    }

    /// Hands every record of a segment to `each`, skipping what is none.
    fn scan(&self, header: &Header, each: &mut dyn FnMut(LogEntry)) -> Result<u64, Error> {
        let data = self.segment(header)?;
        let file = segment_name(header.number);
        let (mut at, mut bad) = (SEGMENT_HEADER, None);
        let used = data.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
        while at < used {
            let Ok(record) = Record::decode(&data[at..], header.salt) else {
                bad.get_or_insert(at);
                at += 1;
                continue;
            };
            unreadable(&file, bad.take(), at, each);
            each(entry(&file, at, &record));
            at += record.len();
        }
        unreadable(&file, bad, used, each);
        Ok(data.len() as u64)
    }

    fn checkpoints(&self) -> Result<Vec<CheckpointInfo>, Error> {
        let check = |info: super::checkpoint::SlotInfo| {
            let problem = match self.shelf.load(info.slot) {
                Err(error) => Some(error),
                Ok(items) => {
                    let state = State::load(info.revision, items);
                    let good = (state.live(), state.digest()) == (info.keys, info.digest);
                    (!good).then(|| "it does not hold what it should".to_string())
                }
            };
            let name = format!("checkpoint-{}", info.slot);
            CheckpointInfo { name, revision: info.revision, keys: info.keys, problem }
        };
        Ok(Manifest::read(&*self.disk)?.newest_first().into_iter().map(check).collect())
    }
}

fn unreadable(file: &str, from: Option<usize>, to: usize, each: &mut dyn FnMut(LogEntry)) {
    let Some(from) = from else { return };
    each(LogEntry {
        file: file.into(),
        offset: from as u64,
        kind: "unreadable",
        revision: 0,
        bytes: (to - from) as u64,
        changes: Vec::new(),
    });
}

fn entry(file: &str, at: usize, record: &Record<'_>) -> LogEntry {
    let kind = match record.kind {
        Kind::Txn => "txn",
        Kind::Edit => "edit",
        Kind::Reserve => "reserve",
        Kind::Compact => "compact",
        Kind::Skip => "skip",
    };
    let changes = if record.kind.is_txn() { record.raw_changes().unwrap_or_default() } else { Vec::new() };
    let changes = changes
        .into_iter()
        .map(|change| LoggedChange { key: change.key.to_vec(), value_bytes: change.value_len() })
        .collect();
    let (offset, bytes) = (at as u64, record.len() as u64);
    LogEntry { file: file.into(), offset, kind, revision: record.revision, bytes, changes }
}

pub(crate) fn inspect(path: &Path) -> Result<Inspection, Error> {
    let opened = open(path)?;
    let Reading { state, recovery, damage, segments: found, .. } = opened.read()?;
    let mut segments = Vec::new();
    let mut stranded = 0;
    for header in &found {
        let mut records = 0;
        let bytes = opened.scan(header, &mut |entry| {
            records += u64::from(entry.kind != "unreadable");
            let txn = matches!(entry.kind, "txn" | "edit");
            stranded += u64::from(txn && entry.revision > state.revision());
        })?;
        segments.push(SegmentInfo { file: segment_name(header.number), base: header.base, records, bytes });
    }
    Ok(Inspection {
        format: opened.format.clone(),
        clean: recovery.clean,
        revision: state.revision(),
        keys: state.live(),
        segments,
        checkpoints: opened.checkpoints()?,
        unfinished_bytes: recovery.cut_bytes,
        stranded: if damage.is_some() { stranded } else { 0 },
        damage,
    })
}

pub(crate) fn contents(path: &Path) -> Result<Contents, Error> {
    let Reading { state, damage, .. } = open(path)?.read()?;
    Ok(Contents { revision: state.revision(), items: state.all().collect(), damage })
}

pub(crate) fn log(path: &Path, each: &mut dyn FnMut(LogEntry)) -> Result<(), Error> {
    let opened = open(path)?;
    let Headers { found, .. } = headers(&opened.disk)?;
    found.iter().try_for_each(|header| opened.scan(header, each).map(drop))
}

pub(crate) fn repair(path: &Path) -> Result<Option<Repair>, Error> {
    let found = inspect(path)?;
    let Some(damage) = found.damage else { return Ok(None) };
    let opened = open(path)?;
    let Reading { mut state, .. } = opened.read()?;
    let (saved, keys) = (state.revision(), state.live());
    let revision = saved + REVISION_GAP;
    state.skip(revision);
    state.compact(revision)?;
    let fresh = beside(path, "repaired")?;
    super::create(&fresh, &state)?;
    let swapped = swap(&fresh, path).and_then(|()| {
        let kept = beside(path, "damaged").map_err(std::io::Error::other)?;
        std::fs::rename(&fresh, &kept)?;
        std::fs::File::open(path.parent().unwrap_or(Path::new(".")))?.sync_all()?;
        Ok(kept)
    });
    let kept = swapped.map_err(|error| Error::io("replace", path, error))?;
    Ok(Some(Repair { saved, keys, revision, stranded: found.stranded, damage, kept }))
}

/// Makes two directories change names at once, so that neither is ever missing.
fn swap(one: &Path, other: &Path) -> std::io::Result<()> {
    use nix::fcntl::{AT_FDCWD, RenameFlags, renameat2};
    renameat2(AT_FDCWD, one, AT_FDCWD, other, RenameFlags::RENAME_EXCHANGE)?;
    Ok(())
}

/// A name beside the directory that nothing has yet.
fn beside(path: &Path, what: &str) -> Result<PathBuf, Error> {
    let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let names = (1..=MAX_KEPT).map(|number| path.with_file_name(format!("{name}.{what}-{number}")));
    names
        .into_iter()
        .find(|candidate| !candidate.exists())
        .ok_or_else(|| Error::Invalid(format!("too many {what} directories beside {}", path.display())))
}
