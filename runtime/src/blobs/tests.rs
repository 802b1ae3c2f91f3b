use super::*;

/// An owner's objects in a directory, as a guest that opens them finds them.
async fn open(dir: &std::path::Path) -> Handles {
    let store = Stores::new(dir.to_path_buf()).get("shop.1");
    store.load().await.unwrap();
    Handles::new(store)
}

fn files(dir: &std::path::Path) -> usize {
    std::fs::read_dir(dir.join("shop.1")).map_or(0, Iterator::count)
}

fn write(handles: &Handles, container: &str, object: &str, pieces: &[&[u8]]) -> Result<()> {
    let BlobTold::Opened(handle, _) = handles.fulfil(BlobWish::Begin)? else { panic!("a handle") };
    let all = pieces
        .iter()
        .try_for_each(|piece| handles.fulfil(BlobWish::Append { handle, bytes: piece.to_vec() }).map(drop));
    let finish = BlobWish::Finish { handle, container: container.into(), object: object.into() };
    let finished = handles.fulfil(finish).map(drop);
    all.and(finished)
}

fn read(handles: &Handles, container: &str, object: &str, first: u64, last: u64) -> Result<Vec<u8>> {
    let wish = BlobWish::Open { container: container.into(), object: object.into(), first, last };
    let BlobTold::Opened(handle, length) = handles.fulfil(wish)? else { panic!("a handle") };
    let BlobTold::Bytes(bytes) = handles.fulfil(BlobWish::Read { handle, at: 0, most: u32::MAX })? else {
        panic!("bytes")
    };
    assert_eq!(bytes.len() as u64, length);
    handles.fulfil(BlobWish::Close { handle }).map(|_| bytes)
}

fn names(handles: &Handles, container: &str) -> Vec<String> {
    handles.store().objects(container, None, PAGE).unwrap().0
}

#[tokio::test]
async fn objects_outlive_whoever_wrote_them() {
    let dir = tempfile::tempdir().unwrap();
    let handles = open(dir.path()).await;
    assert!(matches!(write(&handles, "a", "x", &[b"1"]), Err(BlobError::NoContainer(_))));
    assert_eq!(files(dir.path()), 0, "what has no place is not kept");
    handles.store().create("a").unwrap();
    assert!(matches!(handles.store().create("a"), Err(BlobError::Exists(_))));
    write(&handles, "a", "x", &[b"first"]).unwrap();
    write(&handles, "a", "x", &[b"hello ", b"world"]).unwrap();
    write(&handles, "a", "empty", &[]).unwrap();
    assert!(matches!(handles.fulfil(BlobWish::Begin), Ok(BlobTold::Opened(..))), "and is never finished");
    assert_eq!(files(dir.path()), 3);
    // As after the end of the program.
    std::mem::forget(handles);

    let again = open(dir.path()).await;
    assert_eq!(files(dir.path()), 2, "what was not finished is gone");
    assert_eq!(read(&again, "a", "x", 0, u64::MAX).unwrap(), b"hello world");
    assert_eq!(read(&again, "a", "empty", 0, 0).unwrap(), b"");
    assert_eq!(names(&again, "a"), ["empty", "x"]);
    let entry = again.store().object("a", "x").unwrap().unwrap();
    assert!(entry.size == 11 && entry.created > 1_700_000_000);
    let state = again.store().state().unwrap();
    assert_eq!((state.bytes, state.objects, state.containers), (11, 2, 1));
}

#[tokio::test]
async fn ranges_are_inclusive() {
    let dir = tempfile::tempdir().unwrap();
    let handles = open(dir.path()).await;
    handles.store().create("a").unwrap();
    write(&handles, "a", "x", &[b"0123456789"]).unwrap();
    let check = |first, last, expect: Option<&str>| {
        let found = read(&handles, "a", "x", first, last).ok();
        assert_eq!(found.as_deref(), expect.map(str::as_bytes), "{first}-{last}");
    };
    check(0, 0, Some("0"));
    check(2, 4, Some("234"));
    check(8, 100, Some("89"));
    check(9, 9, Some("9"));
    check(10, 10, None);
    check(4, 2, None);
    check(u64::MAX, u64::MAX, None);
}

#[tokio::test]
async fn what_is_read_stays_until_it_is_read() {
    let dir = tempfile::tempdir().unwrap();
    let handles = open(dir.path()).await;
    handles.store().create("a").unwrap();
    write(&handles, "a", "x", &[b"before"]).unwrap();
    let wish = BlobWish::Open { container: "a".into(), object: "x".into(), first: 0, last: u64::MAX };
    let Ok(BlobTold::Opened(handle, 6)) = handles.fulfil(wish) else { panic!("a handle") };
    write(&handles, "a", "x", &[b"after!!"]).unwrap();
    handles.store().clear("a", true).unwrap();
    assert_eq!(files(dir.path()), 0);
    let told = handles.fulfil(BlobWish::Read { handle, at: 3, most: 10 }).unwrap();
    assert_eq!(told, BlobTold::Bytes(b"ore".to_vec()));
    assert!(matches!(handles.store().object("a", "x"), Err(BlobError::NoContainer(_))));
}

#[tokio::test]
async fn copies_and_moves_stand_for_themselves() {
    let dir = tempfile::tempdir().unwrap();
    let handles = open(dir.path()).await;
    for container in ["a", "b"] {
        handles.store().create(container).unwrap();
    }
    write(&handles, "a", "x", &[b"text"]).unwrap();
    write(&handles, "b", "there", &[b"old"]).unwrap();
    let store = handles.store();
    store.copy(("a", "x"), ("b", "there"), true).unwrap();
    store.copy(("a", "x"), ("a", "x"), false).unwrap();
    store.copy(("a", "x"), ("a", "y"), false).unwrap();
    assert!(matches!(store.copy(("a", "x"), ("a", "z"), true), Err(BlobError::NoObject { .. })));
    assert!(matches!(store.copy(("a", "y"), ("c", "z"), true), Err(BlobError::NoContainer(_))));
    assert_eq!((names(&handles, "a"), names(&handles, "b")), (vec!["y".into()], vec!["there".into()]));
    store.delete("a", &["y".into(), "never".into()]).unwrap();
    assert_eq!(read(&handles, "b", "there", 0, 9).unwrap(), b"text");
    assert_eq!((files(dir.path()), store.state().unwrap().bytes), (1, 4));
}

#[tokio::test]
async fn bounds_are_kept_and_named() {
    let dir = tempfile::tempdir().unwrap();
    let handles = open(dir.path()).await;
    handles.store().create("a").unwrap();
    assert!(matches!(write(&handles, "a", "", &[b"x"]), Err(BlobError::Name(0))));
    let long = "n".repeat(MAX_NAME + 1);
    assert!(matches!(write(&handles, "a", &long, &[b"x"]), Err(BlobError::Name(1025))));
    let many = vec![String::new(); MAX_BATCH + 1];
    assert!(matches!(handles.store().delete("a", &many), Err(BlobError::Batch(1001))));

    // Room is taken while an object is written, and given back by one that is not finished.
    handles.store().reserve(MAX_OWNER - 10).unwrap();
    assert!(matches!(write(&handles, "a", "x", &[b"12345", b"678901"]), Err(BlobError::OwnerFull)));
    assert!(matches!(handles.store().object("a", "x"), Ok(None)), "not even the beginning of it");
    write(&handles, "a", "x", &[b"1234567890"]).unwrap();
    assert!(matches!(handles.store().copy(("a", "x"), ("a", "y"), true), Err(BlobError::OwnerFull)));
    handles.store().copy(("a", "x"), ("a", "y"), false).unwrap();

    let begun: Vec<_> = (0..).map_while(|_| handles.fulfil(BlobWish::Begin).ok()).collect();
    assert_eq!(begun.len(), handles::MAX_HANDLES);
    for told in begun {
        let BlobTold::Opened(handle, _) = told else { panic!("a handle") };
        handles.fulfil(BlobWish::Close { handle }).unwrap();
    }
    handles.store().state().unwrap().objects = MAX_OBJECTS;
    assert!(matches!(write(&handles, "a", "one more", &[]), Err(BlobError::Objects)));
    handles.store().state().unwrap().containers = MAX_CONTAINERS;
    assert!(matches!(handles.store().create("b"), Err(BlobError::Containers)));
}

#[tokio::test]
async fn what_is_forgotten_is_gone_for_those_who_have_it() {
    let dir = tempfile::tempdir().unwrap();
    let stores = Stores::new(dir.path().to_path_buf());
    let store = stores.get("shop.1");
    store.load().await.unwrap();
    let handles = Handles::new(Arc::clone(&store));
    store.create("a").unwrap();
    write(&handles, "a", "x", &[b"1"]).unwrap();
    assert_eq!(stores.owners().unwrap(), ["shop.1"]);
    assert!(Arc::ptr_eq(&store, &stores.get("shop.1")));
    stores.forget("shop.1").unwrap();
    assert!(matches!(store.object("a", "x"), Err(BlobError::Index(KeyValueError::Gone))));
    assert!(write(&handles, "a", "x", &[b"1"]).is_err());
    assert!(stores.owners().unwrap().is_empty() && files(dir.path()) == 0);
    let fresh = stores.get("shop.1");
    fresh.load().await.unwrap();
    assert!(matches!(fresh.object("a", "x"), Err(BlobError::NoContainer(_))));
}
