//! Promise: a cluster of 5,000 nodes and 100,000 pods gets through a bad day (nodes lost, controllers stopped and
//! started, two sets of them at once) with exactly the pods that are wanted, on one thread and within 16 GiB.
//!
//! The day is the one of the test `scale`, on paused time; what is printed is how long each part took on the
//! cluster's clock and on ours. `cargo bench -p wasmk-controllers --bench fleet [-- NODES PODS]`
#![allow(clippy::print_stdout, reason = "a bench prints its figures")]

#[path = "../../controllers/tests/support/mod.rs"]
mod support;

use support::story::{Size, play};

/// Pods of one Deployment.
const REPLICAS: usize = 200;

fn main() {
    let numbers: Vec<usize> = std::env::args().filter_map(|text| text.parse().ok()).collect();
    let (nodes, pods) = match *numbers {
        [nodes, pods, ..] => (nodes, pods),
        _ => (5_000, 100_000),
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build();
    let size = Size { nodes, zones: 10, deployments: pods.div_ceil(REPLICAS), replicas: REPLICAS };
    println!("{nodes} nodes in {} zones, {} Deployments of {REPLICAS}", size.zones, size.deployments);
    let report = runtime.expect("a runtime").block_on(play(size));
    println!("| part | cluster's time, s | real time, s |\n|---|---|---|");
    for (name, simulated, real) in &report.parts {
        println!("| {name} | {:.0} | {:.1} |", simulated.as_secs_f64(), real.as_secs_f64());
    }
    println!(
        "{} pods in the end, {} had to move; {} MiB resident at most",
        report.pods,
        report.moved,
        peak()
    );
}

/// The most memory that was resident, in MiB.
fn peak() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find(|l| l.starts_with("VmHWM")).and_then(|l| l.split_whitespace().nth(1));
    line.and_then(|kib| kib.parse::<u64>().ok()).unwrap_or(0) / 1024
}
