//! Reads now and in the past.

use wasmk_store::{Error, Range};

use super::suite::{Backend, show};

pub(crate) async fn range_is_ordered_and_bounded_by_its_prefix(b: &Backend) {
    for key in ["/r/b", "/r/a/2", "/r/a", "/r/a/1", "/s", "/r", "/r/\u{10ffff}"] {
        b.put(key, "").await;
    }
    for (prefix, expected) in [
        ("/r/", "/r/a= /r/a/1= /r/a/2= /r/b= /r/\u{10ffff}="),
        ("/r/a", "/r/a= /r/a/1= /r/a/2="),
        ("/r/a/", "/r/a/1= /r/a/2="),
        ("/r/c", ""),
        ("/r/\u{10ffff}", "/r/\u{10ffff}="),
    ] {
        assert_eq!(b.list(prefix, None).await, expected, "under {prefix}");
    }
}

pub(crate) async fn pages_at_one_revision_are_consistent(b: &Backend) {
    for index in 0..25 {
        b.put(&format!("/p/{index:02}"), "old").await;
    }
    let prefix = b"/p/".as_slice();
    let mut page = b.store.range(Range { prefix, limit: 10, ..Range::default() }).await.unwrap();
    let revision = page.revision;
    let (mut all, mut sizes) = (page.items.clone(), vec![(page.items.len(), page.more)]);
    while page.more {
        // The world moves on between pages.
        b.put("/p/00", "new").await;
        b.put("/p/155", "new").await;
        b.delete(&format!("/p/{}", 10 + all.len() / 10)).await;
        let mut start = all.last().unwrap().key.to_vec();
        start.push(0);
        let range = Range { prefix, start: Some(&start), limit: 10, at: Some(revision) };
        page = b.store.range(range).await.unwrap();
        assert_eq!(page.revision, revision);
        sizes.push((page.items.len(), page.more));
        all.extend(page.items.clone());
    }
    assert_eq!(sizes, [(10, true), (10, true), (5, false)]);
    let expected: Vec<String> = (0..25).map(|index| format!("/p/{index:02}=old")).collect();
    assert_eq!(show(&all), expected.join(" "));

    // A limit that is exactly enough, a start at a key, before the prefix and beyond it.
    for (start, limit, expected, more) in [
        (Some("/p/22"), 0, "/p/22=old /p/23=old /p/24=old", false),
        (Some("/p/22"), 3, "/p/22=old /p/23=old /p/24=old", false),
        (Some("/p/22"), 2, "/p/22=old /p/23=old", true),
        (Some("/a"), 1, "/p/00=old", true),
        (Some("/q"), 1, "", false),
    ] {
        let range = Range { prefix, start: start.map(str::as_bytes), limit, at: Some(revision) };
        let page = b.store.range(range).await.unwrap();
        assert_eq!((show(&page.items).as_str(), page.more), (expected, more), "from {start:?} limit {limit}");
    }
}

pub(crate) async fn every_revision_stays_readable(b: &Backend) {
    let mut expected = Vec::new();
    for index in 0..20 {
        let key = format!("/h/{}", index % 3);
        let revision =
            if index % 5 == 4 { b.delete(&key).await } else { b.put(&key, &index.to_string()).await };
        expected.push((revision, b.list("/h/", None).await));
    }
    for (revision, list) in expected {
        assert_eq!(b.list("/h/", Some(revision)).await, list, "at {revision}");
    }
}

pub(crate) async fn the_future_cannot_be_read(b: &Backend) {
    let current = b.put("/f", "1").await;
    let requested = current + 1000;
    let error = b.store.get(b"/f", Some(requested)).await.unwrap_err();
    assert!(
        matches!(error, Error::FutureRevision { requested: r, current: c } if r == requested && c >= current)
    );
    let range = Range { prefix: b"/f", at: Some(requested), ..Range::default() };
    assert!(matches!(b.store.range(range).await, Err(Error::FutureRevision { .. })));
}

pub(crate) async fn compacted_revisions_are_gone_and_the_rest_stays(b: &Backend) {
    let first = b.put("/c/a", "1").await;
    b.put("/c/b", "1").await;
    let deleted = b.delete("/c/b").await;
    let middle = b.put("/c/a", "2").await;
    let last = b.put("/c/a", "3").await;
    b.store.compact(middle).await.unwrap();
    assert_eq!(b.store.compacted().await.unwrap(), middle);
    for gone in [first, deleted, middle - 1] {
        let error = b.store.get(b"/c/a", Some(gone)).await.unwrap_err();
        assert!(
            matches!(error, Error::Compacted { requested, compacted } if requested == gone && compacted == middle),
            "{error:?}"
        );
        let range = Range { prefix: b"/c/", at: Some(gone), ..Range::default() };
        assert!(matches!(b.store.range(range).await, Err(Error::Compacted { .. })));
    }
    assert_eq!(b.list("/c/", Some(middle)).await, "/c/a=2");
    assert_eq!(b.list("/c/", Some(last)).await, "/c/a=3");
    assert_eq!(b.list("/c/", None).await, "/c/a=3");
}

pub(crate) async fn compaction_knows_its_edges(b: &Backend) {
    b.put("/e", "1").await;
    let current = b.put("/e", "2").await;
    let future = b.store.compact(current + 1000).await.unwrap_err();
    assert!(matches!(future, Error::FutureRevision { .. }), "{future:?}");
    b.store.compact(current).await.unwrap();
    b.store.compact(current).await.unwrap();
    b.store.compact(current - 1).await.unwrap();
    assert_eq!(b.store.compacted().await.unwrap(), current);
    assert_eq!(b.get("/e", Some(current)).await, Some("2".into()));
    assert_eq!(b.get("/e", None).await, Some("2".into()));
    // A key deleted and compacted can come back.
    let deleted = b.delete("/e").await;
    b.store.compact(deleted).await.unwrap();
    assert_eq!(b.get("/e", None).await, None);
    let again = b.put("/e", "3").await;
    let kv = b.store.get(b"/e", None).await.unwrap().unwrap();
    assert_eq!((kv.create_revision, kv.mod_revision), (again, again));
}
