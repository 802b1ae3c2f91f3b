//! A process that writes is killed again and again; what it had acknowledged is there afterwards.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use wasmk_store::{Embedded, Op, Revision, Settings, Store, Txn, TxnOutcome};

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
async fn open_when_free(dir: &Path) -> (Embedded, wasmk_store::Recovery) {
    for _ in 0..200 {
        match Embedded::open(dir, settings()) {
            Err(wasmk_store::Error::InUse { .. }) => tokio::time::sleep(Duration::from_millis(10)).await,
            opened => return opened.unwrap(),
        }
    }
    panic!("the lock of a dead process is still held");
}
