//! The state in memory: every key with the versions still readable, and the changes still watchable.
//!
//! Pure data behind `&mut`: no lock, no I/O, no clock. Both backends of this process share it.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::ops::Bound;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;

use crate::{Compare, Error, Event, KeyValue, Op, Range, RangeResult, Revision, Txn};

/// Changes swept at a time: what a writer may have to wait for, some tens of microseconds.
pub(crate) const SWEEP: usize = 256;
/// Bytes a change costs in memory beyond its key and the value it replaced.
const CHANGE_OVERHEAD: usize = 160;

/// How much of the past is kept for watches and reads at old revisions. Whichever bound is met first compacts.
#[derive(Debug, Clone, Copy)]
pub struct History {
    /// Longest time a change is kept.
    pub age: Duration,
    /// Most memory the past may take, in bytes.
    pub bytes: usize,
}

impl Default for History {
    fn default() -> Self {
        Self { age: Duration::from_secs(300), bytes: 32 << 20 }
    }
}

/// A key at one time; `value` is `None` once it is deleted.
#[derive(Debug, Clone)]
struct Version {
    create: Revision,
    modified: Revision,
    value: Option<Bytes>,
}

impl Version {
    fn key_value(&self, key: &Bytes) -> Option<KeyValue> {
        let value = self.value.clone()?;
        Some(KeyValue { key: key.clone(), value, create_revision: self.create, mod_revision: self.modified })
    }
}

/// All readable versions of one key, the latest apart because most keys have no other.
#[derive(Debug)]
struct Slot {
    latest: Version,
    older: Vec<Version>,
}

impl Slot {
    fn at(&self, revision: Revision) -> Option<&Version> {
        if self.latest.modified <= revision {
            return Some(&self.latest);
        }
        self.older.iter().rev().find(|version| version.modified <= revision)
    }

    /// Drops what no read at `compacted` or later can see; true when nothing is left.
    fn trim(&mut self, compacted: Revision) -> bool {
        if self.latest.modified <= compacted {
            self.older = Vec::new();
            return self.latest.value.is_none();
        }
        let visible = self.older.iter().rposition(|version| version.modified <= compacted).unwrap_or(0);
        self.older.drain(..visible);
        if self.older.first().is_some_and(|v| v.modified <= compacted && v.value.is_none()) {
            self.older.remove(0);
        }
        false
    }
}

/// The changes of one revision.
#[derive(Debug)]
pub(crate) struct Committed {
    pub(crate) revision: Revision,
    pub(crate) events: Vec<Event>,
    at: Instant,
    bytes: usize,
}

/// One key set (`Some`) or removed (`None`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Change {
    pub(crate) key: Bytes,
    pub(crate) value: Option<Bytes>,
}

/// What a transaction would do.
pub(crate) enum Verdict {
    Failed(Vec<Option<KeyValue>>),
    Unchanged,
    Commit(Vec<Change>),
}

/// Changes of transactions decided but not yet applied, so that those behind them in a group see them.
pub(crate) type Overlay = HashMap<Bytes, Option<KeyValue>>;

/// The whole state.
#[derive(Debug)]
pub(crate) struct State {
    keys: BTreeMap<Bytes, Slot>,
    history: VecDeque<Arc<Committed>>,
    history_bytes: usize,
    /// How much of that is compacted and only waits to be swept.
    dead_bytes: usize,
    live: u64,
    digest: u64,
    revision: Revision,
    compacted: Revision,
    /// Revisions strictly between these were given out, perhaps, and lost.
    gaps: Vec<(Revision, Revision)>,
}

impl State {
    pub(crate) fn new() -> Self {
        Self {
            keys: BTreeMap::new(),
            history: VecDeque::new(),
            history_bytes: 0,
            dead_bytes: 0,
            live: 0,
            digest: 0,
            revision: 1,
            compacted: 0,
            gaps: Vec::new(),
        }
    }

    /// A state at `revision` with these keys and no past.
    pub(crate) fn load(revision: Revision, items: impl IntoIterator<Item = KeyValue>) -> Self {
        let mut state = Self { revision, compacted: revision, ..Self::new() };
        for kv in items {
            state.count(None, Some(&kv));
            let latest =
                Version { create: kv.create_revision, modified: kv.mod_revision, value: Some(kv.value) };
            state.keys.insert(kv.key, Slot { latest, older: Vec::new() });
        }
        state
    }

    pub(crate) fn revision(&self) -> Revision {
        self.revision
    }

    pub(crate) fn compacted(&self) -> Revision {
        self.compacted
    }

    /// Number of keys that exist now.
    pub(crate) fn live(&self) -> u64 {
        self.live
    }

    /// Memory the past takes, in bytes.
    pub(crate) fn history_bytes(&self) -> usize {
        self.history_bytes
    }

    /// Order-independent checksum of everything that exists now.
    pub(crate) fn digest(&self) -> u64 {
        self.digest
    }

    pub(crate) fn current(&self, key: &[u8]) -> Option<KeyValue> {
        let (key, slot) = self.keys.get_key_value(key)?;
        slot.latest.key_value(key)
    }

    /// Everything that exists now, in key order.
    pub(crate) fn all(&self) -> impl Iterator<Item = KeyValue> + '_ {
        self.keys.iter().filter_map(|(key, slot)| slot.latest.key_value(key))
    }

    /// The revision to read at, or why it cannot be read.
    pub(crate) fn readable(&self, at: Option<Revision>) -> Result<Revision, Error> {
        let at = at.unwrap_or(self.revision);
        if at > self.revision {
            return Err(Error::FutureRevision { requested: at, current: self.revision });
        }
        if at < self.compacted {
            return Err(Error::Compacted { requested: at, compacted: self.compacted });
        }
        match self.gaps.iter().find(|(before, after)| (before + 1..*after).contains(&at)) {
            Some((_, after)) => Err(Error::Compacted { requested: at, compacted: *after }),
            None => Ok(at),
        }
    }

    pub(crate) fn get(&self, key: &[u8], at: Option<Revision>) -> Result<Option<KeyValue>, Error> {
        let at = self.readable(at)?;
        let Some((key, slot)) = self.keys.get_key_value(key) else { return Ok(None) };
        Ok(slot.at(at).and_then(|version| version.key_value(key)))
    }

    pub(crate) fn range(&self, range: Range<'_>) -> Result<RangeResult, Error> {
        let revision = self.readable(range.at)?;
        let limit = if range.limit == 0 { usize::MAX } else { range.limit };
        let first = range.start.filter(|start| *start > range.prefix).unwrap_or(range.prefix);
        let (mut items, mut more) = (Vec::new(), false);
        let from = (Bound::Included(first), Bound::Unbounded);
        for (key, slot) in
            self.keys.range::<[u8], _>(from).take_while(|(key, _)| key.starts_with(range.prefix))
        {
            let Some(version) = slot.at(revision).filter(|version| version.value.is_some()) else { continue };
            if items.len() == limit {
                more = true;
                break;
            }
            items.extend(version.key_value(key));
        }
        Ok(RangeResult { items, revision, more })
    }

    /// Decides a transaction on top of the state and `overlay`.
    pub(crate) fn decide(&self, overlay: &Overlay, txn: &Txn) -> Verdict {
        let look = |key: &Bytes| overlay.get(key).cloned().unwrap_or_else(|| self.current(key));
        let holds =
            |compare: &Compare| look(&compare.key).map_or(0, |kv| kv.mod_revision) == compare.mod_revision;
        if !txn.compares.iter().all(holds) {
            return Verdict::Failed(txn.compares.iter().map(|compare| look(&compare.key)).collect());
        }
        let changes: Vec<Change> = txn
            .ops
            .iter()
            .filter_map(|op| match op {
                Op::Put { key, value } => Some(Change { key: key.clone(), value: Some(value.clone()) }),
                Op::Delete { key } => look(key).map(|kv| Change { key: kv.key, value: None }),
            })
            .collect();
        if changes.is_empty() { Verdict::Unchanged } else { Verdict::Commit(changes) }
    }

    /// Notes decided changes in `overlay`.
    pub(crate) fn foresee(&self, overlay: &mut Overlay, revision: Revision, changes: &[Change]) {
        for Change { key, value } in changes {
            let before = overlay.get(key).cloned().unwrap_or_else(|| self.current(key));
            let create_revision = before.map_or(revision, |kv| kv.create_revision);
            let after = value.clone().map(|value| KeyValue {
                key: key.clone(),
                value,
                create_revision,
                mod_revision: revision,
            });
            overlay.insert(key.clone(), after);
        }
    }

    /// Makes changes the state of `revision`, which must be greater than the current one.
    pub(crate) fn apply(&mut self, revision: Revision, changes: Vec<Change>, now: Instant) -> Arc<Committed> {
        debug_assert!(revision > self.revision, "revisions rise");
        let mut bytes = CHANGE_OVERHEAD;
        let events: Vec<Event> = changes
            .into_iter()
            .map(|change| {
                let event = self.change(revision, change);
                bytes += event_bytes(&event);
                event
            })
            .collect();
        self.push(Committed { revision, events, at: now, bytes })
    }

    fn push(&mut self, committed: Committed) -> Arc<Committed> {
        self.revision = committed.revision;
        self.history_bytes += committed.bytes;
        let committed = Arc::new(committed);
        self.history.push_back(committed.clone());
        committed
    }

    /// Adds changes made elsewhere to the history of a state that keeps no keys.
    pub(crate) fn record(&mut self, revision: Revision, events: Vec<Event>, now: Instant) {
        let value = |event: &Event| if let Event::Put { kv, .. } = event { kv.value.len() } else { 0 };
        let bytes: usize = events.iter().map(|event| event_bytes(event) + value(event)).sum();
        self.push(Committed { revision, events, at: now, bytes: CHANGE_OVERHEAD + bytes });
    }

    /// Begins anew at `revision`, as if everything before had been compacted.
    pub(crate) fn restart(&mut self, revision: Revision) {
        self.revision = self.revision.max(revision);
        // Never in the future: it is the current revision.
        let _ = self.compact(self.revision);
    }

    fn change(&mut self, revision: Revision, Change { key, value }: Change) -> Event {
        let previous = self.current(&key);
        let create = previous.as_ref().map_or(revision, |kv| kv.create_revision);
        let version = Version { create, modified: revision, value };
        // The stored key and the event's are the same allocation, whoever came first.
        let key = previous.as_ref().map_or(key, |kv| kv.key.clone());
        let kv = version.key_value(&key);
        self.count(previous.as_ref(), kv.as_ref());
        match self.keys.get_mut(&key) {
            Some(slot) => slot.older.push(std::mem::replace(&mut slot.latest, version)),
            None => drop(self.keys.insert(key.clone(), Slot { latest: version, older: Vec::new() })),
        }
        match kv {
            Some(kv) => Event::Put { kv, previous },
            None => Event::Delete { key, revision, previous },
        }
    }

    fn count(&mut self, before: Option<&KeyValue>, after: Option<&KeyValue>) {
        self.live = self.live + u64::from(after.is_some()) - u64::from(before.is_some());
        let sum = |kv: Option<&KeyValue>| kv.map_or(0, entry_digest);
        self.digest = self.digest.wrapping_add(sum(after)).wrapping_sub(sum(before));
    }

    /// Moves to `revision` without a change. Somebody may have seen the revisions between, with changes that are
    /// lost, so nobody can read or watch from them.
    pub(crate) fn skip(&mut self, revision: Revision) {
        self.gaps.push((self.revision, revision));
        self.revision = revision;
    }

    /// Refuses reads before `revision` from now on. What only they could see goes with [`sweep`](Self::sweep), a
    /// slice at a time, so that nobody waits for all of it.
    pub(crate) fn compact(&mut self, revision: Revision) -> Result<(), Error> {
        if revision > self.revision {
            return Err(Error::FutureRevision { requested: revision, current: self.revision });
        }
        if revision <= self.compacted {
            return Ok(());
        }
        let from = self.first_readable();
        let dead = self.history.range(from..).take_while(|entry| entry.revision <= revision);
        self.dead_bytes += dead.map(|entry| entry.bytes).sum::<usize>();
        self.compacted = revision;
        self.gaps.retain(|(_, after)| *after > revision);
        Ok(())
    }

    /// Forgets compacted changes, about `limit` of them; whether there are more.
    pub(crate) fn sweep(&mut self, limit: usize) -> bool {
        let mut swept = 0;
        while swept < limit && self.is_unswept() {
            let Some(first) = self.history.pop_front() else { break };
            self.history_bytes -= first.bytes;
            self.dead_bytes -= first.bytes;
            swept += first.events.len().max(1);
            for event in &first.events {
                let gone = self.keys.get_mut(event.key()).is_some_and(|slot| slot.trim(self.compacted));
                if gone {
                    self.keys.remove(event.key());
                }
            }
        }
        self.is_unswept()
    }

    /// Whether compacted changes are still in memory.
    pub(crate) fn is_unswept(&self) -> bool {
        self.history.front().is_some_and(|first| first.revision <= self.compacted)
    }

    /// Where the part of the history begins that can be read.
    fn first_readable(&self) -> usize {
        self.history.partition_point(|entry| entry.revision <= self.compacted)
    }

    /// Compacts what is beyond the bounds.
    pub(crate) fn expire(&mut self, bounds: &History, now: Instant) {
        let mut bytes = self.history_bytes - self.dead_bytes;
        let mut last = None;
        for entry in self.history.range(self.first_readable()..) {
            if bytes <= bounds.bytes && now.saturating_duration_since(entry.at) <= bounds.age {
                break;
            }
            bytes -= entry.bytes;
            last = Some(entry.revision);
        }
        if let Some(revision) = last {
            // Never in the future: it is in the history.
            let _ = self.compact(revision);
        }
    }

    /// When the oldest change that can be read was made.
    pub(crate) fn oldest(&self) -> Option<Instant> {
        self.history.get(self.first_readable()).map(|entry| entry.at)
    }

    /// The committed revisions after `from`, oldest first.
    pub(crate) fn since(&self, from: Revision) -> impl Iterator<Item = &Arc<Committed>> {
        let first = self.history.partition_point(|entry| entry.revision <= from);
        self.history.range(first..)
    }
}

/// What an event keeps in memory that the current state does not.
fn event_bytes(event: &Event) -> usize {
    let (Event::Put { previous, .. } | Event::Delete { previous, .. }) = event;
    CHANGE_OVERHEAD + event.key().len() + previous.as_ref().map_or(0, |kv| kv.value.len())
}

/// Checksum of one entry; their sum over a state does not depend on order.
pub(crate) fn entry_digest(kv: &KeyValue) -> u64 {
    let mut crc = crc32c::crc32c(&kv.key);
    crc = crc32c::crc32c_append(crc, &kv.create_revision.to_le_bytes());
    crc = crc32c::crc32c_append(crc, &kv.mod_revision.to_le_bytes());
    crc = crc32c::crc32c_append(crc, &kv.value);
    // Spread over 64 bits, so that sums of few entries do not cancel out.
    (u64::from(crc) ^ kv.mod_revision.rotate_left(32)).wrapping_mul(0x9E37_79B9_7F4A_7C15)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn put(state: &mut State, key: &str) -> Revision {
        let revision = state.revision() + 1;
        let change = Change { key: Bytes::copy_from_slice(key.as_bytes()), value: Some("v".into()) };
        state.apply(revision, vec![change], Instant::now());
        revision
    }

    #[test]
    fn compaction_holds_at_once_and_is_swept_in_slices() {
        let mut state = State::new();
        for index in 0..1000 {
            put(&mut state, &format!("k{}", index % 10));
        }
        let (revision, bytes) = (state.revision(), state.history_bytes());
        state.compact(revision - 10).unwrap();
        assert!(matches!(state.get(b"k0", Some(revision - 11)), Err(Error::Compacted { .. })));
        assert_eq!(state.history_bytes(), bytes, "nothing was swept yet");
        let mut slices = 0;
        while state.sweep(100) {
            slices += 1;
            assert!(
                state.range(Range { at: Some(revision - 10), ..Range::default() }).unwrap().items.len() == 10
            );
        }
        assert_eq!(slices, 9, "990 changes in slices of a hundred");
        assert_eq!((state.history.len(), state.dead_bytes), (10, 0));
        assert!(state.history_bytes() <= bytes / 100 + 1);
        assert!(!state.is_unswept() && state.since(revision - 10).count() == 10);
    }

    #[test]
    fn the_bound_in_bytes_counts_what_can_be_read() {
        let mut state = State::new();
        let bounds = History { age: Duration::from_secs(60), bytes: 10_000 };
        for _ in 0..1000 {
            put(&mut state, "k");
            state.expire(&bounds, Instant::now());
        }
        // Nothing was swept, and still only as much is gone as the bound asks for.
        assert!(state.history_bytes() - state.dead_bytes > 9000);
        assert!(state.history_bytes() - state.dead_bytes <= 10_000);
        while state.sweep(SWEEP) {}
        assert!(state.history_bytes() <= 10_000);
    }
}
