//! Figures of a function's one connection while guests beside it do their worst, and when they have gone.
//!
//! Promise: the slowest of a hundred requests takes at most a tenth longer than alone. Alone is measured before and
//! after, and each neighbour has as long a time, so that what a machine does by itself is seen as such. Each request
//! counts once: load generators that add what they would have asked meanwhile (wrk does) turn one pause of 40 ms among
//! ten thousand requests into a p99 of milliseconds. The longest is printed instead.

use std::{
    net::SocketAddr,
    sync::atomic::{AtomicBool, Ordering},
    time::{Duration, Instant},
};

use tokio::time::timeout;
use wasmk_tests::program::{Program, guest};

use crate::common::{Connection, at};

/// How long each figure is taken: some ten thousand requests, a hundred of which are the slowest of a hundred.
const SPAN: Duration = Duration::from_secs(4);
/// The service that is measured.
const VICTIM: &str = "victim";
/// Limits of those beside it.
const LIMITS: &str = "resources: {limits: {cpu: 100m, memory: 64Mi}}";

/// A neighbour: a pod's arguments, or a path of a function that does wrong.
enum Neighbour {
    Pod(&'static str),
    Path(&'static str),
}

const NEIGHBOURS: [(&str, Neighbour); 6] = [
    ("a loop, 100m", Neighbour::Pod("[loop]")),
    ("a flood of its log", Neighbour::Pod("[flood]")),
    ("memory until refused", Neighbour::Path("/memory")),
    ("panics", Neighbour::Path("/panic")),
    ("a flood of a body", Neighbour::Path("/flood")),
    ("sockets until refused", Neighbour::Pod("[sockets]")),
];

/// Measures and prints all of it.
pub(crate) fn figures(program: &Program) {
    let host = deploy(program, VICTIM, "hello-http");
    let bad = deploy(program, "bad", "misbehave-http");
    let (command, hostile) = (program.push("command"), program.push("hostile"));
    let gateway = program.address("gateway");
    let print = |what: &str, [p50, p99, longest]: [Duration; 3]| {
        println!(
            "a function beside {what:<24} p50 {:6.0} us, p99 {:6.0} us, longest {:6.0} us   promise: p99 <= 1.1 of alone",
            micros(p50),
            micros(p99),
            micros(longest)
        );
    };
    let measure = |path| beside(gateway, &host, &bad, path);
    measure(None);
    print("nobody", measure(None));
    for (what, neighbour) in NEIGHBOURS {
        let found = match neighbour {
            Neighbour::Path(path) => measure(Some(path)),
            Neighbour::Pod(args) => {
                let image = if args == "[sockets]" { &hostile } else { &command };
                program.apply(&pod(image, args));
                program.kubectl(&[
                    "wait",
                    "--for=jsonpath={.status.containerStatuses[0].started}=true",
                    "pod/beside",
                    "--timeout=60s",
                ]);
                let found = measure(None);
                program.kubectl(&["delete", "pod", "beside", "--timeout=60s"]);
                found
            }
        };
        print(what, found);
    }
    print("nobody, afterwards", measure(None));
    program.wasmk(&["fn", "delete", "bad"]);
    program.wasmk(&["fn", "delete", VICTIM]);
}

fn pod(image: &str, args: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: beside}}\nspec: {{terminationGracePeriodSeconds: 0, \
         containers: [{{name: main, image: '{image}', args: {args}, {LIMITS}}}]}}\n"
    )
}

fn deploy(program: &Program, name: &str, file: &str) -> String {
    let file = guest(file);
    let file = file.to_str().expect("a UTF-8 path");
    program.wasmk(&["fn", "deploy", file, "--name", name, "--memory", "64Mi"]);
    format!("{name}.default.example.com")
}

/// Asks over one connection for [`SPAN`] while another, of a thread of its own, asks the bad one for a path again and
/// again.
fn beside(gateway: SocketAddr, host: &str, bad: &str, path: Option<&str>) -> [Duration; 3] {
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        if let Some(path) = path {
            scope.spawn(|| block_on(disturb(gateway, bad, path, &over)));
        }
        let mut times = block_on(async {
            let mut connection = Connection::open(gateway).await;
            let end = Instant::now() + SPAN;
            let mut times = Vec::new();
            while Instant::now() < end {
                times.push(connection.call(host).await);
            }
            times
        });
        over.store(true, Ordering::Relaxed);
        [0.5, 0.99, 1.0].map(|share| at(&mut times, share))
    })
}

/// What it answers is its own affair; a body without end is left after a while.
async fn disturb(gateway: SocketAddr, host: &str, path: &str, over: &AtomicBool) {
    let mut connection = Connection::open(gateway).await;
    while !over.load(Ordering::Relaxed) {
        if !timeout(SPAN / 10, connection.get(host, path)).await.unwrap_or(false) {
            connection = Connection::open(gateway).await;
        }
    }
}

fn block_on<T>(work: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.expect("a runtime").block_on(work)
}

fn micros(span: Duration) -> f64 {
    span.as_secs_f64() * 1e6
}
