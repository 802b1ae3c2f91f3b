//! Requests to revisions that run as pods: wait for one with room, then pass the request on.

use std::{
    sync::{
        Arc,
        atomic::{
            AtomicUsize,
            Ordering::{Relaxed, SeqCst},
        },
    },
    time::Duration,
};

use http::{HeaderValue, Method, Request, Response, StatusCode, Uri, Version, header, request::Parts};
use http_body_util::BodyExt;
use hyper::upgrade::OnUpgrade;
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::{TokioExecutor, TokioIo, TokioTimer},
};
use tokio::time::{Instant, timeout_at};
use wasmk_api::http::{strip_hop_by_hop, strip_request, wants_upgrade};

use super::{
    Refusal,
    body::{Held, Lent},
};
use crate::{
    executor::{Body, Prepared},
    fleet::{Backend, Member},
};

/// Requests of one revision that may wait for a pod at the same time.
const MAX_WAITING: i64 = 10_000;
/// Longest time to reach a pod that should be there.
const CONNECT: Duration = Duration::from_secs(5);
/// Idle connections kept to one pod.
const IDLE_CONNECTIONS: usize = 64;
/// Pods that a request is tried on at the most.
const ATTEMPTS: usize = 8;
/// Pause before a request is tried again.
const BETWEEN: Duration = Duration::from_millis(20);

/// Passes requests on to pods.
pub(super) struct Proxy {
    http1: Client<HttpConnector, Lent>,
    http2: Client<HttpConnector, Lent>,
    turn: AtomicUsize,
}

/// Where a request can go now.
pub(super) enum Way {
    /// To a program of this process.
    InPlace(Arc<Prepared>),
    /// To a pod, which counts it until the slot is dropped.
    Pod(Slot),
}

/// A request's place at a pod.
pub(super) struct Slot {
    member: Arc<Member>,
    pub(super) backend: Arc<Backend>,
}

impl Drop for Slot {
    fn drop(&mut self) {
        // Either this sees the one that waits, or that one sees the room: hence the strict order.
        self.backend.in_flight.fetch_sub(1, SeqCst);
        if self.member.waiting.load(SeqCst) > 0 {
            self.member.freed.notify_one();
        }
    }
}

impl Proxy {
    pub(super) fn new() -> Self {
        let client = |http2: bool| {
            let mut connector = HttpConnector::new();
            connector.set_connect_timeout(Some(CONNECT));
            connector.set_nodelay(true);
            Client::builder(TokioExecutor::new())
                .pool_max_idle_per_host(IDLE_CONNECTIONS)
                .pool_timer(TokioTimer::new())
                .http2_only(http2)
                .build(connector)
        };
        Self { http1: client(false), http2: client(true), turn: AtomicUsize::new(0) }
    }

    /// Where a member's next request can go: at once, or when a pod is ready and has room. First come, first
    /// served: nobody overtakes those that wait.
    pub(super) async fn way(&self, member: &Arc<Member>, deadline: Instant) -> Result<Way, Refusal> {
        if let Some(prepared) = &*member.in_place() {
            return Ok(Way::InPlace(prepared.clone()));
        }
        if member.waiting.load(Relaxed) == 0
            && let Some(way) = self.now(member)
        {
            return Ok(way);
        }
        let _place = Place::take(member).ok_or(Refusal::QueueFull)?;
        timeout_at(deadline, self.in_turn(member)).await.unwrap_or(Err(Refusal::NoPod))
    }

    /// The way of a request that had to wait, when its turn has come.
    async fn in_turn(&self, member: &Arc<Member>) -> Result<Way, Refusal> {
        let _first = member.first.lock().await;
        let mut changes = member.backends.subscribe();
        loop {
            // Asked for before looking, so that no change in between is missed.
            let freed = member.freed.notified();
            tokio::pin!(freed);
            freed.as_mut().enable();
            changes.mark_unchanged();
            if let Some(way) = self.now(member) {
                return Ok(way);
            }
            tokio::select! {
                () = freed => {}
                _ = changes.changed() => {}
            }
            if member.is_gone() {
                return Err(Refusal::Gone);
            }
        }
    }

    fn now(&self, member: &Arc<Member>) -> Option<Way> {
        if let Some(prepared) = &*member.in_place() {
            return Some(Way::InPlace(prepared.clone()));
        }
        let backends = member.backends.borrow().clone();
        let most = member.limits().concurrency;
        let start = self.turn.fetch_add(1, Relaxed);
        // Two pods in turn, the less busy of them; with a limit, any that has room.
        let order = (0..backends.len()).map(|i| &backends[start.wrapping_add(i) % backends.len()]);
        let mut candidates: Vec<&Arc<Backend>> =
            if most > 0 { order.collect() } else { order.take(2).collect() };
        candidates.sort_by_key(|b| b.in_flight.load(Relaxed));
        let backend = candidates.into_iter().find(|b| {
            let before = b.in_flight.fetch_add(1, SeqCst);
            let room = most == 0 || before < most;
            if !room {
                b.in_flight.fetch_sub(1, Relaxed);
            }
            room
        })?;
        Some(Way::Pod(Slot { member: member.clone(), backend: backend.clone() }))
    }

    /// Passes a request on. A pod that cannot be reached is no failure as long as there is another, or one comes.
    pub(super) async fn call(
        &self,
        member: &Arc<Member>,
        mut slot: Slot,
        request: Request<Body>,
        held: &mut Held,
        deadline: Instant,
    ) -> Result<Response<Body>, Refusal> {
        let (mut parts, mut body) = request.into_parts();
        let upgrade = wants_upgrade(parts.version, &parts.headers)
            .then(|| parts.extensions.remove::<OnUpgrade>())
            .flatten();
        let head_limit =
            member.limits().response_start.map_or(deadline, |span| deadline.min(Instant::now() + span));
        let h2c = member.limits().h2c;
        for attempt in 1.. {
            let pod = slot.backend.address;
            let (lent, owner) = Lent::new(body);
            let request = addressed(&parts, lent, &slot, upgrade.is_some(), h2c).ok_or(Refusal::BadPath)?;
            let client = if h2c { &self.http2 } else { &self.http1 };
            match timeout_at(head_limit, client.request(request)).await {
                Err(_) => return Err(Refusal::TooSlow),
                Ok(Ok(response)) => {
                    held.slot = Some(slot);
                    return Ok(answered(response, upgrade, held));
                }
                Ok(Err(error)) => {
                    let unread = owner.lock().take();
                    let Some(unread) = unread.filter(|_| error.is_connect() && attempt < ATTEMPTS) else {
                        return Err(Refusal::Pod(format!("{pod}: {error}")));
                    };
                    body = unread;
                }
            }
            drop(slot);
            tokio::time::sleep(BETWEEN).await;
            slot = match self.way(member, deadline).await? {
                Way::Pod(slot) => slot,
                Way::InPlace(_) => return Err(Refusal::NoPod),
            };
        }
        Err(Refusal::NoPod)
    }
}

/// The answer; one that switches protocols takes the connection, and its request stays under way as long.
fn answered(
    mut response: Response<hyper::body::Incoming>,
    upgrade: Option<OnUpgrade>,
    held: &mut Held,
) -> Response<Body> {
    if response.status() == StatusCode::SWITCHING_PROTOCOLS
        && let Some(client) = upgrade
    {
        let pod = hyper::upgrade::on(&mut response);
        let held = std::mem::take(held);
        tokio::spawn(async move {
            let (Ok(client), Ok(pod)) = tokio::join!(client, pod) else { return };
            let (mut client, mut pod) = (TokioIo::new(client), TokioIo::new(pod));
            // Either side may end it; there is nobody to tell.
            let _ = tokio::io::copy_bidirectional(&mut client, &mut pod).await;
            drop(held);
        });
    } else {
        strip_hop_by_hop(response.headers_mut());
    }
    response.map(|body| body.map_err(Into::into).boxed_unsync())
}

/// A place in a member's queue, given back when dropped.
struct Place(Arc<Member>);

impl Place {
    fn take(member: &Arc<Member>) -> Option<Self> {
        let place = Self(member.clone());
        let before = member.waiting.fetch_add(1, SeqCst);
        (before < MAX_WAITING).then_some(place)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.waiting.fetch_sub(1, Relaxed);
    }
}

/// The request as the pod gets it: to the pod's address, with the caller's Host.
fn addressed(parts: &Parts, body: Lent, slot: &Slot, upgrade: bool, h2c: bool) -> Option<Request<Lent>> {
    let path = parts.uri.path_and_query().map_or("/", |p| p.as_str());
    let uri: Uri = format!("http://{}{path}", slot.backend.address).parse().ok()?;
    let mut request = Request::new(body);
    *request.method_mut() = if parts.method == Method::CONNECT { return None } else { parts.method.clone() };
    *request.uri_mut() = uri;
    *request.version_mut() = if h2c { Version::HTTP_2 } else { Version::HTTP_11 };
    let mut headers = parts.headers.clone();
    if let Some(authority) = parts.uri.authority() {
        headers.entry(header::HOST).or_insert(HeaderValue::from_str(authority.as_str()).ok()?);
    }
    let trailers = headers.get(header::TE).is_some_and(|te| te.as_bytes().eq_ignore_ascii_case(b"trailers"));
    strip_request(&mut headers, upgrade);
    if trailers && h2c {
        headers.insert(header::TE, HeaderValue::from_static("trailers"));
    }
    let key = &slot.member.key;
    for (name, value) in
        [("knative-serving-revision", &key.name), ("knative-serving-namespace", &key.namespace)]
    {
        headers.insert(name, HeaderValue::from_str(value).ok()?);
    }
    *request.headers_mut() = headers;
    Some(request)
}
