//! Figures of the whole program, from outside: how soon it is ready, what it takes at rest, how soon a
//! function answers from zero, and how many requests a second the gateway carries.
//!
//! Promises: ready < 300 ms; <= 64 MiB resident and <= 0.5 % of a core at rest; first byte from zero
//! p50 < 1 ms, p99 < 2 ms; more requests a second than `wasmtime serve`. Run with `make bench`; the machine
//! should be otherwise idle. Beside the gateway stand, under the same load: a server of a few lines that answers
//! by itself (the most this machine and the load generator can do), and `wasmtime serve` when a `wasmtime` is on
//! the PATH.
#![allow(clippy::print_stdout, reason = "a bench prints its figures")]

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use bytes::Bytes;
use http_body_util::{BodyExt, Empty};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::net::TcpStream;

/// Starts of the program; the median is printed.
const STARTS: usize = 7;
/// Functions that are each called once from zero.
const FUNCTIONS: usize = 200;
/// How long the program is watched at rest, and loaded at each number of connections.
const REST: Duration = Duration::from_secs(10);
const LOAD: Duration = Duration::from_secs(3);
/// Longest wait for anything.
const PATIENCE: Duration = Duration::from_secs(60);

fn main() {
    let guests = std::env::var_os("WASMK_GUESTS").map(PathBuf::from).unwrap_or_default();
    let guest = guests.join("hello.wasm");
    assert!(guest.exists(), "{} is not there; `make bench` builds it", guest.display());

    let first =
        median((0..STARTS).map(|_| start(&tempfile::tempdir().expect("a directory"), &[]).1).collect());
    let dir = tempfile::tempdir().expect("a directory");
    drop(start(&dir, &[]));
    let again = median((0..STARTS).map(|_| start(&dir, &[]).1).collect());
    println!("exec to ready API + node, empty directory   {:8.1} ms   promise < 300 ms", millis(first));
    println!("exec to ready API + node, started before    {:8.1} ms   promise < 300 ms", millis(again));

    let (program, _) = start(&dir, &[]);
    std::thread::sleep(Duration::from_secs(2));
    let (cpu, written) = (program.cpu(), program.written());
    std::thread::sleep(REST);
    let seconds = REST.as_secs_f64();
    println!("resident at rest                            {:8.1} MiB  promise <= 64 MiB", program.resident());
    println!(
        "CPU at rest                                 {:8.2} %    promise <= 0.5 %",
        (program.cpu() - cpu) / seconds * 100.0
    );
    println!(
        "written at rest                             {:8.2} kB/s promise <= 0.2 kB/s",
        (program.written() - written) / seconds / 1e3
    );

    for i in 0..FUNCTIONS {
        program.deploy(&guest, &format!("f{i}"));
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async {
        let mut cold = Vec::new();
        let mut warm = Vec::new();
        for i in 0..FUNCTIONS {
            let host = format!("f{i}.default.example.com");
            let mut connection = Connection::open(program.gateway).await;
            cold.push(connection.call(&host).await);
            warm.push(connection.call(&host).await);
        }
        println!(
            "first byte from zero, p50                   {:8.3} ms   promise < 1 ms",
            millis(at(&mut cold, 0.5))
        );
        println!(
            "first byte from zero, p99                   {:8.3} ms   promise < 2 ms",
            millis(at(&mut cold, 0.99))
        );
        println!("first byte of the second request, p50       {:8.3} ms", millis(at(&mut warm, 0.5)));
    });
    let ceiling = plain_server();
    let peer = Wasmtime::serve(&guest);
    for connections in [1, 16, 64] {
        report("gateway, fresh instance per request", program.gateway, connections);
        match &peer {
            Some(peer) => report("wasmtime serve, the same component", peer.address, connections),
            None => println!("wasmtime serve: no `wasmtime` on the PATH"),
        }
        report("hyper, without a guest", ceiling, connections);
    }
}

fn report(what: &str, address: SocketAddr, connections: usize) {
    let (rate, mut times) = load(address, connections);
    println!(
        "{what:36} {connections:3} connections {rate:8.0} /s   p50 {:.3} ms   p99 {:.3} ms",
        millis(at(&mut times, 0.5)),
        millis(at(&mut times, 0.99)),
    );
}

/// A server on two threads that answers by itself.
fn plain_server() -> SocketAddr {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    listener.set_nonblocking(true).expect("a socket option");
    let address = listener.local_addr().expect("an address");
    std::thread::spawn(move || {
        let mut builder = tokio::runtime::Builder::new_multi_thread();
        let runtime = builder.worker_threads(2).enable_all().build().expect("a runtime");
        runtime.block_on(async {
            let listener = tokio::net::TcpListener::from_std(listener).expect("a listener");
            while let Ok((stream, _)) = listener.accept().await {
                stream.set_nodelay(true).expect("a socket option");
                let service = hyper::service::service_fn(|_| async {
                    let body = http_body_util::Full::new(Bytes::from_static(b"hello wasm\n"));
                    Ok::<_, std::convert::Infallible>(hyper::Response::new(body))
                });
                let io = TokioIo::new(stream);
                tokio::spawn(hyper::server::conn::http1::Builder::new().serve_connection(io, service));
            }
        });
    });
    address
}

/// `wasmtime serve`, ended when dropped.
struct Wasmtime {
    child: Child,
    address: SocketAddr,
}

impl Drop for Wasmtime {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Wasmtime {
    fn serve(guest: &Path) -> Option<Self> {
        let free = std::net::TcpListener::bind("127.0.0.1:0").and_then(|l| l.local_addr()).expect("a port");
        let child = Command::new("wasmtime")
            .args(["serve", "-Scli", "--env", "TARGET=wasm", "--addr", &free.to_string()])
            .arg(guest)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .ok()?;
        let begun = Instant::now();
        while std::net::TcpStream::connect(free).is_err() {
            assert!(begun.elapsed() < PATIENCE, "wasmtime serve was not ready in time");
            std::thread::sleep(Duration::from_millis(5));
        }
        Some(Self { child, address: free })
    }
}

/// A running program, stopped when dropped.
struct Program {
    child: Child,
    dir: PathBuf,
    gateway: SocketAddr,
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.wasmk(&["down"]);
        let _ = self.child.wait();
    }
}

fn binary() -> PathBuf {
    let bench = std::env::current_exe().expect("the bench's own path");
    let path = bench.parent().and_then(Path::parent).expect("a target directory").join("wasmk");
    assert!(path.exists(), "{} is not there; `make bench` builds it", path.display());
    path
}

/// Starts the program and waits until it says that it is ready; also how long that took.
fn start(dir: &tempfile::TempDir, flags: &[&str]) -> (Program, Duration) {
    let data = dir.path().join("data");
    let begun = Instant::now();
    let child = Command::new(binary())
        .args([
            "up",
            "--api-addr",
            "127.0.0.1:0",
            "--gateway-addr",
            "127.0.0.1:0",
            "--registry-addr",
            "127.0.0.1:0",
        ])
        .arg("--data-dir")
        .arg(&data)
        .args(flags)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("wasmk starts");
    let mut program = Program { child, dir: data, gateway: SocketAddr::from(([127, 0, 0, 1], 0)) };
    loop {
        // The run file appears when the API serves and the node takes pods; asking costs a process.
        if program.dir.join("run.json").exists() {
            let status: Value =
                serde_json::from_str(&program.wasmk(&["status", "-o", "json"])).unwrap_or_default();
            if status["ready"] == true {
                let url = status["gateway"].as_str().expect("a gateway");
                program.gateway = url.trim_start_matches("http://").parse().expect("an address");
                return (program, begun.elapsed());
            }
        }
        assert!(begun.elapsed() < PATIENCE, "wasmk up was not ready in time");
        std::thread::sleep(Duration::from_millis(1));
    }
}

impl Program {
    fn wasmk(&self, args: &[&str]) -> String {
        let out = Command::new(binary())
            .args(args)
            .arg("--data-dir")
            .arg(&self.dir)
            .env("KUBECONFIG", self.dir.join("kubeconfig"))
            .output()
            .expect("wasmk runs");
        String::from_utf8_lossy(&out.stdout).into_owned()
    }

    fn deploy(&self, guest: &Path, name: &str) {
        let out = Command::new(binary())
            .args(["fn", "deploy", "--name", name])
            .arg(guest)
            .env("KUBECONFIG", self.dir.join("kubeconfig"))
            .output()
            .expect("wasmk runs");
        assert!(out.status.success(), "deploying {name} failed: {}", String::from_utf8_lossy(&out.stderr));
    }

    fn proc(&self, file: &str) -> String {
        std::fs::read_to_string(format!("/proc/{}/{file}", self.child.id())).expect("a live process")
    }

    /// MiB.
    fn resident(&self) -> f64 {
        field(&self.proc("status"), "VmRSS:") / 1024.0
    }

    /// Bytes handed to the file systems.
    fn written(&self) -> f64 {
        field(&self.proc("io"), "write_bytes:")
    }

    /// Seconds of processor time so far, in user mode and in the kernel.
    fn cpu(&self) -> f64 {
        let stat = self.proc("stat");
        let after = stat.rsplit_once(')').expect("a stat line").1;
        let ticks: Vec<f64> =
            after.split_whitespace().skip(11).take(2).filter_map(|t| t.parse().ok()).collect();
        // Linux counts in hundredths of a second on every platform that wasmk runs on.
        ticks.iter().sum::<f64>() / 100.0
    }
}

fn field(text: &str, name: &str) -> f64 {
    let line = text.lines().find_map(|l| l.strip_prefix(name)).expect("the field is there");
    line.split_whitespace().next().and_then(|n| n.parse().ok()).expect("a number")
}

/// One keep-alive connection to the gateway.
struct Connection {
    sender: hyper::client::conn::http1::SendRequest<Empty<Bytes>>,
}

impl Connection {
    async fn open(gateway: SocketAddr) -> Self {
        let stream = TcpStream::connect(gateway).await.expect("the gateway accepts");
        stream.set_nodelay(true).expect("a socket option");
        let (sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.expect("HTTP");
        tokio::spawn(connection);
        Self { sender }
    }

    /// Time from request to the first byte of the answer, which must be a success.
    async fn call(&mut self, host: &str) -> Duration {
        let request = hyper::Request::get("/").header("host", host).body(Empty::new()).expect("a request");
        let begun = Instant::now();
        let response = self.sender.send_request(request).await.expect("an answer");
        let took = begun.elapsed();
        assert!(response.status().is_success(), "{host} answered {}", response.status());
        response.into_body().collect().await.expect("a whole answer");
        took
    }
}

/// Requests a second over so many connections, with the time of each request.
fn load(gateway: SocketAddr, connections: usize) -> (f64, Vec<Duration>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async {
        let end = Instant::now() + LOAD;
        let workers = (0..connections).map(|_| {
            tokio::spawn(async move {
                let mut connection = Connection::open(gateway).await;
                let mut times = Vec::new();
                while Instant::now() < end {
                    times.push(connection.call("f0.default.example.com").await);
                }
                times
            })
        });
        let mut times = Vec::new();
        for worker in workers.collect::<Vec<_>>() {
            times.extend(worker.await.expect("a worker ends"));
        }
        (times.len() as f64 / LOAD.as_secs_f64(), times)
    })
}

fn millis(span: Duration) -> f64 {
    span.as_secs_f64() * 1e3
}

fn median(mut spans: Vec<Duration>) -> Duration {
    at(&mut spans, 0.5)
}

fn at(spans: &mut [Duration], share: f64) -> Duration {
    spans.sort_unstable();
    spans[((spans.len() - 1) as f64 * share).round() as usize]
}
