//! The door of functions: HTTP in, the revision that the Host header and the split name, HTTP out.
//!
//! A request finds its revision in a table that is read without a lock. A revision that runs in
//! place is called at once; one that needs pods waits, in a bounded queue, until a pod is ready.
//! Nothing here writes to the API.

mod body;
mod door;
mod inside;
mod pods;
mod table;
mod turns;
mod watch;

use std::{
    borrow::Cow,
    convert::Infallible,
    future::poll_fn,
    net::{IpAddr, SocketAddr},
    pin::pin,
    sync::{Arc, OnceLock},
    task::Poll,
    time::Duration,
};

use async_trait::async_trait;
use http::{HeaderName, HeaderValue, Request, Response, StatusCode, Version, header};
use http_body_util::BodyExt;
use hyper::{body::Incoming, service::service_fn};
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::{
        conn::auto,
        graceful::{GracefulShutdown, Watcher},
    },
};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{OnceCell, Semaphore},
    time::{Instant, timeout, timeout_at},
};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info};
use wasmk_api::{
    http::{add_forwarded, address_value},
    knative::Route,
};

pub(crate) use self::table::{of_mapping, of_route};
pub use self::{
    body::Answer,
    table::{Claim, Site, Source, Table, Target},
};
use self::{
    body::Held,
    inside::{Inside, in_full, is_here, is_inner},
    pods::Way,
    turns::Turns,
    watch::Watch,
};
use crate::{
    config::Live,
    eventing::is_ingress,
    executor::{Body, BoxError},
    fleet::{Fleet, Key, Member},
    names::request_host,
};

/// Connections at a time; further ones wait to be accepted.
const MAX_CONNECTIONS: usize = 10_000;
/// Longest time for a request's head; on a connection that had requests before, up to twice that.
const HEAD_TIMEOUT: Duration = Duration::from_secs(30);
/// Longest time for running requests when the gateway stops.
const DRAIN: Duration = Duration::from_secs(30);
/// Requests answered in place at a time: fewer than a node has instance slots, so that none is refused there.
const MAX_IN_PLACE: usize = 900;
/// Longest wait for a turn at the machine.
const TURN: Duration = Duration::from_secs(10);
/// Longest wait for a revision that a route names already and that is not known yet, as after a start.
const UNKNOWN: Duration = Duration::from_secs(10);
/// Asks for the times an answer took, in the header `Server-Timing`.
const TIMING: HeaderName = HeaderName::from_static("wasmk-timing");
/// Names the tag a request is for, where settings allow it.
const TAG: HeaderName = HeaderName::from_static("knative-serving-tag");

/// Routes requests to revisions.
pub struct Gateway {
    /// The hosts.
    pub table: Table,
    fleet: Arc<Fleet>,
    live: Live,
    proxy: pods::Proxy,
    turns: Turns,
    ingress: OnceLock<Arc<dyn Ingress>>,
    inside: OnceLock<Inside>,
    /// Where connections may begin by saying whose they are.
    door: OnceLock<IpAddr>,
    /// For the connections of all listeners.
    permits: Arc<Semaphore>,
}

/// Takes events for brokers, at a host of their own.
#[async_trait]
pub(crate) trait Ingress: Send + Sync {
    /// Answers a request at that host.
    async fn receive(&self, request: Request<Body>) -> Response<Body>;
}

/// Who is at the other end of a connection.
#[derive(Clone, Debug)]
pub struct Peer {
    address: SocketAddr,
    /// Its address, as proxies write it.
    header: HeaderValue,
    /// On this machine.
    here: bool,
    /// That of the pod it is, once somebody has asked.
    namespace: Arc<OnceCell<Option<String>>>,
}

impl Peer {
    /// One that only passes on what a client says.
    fn on_behalf_of(self, client: SocketAddr) -> Self {
        Self { address: client, header: address_value(client.ip()), ..self }
    }
}

impl From<SocketAddr> for Peer {
    fn from(address: SocketAddr) -> Self {
        let (header, here) = (address_value(address.ip()), is_here(address));
        Self { address, header, here, namespace: Arc::default() }
    }
}

/// What all requests of a connection share.
struct Connection {
    gateway: Arc<Gateway>,
    peer: Peer,
    watch: Watch,
}

/// A request of a connection, until its answer is gone.
struct UnderWay(Arc<Connection>);

impl UnderWay {
    fn new(connection: &Arc<Connection>, version: Version) -> Self {
        connection.watch.begin(version);
        Self(connection.clone())
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.0.watch.end();
    }
}

/// Why a request is not answered by its revision.
#[derive(Debug)]
enum Refusal {
    NoHost,
    Unknown(String),
    Starting,
    QueueFull,
    Overloaded,
    NoPod,
    Gone,
    TooSlow,
    BadPath,
    Pod(String),
}

impl Gateway {
    /// A gateway to the revisions of that fleet, with no hosts yet.
    pub fn new(fleet: Arc<Fleet>, live: Live) -> Self {
        Self {
            table: Table::default(),
            fleet,
            live,
            proxy: pods::Proxy::new(),
            turns: Turns::new(MAX_IN_PLACE),
            ingress: OnceLock::new(),
            inside: OnceLock::new(),
            door: OnceLock::new(),
            permits: Arc::new(Semaphore::new(MAX_CONNECTIONS)),
        }
    }

    /// Accepts connections (HTTP/1.1, or HTTP/2 with prior knowledge) until told to stop, then lets
    /// running requests finish. Several listeners may be served side by side.
    pub async fn serve(self: Arc<Self>, listener: TcpListener, stop: CancellationToken) {
        let permits = self.permits.clone();
        let graceful = GracefulShutdown::new();
        loop {
            let accepted = async {
                let permit = permits.clone().acquire_owned().await.map_err(std::io::Error::other)?;
                Ok::<_, std::io::Error>((listener.accept().await?, permit))
            };
            let accepted = tokio::select! {
                () = stop.cancelled() => break,
                accepted = accepted => accepted,
            };
            let Ok(((mut stream, address), permit)) = accepted else {
                // Out of descriptors, most likely: let some connections end first.
                tokio::time::sleep(Duration::from_millis(20)).await;
                continue;
            };
            let (gateway, watcher, stopped) = (self.clone(), graceful.watcher(), stop.clone());
            tokio::spawn(async move {
                let conversation = async {
                    let peer = tokio::select! {
                        peer = gateway.peer(&mut stream, address) => peer?,
                        // Nothing has been asked yet.
                        () = stopped.cancelled() => return Ok(()),
                    };
                    gateway.converse(stream, peer, watcher).await
                };
                if let Err(e) = conversation.await {
                    debug!(peer = %address, error = %e, "a connection ended early");
                }
                drop(permit);
            });
        }
        drop(listener);
        let _ = timeout(DRAIN, graceful.shutdown()).await;
    }

    /// Who is at the other end of a new connection.
    async fn peer(&self, stream: &mut TcpStream, address: SocketAddr) -> Result<Peer, BoxError> {
        let peer = Peer::from(address);
        let Some(door) = self.door.get() else { return Ok(peer) };
        if !peer.here || stream.local_addr()?.ip() != *door {
            return Ok(peer);
        }
        let client = timeout(HEAD_TIMEOUT, door::client_of(stream)).await??;
        Ok(match client {
            Some(client) => peer.on_behalf_of(client),
            None => peer,
        })
    }

    /// Answers the requests of a connection.
    async fn converse(
        self: Arc<Self>,
        stream: TcpStream,
        peer: Peer,
        watcher: Watcher,
    ) -> Result<(), BoxError> {
        let _ = stream.set_nodelay(true);
        let shared = Arc::new(Connection { gateway: self, peer, watch: Watch::default() });
        let watched = shared.clone();
        let service = service_fn(move |request: Request<Incoming>| {
            let under_way = UnderWay::new(&shared, request.version());
            async move {
                let request = request.map(|body| body.map_err(Into::into).boxed_unsync());
                let Connection { gateway, peer, .. } = &*under_way.0;
                let answer = gateway.route(request, peer).await;
                Ok::<_, Infallible>(answer.map(|body| body.until_gone(under_way)))
            }
        });
        let mut builder = auto::Builder::new(TokioExecutor::new());
        // The connection's own watch takes less than a timer for each request.
        builder.http1().timer(TokioTimer::new()).header_read_timeout(None);
        builder.http2().timer(TokioTimer::new());
        let connection = builder.serve_connection_with_upgrades(TokioIo::new(stream), service).into_owned();
        tokio::select! {
            biased;
            ended = watcher.watch(connection) => ended,
            () = watched.watch.quiet(HEAD_TIMEOUT) => Err("no request's head came in time".into()),
        }
    }

    /// Takes the hosts of routes as they are now.
    pub fn set_routes(&self, routes: impl IntoIterator<Item = Route>) {
        let config = self.live.get();
        let claim = |route: Route| (Source::route(&route), Some(of_route(&route, &config)));
        self.table.set(routes.into_iter().map(claim));
    }

    /// Says who takes events for brokers; only the first counts.
    pub(crate) fn set_ingress(&self, ingress: Arc<dyn Ingress>) {
        let _ = self.ingress.set(ingress);
    }

    /// Says by which API it is found out who is inside the cluster; until then it is this machine alone.
    pub(crate) fn set_inside(&self, client: kube::Client) {
        let _ = self.inside.set(Inside::new(client));
    }

    /// Says at which address connections of this machine may begin by saying whose they are; only the first counts.
    pub(crate) fn set_door(&self, door: IpAddr) {
        let _ = self.door.set(door);
    }

    /// The namespace of the pod that a peer is.
    async fn namespace<'a>(&self, peer: &'a Peer) -> Option<&'a str> {
        let inside = self.inside.get()?;
        let asked = peer.namespace.get_or_try_init(|| inside.namespace(peer.address.ip())).await;
        asked.ok()?.as_deref()
    }

    /// Whether a peer belongs to the cluster.
    async fn is_inside(&self, peer: &Peer) -> bool {
        match self.inside.get() {
            _ if peer.here => true,
            Some(inside) => inside.has(peer.address.ip()).await,
            None => false,
        }
    }

    /// Answers one request.
    pub async fn route(&self, request: Request<Body>, peer: &Peer) -> Response<Answer> {
        let begun = Instant::now();
        if let Some(host) = inner_host(&request)
            && !self.is_inside(peer).await
        {
            return Refusal::Unknown(host).response(None);
        }
        let log =
            self.live.peek().request_log.then(|| format!("{} {}", request.method(), request.uri().path()));
        let found = match self.find(&request) {
            Err(Refusal::Unknown(host)) => match self.short(&host, peer).await {
                Some(site) => Ok(self.choose(&site, &request)),
                None => Err(Refusal::Unknown(host)),
            },
            found => found,
        };
        let answered = match found {
            Ok(Ok(member)) => Ok(member),
            Ok(Err(key)) => self.fleet.wait(&key, UNKNOWN).await.ok_or(Refusal::Starting),
            Err(Refusal::Unknown(host)) if is_ingress(&host) => {
                if let Some(ingress) = self.ingress.get() {
                    return ingress.receive(request).await.map(Answer::whole);
                }
                Err(Refusal::Unknown(host))
            }
            Err(refusal) => Err(refusal),
        };
        let (response, member) = match answered {
            Ok(member) => (self.answer(&member, request, peer, begun).await, Some(member)),
            Err(refusal) => (Err(refusal), None),
        };
        let response = response.unwrap_or_else(|refusal| refusal.response(member.as_deref()));
        if let Some(line) = log {
            let revision = member.map(|m| m.key.to_string()).unwrap_or_default();
            let millis = begun.elapsed().as_secs_f64() * 1e3;
            info!(peer = %peer.address, revision, status = response.status().as_u16(), millis, "{line}");
        }
        response
    }

    /// What a host that nobody has leads to: inside the cluster a name and a namespace are enough, and for a pod the
    /// name of what is in its own namespace.
    async fn short(&self, host: &str, peer: &Peer) -> Option<Arc<Site>> {
        if let Some(long) = in_full(host) {
            // It is looked up first: strangers who ask for what there is not are no reason to ask the API.
            let site = self.table.find(&long)?;
            return self.is_inside(peer).await.then_some(site);
        }
        if host.is_empty() || host.contains('.') || !self.is_inside(peer).await {
            return None;
        }
        let namespace = self.namespace(peer).await?;
        self.table.find(&format!("{host}.{namespace}.svc"))
    }

    /// The revision a request is for; its key where it is not known yet.
    fn find(&self, request: &Request<Body>) -> Result<Result<Arc<Member>, Key>, Refusal> {
        let host = request_host(host_of(request).ok_or(Refusal::NoHost)?);
        let site = self.table.find(&host).ok_or_else(|| Refusal::Unknown(host.to_string()))?;
        Ok(self.choose(&site, request))
    }

    /// The revision of a site that gets a request; its key where it is not known yet.
    fn choose(&self, site: &Site, request: &Request<Body>) -> Result<Arc<Member>, Key> {
        let tagged = request.headers().get(&TAG).and_then(|tag| tag.to_str().ok());
        let tagged = tagged.filter(|_| self.live.peek().features.has("tag-header-based-routing"));
        let target = tagged
            .and_then(|tag| site.tagged(tag))
            .or_else(|| site.only())
            .unwrap_or_else(|| site.pick(rand::random()));
        target.member(&self.fleet).ok_or_else(|| target.key().clone())
    }

    async fn answer(
        &self,
        member: &Arc<Member>,
        mut request: Request<Body>,
        peer: &Peer,
        begun: Instant,
    ) -> Result<Response<Answer>, Refusal> {
        let in_flight = self.fleet.begin(member, begun);
        let (deadline, limit, idle) = {
            let limits = member.limits();
            let deadline = begun + limits.timeout;
            (deadline, limits.response_start.map_or(deadline, |span| deadline.min(begun + span)), limits.idle)
        };
        let timed = request.headers_mut().remove(TIMING).is_some();
        let host = request.uri().authority().and_then(|a| HeaderValue::from_str(a.as_str()).ok());
        add_forwarded(request.headers_mut(), &peer.header, host);
        let routed = begun.elapsed();
        let mut held = Held::new(in_flight);
        let mut response = match self.proxy.way(member, deadline).await? {
            Way::InPlace(prepared) => {
                held.turn = Some(self.turn(member, deadline).await?);
                let called = prepared.handler.call(request, routed);
                within(limit, called).await.ok_or(Refusal::TooSlow)?
            }
            Way::Pod(slot) => self.proxy.call(member, slot, request, &mut held, deadline).await?,
        };
        if response.status() == StatusCode::SERVICE_UNAVAILABLE {
            response.headers_mut().entry(header::RETRY_AFTER).or_insert(HeaderValue::from_static("1"));
        }
        if timed {
            timing(&mut response, member, routed, begun.elapsed());
        }
        Ok(response.map(|body| Answer::new(body, held, deadline, idle)))
    }

    async fn turn(&self, member: &Member, deadline: Instant) -> Result<turns::Turn, Refusal> {
        if let Some(turn) = self.turns.try_take() {
            return Ok(turn);
        }
        let deadline = deadline.min(Instant::now() + TURN);
        self.turns.take(&member.key.namespace, deadline).await.map_err(|_| Refusal::Overloaded)
    }
}

/// What `work` comes to before `limit`. What is done at once needs no timer.
async fn within<W: Future>(limit: Instant, work: W) -> Option<W::Output> {
    let mut work = pin!(work);
    let first = poll_fn(|cx| Poll::Ready(work.as_mut().poll(cx))).await;
    match first {
        Poll::Ready(output) => Some(output),
        Poll::Pending => timeout_at(limit, work).await.ok(),
    }
}

/// The host that a request is for, as it says.
fn host_of<B>(request: &Request<B>) -> Option<&str> {
    let named = || request.headers().get(header::HOST).and_then(|h| h.to_str().ok());
    request.uri().authority().map(|a| a.as_str()).or_else(named)
}

/// The host that a request is for, if only the cluster is to reach it.
fn inner_host<B>(request: &Request<B>) -> Option<String> {
    host_of(request).map(request_host).filter(|host| is_inner(host)).map(Cow::into_owned)
}

/// Says in the answer how long its parts took, for those who asked.
fn timing(response: &mut Response<Body>, member: &Member, routed: Duration, all: Duration) {
    let millis = |span: Duration| span.as_secs_f64() * 1e3;
    let prepared = member.prepared_micros.load(std::sync::atomic::Ordering::Relaxed) as f64 / 1e3;
    let text = format!(
        "prepare;dur={prepared:.3}, route;dur={:.3}, first-byte;dur={:.3}",
        millis(routed),
        millis(all.saturating_sub(routed))
    );
    if let Ok(value) = HeaderValue::from_str(&text) {
        response.headers_mut().append("server-timing", value);
    }
}

impl Refusal {
    fn response(self, member: Option<&Member>) -> Response<Answer> {
        let name = member.map(|m| m.key.to_string()).unwrap_or_default();
        let seconds = member.map_or(0, |m| m.limits().timeout.as_secs());
        let (status, text) = match self {
            Self::NoHost => (StatusCode::BAD_REQUEST, "the request has no Host header".into()),
            Self::Unknown(host) => (StatusCode::NOT_FOUND, format!("no function has the host name {host}")),
            Self::Starting => (StatusCode::SERVICE_UNAVAILABLE, "the function is not known here yet".into()),
            Self::QueueFull => {
                (StatusCode::SERVICE_UNAVAILABLE, "too many requests wait for this function to start".into())
            }
            Self::Overloaded => {
                (StatusCode::SERVICE_UNAVAILABLE, "too many requests are being answered here".into())
            }
            Self::Gone => (StatusCode::SERVICE_UNAVAILABLE, format!("{name} has been deleted")),
            Self::NoPod => {
                (StatusCode::GATEWAY_TIMEOUT, format!("no pod of {name} had room within {seconds} s"))
            }
            Self::TooSlow => {
                (StatusCode::GATEWAY_TIMEOUT, format!("{name} did not answer within {seconds} s"))
            }
            Self::BadPath => (StatusCode::BAD_REQUEST, "the request's target cannot be passed on".into()),
            Self::Pod(why) => (StatusCode::BAD_GATEWAY, format!("{name} does not answer: {why}")),
        };
        let mut response = Response::new(Answer::plain(format!("{text}\n")));
        *response.status_mut() = status;
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
        if status == StatusCode::SERVICE_UNAVAILABLE {
            headers.insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
        }
        response
    }
}

#[cfg(test)]
mod tests;
