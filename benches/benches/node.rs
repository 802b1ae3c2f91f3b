//! Figures of a node, from outside: how many Wasm pods a second it starts, how soon one runs after it has
//! arrived, and how much memory one takes while nobody asks it anything.
//!
//! Promises: >= 2,000 pods a second, <= 5 ms from arrival to Running, a few hundred KiB at most. The pods are
//! those of one Deployment, so that controllers, scheduler and API are in the first figure. Then as many as a node
//! takes, 10,000: that they run at all, and what they cost then. Run with `make bench`, or
//! `cargo bench -p wasmk-benches --bench node [PODS [MANY]]`; the machine should be otherwise idle.
//! Before that, a function's neighbours (see [`neighbours`]).
#![allow(clippy::print_stdout, reason = "a bench prints its figures")]

mod common;
mod neighbours;

use std::time::{Duration, Instant};

use wasmk_tests::program::Program;

/// Pods started when nothing is said.
const PODS: usize = 500;
/// Pods on the node in the end when nothing is said.
const MANY: usize = 10_000;
/// Longest wait for all of them.
const PATIENCE: Duration = Duration::from_secs(300);
/// The histogram of starts.
const STARTS: &str = "kubelet_pod_start_duration_seconds_bucket{le=\"";

fn main() {
    let mut numbers = std::env::args().skip(1).filter_map(|a| a.parse().ok());
    let (pods, many) = (numbers.next().unwrap_or(PODS), numbers.next().unwrap_or(MANY));
    // Room on the node for more pods than the tests' share of addresses has.
    let program = Program::start_with(&["--pod-cidr", "127.60.0.0/16", "--node-cidr-mask-size", "18"]);
    neighbours::figures(&program);
    let image = program.push("hello");
    deploy(&program, &image, 1);
    let before = resident(&program);
    let began = Instant::now();
    deploy(&program, &image, pods + 1);
    let took = began.elapsed().as_secs_f64();
    let each = (resident(&program) - before) / to_f64(pods);
    println!(
        "Wasm pods started                           {:8.0} /s   promise >= 2,000 /s",
        to_f64(pods) / took
    );
    let metrics = program.kubectl(&["get", "--raw", "/api/v1/nodes/node-a/proxy/metrics"]);
    for (name, part) in [("p50", 0.5), ("p99", 0.99)] {
        let millis = quantile(&metrics, part) * 1000.0;
        println!(
            "arrival at the node to Running, {name}         {millis:8.1} ms   promise <= 5 ms (end of the bucket)"
        );
    }
    println!(
        "memory of an idle Wasm pod                  {each:8.1} KiB  controllers' and API's part included"
    );
    crowd(&program, &image, pods + 1, many, before);
}

/// Fills the node, and sees that it still answers.
fn crowd(program: &Program, image: &str, here: usize, many: usize, before: f64) {
    let began = Instant::now();
    deploy(program, image, many);
    let took = began.elapsed();
    let each = (resident(program) - before) / to_f64(many);
    println!(
        "Wasm pods started, {many:6} on one node         {:8.0} /s   promise: all of them run",
        to_f64(many.saturating_sub(here)) / took.as_secs_f64()
    );
    println!("memory of an idle Wasm pod among as many    {each:8.1} KiB");
    for (what, path) in [("its metrics", "metrics/resource"), ("its summary", "stats/summary")] {
        let began = Instant::now();
        program.kubectl(&["get", "--raw", &format!("/api/v1/nodes/node-a/proxy/{path}")]);
        println!(
            "{what} of as many                      {:8.0} ms   kubectl's start included",
            began.elapsed().as_secs_f64() * 1000.0
        );
    }
}

fn deploy(program: &Program, image: &str, replicas: usize) {
    program.apply(&format!(
        "apiVersion: apps/v1\nkind: Deployment\nmetadata: {{name: many}}\nspec: {{replicas: {replicas}, selector: {{matchLabels: {{app: many}}}}, \
         template: {{metadata: {{labels: {{app: many}}}}, spec: {{containers: [{{name: c, image: '{image}', ports: [{{containerPort: 8000}}]}}]}}}}}}\n"
    ));
    // One watch: asking again and again would take a processor.
    let patience = format!("--timeout={}s", PATIENCE.as_secs());
    program.kubectl(&["rollout", "status", "deployment/many", &patience]);
}

/// KiB of memory that the program holds.
fn resident(program: &Program) -> f64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", program.id())).unwrap_or_default();
    let row = status.lines().find_map(|l| l.strip_prefix("VmRSS:"));
    row.and_then(|r| r.trim().strip_suffix(" kB")?.parse().ok()).unwrap_or(0.0)
}

/// The end, in seconds, of the bucket in which that part of all starts is reached.
fn quantile(metrics: &str, part: f64) -> f64 {
    let rows = metrics.lines().filter_map(|l| l.strip_prefix(STARTS)?.split_once("\"} "));
    let rows: Vec<(f64, f64)> = rows
        .filter_map(|(end, n)| {
            Some((end.parse().ok().or((end == "+Inf").then_some(f64::INFINITY))?, n.parse().ok()?))
        })
        .collect();
    let all = rows.last().map_or(0.0, |(_, n)| *n);
    rows.iter().find(|(_, n)| *n >= all * part).map_or(f64::INFINITY, |(end, _)| *end)
}

#[allow(clippy::cast_precision_loss, reason = "counts of pods are small")]
fn to_f64(count: usize) -> f64 {
    count as f64
}
