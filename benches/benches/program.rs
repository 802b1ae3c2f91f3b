//! Figures of the whole program, from outside: how soon it is ready, what it takes at rest, how soon a
//! function answers from zero, and how many requests a second the gateway carries.
//!
//! Promises: ready < 300 ms; <= 64 MiB resident and <= 0.5 % of a core at rest; first byte from zero
//! p50 < 1 ms, p99 < 2 ms; more requests a second than `wasmtime serve`. Run with `make bench`; the machine
//! should be otherwise idle. Beside the gateway stand, under the same load: a server of a few lines that answers
//! by itself (the most this machine and the load generator can do), and `wasmtime serve` when a `wasmtime` is on
//! the PATH.
#![allow(clippy::print_stdout, reason = "a bench prints its figures")]

mod common;

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use bytes::Bytes;
use common::{Connection, PATIENCE, at, load, median, millis, start};
use hyper_util::rt::TokioIo;

/// Starts of the program; the median is printed.
const STARTS: usize = 7;
/// Functions that are each called once from zero.
const FUNCTIONS: usize = 200;
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
    let ceiling = plain_server();
    let peer = Wasmtime::serve(&guest);
    for connections in [1, 16, 64] {
        let before = program.process.cpu();
        let requests = report("gateway, fresh instance per request", program.gateway, connections);
        println!("{:36} {:.1} us of CPU a request", "", (program.process.cpu() - before) * 1e6 / requests);
        report_host("gateway, reused instances", program.gateway, connections, "again");
        match &peer {
            Some(peer) => {
                report("wasmtime serve, the same component", peer.address, connections);
            }
            None => println!("wasmtime serve: no `wasmtime` on the PATH"),
        }
        report("hyper, without a guest", ceiling, connections);
    }
}

/// Loads the first function; the number of requests.
fn report(what: &str, address: SocketAddr, connections: usize) -> f64 {
    report_host(what, address, connections, "f0")
}

fn report_host(what: &str, address: SocketAddr, connections: usize, function: &str) -> f64 {
    let (rate, mut times) = load(address, connections, &format!("{function}.default.example.com"));
    println!(
        "{what:36} {connections:3} connections {rate:8.0} /s   p50 {:.3} ms   p99 {:.3} ms",
        millis(at(&mut times, 0.5)),
        millis(at(&mut times, 0.99)),
    );
    times.len() as f64
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
