//! Serves HTTP requests with instances of one program.
//!
//! A request's guest first runs in the caller's own task, as far as it gets without waiting: for a short
//! function that is all of it, and nothing is handed between threads. A guest that waits or computes
//! longer goes on in the runtime's executor, with a deadline, until it has ended; after one that computed
//! long, the next ones begin there.

use std::collections::VecDeque;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use async_trait::async_trait;
use bytes::{Bytes, BytesMut};
use http::header::{CONTENT_LENGTH, HOST, HeaderValue};
use http::{HeaderMap, Request, Response};
use http_body::{Body as HttpBody, Frame, SizeHint};
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, TryAcquireError, oneshot};
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use wasmtime_wasi_http::p2::bindings::ProxyPre;
use wasmtime_wasi_http::p2::body::HyperOutgoingBody;

use crate::body::{self, Body, BodyError, Limited};
use crate::capabilities::environment::Words;
use crate::error::{CallError, Error};
use crate::guest::{Guest, environment};
use crate::live::{Answer, Fate, Idle, Live};
use crate::manners::Manners;
use crate::network::HttpService;
use crate::program::{Linked, Program};
use crate::quota::{Metered, Quota, Rationed, thread_time};
use crate::spec::Spec;

/// Serves HTTP requests. Clones are the same handler.
#[derive(Clone)]
pub struct Handler(Arc<Inner>);

struct Inner {
    program: Arc<Program>,
    linked: ProxyPre<Guest>,
    words: Words,
    /// Without its variables and arguments, which are `words`.
    spec: Spec,
    quota: Option<Arc<Quota>>,
    concurrency: Arc<Semaphore>,
    idle: Idle,
    manners: Manners,
    in_flight: AtomicU64,
    ended: Notify,
    killed: CancellationToken,
}

impl Program {
    /// A handler that serves requests as `spec` says.
    ///
    /// # Errors
    /// If the program serves no HTTP or a mount cannot be opened.
    pub fn handler(self: &Arc<Self>, mut spec: Spec) -> Result<Handler, Error> {
        let Linked::Http(linked) = &self.linked else {
            return Err(Error::Kind { wanted: "served", found: self.kind().as_str() });
        };
        spec.env = environment(spec.env);
        // Tells about mounts now instead of at the first request.
        let words = Words::take(&mut spec);
        drop(Guest::store(&self.shared, &spec, &words)?);
        // Requests that a guest sends itself, or a crowd, must leave room for its neighbours.
        let most = match spec.http.max_concurrency {
            0 => self.shared.fair_share(),
            most => most,
        };
        Ok(Handler(Arc::new(Inner {
            program: Arc::clone(self),
            linked: linked.clone(),
            quota: spec.cpu_millis.map(|millis| Arc::new(Quota::new(millis))),
            concurrency: Arc::new(Semaphore::new(most as usize)),
            idle: Idle::new(spec.reuse),
            manners: Manners::default(),
            in_flight: AtomicU64::new(0),
            ended: Notify::new(),
            killed: CancellationToken::new(),
            words,
            spec,
        })))
    }
}

impl Handler {
    /// Serves one request. The response's body may still be streaming; dropping it before its end, or
    /// dropping this future, ends the guest.
    ///
    /// # Errors
    /// If there is no response: see [`CallError::status`] for what to tell the client.
    pub async fn call<B>(&self, request: Request<B>) -> Result<Response<Body>, CallError>
    where
        B: HttpBody<Data = Bytes> + Send + Unpin + 'static,
        B::Error: Into<BodyError>,
    {
        let inner = &self.0;
        let deadline = Instant::now() + inner.spec.http.timeout;
        let request = accept(request, &inner.spec)?;
        let ticket = admit(inner, deadline).await?;
        inner.program.shared.counters.requests.add(1);
        inner.spec.usage.add_request();

        let (sender, receiver) = oneshot::channel();
        let fate = Arc::new(Fate::new());
        let guest = serve(Arc::clone(inner), request, sender, Arc::clone(&fate));
        let shared = &inner.program.shared;
        let guest = Metered::new(shared, &inner.spec.usage, inner.quota.clone(), guest);
        let over = |most| Err(CallError::OverCpu(most));
        let mut guest = Rationed::new(guest, inner.spec.http.max_cpu, over);
        if inner.manners.begins_elsewhere() {
            return stream(inner, guest, ticket, receiver, fate, deadline).await;
        }
        let start = thread_time();
        let first = std::future::poll_fn(|cx| Poll::Ready(Pin::new(&mut guest).poll(cx))).await;
        inner.manners.took(thread_time().saturating_sub(start));
        match first {
            Poll::Ready(result) => {
                result.inspect_err(|error| count(inner, error)).and_then(|()| complete(receiver, inner))
            }
            Poll::Pending => stream(inner, guest, ticket, receiver, fate, deadline).await,
        }
    }

    /// Requests in the guest now.
    pub fn in_flight(&self) -> u64 {
        self.0.in_flight.load(Ordering::Relaxed)
    }

    /// The program served.
    pub fn program(&self) -> &Arc<Program> {
        &self.0.program
    }

    /// What the guest was given, but for its variables and arguments.
    pub fn spec(&self) -> &Spec {
        &self.0.spec
    }

    /// Takes no more requests, waits up to `grace` for those in the guest, and ends the rest.
    pub async fn stop(&self, grace: Duration) {
        self.0.concurrency.close();
        let _ = tokio::time::timeout(grace, self.drained()).await;
        self.0.killed.cancel();
        self.0.idle.clear();
        // Ended guests leave within two ticks; a caller's own task is not waited for longer than that.
        let _ = tokio::time::timeout(AFTER_KILL, self.drained()).await;
    }

    async fn drained(&self) {
        loop {
            let ended = self.0.ended.notified();
            if self.in_flight() == 0 {
                return;
            }
            ended.await;
        }
    }
}

/// Longest wait for ended guests to be gone.
const AFTER_KILL: Duration = Duration::from_millis(100);

#[async_trait]
impl HttpService for Handler {
    async fn call(&self, request: Request<Body>) -> Result<Response<Body>, CallError> {
        Handler::call(self, request).await
    }
}

/// A request's place in the handler.
struct Ticket {
    inner: Arc<Inner>,
    _permit: OwnedSemaphorePermit,
}

impl Drop for Ticket {
    fn drop(&mut self) {
        if self.inner.in_flight.fetch_sub(1, Ordering::Relaxed) == 1 {
            self.inner.ended.notify_waiters();
        }
    }
}

async fn admit(inner: &Arc<Inner>, deadline: Instant) -> Result<Ticket, CallError> {
    let permit = match Arc::clone(&inner.concurrency).try_acquire_owned() {
        Ok(permit) => permit,
        Err(TryAcquireError::Closed) => return Err(CallError::Stopped),
        Err(TryAcquireError::NoPermits) => wait_turn(inner, deadline).await?,
    };
    inner.in_flight.fetch_add(1, Ordering::Relaxed);
    Ok(Ticket { inner: Arc::clone(inner), _permit: permit })
}

async fn wait_turn(inner: &Inner, deadline: Instant) -> Result<OwnedSemaphorePermit, CallError> {
    let permit = Arc::clone(&inner.concurrency).acquire_owned();
    match tokio::time::timeout_at(deadline, permit).await {
        Ok(permit) => permit.map_err(|_| CallError::Stopped),
        Err(_) => Err(CallError::Busy(inner.spec.http.timeout)),
    }
}

/// The request as the guest gets it: within its limits, and with an authority.
pub(crate) fn accept<B: HttpBody>(
    mut request: Request<B>,
    spec: &Spec,
) -> Result<Request<Limited<B>>, CallError> {
    let most = spec.http.max_header_bytes;
    if header_bytes(request.headers()) > most {
        return Err(CallError::TooLarge { what: "headers are", limit: most as u64 });
    }
    let limit = spec.http.max_request_body;
    if request.body().size_hint().lower() > limit {
        return Err(CallError::TooLarge { what: "body is", limit });
    }
    if request.uri().authority().is_none() && !request.headers().contains_key(HOST) {
        request.headers_mut().insert(HOST, HeaderValue::from_static("localhost"));
    }
    Ok(request.map(|body| Limited::new(body, limit)))
}

fn header_bytes(headers: &HeaderMap) -> usize {
    headers.iter().map(|(name, value)| name.as_str().len() + value.len()).sum()
}

/// The life of one request's guest.
async fn serve<B>(
    inner: Arc<Inner>,
    request: Request<Limited<B>>,
    answer: oneshot::Sender<Answer>,
    fate: Arc<Fate>,
) -> Result<(), CallError>
where
    B: HttpBody<Data = Bytes> + Send + Unpin + 'static,
    B::Error: Into<BodyError>,
{
    let shared = &inner.program.shared;
    let mut live = match inner.idle.take() {
        Some(live) => live,
        None => Live::start(shared, &inner.linked, inner.program.weight, (&inner.spec, &inner.words)).await?,
    };
    // Declared after the instance, so that a guest cut short says so before its body's end is seen.
    let cut_short = CutShort(&fate);
    let result = live.serve(request, answer).await;
    std::mem::forget(cut_short);
    match &result {
        Ok(()) => inner.idle.put(shared, live),
        Err(error) => {
            let _ = fate.set(error.clone());
        }
    }
    result
}

struct CutShort<'a>(&'a Fate);

impl Drop for CutShort<'_> {
    fn drop(&mut self) {
        let _ = self.0.set(CallError::Stopped);
    }
}

fn head(answer: Answer) -> Result<Response<HyperOutgoingBody>, CallError> {
    answer.map_err(|code| CallError::Guest(format!("{code:?}")))
}

/// The response of a guest that has ended: its body is there in full.
fn complete(mut receiver: oneshot::Receiver<Answer>, inner: &Inner) -> Result<Response<Body>, CallError> {
    let response = receiver.try_recv().map_err(|_| CallError::NoResponse)?;
    let (parts, body) = head(response)?.into_parts();
    Ok(Response::from_parts(parts, gather(body, inner.spec.http.max_response_body)?))
}

/// Makes one piece of a body whose pieces are all there, so that it is sent with its length. What is not
/// there yet (the executor makes even ready channels wait now and then) follows as a stream.
fn gather(mut body: HyperOutgoingBody, limit: u64) -> Result<Body, CallError> {
    let mut cx = Context::from_waker(std::task::Waker::noop());
    let mut pieces = VecDeque::new();
    let rest = loop {
        match Pin::new(&mut body).poll_frame(&mut cx) {
            Poll::Ready(None) => break None,
            Poll::Ready(Some(Ok(frame))) => match frame.into_data() {
                Ok(data) => pieces.push_back(data),
                Err(trailers) => break Some(Rest::Last(Some(Ok(trailers)))),
            },
            Poll::Ready(Some(Err(error))) => break Some(Rest::Last(Some(Err(error.into())))),
            Poll::Pending => break Some(Rest::Body(body)),
        }
    };
    let length: usize = pieces.iter().map(Bytes::len).sum();
    if length as u64 > limit {
        return Err(CallError::ResponseTooLong(limit));
    }
    if let Some(rest) = rest {
        return Ok(body::boxed(Limited::new(Pieces { pieces, rest }, limit)));
    }
    Ok(match pieces.len() {
        0 => body::empty(),
        1 => body::full(pieces.pop_front().unwrap_or_default()),
        _ => {
            let mut whole = BytesMut::with_capacity(length);
            pieces.iter().for_each(|piece| whole.extend_from_slice(piece));
            body::full(whole)
        }
    })
}

/// Pieces that are there, and then the rest.
struct Pieces {
    pieces: VecDeque<Bytes>,
    rest: Rest,
}

enum Rest {
    Last(Option<Result<Frame<Bytes>, BodyError>>),
    Body(HyperOutgoingBody),
}

impl HttpBody for Pieces {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        if let Some(piece) = self.pieces.pop_front() {
            return Poll::Ready(Some(Ok(Frame::data(piece))));
        }
        match &mut self.rest {
            Rest::Last(last) => Poll::Ready(last.take()),
            Rest::Body(body) => {
                Pin::new(body).poll_frame(cx).map(|frame| frame.map(|result| result.map_err(Into::into)))
            }
        }
    }
}

/// Lets the guest go on in the executor and waits for its response's head.
async fn stream(
    inner: &Arc<Inner>,
    guest: Rationed<impl Future<Output = Result<(), CallError>> + Send + 'static>,
    ticket: Ticket,
    receiver: oneshot::Receiver<Answer>,
    fate: Arc<Fate>,
    deadline: Instant,
) -> Result<Response<Body>, CallError> {
    let timeout = inner.spec.http.timeout;
    let (this, outcome) = (Arc::clone(inner), Arc::clone(&fate));
    let task = inner.program.shared.executor().spawn(async move {
        let _ticket = ticket;
        // Outlives the choice below, so that why it ended is known before it is gone.
        let mut guest = guest;
        let result = tokio::select! {
            biased;
            result = &mut guest => result,
            () = this.killed.cancelled() => Err(CallError::Stopped),
            () = tokio::time::sleep_until(deadline) => Err(CallError::TimedOut(timeout)),
        };
        if let Err(error) = &result {
            count(&this, error);
            let _ = outcome.set(error.clone());
        }
        result
    });
    let mut task = Task(Some(task));
    let Ok(answer) = receiver.await else {
        return Err(task.error().await);
    };
    let (parts, body) = head(answer)?.into_parts();
    let has_length = parts.headers.contains_key(CONTENT_LENGTH);
    let body = Limited::new(body, inner.spec.http.max_response_body);
    let body = Streaming { body: Box::pin(body), fate, task, has_length };
    Ok(Response::from_parts(parts, body::boxed(body)))
}

/// A guest's task; it ends with its owner unless it was let go.
struct Task(Option<JoinHandle<Result<(), CallError>>>);

impl Task {
    /// Why a guest ended that set no response.
    async fn error(&mut self) -> CallError {
        let Some(task) = &mut self.0 else {
            return CallError::NoResponse;
        };
        match task.await {
            Ok(Ok(())) => CallError::NoResponse,
            Ok(Err(error)) => error,
            Err(error) => CallError::Trapped { message: error.to_string(), backtrace: String::new() },
        }
    }

    fn let_go(&mut self) {
        self.0 = None;
    }
}

impl Drop for Task {
    fn drop(&mut self) {
        if let Some(task) = &self.0 {
            task.abort();
        }
    }
}

/// The body of a guest that still runs.
struct Streaming {
    body: Pin<Box<Limited<HyperOutgoingBody>>>,
    fate: Arc<Fate>,
    task: Task,
    has_length: bool,
}

impl HttpBody for Streaming {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let frame = ready!(self.body.as_mut().poll_frame(cx));
        if frame.is_some() {
            return Poll::Ready(frame);
        }
        if let Some(error) = self.fate.get() {
            return Poll::Ready(Some(Err(error.clone().into())));
        }
        // What the guest does after its response is its own time, up to the deadline.
        self.task.let_go();
        Poll::Ready(None)
    }

    fn size_hint(&self) -> SizeHint {
        if self.has_length { self.body.size_hint() } else { SizeHint::default() }
    }
}

fn count(inner: &Inner, error: &CallError) {
    let counters = &inner.program.shared.counters;
    match error {
        CallError::Trapped { .. } => counters.traps.add(1),
        CallError::OutOfMemory => counters.out_of_memory.add(1),
        CallError::TimedOut(_) => counters.timeouts.add(1),
        CallError::OverCpu(_) => counters.over_cpu.add(1),
        _ => {}
    }
}
