//! The contract of a store, run against every backend there is.

mod contract {
    pub(crate) mod reads;
    pub(crate) mod suite;
    pub(crate) mod txns;
    pub(crate) mod watches;
}

use std::sync::Arc;
use std::time::Duration;

use contract::suite::{Backend, contract};
use wasmk_store::{Embedded, History, Memory, Settings};

/// Little enough history that a test can outrun it.
const HISTORY: History = History { age: Duration::from_secs(300), bytes: 200_000 };

async fn memory() -> Option<Backend> {
    Some(Backend::new(Arc::new(Memory::with_history(HISTORY)), ()))
}

async fn embedded() -> Option<Backend> {
    let dir = tempfile::tempdir().expect("a temporary directory");
    // Small segments and checkpoints, so that they come and go under every test.
    let settings = Settings {
        history: HISTORY,
        segment_bytes: 8 << 10,
        checkpoint_bytes: 32 << 10,
        ..Settings::default()
    };
    let (store, _) = Embedded::open(dir.path(), settings).expect("a new store");
    Some(Backend::new(Arc::new(store), dir))
}

contract!(memory);
contract!(embedded);

#[tokio::test]
async fn slow_watcher_is_told_and_stops_nobody() {
    for backend in [memory().await, embedded().await].into_iter().flatten() {
        contract::watches::slow_watcher_is_told_and_stops_nobody(&backend).await;
    }
}
