//! The door of functions: HTTP in, the revision that the Host header and the split name, HTTP out.
//!
//! A request finds its revision in a table that is read without a lock. A revision that runs in
//! place is called at once; one that needs pods waits, in a bounded queue, until a pod is ready.
//! Nothing here writes to the API.

mod pods;
mod table;

use std::{convert::Infallible, net::SocketAddr, sync::Arc, time::Duration};

use arc_swap::ArcSwap;
use http::{HeaderValue, Request, Response, StatusCode, header};
use http_body_util::BodyExt;
use hyper::{body::Incoming, service::service_fn};
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::{conn::auto, graceful::GracefulShutdown},
};
use tokio::{net::TcpListener, sync::Semaphore, time::timeout};
use tokio_util::sync::CancellationToken;
use tracing::debug;

pub use self::table::{Site, Table};
use crate::{
    executor::{Body, full},
    fleet::{Fleet, Member},
    names::request_host,
};

/// Connections at a time; further ones wait to be accepted.
const MAX_CONNECTIONS: usize = 10_000;
/// Longest time for a request's head.
const HEAD_TIMEOUT: Duration = Duration::from_secs(30);
/// Longest time for running requests when the gateway stops.
const DRAIN: Duration = Duration::from_secs(30);

/// Routes requests to revisions.
pub struct Gateway {
    table: ArcSwap<Table>,
    fleet: Arc<Fleet>,
    proxy: pods::Proxy,
}

impl Gateway {
    /// A gateway to the revisions of that fleet, with no hosts yet.
    pub fn new(fleet: Arc<Fleet>) -> Self {
        Self { table: ArcSwap::default(), fleet, proxy: pods::Proxy::new() }
    }

    /// Puts another table in place. Requests that are under way finish by the old one.
    pub fn set_table(&self, table: Table) {
        self.table.store(Arc::new(table));
    }

    /// Accepts connections (HTTP/1.1, or HTTP/2 with prior knowledge) until told to stop, then lets
    /// running requests finish.
    pub async fn serve(self: Arc<Self>, listener: TcpListener, stop: CancellationToken) {
        let permits = Arc::new(Semaphore::new(MAX_CONNECTIONS));
        let graceful = GracefulShutdown::new();
        loop {
            let Ok(permit) = permits.clone().acquire_owned().await else { return };
            let accepted = tokio::select! {
                () = stop.cancelled() => break,
                accepted = listener.accept() => accepted,
            };
            let Ok((stream, peer)) = accepted else {
                // Out of descriptors, most likely: let some connections end first.
                tokio::time::sleep(Duration::from_millis(20)).await;
                continue;
            };
            let _ = stream.set_nodelay(true);
            let gateway = self.clone();
            let service = service_fn(move |request| {
                let gateway = gateway.clone();
                async move { Ok::<_, Infallible>(gateway.answer(request, peer).await) }
            });
            let mut builder = auto::Builder::new(TokioExecutor::new());
            builder.http1().timer(TokioTimer::new()).header_read_timeout(HEAD_TIMEOUT);
            builder.http2().timer(TokioTimer::new());
            let connection =
                builder.serve_connection_with_upgrades(TokioIo::new(stream), service).into_owned();
            let connection = graceful.watch(connection);
            tokio::spawn(async move {
                if let Err(e) = connection.await {
                    debug!(%peer, error = %e, "a connection ended early");
                }
                drop(permit);
            });
        }
        drop(listener);
        let _ = timeout(DRAIN, graceful.shutdown()).await;
    }

    /// Answers one request.
    pub async fn answer(&self, request: Request<Incoming>, peer: SocketAddr) -> Response<Body> {
        self.route(request.map(|body| body.map_err(Into::into).boxed_unsync()), peer).await
    }

    /// The same for a body of any origin.
    pub async fn route(&self, mut request: Request<Body>, peer: SocketAddr) -> Response<Body> {
        let Some(host) = host_of(&request) else {
            return plain(StatusCode::BAD_REQUEST, "the request has no Host header\n");
        };
        let Some(member) = self.member(&host) else {
            return plain(StatusCode::NOT_FOUND, &format!("no function has the host name {host}\n"));
        };
        forwarded(&mut request, peer, &host);
        let in_flight = self.fleet.begin(&member);
        let response = match member.in_place.load_full() {
            Some(prepared) => match timeout(member.limits.timeout, prepared.handler.call(request)).await {
                Ok(response) => response,
                Err(_) => too_slow(&member),
            },
            None => self.proxy.call(&member, request).await,
        };
        // The request is under way until its answer's last byte has left.
        response.map(|body| pods::Counted::new(body, in_flight).boxed_unsync())
    }

    fn member(&self, host: &str) -> Option<Arc<Member>> {
        let table = self.table.load();
        let key = table.find(host)?.pick(rand::random());
        self.fleet.get(key)
    }
}

/// The host a request is for: the target's authority (HTTP/2), or the Host header.
fn host_of(request: &Request<Body>) -> Option<String> {
    if let Some(authority) = request.uri().authority() {
        return Some(request_host(authority.as_str()));
    }
    request.headers().get(header::HOST)?.to_str().ok().map(request_host)
}

/// Adds what a function may want to know of the caller, as proxies do.
fn forwarded(request: &mut Request<Body>, peer: SocketAddr, host: &str) {
    let headers = request.headers_mut();
    let before = headers.get("x-forwarded-for").and_then(|v| v.to_str().ok()).map(|v| format!("{v}, "));
    let chain = format!("{}{}", before.unwrap_or_default(), peer.ip());
    for (name, value) in
        [("x-forwarded-for", chain.as_str()), ("x-forwarded-host", host), ("x-forwarded-proto", "http")]
    {
        if let Ok(value) = HeaderValue::from_str(value) {
            headers.insert(name, value);
        }
    }
}

fn plain(status: StatusCode, text: &str) -> Response<Body> {
    let mut response = Response::new(full(text.to_string()));
    *response.status_mut() = status;
    response
        .headers_mut()
        .insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    response
}

fn too_slow(member: &Member) -> Response<Body> {
    let seconds = member.limits.timeout.as_secs();
    plain(StatusCode::GATEWAY_TIMEOUT, &format!("{} did not answer within {seconds} s\n", member.key))
}
