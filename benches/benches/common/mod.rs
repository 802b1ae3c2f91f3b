//! What benches of the whole program share: starting it, asking it, and calling functions through its gateway.
#![allow(dead_code, unreachable_pub, reason = "each bench uses its own part")]

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

/// How long each sort of load lasts.
pub const LOAD: Duration = Duration::from_secs(3);
/// Longest wait for anything.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// A process of wasmk; killed when dropped.
pub struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn binary() -> PathBuf {
    let bench = std::env::current_exe().expect("the bench's own path");
    let path = bench.parent().and_then(Path::parent).expect("a target directory").join("wasmk");
    assert!(path.exists(), "{} is not there; `make bench` builds it", path.display());
    path
}

/// Starts `wasmk up` on free ports; its run file appears when it serves.
pub fn spawn(data: &Path, flags: &[&str]) -> Process {
    let free = ["--api-addr", "--gateway-addr", "--registry-addr", "--ingress-addr"];
    let child = Command::new(binary())
        .arg("up")
        .args(free.iter().flat_map(|flag| [*flag, "127.0.0.1:0"]))
        .arg("--data-dir")
        .arg(data)
        .args(flags)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn();
    Process(child.expect("wasmk starts"))
}

impl Process {
    /// Takes a child over.
    pub fn of(child: Child) -> Self {
        Self(child)
    }

    fn proc(&self, file: &str) -> String {
        std::fs::read_to_string(format!("/proc/{}/{file}", self.0.id())).expect("a live process")
    }

    /// MiB.
    pub fn resident(&self) -> f64 {
        field(&self.proc("status"), "VmRSS:") / 1024.0
    }

    /// Bytes handed to the file systems.
    pub fn written(&self) -> f64 {
        field(&self.proc("io"), "write_bytes:")
    }

    /// Seconds of processor time so far, in user mode and in the kernel.
    pub fn cpu(&self) -> f64 {
        let stat = self.proc("stat");
        let after = stat.rsplit_once(')').expect("a stat line").1;
        let ticks: Vec<f64> =
            after.split_whitespace().skip(11).take(2).filter_map(|t| t.parse().ok()).collect();
        // Linux counts in hundredths of a second on every platform that wasmk runs on.
        ticks.iter().sum::<f64>() / 100.0
    }
}

/// A running program, stopped when dropped.
pub struct Program {
    pub process: Process,
    dir: PathBuf,
    pub gateway: SocketAddr,
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.wasmk(&["down"]);
        let _ = self.process.0.wait();
    }
}

/// Starts the program and waits until it says that it is ready; also how long that took.
pub fn start(dir: &tempfile::TempDir, flags: &[&str]) -> (Program, Duration) {
    let data = dir.path().join("data");
    let begun = Instant::now();
    let process = spawn(&data, flags);
    let mut program = Program { process, dir: data, gateway: SocketAddr::from(([127, 0, 0, 1], 0)) };
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
    pub fn wasmk(&self, args: &[&str]) -> String {
        let out = Command::new(binary())
            .args(args)
            .arg("--data-dir")
            .arg(&self.dir)
            .env("KUBECONFIG", self.dir.join("kubeconfig"))
            .output()
            .expect("wasmk runs");
        String::from_utf8_lossy(&out.stdout).into_owned()
    }

    /// Runs a command against the cluster, which must succeed; what it printed.
    pub fn run(&self, args: &[&str]) -> String {
        let out = Command::new(binary()).args(args).env("KUBECONFIG", self.dir.join("kubeconfig")).output();
        let out = out.expect("wasmk runs");
        assert!(out.status.success(), "wasmk {args:?}: {}", String::from_utf8_lossy(&out.stderr));
        String::from_utf8_lossy(&out.stdout).into_owned()
    }

    pub fn deploy(&self, guest: &Path, name: &str, flags: &[&str]) {
        let guest = guest.to_str().expect("a UTF-8 path");
        self.run(&[&["fn", "deploy", "--name", name, guest], flags].concat());
    }
}

fn field(text: &str, name: &str) -> f64 {
    let line = text.lines().find_map(|l| l.strip_prefix(name)).expect("the field is there");
    line.split_whitespace().next().and_then(|n| n.parse().ok()).expect("a number")
}

/// One keep-alive connection to the gateway.
pub struct Connection {
    sender: hyper::client::conn::http1::SendRequest<Empty<Bytes>>,
}

impl Connection {
    pub async fn open(gateway: SocketAddr) -> Self {
        let stream = TcpStream::connect(gateway).await.expect("the gateway accepts");
        stream.set_nodelay(true).expect("a socket option");
        let (sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.expect("HTTP");
        tokio::spawn(connection);
        Self { sender }
    }

    /// Time from request to the first byte of the answer, which must be a success.
    pub async fn call(&mut self, host: &str) -> Duration {
        let (status, took) = self.ask(host).await;
        assert!((200..300).contains(&status), "{host} answered {status}");
        took
    }

    /// The answer's status, and the time from request to its first byte.
    pub async fn ask(&mut self, host: &str) -> (u16, Duration) {
        let request = hyper::Request::get("/").header("host", host).body(Empty::new()).expect("a request");
        let begun = Instant::now();
        let response = self.sender.send_request(request).await.expect("an answer");
        let took = begun.elapsed();
        let status = response.status().as_u16();
        response.into_body().collect().await.expect("a whole answer");
        (status, took)
    }

    /// Asks for a path and throws the answer away, which may break off; whether the connection can be used again.
    pub async fn get(&mut self, host: &str, path: &str) -> bool {
        let request = hyper::Request::get(path).header("host", host).body(Empty::new()).expect("a request");
        let Ok(response) = self.sender.send_request(request).await else { return false };
        let mut body = response.into_body();
        while let Some(frame) = body.frame().await {
            if frame.is_err() {
                return false;
            }
        }
        true
    }
}

/// Requests a second over so many connections, with the time of each request.
pub fn load(gateway: SocketAddr, connections: usize, host: &str) -> (f64, Vec<Duration>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async {
        let end = Instant::now() + LOAD;
        let workers = (0..connections).map(|_| {
            let host = host.to_owned();
            tokio::spawn(async move {
                let mut connection = Connection::open(gateway).await;
                let mut times = Vec::new();
                while Instant::now() < end {
                    times.push(connection.call(&host).await);
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

pub fn millis(span: Duration) -> f64 {
    span.as_secs_f64() * 1e3
}

pub fn median(mut spans: Vec<Duration>) -> Duration {
    at(&mut spans, 0.5)
}

pub fn at(spans: &mut [Duration], share: f64) -> Duration {
    spans.sort_unstable();
    spans[((spans.len() - 1) as f64 * share).round() as usize]
}
