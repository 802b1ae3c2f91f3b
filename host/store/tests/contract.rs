//! The contract of a store, run against every backend there is.

mod contract {
    pub(crate) mod etcd;
    pub(crate) mod linear;
    pub(crate) mod reads;
    pub(crate) mod suite;
    pub(crate) mod txns;
    pub(crate) mod watches;
}

use std::sync::Arc;
use std::time::Duration;

use contract::suite::{Backend, contract};
use wasmk_store::{
    Cipher, Embedded, Error, Etcd, EtcdTls, History, Key, Memory, Provider, Rule, Sealed, Settings,
};

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

/// Everything encrypted, on top of memory.
async fn sealed() -> Option<Backend> {
    let key = Key { name: "k".into(), secret: vec![7; 32] };
    let providers = vec![Provider::Keys { cipher: Cipher::AesGcm, keys: vec![key] }];
    let rule = Rule { prefixes: vec![String::new()], providers };
    let store = Sealed::new(Arc::new(Memory::new()), vec![rule]).expect("usable rules");
    Some(Backend::new(Arc::new(store), ()))
}

async fn etcd() -> Option<Backend> {
    let server = contract::etcd::Server::start()?;
    let store = server.connect(None).await;
    Some(Backend::new(Arc::new(store), server))
}

contract!(memory);
contract!(embedded);
contract!(sealed);
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

/// Waits until `count` more writes than `from` were answered.
async fn progress(answered: &std::sync::atomic::AtomicU64, count: u64) {
    use std::sync::atomic::Ordering::SeqCst;
    let from = answered.load(SeqCst);
    let limit = tokio::time::Instant::now() + Duration::from_secs(60);
    while answered.load(SeqCst) < from + count {
        assert!(tokio::time::Instant::now() < limit, "writes do not go on");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn three_members_lose_one_at_a_time_and_nothing_acknowledged() {
    use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
    let Some(mut cluster) = contract::etcd::Cluster::start() else { return };
    let store = cluster.connect().await;
    let backend = Backend::new(Arc::new(store.clone()), ());
    let start = backend.put("/three/first", "0").await;
    let mut watch = backend.watch("/three/", start).await;
    let (stop, answered) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let writers: Vec<_> = (0..4)
        .map(|writer| {
            let (store, stop, answered) = (store.clone(), stop.clone(), answered.clone());
            tokio::spawn(async move {
                let (mut acknowledged, mut number) = (Vec::new(), 0);
                while !stop.load(SeqCst) {
                    number += 1;
                    let (key, value) = (format!("/three/{writer}"), number.to_string());
                    let op = wasmk_store::Op::Put { key: key.clone().into(), value: value.clone().into() };
                    let txn = wasmk_store::Txn { ops: vec![op], ..Default::default() };
                    // What has no answer may have happened or not.
                    if let Ok(wasmk_store::TxnOutcome::Committed { revision }) =
                        wasmk_store::Store::txn(&store, txn).await
                    {
                        acknowledged.push((revision, format!("{key}={value}")));
                        answered.fetch_add(1, SeqCst);
                    }
                }
                acknowledged
            })
        })
        .collect();
    progress(&answered, 20).await;
    for member in 0..3 {
        cluster.kill(member);
        progress(&answered, 40).await;
        cluster.start_again(member);
        cluster.until_healthy(member).await;
        cluster.pause(member);
        progress(&answered, 40).await;
        if member == 1 {
            // History goes while a member and perhaps the watch's stream are away.
            backend.store.compact(start + 1).await.expect("two of three are enough");
        }
        cluster.resume(member);
        progress(&answered, 20).await;
    }
    stop.store(true, SeqCst);
    let mut acknowledged = Vec::new();
    for writer in writers {
        acknowledged.extend(writer.await.unwrap());
    }
    let last = backend.put("/three/last", "0").await;
    let batches = contract::suite::until(&mut watch, last).await;
    let events: Vec<_> = batches.iter().flat_map(|batch| &batch.events).collect();
    assert!(events.is_sorted_by(|a, b| a.revision() < b.revision()), "in order, and nothing twice");
    let mut seen = std::collections::BTreeMap::new();
    for event in events {
        let wasmk_store::Event::Put { kv, .. } = event else { panic!("nothing is deleted: {event:?}") };
        let (key, value) = (contract::suite::text(&kv.key), contract::suite::text(&kv.value));
        seen.insert(kv.mod_revision, format!("{key}={value}"));
    }
    assert!(acknowledged.len() > 200, "{}", acknowledged.len());
    for (revision, change) in acknowledged {
        assert_eq!(seen.get(&revision), Some(&change), "acknowledged in {revision}");
    }
    // A watch that resumes where the first began hears that this is gone.
    let resumed = backend.store.watch(b"/three/", start).await;
    assert!(matches!(resumed.err(), Some(Error::Compacted { .. })));
}
