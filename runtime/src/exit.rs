//! How a run ends and how it is asked to end.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::sync::watch;

/// How a run ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exit {
    /// The guest's exit status; 137 when it was stopped or ran out of memory, 134 after a trap.
    pub code: i32,
    /// Why it ended.
    pub reason: ExitReason,
}

/// Why a run ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum ExitReason {
    /// The guest returned or called exit; the status says whether it is content.
    Completed,
    /// The guest did something that Wasm forbids, or reached `unreachable` (a panic, an abort).
    Trapped {
        /// What was forbidden, in one line.
        message: String,
        /// The guest's frames, innermost first, one a line; empty if there are none.
        backtrace: String,
    },
    /// The guest asked for more memory than its limit and could not go on.
    OutOfMemory,
    /// It was stopped from outside.
    Stopped,
    /// It ran longer than its [`Spec`](crate::Spec) allows.
    TimedOut,
}

/// Exit status of a guest that was killed, as a shell reports SIGKILL.
pub const KILLED: i32 = 137;
/// Exit status of a guest that trapped, as a shell reports SIGABRT.
pub const ABORTED: i32 = 134;

impl Exit {
    pub(crate) fn completed(code: i32) -> Self {
        Self { code, reason: ExitReason::Completed }
    }

    pub(crate) fn killed(reason: ExitReason) -> Self {
        Self { code: KILLED, reason }
    }

    /// Whether the guest ended by itself with status 0.
    pub fn success(&self) -> bool {
        self.code == 0
    }
}

impl fmt::Display for Exit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.reason {
            ExitReason::Completed => write!(f, "exited with status {}", self.code),
            ExitReason::Trapped { message, .. } => write!(f, "trapped: {message}"),
            ExitReason::OutOfMemory => f.write_str("ran out of its memory limit"),
            ExitReason::Stopped => f.write_str("was stopped"),
            ExitReason::TimedOut => f.write_str("ran longer than allowed"),
        }
    }
}

/// Asks running guests to end. Clones are the same signal; once given it stays given.
///
/// Wasm has no signals. What a guest can notice is the end of its standard input, so stopping closes
/// that first, gives the guest its grace, and then ends it wherever it is.
#[derive(Debug, Clone)]
pub struct StopSignal(Arc<watch::Sender<Option<Duration>>>);

impl Default for StopSignal {
    fn default() -> Self {
        Self::new()
    }
}

impl StopSignal {
    /// A signal not given yet.
    pub fn new() -> Self {
        Self(Arc::new(watch::Sender::new(None)))
    }

    /// Ends the guest after at most `grace`. A second call can only shorten the grace.
    pub fn stop(&self, grace: Duration) {
        self.0.send_if_modified(|current| {
            let sooner = current.is_none_or(|before| grace < before);
            if sooner {
                *current = Some(grace);
            }
            sooner
        });
    }

    /// Ends the guest now.
    pub fn kill(&self) {
        self.stop(Duration::ZERO);
    }

    /// Whether the signal was given.
    pub fn is_stopped(&self) -> bool {
        self.0.borrow().is_some()
    }

    /// Waits until the signal is given; the time the guest still has.
    pub async fn requested(&self) -> Duration {
        let mut receiver = self.0.subscribe();
        // The sender lives in `self`, so waiting cannot fail.
        match receiver.wait_for(Option::is_some).await {
            Ok(grace) => grace.unwrap_or_default(),
            Err(_) => Duration::ZERO,
        }
    }

    /// Waits until the signal is given and the grace is over.
    pub async fn expired(&self) {
        let mut receiver = self.0.subscribe();
        let started = tokio::time::Instant::now();
        let mut grace = self.requested().await;
        let requested = tokio::time::Instant::now();
        receiver.mark_unchanged();
        loop {
            tokio::select! {
                () = tokio::time::sleep_until(requested + grace) => return,
                changed = receiver.changed() => match changed {
                    Ok(()) => grace = receiver.borrow_and_update().unwrap_or_default(),
                    Err(_) => return tokio::time::sleep_until(started + grace).await,
                },
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn stop_can_be_shortened_but_not_prolonged() {
        let signal = StopSignal::new();
        signal.stop(Duration::from_secs(60));
        signal.stop(Duration::from_secs(90));
        assert_eq!(signal.requested().await, Duration::from_secs(60));

        let start = tokio::time::Instant::now();
        let other = signal.clone();
        let waiter = tokio::spawn(async move { other.expired().await });
        tokio::time::sleep(Duration::from_secs(1)).await;
        signal.kill();
        waiter.await.unwrap();
        assert!(start.elapsed() < Duration::from_secs(60));
    }

    #[test]
    fn exits_read_as_sentences() {
        let check = |exit: Exit, expect: &str| assert_eq!(exit.to_string(), expect);
        check(Exit::completed(3), "exited with status 3");
        check(Exit::killed(ExitReason::OutOfMemory), "ran out of its memory limit");
        check(Exit::killed(ExitReason::Stopped), "was stopped");
        check(Exit::killed(ExitReason::TimedOut), "ran longer than allowed");
    }
}
