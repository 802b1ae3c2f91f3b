//! One instance of an HTTP guest, and the few that wait to be used again.

use std::collections::VecDeque;
use std::sync::{Arc, OnceLock, Weak};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{Request, Response};
use http_body::Body as HttpBody;
use http_body_util::BodyExt;
use parking_lot::Mutex;
use tokio::sync::{OwnedSemaphorePermit, oneshot};
use wasmtime::Store;
use wasmtime_wasi_http::p2::bindings::http::types::{ErrorCode, Scheme};
use wasmtime_wasi_http::p2::bindings::{Proxy, ProxyPre};
use wasmtime_wasi_http::p2::body::HyperOutgoingBody;
use wasmtime_wasi_http::{Error as HttpError, WasiHttpView};

use crate::body::{BodyError, Limited, TooLong};
use crate::capabilities::environment::Words;
use crate::error::{CallError, Error};
use crate::guest::{Guest, TICKS};
use crate::shared::Shared;
use crate::spec::{Reuse, Spec};
use crate::trap::{self, Failure};

/// What a guest sets as its response.
pub(crate) type Answer = Result<Response<HyperOutgoingBody>, ErrorCode>;

/// Why a guest ended, if not well. Set before its instance goes, so that whoever reads the end of its
/// response's body knows whether that is the whole body.
pub(crate) type Fate = OnceLock<CallError>;

/// An instance that can take a request.
pub(crate) struct Live {
    store: Store<Guest>,
    proxy: Proxy,
    served: u32,
    _slot: OwnedSemaphorePermit,
}

impl Live {
    pub(crate) async fn start(
        shared: &Shared,
        linked: &ProxyPre<Guest>,
        weight: u32,
        (spec, words): (&Spec, &Words),
    ) -> Result<Self, CallError> {
        let slot = shared.slot(weight).await.map_err(|error| match error {
            Error::Busy { waited, .. } => CallError::Busy(waited),
            other => CallError::Instantiate(other.to_string()),
        })?;
        let started = Instant::now();
        let mut store =
            Guest::store(shared, spec, words).map_err(|error| CallError::Instantiate(error.to_string()))?;
        match linked.instantiate_async(&mut store).await {
            Ok(proxy) => {
                shared.phases.instantiate.record(started.elapsed());
                Ok(Self { store, proxy, served: 0, _slot: slot })
            }
            Err(_) if store.data().limits.refused() => Err(CallError::OutOfMemory),
            Err(error) => Err(CallError::Instantiate(format!("{error:#}"))),
        }
    }

    /// Hands the guest one request. `answer` gets the response's head as soon as the guest sets it.
    pub(crate) async fn serve<B>(
        &mut self,
        request: Request<Limited<B>>,
        answer: oneshot::Sender<Answer>,
    ) -> Result<(), CallError>
    where
        B: HttpBody<Data = Bytes> + Send + Unpin + 'static,
        B::Error: Into<BodyError>,
    {
        self.served += 1;
        self.store.set_epoch_deadline(TICKS);
        self.store.data_mut().begin_request();
        let mut http = self.store.data_mut().http();
        let bad = |error: wasmtime::Error| CallError::BadRequest(format!("{error:#}"));
        let request = http.new_incoming_request(Scheme::Http, request.map(incoming)).map_err(bad)?;
        let answer = http.new_response_outparam(answer).map_err(bad)?;
        let handler = self.proxy.wasi_http_incoming_handler();
        match handler.call_handle(&mut self.store, request, answer).await {
            Ok(()) => Ok(()),
            Err(error) => Err(self.failed(&error)),
        }
    }

    fn failed(&mut self, error: &wasmtime::Error) -> CallError {
        match trap::read(error, self.store.data().limits.refused()) {
            Failure::OutOfMemory => CallError::OutOfMemory,
            Failure::Trapped { message, backtrace } => CallError::Trapped { message, backtrace },
            Failure::Exit(status) => CallError::Trapped {
                message: format!("exited with status {status}"),
                backtrace: String::new(),
            },
        }
    }
}

fn incoming<B>(body: Limited<B>) -> impl HttpBody<Data = Bytes, Error = HttpError> + Send + 'static
where
    B: HttpBody<Data = Bytes> + Send + Unpin + 'static,
    B::Error: Into<BodyError>,
{
    body.map_err(|error: BodyError| match error.downcast_ref::<TooLong>() {
        Some(too_long) => HttpError::HttpRequestBodySize(Some(too_long.limit)),
        None => HttpError::InternalError(Some(error.to_string())),
    })
}

/// Instances between two requests, the most recently used last.
pub(crate) struct Idle {
    reuse: Reuse,
    waiting: Arc<Mutex<Waiting>>,
}

#[derive(Default)]
struct Waiting {
    instances: VecDeque<(Instant, Live)>,
    swept: bool,
}

/// Most instances of one handler that wait.
const MAX_IDLE: usize = 64;

impl Idle {
    pub(crate) fn new(reuse: Reuse) -> Self {
        Self { reuse, waiting: Arc::default() }
    }

    pub(crate) fn take(&self) -> Option<Live> {
        match self.reuse {
            Reuse::Never => None,
            Reuse::Requests { .. } => self.waiting.lock().instances.pop_back().map(|(_, live)| live),
        }
    }

    /// Keeps an instance that has served well, if it may serve again.
    pub(crate) fn put(&self, shared: &Shared, live: Live) {
        let Reuse::Requests { most, idle } = self.reuse else {
            return;
        };
        if live.served >= most {
            return;
        }
        let start_sweeper = {
            let mut waiting = self.waiting.lock();
            if waiting.instances.len() >= MAX_IDLE {
                return;
            }
            waiting.instances.push_back((Instant::now(), live));
            !std::mem::replace(&mut waiting.swept, true)
        };
        if start_sweeper {
            shared.executor().spawn(sweep(Arc::downgrade(&self.waiting), idle));
        }
    }

    pub(crate) fn clear(&self) {
        let instances = std::mem::take(&mut self.waiting.lock().instances);
        drop(instances);
    }
}

/// Drops instances that waited longer than `idle`; ends when none is left.
async fn sweep(waiting: Weak<Mutex<Waiting>>, idle: Duration) {
    loop {
        tokio::time::sleep(idle).await;
        let Some(waiting) = waiting.upgrade() else {
            return;
        };
        let mut expired = Vec::new();
        let mut waiting = waiting.lock();
        while waiting.instances.front().is_some_and(|(since, _)| since.elapsed() >= idle) {
            expired.extend(waiting.instances.pop_front());
        }
        if waiting.instances.is_empty() {
            waiting.swept = false;
            return;
        }
    }
}
