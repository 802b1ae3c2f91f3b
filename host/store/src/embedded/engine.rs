//! Commits groups of transactions: decide, log, sync once, apply, tell.
//!
//! One thread owns it. Nothing here waits for anybody but the disk, and nothing is visible before it is as durable
//! as its writer asked for.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::sync::oneshot;

use super::Settings;
use super::checkpoint::{Job, Keeper, Manifest};
use super::log::{Failure, Log};
use super::record::{Batch, Kind};
use super::recover::{Closed, Recovered, Recovery};
use crate::mvcc::{Change, Committed, Overlay, SWEEP, Verdict};
use crate::shared::Shared;
use crate::{Durability, Error, Revision, Txn, TxnOutcome};

/// Revisions reserved at a time for changes that are not synced. After a power failure so many may be left out.
const RESERVE: Revision = 4096;
/// Longest a watch waits to learn that revisions passed without a change for it.
const PROGRESS_DELAY: Duration = Duration::from_millis(50);
/// History is looked through for what is too old so many times in its age.
const EXPIRY_STEPS: u32 = 8;

/// Where the outcome of a transaction goes.
pub(crate) type Reply = oneshot::Sender<Result<TxnOutcome, Error>>;

pub(crate) struct Engine {
    pub(crate) shared: Arc<Shared>,
    settings: Settings,
    log: Log,
    keeper: Keeper,
    /// Revisions up to this one may be given to changes that are not synced.
    ceiling: Revision,
    /// When the log is to be synced; none when nothing in it waits for that.
    due: Option<Instant>,
    /// The disk error after which nothing is written any more; the shared state has a copy for others to see.
    broken: Option<Error>,
    told_all: Instant,
    untold: bool,
}

/// A group decided and encoded, but not yet written.
struct Draft {
    batch: Batch,
    commits: Vec<(Revision, Vec<Change>)>,
    outcomes: Vec<TxnOutcome>,
    ceiling: Revision,
    /// What the most demanding of the transactions asks for.
    wanted: Durability,
}

impl Engine {
    /// Takes over what recovery found. When unsynced revisions may have been lost, moves on beyond them first.
    pub(crate) fn new(recovered: Recovered, settings: Settings) -> Result<(Self, Recovery), Error> {
        let Recovered { state, log, manifest, loaded, changed, ceiling, mut recovery } = recovered;
        let shared = Shared::new(state);
        let keeper = Keeper::new(manifest, loaded, changed);
        let mut engine = Self {
            shared,
            settings,
            log,
            keeper,
            ceiling: 0,
            due: None,
            broken: None,
            told_all: Instant::now(),
            untold: false,
        };
        if !recovery.clean && ceiling > recovery.revision {
            let to = ceiling + 1;
            engine.skip(recovery.revision, to).map_err(|failure| failure.error)?;
            recovery.skipped = to - recovery.revision;
            recovery.revision = to;
        }
        Ok((engine, recovery))
    }

    fn skip(&mut self, from: Revision, to: Revision) -> Result<(), Failure> {
        let mut batch = self.log.batch();
        batch.number(Kind::Skip, to, from);
        self.log.append(batch)?;
        self.log.sync()?;
        self.shared.state.write().skip(to);
        Ok(())
    }

    /// Commits a group of transactions in order, with one sync at most, and answers each.
    pub(crate) fn commit(&mut self, group: Vec<(Txn, Reply)>, now: Instant) {
        self.rotate_if_large();
        if let Some(error) = &self.broken {
            return group.into_iter().for_each(|(_, reply)| drop(reply.send(Err(error.clone()))));
        }
        let (txns, replies): (Vec<Txn>, Vec<Reply>) = group.into_iter().unzip();
        let draft = self.draft(&txns);
        match self.write(draft, now) {
            Ok((outcomes, committed)) => {
                self.tell(&committed, now);
                replies.into_iter().zip(outcomes).for_each(|(reply, outcome)| drop(reply.send(Ok(outcome))));
            }
            Err(error) => replies.into_iter().for_each(|reply| drop(reply.send(Err(error.clone())))),
        }
    }

    /// Decides every transaction on top of those before it.
    fn draft(&mut self, txns: &[Txn]) -> Draft {
        let mut overlay = Overlay::new();
        let mut draft = Draft {
            batch: self.log.batch(),
            commits: Vec::with_capacity(txns.len()),
            outcomes: Vec::with_capacity(txns.len()),
            ceiling: self.ceiling,
            wanted: Durability::Held,
        };
        let state = self.shared.state.read();
        let mut revision = state.revision();
        for txn in txns {
            let outcome = match state.decide(&overlay, txn) {
                Verdict::Failed(current) => TxnOutcome::Failed { current },
                Verdict::Unchanged => TxnOutcome::Committed { revision },
                Verdict::Commit(changes) => {
                    revision += 1;
                    let before = |key: &Bytes| match overlay.get(key) {
                        Some(kv) => kv.as_ref().map(|kv| kv.value.clone()),
                        None => state.current(key).map(|kv| kv.value),
                    };
                    draft.add(revision, &changes, txn.durability, before);
                    if txns.len() > 1 {
                        state.foresee(&mut overlay, revision, &changes);
                    }
                    draft.commits.push((revision, changes));
                    TxnOutcome::Committed { revision }
                }
            };
            draft.outcomes.push(outcome);
        }
        draft
    }

    /// Logs a draft, syncs it if need be, and makes it the state.
    fn write(&mut self, draft: Draft, now: Instant) -> Result<(Vec<TxnOutcome>, Vec<Arc<Committed>>), Error> {
        let Draft { batch, commits, outcomes, ceiling, wanted } = draft;
        if commits.is_empty() {
            return Ok((outcomes, Vec::new()));
        }
        let bytes = batch.bytes.len() as u64;
        let logged = match wanted {
            Durability::Held => self.log.hold(batch),
            Durability::Relaxed => self.log.append(batch),
            Durability::Synced => self.log.append(batch).and_then(|()| self.log.sync()),
        };
        logged.map_err(|failure| self.fail(failure))?;
        self.ceiling = ceiling;
        match wanted {
            Durability::Held => self.sync_within(self.settings.held_delay, now),
            Durability::Relaxed => self.sync_within(self.settings.relaxed_delay, now),
            Durability::Synced => self.due = None,
        }
        self.keeper.note(commits.iter().flat_map(|(_, changes)| changes), bytes);
        self.shared.log_bytes.store(self.keeper.log_bytes(), Ordering::Relaxed);
        let mut state = self.shared.state.write();
        let committed: Vec<Arc<Committed>> =
            commits.into_iter().map(|(revision, changes)| state.apply(revision, changes, now)).collect();
        state.expire(&self.settings.history, now);
        // More than came in, so that what is to be forgotten does not pile up.
        let added: usize = committed.iter().map(|committed| committed.events.len()).sum();
        state.sweep(SWEEP.max(2 * added));
        Ok((outcomes, committed))
    }

    /// Notes a failed write; after a fatal one there are no others.
    fn fail(&mut self, Failure { error, fatal }: Failure) -> Error {
        self.shared.refused.fetch_add(1, Ordering::Relaxed);
        if fatal {
            tracing::error!(%error, "the log cannot be written any more; the store is read-only until restarted");
            self.broken = Some(Error::ReadOnly { path: self.log.path(), reason: chain(&error) });
            *self.shared.broken.lock() = self.broken.clone();
        } else {
            tracing::warn!(%error, "write refused");
        }
        error
    }

    /// Wakes the watchers concerned now, the others once in a while.
    fn tell(&mut self, committed: &[Arc<Committed>], now: Instant) {
        if committed.is_empty() {
            return;
        }
        if now.saturating_duration_since(self.told_all) >= PROGRESS_DELAY {
            self.tell_all(now);
        } else {
            self.shared.ring(committed);
            self.untold = true;
        }
    }

    fn tell_all(&mut self, now: Instant) {
        self.shared.ring_progress(None);
        (self.told_all, self.untold) = (now, false);
    }

    /// Forgets history before `revision`, also after a restart.
    pub(crate) fn compact(&mut self, revision: Revision, now: Instant) -> Result<(), Error> {
        let current = self.shared.state.read().revision();
        if revision > current {
            return Err(Error::FutureRevision { requested: revision, current });
        }
        if let Some(error) = &self.broken {
            return Err(error.clone());
        }
        let mut batch = self.log.batch();
        batch.number(Kind::Compact, current, revision);
        self.log.append(batch).map_err(|failure| self.fail(failure))?;
        self.sync_within(self.settings.relaxed_delay, now);
        self.shared.state.write().compact(revision)
    }

    /// When [`tick`](Self::tick) has something to do, if nothing is committed before.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        let sync = self.due.filter(|_| self.broken.is_none());
        let progress = self.untold.then(|| self.told_all + PROGRESS_DELAY);
        let age = self.settings.history.age;
        let state = self.shared.state.read();
        let expiry = state.oldest().map(|oldest| oldest + age + age / EXPIRY_STEPS);
        let sweep = state.is_unswept().then_some(self.told_all);
        [sync, progress, expiry, sweep].into_iter().flatten().min()
    }

    /// Does what time asks for: the sync of relaxed writes, progress for watchers, the end of old history. Of what
    /// is to be forgotten one slice, so that a writer who came meanwhile does not wait for all of it.
    pub(crate) fn tick(&mut self, now: Instant) {
        if self.due.is_some_and(|due| now >= due) && self.broken.is_none() {
            self.sync(now);
        }
        if self.untold && now >= self.told_all + PROGRESS_DELAY {
            self.tell_all(now);
        }
        let history = self.settings.history;
        let old = |oldest: Instant| now >= oldest + history.age + history.age / EXPIRY_STEPS;
        if self.shared.state.read().oldest().is_some_and(old) {
            self.shared.state.write().expire(&history, now);
        }
        if self.shared.state.read().is_unswept() {
            self.shared.state.write().sweep(SWEEP);
        }
    }

    fn sync(&mut self, now: Instant) {
        match self.log.sync() {
            Ok(()) => self.due = None,
            Err(failure) => {
                // Unless fatal, another try follows.
                self.due = Some(now + self.settings.relaxed_delay);
                self.fail(failure);
            }
        }
    }

    fn sync_within(&mut self, delay: Duration, now: Instant) {
        let due = now + delay;
        self.due = Some(self.due.map_or(due, |earlier| earlier.min(due)));
    }

    fn rotate_if_large(&mut self) {
        if self.broken.is_none() && self.log.len() >= self.settings.segment_bytes {
            self.rotate();
        }
    }

    /// Starts a new segment; answers whether it did.
    fn rotate(&mut self) -> bool {
        let base = self.shared.state.read().revision();
        match self.log.rotate(base) {
            Ok(()) => {
                // A reservation counts only in its own segment, so that old ones can be removed.
                self.ceiling = 0;
                self.due = None;
                true
            }
            Err(failure) => {
                self.fail(failure);
                false
            }
        }
    }

    /// The checkpoint to write now, if one is due.
    pub(crate) fn checkpoint(&mut self) -> Option<Job> {
        if self.broken.is_some() || !self.keeper.is_due(self.settings.checkpoint_bytes) {
            return None;
        }
        self.keeper.postpone();
        if !self.rotate() {
            return None;
        }
        let state = self.shared.state.read();
        Some(self.keeper.start(&state, self.log.segments.clone()))
    }

    /// Takes note of how a checkpoint went.
    pub(crate) fn checkpointed(&mut self, slot: usize, result: Result<Manifest, Error>) {
        if let Ok(manifest) = &result {
            let oldest = manifest.oldest();
            let keep = self.log.segments.iter().rposition(|(_, base)| *base <= oldest).unwrap_or(0);
            self.log.segments.drain(..keep);
        }
        *self.shared.checkpoint_error.lock() = result.as_ref().err().map(chain);
        self.shared.checkpoints_failed.fetch_add(u64::from(result.is_err()), Ordering::Relaxed);
        self.keeper.finish(slot, result);
    }

    /// Makes everything durable and answers where the log ends.
    pub(crate) fn finish(&mut self) -> Result<Closed, Error> {
        if let Some(error) = &self.broken {
            return Err(error.clone());
        }
        self.log.finish().map_err(|failure| self.fail(failure))?;
        self.due = None;
        let revision = self.shared.state.read().revision();
        Ok(Closed { revision, segment: self.log.number(), len: self.log.len() })
    }
}

impl Draft {
    /// Encodes the changes of a transaction; an unsynced one gets a revision that is reserved for such.
    fn add(
        &mut self,
        revision: Revision,
        changes: &[Change],
        durability: Durability,
        before: impl Fn(&Bytes) -> Option<Bytes>,
    ) {
        let mut wanted = durability;
        if durability != Durability::Synced && revision > self.ceiling {
            self.ceiling = revision + RESERVE;
            self.batch.number(Kind::Reserve, revision - 1, self.ceiling);
            wanted = Durability::Synced;
        }
        self.wanted = self.wanted.max(wanted);
        self.batch.txn(revision, changes, before);
    }
}

/// An error with its causes, in one line.
fn chain(error: &Error) -> String {
    let mut out = error.to_string();
    let mut cause = std::error::Error::source(error);
    while let Some(error) = cause {
        out.push_str(": ");
        out.push_str(&error.to_string());
        cause = error.source();
    }
    out
}
