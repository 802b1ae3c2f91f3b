//! Promise: a durable write costs at most 1.5 times a bare fdatasync when there is one writer, and 64 writers get
//! at least 10,000 durable writes a second.
//!
//! Measured side by side, in turns, on the same disk: a write and fdatasync of a record of the same size, and the
//! embedded store with 1, 16 and 64 writers. Medians over the rounds. `cargo bench -p wasmk-store --bench store`

use std::fs::File;
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use wasmk_store::{Durability, Embedded, Op, Settings, Store, Txn};

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

/// Appends records to a file, each followed by an fdatasync.
fn bare(dir: &Path) -> std::io::Result<Sample> {
    let (path, record) = (dir.join("bare"), vec![b'x'; VALUE_BYTES + 80]);
    let file = File::create(&path)?;
    let (started, mut latencies, mut offset) = (Instant::now(), Vec::new(), 0);
    while started.elapsed() < ROUND {
        let began = Instant::now();
        file.write_all_at(&record, offset)?;
        file.sync_data()?;
        latencies.push(began.elapsed());
        offset += record.len() as u64;
    }
    let sample = sample(latencies, started.elapsed());
    std::fs::remove_file(path)?;
    Ok(sample)
}

async fn write(
    store: Embedded,
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

async fn store(store: &Embedded, writers: usize, durability: Durability) -> Sample {
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

#[tokio::main]
async fn main() -> std::io::Result<()> {
    let dir = directory()?;
    let opened =
        Embedded::open(dir.path().join("store"), Settings::default()).map_err(std::io::Error::other)?;
    let embedded = opened.0;
    let contenders = [
        ("1 writer", 1, Durability::Synced),
        ("16 writers", 16, Durability::Synced),
        ("64 writers", 64, Durability::Synced),
        ("1 writer, relaxed", 1, Durability::Relaxed),
    ];
    let mut bares = Vec::new();
    let mut samples = vec![Vec::new(); contenders.len()];
    for _ in 0..ROUNDS {
        bares.push(bare(dir.path())?);
        for (samples, (_, writers, durability)) in samples.iter_mut().zip(contenders) {
            samples.push(store(&embedded, writers, durability).await);
        }
    }
    let bare = median(&bares);
    let mut out = std::io::stdout().lock();
    writeln!(
        out,
        "{:<20} {:>10} {:>12} {:>12} {:>8}",
        "durable 1 KiB writes", "per s", "p50", "p99", "× bare"
    )?;
    let all = samples.iter().map(|samples| median(samples)).zip(contenders.map(|(name, ..)| name));
    for (sample, name) in std::iter::once((bare, "bare fdatasync")).chain(all) {
        let Sample { per_second, p50, p99 } = sample;
        let times = p50.as_secs_f64() / bare.p50.as_secs_f64();
        writeln!(out, "{name:<20} {per_second:>10.0} {p50:>12.1?} {p99:>12.1?} {times:>8.2}")?;
    }
    embedded.close().await.map_err(std::io::Error::other)
}
