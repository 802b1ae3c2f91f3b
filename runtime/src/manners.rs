//! Where a handler's requests begin: on the thread of whoever asks, which is quickest, or, when they have lately computed
//! for long there, on those of the executor. While a guest computes, its thread answers nobody else and hears of nothing
//! that arrives.

use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::time::Duration;

/// A first turn that takes more processor time than this keeps others waiting.
const MOMENT: Duration = Duration::from_micros(500);
/// Requests that begin elsewhere after such a turn, before one is tried again.
const ELSEWHERE: u32 = 128;

/// What the last requests of a handler were like.
#[derive(Debug, Default)]
pub(crate) struct Manners {
    elsewhere: AtomicU32,
}

impl Manners {
    /// Whether a request is to begin elsewhere; each that asks counts.
    pub(crate) fn begins_elsewhere(&self) -> bool {
        self.elsewhere.fetch_update(Relaxed, Relaxed, |left| left.checked_sub(1)).is_ok()
    }

    /// Says how much processor time a first turn took on its caller's thread.
    pub(crate) fn took(&self, time: Duration) {
        if time > MOMENT {
            self.elsewhere.store(ELSEWHERE, Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_in_many_is_tried_again() {
        let manners = Manners::default();
        manners.took(MOMENT);
        assert!(!manners.begins_elsewhere());
        manners.took(MOMENT * 2);
        assert!((0..ELSEWHERE).all(|_| manners.begins_elsewhere()));
        assert!(!manners.begins_elsewhere());
    }
}
