//! Figures of the whole program, from outside: how soon it is ready, what it takes at rest, how soon a
//! function answers from zero, and how many requests a second the gateway carries.
//!
//! Promises: ready < 300 ms; <= 64 MiB resident and <= 0.5 % of a core at rest; first byte from zero
//! p50 < 1 ms, p99 < 2 ms; more requests a second than `wasmtime serve`. Run with `make bench`; the machine
//! should be otherwise idle. Beside the gateway stand, under the same load: a server of a few lines that answers
//! by itself (the most this machine and the load generator can do), and `wasmtime serve` with the same component, with
//! an instance for each request and with instances used again. `WASMK_BENCH_WASMTIME` names the program, which otherwise
//! is the `wasmtime` on the PATH (`cargo install wasmtime-cli --version 48.0.8 --locked` makes one).
#![allow(clippy::print_stdout, reason = "a bench prints its figures")]

mod common;

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use bytes::Bytes;
use common::{Connection, PATIENCE, Process, at, load, median, millis, start};
use hyper_util::rt::TokioIo;

/// Starts of the program; the median is printed.
const STARTS: usize = 7;
/// Functions that are each called once from zero.
const FUNCTIONS: usize = 200;
/// Connections that load comes by.
const CONNECTIONS: [usize; 4] = [1, 16, 64, 320];
/// Requests that one instance answers where instances are used again: as many as the guest declares.
const REUSE: &str = "10000";
/// How long the program is watched at rest.
const REST: Duration = Duration::from_secs(10);

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
    let (cpu, written) = (program.process.cpu(), program.process.written());
    std::thread::sleep(REST);
    let seconds = REST.as_secs_f64();
    println!(
        "resident at rest                            {:8.1} MiB  promise <= 64 MiB",
        program.process.resident()
    );
    println!(
        "CPU at rest                                 {:8.2} %    promise <= 0.5 %",
        (program.process.cpu() - cpu) / seconds * 100.0
    );
    println!(
        "written at rest                             {:8.2} kB/s promise <= 0.2 kB/s",
        (program.process.written() - written) / seconds / 1e3
    );

    for i in 0..FUNCTIONS {
        program.deploy(&guest, &format!("f{i}"), &[]);
    }
    program.deploy(&guest, "again", &["--reuse"]);
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
    side_by_side(&guest, &program);
}

/// The same load on the gateway, on `wasmtime serve` and on a server without a guest, in turns.
fn side_by_side(guest: &Path, program: &common::Program) {
    let ceiling = plain_server();
    let gateway =
        |what, function| Peer { what, function, address: program.gateway, process: Some(&program.process) };
    let peers = [&[][..], &["--max-instance-reuse-count", REUSE]].map(|flags| Wasmtime::serve(guest, flags));
    let [fresh, reused] = peers.each_ref().map(|peer| {
        let peer = peer.as_ref().ok()?;
        Some(Peer { what: "", function: "f0", address: peer.address, process: Some(&peer.process) })
    });
    if let Err(why) = &peers[0] {
        println!("wasmtime serve is left out: {why}");
    }
    for connections in CONNECTIONS {
        gateway("gateway, fresh instance per request", "f0").report(connections);
        for (what, peer) in
            [("wasmtime serve, fresh instances", &fresh), ("wasmtime serve, reused instances", &reused)]
        {
            if let Some(peer) = peer {
                Peer { what, ..*peer }.report(connections);
            }
            if what.contains("fresh") {
                gateway("gateway, reused instances", "again").report(connections);
            }
        }
        Peer { what: "hyper, without a guest", function: "f0", address: ceiling, process: None }
            .report(connections);
    }
}

/// What load is put on.
struct Peer<'a> {
    what: &'a str,
    function: &'a str,
    address: SocketAddr,
    /// Whose processor time counts.
    process: Option<&'a Process>,
}

impl Peer<'_> {
    fn report(&self, connections: usize) {
        let cpu = || self.process.map_or(0.0, Process::cpu);
        let before = cpu();
        let host = format!("{}.default.example.com", self.function);
        let (rate, mut times) = load(self.address, connections, &host);
        print!(
            "{:36} {connections:3} connections {rate:8.0} /s   p50 {:.3} ms   p99 {:.3} ms",
            self.what,
            millis(at(&mut times, 0.5)),
            millis(at(&mut times, 0.99)),
        );
        match self.process {
            Some(_) => println!("   {:.1} us of CPU a request", (cpu() - before) * 1e6 / times.len() as f64),
            None => println!(),
        }
    }
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
    process: Process,
    address: SocketAddr,
}

impl Wasmtime {
    /// Starts it; or says in words what is missing.
    fn serve(guest: &Path, flags: &[&str]) -> Result<Self, String> {
        let free = std::net::TcpListener::bind("127.0.0.1:0").and_then(|l| l.local_addr()).expect("a port");
        let named = std::env::var_os("WASMK_BENCH_WASMTIME");
        let missing = |error: std::io::Error| match &named {
            Some(path) => format!("{} (WASMK_BENCH_WASMTIME): {error}", Path::new(path).display()),
            None => "no `wasmtime` is on the PATH, and WASMK_BENCH_WASMTIME names none".into(),
        };
        let mut command = Command::new(named.as_deref().unwrap_or("wasmtime".as_ref()));
        command.args(["serve", "-Scli", "--env", "TARGET=wasm", "--addr", &free.to_string()]).args(flags);
        let child = command.arg(guest).stdout(Stdio::null()).stderr(Stdio::null()).spawn();
        let process = Process::of(child.map_err(missing)?);
        let begun = Instant::now();
        while std::net::TcpStream::connect(free).is_err() {
            assert!(begun.elapsed() < PATIENCE, "wasmtime serve was not ready in time");
            std::thread::sleep(Duration::from_millis(5));
        }
        Ok(Self { process, address: free })
    }
}
