//! Transactions.

use std::sync::Arc;

use wasmk_store::{Compare, Error, MAX_KEY_BYTES, MAX_TXN_KEYS, MAX_VALUE_BYTES, Op, Txn, TxnOutcome};

use super::suite::{Backend, committed, text};

pub(crate) async fn compares_decide(b: &Backend) {
    let (absent, present) = ("/cmp/absent", "/cmp/present");
    let old = b.put(present, "1").await;
    let new = b.put(present, "2").await;
    for (key, mod_revision, expected) in [
        (absent, 0, true),
        (absent, 1, false),
        (absent, new, false),
        (present, 0, false),
        (present, old, false),
        (present, new, true),
        (present, new + 1, false),
    ] {
        let compares = vec![Compare { key: key.into(), mod_revision }];
        let outcome = b.store.txn(Txn { compares, ..Txn::default() }).await.unwrap();
        let holds = matches!(outcome, TxnOutcome::Committed { .. });
        assert_eq!(holds, expected, "{key} last changed in {mod_revision}");
    }
}

pub(crate) async fn failed_txn_changes_nothing_and_shows_what_is_there(b: &Backend) {
    b.put("/fail/a", "1").await;
    let before = b.revision().await;
    let compare = |key: &'static str, mod_revision| Compare { key: key.into(), mod_revision };
    let txn = Txn {
        compares: vec![compare("/fail/b", 0), compare("/fail/a", 0)],
        ops: vec![Op::Put { key: "/fail/b".into(), value: "x".into() }, Op::Delete { key: "/fail/a".into() }],
        ..Txn::default()
    };
    let TxnOutcome::Failed { current } = b.store.txn(txn).await.unwrap() else {
        panic!("a condition does not hold")
    };
    assert_eq!(current.len(), 2);
    assert_eq!(current[0], None);
    assert_eq!(current[1].as_ref().map(|kv| text(&kv.value)), Some("1".into()));
    assert_eq!(b.list("/fail/", None).await, "/fail/a=1");
    assert_eq!(b.revision().await, before);
}

pub(crate) async fn txn_is_atomic(b: &Backend) {
    b.put("/atomic/gone", "1").await;
    let put = |key: &'static str| Op::Put { key: key.into(), value: "x".into() };
    let ops = vec![put("/atomic/b"), put("/atomic/a"), Op::Delete { key: "/atomic/gone".into() }];
    let revision = committed(b.store.txn(Txn { ops, ..Txn::default() }).await);
    assert_eq!(b.list("/atomic/", None).await, "/atomic/a=x /atomic/b=x");
    assert_eq!(b.list("/atomic/", Some(revision - 1)).await, "/atomic/gone=1");
    for key in ["/atomic/a", "/atomic/b"] {
        let kv = b.store.get(key.as_bytes(), None).await.unwrap().unwrap();
        assert_eq!((kv.create_revision, kv.mod_revision), (revision, revision), "one revision for all");
    }
}

pub(crate) async fn revisions_of_a_key_follow_its_life(b: &Backend) {
    let created = b.put("/life", "1").await;
    let changed = b.put("/life", "2").await;
    let deleted = b.delete("/life").await;
    let again = b.put("/life", "3").await;
    assert!(created < changed && changed < deleted && deleted < again);
    for (at, expected) in [
        (created, Some((created, created))),
        (changed, Some((created, changed))),
        (deleted, None),
        (again, Some((again, again))),
    ] {
        let kv = b.store.get(b"/life", Some(at)).await.unwrap();
        assert_eq!(kv.map(|kv| (kv.create_revision, kv.mod_revision)), expected, "at {at}");
    }
    assert_eq!(b.revision().await, again);
}

pub(crate) async fn deleting_nothing_takes_no_revision(b: &Backend) {
    let before = b.put("/nothing/a", "1").await;
    assert_eq!(b.delete("/nothing/b").await, before);
    assert_eq!(committed(b.store.txn(Txn::default()).await), before);
    assert_eq!(b.revision().await, before);
}

pub(crate) async fn contradictions_and_excess_are_refused(b: &Backend) {
    let before = b.put("/refused/a", "1").await;
    let put = |key: Vec<u8>, len: usize| Op::Put { key: key.into(), value: vec![0; len].into() };
    let many: Vec<Op> = (0..=MAX_TXN_KEYS).map(|i| put(format!("/refused/{i}").into_bytes(), 1)).collect();
    for (ops, expected) in [
        (vec![put(b"/refused/b".to_vec(), 1), Op::Delete { key: "/refused/b".into() }], "changed twice"),
        (vec![put(Vec::new(), 1)], "empty"),
        (vec![put(vec![b'k'; MAX_KEY_BYTES + 1], 1)], "the key"),
        (vec![put(b"/refused/b".to_vec(), MAX_VALUE_BYTES + 1)], "values"),
        (many, "keys"),
    ] {
        let error = b.store.txn(Txn { ops, ..Txn::default() }).await.expect_err(expected);
        assert!(matches!(error, Error::Invalid(_) | Error::TooLarge { .. }), "{error:?}");
        assert!(error.to_string().contains(expected), "{error} should name: {expected}");
    }
    assert_eq!(b.revision().await, before);
    assert_eq!(b.list("/refused/", None).await, "/refused/a=1");
}

pub(crate) async fn concurrent_increments_all_count(b: &Backend) {
    const TASKS: usize = 12;
    const TIMES: usize = 25;
    b.put("/counter", "0").await;
    let tasks = (0..TASKS).map(|_| {
        let store = b.store.clone();
        tokio::spawn(async move {
            let mut done = 0;
            while done < TIMES {
                let kv = store.get(b"/counter", None).await.unwrap().unwrap();
                let next = text(&kv.value).parse::<usize>().unwrap() + 1;
                let outcome =
                    store.txn(Txn::put("/counter", next.to_string(), kv.mod_revision)).await.unwrap();
                done += usize::from(matches!(outcome, TxnOutcome::Committed { .. }));
            }
        })
    });
    for task in tasks.collect::<Vec<_>>() {
        task.await.unwrap();
    }
    assert_eq!(b.get("/counter", None).await, Some((TASKS * TIMES).to_string()));
}

pub(crate) async fn relaxed_writes_are_visible_when_answered(b: &Backend) {
    let store = Arc::clone(&b.store);
    let first = committed(store.txn(Txn::put("/lease", "1", 0).relaxed()).await);
    let second = committed(store.txn(Txn::put("/lease", "2", first).relaxed()).await);
    let third = committed(store.txn(Txn::put("/lease", "3", second).held()).await);
    assert!(third > second && second > first);
    assert_eq!(b.get("/lease", None).await, Some("3".into()));
    assert_eq!(b.get("/lease", Some(second)).await, Some("2".into()));
    assert_eq!(b.get("/lease", Some(first)).await, Some("1".into()));
}
