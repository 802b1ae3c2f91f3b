//! Promise: a request to an HTTP guest costs at most twice what the bare engine takes to instantiate the guest
//! and have it answer, and a reused instance at most a third of a fresh one.
//!
//! Measured side by side, in turns, in one process: the engine alone (same configuration as the runtime's, its
//! linker and pre-linked component, nothing around it) and the runtime's `Handler::call`, with one thread and
//! with two; and fresh instances in one process with two threads against two processes with one each, for every
//! instance of a process shares one map of its memory and the lock on that. The guest is target/guests/hello.wasm or what WASMK_GUESTS holds. Medians over the rounds.
//! `cargo bench -p wasmk-runtime --bench engine`
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a bench prints its figures")]

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use http::Request;
use http_body_util::BodyExt;
use wasmk_runtime::{Handler, Program, Reuse, Runtime, Settings, Spec, empty};
use wasmtime::component::{Component, Linker, ResourceTable};
use wasmtime::{Config, Enabled, Engine, InstanceAllocationStrategy, PoolingAllocationConfig, Store};
use wasmtime_wasi::{WasiCtx, WasiCtxBuilder, WasiCtxView, WasiView};
use wasmtime_wasi_http::p2::bindings::ProxyPre;
use wasmtime_wasi_http::p2::bindings::http::types::Scheme;
use wasmtime_wasi_http::{
    Error, RequestOptions, WasiBody, WasiHttpCtx, WasiHttpCtxView, WasiHttpHooks, WasiHttpView,
};

const ROUNDS: usize = 7;
const ROUND: Duration = Duration::from_millis(500);
/// Set for a process that only calls fresh instances, with one thread, and says how many a second.
const ALONE: &str = "WASMK_BENCH_ALONE";

#[derive(Clone, Copy, Default)]
struct Sample {
    per_second: f64,
    p50: Duration,
    p99: Duration,
}

/// State of a bare instance: what the guest needs to answer and nothing more.
struct Bare {
    wasi: WasiCtx,
    http: WasiHttpCtx,
    table: ResourceTable,
    hooks: NoRequests,
}

struct NoRequests;

type Done = Box<dyn Future<Output = Result<(), Error>> + Send>;

impl WasiHttpHooks for NoRequests {
    fn send_request(
        &mut self,
        _request: Request<WasiBody>,
        _options: Option<RequestOptions>,
        _done: Done,
    ) -> Box<dyn Future<Output = Result<(http::Response<WasiBody>, Done), Error>> + Send> {
        Box::new(std::future::ready(Err(Error::HttpRequestDenied)))
    }
}

impl WasiView for Bare {
    fn ctx(&mut self) -> WasiCtxView<'_> {
        WasiCtxView { ctx: &mut self.wasi, table: &mut self.table }
    }
}

impl WasiHttpView for Bare {
    fn http(&mut self) -> WasiHttpCtxView<'_> {
        WasiHttpCtxView { hooks: &mut self.hooks, table: &mut self.table, ctx: &mut self.http }
    }
}

fn bare_engine(wasm: &[u8]) -> wasmtime::Result<ProxyPre<Bare>> {
    let mut pool = PoolingAllocationConfig::new();
    pool.linear_memory_keep_resident(1 << 20)
        .table_keep_resident(1 << 20)
        .decommit_batch_size(32)
        .pagemap_scan(Enabled::Auto);
    let mut config = Config::new();
    config.allocation_strategy(InstanceAllocationStrategy::Pooling(pool)).concurrency_support(false);
    let engine = Engine::new(&config)?;
    let mut linker = Linker::<Bare>::new(&engine);
    wasmtime_wasi::p2::add_to_linker_async(&mut linker)?;
    wasmtime_wasi_http::p2::add_only_http_to_linker_async(&mut linker)?;
    ProxyPre::new(linker.instantiate_pre(&Component::from_binary(&engine, wasm)?)?)
}

async fn bare_call(linked: &ProxyPre<Bare>) -> wasmtime::Result<usize> {
    let bare = Bare {
        wasi: WasiCtxBuilder::new().env("TARGET", "bench").build(),
        http: WasiHttpCtx::new(),
        table: ResourceTable::new(),
        hooks: NoRequests,
    };
    let mut store = Store::new(linked.engine(), bare);
    let (sender, receiver) = tokio::sync::oneshot::channel();
    let request = Request::get("http://bench/").body(http_body_util::Empty::new())?;
    let mut http = store.data_mut().http();
    let request = http.new_incoming_request(Scheme::Http, request)?;
    let out = http.new_response_outparam(sender)?;
    let proxy = linked.instantiate_async(&mut store).await?;
    proxy.wasi_http_incoming_handler().call_handle(&mut store, request, out).await?;
    let body = receiver.await??.into_body();
    drop(store);
    Ok(body.collect().await?.to_bytes().len())
}

async fn call(handler: &Handler) -> usize {
    let request = Request::get("http://bench/").body(empty()).expect("a request");
    let response = handler.call(request).await.expect("an answer");
    response.into_body().collect().await.expect("a body").to_bytes().len()
}

/// Calls again and again on each of `threads` threads.
fn measure<F: Future<Output = usize> + Send>(threads: usize, one: impl Fn() -> F + Clone + Send) -> Sample {
    let started = Instant::now();
    let mut latencies: Vec<Duration> = std::thread::scope(|scope| {
        let spawn = |_| {
            let one = one.clone();
            scope.spawn(move || repeat(one))
        };
        let threads: Vec<_> = (0..threads).map(spawn).collect();
        threads.into_iter().flat_map(|thread| thread.join().expect("a thread's latencies")).collect()
    });
    let elapsed = started.elapsed();
    latencies.sort_unstable();
    let at = |percent: usize| latencies[(latencies.len() - 1) * percent / 100];
    Sample { per_second: latencies.len() as f64 / elapsed.as_secs_f64(), p50: at(50), p99: at(99) }
}

fn repeat<F: Future<Output = usize>>(one: impl Fn() -> F) -> Vec<Duration> {
    let executor = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("an executor");
    executor.block_on(async {
        let (until, mut latencies) = (Instant::now() + ROUND, Vec::new());
        while Instant::now() < until {
            let began = Instant::now();
            assert!(one().await > 0);
            latencies.push(began.elapsed());
        }
        latencies
    })
}

fn median(samples: &[Sample]) -> Sample {
    let middle = |value: fn(&Sample) -> f64| {
        let mut values: Vec<f64> = samples.iter().map(value).collect();
        values.sort_by(f64::total_cmp);
        values[values.len() / 2]
    };
    Sample {
        per_second: middle(|sample| sample.per_second),
        p50: Duration::from_secs_f64(middle(|sample| sample.p50.as_secs_f64())),
        p99: Duration::from_secs_f64(middle(|sample| sample.p99.as_secs_f64())),
    }
}

fn program(runtime: &Runtime, wasm: Vec<u8>) -> Arc<Program> {
    let executor = tokio::runtime::Runtime::new().expect("an executor");
    let digest = wasmk_runtime::digest(&wasm);
    executor.block_on(runtime.prepare_bytes(wasm.into(), &digest)).expect("a program")
}

fn main() {
    let guests =
        std::env::var_os("WASMK_GUESTS").map_or_else(|| PathBuf::from("../target/guests"), PathBuf::from);
    let path = guests.join("hello.wasm");
    let Ok(wasm) = std::fs::read(&path) else {
        eprintln!("{} is missing: run tools/build-test-guests", path.display());
        std::process::exit(1);
    };
    let bare = Arc::new(bare_engine(&wasm).expect("an engine"));
    let dir = tempfile::tempdir().expect("a directory");
    let runtime = Runtime::new(Settings::new(dir.path())).expect("a runtime");
    let program = program(&runtime, wasm);
    let env = vec![("TARGET".to_owned(), "bench".to_owned())];
    let spec = Spec { env, ..Spec::default() };
    let fresh = program.handler(spec.clone()).expect("a handler");
    let reuse = Reuse::Requests { most: u32::MAX, idle: Duration::from_secs(60) };
    let reused = program.handler(Spec { reuse, ..spec }).expect("a handler");

    if std::env::var_os(ALONE).is_some() {
        let samples: Vec<Sample> = (0..ROUNDS).map(|_| measure(1, || call(&fresh))).collect();
        return println!("{}", median(&samples).per_second);
    }

    println!("{:<32} {:>10} {:>10} {:>10}", "", "calls/s", "p50 µs", "p99 µs");
    for threads in [1, 2] {
        let mut samples: [Vec<Sample>; 3] = Default::default();
        for _ in 0..ROUNDS {
            samples[0].push(measure(threads, || async { bare_call(&bare).await.expect("an answer") }));
            samples[1].push(measure(threads, || call(&fresh)));
            samples[2].push(measure(threads, || call(&reused)));
        }
        let names = ["bare engine, fresh instance", "handler, fresh instance", "handler, reused instance"];
        let medians = samples.map(|samples| median(&samples));
        for (name, sample) in names.iter().zip(medians) {
            let micros = |time: Duration| time.as_secs_f64() * 1e6;
            let (rate, p50, p99) = (sample.per_second, micros(sample.p50), micros(sample.p99));
            println!("{:<32} {rate:>10.0} {p50:>10.1} {p99:>10.1}", format!("{name}, {threads} thread(s)"));
        }
        let ratio = |of: usize, to: usize| medians[of].p50.as_secs_f64() / medians[to].p50.as_secs_f64();
        println!(
            "  handler / bare {:.2} (promise 2.00), reused / fresh {:.2} (promise 0.33)",
            ratio(1, 0),
            ratio(2, 1)
        );
    }
    let two_threads: Vec<Sample> = (0..ROUNDS).map(|_| measure(2, || call(&fresh))).collect();
    let (threads, one, two) = (median(&two_threads).per_second, processes(1), processes(2));
    println!(
        "fresh instances, calls/s: one process {one:.0}, with two threads {threads:.0}, two processes {two:.0}"
    );
    println!("  a second thread {:.2}, a second process {:.2}", threads / one, two / one);
}

/// Calls a second of so many processes at the same time.
fn processes(count: usize) -> f64 {
    let start = || {
        let mut command = std::process::Command::new(std::env::current_exe().expect("this program"));
        command.env(ALONE, "1").stdout(std::process::Stdio::piped()).spawn().expect("a process")
    };
    let started: Vec<_> = (0..count).map(|_| start()).collect();
    let ended = started.into_iter().map(|child| child.wait_with_output().expect("its end").stdout);
    ended.map(|said| String::from_utf8_lossy(&said).trim().parse::<f64>().expect("a number")).sum()
}
