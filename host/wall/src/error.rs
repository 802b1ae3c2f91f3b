//! What can go wrong with guests in other processes.

use std::time::Duration;

use http::StatusCode;

/// A guest could not be started behind the wall, or its worker was lost.
#[derive(Debug, Clone, thiserror::Error)]
pub enum Error {
    /// The worker process could not be started.
    #[error("cannot start a worker process: {0}")]
    Spawn(String),
    /// Workers of that namespace have ended too often.
    #[error("worker process ended {times} times in a row; the next is started in {wait:?}")]
    BackOff {
        /// How often.
        times: u32,
        /// Time until then.
        wait: Duration,
    },
    /// A guest with directories needs a wall that this kernel lacks.
    #[error("guests with directories need Landlock behind the wall, and this kernel has none")]
    Directories,
    /// The guest could not be started in the worker.
    #[error("{0}")]
    Guest(String),
    /// The worker ended while the guest ran.
    #[error("worker process ended: {0}")]
    Lost(String),
    /// The worker ended because the machine had no memory left.
    #[error("worker process was killed: the machine ran out of memory")]
    OutOfMemory,
    /// The worker ended because it took more memory than its guests may have together.
    #[error("worker process was killed: it took more memory than its guests may have together")]
    OverLimit,
    /// The worker runs as many guests as it may.
    #[error("worker process has {0} guests, which is the most")]
    Full(usize),
}

/// Why a request has no answer of a guest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    /// What to tell the client.
    pub status: StatusCode,
    /// Why, for the client and the log.
    pub text: String,
    /// The guest's frames, innermost first, for the log; may be empty.
    pub backtrace: String,
}

impl From<Error> for Fault {
    fn from(error: Error) -> Self {
        let status = match error {
            Error::BackOff { .. } | Error::Full(_) => StatusCode::SERVICE_UNAVAILABLE,
            Error::Lost(_) | Error::OutOfMemory | Error::OverLimit => StatusCode::BAD_GATEWAY,
            Error::Spawn(_) | Error::Directories | Error::Guest(_) => StatusCode::INTERNAL_SERVER_ERROR,
        };
        Self { status, text: error.to_string(), backtrace: String::new() }
    }
}
