//! What every test of the contract uses.

use std::any::Any;
use std::sync::Arc;
use std::time::Duration;

use wasmk_store::{Error, KeyValue, Op, Range, Revision, Store, Txn, TxnOutcome, Watch, WatchBatch};

/// Longest a test waits for anything.
const LIMIT: Duration = Duration::from_secs(30);

/// A store under test with whatever must live as long.
pub(crate) struct Backend {
    pub(crate) store: Arc<dyn Store>,
    _keep: Box<dyn Any + Send>,
}

impl Backend {
    pub(crate) fn new(store: Arc<dyn Store>, keep: impl Any + Send) -> Self {
        Self { store, _keep: Box::new(keep) }
    }

    /// Sets a key whatever it held.
    pub(crate) async fn put(&self, key: &str, value: &str) -> Revision {
        let op = Op::Put { key: key.to_string().into(), value: value.to_string().into() };
        committed(self.store.txn(Txn { ops: vec![op], ..Txn::default() }).await)
    }

    /// Removes a key whatever it held.
    pub(crate) async fn delete(&self, key: &str) -> Revision {
        let op = Op::Delete { key: key.to_string().into() };
        committed(self.store.txn(Txn { ops: vec![op], ..Txn::default() }).await)
    }

    pub(crate) async fn get(&self, key: &str, at: Option<Revision>) -> Option<String> {
        self.store.get(key.as_bytes(), at).await.expect("a readable revision").map(|kv| text(&kv.value))
    }

    /// The keys and values under a prefix, as "key=value key=value".
    pub(crate) async fn list(&self, prefix: &str, at: Option<Revision>) -> String {
        let range = Range { prefix: prefix.as_bytes(), at, ..Range::default() };
        show(&self.store.range(range).await.expect("a readable revision").items)
    }

    pub(crate) async fn watch(&self, prefix: &str, from: Revision) -> Watch {
        self.store.watch(prefix.as_bytes(), from).await.expect("a watchable revision")
    }

    pub(crate) async fn revision(&self) -> Revision {
        self.store.revision().await.expect("a revision")
    }
}

pub(crate) fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

pub(crate) fn show(items: &[KeyValue]) -> String {
    let items: Vec<String> =
        items.iter().map(|kv| format!("{}={}", text(&kv.key), text(&kv.value))).collect();
    items.join(" ")
}

pub(crate) fn committed(outcome: Result<TxnOutcome, Error>) -> Revision {
    match outcome {
        Ok(TxnOutcome::Committed { revision }) => revision,
        other => panic!("expected a commit, got {other:?}"),
    }
}

/// The next batch, within the limit.
pub(crate) async fn next(watch: &mut Watch) -> WatchBatch {
    match tokio::time::timeout(LIMIT, watch.next()).await {
        Ok(Some(Ok(batch))) => batch,
        other => panic!("expected a batch, got {other:?}"),
    }
}

/// Everything the watch delivers until it has reached `revision`.
pub(crate) async fn until(watch: &mut Watch, revision: Revision) -> Vec<WatchBatch> {
    let mut batches = vec![next(watch).await];
    while batches.last().is_none_or(|batch| batch.revision < revision) {
        batches.push(next(watch).await);
    }
    batches
}

/// The last item of a watch, within the limit.
pub(crate) async fn end(watch: &mut Watch) -> Option<Error> {
    loop {
        match tokio::time::timeout(LIMIT, watch.next()).await.expect("an end in time") {
            Some(Ok(_)) => {}
            Some(Err(error)) => return Some(error),
            None => return None,
        }
    }
}

/// Runs every test of the contract on a backend that the named function makes; `None` says it is not available.
macro_rules! contract {
    (@each $backend:ident $($module:ident :: $test:ident)*) => {
        mod $backend {
            $(
                #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
                async fn $test() {
                    if let Some(backend) = super::$backend().await {
                        crate::contract::$module::$test(&backend).await;
                    }
                }
            )*
        }
    };
    ($backend:ident) => {
        contract! { @each $backend
            txns::compares_decide
            txns::failed_txn_changes_nothing_and_shows_what_is_there
            txns::txn_is_atomic
            txns::revisions_of_a_key_follow_its_life
            txns::deleting_nothing_takes_no_revision
            txns::contradictions_and_excess_are_refused
            txns::concurrent_increments_all_count
            txns::relaxed_writes_are_visible_when_answered
            reads::range_is_ordered_and_bounded_by_its_prefix
            reads::pages_at_one_revision_are_consistent
            reads::every_revision_stays_readable
            reads::the_future_cannot_be_read
            reads::compacted_revisions_are_gone_and_the_rest_stays
            reads::compaction_knows_its_edges
            watches::watch_is_ordered_unique_and_reliable
            watches::watch_is_atomic
            watches::watch_is_resumable
            watches::watch_is_bookmarkable
            watches::watch_sees_only_its_prefix
            watches::watch_tells_what_was_there_before
            watches::watch_from_compacted_says_so
            watches::watch_from_the_future_is_refused
            watches::watches_agree_under_load
            linear::concurrent_histories_are_linearizable
        }
    };
}
pub(crate) use contract;
