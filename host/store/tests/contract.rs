//! The contract of a store, run against every backend there is.

mod contract {
    pub(crate) mod etcd;
    pub(crate) mod reads;
    pub(crate) mod suite;
    pub(crate) mod txns;
    pub(crate) mod watches;
}

use std::sync::Arc;
use std::time::Duration;

use contract::suite::{Backend, contract};
use wasmk_store::{Embedded, Error, Etcd, EtcdTls, History, Memory, Settings};

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

async fn etcd() -> Option<Backend> {
    let server = contract::etcd::Server::start()?;
    let store = server.connect(None).await;
    Some(Backend::new(Arc::new(store), server))
}

contract!(memory);
contract!(embedded);
contract!(etcd);

#[tokio::test]
async fn slow_watcher_is_told_and_stops_nobody() {
    for backend in [memory().await, embedded().await].into_iter().flatten() {
        contract::watches::slow_watcher_is_told_and_stops_nobody(&backend).await;
    }
}

#[tokio::test]
async fn etcd_that_comes_back_is_used_again() {
    let Some(mut server) = contract::etcd::Server::start() else { return };
    let backend = Backend::new(Arc::new(server.connect(None).await), ());
    let first = backend.put("/back/a", "1").await;
    let mut watch = backend.watch("/back/", first).await;
    server.restart();
    // Requests fail until it is there, then everything goes on where it was.
    let limit = tokio::time::Instant::now() + Duration::from_secs(30);
    while backend.store.revision().await.is_err() {
        assert!(tokio::time::Instant::now() < limit, "etcd does not come back");
    }
    let second = backend.put("/back/b", "2").await;
    let batches = contract::suite::until(&mut watch, second).await;
    let keys: Vec<_> =
        batches.iter().flat_map(|batch| &batch.events).map(|event| event.key().clone()).collect();
    assert_eq!(keys, ["/back/b"]);
}

#[tokio::test]
async fn etcd_is_reached_over_tls_with_a_certificate_only() {
    let Some((server, tls)) = contract::etcd::Server::start_with_tls() else { return };
    let backend = Backend::new(Arc::new(server.connect(Some(tls.clone())).await), ());
    let first = backend.put("/tls/a", "1").await;
    let mut watch = backend.watch("/tls/", first).await;
    let second = backend.put("/tls/a", "2").await;
    assert_eq!(contract::suite::until(&mut watch, second).await.len(), 1);
    for (what, tls) in [("no certificate", EtcdTls { identity: None, ..tls }), ("no trust", stranger())] {
        let refused = Etcd::connect(&server.endpoints(), Some(tls)).await;
        assert!(matches!(refused.err(), Some(Error::Backend(_) | Error::Invalid(_))), "{what}");
    }
}

/// The authority of somebody else.
fn stranger() -> EtcdTls {
    EtcdTls { ca: contract::etcd::authority(), identity: None }
}
