//! Serves HTTP requests with a command, which is started for each: the request's head in variables and its body on
//! standard input, the answer on standard output (CGI/1.1, RFC 3875, which WAGI and Go's `net/http/cgi` speak).
//!
//! For languages that make WASI 0.1 commands and no components. An instance starts from nothing for every request;
//! limits are those of a [`Handler`](crate::Handler), and an answer's body is streamed while the command runs.

mod answer;
mod head;

use std::io;
use std::sync::Arc;
use std::time::Duration;

use futures::TryStreamExt;
use http::{Request, Response};
use http_body::Body as HttpBody;
use http_body_util::BodyExt;
use tokio::sync::Semaphore;
use tokio::time::{Instant, timeout_at};
use tokio_util::io::StreamReader;
use tokio_util::task::AbortOnDropHandle;

use self::answer::{Answer, Output};
use crate::body::{self, Body, Limited, TooLong};
use crate::error::{CallError, Error};
use crate::exit::{Exit, ExitReason, StopSignal};
use crate::handler::accept;
use crate::program::{Linked, Program};
use crate::spec::{Spec, Stdin};

/// Most bytes of a body whose length nobody said: it is gathered first, as a command must be told the length.
const MAX_GATHERED: u64 = 8 << 20;

/// Starts a command for each HTTP request. Clones are the same.
#[derive(Clone)]
pub struct Cgi(Arc<Inner>);

struct Inner {
    program: Arc<Program>,
    spec: Spec,
    turns: Arc<Semaphore>,
}

impl Program {
    /// Serves requests by starting this command for each, as `spec` says.
    ///
    /// # Errors
    /// If the program is no command.
    pub fn cgi(self: &Arc<Self>, spec: Spec) -> Result<Cgi, Error> {
        if let Linked::Http(_) = &self.linked {
            return Err(Error::Kind { wanted: "started for each request", found: self.kind().as_str() });
        }
        let most = match spec.http.max_concurrency {
            0 => self.shared.fair_share(),
            most => most,
        };
        let turns = Arc::new(Semaphore::new(most as usize));
        Ok(Cgi(Arc::new(Inner { program: Arc::clone(self), spec, turns })))
    }
}

impl Cgi {
    /// Serves one request. Dropping this future, or the answer's body before its end, ends the command.
    ///
    /// # Errors
    /// If there is no answer: see [`CallError::status`] for what to tell the client.
    pub async fn call(&self, request: Request<Body>) -> Result<Response<Body>, CallError> {
        let inner = &self.0;
        let limits = &inner.spec.http;
        let deadline = Instant::now() + limits.timeout;
        let (parts, body) = accept(request, &inner.spec)?.into_parts();
        let turn = timeout_at(deadline, Arc::clone(&inner.turns).acquire_owned()).await;
        let turn = turn.map_err(|_| CallError::Busy(limits.timeout))?.map_err(|_| CallError::Stopped)?;
        inner.program.shared.counters.requests.add(1);
        inner.spec.usage.add_request();

        let (length, body) = match timeout_at(deadline, sized(body::boxed(body))).await {
            Ok(sized) => sized?,
            Err(_) => return Err(CallError::TimedOut(limits.timeout)),
        };
        let output = Output::new(limits);
        let mut spec = inner.spec.clone();
        spec.env.extend(head::variables(&parts, length));
        spec.stdin = (length > 0)
            .then(|| Stdin::new(StreamReader::new(body.into_data_stream().map_err(io::Error::other))));
        spec.stdout = Arc::new(output.clone());
        spec.run_timeout = Some(deadline.saturating_duration_since(Instant::now()));
        let (program, answered) = (Arc::clone(&inner.program), output.clone());
        let command = async move {
            let (timeout, most) = (spec.http.timeout, spec.http.max_cpu);
            let ended = program.run_for(spec, StopSignal::new(), most).await;
            answered.end(outcome(ended, timeout));
            drop(turn);
        };
        let command = AbortOnDropHandle::new(inner.program.shared.executor().spawn(command));
        let head = output.head().await?;
        Ok(head.map(|()| body::boxed(Answer::new(output, command))))
    }

    /// The program that is started.
    pub fn program(&self) -> &Arc<Program> {
        &self.0.program
    }
}

/// A body and how long it is.
async fn sized(body: Body) -> Result<(u64, Body), CallError> {
    if let Some(length) = body.size_hint().exact() {
        return Ok((length, body));
    }
    let whole = match body::boxed(Limited::new(body, MAX_GATHERED)).collect().await {
        Ok(whole) => whole.to_bytes(),
        Err(error) => {
            return Err(match error.downcast_ref::<TooLong>() {
                Some(TooLong { limit }) => CallError::TooLarge { what: "body is", limit: *limit },
                None => CallError::BadRequest(error.to_string()),
            });
        }
    };
    Ok((whole.len() as u64, body::full(whole)))
}

/// What the end of a command means to its answer.
fn outcome(ended: Result<Exit, Error>, timeout: Duration) -> Result<(), CallError> {
    let exit = ended.map_err(|error| match error {
        Error::OverCpu(most) => CallError::OverCpu(most),
        Error::Busy { waited, .. } => CallError::Busy(waited),
        other => CallError::Instantiate(other.to_string()),
    })?;
    match exit.reason {
        ExitReason::Completed if exit.code == 0 => Ok(()),
        ExitReason::Completed => Err(CallError::Guest(format!("status {}", exit.code))),
        ExitReason::Trapped { message, backtrace } => Err(CallError::Trapped { message, backtrace }),
        ExitReason::OutOfMemory => Err(CallError::OutOfMemory),
        ExitReason::TimedOut => Err(CallError::TimedOut(timeout)),
        ExitReason::Stopped => Err(CallError::Stopped),
    }
}
