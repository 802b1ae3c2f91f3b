//! The members of an etcd, and which of them is asked.
//!
//! All requests go to one member until it fails; then to the next. A read is asked again there, because asking
//! twice does no harm. A write is sent again only if it never left: otherwise it may have happened.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tonic::transport::{Channel, Endpoint};
use tonic::{Code, ConnectError, Response, Status};

use super::{REQUEST_LIMIT, RETRY_SHORTEST};
use crate::Error;

/// Longest wait for one member's answer to a read while there are others to ask.
const ATTEMPT_LIMIT: Duration = Duration::from_secs(3);

pub(super) struct Members {
    channels: Vec<Channel>,
    current: AtomicUsize,
}

impl Members {
    /// Members that are connected to when they are needed.
    pub(super) fn new(endpoints: &[Endpoint]) -> Self {
        let channels = endpoints.iter().map(Endpoint::connect_lazy).collect();
        Self { channels, current: AtomicUsize::new(0) }
    }

    /// The member to ask now, with the number to blame if it fails.
    pub(super) fn pick(&self) -> (usize, Channel) {
        let number = self.current.load(Ordering::Relaxed);
        (number, self.channels[number].clone())
    }

    /// Has the next member asked from now on, unless somebody else saw to that already.
    pub(super) fn failed(&self, number: usize) {
        let next = (number + 1) % self.channels.len();
        // Lost to another who found out as well.
        let _ = self.current.compare_exchange(number, next, Ordering::Relaxed, Ordering::Relaxed);
    }

    /// Asks until a member answers, each at most about once. The inner error is etcd's own answer.
    pub(super) async fn read<T, F>(
        &self,
        ask: impl Fn(Channel) -> F + Send + Sync,
    ) -> Result<Result<T, Status>, Error>
    where
        F: Future<Output = Result<Response<T>, Status>> + Send,
    {
        let limit = if self.channels.len() > 1 { ATTEMPT_LIMIT } else { REQUEST_LIMIT };
        let mut attempts = self.channels.len();
        loop {
            let (number, channel) = self.pick();
            let why = match tokio::time::timeout(limit, ask(channel)).await {
                Ok(Ok(response)) => return Ok(Ok(response.into_inner())),
                Ok(Err(status)) if is_answer(&status) => return Ok(Err(status)),
                Ok(Err(status)) => said(&status),
                Err(_) => format!("no answer in {limit:?}"),
            };
            self.failed(number);
            if attempts == 0 {
                return Err(Error::Backend(format!("etcd: {why}")));
            }
            attempts -= 1;
            tokio::time::sleep(RETRY_SHORTEST).await;
        }
    }

    /// Sends a write, to another member if the first cannot be reached.
    pub(super) async fn write<T, F>(
        &self,
        send: impl Fn(Channel) -> F + Send + Sync,
    ) -> Result<Result<T, Status>, Error>
    where
        F: Future<Output = Result<Response<T>, Status>> + Send,
    {
        let unknown =
            |why: String| Error::Backend(format!("etcd: {why}; whether the write happened is not known"));
        let mut attempts = self.channels.len();
        loop {
            let (number, channel) = self.pick();
            match tokio::time::timeout(REQUEST_LIMIT, send(channel)).await {
                Ok(Ok(response)) => return Ok(Ok(response.into_inner())),
                Ok(Err(status)) if is_answer(&status) => return Ok(Err(status)),
                Ok(Err(status)) => {
                    self.failed(number);
                    if !never_left(&status) {
                        return Err(unknown(said(&status)));
                    }
                    if attempts == 0 {
                        return Err(Error::Backend(format!("etcd: {}", said(&status))));
                    }
                }
                Err(_) => {
                    self.failed(number);
                    return Err(unknown(format!("no answer in {REQUEST_LIMIT:?}")));
                }
            }
            attempts -= 1;
        }
    }
}

/// Whether etcd itself decided so, and another member would say the same.
fn is_answer(status: &Status) -> bool {
    matches!(
        status.code(),
        Code::OutOfRange
            | Code::InvalidArgument
            | Code::NotFound
            | Code::AlreadyExists
            | Code::FailedPrecondition
            | Code::PermissionDenied
            | Code::Unauthenticated
            | Code::ResourceExhausted
    )
}

/// Whether there was no connection to send the request on.
fn never_left(status: &Status) -> bool {
    let mut cause = std::error::Error::source(status);
    while let Some(error) = cause {
        if error.is::<ConnectError>() {
            return true;
        }
        cause = error.source();
    }
    false
}

/// What a status says, with its causes.
fn said(status: &Status) -> String {
    let mut out = status.message().to_string();
    let mut cause = std::error::Error::source(status);
    while let Some(error) = cause {
        let text = error.to_string();
        if !out.contains(&text) {
            out = format!("{out}: {text}");
        }
        cause = error.source();
    }
    out
}
