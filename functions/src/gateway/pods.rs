//! Requests to revisions that run as pods: wait for one, then pass the request on.

use std::{
    net::SocketAddr,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use http::{HeaderValue, Request, Response, StatusCode, Uri, Version, header};
use http_body::{Body as HttpBody, Frame, SizeHint};
use http_body_util::BodyExt;
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::{TokioExecutor, TokioTimer},
};
use tokio::time::{Instant, timeout_at};

use super::{plain, too_slow};
use crate::{
    executor::{Body, BoxError},
    fleet::{InFlight, Member},
};

/// Requests of one revision that may wait for a pod at the same time.
const MAX_WAITING: i64 = 10_000;
/// Longest wait for a pod, whatever the revision's own timeout.
const MAX_WAIT: Duration = Duration::from_secs(600);
/// Longest time to reach a pod that should be there.
const CONNECT: Duration = Duration::from_secs(5);
/// Idle connections kept to one pod.
const IDLE_CONNECTIONS: usize = 64;
/// Headers that concern one connection only (RFC 9110, 7.6.1).
const HOP_BY_HOP: [header::HeaderName; 5] =
    [header::CONNECTION, header::TE, header::TRAILER, header::TRANSFER_ENCODING, header::PROXY_AUTHORIZATION];

/// Passes requests on to pods.
pub(super) struct Proxy {
    client: Client<HttpConnector, Body>,
    turn: AtomicUsize,
}

impl Proxy {
    pub(super) fn new() -> Self {
        let mut connector = HttpConnector::new();
        connector.set_connect_timeout(Some(CONNECT));
        connector.set_nodelay(true);
        let client = Client::builder(TokioExecutor::new())
            .pool_max_idle_per_host(IDLE_CONNECTIONS)
            .pool_timer(TokioTimer::new())
            .build(connector);
        Self { client, turn: AtomicUsize::new(0) }
    }

    pub(super) async fn call(&self, member: &Arc<Member>, request: Request<Body>) -> Response<Body> {
        let deadline = Instant::now() + member.limits.timeout;
        let pods = match self.ready(member, deadline).await {
            Ok(pods) => pods,
            Err(response) => return response,
        };
        let pod = pods[self.turn.fetch_add(1, Relaxed) % pods.len()];
        let Some(request) = addressed(request, pod) else {
            return plain(StatusCode::BAD_REQUEST, "the request's path cannot be passed on\n");
        };
        match timeout_at(deadline, self.client.request(request)).await {
            Err(_) => too_slow(member),
            Ok(Ok(response)) => response.map(|body| body.map_err(Into::into).boxed_unsync()),
            Ok(Err(e)) => {
                plain(StatusCode::BAD_GATEWAY, &format!("{} at {pod} does not answer: {e}\n", member.key))
            }
        }
    }

    /// The member's pods, once there is one.
    async fn ready(
        &self,
        member: &Arc<Member>,
        deadline: Instant,
    ) -> Result<Arc<[SocketAddr]>, Response<Body>> {
        let now = member.backends.borrow().clone();
        if !now.is_empty() {
            return Ok(now);
        }
        let _place = Place::take(member).ok_or_else(full_up)?;
        let mut changes = member.backends.subscribe();
        let limit = deadline.min(Instant::now() + MAX_WAIT);
        match timeout_at(limit, changes.wait_for(|pods| !pods.is_empty())).await {
            Ok(Ok(pods)) => Ok(pods.clone()),
            Ok(Err(_)) | Err(_) => Err(too_slow(member)),
        }
    }
}

/// A place in a member's queue, given back when dropped.
struct Place(Arc<Member>);

impl Place {
    fn take(member: &Arc<Member>) -> Option<Self> {
        let place = Self(member.clone());
        let before = member.waiting.fetch_add(1, Relaxed);
        (before < MAX_WAITING).then_some(place)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.waiting.fetch_sub(1, Relaxed);
    }
}

fn full_up() -> Response<Body> {
    let mut response =
        plain(StatusCode::SERVICE_UNAVAILABLE, "too many requests wait for this function to start\n");
    response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
    response
}

/// The request as the pod gets it: HTTP/1.1, to the pod's address, with the caller's Host.
fn addressed(mut request: Request<Body>, pod: SocketAddr) -> Option<Request<Body>> {
    let path = request.uri().path_and_query().map_or("/", |p| p.as_str());
    let uri: Uri = format!("http://{pod}{path}").parse().ok()?;
    if let Some(authority) = request.uri().authority() {
        let host = HeaderValue::from_str(authority.as_str()).ok()?;
        request.headers_mut().entry(header::HOST).or_insert(host);
    }
    *request.uri_mut() = uri;
    *request.version_mut() = Version::HTTP_11;
    for name in &HOP_BY_HOP {
        request.headers_mut().remove(name);
    }
    Some(request)
}

/// A body that keeps its request counted as under way until it has been sent.
pub(super) struct Counted {
    body: Body,
    _in_flight: InFlight,
}

impl Counted {
    pub(super) fn new(body: Body, in_flight: InFlight) -> Self {
        Self { body, _in_flight: in_flight }
    }
}

impl HttpBody for Counted {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
