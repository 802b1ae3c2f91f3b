//! Serves requests with guests in workers.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::header::{HeaderName, HeaderValue};
use http::uri::{Authority, Scheme};
use http::{Method, Request, Response, StatusCode, Uri};
use http_body::{Body as HttpBody, Frame, SizeHint};
use http_body_util::{BodyExt, Limited};
use hyper::body::Incoming;
use parking_lot::Mutex;
use wasmk_runtime::{Body, BodyError, Program, Spec};

use super::Wall;
use super::core::Worker;
use super::guest::Guest;
use super::slot::Slot;
use crate::error::{Error, Fault};
use crate::message::{FAULT_HEADER, GUEST_HEADER, Job, MAX_FAULT, ORIGIN_HEADER, WireFault, parse};

/// A worker tells itself when a guest is too slow; so long after that it is not believed any more.
const SLACK: Duration = Duration::from_secs(5);

/// Serves requests. Clones are the same handler.
#[derive(Clone)]
pub struct Handler(Arc<Inner>);

struct Inner {
    wall: Wall,
    slot: Arc<Slot>,
    job: Job,
    program: Arc<Program>,
    spec: Spec,
    serving: Mutex<Option<Arc<Serving>>>,
    starting: tokio::sync::Mutex<()>,
}

/// A guest that takes requests in a worker; dropping it ends the guest.
struct Serving {
    worker: Arc<Worker>,
    guest: Arc<Guest>,
    header: HeaderValue,
}

impl Drop for Serving {
    fn drop(&mut self) {
        self.worker.leave(&self.guest);
    }
}

impl Handler {
    pub(super) fn new(wall: Wall, slot: Arc<Slot>, job: Job, program: Arc<Program>, spec: Spec) -> Self {
        let (serving, starting) = (Mutex::default(), tokio::sync::Mutex::default());
        Self(Arc::new(Inner { wall, slot, job, program, spec, serving, starting }))
    }

    /// Serves one request, as [`wasmk_runtime::Handler::call`] does.
    ///
    /// # Errors
    /// If there is no response of the guest.
    pub async fn call(&self, request: Request<Body>) -> Result<Response<Body>, Fault> {
        if request.method() == Method::CONNECT {
            let text = "guests are no proxies".to_owned();
            return Err(Fault { status: StatusCode::METHOD_NOT_ALLOWED, text, backtrace: String::new() });
        }
        let limit = self.0.spec.http.timeout + SLACK;
        let serving = self.0.serving().await?;
        match tokio::time::timeout(limit, serving.call(request)).await {
            Ok(answer) => answer,
            Err(_) => {
                let text = format!("worker process did not answer within {limit:?}");
                Err(Fault { status: StatusCode::GATEWAY_TIMEOUT, text, backtrace: String::new() })
            }
        }
    }

    /// Starts the guest's worker if need be, and waits for its end.
    pub async fn ended(&self) -> Error {
        match self.0.serving().await {
            Ok(serving) => serving.worker.end().await,
            Err(error) => error,
        }
    }
}

impl Inner {
    async fn serving(&self) -> Result<Arc<Serving>, Error> {
        if let Some(serving) = self.ready() {
            return Ok(serving);
        }
        let _turn = self.starting.lock().await;
        if let Some(serving) = self.ready() {
            return Ok(serving);
        }
        let worker = self.slot.worker(&self.wall).await?;
        let guest = worker.enter(&self.spec)?;
        let header = HeaderValue::from(guest.number);
        let serving = Arc::new(Serving { worker, guest, header });
        serving.begin(self).await?;
        *self.serving.lock() = Some(Arc::clone(&serving));
        Ok(serving)
    }

    fn ready(&self) -> Option<Arc<Serving>> {
        let serving = self.serving.lock();
        serving.as_ref().filter(|serving| serving.worker.ending().is_none()).cloned()
    }
}

impl Serving {
    async fn begin(&self, inner: &Inner) -> Result<(), Error> {
        let begun = self.guest.beginning();
        let starting = inner.wall.starting(&self.guest, inner.job, &inner.program, &inner.spec, None).await;
        let (start, files) = starting?;
        self.worker.send(&start, files).await?;
        let failed = tokio::select! {
            biased;
            failed = begun => failed,
            error = self.worker.end() => return Err(error),
        };
        match failed {
            Ok(None) => Ok(()),
            Ok(Some(error)) => Err(Error::Guest(error)),
            Err(_) => Err(self.worker.end().await),
        }
    }

    async fn call(self: Arc<Self>, request: Request<Body>) -> Result<Response<Body>, Fault> {
        let lost = || Error::Lost("it takes no requests".into());
        let mut link = self.worker.link().ok_or_else(lost)?;
        let request = addressed(request, &self.header)?;
        let sent = async {
            link.ready().await?;
            link.send_request(request).await
        };
        match sent.await {
            Ok(response) if response.headers().contains_key(FAULT_HEADER) => Err(fault(response).await),
            Ok(response) => {
                let held = |body| wasmk_runtime::boxed(Held { body, _serving: Arc::clone(&self) });
                Ok(response.map(held))
            }
            Err(error) => Err(self.why(&error).await),
        }
    }

    /// Why a request was not answered at all.
    async fn why(&self, error: &hyper::Error) -> Fault {
        // The end of the worker is known a moment after that of its connections.
        match tokio::time::timeout(SLACK, self.worker.end()).await {
            Ok(ended) if error.is_closed() || error.is_canceled() || error.is_incomplete_message() => {
                ended.into()
            }
            Ok(ended) => ended.into(),
            Err(_) => {
                let text = format!("worker process: {error}");
                Fault { status: StatusCode::BAD_GATEWAY, text, backtrace: String::new() }
            }
        }
    }
}

/// The request with the number of the guest that it is for.
fn addressed(mut request: Request<Body>, guest: &HeaderValue) -> Result<Request<Body>, Fault> {
    let headers = request.headers_mut();
    headers.remove(ORIGIN_HEADER);
    headers.insert(HeaderName::from_static(GUEST_HEADER), guest.clone());
    if request.uri().authority().is_some() && request.uri().scheme().is_some() {
        return Ok(request);
    }
    let mut parts = request.uri().clone().into_parts();
    parts.scheme = Some(Scheme::HTTP);
    if parts.authority.is_none() {
        parts.authority = Some(Authority::from_static("guest"));
        request.headers_mut().insert(HeaderName::from_static(ORIGIN_HEADER), HeaderValue::from_static("1"));
    }
    *request.uri_mut() = Uri::from_parts(parts).map_err(|error| Fault {
        status: StatusCode::BAD_REQUEST,
        text: format!("request cannot be handed to the guest: {error}"),
        backtrace: String::new(),
    })?;
    Ok(request)
}

/// What a worker says in place of an answer.
async fn fault(response: Response<Incoming>) -> Fault {
    let (status, body) = (response.status(), response.into_body());
    let read = tokio::time::timeout(SLACK, Limited::new(body, MAX_FAULT).collect()).await;
    let said = match read {
        Ok(Ok(body)) => parse(&body.to_bytes()).ok(),
        _ => None,
    };
    let said = said.unwrap_or_else(|| WireFault {
        text: "worker process does not say why".into(),
        backtrace: String::new(),
    });
    Fault { status, text: said.text, backtrace: said.backtrace }
}

/// A body that keeps its guest.
struct Held {
    body: Incoming,
    _serving: Arc<Serving>,
}

impl HttpBody for Held {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        Pin::new(&mut self.body).poll_frame(cx).map_err(Into::into)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
