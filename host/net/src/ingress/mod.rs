//! The ingress controller: listeners for HTTP and HTTPS from outside, led by Ingress objects to ready pods.
//!
//! Requests go to the pods themselves, not through a service's address. [`table`] decides, [`options`] says what
//! annotations mean, [`certs`] chooses certificates, this module moves bytes.
//! A request that a pod answers by switching protocols (a WebSocket) keeps its connection as long as both want.
//! Network policies judge requests by the address of their client.

pub mod certs;
mod limit;
pub mod options;
mod pods;
pub mod table;
#[cfg(test)]
mod tests;

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering::Relaxed},
    },
    time::Duration,
};

use arc_swap::ArcSwap;
use bytes::Bytes;
use futures::{FutureExt, StreamExt};
use http::{HeaderValue, Request, Response, StatusCode, Uri, Version, header};
use http_body_util::{BodyExt, Full, combinators::BoxBody};
use hyper::{body::Incoming, service::service_fn, upgrade::OnUpgrade};
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::conn::auto,
};
use kube::{
    Api, ResourceExt,
    api::{Patch, PatchParams},
    runtime::{WatchStreamExt, reflector, watcher},
};
use rustls::sign::CertifiedKey;
use serde_json::json;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpListener,
    sync::{OwnedSemaphorePermit, Semaphore},
    time::timeout,
};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use wasmk_api::{
    http::{add_forwarded, address_value, request_host, strip_hop_by_hop, strip_request, wants_upgrade},
    k8s_openapi::api::{core::v1::Secret, networking::v1::Ingress},
};

use crate::{bind::Acceptor, plan::Protocol, policy::Policies, view::View};
use certs::{Reader, Resolver};
use limit::Limits;
use options::Redirect;
use pods::Pods;
use table::{Routes, Rule, Way, is_ours, routes};

/// Connections served at a time on each listener; more wait in the system's queue.
const CONNECTIONS: usize = 4096;
/// Changes that come together are one pass.
const SETTLE: Duration = Duration::from_millis(10);
/// Longest wait for a request's headers, and for a TLS handshake.
const HEADERS: Duration = Duration::from_secs(30);
/// Streams that one HTTP/2 connection may have open.
const STREAMS: u32 = 250;
/// How far apart the numbers are by which canaries draw: prime to hundred, so that shares are even.
const STRIDE: u32 = 37;

type Body = BoxBody<Bytes, hyper::Error>;
/// A connection's permit, which what its protocol is switched to keeps as well.
type Permit = Arc<OwnedSemaphorePermit>;

/// Where requests come in.
pub struct Listeners {
    /// For HTTP.
    pub http: Option<TcpListener>,
    /// For HTTPS, and the certificate for hosts that have none.
    pub https: Option<(TcpListener, Arc<CertifiedKey>)>,
}

/// Serves the listeners as Ingresses say, until told to stop, and writes their address into the status.
pub async fn run(
    client: kube::Client,
    (view, policies): (View, Policies),
    listeners: Listeners,
    stop: CancellationToken,
) {
    let Listeners { http, https } = listeners;
    let address = |listener: Option<&TcpListener>| listener.and_then(|l| l.local_addr().ok());
    let secure = address(https.as_ref().map(|(listener, _)| listener));
    let told = address(http.as_ref()).or(secure);
    let server = Arc::new(Server::new(policies, secure.map(|a| a.port())));
    let (listener, default) = https.unzip();
    let resolver = default.map(|default| Arc::new(Resolver::new(default)));
    let tls = resolver.clone().and_then(|resolver| {
        acceptor(resolver)
            .inspect_err(|error| {
                tracing::warn!(%error, "ingresses are not served over TLS");
            })
            .ok()
    });
    tokio::select! {
        () = stop.cancelled() => {}
        () = follow(client, view, told, server.clone(), resolver) => {}
        () = accept(http, None, server.clone()) => {}
        () = accept(listener.filter(|_| tls.is_some()), tls, server) => {}
    }
}

fn acceptor(resolver: Arc<Resolver>) -> Result<TlsAcceptor, rustls::Error> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config =
        rustls::ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions()?;
    let mut config = config.with_no_client_auth().with_cert_resolver(resolver);
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(TlsAcceptor::from(Arc::new(config)))
}

struct Server {
    routes: ArcSwap<Routes>,
    pods: Pods,
    policies: Policies,
    limits: Limits,
    drawn: AtomicU32,
    /// The port of HTTPS, when there is one.
    secure: Option<u16>,
}

/// Who asks, and how.
#[derive(Clone)]
struct Asker {
    from: SocketAddr,
    secure: bool,
    permit: Permit,
}

impl Server {
    fn new(policies: Policies, secure: Option<u16>) -> Self {
        let (routes, pods) = (ArcSwap::default(), Pods::new(policies.clone()));
        Self { routes, pods, policies, limits: Limits::default(), drawn: AtomicU32::new(0), secure }
    }

    async fn answer(&self, request: Request<Incoming>, asker: Asker) -> Response<Body> {
        let host = host_of(&request);
        let found = self.routes.load().find(&host, request.uri().path()).cloned();
        let Some(rule) = found else { return plain(StatusCode::NOT_FOUND, "404 page not found\n") };
        if let Some(refused) = self.refusal(&rule.way, &host, &request, &asker) {
            return refused;
        }
        self.pass_on(&rule, request, asker).await
    }

    /// What is answered at once.
    fn refusal(
        &self,
        way: &Way,
        host: &str,
        request: &Request<Incoming>,
        asker: &Asker,
    ) -> Option<Response<Body>> {
        let wanted = match way.options.redirect {
            Redirect::Never => false,
            Redirect::WithTls => way.tls,
            Redirect::Always => true,
        };
        if let Some(port) = self.secure.filter(|_| wanted && !asker.secure) {
            let port = if port == 443 { String::new() } else { format!(":{port}") };
            let path = request.uri().path_and_query().map_or("/", |p| p.as_str());
            let mut response = plain(StatusCode::PERMANENT_REDIRECT, "");
            let location = HeaderValue::try_from(format!("https://{host}{port}{path}"));
            response.headers_mut().insert(header::LOCATION, location.ok()?);
            return Some(response);
        }
        let limit = way.options.limit?;
        let passes = self.limits.passes(&way.ingress, asker.from.ip(), limit);
        (!passes).then(|| plain(StatusCode::SERVICE_UNAVAILABLE, "too many requests at a time\n"))
    }

    async fn pass_on(&self, rule: &Rule, mut request: Request<Incoming>, asker: Asker) -> Response<Body> {
        let draw = || self.drawn.fetch_add(STRIDE, Relaxed);
        let backend = rule.backend(request.headers(), draw).clone();
        let (endpoint, cookie) = rule.endpoint(&backend, request.headers());
        let Some(endpoint) = endpoint else {
            let text = format!("no pod of service {} is ready\n", backend.service);
            return plain(StatusCode::SERVICE_UNAVAILABLE, &text);
        };
        if !self.policies.allows(asker.from.ip(), endpoint, Protocol::Tcp) {
            return plain(StatusCode::GATEWAY_TIMEOUT, "a network policy does not let the request through\n");
        }
        let upgrade =
            wants_upgrade(request.version(), request.headers()).then(|| hyper::upgrade::on(&mut request));
        if !address(&mut request, rule, endpoint, (&asker, upgrade.is_some(), backend.http2)) {
            return plain(StatusCode::BAD_REQUEST, "the path cannot be passed on\n");
        }
        match self.pods.ask(request, backend.http2).await {
            Ok(answer) => {
                let mut answer = answered(answer, upgrade, asker.permit);
                if let Some(cookie) = cookie.and_then(|text| HeaderValue::try_from(text).ok()) {
                    answer.headers_mut().append(header::SET_COOKIE, cookie);
                }
                answer
            }
            Err(error) => {
                tracing::debug!(service = backend.service, %endpoint, %error, "a pod did not answer");
                plain(StatusCode::BAD_GATEWAY, "the pod did not answer\n")
            }
        }
    }
}

/// Makes a request be one to a pod; `false` when it cannot be.
fn address(
    request: &mut Request<Incoming>,
    rule: &Rule,
    endpoint: SocketAddr,
    (asker, upgrade, http2): (&Asker, bool, bool),
) -> bool {
    let path = rule.rewritten(request.uri().path());
    let query = request.uri().query().map(|query| format!("?{query}")).unwrap_or_default();
    let Ok(uri) = format!("http://{endpoint}{path}{query}").parse::<Uri>() else { return false };
    let asked = request.uri().authority().and_then(|a| HeaderValue::from_str(a.as_str()).ok());
    *request.uri_mut() = uri;
    *request.version_mut() = if http2 { Version::HTTP_2 } else { Version::HTTP_11 };
    let headers = request.headers_mut();
    strip_request(headers, upgrade);
    if let Some(asked) = asked.clone().filter(|_| !headers.contains_key(header::HOST)) {
        headers.insert(header::HOST, asked);
    }
    if http2 {
        // gRPC servers want to be told that their status is understood.
        headers.insert(header::TE, HeaderValue::from_static("trailers"));
    }
    if asker.secure {
        headers.entry("x-forwarded-proto").or_insert(HeaderValue::from_static("https"));
    }
    add_forwarded(headers, &address_value(asker.from.ip()), asked);
    true
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

/// Takes connections, for ever; over TLS with an acceptor.
async fn accept(listener: Option<TcpListener>, tls: Option<TlsAcceptor>, server: Arc<Server>) {
    let Some(listener) = listener else { return std::future::pending().await };
    let acceptor = Acceptor::new(listener, Arc::new(Semaphore::new(CONNECTIONS)));
    loop {
        let (stream, from, permit) = acceptor.next().await;
        let asker = Asker { from, secure: tls.is_some(), permit: Arc::new(permit) };
        let (server, tls) = (server.clone(), tls.clone());
        tokio::spawn(async move {
            let Some(tls) = tls else { return serve(stream, asker, server).await };
            match timeout(HEADERS, tls.accept(stream)).await {
                Ok(Ok(stream)) => serve(stream, asker, server).await,
                Ok(Err(error)) => tracing::debug!(%from, %error, "a TLS handshake failed"),
                Err(_) => {}
            }
        });
    }
}

async fn serve<S>(stream: S, asker: Asker, server: Arc<Server>)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let from = asker.from;
    let service = service_fn(move |request| {
        let (server, asker) = (server.clone(), asker.clone());
        async move { Ok::<_, std::convert::Infallible>(server.answer(request, asker).await) }
    });
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder.http1().timer(TokioTimer::new()).header_read_timeout(HEADERS);
    builder.http2().timer(TokioTimer::new()).max_concurrent_streams(STREAMS);
    let connection = builder.serve_connection_with_upgrades(TokioIo::new(stream), service);
    if let Err(error) = connection.await {
        tracing::debug!(%from, %error, "a connection broke off");
    }
}

/// Keeps the table and the certificates as Ingresses, Services, endpoints and Secrets say.
async fn follow(
    client: kube::Client,
    view: View,
    address: Option<SocketAddr>,
    server: Arc<Server>,
    resolver: Option<Arc<Resolver>>,
) {
    let (ingresses, writer) = reflector::store();
    let api: Api<Ingress> = Api::all(client.clone());
    let events = watcher(api, watcher::Config::default()).default_backoff().reflect(writer);
    futures::pin_mut!(events);
    let (secrets, writer) = reflector::store();
    let api: Api<Secret> = Api::all(client.clone());
    let of_tls = watcher::Config::default().fields("type=kubernetes.io/tls");
    let pairs = watcher(api, of_tls).default_backoff().reflect(writer);
    futures::pin_mut!(pairs);
    let mut changes = view.changes();
    let mut reader = Reader::default();
    loop {
        tokio::select! {
            event = events.next() => match event {
                Some(Err(error)) => tracing::debug!(%error, "a watch of ingresses broke off"),
                Some(Ok(_)) => {}
                None => return,
            },
            event = pairs.next(), if resolver.is_some() => match event {
                Some(Err(error)) => tracing::debug!(%error, "a watch of certificates broke off"),
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
        if let Some(resolver) = &resolver {
            while let Some(Some(_)) = pairs.next().now_or_never() {}
            let secret =
                |namespace: &str, name: &str| secrets.get(&reflector::ObjectRef::new(name).within(namespace));
            resolver.set(reader.read(&all, secret));
        }
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
