//! Stores in processes of their own, because what happens to them would happen to every test: one is killed again
//! and again while it writes, one runs out of space. What they had acknowledged is there afterwards.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use wasmk_store::{Embedded, Error, Op, Recovery, Revision, Settings, Store, Txn, TxnOutcome};

const ROUNDS: usize = 12;
const WRITERS: usize = 8;
/// Tells the child where to write.
const DIR: &str = "STORE_KILL_TEST_DIR";

fn settings() -> Settings {
    // Rotation and checkpoints happen all the time, so that some are interrupted.
    Settings { segment_bytes: 64 << 10, checkpoint_bytes: 128 << 10, ..Settings::default() }
}

/// The process that is killed: says "writer number revision" for every write once it is acknowledged.
#[test]
#[ignore = "the process that kill_9_loses_nothing_acknowledged starts and kills"]
fn child() {
    let dir = std::env::var_os(DIR).expect("started by the other test");
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let (store, _) = Embedded::open(&dir, settings()).unwrap();
    runtime.block_on(async {
        let writers: Vec<_> = (0..WRITERS).map(|writer| tokio::spawn(write(store.clone(), writer))).collect();
        for writer in writers {
            writer.await.unwrap();
        }
    });
}

async fn write(store: Embedded, writer: usize) {
    let key = format!("/writer/{writer}");
    let kv = store.get(key.as_bytes(), None).await.unwrap();
    let mut number = kv.map_or(0, |kv| number_of(&kv.value));
    loop {
        number += 1;
        let value = format!("{number} {}", "x".repeat(number as usize % 900));
        let op = Op::Put { key: key.clone().into(), value: value.into() };
        let txn = Txn { ops: vec![op], ..Txn::default() };
        // Relaxed writes survive the process as well.
        let txn = if writer.is_multiple_of(2) { txn } else { txn.relaxed() };
        let TxnOutcome::Committed { revision } = store.txn(txn).await.unwrap() else {
            panic!("unconditional")
        };
        let line = format!("ack {writer} {number} {revision}\n");
        std::io::stdout().write_all(line.as_bytes()).unwrap();
    }
}

fn number_of(value: &[u8]) -> u64 {
    String::from_utf8_lossy(value).split(' ').next().and_then(|number| number.parse().ok()).unwrap()
}

/// Lets a child write for a while, kills it, and returns the last acknowledged number and revision per writer.
fn killed_child(dir: &Path, acknowledgements: usize) -> BTreeMap<usize, (u64, Revision)> {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "child", "--ignored", "--nocapture", "--test-threads=1"])
        .env(DIR, dir)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut last = BTreeMap::new();
    let (mut seen, mut killed) = (0, false);
    for line in BufReader::new(child.stdout.take().unwrap()).lines() {
        let line = line.unwrap();
        let words: Vec<&str> = line.split(' ').collect();
        // The first line shares its beginning with the test runner's own words; the last may be torn.
        if let ["ack", writer, number, revision] = words[..]
            && let (Ok(writer), Ok(number), Ok(revision)) = (writer.parse(), number.parse(), revision.parse())
        {
            last.insert(writer, (number, revision));
        }
        seen += 1;
        if seen == acknowledgements {
            // SIGKILL on this platform.
            child.kill().unwrap();
            killed = true;
        }
    }
    child.wait().unwrap();
    assert!(killed, "the child ended by itself after {seen} lines");
    last
}

#[tokio::test(flavor = "multi_thread")]
async fn kill_9_loses_nothing_acknowledged() {
    let dir = tempfile::tempdir().unwrap();
    let mut highest = 0;
    for round in 0..ROUNDS {
        let acknowledged = killed_child(dir.path(), 300 + 137 * round);
        assert_eq!(acknowledged.len(), WRITERS, "every writer got somewhere");
        let (store, recovery) = open_when_free(dir.path()).await;
        for (writer, (number, revision)) in acknowledged {
            let kv = store.get(format!("/writer/{writer}").as_bytes(), None).await.unwrap().unwrap();
            let found = number_of(&kv.value);
            assert!(
                found >= number && kv.mod_revision >= revision,
                "writer {writer}: {found} after {number}"
            );
            assert!(kv.mod_revision > highest, "revisions rise over restarts");
        }
        highest = store.revision().await.unwrap();
        assert_eq!(highest, recovery.revision);
        store.close().await.unwrap();
    }
}

/// The dead process's lock goes with it, at the latest when the system has cleaned it up.
async fn open_when_free(dir: &Path) -> (Embedded, Recovery) {
    for _ in 0..200 {
        match Embedded::open(dir, settings()) {
            Err(Error::InUse { .. }) => tokio::time::sleep(Duration::from_millis(10)).await,
            opened => return opened.unwrap(),
        }
    }
    panic!("the lock of a dead process is still held");
}

#[tokio::test]
async fn held_writes_cost_no_write_and_survive_an_orderly_end() {
    let dir = tempfile::tempdir().unwrap();
    let (store, _) = Embedded::open(dir.path(), settings()).unwrap();
    let beat = |number: u64, after| Txn::put("/lease", number.to_string(), after);
    // The first one of its kind reserves revisions for the others, which is synced.
    let mut last = committed(store.txn(beat(0, 0).held()).await);
    let log = || {
        let files = std::fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().path());
        let logs = files.filter(|path| path.file_name().unwrap().to_string_lossy().starts_with("log-"));
        logs.map(|path| std::fs::read(path).unwrap()).collect::<Vec<_>>()
    };
    let before = log();
    for number in 1..100 {
        last = committed(store.txn(beat(number, last).held()).await);
    }
    assert!(before == log(), "held writes reach the log with the next that has to");
    committed(store.txn(Txn::put("/other", "x", 0).relaxed()).await);
    assert!(before != log());
    last = committed(store.txn(beat(100, last).held()).await);
    store.close().await.unwrap();
    let (store, recovery) = Embedded::open(dir.path(), settings()).unwrap();
    assert!(recovery.clean);
    let kv = store.get(b"/lease", None).await.unwrap().unwrap();
    assert_eq!((number_of(&kv.value), kv.mod_revision), (100, last));
    store.close().await.unwrap();
}

fn committed(outcome: Result<TxnOutcome, Error>) -> Revision {
    match outcome.unwrap() {
        TxnOutcome::Committed { revision } => revision,
        TxnOutcome::Failed { .. } => panic!("the condition holds"),
    }
}

/// The process that runs out of space: no file of its may grow beyond a limit.
#[tokio::test]
#[ignore = "the process that a_full_disk_refuses_writes_and_keeps_the_rest starts"]
async fn full_child() {
    let dir = std::env::var_os(DIR).expect("started by the other test");
    let (store, _) =
        Embedded::open(&dir, Settings { segment_bytes: 1 << 30, ..Settings::default() }).unwrap();
    let value = "x".repeat(10_000);
    let put = |index: usize, value: &str| Txn::put(format!("/full/{index}"), value.to_string(), 0);
    let mut written = 0;
    let error = loop {
        match store.txn(put(written, &value)).await {
            Ok(_) => written += 1,
            Err(error) => break error,
        }
        assert!(written < 10_000, "the limit is never met");
    };
    assert!(matches!(error, Error::Full { .. }), "{error:?}");
    assert!(error.to_string().contains("log-"), "{error} names the file");
    // Reads go on, nothing of the refused write is there, and what is small enough still fits.
    let revision = store.revision().await.unwrap();
    assert_eq!(store.get(format!("/full/{written}").as_bytes(), None).await.unwrap(), None);
    assert!(store.get(b"/full/0", None).await.unwrap().is_some());
    assert!(store.stats().broken.is_none());
    let TxnOutcome::Committed { revision: next } = store.txn(put(written, "small")).await.unwrap() else {
        panic!("the key is absent")
    };
    assert_eq!(next, revision + 1);
    let line = format!("ack {written} {next} full\n");
    std::io::stdout().write_all(line.as_bytes()).unwrap();
}

#[tokio::test]
async fn a_full_disk_refuses_writes_and_keeps_the_rest() {
    let dir = tempfile::tempdir().unwrap();
    // The shell lowers the limit and has the signal ignored that would come with it.
    let output = Command::new("sh")
        .args(["-c", "trap '' XFSZ; ulimit -f 600; exec \"$0\" --exact full_child --ignored --nocapture"])
        .arg(std::env::current_exe().unwrap())
        .env(DIR, dir.path())
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{text}{}", String::from_utf8_lossy(&output.stderr));
    let last = text.lines().find_map(|line| line.split_once("ack ")).expect("it says how far it got").1;
    let words: Vec<u64> = last.split(' ').filter_map(|word| word.parse().ok()).collect();
    let [written, revision] = words[..] else { panic!("{last}") };
    let (store, recovery) = open_when_free(dir.path()).await;
    assert_eq!((recovery.revision, recovery.keys), (revision, written + 1));
    store.txn(Txn::put("/full/more", "x".repeat(100_000), 0)).await.unwrap();
    store.close().await.unwrap();
}
