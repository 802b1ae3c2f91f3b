//! From files to state: the newest checkpoint that can be trusted, and the log behind it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::Settings;
use super::checkpoint::{Manifest, Shelf, SlotInfo};
use super::disk::Disk;
use super::log::{Log, segment_name, segment_number};
use super::record::{Header, Kind, Record, SEGMENT_HEADER};
use crate::mvcc::{History, State};
use crate::{Error, Revision};

/// What opening a data directory found.
#[derive(Debug, Clone, Default)]
pub struct Recovery {
    /// The revision the store goes on from.
    pub revision: Revision,
    /// Number of keys.
    pub keys: u64,
    /// Revision of the checkpoint used, if any.
    pub checkpoint: Option<Revision>,
    /// Checkpoints that were damaged and passed over; the log made up for them.
    pub damaged_checkpoints: usize,
    /// Transactions read from the log.
    pub replayed: u64,
    /// Bytes of unfinished writes cut off the end of the log.
    pub cut_bytes: u64,
    /// Revisions left out because a lost, unsynced change may have carried them.
    pub skipped: u64,
    /// Whether the store had been closed properly.
    pub clean: bool,
    /// How long it took.
    pub elapsed: Duration,
}

/// Where a store that was closed properly ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub(crate) struct Closed {
    pub(crate) revision: Revision,
    pub(crate) segment: u64,
    pub(crate) len: u64,
}

/// A state with the log it came from.
pub(crate) struct Recovered {
    pub(crate) state: State,
    pub(crate) log: Log,
    pub(crate) manifest: Manifest,
    /// The checkpoint slot the state was loaded from, and the keys changed since.
    pub(crate) loaded: Option<usize>,
    pub(crate) changed: Vec<bytes::Bytes>,
    /// Revisions up to this one may have been given out unsynced.
    pub(crate) ceiling: Revision,
    pub(crate) recovery: Recovery,
}

/// What a data directory says, as far as it can be trusted.
pub(crate) struct Reading {
    pub(crate) state: State,
    pub(crate) recovery: Recovery,
    /// What is wrong in the log, or between it and the note of a proper end; the state ends before it.
    pub(crate) damage: Option<Error>,
    /// The headers of the segments, oldest first.
    pub(crate) segments: Vec<Header>,
    manifest: Manifest,
    loaded: Option<usize>,
    changed: Vec<bytes::Bytes>,
    ceiling: Revision,
    /// The last segment with where its records end and the crc of the last one.
    end: Option<(Header, u64, u32)>,
    /// A segment that never held anything.
    unused: Option<String>,
}

/// Reads a data directory and opens its log for writing. Nothing is changed on disk unless everything acknowledged
/// was found. `fresh` says there was no store in it before.
pub(crate) fn recover(
    disk: &Arc<dyn Disk>,
    shelf: &dyn Shelf,
    fresh: bool,
    closed: Option<Closed>,
    settings: &Settings,
) -> Result<Recovered, Error> {
    let started = Instant::now();
    let reading = read(disk, shelf, fresh, closed, &settings.history)?;
    let Reading { state, mut recovery, damage, segments, manifest, loaded, changed, ceiling, end, unused } =
        reading;
    if let Some(damage) = damage {
        return Err(damage);
    }
    if let Some(name) = unused {
        disk.remove(&name).map_err(|error| Error::io("remove", &disk.path(&name), error))?;
    }
    let all = segments.iter().map(|header| (header.number, header.base)).collect();
    let log = match end {
        Some((header, len, chain)) => {
            Log::resume(disk.clone(), header, len, chain, settings.segment_bytes, all)?
        }
        None => Log::create(disk.clone(), 1, state.revision(), settings.segment_bytes)?,
    };
    recovery.elapsed = started.elapsed();
    Ok(Recovered { state, log, manifest, loaded, changed, ceiling, recovery })
}

/// Reads a data directory without changing anything. An error when there is nothing to start from; damage behind
/// that ends the reading and is told beside what was read.
pub(crate) fn read(
    disk: &Arc<dyn Disk>,
    shelf: &dyn Shelf,
    fresh: bool,
    closed: Option<Closed>,
    history: &History,
) -> Result<Reading, Error> {
    let manifest = Manifest::read(&**disk)?;
    let Headers { found: segments, unused, damage } = if fresh { Headers::default() } else { headers(disk)? };
    if segments.is_empty() && !fresh {
        let reason = "its log is missing".to_string();
        let missing = Error::Corrupt { path: disk.path(""), offset: 0, revision: 0, reason };
        return Err(damage.unwrap_or(missing));
    }
    let log_starts = segments.first().map_or(1, |header| header.base);
    let (state, loaded, damaged) = load(disk, shelf, &manifest, log_starts)?;
    // A damaged checkpoint is the next to be written again.
    let manifest = damaged.iter().fold(manifest, |manifest, slot| manifest.without(*slot));
    let mut replay = Replay {
        checkpoint: loaded.map_or(1, |_| state.revision()),
        state,
        changed: Vec::new(),
        ceiling: 0,
        recovery: Recovery { damaged_checkpoints: damaged.len(), ..Recovery::default() },
        history,
        now: Instant::now(),
        end: None,
    };
    let replayed = replay.segments(disk, &segments);
    let Replay { state, changed, ceiling, mut recovery, end, .. } = replay;
    let ends = replayed.and_then(|()| damage.map_or(Ok(()), Err));
    let ends = ends.and_then(|()| check_closed(disk, closed, end.as_ref(), &state));
    let damage = match ends {
        Err(damage @ Error::Corrupt { .. }) => Some(damage),
        ends => ends.map(|()| None)?,
    };
    recovery.checkpoint = loaded.map(|slot| manifest.revision(slot));
    recovery.clean = closed.is_some();
    recovery.revision = state.revision();
    recovery.keys = state.live();
    Ok(Reading { state, recovery, damage, segments, manifest, loaded, changed, ceiling, end, unused })
}

/// A store that was closed must end where it said it ended.
fn check_closed(
    disk: &Arc<dyn Disk>,
    closed: Option<Closed>,
    end: Option<&(Header, u64, u32)>,
    state: &State,
) -> Result<(), Error> {
    let (segment, len) = end.map_or((1, SEGMENT_HEADER as u64), |(header, len, _)| (header.number, *len));
    let found = Closed { revision: state.revision(), segment, len };
    let Some(closed) = closed.filter(|closed| *closed != found) else { return Ok(()) };
    let reason = format!(
        "the store was closed at revision {} with {} bytes in {}, but the log ends here",
        closed.revision,
        closed.len,
        segment_name(closed.segment)
    );
    let path = disk.path(&segment_name(segment));
    Err(Error::Corrupt { path, offset: len, revision: state.revision(), reason })
}

/// The newest state a checkpoint holds that the log continues; an empty one if the log goes back to the start.
fn load(
    disk: &Arc<dyn Disk>,
    shelf: &dyn Shelf,
    manifest: &Manifest,
    log_starts: Revision,
) -> Result<(State, Option<usize>, Vec<usize>), Error> {
    let (mut damaged, mut reason) = (Vec::new(), String::from("there is no checkpoint"));
    for SlotInfo { slot, revision, keys, digest } in manifest.newest_first() {
        if revision < log_starts {
            continue;
        }
        let why = match shelf.load(slot) {
            Ok(items) => {
                let state = State::load(revision, items);
                if (state.live(), state.digest()) == (keys, digest) {
                    return Ok((state, Some(slot), damaged));
                }
                format!("checkpoint {slot} does not hold the {keys} keys of revision {revision}")
            }
            Err(error) => format!("checkpoint {slot} cannot be read: {error}"),
        };
        tracing::warn!(revision, "{why}; using an older one and the log");
        damaged.push(slot);
        reason = why;
    }
    if log_starts == 1 {
        return Ok((State::new(), None, damaged));
    }
    let reason =
        format!("the log starts at revision {log_starts} and no checkpoint leads up to it: {reason}");
    Err(Error::Corrupt { path: disk.path(""), offset: 0, revision: 1, reason })
}

/// The segments there are.
#[derive(Default)]
pub(crate) struct Headers {
    /// Oldest first, without gaps, up to the first damage.
    pub(crate) found: Vec<Header>,
    /// A last segment whose header never became durable: it holds nothing.
    unused: Option<String>,
    damage: Option<Error>,
}

/// Reads the headers of all segments.
pub(crate) fn headers(disk: &Arc<dyn Disk>) -> Result<Headers, Error> {
    let names = disk.list().map_err(|error| Error::io("list", &disk.path(""), error))?;
    let mut numbers: Vec<u64> = names.iter().filter_map(|name| segment_number(name)).collect();
    numbers.sort_unstable();
    let mut out = Headers::default();
    for (index, number) in numbers.iter().copied().enumerate() {
        let name = segment_name(number);
        let path = disk.path(&name);
        let last = out.found.last().copied();
        let head = disk.read(&name, SEGMENT_HEADER).map_err(|error| Error::io("read", &path, error))?;
        let reason = match (Header::decode(&head), last.map(|last| last.number + 1)) {
            (_, Some(next)) if next != number => {
                format!("the segment before it is missing: {}", segment_name(next))
            }
            (Ok(header), _) if header.number == number => {
                out.found.push(header);
                continue;
            }
            (Ok(header), _) => format!("it is a copy of {}", segment_name(header.number)),
            (Err(_), _) if index + 1 == numbers.len() && index > 0 && is_unused(disk, &name)? => {
                out.unused = Some(name);
                continue;
            }
            (Err(reason), _) => reason.into(),
        };
        let revision = last.map_or(0, |header| header.base);
        out.damage = Some(Error::Corrupt { path, offset: 0, revision, reason });
        break;
    }
    Ok(out)
}

/// Whether a segment was never written beyond its header: records follow only a synced header.
pub(crate) fn is_unused(disk: &Arc<dyn Disk>, name: &str) -> Result<bool, Error> {
    let data = disk.read(name, usize::MAX).map_err(|error| Error::io("read", &disk.path(name), error))?;
    Ok(data.get(SEGMENT_HEADER..).is_none_or(|records| records.iter().all(|byte| *byte == 0)))
}

struct Replay<'a> {
    checkpoint: Revision,
    state: State,
    changed: Vec<bytes::Bytes>,
    ceiling: Revision,
    recovery: Recovery,
    history: &'a History,
    now: Instant,
    end: Option<(Header, u64, u32)>,
}

impl Replay<'_> {
    /// Replays every segment that reaches beyond the checkpoint.
    fn segments(&mut self, disk: &Arc<dyn Disk>, found: &[Header]) -> Result<(), Error> {
        for (index, header) in found.iter().enumerate() {
            let next = found.get(index + 1);
            if next.is_some_and(|next| next.base <= self.checkpoint) {
                continue;
            }
            let name = segment_name(header.number);
            let data =
                disk.read(&name, usize::MAX).map_err(|error| Error::io("read", &disk.path(&name), error))?;
            let (len, chain) = self.segment(disk, header, &data, next.is_none())?;
            self.end = Some((*header, len as u64, chain));
            let expected = next.map_or(self.state.revision(), |next| next.base);
            if expected != self.state.revision() {
                let reason = format!("the next segment starts at revision {expected}");
                return Err(self.corrupt(disk, header, data.len(), reason));
            }
        }
        Ok(())
    }

    /// Replays one segment; answers where it ends and with which crc.
    fn segment(
        &mut self,
        disk: &Arc<dyn Disk>,
        header: &Header,
        data: &[u8],
        last: bool,
    ) -> Result<(usize, u32), Error> {
        let (mut at, mut chain) = (SEGMENT_HEADER, header.chain());
        while !data[at..].iter().take(super::record::RECORD_HEADER).all(|byte| *byte == 0) {
            let decoded = Record::decode(&data[at..], header.salt).and_then(|record| {
                if record.previous == chain {
                    Ok(record)
                } else {
                    Err("a record does not follow the one before it")
                }
            });
            let record = match decoded {
                Ok(record) => record,
                Err(reason) => return self.tail(disk, (header, data), (at, chain), last, reason),
            };
            self.apply(&record).map_err(|reason| self.corrupt(disk, header, at, reason.into()))?;
            at += record.len();
            chain = record.crc;
        }
        if data[at..].iter().any(|byte| *byte != 0) {
            return self.tail(disk, (header, data), (at, chain), last, "a record is missing");
        }
        Ok((at, chain))
    }

    /// Decides whether reading stopped at an unfinished write, which is cut off, or at damage.
    fn tail(
        &mut self,
        disk: &Arc<dyn Disk>,
        (header, data): (&Header, &[u8]),
        (at, chain): (usize, u32),
        last: bool,
        reason: &str,
    ) -> Result<(usize, u32), Error> {
        let was_synced = |offset: usize| {
            Record::decode(&data[offset..], header.salt).is_ok_and(|record| record.synced > at as u64)
        };
        if !last || (at + 1..data.len()).any(was_synced) {
            return Err(self.corrupt(disk, header, at, reason.into()));
        }
        self.recovery.cut_bytes = (data.len() - at) as u64;
        Ok((at, chain))
    }

    fn apply(&mut self, record: &Record<'_>) -> Result<(), &'static str> {
        match record.kind {
            Kind::Txn | Kind::Edit if record.revision > self.state.revision() => {
                let changes = record.changes(|key| self.state.current(key).map(|kv| kv.value))?;
                self.changed.extend(changes.iter().map(|change| change.key.clone()));
                self.state.apply(record.revision, changes, self.now);
                self.state.expire(self.history, self.now);
                self.state.sweep(usize::MAX);
                self.recovery.replayed += 1;
            }
            Kind::Txn | Kind::Edit if record.revision > self.checkpoint => {
                return Err("a record's revision does not rise");
            }
            Kind::Txn | Kind::Edit => {}
            Kind::Reserve => self.ceiling = self.ceiling.max(record.number()?),
            Kind::Compact => {
                let revision = record.number()?;
                self.state
                    .compact(revision.min(self.state.revision()))
                    .map_err(|_| "a compaction is in the future")?;
            }
            Kind::Skip if record.revision > self.state.revision() => self.state.skip(record.revision),
            Kind::Skip => {}
        }
        Ok(())
    }

    fn corrupt(&self, disk: &Arc<dyn Disk>, header: &Header, at: usize, reason: String) -> Error {
        let path = disk.path(&segment_name(header.number));
        Error::Corrupt { path, offset: at as u64, revision: self.state.revision(), reason }
    }
}
