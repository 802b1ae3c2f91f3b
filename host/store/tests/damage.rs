//! Data directories that were damaged, borrowed, taken or filled: what opens, and what is said when it does not.

use std::fs;
use std::path::{Path, PathBuf};

use wasmk_store::{Embedded, Error, History, Memory, Op, Range, Recovery, Settings, Store, Txn, TxnOutcome};

fn settings() -> Settings {
    Settings { segment_bytes: 1 << 20, checkpoint_bytes: u64::MAX, ..Settings::default() }
}

async fn put(store: &impl Store, key: &str, value: &str) -> u64 {
    let op = Op::Put { key: key.to_string().into(), value: value.to_string().into() };
    match store.txn(Txn { ops: vec![op], ..Txn::default() }).await.unwrap() {
        TxnOutcome::Committed { revision } => revision,
        failed => panic!("{failed:?}"),
    }
}

/// A data directory as a process that was killed left it: 20 keys, each in a group of its own.
async fn killed(settings: Settings) -> tempfile::TempDir {
    let (open, copy) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (store, _) = Embedded::open(open.path(), settings).unwrap();
    for index in 0..20 {
        put(&store, &format!("/k/{index:02}"), &format!("value {index}")).await;
    }
    copy_files(open.path(), copy.path());
    copy
}

fn copy_files(from: &Path, to: &Path) {
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
    }
}

fn segments(dir: &Path) -> Vec<PathBuf> {
    let names = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
    let mut names: Vec<PathBuf> =
        names.filter(|path| path.file_name().unwrap().to_string_lossy().starts_with("log-")).collect();
    names.sort();
    names
}

fn edit(path: &Path, change: impl FnOnce(&mut Vec<u8>)) {
    let mut data = fs::read(path).unwrap();
    change(&mut data);
    fs::write(path, data).unwrap();
}

/// Where a value stands in a file.
fn find(data: &[u8], needle: &str) -> usize {
    data.windows(needle.len()).position(|window| window == needle.as_bytes()).expect("the value is there")
}

async fn keys(store: &impl Store) -> usize {
    store.range(Range { prefix: b"/k/", ..Range::default() }).await.unwrap().items.len()
}

fn refused(opened: Result<(Embedded, Recovery), Error>) -> Error {
    match opened {
        Ok((_, recovery)) => panic!("opened: {recovery:?}"),
        Err(error) => error,
    }
}

#[tokio::test]
async fn recovery_tells_what_it_found() {
    let dir = killed(settings()).await;
    let (store, recovery) = Embedded::open(dir.path(), settings()).unwrap();
    assert_eq!((recovery.revision, recovery.keys, recovery.replayed), (21, 20, 20));
    assert_eq!((recovery.clean, recovery.checkpoint, recovery.cut_bytes), (false, None, 0));
    store.close().await.unwrap();
    let (_store, recovery) = Embedded::open(dir.path(), settings()).unwrap();
    assert!(recovery.clean);
}

#[tokio::test]
async fn torn_tail_is_cut_off() {
    // Cut at every length within the last record, and with rubbish in its place.
    let whole = killed(settings()).await;
    let log = &segments(whole.path())[0];
    let data = fs::read(log).unwrap();
    let last = find(&data, "/k/19") - 40;
    for (cut, rubbish) in [(1, 0), (31, 0), (32, 0), (40, 0), (46, 0), (0, 5), (40, 300)] {
        let dir = tempfile::tempdir().unwrap();
        copy_files(whole.path(), dir.path());
        edit(&segments(dir.path())[0], |data| {
            data.truncate(last + cut);
            data.extend(vec![0xA5; rubbish]);
        });
        let (store, recovery) = Embedded::open(dir.path(), settings()).unwrap();
        assert_eq!(recovery.cut_bytes, (cut + rubbish) as u64, "{recovery:?}");
        assert_eq!((recovery.revision, keys(&store).await), (20, 19));
        // The place is used again.
        assert_eq!(put(&store, "/k/again", "1").await, 21);
        store.close().await.unwrap();
        let (store, recovery) = Embedded::open(dir.path(), settings()).unwrap();
        assert_eq!((recovery.cut_bytes, keys(&store).await), (0, 20));
    }
}

#[tokio::test]
async fn damage_before_the_tail_refuses_to_open_and_says_where() {
    let dir = killed(settings()).await;
    let log = segments(dir.path())[0].clone();
    let at = find(&fs::read(&log).unwrap(), "value 7");
    edit(&log, |data| data[at] ^= 1);
    let before = fs::read(&log).unwrap();
    let error = refused(Embedded::open(dir.path(), settings()));
    let text = error.to_string();
    let Error::Corrupt { path, offset, revision, .. } = error else { panic!("{error:?}") };
    assert_eq!((&path, revision), (&log, 8), "the seven keys before it are revisions 2 to 8");
    assert!((offset as usize) < at && at - (offset as usize) < 60, "{offset} is the record's beginning");
    for word in ["log-", &offset.to_string(), "revision 8", "snapshot", "checksum"] {
        assert!(text.contains(word), "{text:?} should say {word:?}");
    }
    assert!(before == fs::read(&log).unwrap(), "nothing was changed");
}

#[tokio::test]
async fn lost_ranges_are_damage_too() {
    for what in ["zeros", "short header", "no header"] {
        let dir = killed(settings()).await;
        let log = segments(dir.path())[0].clone();
        edit(&log, |data| match what {
            "zeros" => {
                let from = find(data, "value 7");
                data[from - 45..from + 100].fill(0);
            }
            "short header" => data.truncate(20),
            _ => data[..44].fill(0),
        });
        let error = refused(Embedded::open(dir.path(), settings()));
        assert!(matches!(error, Error::Corrupt { .. }), "{what}: {error:?}");
    }
}

#[tokio::test]
async fn missing_segments_are_noticed() {
    let small = Settings { segment_bytes: 300, ..settings() };
    for lost in [0, 1, usize::MAX] {
        let dir = killed(small).await;
        let all = segments(dir.path());
        assert!(all.len() > 3, "{all:?}");
        for (index, path) in all.iter().enumerate() {
            if lost == index || lost == usize::MAX {
                fs::remove_file(path).unwrap();
            }
        }
        let error = refused(Embedded::open(dir.path(), small));
        assert!(matches!(error, Error::Corrupt { .. }), "without segment {lost}: {error:?}");
    }
}

#[tokio::test]
async fn a_closed_store_must_be_whole() {
    let dir = tempfile::tempdir().unwrap();
    let (store, _) = Embedded::open(dir.path(), settings()).unwrap();
    put(&store, "/k/a", "1").await;
    let last = put(&store, "/k/b", "2").await;
    store.close().await.unwrap();
    assert!(matches!(store.get(b"/k/a", None).await, Err(Error::Closed)));
    assert!(matches!(store.txn(Txn::put("/k/c", "3", 0)).await, Err(Error::Closed)));
    edit(&segments(dir.path())[0], |data| data.truncate(data.len() - 3));
    let error = refused(Embedded::open(dir.path(), settings()));
    assert!(matches!(&error, Error::Corrupt { .. }), "{error:?}");
    assert!(error.to_string().contains(&format!("closed at revision {last}")), "{error}");
}

#[tokio::test]
async fn another_format_is_refused_by_name() {
    let dir = killed(settings()).await;
    fs::write(dir.path().join("format"), "wasmk-store 9\n").unwrap();
    let error = refused(Embedded::open(dir.path(), settings()));
    let text = error.to_string();
    assert!(matches!(error, Error::ForeignVersion { .. }));
    assert!(text.contains("wasmk-store 9") && text.contains("wasmk-store 2"), "{text}");

    // A directory of something else is not taken over.
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("member"), "etcd").unwrap();
    let error = refused(Embedded::open(dir.path(), settings()));
    assert!(matches!(&error, Error::ForeignVersion { found, .. } if found.contains("member")), "{error:?}");
}

#[tokio::test]
async fn one_process_at_a_time() {
    let dir = tempfile::tempdir().unwrap();
    let (store, _) = Embedded::open(dir.path(), settings()).unwrap();
    let error = refused(Embedded::open(dir.path(), settings()));
    let pid = std::process::id().to_string();
    assert!(matches!(&error, Error::InUse { pid: holder, .. } if *holder == pid), "{error:?}");
    assert!(error.to_string().contains(&pid));
    drop(store);
    Embedded::open(dir.path(), settings()).unwrap();
}

/// A directory with two checkpoints, closed properly.
async fn checkpointed() -> (tempfile::TempDir, Settings) {
    let settings = Settings { segment_bytes: 4 << 10, checkpoint_bytes: 16 << 10, ..Settings::default() };
    let dir = tempfile::tempdir().unwrap();
    // Each checkpoint is complete when the store is closed.
    for round in 0..3 {
        let (store, _) = Embedded::open(dir.path(), settings).unwrap();
        for index in 0..100 {
            // Nothing in common with the value before, so that the log grows.
            put(&store, &format!("/k/{index:02}"), &round.to_string().repeat(200)).await;
        }
        store.close().await.unwrap();
    }
    (dir, settings)
}

fn remove(checkpoint: &Path) {
    fs::remove_dir_all(checkpoint).unwrap();
}

fn truncate(checkpoint: &Path) {
    edit(&checkpoint.join("db"), |data| data.truncate(1000));
}

fn scribble(checkpoint: &Path) {
    edit(&checkpoint.join("db"), |data| data.iter_mut().step_by(97).for_each(|byte| *byte ^= 0x55));
}

fn copy_tree(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy_tree(&entry.path(), &target);
        } else {
            fs::copy(entry.path(), target).unwrap();
        }
    }
}

#[tokio::test]
async fn checkpoints_keep_the_log_short_and_may_be_lost() {
    let (dir, settings) = checkpointed().await;
    let first = segments(dir.path())[0].clone();
    assert!(!first.ends_with("log-0000000000000001"), "old segments go: {first:?}");
    let (store, recovery) = Embedded::open(dir.path(), settings).unwrap();
    let newest = recovery.checkpoint.expect("a checkpoint");
    assert!(recovery.replayed < 200, "{recovery:?}");
    assert_eq!(keys(&store).await, 100);
    let all = store.range(Range::default()).await.unwrap().items;
    store.close().await.unwrap();

    // Whichever of the two was the newest: lose or spoil one, and the other one or the log makes up for it.
    for spoil in [remove, truncate, scribble] {
        let mut damaged = 0;
        for slot in ["checkpoint-0", "checkpoint-1"] {
            let copy = tempfile::tempdir().unwrap();
            copy_tree(dir.path(), copy.path());
            spoil(&copy.path().join(slot));
            let (store, recovery) = Embedded::open(copy.path(), settings).unwrap();
            damaged += recovery.damaged_checkpoints;
            assert_eq!(recovery.checkpoint == Some(newest), recovery.damaged_checkpoints == 0);
            assert_eq!(store.range(Range::default()).await.unwrap().items, all);
            store.close().await.unwrap();
        }
        assert_eq!(damaged, 1, "one of them was the newest");
    }

    // Without both there is no way.
    for slot in ["checkpoint-0", "checkpoint-1"] {
        fs::remove_dir_all(dir.path().join(slot)).unwrap();
    }
    let error = refused(Embedded::open(dir.path(), settings));
    assert!(matches!(error, Error::Corrupt { .. }), "{error:?}");
}

#[tokio::test]
async fn watches_resume_over_a_restart() {
    let dir = killed(settings()).await;
    let (store, _) = Embedded::open(dir.path(), settings()).unwrap();
    let mut watch = store.watch(b"/k/", 15).await.unwrap();
    let batch = watch.next().await.unwrap().unwrap();
    let revisions: Vec<u64> = batch.events.iter().map(|event| event.revision()).collect();
    assert_eq!(revisions, [16, 17, 18, 19, 20, 21]);
    // An explicit compaction holds over a restart as well.
    store.compact(18).await.unwrap();
    store.close().await.unwrap();
    assert!(watch.next().await.is_none(), "a closed store ends its watches");
    let (store, _) = Embedded::open(dir.path(), settings()).unwrap();
    assert_eq!(store.compacted().await.unwrap(), 18);
    assert!(matches!(store.watch(b"/k/", 15).await, Err(Error::Compacted { compacted: 18, .. })));
}

#[tokio::test]
async fn snapshots_are_consistent_and_move_between_backends() {
    let (dir, target) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (store, _) = Embedded::open(dir.path(), settings()).unwrap();
    for index in 0..50 {
        put(&store, &format!("/k/{index:02}"), &format!("value {index}")).await;
    }
    let mut stream = Vec::new();
    let info = store.snapshot(&mut stream).unwrap();
    assert_eq!((info.revision, info.keys), (51, 50));
    put(&store, "/k/later", "1").await;

    let path = target.path().join("restored");
    assert_eq!(Embedded::restore(&path, &stream[..]).unwrap(), info);
    let (restored, recovery) = Embedded::open(&path, settings()).unwrap();
    assert_eq!(recovery.keys, 50);
    assert!(recovery.revision > info.revision + 1_000_000, "old revisions stay unknown to it");
    let expected =
        store.range(Range { prefix: b"/k/", at: Some(51), ..Range::default() }).await.unwrap().items;
    let items = |range: wasmk_store::RangeResult| range.items;
    assert_eq!(restored.range(Range::default()).await.map(items).unwrap(), expected);
    assert!(matches!(restored.watch(b"", 51).await, Err(Error::Compacted { .. })));
    assert!(put(&restored, "/k/new", "1").await > recovery.revision);
    let memory = Memory::restore(&stream[..]).unwrap();
    assert_eq!(memory.range(Range::default()).await.map(items).unwrap(), expected);

    assert!(
        matches!(Embedded::restore(&path, &stream[..]), Err(Error::Invalid(_))),
        "not over an existing store"
    );
    for at in [0, 13, 20, 40, stream.len() / 2, stream.len() - 1] {
        let mut damaged = stream.clone();
        damaged[at] ^= 4;
        let path = target.path().join("damaged");
        let error = Embedded::restore(&path, &damaged[..]).unwrap_err();
        assert!(matches!(error, Error::BadSnapshot(_)), "byte {at}: {error:?}");
        assert!(!path.exists(), "nothing is created from a damaged snapshot");
    }
    for len in [0, 10, 40, stream.len() - 1] {
        assert!(matches!(Memory::restore(&stream[..len]), Err(Error::BadSnapshot(_))), "cut to {len}");
    }
}

#[tokio::test]
async fn history_is_bounded_by_bytes() {
    let history = History { bytes: 100_000, ..History::default() };
    let store = Memory::with_history(history);
    let first = put(&store, "/k/a", "0").await;
    for _ in 0..200 {
        put(&store, "/k/a", &"x".repeat(1000)).await;
    }
    let compacted = store.compacted().await.unwrap();
    let revision = store.revision().await.unwrap();
    assert!(compacted > first && revision - compacted > 50, "{compacted} of {revision}");
}

/// A directory that format 1 left, closed properly: 32 revisions over three segments, compacted at 20.
fn format_1() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    copy_files(Path::new("tests/format-1"), dir.path());
    dir
}

#[tokio::test]
async fn a_directory_of_format_1_is_upgraded_by_opening_it() {
    let dir = format_1();
    let inspection = Embedded::inspect(dir.path()).unwrap();
    assert_eq!(
        (inspection.format.as_str(), inspection.revision, inspection.clean),
        ("wasmk-store 1", 32, true)
    );
    let format = || fs::read_to_string(dir.path().join("format")).unwrap();
    assert_eq!(format(), "wasmk-store 1\n", "looking changes nothing");

    let (store, recovery) = Embedded::open(dir.path(), settings()).unwrap();
    assert_eq!((recovery.revision, recovery.keys, recovery.clean), (32, 12, true));
    assert_eq!(format(), "wasmk-store 2\n");
    assert_eq!(store.compacted().await.unwrap(), 20);
    let value = |store: Embedded, key: &'static str| async move {
        let kv = store.get(key.as_bytes(), None).await.unwrap();
        kv.map(|kv| (String::from_utf8_lossy(&kv.value).into_owned(), kv.create_revision, kv.mod_revision))
    };
    let c05 = "/registry/core/configmaps/default/c05";
    assert_eq!(value(store.clone(), c05).await, Some((r#"{"data":{"n":"29"}}"#.into(), 7, 31)));
    assert_eq!(value(store.clone(), "/registry/core/configmaps/default/c03").await, None);
    // The log goes on in the new form, behind the old one.
    for number in 0..30 {
        put(&store, c05, &format!("{} {number}", "x".repeat(300))).await;
    }
    store.close().await.unwrap();
    let (store, recovery) = Embedded::open(dir.path(), settings()).unwrap();
    assert_eq!((recovery.revision, recovery.keys), (62, 12));
    assert!(value(store, c05).await.unwrap().0.ends_with(" 29"));
}

#[tokio::test]
async fn small_changes_of_large_values_take_little_log() {
    let dir = tempfile::tempdir().unwrap();
    let (store, _) = Embedded::open(dir.path(), settings()).unwrap();
    let value = |number: usize| format!("{}{number:04}{}", "a".repeat(500), "b".repeat(500));
    put(&store, "/k/lease", &value(0)).await;
    let before = store.stats().log_bytes;
    for number in 1..=100 {
        put(&store, "/k/lease", &value(number)).await;
    }
    let each = (store.stats().log_bytes - before) / 100;
    assert!(each < 100, "{each} bytes for a change of four");
    let expected = store.get(b"/k/lease", Some(51)).await.unwrap().unwrap();
    store.close().await.unwrap();
    let (store, _) = Embedded::open(dir.path(), settings()).unwrap();
    assert_eq!(store.get(b"/k/lease", Some(51)).await.unwrap().unwrap(), expected);
    assert_eq!(expected.value, value(49));
}

#[tokio::test]
async fn inspection_tells_what_is_there_and_changes_nothing() {
    let (dir, _) = checkpointed().await;
    let before = fs::read(dir.path().join("closed")).unwrap();
    let found = Embedded::inspect(dir.path()).unwrap();
    assert_eq!((found.keys, found.revision, found.clean, found.stranded), (100, 301, true, 0));
    assert!(found.damage.is_none() && found.checkpoints.len() == 2, "{found:?}");
    assert!(found.checkpoints.iter().all(|checkpoint| checkpoint.problem.is_none()), "{found:?}");
    assert!(found.segments.iter().map(|segment| segment.records).sum::<u64>() > 0);
    assert_eq!(fs::read(dir.path().join("closed")).unwrap(), before);

    truncate(&dir.path().join(&found.checkpoints[0].name));
    let found = Embedded::inspect(dir.path()).unwrap();
    assert!(found.damage.is_none() && found.keys == 100, "the other checkpoint and the log make up for it");
    assert_eq!(found.checkpoints.iter().filter(|checkpoint| checkpoint.problem.is_some()).count(), 1);

    let (store, _) = Embedded::open(dir.path(), settings()).unwrap();
    assert!(matches!(Embedded::inspect(dir.path()), Err(Error::InUse { .. })), "not under a running store");
    drop(store);
    let nothing = tempfile::tempdir().unwrap();
    for path in [nothing.path().to_path_buf(), nothing.path().join("absent")] {
        assert!(matches!(Embedded::inspect(&path), Err(Error::Invalid(_))));
        assert!(!path.join("lock").exists(), "nothing is created");
    }
}

#[tokio::test]
async fn repair_saves_what_is_before_the_damage_and_keeps_the_rest_aside() {
    let home = tempfile::tempdir().unwrap();
    let dir = home.path().join("store");
    fs::create_dir(&dir).unwrap();
    copy_files(killed(settings()).await.path(), &dir);
    assert!(Embedded::repair(&dir).unwrap().is_none(), "nothing to repair");
    let log = segments(&dir)[0].clone();
    let at = find(&fs::read(&log).unwrap(), "value 7");
    edit(&log, |data| data[at] ^= 1);
    let damaged = fs::read(&log).unwrap();

    let found = Embedded::inspect(&dir).unwrap();
    assert_eq!((found.revision, found.keys, found.stranded), (8, 7, 12));
    assert!(matches!(found.damage, Some(Error::Corrupt { revision: 8, .. })));
    let contents = Embedded::contents(&dir).unwrap();
    assert_eq!((contents.revision, contents.items.len(), contents.damage.is_some()), (8, 7, true));
    let mut entries = Vec::new();
    Embedded::log(&dir, &mut |entry| entries.push(entry)).unwrap();
    let unreadable: Vec<_> = entries.iter().filter(|entry| entry.kind == "unreadable").collect();
    assert!(unreadable.len() == 1 && unreadable[0].offset < at as u64 && entries.len() == 20, "{entries:?}");
    assert_eq!(entries.last().unwrap().changes[0].key, b"/k/19");

    let repair = Embedded::repair(&dir).unwrap().expect("there was damage");
    assert_eq!((repair.saved, repair.keys, repair.stranded), (8, 7, 12));
    assert_eq!(fs::read(repair.kept.join(log.file_name().unwrap())).unwrap(), damaged, "kept as it was");
    let (store, recovery) = Embedded::open(&dir, settings()).unwrap();
    assert_eq!((recovery.revision, keys(&store).await), (repair.revision, 7));
    assert!(
        matches!(store.watch(b"", 20).await, Err(Error::Compacted { .. })),
        "old revisions are not taken for new"
    );
    assert!(put(&store, "/k/more", "1").await > repair.revision);
}

#[tokio::test]
async fn any_store_is_exported_and_imported() {
    let from = Memory::new();
    for index in 0..250 {
        put(&from, &format!("/k/{index:03}"), &"v".repeat(10_000)).await;
    }
    let mut stream = Vec::new();
    let info = wasmk_store::export(&from, &mut stream).await.unwrap();
    assert_eq!((info.revision, info.keys), (251, 250));
    assert_eq!(wasmk_store::check_snapshot(&stream[..]).unwrap(), info);
    let to = Memory::new();
    assert_eq!(wasmk_store::import(&to, &stream[..]).await.unwrap(), info);
    assert_eq!(keys(&to).await, 250);
    let refused = wasmk_store::import(&to, &stream[..]).await.unwrap_err().to_string();
    assert!(refused.contains("not empty") && refused.contains("/k/000"), "{refused}");
    stream[100] ^= 1;
    assert!(matches!(wasmk_store::check_snapshot(&stream[..]), Err(Error::BadSnapshot(_))));
}

#[tokio::test]
async fn a_checkpoint_that_fails_is_told_and_made_up_for() {
    use std::os::unix::fs::PermissionsExt;
    let dir = tempfile::tempdir().unwrap();
    let settings = Settings { segment_bytes: 4 << 10, checkpoint_bytes: 16 << 10, ..Settings::default() };
    let (store, _) = Embedded::open(dir.path(), settings).unwrap();
    // A file where the checkpoint's directory should be.
    for slot in 0..2 {
        fs::write(dir.path().join(format!("checkpoint-{slot}")), "in the way").unwrap();
    }
    let limit = std::time::Instant::now() + std::time::Duration::from_secs(30);
    let mut number = 0;
    while store.stats().checkpoint_error.is_none() {
        assert!(std::time::Instant::now() < limit, "no checkpoint was tried");
        number += 1;
        put(&store, &format!("/k/{number}"), &format!("{number}{}", "x".repeat(500))).await;
    }
    let health = store.health();
    assert!(health.problem.is_none() && health.warnings[0].contains("checkpoint failed"), "{health:?}");
    assert!(
        health
            .figures
            .iter()
            .any(|(name, _, value)| *name == "wasmk_store_checkpoint_errors_total" && *value > 0.0)
    );
    for slot in 0..2 {
        fs::remove_file(dir.path().join(format!("checkpoint-{slot}"))).unwrap();
    }
    while store.stats().checkpoint_error.is_some() {
        assert!(std::time::Instant::now() < limit, "no checkpoint succeeds");
        number += 1;
        put(&store, &format!("/k/{number}"), &format!("{number}{}", "x".repeat(500))).await;
    }
    let mode = fs::metadata(&segments(dir.path())[0]).unwrap().permissions().mode();
    assert_eq!(mode & 0o077, 0, "nobody else can read the log");
}
