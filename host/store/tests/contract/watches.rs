//! Watches. The names are the properties a watcher may rely on.

use wasmk_store::{Error, Event, Op, Txn, WatchBatch};

use super::suite::{Backend, committed, end, next, text, until};

fn events(batches: &[WatchBatch]) -> Vec<Event> {
    batches.iter().flat_map(|batch| batch.events.clone()).collect()
}

/// "revision key=value" or "revision -key" per event.
fn show(events: &[Event]) -> Vec<String> {
    let show = |event: &Event| match event {
        Event::Put { kv, .. } => format!("{} {}={}", kv.mod_revision, text(&kv.key), text(&kv.value)),
        Event::Delete { key, revision, .. } => format!("{revision} -{}", text(key)),
    };
    events.iter().map(show).collect()
}

pub(crate) async fn watch_is_ordered_unique_and_reliable(b: &Backend) {
    let start = b.revision().await;
    let mut before = b.watch("/w/", start).await;
    let mut expected = Vec::new();
    for index in 0..40 {
        let key = format!("/w/{}", index % 4);
        expected.push(match index % 8 {
            7 => format!("{} -{key}", b.delete(&key).await),
            _ => format!("{} {key}={index}", b.put(&key, &index.to_string()).await),
        });
    }
    let last = b.revision().await;
    let mut after = b.watch("/w/", start).await;
    assert_eq!(show(&events(&until(&mut before, last).await)), expected, "watched while it happened");
    assert_eq!(show(&events(&until(&mut after, last).await)), expected, "watched afterwards");
}

pub(crate) async fn watch_is_atomic(b: &Backend) {
    let start = b.revision().await;
    let mut watch = b.watch("/wa/", start).await;
    for round in 0..5 {
        let ops = (0..200)
            .map(|i| Op::Put { key: format!("/wa/{i:03}").into(), value: round.to_string().into() })
            .collect();
        committed(b.store.txn(Txn { ops, ..Txn::default() }).await);
    }
    let batches = until(&mut watch, b.revision().await).await;
    let mut seen = 0;
    for batch in &batches {
        let whole = batch.events.len() % 200;
        assert_eq!(whole, 0, "a batch ends between revisions");
        for revision in batch.events.chunks(200) {
            assert!(
                revision.iter().all(|event| event.revision() == revision[0].revision()),
                "one revision each"
            );
        }
        assert!(batch.events.iter().all(|event| event.revision() <= batch.revision));
        seen += batch.events.len();
    }
    assert_eq!(seen, 1000);
}

pub(crate) async fn watch_is_resumable(b: &Backend) {
    let start = b.revision().await;
    let mut revisions = vec![start];
    for index in 0..12 {
        revisions.push(b.put("/wr/k", &index.to_string()).await);
    }
    let last = b.revision().await;
    let all = show(&events(&until(&mut b.watch("/wr/", start).await, last).await));
    assert_eq!(all.len(), 12);
    for (index, from) in revisions.iter().enumerate().take(12) {
        let rest = show(&events(&until(&mut b.watch("/wr/", *from).await, last).await));
        assert_eq!(rest, all[index..], "from {from}");
    }
}

pub(crate) async fn watch_is_bookmarkable(b: &Backend) {
    let start = b.revision().await;
    let mut watch = b.watch("/wb/", start).await;
    // Nothing under the prefix changes, but the watch learns how far it is, by itself and when asked.
    let elsewhere = b.put("/elsewhere", "1").await;
    let batches = until(&mut watch, elsewhere).await;
    assert!(events(&batches).is_empty(), "{batches:?}");
    let elsewhere = b.put("/elsewhere", "2").await;
    b.store.request_progress(b"/wb/").await.unwrap();
    let batches = until(&mut watch, elsewhere).await;
    assert!(events(&batches).is_empty());
    // What it learnt is a place to resume from.
    let reached = batches.last().unwrap().revision;
    b.put("/wb/a", "1").await;
    let mut resumed = b.watch("/wb/", reached).await;
    let last = b.revision().await;
    let from_first = show(&events(&until(&mut watch, last).await));
    assert_eq!(from_first.len(), 1);
    assert_eq!(show(&events(&until(&mut resumed, last).await)), from_first);
}

pub(crate) async fn watch_sees_only_its_prefix(b: &Backend) {
    let start = b.revision().await;
    let mut watch = b.watch("/wp/a", start).await;
    for key in ["/wp", "/wp/", "/wp/a", "/wp/a/x", "/wp/ab", "/wp/b", "/wq"] {
        b.put(key, "").await;
    }
    let seen = events(&until(&mut watch, b.revision().await).await);
    let keys: Vec<String> = seen.iter().map(|event| text(event.key())).collect();
    assert_eq!(keys, ["/wp/a", "/wp/a/x", "/wp/ab"]);
}

pub(crate) async fn watch_tells_what_was_there_before(b: &Backend) {
    let start = b.revision().await;
    let created = b.put("/wt", "1").await;
    let changed = b.put("/wt", "2").await;
    b.delete("/wt").await;
    b.put("/wt", "3").await;
    let last = b.revision().await;
    let seen = events(&until(&mut b.watch("/wt", start).await, last).await);
    let before: Vec<_> = seen
        .iter()
        .map(|event| {
            let (Event::Put { previous, .. } | Event::Delete { previous, .. }) = event;
            previous.as_ref().map(|kv| (text(&kv.value), kv.create_revision, kv.mod_revision))
        })
        .collect();
    let first = Some(("1".to_string(), created, created));
    let second = Some(("2".to_string(), created, changed));
    assert_eq!(before, [None, first, second, None]);
}

pub(crate) async fn watch_from_compacted_says_so(b: &Backend) {
    let first = b.put("/wc", "1").await;
    let middle = b.put("/wc", "2").await;
    let last = b.put("/wc", "3").await;
    let mut running = b.watch("/wc", first).await;
    until(&mut running, last).await;
    b.store.compact(middle).await.unwrap();
    match b.store.watch(b"/wc", first).await {
        Err(Error::Compacted { requested, compacted }) => assert_eq!((requested, compacted), (first, middle)),
        Err(error) => panic!("{error:?}"),
        Ok(_) => panic!("watching from a compacted revision"),
    }
    // The edge itself is there, and a watch that was further already goes on.
    let seen = show(&events(&until(&mut b.watch("/wc", middle).await, last).await));
    assert_eq!(seen, [format!("{last} /wc=3")]);
    let more = b.put("/wc", "4").await;
    assert_eq!(show(&events(&until(&mut running, more).await)), [format!("{more} /wc=4")]);
}

pub(crate) async fn watch_from_the_future_is_refused(b: &Backend) {
    let current = b.put("/wf", "1").await;
    let refused = b.store.watch(b"/wf", current + 1000).await;
    assert!(matches!(refused.err(), Some(Error::FutureRevision { .. })));
}

pub(crate) async fn watches_agree_under_load(b: &Backend) {
    const WRITERS: usize = 8;
    const WRITES: usize = 40;
    let start = b.revision().await;
    let mut watches = Vec::new();
    for _ in 0..4 {
        watches.push(b.watch("/wl/", start).await);
    }
    let writers: Vec<_> = (0..WRITERS)
        .map(|writer| {
            let store = b.store.clone();
            tokio::spawn(async move {
                let mut written = Vec::new();
                for index in 0..WRITES {
                    let key = format!("/wl/{writer}/{}", index % 5);
                    let op = Op::Put { key: key.clone().into(), value: index.to_string().into() };
                    let txn = Txn { ops: vec![op], ..Txn::default() };
                    let txn = if index % 3 == 0 { txn.relaxed() } else { txn };
                    let revision = committed(store.txn(txn).await);
                    written.push((revision, format!("{revision} {key}={index}")));
                }
                written
            })
        })
        .collect();
    let mut expected = Vec::new();
    for writer in writers {
        expected.extend(writer.await.unwrap());
    }
    expected.sort_unstable();
    let expected: Vec<String> = expected.into_iter().map(|(_, event)| event).collect();
    let last = b.revision().await;
    for watch in &mut watches {
        assert_eq!(show(&events(&until(watch, last).await)), expected);
    }
}

/// For backends whose history is bounded by bytes: a watcher that does not keep up is told, and stops nobody.
pub(crate) async fn slow_watcher_is_told_and_stops_nobody(b: &Backend) {
    let start = b.put("/ws", "0").await;
    let mut slow = b.watch("/ws", start).await;
    let mut quick = b.watch("/ws", start).await;
    let value = "v".repeat(2000);
    for _ in 0..400 {
        b.put("/ws", &value).await;
        next(&mut quick).await;
    }
    let error = end(&mut slow).await;
    assert!(matches!(error, Some(Error::Compacted { requested, .. }) if requested == start), "{error:?}");
    assert!(slow.next().await.is_none(), "an error is the last item");
}
