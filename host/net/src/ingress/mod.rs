//! The ingress controller: one listener for HTTP from outside, led by Ingress objects to ready pods.
//!
//! Requests go to the pods themselves, not through a service's address. [`table`] decides, this module moves bytes.
//! A request that a pod answers by switching protocols (a WebSocket) keeps its connection as long as both want.

pub mod table;
#[cfg(test)]
mod tests;

use std::{net::SocketAddr, sync::Arc, time::Duration};

use arc_swap::ArcSwap;
use bytes::Bytes;
use futures::{FutureExt, StreamExt};
use http::{HeaderValue, Request, Response, StatusCode, Uri, header};
use http_body_util::{BodyExt, Full, combinators::BoxBody};
use hyper::{body::Incoming, server::conn::http1, service::service_fn, upgrade::OnUpgrade};
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::{TokioExecutor, TokioIo, TokioTimer},
};
use kube::{
    Api, ResourceExt,
    api::{Patch, PatchParams},
    runtime::{WatchStreamExt, reflector, watcher},
};
use serde_json::json;
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore},
};
use tokio_util::sync::CancellationToken;
use wasmk_api::{
    http::{add_forwarded, address_value, request_host, strip_hop_by_hop, strip_request, wants_upgrade},
    k8s_openapi::api::networking::v1::Ingress,
};

use crate::{bind::Acceptor, view::View};
use table::{Routes, is_ours, routes};

/// Connections served at a time; more wait in the system's queue.
const CONNECTIONS: usize = 4096;
/// Changes that come together are one pass.
const SETTLE: Duration = Duration::from_millis(10);
/// Longest wait for a request's headers.
const HEADERS: Duration = Duration::from_secs(30);
/// Longest wait for a pod to take a connection.
const CONNECT: Duration = Duration::from_secs(5);

type Body = BoxBody<Bytes, hyper::Error>;
/// A connection's permit, which what its protocol is switched to keeps as well.
type Permit = Arc<OwnedSemaphorePermit>;

/// Serves `listener` as Ingresses say, until told to stop, and writes its address into their status.
pub async fn run(client: kube::Client, view: View, listener: TcpListener, stop: CancellationToken) {
    let server = Arc::new(Server::new());
    tokio::select! {
        () = stop.cancelled() => {}
        () = follow(client, view, listener.local_addr().ok(), server.clone()) => {}
        () = accept(listener, server) => {}
    }
}

struct Server {
    routes: ArcSwap<Routes>,
    client: Client<HttpConnector, Incoming>,
}

impl Server {
    fn new() -> Self {
        let mut connector = HttpConnector::new();
        connector.set_connect_timeout(Some(CONNECT));
        connector.set_nodelay(true);
        Self { routes: ArcSwap::default(), client: Client::builder(TokioExecutor::new()).build(connector) }
    }

    async fn answer(
        &self,
        mut request: Request<Incoming>,
        from: SocketAddr,
        permit: Permit,
    ) -> Response<Body> {
        let host = host_of(&request);
        let found = self.routes.load().find(&host, request.uri().path()).cloned();
        let Some(backend) = found else { return plain(StatusCode::NOT_FOUND, "404 page not found\n") };
        let Some(endpoint) = backend.next() else {
            let text = format!("no pod of service {} is ready\n", backend.service);
            return plain(StatusCode::SERVICE_UNAVAILABLE, &text);
        };
        let path = request.uri().path_and_query().map_or("/", |p| p.as_str());
        let Ok(uri) = format!("http://{endpoint}{path}").parse::<Uri>() else {
            return plain(StatusCode::BAD_REQUEST, "the path cannot be passed on\n");
        };
        let asked = request.uri().authority().and_then(|a| HeaderValue::from_str(a.as_str()).ok());
        *request.uri_mut() = uri;
        let upgrade =
            wants_upgrade(request.version(), request.headers()).then(|| hyper::upgrade::on(&mut request));
        strip_request(request.headers_mut(), upgrade.is_some());
        add_forwarded(request.headers_mut(), &address_value(from.ip()), asked);
        match self.client.request(request).await {
            Ok(answer) => answered(answer, upgrade, permit),
            Err(error) => {
                tracing::debug!(service = backend.service, %endpoint, %error, "a pod did not answer");
                plain(StatusCode::BAD_GATEWAY, "the pod did not answer\n")
            }
        }
    }
}

/// The pod's answer; one that switches protocols takes the connection.
fn answered(mut answer: Response<Incoming>, client: Option<OnUpgrade>, permit: Permit) -> Response<Body> {
    match client {
        Some(client) if answer.status() == StatusCode::SWITCHING_PROTOCOLS => {
            let pod = hyper::upgrade::on(&mut answer);
            tokio::spawn(async move {
                let (Ok(client), Ok(pod)) = tokio::join!(client, pod) else { return };
                let (mut client, mut pod) = (TokioIo::new(client), TokioIo::new(pod));
                // Either side may end it; there is nobody to tell.
                let _ = tokio::io::copy_bidirectional(&mut client, &mut pod).await;
                drop(permit);
            });
        }
        _ => strip_hop_by_hop(answer.headers_mut()),
    }
    answer.map(BodyExt::boxed)
}

/// The host a request is for, in lower case and without its port.
fn host_of(request: &Request<Incoming>) -> String {
    let named = request.headers().get(header::HOST).and_then(|h| h.to_str().ok());
    request_host(request.uri().host().or(named).unwrap_or("")).into_owned()
}

fn plain(status: StatusCode, text: &str) -> Response<Body> {
    let body = Full::new(Bytes::copy_from_slice(text.as_bytes())).map_err(|never| match never {});
    let mut response = Response::new(BodyExt::boxed(body));
    *response.status_mut() = status;
    response
        .headers_mut()
        .insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    response
}

async fn accept(listener: TcpListener, server: Arc<Server>) {
    let acceptor = Acceptor::new(listener, Arc::new(Semaphore::new(CONNECTIONS)));
    loop {
        let (stream, from, permit) = acceptor.next().await;
        tokio::spawn(serve(stream, from, server.clone(), Arc::new(permit)));
    }
}

async fn serve(stream: TcpStream, from: SocketAddr, server: Arc<Server>, permit: Permit) {
    let service = service_fn(move |request| {
        let (server, permit) = (server.clone(), permit.clone());
        async move { Ok::<_, std::convert::Infallible>(server.answer(request, from, permit).await) }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADERS)
        .serve_connection(TokioIo::new(stream), service)
        .with_upgrades();
    if let Err(error) = connection.await {
        tracing::debug!(%from, %error, "a connection broke off");
    }
}

/// Keeps the table as Ingresses, Services and endpoints say.
async fn follow(client: kube::Client, view: View, address: Option<SocketAddr>, server: Arc<Server>) {
    let (ingresses, writer) = reflector::store();
    let api: Api<Ingress> = Api::all(client.clone());
    let events = watcher(api, watcher::Config::default()).default_backoff().reflect(writer);
    futures::pin_mut!(events);
    let mut changes = view.changes();
    loop {
        tokio::select! {
            event = events.next() => match event {
                Some(Err(error)) => tracing::debug!(%error, "a watch of ingresses broke off"),
                Some(Ok(_)) => {}
                None => return,
            },
            change = changes.changed() => if change.is_err() { return },
        }
        // What arrives while the dust settles belongs to this pass.
        tokio::time::sleep(SETTLE).await;
        while let Some(Some(_)) = events.next().now_or_never() {}
        changes.mark_unchanged();
        let all = ingresses.state();
        server.routes.store(Arc::new(routes(&all, &view.services(), &view.slices())));
        for ingress in all.iter().filter(|i| is_ours(i)) {
            tell(&client, ingress, address).await;
        }
    }
}

/// Writes where an Ingress is served into its status.
async fn tell(client: &kube::Client, ingress: &Ingress, address: Option<SocketAddr>) {
    let Some(ip) = address.map(|a| a.ip().to_string()) else { return };
    let there = ingress.status.as_ref().and_then(|s| s.load_balancer.as_ref()?.ingress.as_ref());
    if there.is_some_and(|list| list.iter().any(|entry| entry.ip.as_deref() == Some(&ip))) {
        return;
    }
    let api: Api<Ingress> = Api::namespaced(client.clone(), &ingress.namespace().unwrap_or_default());
    let patch = json!({"status": {"loadBalancer": {"ingress": [{"ip": ip}]}}});
    let written = api.patch_status(&ingress.name_any(), &PatchParams::default(), &Patch::Merge(&patch)).await;
    if let Err(error) = written {
        tracing::debug!(ingress = ingress.name_any(), %error, "the status of an ingress was not written");
    }
}
