//! Promise: a durable write costs at most 1.5 times a bare fdatasync when there is one writer, and 64 writers get
//! at least 10,000 durable writes a second.
//!
//! Measured side by side, in turns, on the same disk: a write and fdatasync of a record of the same size, appended
//! to a file and into space laid out before, as the store's log has it; the embedded store with 1, 16 and 64
//! writers; and, where one is in PATH, an etcd with its own settings through the same interface. Medians over the
//! rounds. `cargo bench -p wasmk-store --bench store`

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
        ("1 writer, relaxed", own, 1, Durability::Relaxed),
    ];
    if let Some((_, etcd)) = &etcd {
        let names = [("etcd, 1 writer", 1), ("etcd, 16 writers", 16), ("etcd, 64 writers", 64)];
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
    embedded.close().await.map_err(std::io::Error::other)?;
    let reopened = Embedded::open(embedded.path(), Settings::default()).map_err(std::io::Error::other)?.1;
    let Recovery { keys, replayed, elapsed, .. } = reopened;
    writeln!(out, "opened again: {keys} keys, {replayed} transactions replayed in {elapsed:.1?}")
}
