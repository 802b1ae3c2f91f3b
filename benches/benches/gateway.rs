//! Promise: finding a function among 10,000 and going through the gateway costs less than 10 µs, and one changed
//! route among them less than a millisecond.
//!
//! In process and without sockets: the gateway's own `route` with a handler that answers at once, so that what is
//! measured is the gateway and nothing else. `cargo bench -p wasmk-functions --bench gateway`
#![allow(clippy::print_stdout, reason = "a bench prints its figures")]

use std::{
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use async_trait::async_trait;
use http::{HeaderValue, Request, Response, header};
use serde_json::json;
use wasmk_api::knative::Route;
use wasmk_functions::{Body, Fleet, Gateway, Handler, Key, Live, Peer, Prepared, full};

/// Functions in the table.
const FUNCTIONS: usize = 10_000;
/// Requests measured.
const REQUESTS: usize = 200_000;
/// Changed routes measured.
const CHANGES: usize = 2_000;

struct Hello;

#[async_trait]
impl Handler for Hello {
    async fn call(&self, _: Request<Body>, _: Duration) -> Response<Body> {
        Response::new(full("hello\n"))
    }
}

fn route(i: usize, revision: &str) -> Route {
    serde_json::from_value(json!({
        "metadata": {"name": format!("f{i}"), "namespace": "default"}, "spec": {},
        "status": {"traffic": [{"revisionName": format!("f{i}-{revision}"), "percent": 100}]},
    }))
    .expect("a route")
}

fn percentile(times: &mut [Duration], percent: usize) -> f64 {
    times.sort_unstable();
    times[(times.len() - 1) * percent / 100].as_secs_f64() * 1e6
}

#[tokio::main(flavor = "current_thread")]
async fn main() {
    let (fleet, live) = (Arc::new(Fleet::default()), Live::new("example.com"));
    let gateway = Gateway::new(fleet.clone(), live);
    let prepared = Prepared { handler: Arc::new(Hello), image: String::new() };
    for i in 0..FUNCTIONS {
        let member = fleet.member(&Key::new("default", format!("f{i}-00001")), Default::default());
        member.set_in_place(Some(prepared.clone()));
    }
    let begun = Instant::now();
    gateway.set_routes((0..FUNCTIONS).map(|i| route(i, "00001")));
    println!("{FUNCTIONS} routes at once: {:.1} ms", begun.elapsed().as_secs_f64() * 1e3);

    let peer = Peer::from(SocketAddr::from(([127, 0, 0, 1], 1)));
    let mut times: Vec<Duration> = Vec::with_capacity(REQUESTS);
    for i in 0..REQUESTS {
        let host = format!("f{}.default.example.com", (i * 7919) % FUNCTIONS);
        let mut request = Request::new(full(""));
        request.headers_mut().insert(header::HOST, HeaderValue::from_str(&host).expect("a host"));
        let begun = Instant::now();
        let response = gateway.route(request, &peer).await;
        times.push(begun.elapsed());
        assert_eq!(response.status(), 200);
    }
    let (p50, p99) = (percentile(&mut times, 50), percentile(&mut times, 99));
    println!("through the gateway: p50 {p50:.2} µs, p99 {p99:.2} µs (promise 10)");

    let mut times: Vec<Duration> = Vec::with_capacity(CHANGES);
    for i in 0..CHANGES {
        let changed = route(i, "00001");
        let begun = Instant::now();
        gateway.set_routes([changed]);
        times.push(begun.elapsed());
    }
    let (p50, p99) = (percentile(&mut times, 50), percentile(&mut times, 99));
    println!("one changed route: p50 {p50:.1} µs, p99 {p99:.1} µs (promise 1000)");
}
