//! Random histories against the simplest model there is: a copy of everything at every revision.

use std::collections::BTreeMap;

use proptest::prelude::*;
use tokio::runtime::Runtime;
use wasmk_store::{
    Compare, Embedded, Error, Event, Memory, Op, Range, Revision, Settings, Store, Txn, TxnOutcome, Watch,
};

/// One step; keys are small numbers, `back` counts revisions from the current one.
#[derive(Debug, Clone)]
enum Step {
    Txn { puts: Vec<(u8, u16)>, deletes: Vec<u8>, compare: Option<(u8, bool)>, relaxed: bool },
    List { prefix: u8, back: u64, page: usize },
    Watch { prefix: u8, back: u64 },
    Compact { back: u64 },
    Reopen,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let key = 0..12_u8;
    let txn = (
        prop::collection::vec((key.clone(), any::<u16>()), 0..4),
        prop::collection::vec(key.clone(), 0..2),
        prop::option::of((key.clone(), any::<bool>())),
        any::<bool>(),
    )
        .prop_map(|(puts, deletes, compare, relaxed)| Step::Txn { puts, deletes, compare, relaxed });
    let list =
        (0..3_u8, 0..30_u64, 0..5_usize).prop_map(|(prefix, back, page)| Step::List { prefix, back, page });
    let watch = (0..3_u8, 0..30_u64).prop_map(|(prefix, back)| Step::Watch { prefix, back });
    let compact = (0..30_u64).prop_map(|back| Step::Compact { back });
    let step = prop_oneof![8 => txn, 3 => list, 2 => watch, 1 => compact, 1 => Just(Step::Reopen)];
    prop::collection::vec(step, 1..60)
}

/// Keys in two directories, so that prefixes matter.
fn name(key: u8) -> String {
    format!("/{}/{key}", if key.is_multiple_of(2) { "even" } else { "odd" })
}

fn prefix(number: u8) -> &'static str {
    ["/", "/even/", "/odd/1"][usize::from(number)]
}

type Contents = BTreeMap<String, (String, Revision, Revision)>;

/// Every state by revision, and the revision before which nothing is promised.
struct Model {
    states: BTreeMap<Revision, Contents>,
    compacted: Revision,
}

impl Model {
    fn new(revision: Revision) -> Self {
        Self { states: BTreeMap::from([(revision, Contents::new())]), compacted: 0 }
    }

    fn revision(&self) -> Revision {
        *self.states.last_key_value().expect("never empty").0
    }

    fn now(&self) -> &Contents {
        self.states.last_key_value().expect("never empty").1
    }

    /// What watching from `from` shows: "revision key=value" or "revision -key", in order.
    fn changes(&self, prefix: &str, from: Revision) -> Vec<String> {
        let mut out = Vec::new();
        for (revision, after) in self.states.range(from + 1..) {
            let before = self.states.range(..revision).next_back().expect("an older state").1;
            for (key, (value, _, modified)) in after.iter().filter(|(key, _)| key.starts_with(prefix)) {
                if modified == revision {
                    out.push(format!("{revision} {key}={value}"));
                }
            }
            let gone = before.keys().filter(|key| key.starts_with(prefix) && !after.contains_key(*key));
            out.extend(gone.map(|key| format!("{revision} -{key}")));
        }
        out.sort();
        out
    }
}

/// A store that can be closed and opened again, if it is of that kind.
enum Subject {
    Memory(Memory),
    Embedded(Embedded, tempfile::TempDir),
}

fn settings() -> Settings {
    Settings { segment_bytes: 2000, checkpoint_bytes: 4000, ..Settings::default() }
}

impl Subject {
    fn store(&self) -> &dyn Store {
        match self {
            Self::Memory(store) => store,
            Self::Embedded(store, _) => store,
        }
    }

    async fn reopen(self) -> Self {
        match self {
            Self::Memory(store) => Self::Memory(store),
            Self::Embedded(store, dir) => {
                store.close().await.unwrap();
                let (store, recovery) = Embedded::open(dir.path(), settings()).unwrap();
                assert!(recovery.clean, "{recovery:?}");
                Self::Embedded(store, dir)
            }
        }
    }
}

async fn txn(store: &dyn Store, model: &mut Model, step: Step) {
    let Step::Txn { puts, deletes, compare, relaxed } = step else { unreachable!("only transactions") };
    let mut ops = BTreeMap::new();
    for (key, value) in puts {
        ops.insert(name(key), Some(value.to_string()));
    }
    for key in deletes {
        ops.insert(name(key), None);
    }
    let compares = compare.map(|(key, right)| {
        let known = model.now().get(&name(key)).map_or(0, |(_, _, modified)| *modified);
        Compare { key: name(key).into(), mod_revision: if right { known } else { known + 1 } }
    });
    let holds = compare.is_none_or(|(_, right)| right);
    let op = |(key, value): (&String, &Option<String>)| match value {
        Some(value) => Op::Put { key: key.clone().into(), value: value.clone().into() },
        None => Op::Delete { key: key.clone().into() },
    };
    let request =
        Txn { compares: compares.into_iter().collect(), ops: ops.iter().map(op).collect(), ..Txn::default() };
    let outcome = store.txn(if relaxed { request.relaxed() } else { request }).await.unwrap();
    let TxnOutcome::Committed { revision } = outcome else {
        return assert!(!holds, "failed without a reason");
    };
    assert!(holds, "committed against a condition");
    let mut next = model.now().clone();
    for (key, value) in ops {
        match value {
            Some(value) => {
                let created = next.get(&key).map_or(revision, |(_, created, _)| *created);
                next.insert(key, (value, created, revision));
            }
            None => drop(next.remove(&key)),
        }
    }
    if next == *model.now() {
        return assert_eq!(revision, model.revision(), "no change takes no revision");
    }
    assert!(revision > model.revision());
    model.states.insert(revision, next);
}

/// Lists page by page and compares with the model, or expects to hear that the revision is gone.
async fn list(store: &dyn Store, model: &Model, prefix: &str, at: Revision, page: usize) {
    let (mut found, mut start) = (Contents::new(), None);
    loop {
        let range = Range { prefix: prefix.as_bytes(), start: start.as_deref(), limit: page, at: Some(at) };
        let result = match store.range(range).await {
            Err(Error::Compacted { compacted, .. }) => {
                return assert!(at < compacted && compacted <= model.revision());
            }
            result => result.unwrap(),
        };
        let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
        start = result.items.last().map(|kv| [&kv.key[..], &[0]].concat());
        for kv in &result.items {
            found.insert(text(&kv.key), (text(&kv.value), kv.create_revision, kv.mod_revision));
        }
        if !result.more {
            break;
        }
    }
    assert!(at >= model.compacted, "read a compacted revision");
    let state = model.states.range(..=at).next_back().expect("an older state").1;
    let expected: Contents = state
        .iter()
        .filter(|(key, _)| key.starts_with(prefix))
        .map(|(k, v)| (k.clone(), v.clone()))
        .collect();
    assert_eq!(found, expected, "under {prefix} at {at}");
}

async fn watch(store: &dyn Store, model: &Model, prefix: &str, from: Revision) {
    let mut watch: Watch = match store.watch(prefix.as_bytes(), from).await {
        Err(Error::Compacted { compacted, .. }) => {
            return assert!(from < compacted && compacted <= model.revision());
        }
        watch => watch.unwrap_or_else(|error| panic!("{error}")),
    };
    assert!(from >= model.compacted, "watched from a compacted revision");
    let (mut seen, mut reached) = (Vec::new(), from);
    while reached < model.revision() {
        let batch = watch.next().await.expect("not closed").unwrap();
        assert!(batch.revision > reached);
        for event in batch.events {
            assert!(event.revision() > reached && event.revision() <= batch.revision, "in order");
            let key = String::from_utf8_lossy(event.key()).into_owned();
            seen.push(match &event {
                Event::Put { kv, .. } => {
                    format!("{} {key}={}", kv.mod_revision, String::from_utf8_lossy(&kv.value))
                }
                Event::Delete { revision, .. } => format!("{revision} -{key}"),
            });
        }
        reached = batch.revision;
    }
    seen.sort();
    assert_eq!(seen, model.changes(prefix, from));
}

async fn run(mut subject: Subject, steps: Vec<Step>) {
    let mut model = Model::new(subject.store().revision().await.unwrap());
    for step in steps {
        let store = subject.store();
        let back = |back: u64| model.revision().saturating_sub(back).max(1);
        match step {
            Step::Txn { .. } => txn(store, &mut model, step).await,
            Step::List { prefix: p, back: b, page } => list(store, &model, prefix(p), back(b), page).await,
            Step::Watch { prefix: p, back: b } => watch(store, &model, prefix(p), back(b)).await,
            Step::Compact { back: b } => {
                let revision = back(b);
                store.compact(revision).await.unwrap();
                model.compacted = model.compacted.max(revision);
                assert!(store.compacted().await.unwrap() >= model.compacted);
            }
            Step::Reopen => subject = subject.reopen().await,
        }
        assert_eq!(subject.store().revision().await.unwrap(), model.revision());
    }
    list(subject.store(), &model, "", model.revision(), 0).await;
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 150, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn memory_is_like_the_model(steps in steps()) {
        Runtime::new().unwrap().block_on(run(Subject::Memory(Memory::new()), steps));
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn embedded_is_like_the_model(steps in steps()) {
        let dir = tempfile::tempdir().unwrap();
        let (store, _) = Embedded::open(dir.path(), settings()).unwrap();
        Runtime::new().unwrap().block_on(run(Subject::Embedded(store, dir), steps));
    }
}
