//! The place of a worker: started when it is needed, and again when it has ended, but not too often.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Mutex;
use tokio::time::Instant;

use super::core::Worker;
use super::{Wall, start};
use crate::error::Error;
use crate::walls::Directory;

/// Wait before a worker is started again for the first time; doubled each time up to the longest.
const FIRST_WAIT: Duration = Duration::from_millis(100);
const LONGEST_WAIT: Duration = Duration::from_secs(30);
/// Waits up to this are waited; beyond it whoever wants the worker is told.
const PATIENCE: Duration = Duration::from_secs(1);
/// A worker that has lived so long did not fail at once.
const GOOD_LIFE: Duration = Duration::from_secs(60);
/// A worker without guests is ended after so long.
const IDLE: Duration = Duration::from_secs(30);

pub(super) struct Slot {
    pub(super) directories: Vec<Directory>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    worker: Option<Arc<Worker>>,
    failures: u32,
    not_before: Option<Instant>,
}

impl Slot {
    pub(super) fn new(directories: Vec<Directory>) -> Self {
        Self { directories, state: Mutex::default() }
    }

    /// Whether there is a worker, or there might be.
    pub(super) fn is_used(&self) -> bool {
        self.state.try_lock().map_or(true, |state| state.worker.is_some())
    }

    /// The worker, started if there is none.
    pub(super) async fn worker(self: &Arc<Self>, wall: &Wall) -> Result<Arc<Worker>, Error> {
        let mut state = self.state.lock().await;
        if let Some(worker) = &state.worker {
            if worker.ending().is_none() {
                return Ok(Arc::clone(worker));
            }
            let lived = worker.began.elapsed();
            state.failures = if lived > GOOD_LIFE { 1 } else { state.failures.saturating_add(1) };
            state.not_before = Some(Instant::now() + wait(state.failures));
            state.worker = None;
        }
        if let Some(at) = state.not_before {
            let left = at.saturating_duration_since(Instant::now());
            if left > PATIENCE {
                return Err(Error::BackOff { times: state.failures, wait: left });
            }
            tokio::time::sleep(left).await;
        }
        let worker = Arc::new(start::worker(wall, &self.directories).await?);
        state.worker = Some(Arc::clone(&worker));
        tokio::spawn(end_idle(Arc::downgrade(self), Arc::downgrade(&worker)));
        Ok(worker)
    }
}

fn wait(failures: u32) -> Duration {
    FIRST_WAIT.saturating_mul(1 << failures.saturating_sub(1).min(16)).min(LONGEST_WAIT)
}

/// Lets go of a worker that has had no guests for a while.
async fn end_idle(slot: std::sync::Weak<Slot>, worker: std::sync::Weak<Worker>) {
    let mut idle = false;
    loop {
        tokio::time::sleep(IDLE).await;
        let (Some(slot), Some(worker)) = (slot.upgrade(), worker.upgrade()) else {
            return;
        };
        let mut state = slot.state.lock().await;
        let unused = worker.is_unused();
        if worker.ending().is_some() || (unused && idle) {
            if state.worker.as_ref().is_some_and(|now| Arc::ptr_eq(now, &worker)) && worker.ending().is_none()
            {
                state.worker = None;
            }
            return;
        }
        idle = unused;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_grow_and_stay_bounded() {
        let waits: Vec<u64> = [1, 2, 5, 10, 40].map(|n| wait(n).as_millis() as u64).to_vec();
        assert_eq!(waits, [100, 200, 1600, 30_000, 30_000]);
    }
}
