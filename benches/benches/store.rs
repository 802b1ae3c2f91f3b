//! Promise: a durable write costs at most 1.5 times a bare fdatasync when there is one writer, 64 writers get at
//! least 10,000 durable writes a second and five times what an etcd gives them, 100,000 objects are open again in
//! less than a second, and a cluster's beats write at most 200 bytes a second.
//!
//! Measured side by side, in turns, on the same disk: a write and fdatasync of a record of the same size, appended
//! to a file and into space laid out before, as the store's log has it; the embedded store with 1, 16, 64 and 256
//! writers; and, where one is in PATH, an etcd with its own settings through the same interface. Medians over the
//! rounds. Bytes are those the kernel counts for this process (`/proc/self/io`).
//! `cargo bench -p wasmk-store --bench store`

use std::fs::File;
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use wasmk_store::{Durability, Embedded, Etcd, Op, Recovery, Settings, Store, Txn};

const ROUNDS: usize = 7;
const ROUND: Duration = Duration::from_millis(700);
const VALUE_BYTES: usize = 1024;
const KEYS: u64 = 10_000;
/// Objects of the store that is opened again.
const MANY: u64 = 100_000;
/// How long an idle store is watched, and how often a Lease is renewed meanwhile.
const IDLE: Duration = Duration::from_secs(120);
const BEAT: Duration = Duration::from_secs(10);

/// One round of one contender.
#[derive(Clone, Copy, Default)]
struct Sample {
    per_second: f64,
    p50: Duration,
    p99: Duration,
}

fn sample(mut latencies: Vec<Duration>, elapsed: Duration) -> Sample {
    latencies.sort_unstable();
    let at = |percent: usize| latencies[(latencies.len() - 1) * percent / 100];
    Sample { per_second: latencies.len() as f64 / elapsed.as_secs_f64(), p50: at(50), p99: at(99) }
}

/// A file for records written one after the other, each followed by an fdatasync.
struct Bare {
    file: File,
    offset: u64,
    /// Space laid out with zeros, used over and over; 0 to append.
    laid_out: u64,
}

impl Bare {
    fn new(path: &Path, laid_out: u64) -> std::io::Result<Self> {
        let file = File::create(path)?;
        file.write_all_at(&vec![0; laid_out as usize], 0)?;
        file.sync_all()?;
        Ok(Self { file, offset: 0, laid_out })
    }

    fn round(&mut self) -> std::io::Result<Sample> {
        let record = vec![b'x'; VALUE_BYTES + 80];
        let (started, mut latencies) = (Instant::now(), Vec::new());
        while started.elapsed() < ROUND {
            let began = Instant::now();
            self.file.write_all_at(&record, self.offset)?;
            self.file.sync_data()?;
            latencies.push(began.elapsed());
            self.offset += record.len() as u64;
            if self.laid_out > 0 && self.offset + record.len() as u64 > self.laid_out {
                self.offset = 0;
            }
        }
        Ok(sample(latencies, started.elapsed()))
    }
}

async fn write(
    store: Arc<dyn Store>,
    next: &'static AtomicU64,
    durability: Durability,
    until: Instant,
) -> Vec<Duration> {
    let mut latencies = Vec::new();
    while Instant::now() < until {
        let number = next.fetch_add(1, Ordering::Relaxed) % KEYS;
        let key = format!("/registry/core/configmaps/default/bench-{number}").into();
        let op = Op::Put { key, value: vec![b'x'; VALUE_BYTES].into() };
        let began = Instant::now();
        let outcome = store.txn(Txn { ops: vec![op], durability, ..Txn::default() }).await;
        latencies.push(began.elapsed());
        assert!(outcome.is_ok(), "{outcome:?}");
    }
    latencies
}

async fn store(store: &Arc<dyn Store>, writers: usize, durability: Durability) -> Sample {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let started = Instant::now();
    let tasks: Vec<_> = (0..writers)
        .map(|_| tokio::spawn(write(store.clone(), &NEXT, durability, started + ROUND)))
        .collect();
    let mut latencies = Vec::new();
    for task in tasks {
        latencies.extend(task.await.expect("a writer that does not panic"));
    }
    sample(latencies, started.elapsed())
}

fn median(samples: &[Sample]) -> Sample {
    let middle = |mut values: Vec<f64>| {
        values.sort_unstable_by(f64::total_cmp);
        values[values.len() / 2]
    };
    let of = |pick: fn(&Sample) -> f64| middle(samples.iter().map(pick).collect());
    Sample {
        per_second: of(|sample| sample.per_second),
        p50: Duration::from_secs_f64(of(|sample| sample.p50.as_secs_f64())),
        p99: Duration::from_secs_f64(of(|sample| sample.p99.as_secs_f64())),
    }
}

/// Beside the build, because the temporary directory is often not on a disk.
fn directory() -> std::io::Result<tempfile::TempDir> {
    tempfile::tempdir_in(std::env::current_exe()?.parent().unwrap_or(Path::new(".")))
}

/// An etcd that ends with the bench.
struct Etcds(Child);

impl Drop for Etcds {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.0.kill().and_then(|()| self.0.wait());
    }
}

/// Starts an etcd, if there is one.
async fn etcd(dir: &Path) -> Option<(Etcds, Arc<dyn Store>)> {
    let free =
        || Some(format!("http://{}", std::net::TcpListener::bind("127.0.0.1:0").ok()?.local_addr().ok()?));
    let (client, peer) = (free()?, free()?);
    let process = Command::new("etcd")
        .arg("--data-dir")
        .arg(dir.join("etcd"))
        .args(["--listen-client-urls", &client, "--advertise-client-urls", &client])
        .args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer])
        .args(["--initial-cluster", &format!("default={peer}")])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn();
    let process = Etcds(process.ok()?);
    let limit = Instant::now() + Duration::from_secs(20);
    while Instant::now() < limit {
        if let Ok(store) = Etcd::connect(std::slice::from_ref(&client), None).await {
            return Some((process, Arc::new(store)));
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    None
}

#[tokio::main]
async fn main() -> std::io::Result<()> {
    let dir = directory()?;
    let opened =
        Embedded::open(dir.path().join("store"), Settings::default()).map_err(std::io::Error::other)?;
    let embedded = opened.0;
    let etcd = etcd(dir.path()).await;
    let own: Arc<dyn Store> = Arc::new(embedded.clone());
    let mut contenders = vec![
        ("1 writer", own.clone(), 1, Durability::Synced),
        ("16 writers", own.clone(), 16, Durability::Synced),
        ("64 writers", own.clone(), 64, Durability::Synced),
        ("256 writers", own.clone(), 256, Durability::Synced),
        ("1 writer, relaxed", own, 1, Durability::Relaxed),
    ];
    if let Some((_, etcd)) = &etcd {
        let names = [
            ("etcd, 1 writer", 1),
            ("etcd, 16 writers", 16),
            ("etcd, 64 writers", 64),
            ("etcd, 256 writers", 256),
        ];
        contenders.extend(names.map(|(name, writers)| (name, etcd.clone(), writers, Durability::Synced)));
    }
    let (mut appended, mut laid_out) = (Vec::new(), Vec::new());
    let mut append = Bare::new(&dir.path().join("appended"), 0)?;
    let mut overwrite = Bare::new(&dir.path().join("laid-out"), 4 << 20)?;
    let mut samples = vec![Vec::new(); contenders.len()];
    for _ in 0..ROUNDS {
        appended.push(append.round()?);
        laid_out.push(overwrite.round()?);
        for (samples, (_, contender, writers, durability)) in samples.iter_mut().zip(&contenders) {
            samples.push(store(contender, *writers, *durability).await);
        }
    }
    let (appended, laid_out) = (median(&appended), median(&laid_out));
    let mut rows = vec![("bare, appended", appended), ("bare, laid out", laid_out)];
    rows.extend(contenders.iter().map(|(name, ..)| *name).zip(samples.iter().map(|samples| median(samples))));
    let mut out = std::io::stdout().lock();
    writeln!(
        out,
        "{:<20} {:>8} {:>10} {:>10} {:>11} {:>11}",
        "durable 1 KiB writes", "per s", "p50", "p99", "× appended", "× laid out"
    )?;
    for (name, Sample { per_second, p50, p99 }) in rows {
        let times = |bare: Sample| p50.as_secs_f64() / bare.p50.as_secs_f64();
        let (first, second) = (times(appended), times(laid_out));
        writeln!(out, "{name:<20} {per_second:>8.0} {p50:>10.1?} {p99:>10.1?} {first:>11.2} {second:>11.2}")?;
    }
    drop(out);
    embedded.close().await.map_err(std::io::Error::other)?;
    many(&dir.path().join("many")).await?;
    idle(&dir.path().join("idle")).await
}

/// A figure of this process from a file of the kernel's.
fn figure(file: &str, name: &str) -> u64 {
    let text = std::fs::read_to_string(file).unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix(name));
    line.and_then(|rest| rest.split_whitespace().next()?.parse().ok()).unwrap_or(0)
}

fn written() -> u64 {
    figure("/proc/self/io", "write_bytes:")
}

fn resident_kib() -> u64 {
    figure("/proc/self/status", "VmRSS:")
}

fn print(text: std::fmt::Arguments<'_>) -> std::io::Result<()> {
    writeln!(std::io::stdout().lock(), "{text}")
}

/// Bytes written for each of many objects, and how a store of them opens again.
async fn many(path: &Path) -> std::io::Result<()> {
    let (store, _) = Embedded::open(path, Settings::default()).map_err(std::io::Error::other)?;
    let before = written();
    let writers: Vec<_> = (0..64)
        .map(|writer| {
            let store = store.clone();
            tokio::spawn(async move {
                for number in (writer..MANY).step_by(64) {
                    // Bytes that do not repeat, as in real objects.
                    let text =
                        (0..VALUE_BYTES / 8).map(|at| format!("{:08x}", number * 31 + at as u64 * 7919));
                    let value: String = text.collect();
                    let put = Txn::put(format!("/registry/core/configmaps/default/many-{number}"), value, 0);
                    let outcome = store.txn(put).await;
                    assert!(outcome.is_ok(), "{outcome:?}");
                }
            })
        })
        .collect();
    for writer in writers {
        writer.await?;
    }
    store.close().await.map_err(std::io::Error::other)?;
    let each = (written() - before) as f64 / MANY as f64;
    print(format_args!(
        "{MANY} objects of {VALUE_BYTES} bytes: {each:.0} bytes written for each, checkpoints included"
    ))?;
    drop(store);
    let memory = resident_kib();
    let (store, recovery) = Embedded::open(path, Settings::default()).map_err(std::io::Error::other)?;
    let Recovery { keys, replayed, elapsed, .. } = recovery;
    let memory = resident_kib().saturating_sub(memory);
    print(format_args!(
        "opened again: {keys} keys, {replayed} transactions replayed, in {elapsed:.1?}; {memory} KiB more resident"
    ))?;
    store.close().await.map_err(std::io::Error::other)
}

/// What a Lease renewed for ever costs.
async fn idle(path: &Path) -> std::io::Result<()> {
    let (store, _) = Embedded::open(path, Settings::default()).map_err(std::io::Error::other)?;
    let beat = |number: u64| {
        let value = format!(
            r#"{{"apiVersion":"coordination.k8s.io/v1","kind":"Lease","metadata":{{"name":"node-a","namespace":"kube-node-lease","uid":"00000000-0000-0000-0000-000000000000"}},"spec":{{"holderIdentity":"node-a","leaseDurationSeconds":40,"renewTime":"2026-01-01T00:00:{number:02}.000000Z"}}}}"#
        );
        let op = Op::Put {
            key: "/registry/coordination.k8s.io/leases/kube-node-lease/node-a".into(),
            value: value.into(),
        };
        store.txn(Txn { ops: vec![op], ..Txn::default() }.held())
    };
    // The space laid out ahead is written once, with the first.
    beat(0).await.map_err(std::io::Error::other)?;
    tokio::time::sleep(BEAT).await;
    let before = written();
    let beats = IDLE.as_secs() / BEAT.as_secs();
    for number in 0..beats {
        beat(number).await.map_err(std::io::Error::other)?;
        tokio::time::sleep(BEAT).await;
    }
    let each = (written() - before) as f64 / IDLE.as_secs_f64();
    print(format_args!("idle with a Lease renewed every {BEAT:?}: {each:.0} bytes written a second"))?;
    store.close().await.map_err(std::io::Error::other)
}
