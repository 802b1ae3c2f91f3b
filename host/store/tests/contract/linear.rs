//! Linearizability: whatever many clients do at the same time, there is one order of it that explains every
//! answer and agrees with the clock.
//!
//! Revisions are that order for the writes; the rest is checked against a model that replays it. Each answer of a
//! read must show the state of one revision, not older than anything that had been answered before it was asked,
//! and not newer than what had been asked when it was answered.

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicU64, Ordering};

use wasmk_store::{Compare, Op, Range, Revision, Store, Txn, TxnOutcome};

use super::suite::Backend;

const CLIENTS: u64 = 8;
const OPERATIONS: u64 = 60;
const KEYS: u64 = 4;

/// What keys under test held: value and mod revision.
type Contents = BTreeMap<String, (String, Revision)>;

#[derive(Debug)]
enum Did {
    /// Committed in that revision.
    Write(Txn, Revision),
    /// Refused, with what the compared keys held.
    Refused(Txn, Vec<Option<(String, Revision)>>),
    /// One key.
    Get(String, Option<(String, Revision)>),
    /// All keys, at that revision.
    List(Contents, Revision),
}

/// An operation with when it was asked and answered, on one clock of the whole test.
#[derive(Debug)]
struct Record {
    asked: u64,
    answered: u64,
    did: Did,
}

fn next(random: &mut u64) -> u64 {
    *random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
    *random >> 33
}

fn name(key: u64) -> String {
    format!("/lin/{key}")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

async fn operation(
    store: &dyn Store,
    client: u64,
    number: u64,
    random: &mut u64,
    known: &mut HashMap<String, Revision>,
) -> Did {
    let key = name(next(random) % KEYS);
    match next(random) % 8 {
        0 | 1 => {
            let kv = store.get(key.as_bytes(), None).await.unwrap();
            let found = kv.map(|kv| (text(&kv.value), kv.mod_revision));
            known.insert(key.clone(), found.as_ref().map_or(0, |(_, revision)| *revision));
            Did::Get(key, found)
        }
        2 => {
            let all = store.range(Range { prefix: b"/lin/", ..Range::default() }).await.unwrap();
            let item = |kv: wasmk_store::KeyValue| (text(&kv.key), (text(&kv.value), kv.mod_revision));
            Did::List(all.items.into_iter().map(item).collect(), all.revision)
        }
        what => {
            let other = name((next(random) % (KEYS - 1) + 1 + key[5..].parse::<u64>().unwrap()) % KEYS);
            let mut txn = Txn::default();
            if what > 3 {
                let mod_revision = known.get(&key).copied().unwrap_or(0);
                txn.compares.push(Compare { key: key.clone().into(), mod_revision });
            }
            txn.ops.push(Op::Put { key: key.clone().into(), value: format!("{client}.{number}").into() });
            txn.ops.push(match next(random) % 3 {
                0 => Op::Delete { key: other.into() },
                _ => Op::Put { key: other.into(), value: format!("{client}.{number}'").into() },
            });
            match store.txn(txn.clone()).await.unwrap() {
                TxnOutcome::Committed { revision } => {
                    known.insert(key, revision);
                    Did::Write(txn, revision)
                }
                TxnOutcome::Failed { current } => {
                    let current: Vec<_> = current
                        .into_iter()
                        .map(|kv| kv.map(|kv| (text(&kv.value), kv.mod_revision)))
                        .collect();
                    known.insert(key, current[0].as_ref().map_or(0, |(_, revision)| *revision));
                    Did::Refused(txn, current)
                }
            }
        }
    }
}

/// The state after each write, by revision.
fn replay(records: &[Record], start: Revision) -> BTreeMap<Revision, Contents> {
    let mut writes: Vec<(&Txn, Revision)> = Vec::new();
    for record in records {
        if let Did::Write(txn, revision) = &record.did {
            writes.push((txn, *revision));
        }
    }
    writes.sort_by_key(|(_, revision)| *revision);
    let mut states = BTreeMap::from([(start, Contents::new())]);
    for (txn, revision) in writes {
        let (last, before) = states.last_key_value().unwrap();
        assert!(revision > *last, "revision {revision} was given out twice");
        assert!(holds(before, txn), "{txn:?} was committed in {revision} against {before:?}");
        let mut state = before.clone();
        for op in &txn.ops {
            match op {
                Op::Put { key, value } => drop(state.insert(text(key), (text(value), revision))),
                Op::Delete { key } => drop(state.remove(&text(key))),
            }
        }
        states.insert(revision, state);
    }
    states
}

fn holds(state: &Contents, txn: &Txn) -> bool {
    let modified = |key: &[u8]| state.get(&text(key)).map_or(0, |(_, revision)| *revision);
    txn.compares.iter().all(|compare| modified(&compare.key) == compare.mod_revision)
}

/// Whether an operation that changes nothing fits a state.
fn fits(did: &Did, revision: Revision, state: &Contents) -> bool {
    match did {
        Did::Write(_, written) => *written == revision,
        Did::Get(key, found) => state.get(key) == found.as_ref(),
        Did::List(found, at) => found == state && revision <= *at,
        Did::Refused(txn, current) => {
            let shown = |compare: &Compare| state.get(&text(&compare.key)).cloned();
            !holds(state, txn) && txn.compares.iter().map(shown).eq(current.iter().cloned())
        }
    }
}

/// Finds for each operation, in the order they were asked, the oldest revision that explains it.
fn explain(mut records: Vec<Record>, states: &BTreeMap<Revision, Contents>) {
    records.sort_by_key(|record| record.asked);
    let writes: Vec<(u64, Revision)> = records
        .iter()
        .filter_map(|record| if let Did::Write(_, r) = record.did { Some((record.asked, r)) } else { None })
        .collect();
    let mut explained: Vec<(u64, Revision)> = Vec::new();
    for record in &records {
        let answered_before = explained.iter().filter(|(answered, _)| *answered < record.asked);
        let oldest = answered_before.map(|(_, revision)| *revision).max().unwrap_or(0);
        let asked_after =
            |revision: Revision| writes.iter().any(|(asked, r)| *r == revision && *asked > record.answered);
        let found = states
            .range(oldest..)
            .take_while(|(revision, _)| !asked_after(**revision))
            .find(|(revision, state)| fits(&record.did, **revision, state));
        let (revision, _) =
            found.unwrap_or_else(|| panic!("nothing explains {record:#?} from revision {oldest} on"));
        explained.push((record.answered, *revision));
    }
}

pub(crate) async fn concurrent_histories_are_linearizable(b: &Backend) {
    static CLOCK: AtomicU64 = AtomicU64::new(1);
    let start = b.revision().await;
    let clients: Vec<_> = (0..CLIENTS)
        .map(|client| {
            let store = b.store.clone();
            tokio::spawn(async move {
                let (mut records, mut random, mut known) = (Vec::new(), client + 1, HashMap::new());
                for number in 0..OPERATIONS {
                    let asked = CLOCK.fetch_add(1, Ordering::SeqCst);
                    let did = operation(&*store, client, number, &mut random, &mut known).await;
                    records.push(Record { asked, answered: CLOCK.fetch_add(1, Ordering::SeqCst), did });
                }
                records
            })
        })
        .collect();
    let mut records = Vec::new();
    for client in clients {
        records.extend(client.await.unwrap());
    }
    let count = |pick: fn(&Did) -> bool| records.iter().filter(|record| pick(&record.did)).count();
    let kinds = [
        count(|did| matches!(did, Did::Write(..))),
        count(|did| matches!(did, Did::Refused(..))),
        count(|did| matches!(did, Did::Get(..))),
        count(|did| matches!(did, Did::List(..))),
    ];
    assert!(kinds.iter().all(|kind| *kind > 10), "of everything something: {kinds:?}");
    let states = replay(&records, start);
    explain(records, &states);
}

fn record(asked: u64, answered: u64, did: Did) -> Record {
    Record { asked, answered, did }
}

fn put(value: &str, revision: Revision) -> Did {
    let op = Op::Put { key: "/lin/0".into(), value: value.to_string().into() };
    Did::Write(Txn { ops: vec![op], ..Txn::default() }, revision)
}

fn got(value: &str, revision: Revision) -> Did {
    Did::Get("/lin/0".into(), Some((value.into(), revision)))
}

fn is_refused(records: impl FnOnce() -> Vec<Record> + std::panic::UnwindSafe) -> bool {
    std::panic::catch_unwind(|| {
        let records = records();
        let states = replay(&records, 1);
        explain(records, &states);
    })
    .is_err()
}

/// The check itself is known to find what it is for.
#[test]
fn histories_without_an_order_are_refused() {
    let good = || vec![record(1, 2, put("a", 2)), record(3, 6, put("b", 3)), record(4, 5, got("a", 2))];
    assert!(!is_refused(good));
    let stale = || vec![record(1, 2, put("a", 2)), record(3, 4, put("b", 3)), record(5, 6, got("a", 2))];
    assert!(is_refused(stale), "a read behind an answered write");
    let back = || {
        let reads = [record(4, 5, got("b", 3)), record(6, 7, got("a", 2))];
        [record(1, 2, put("a", 2)), record(3, 9, put("b", 3))].into_iter().chain(reads).collect()
    };
    assert!(is_refused(back), "a read that goes back behind another");
    let early = || vec![record(1, 2, got("a", 2)), record(3, 4, put("a", 2))];
    assert!(is_refused(early), "a read of what nobody had asked for");
    let twice = || vec![record(1, 2, put("a", 2)), record(3, 4, put("b", 2))];
    assert!(is_refused(twice), "one revision for two writes");
    let order = || vec![record(1, 2, put("a", 3)), record(3, 4, put("b", 2))];
    assert!(is_refused(order), "revisions against the clock");
}
