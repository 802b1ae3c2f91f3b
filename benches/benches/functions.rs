//! Figures of many functions: each of a thousand called once, a burst on one that is cold, ten thousand
//! registered, and more requests than the machine can answer.
//!
//! Promises: first byte from zero p50 < 1 ms and p99 < 2 ms, also beside ten thousand functions; those take < 1 GiB
//! in all; nothing of a burst is lost; under overload as many requests are answered as without, and namespaces get
//! equal shares. `WASMK_BENCH_FUNCTIONS` registers another number. Run with `make bench` on an idle machine.
//!
//! With `WASMK_BENCH_CRI=unix:///...` (`tools/test-containerd up DIR` prints the path of one) functions in containers are
//! called from zero as well; Knative's own figure for that is 2 to 18 s.
#![allow(clippy::print_stdout, reason = "a bench prints its figures")]

mod common;

use std::{
    fmt::Write,
    net::SocketAddr,
    path::PathBuf,
    time::{Duration, Instant},
};

use common::{Connection, LOAD, Program, at, load, millis, start};

/// Functions that are each called once.
const CALLED: usize = 1_000;
/// Functions registered.
const REGISTERED: usize = 10_000;
/// Requests at once for one function that is cold.
const BURST: usize = 500;
/// Connections of two namespaces under overload, together far more than the machine has use for.
const BUSY: usize = 700;
const CALM: usize = 70;
/// Longest wait until a function answers.
const PATIENCE: Duration = Duration::from_secs(60);
/// Longest time for registering; what is there then is what the rest is measured with.
const REGISTERING: Duration = Duration::from_secs(50);
/// Functions that are written together, and the clients that do it.
const BATCH: usize = 400;
const WRITERS: usize = 4;
/// Changes of a route that are timed.
const CHANGES: usize = 20;
/// Functions in containers that are each called from zero, and the image that they run.
const CONTAINERS: usize = 24;
const BOX: &str = "localhost/box:1";

fn main() {
    let guests = std::env::var_os("WASMK_GUESTS").map(PathBuf::from).unwrap_or_default();
    let guest = guests.join("hello.wasm");
    assert!(guest.exists(), "{} is not there; `make bench` builds it", guest.display());
    let number =
        std::env::var("WASMK_BENCH_FUNCTIONS").ok().and_then(|n| n.parse().ok()).unwrap_or(REGISTERED);
    let dir = tempfile::tempdir().expect("a directory");
    let (program, _) = start(&dir, &[]);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");

    program.deploy(&guest, "first", &[]);
    let image =
        program.run(&["get", "ksvc", "first", "-o", "jsonpath={.spec.template.spec.containers[0].image}"]);
    program.run(&["create", "namespace", "calm"]);
    let (called, _) = register(&program, &dir, &image, 0..CALLED.min(number));
    runtime.block_on(cold(program.gateway, called, "called once each"));
    runtime.block_on(burst(&program, &dir, &image));

    let (before, spent) = (program.process.resident(), program.process.cpu());
    let (end, took) = register(&program, &dir, &image, called..number);
    let more = (end - called).max(1) as f64;
    println!(
        "{end} of {number} functions registered: {:.0} MiB resident (promise < 1024), {:.1} KiB each; the last {more}: {:.0} /s \
         until they answer, {:.2} ms of CPU each",
        program.process.resident(),
        (program.process.resident() - before) * 1024.0 / more,
        more / took.as_secs_f64(),
        (program.process.cpu() - spent) * 1e3 / more
    );
    runtime.block_on(cold(program.gateway, called, "with all registered"));
    runtime.block_on(changes(&program));
    overload(&program, &guest);
    drop(program);
    if let Ok(endpoint) = std::env::var("WASMK_BENCH_CRI") {
        runtime.block_on(containers(&endpoint));
    }
}

/// Functions in containers: each has had its first pod and lost it again when it is called.
async fn containers(endpoint: &str) {
    let dir = tempfile::tempdir().expect("a directory");
    let (program, _) = start(&dir, &["--container-runtime-endpoint", endpoint]);
    let mut text = String::new();
    for i in 0..CONTAINERS {
        // Writing to a string cannot fail.
        let _ = write!(
            text,
            "---\napiVersion: serving.knative.dev/v1\nkind: Service\nmetadata: {{name: c{i}}}\n\
             spec: {{template: {{metadata: {{annotations: {{autoscaling.knative.dev/window: 6s}}}}, spec: {{containers: [{{image: {BOX:?}, \
             command: [sh, -c, \"mkdir -p /tmp/www && echo hello > /tmp/www/index.html && exec httpd -f -p 8080 -h /tmp/www\"]}}]}}}}}}\n"
        );
    }
    let file = dir.path().join("containers.yaml");
    std::fs::write(&file, text).expect("a file");
    program.run(&["apply", "-f", file.to_str().expect("a UTF-8 path")]);
    program.run(&["wait", "ksvc", "--all", "--for=condition=Ready", "--timeout=180s"]);
    let begun = Instant::now();
    while !program.run(&["get", "pods", "-o", "name"]).trim().is_empty() {
        assert!(begun.elapsed() < 3 * PATIENCE, "the pods do not go");
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    let mut times = Vec::new();
    for i in 0..CONTAINERS {
        times.push(Connection::open(program.gateway).await.call(&format!("c{i}.default.example.com")).await);
    }
    println!(
        "first byte of {CONTAINERS} functions in containers, from zero pods: p50 {:.0} ms   p99 {:.0} ms (Knative: 2000 to 18000)",
        millis(at(&mut times, 0.5)),
        millis(at(&mut times, 0.99))
    );
}

/// Makes functions `fN` of an image, as many of the range as can be in time, and waits until they answer.
/// The end of what there is then, and how long it took.
fn register(
    program: &Program,
    dir: &tempfile::TempDir,
    image: &str,
    range: std::ops::Range<usize>,
) -> (usize, Duration) {
    let (begun, mut end) = (Instant::now(), range.start);
    while end < range.end && begun.elapsed() < REGISTERING {
        let next = (end + BATCH).min(range.end);
        std::thread::scope(|scope| {
            for writer in 0..WRITERS {
                let numbers = (end..next).skip(writer).step_by(WRITERS);
                scope.spawn(move || write(program, dir, image, writer, numbers));
            }
        });
        end = next;
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    for i in end.saturating_sub(BATCH).max(range.start)..end {
        runtime.block_on(answers(program.gateway, &host(i), PATIENCE));
    }
    (end, begun.elapsed())
}

fn write(
    program: &Program,
    dir: &tempfile::TempDir,
    image: &str,
    writer: usize,
    numbers: impl Iterator<Item = usize>,
) {
    let mut text = String::new();
    for i in numbers {
        manifest(&mut text, &format!("f{i}"), image);
    }
    if text.is_empty() {
        return;
    }
    let file = dir.path().join(format!("functions{writer}.yaml"));
    std::fs::write(&file, text).expect("a file");
    program.run(&["apply", "-f", file.to_str().expect("a UTF-8 path")]);
}

fn manifest(text: &mut String, name: &str, image: &str) {
    // Writing to a string cannot fail.
    let _ = write!(
        text,
        "---\napiVersion: serving.knative.dev/v1\nkind: Service\nmetadata: {{name: {name}}}\n\
         spec: {{template: {{spec: {{containers: [{{image: {image:?}}}]}}}}}}\n"
    );
}

fn host(i: usize) -> String {
    format!("f{i}.default.example.com")
}

/// Waits until a host is answered with success.
async fn answers(gateway: SocketAddr, host: &str, patience: Duration) {
    let begun = Instant::now();
    let mut connection = Connection::open(gateway).await;
    while connection.ask(host).await.0 != 200 {
        assert!(begun.elapsed() < patience, "{host} does not answer");
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

async fn cold(gateway: SocketAddr, functions: usize, what: &str) {
    // What came before is settled when the last function is ready; the others may need a moment more.
    for i in (0..functions).step_by((functions / 50).max(1)) {
        answers(gateway, &host(i), PATIENCE).await;
    }
    let mut times = Vec::new();
    for i in 0..functions {
        times.push(Connection::open(gateway).await.call(&host(i)).await);
    }
    println!(
        "first byte of {functions} functions, {what}: p50 {:.3} ms (promise < 1)   p99 {:.3} ms (promise < 2)   max {:.3} ms",
        millis(at(&mut times, 0.5)),
        millis(at(&mut times, 0.99)),
        millis(at(&mut times, 1.0))
    );
}

async fn burst(program: &Program, dir: &tempfile::TempDir, image: &str) {
    let mut text = String::new();
    manifest(&mut text, "burst", image);
    let file = dir.path().join("burst.yaml");
    std::fs::write(&file, text).expect("a file");
    program.run(&["apply", "-f", file.to_str().expect("a UTF-8 path")]);
    program.run(&["wait", "ksvc/burst", "--for=condition=Ready", "--timeout=60s"]);
    let mut connections = Vec::new();
    for _ in 0..BURST {
        connections.push(Connection::open(program.gateway).await);
    }
    let begun = Instant::now();
    let calls = connections
        .into_iter()
        .map(|mut connection| tokio::spawn(async move { connection.ask("burst.default.example.com").await }));
    let mut times = Vec::new();
    let mut lost = 0;
    for call in calls.collect::<Vec<_>>() {
        let (status, took) = call.await.expect("an answer");
        lost += usize::from(status != 200);
        times.push(took);
    }
    println!(
        "burst of {BURST} on a cold function: all answered in {:.1} ms, p50 {:.1} ms, p99 {:.1} ms, {lost} refused",
        millis(begun.elapsed()),
        millis(at(&mut times, 0.5)),
        millis(at(&mut times, 0.99))
    );
}

/// How soon a new route is known at the gateway, beside all the others.
async fn changes(program: &Program) {
    let mut times = Vec::new();
    for i in 0..CHANGES {
        let name = format!("mapped{i}.example.org");
        let mapping = format!(
            "{{\"apiVersion\":\"serving.knative.dev/v1beta1\",\"kind\":\"DomainMapping\",\"metadata\":{{\"name\":\"{name}\"}},\
             \"spec\":{{\"ref\":{{\"apiVersion\":\"serving.knative.dev/v1\",\"kind\":\"Service\",\"name\":\"first\"}}}}}}"
        );
        let file = std::env::temp_dir().join(format!("wasmk-bench-{}.json", std::process::id()));
        std::fs::write(&file, mapping).expect("a file");
        program.run(&["create", "-f", file.to_str().expect("a UTF-8 path")]);
        let begun = Instant::now();
        answers(program.gateway, &name, PATIENCE).await;
        times.push(begun.elapsed());
        let _ = std::fs::remove_file(&file);
    }
    println!(
        "a new host answers after its object is written: p50 {:.1} ms, max {:.1} ms",
        millis(at(&mut times, 0.5)),
        millis(at(&mut times, 1.0))
    );
}

/// Many more connections than are of use, of a busy namespace and of one that wants little.
fn overload(program: &Program, guest: &std::path::Path) {
    program.deploy(guest, "quiet", &["-n", "calm"]);
    let (alone, _) = load(program.gateway, 64, "first.default.example.com");
    let gateway = program.gateway;
    let busy = std::thread::spawn(move || load(gateway, BUSY, "first.default.example.com"));
    let (calm_rate, mut calm) = load(gateway, CALM, "quiet.calm.example.com");
    let (busy_rate, mut busy) = busy.join().expect("a load's figures");
    println!(
        "overload, {} connections for {:?}: {:.0} /s beside {alone:.0} /s at 64 connections; busy p99 {:.0} ms, calm p99 {:.0} ms, \
         a calm connection gets {:.2} of what a busy one gets",
        BUSY + CALM,
        LOAD,
        busy_rate + calm_rate,
        millis(at(&mut busy, 0.99)),
        millis(at(&mut calm, 0.99)),
        (calm_rate / CALM as f64) / (busy_rate / BUSY as f64)
    );
}
