//! The time of day as controllers see it.

use wasmk_api::Timestamp;

/// Where the present comes from.
#[derive(Clone, Copy, Debug)]
pub enum Clock {
    /// The system's clock.
    System,
    /// A start time plus what the async runtime's clock has counted since: stands still
    /// while a test has paused it.
    Runtime {
        /// The time of day at `since`.
        start: Timestamp,
        /// When counting began.
        since: tokio::time::Instant,
    },
}

impl Clock {
    /// A clock that follows the async runtime, beginning now.
    pub fn runtime() -> Self {
        Self::Runtime { start: Timestamp::now(), since: tokio::time::Instant::now() }
    }

    /// The present.
    pub fn now(&self) -> Timestamp {
        match self {
            Self::System => Timestamp::now(),
            Self::Runtime { start, since } => start.after(since.elapsed()),
        }
    }
}
