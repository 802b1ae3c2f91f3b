//! The log on a simulated disk that forgets what was not synced, tears sectors, fills up and fails, with seeds.
//!
//! Every life of a store ends in a crash at a random operation; the next must find a state that acknowledged
//! writes allow, and never give out a revision again.

use std::collections::BTreeMap;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::oneshot;

use super::checkpoint::{Manifest, SLOTS, Shelf};
use super::disk::{Disk, DiskFile};
use super::engine::Engine;
use super::{Settings, dir, start};
use crate::mvcc::{History, entry_digest};
use crate::{Compare, Durability, Error, KeyValue, Op, Revision, Txn, TxnOutcome};

const SECTOR: usize = 64;
const KEYS: u64 = 8;
/// Stores simulated, of eight lives each, unless `STORE_CRASH_SEEDS` asks for another number.
const SEEDS: u64 = 120;

/// Splitmix64: enough randomness for a test, the same everywhere.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }

    fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }
}

enum Pending {
    Write(usize, Vec<u8>),
    SetLen(usize),
}

#[derive(Default)]
struct Inode {
    seen: Vec<u8>,
    durable: Vec<u8>,
    pending: Vec<Pending>,
}

fn write(data: &mut Vec<u8>, offset: usize, bytes: &[u8]) {
    data.resize(data.len().max(offset + bytes.len()), 0);
    data[offset..offset + bytes.len()].copy_from_slice(bytes);
}

#[derive(Clone)]
enum Rename {
    Set(String, usize),
    Move(String, String),
    Remove(String),
}

/// What goes wrong, once, when the countdown ends.
#[derive(Clone, Copy, PartialEq)]
enum Fault {
    Crash,
    Full,
    Sync,
}

struct Platter {
    inodes: Vec<Inode>,
    names: BTreeMap<String, usize>,
    durable_names: BTreeMap<String, usize>,
    renames: Vec<Rename>,
    random: Random,
    fault: Option<(u64, Fault)>,
    dead: bool,
    slots: [BTreeMap<Bytes, KeyValue>; SLOTS],
}

#[derive(Clone)]
struct SimDisk(Arc<Mutex<Platter>>);

impl SimDisk {
    fn new(seed: u64) -> Self {
        Self(Arc::new(Mutex::new(Platter {
            inodes: Vec::new(),
            names: BTreeMap::new(),
            durable_names: BTreeMap::new(),
            renames: Vec::new(),
            random: Random(seed),
            fault: None,
            dead: false,
            slots: Default::default(),
        })))
    }

    fn arm(&self, after: u64, fault: Fault) {
        self.0.lock().fault = Some((after, fault));
    }

    fn is_armed(&self) -> bool {
        self.0.lock().fault.is_some()
    }

    fn is_dead(&self) -> bool {
        self.0.lock().dead
    }

    /// Loses one entry of the newest checkpoint, if the other one is good.
    fn rot(&self) -> bool {
        let slots = Manifest::read(self).expect("replaced as a whole").newest_first();
        let [newest, other] = slots[..] else { return false };
        let mut platter = self.0.lock();
        let digest = platter.slots[other.slot].values().map(entry_digest).fold(0, u64::wrapping_add);
        digest == other.digest && platter.slots[newest.slot].pop_first().is_some()
    }

    /// Power comes back: what is left of everything not synced is chance.
    fn reboot(&self) {
        let mut platter = self.0.lock();
        let Platter { inodes, names, durable_names, renames, random, .. } = &mut *platter;
        let kept = random.below(renames.len() as u64 + 1) as usize;
        renames.drain(..).take(kept).for_each(|rename| apply(durable_names, rename));
        *names = durable_names.clone();
        let odds = 1 + random.below(4);
        for inode in inodes {
            for pending in std::mem::take(&mut inode.pending) {
                match pending {
                    Pending::SetLen(len) if random.one_in(odds) => inode.durable.resize(len, 0),
                    Pending::SetLen(_) => {}
                    Pending::Write(offset, bytes) => {
                        for (index, sector) in bytes.chunks(SECTOR).enumerate() {
                            if random.one_in(odds) {
                                write(&mut inode.durable, offset + index * SECTOR, sector);
                            }
                        }
                    }
                }
            }
            inode.seen = inode.durable.clone();
        }
        platter.dead = false;
        platter.fault = None;
    }
}

fn apply(names: &mut BTreeMap<String, usize>, rename: Rename) {
    match rename {
        Rename::Set(name, inode) => drop(names.insert(name, inode)),
        Rename::Move(from, to) => {
            if let Some(inode) = names.remove(&from) {
                names.insert(to, inode);
            }
        }
        Rename::Remove(name) => drop(names.remove(&name)),
    }
}

impl Platter {
    /// Counts an operation that changes something; the fault that strikes it, if any.
    fn step(&mut self) -> Result<Option<Fault>, io::Error> {
        if self.dead {
            return Err(io::Error::other("crashed"));
        }
        match &mut self.fault {
            Some((0, fault)) => {
                let fault = *fault;
                self.fault = None;
                self.dead = fault == Fault::Crash;
                Ok(Some(fault))
            }
            Some((left, _)) => {
                *left -= 1;
                Ok(None)
            }
            None => Ok(None),
        }
    }

    fn failure(&mut self) -> io::Result<()> {
        match self.step()? {
            Some(Fault::Crash) => Err(io::Error::other("crashed")),
            Some(Fault::Full) => Err(io::ErrorKind::StorageFull.into()),
            Some(Fault::Sync) => Err(io::Error::other("input/output error")),
            None => Ok(()),
        }
    }

    fn rename(&mut self, rename: Rename) {
        apply(&mut self.names, rename.clone());
        self.renames.push(rename);
    }
}

impl Disk for SimDisk {
    fn list(&self) -> io::Result<Vec<String>> {
        Ok(self.0.lock().names.keys().cloned().collect())
    }

    fn read(&self, name: &str, limit: usize) -> io::Result<Vec<u8>> {
        let platter = self.0.lock();
        let inode = platter.names.get(name).ok_or(io::ErrorKind::NotFound)?;
        let data = &platter.inodes[*inode].seen;
        Ok(data[..data.len().min(limit)].to_vec())
    }

    fn open(&self, name: &str) -> io::Result<Box<dyn DiskFile>> {
        let mut platter = self.0.lock();
        platter.failure()?;
        let inode = match platter.names.get(name) {
            Some(inode) => *inode,
            None => {
                platter.inodes.push(Inode::default());
                let inode = platter.inodes.len() - 1;
                platter.rename(Rename::Set(name.into(), inode));
                inode
            }
        };
        Ok(Box::new(SimFile(self.clone(), inode)))
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        let mut platter = self.0.lock();
        platter.failure()?;
        platter.rename(Rename::Move(from.into(), to.into()));
        Ok(())
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        let mut platter = self.0.lock();
        platter.failure()?;
        if !platter.names.contains_key(name) {
            return Err(io::ErrorKind::NotFound.into());
        }
        platter.rename(Rename::Remove(name.into()));
        Ok(())
    }

    fn sync_dir(&self) -> io::Result<()> {
        let mut platter = self.0.lock();
        platter.failure()?;
        platter.renames.clear();
        platter.durable_names = platter.names.clone();
        Ok(())
    }

    fn path(&self, name: &str) -> PathBuf {
        PathBuf::from("/sim").join(name)
    }
}

struct SimFile(SimDisk, usize);

impl DiskFile for SimFile {
    fn write_at(&mut self, offset: u64, data: &[u8]) -> io::Result<()> {
        let mut platter = self.0.0.lock();
        let fault = platter.step()?;
        // A write that fails may have written its beginning.
        let done =
            if fault.is_some() { platter.random.below(data.len() as u64 + 1) as usize } else { data.len() };
        let inode = &mut platter.inodes[self.1];
        write(&mut inode.seen, offset as usize, &data[..done]);
        inode.pending.push(Pending::Write(offset as usize, data[..done].to_vec()));
        match fault {
            None => Ok(()),
            Some(Fault::Full) => Err(io::ErrorKind::StorageFull.into()),
            Some(_) => Err(io::Error::other("input/output error")),
        }
    }

    fn set_len(&mut self, len: u64) -> io::Result<()> {
        let mut platter = self.0.0.lock();
        platter.failure()?;
        let inode = &mut platter.inodes[self.1];
        inode.seen.resize(len as usize, 0);
        inode.pending.push(Pending::SetLen(len as usize));
        Ok(())
    }

    fn sync(&mut self) -> io::Result<()> {
        let mut platter = self.0.0.lock();
        let fault = platter.step()?;
        let Platter { inodes, random, .. } = &mut *platter;
        let inode = &mut inodes[self.1];
        if fault.is_some() {
            // The kernel forgets that these pages were not written; nothing will ever write them.
            inode.pending.retain(|_| random.one_in(2));
            return Err(io::Error::other("input/output error"));
        }
        inode.pending.clear();
        inode.durable = inode.seen.clone();
        Ok(())
    }
}

impl Shelf for SimDisk {
    fn write(&self, slot: usize, full: bool, changes: &[(Bytes, Option<KeyValue>)]) -> Result<(), String> {
        let mut platter = self.0.lock();
        if full {
            platter.slots[slot].clear();
        }
        for (key, kv) in changes {
            platter.failure().map_err(|error| error.to_string())?;
            match kv {
                Some(kv) => drop(platter.slots[slot].insert(key.clone(), kv.clone())),
                None => drop(platter.slots[slot].remove(key)),
            }
        }
        Ok(())
    }

    fn load(&self, slot: usize) -> Result<Vec<KeyValue>, String> {
        Ok(self.0.lock().slots[slot].values().cloned().collect())
    }
}

type Contents = BTreeMap<Bytes, KeyValue>;

/// What a store may hold after a crash, judged only by what it answered.
#[derive(Default)]
struct Model {
    now: Contents,
    /// Every state since the last durable one, that one first.
    states: Vec<Contents>,
    /// The highest revision anybody was told.
    told: Revision,
}

impl Model {
    fn holds(contents: &Contents, compare: &Compare) -> bool {
        contents.get(&compare.key).map_or(0, |kv| kv.mod_revision) == compare.mod_revision
    }

    fn change(contents: &mut Contents, txn: &Txn, revision: Revision) {
        for op in &txn.ops {
            match op {
                Op::Delete { key } => drop(contents.remove(key)),
                Op::Put { key, value } => {
                    let create_revision = contents.get(key).map_or(revision, |kv| kv.create_revision);
                    let (key, value) = (key.clone(), value.clone());
                    let kv = KeyValue { key: key.clone(), value, create_revision, mod_revision: revision };
                    contents.insert(key, kv);
                }
            }
        }
    }

    /// Takes note of an answered group; true if all of it is durable now.
    fn answered(&mut self, txns: &[Txn], outcomes: &[TxnOutcome]) {
        let mut durable = false;
        for (txn, outcome) in txns.iter().zip(outcomes) {
            let holds = txn.compares.iter().all(|compare| Self::holds(&self.now, compare));
            match outcome {
                TxnOutcome::Failed { current } => {
                    assert!(!holds, "a transaction failed whose conditions held");
                    let expected: Vec<_> =
                        txn.compares.iter().map(|c| self.now.get(&c.key).cloned()).collect();
                    assert_eq!(*current, expected);
                }
                TxnOutcome::Committed { revision } => {
                    assert!(holds, "a transaction was committed whose conditions did not hold");
                    let before = self.now.clone();
                    Self::change(&mut self.now, txn, *revision);
                    if before != self.now {
                        assert!(*revision > self.told, "revision {revision} given out twice");
                        durable |= txn.durability == Durability::Synced;
                        self.told = *revision;
                        self.states.push(self.now.clone());
                    }
                }
            }
        }
        if durable {
            self.states = vec![self.now.clone()];
        }
    }

    /// Takes note of a group that got an error: any beginning of it may turn up later.
    fn failed(&mut self, txns: &[Txn], mut revision: Revision) {
        let mut contents = self.now.clone();
        for txn in txns.iter().filter(|txn| !txn.ops.is_empty()) {
            if !txn.compares.iter().all(|compare| Self::holds(&contents, compare)) {
                continue;
            }
            let before = contents.clone();
            Self::change(&mut contents, txn, revision + 1);
            if contents != before {
                revision += 1;
                self.states.push(contents.clone());
            }
        }
    }
}

/// How often things happened, so that the test is known to have tested.
#[derive(Debug, Default)]
struct Tally {
    crashes: u64,
    cut: u64,
    skipped: u64,
    from_checkpoint: u64,
    damaged_checkpoints: u64,
    rotten: u64,
    clean: u64,
    refused: u64,
    poisoned: u64,
    committed: u64,
}

struct Life<'a> {
    disk: &'a SimDisk,
    random: &'a mut Random,
    model: &'a mut Model,
    tally: &'a mut Tally,
    engine: Engine,
    now: Instant,
}

impl Life<'_> {
    fn txn(&mut self) -> Txn {
        let random = &mut *self.random;
        let mut txn = Txn::default();
        let first = random.below(KEYS);
        for index in 0..1 + random.below(3) {
            let key = Bytes::from(format!("/k/{}", (first + index) % KEYS));
            if random.one_in(2) {
                let known = self.model.now.get(&key).map_or(0, |kv| kv.mod_revision);
                let mod_revision = if random.one_in(8) { known + 1 } else { known };
                txn.compares.push(Compare { key: key.clone(), mod_revision });
            }
            if random.one_in(4) {
                txn.ops.push(Op::Delete { key });
            } else {
                let mut value = random.next().to_le_bytes().to_vec();
                let len = if random.one_in(10) { 3000 } else { 200 };
                value.resize(8 + random.below(len) as usize, b'v');
                txn.ops.push(Op::Put { key, value: value.into() });
            }
        }
        match random.below(4) {
            0 => txn.relaxed(),
            1 => txn.held(),
            _ => txn,
        }
    }

    fn group(&mut self) {
        let txns: Vec<Txn> = (0..1 + self.random.below(5)).map(|_| self.txn()).collect();
        let (replies, answers): (Vec<_>, Vec<_>) = txns.iter().map(|_| oneshot::channel()).unzip();
        let before = self.engine.shared.revision().unwrap();
        self.engine.commit(txns.iter().cloned().zip(replies).collect(), self.now);
        let answers: Result<Vec<TxnOutcome>, Error> =
            answers.into_iter().map(|mut answer| answer.try_recv().expect("answered")).collect();
        match answers {
            Ok(outcomes) => {
                self.tally.committed += outcomes.len() as u64;
                self.model.answered(&txns, &outcomes);
            }
            Err(Error::ReadOnly { .. }) => self.tally.poisoned += 1,
            Err(error) => {
                self.tally.refused += u64::from(matches!(error, Error::Full { .. }));
                self.model.failed(&txns, before);
            }
        }
        assert_eq!(contents(&self.engine), self.model.now, "reads show exactly what was acknowledged");
    }

    fn other(&mut self) {
        match self.random.below(12) {
            0 => {
                self.now += Duration::from_secs(10);
                self.engine.tick(self.now);
            }
            1 => {
                let revision = self.engine.shared.revision().unwrap();
                drop(self.engine.compact(revision - self.random.below(revision.min(20)), self.now));
            }
            _ => {}
        }
        if let Some(job) = self.engine.checkpoint() {
            let slot = job.info.slot;
            let disk: Arc<dyn Disk> = Arc::new(self.disk.clone());
            let result = job.run(&disk, self.disk);
            self.engine.checkpointed(slot, result);
        }
    }

    fn live(mut self) {
        for _ in 0..10 + self.random.below(60) {
            if self.disk.is_dead() {
                return;
            }
            self.group();
            self.other();
            if self.random.one_in(10) && !self.disk.is_armed() {
                // Errors that come together are the ones error handling forgets.
                let fault = [Fault::Crash, Fault::Full, Fault::Sync][self.random.below(3) as usize];
                self.disk.arm(self.random.below(12), fault);
            }
        }
        if self.random.one_in(2)
            && !self.disk.is_dead()
            && let Ok(closed) = self.engine.finish()
        {
            drop(dir::write_closed(self.disk, closed));
        }
    }
}

fn contents(engine: &Engine) -> Contents {
    engine.shared.state.read().all().map(|kv| (kv.key.clone(), kv)).collect()
}

/// Checks a recovered store against what may be there, and takes it as the truth from then on.
fn judge(engine: &Engine, model: &mut Model) {
    let found = contents(engine);
    assert!(model.states.contains(&found), "found {found:#?}\nexpected one of {:#?}", model.states);
    let state = engine.shared.state.read();
    assert!(state.revision() >= model.told, "revision {} after {} was told", state.revision(), model.told);
    let revisions: Vec<Revision> =
        state.since(state.compacted()).map(|committed| committed.revision).collect();
    assert!(revisions.is_sorted_by(|a, b| a < b), "history is in order");
    model.told = state.revision();
    model.states = vec![found.clone()];
    model.now = found;
}

fn run(seed: u64, tally: &mut Tally) {
    let (disk, mut random) = (SimDisk::new(seed), Random(seed ^ 0x5EED));
    let mut model = Model { states: vec![Contents::new()], ..Model::default() };
    let settings = Settings {
        history: History { age: Duration::from_secs(60), bytes: 2000 + random.below(20_000) as usize },
        relaxed_delay: Duration::from_secs(5),
        held_delay: Duration::from_secs(15),
        segment_bytes: 500 + random.below(8000),
        checkpoint_bytes: 1000 + random.below(20_000),
    };
    for _ in 0..8 {
        if random.one_in(3) {
            // The start itself is cut short as well.
            disk.arm(random.below(12), Fault::Crash);
        }
        let shared: Arc<dyn Disk> = Arc::new(disk.clone());
        match start(&shared, &disk, settings) {
            Ok((engine, recovery)) => {
                judge(&engine, &mut model);
                tally.cut += u64::from(recovery.cut_bytes > 0);
                tally.skipped += u64::from(recovery.skipped > 0);
                tally.from_checkpoint += u64::from(recovery.checkpoint.is_some());
                tally.damaged_checkpoints += recovery.damaged_checkpoints as u64;
                tally.clean += u64::from(recovery.clean);
                let fault = [Fault::Crash, Fault::Crash, Fault::Full, Fault::Sync][random.below(4) as usize];
                disk.arm(random.below(150), fault);
                let (model, random, disk) = (&mut model, &mut random, &disk);
                Life { disk, random, model, tally, engine, now: Instant::now() }.live();
            }
            Err(error) => assert!(disk.is_dead(), "does not open: {error}"),
        }
        tally.crashes += 1;
        disk.reboot();
        tally.rotten += u64::from(random.one_in(3) && disk.rot());
    }
}

#[test]
fn no_crash_loses_an_acknowledged_write() {
    let mut tally = Tally::default();
    // A failed seed alone: STORE_CRASH_FIRST=<seed> STORE_CRASH_SEEDS=1.
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    let (first, seeds) =
        (number("STORE_CRASH_FIRST").unwrap_or(0), number("STORE_CRASH_SEEDS").unwrap_or(SEEDS));
    for seed in first..first + seeds {
        let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| run(seed, &mut tally)));
        assert!(result.is_ok(), "seed {seed}; alone with STORE_CRASH_FIRST={seed} STORE_CRASH_SEEDS=1");
    }
    if seeds < SEEDS {
        // Too few for everything to have happened.
        return;
    }
    let Tally { crashes, cut, skipped, from_checkpoint, damaged_checkpoints, .. } = tally;
    let Tally { rotten, clean, refused, poisoned, committed, .. } = tally;
    let seen = [
        crashes,
        cut,
        skipped,
        from_checkpoint,
        damaged_checkpoints,
        rotten,
        clean,
        refused,
        poisoned,
        committed,
    ];
    assert!(seen.iter().all(|count| *count > 0), "{tally:?}");
}
