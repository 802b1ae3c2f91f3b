//! Ends connections that are slow to send a request's head, with one timer for each connection: a request only
//! leaves a mark.

use std::{
    sync::atomic::{AtomicBool, AtomicU32, Ordering::Relaxed},
    time::Duration,
};

use http::Version;
use tokio::time::sleep;

/// What the requests of a connection have left.
#[derive(Default)]
pub(super) struct Watch {
    under_way: AtomicU32,
    /// Whether a request began since the last look.
    lively: AtomicBool,
    /// Whether requests come side by side; such a connection may be quiet for as long as it likes.
    multiplexed: AtomicBool,
}

impl Watch {
    /// Marks the beginning of a request.
    pub(super) fn begin(&self, version: Version) {
        self.under_way.fetch_add(1, Relaxed);
        self.lively.store(true, Relaxed);
        if version == Version::HTTP_2 {
            self.multiplexed.store(true, Relaxed);
        }
    }

    /// Marks the end of its answer.
    pub(super) fn end(&self) {
        self.under_way.fetch_sub(1, Relaxed);
    }

    /// Ends when no request was under way for `patience`, and before twice that.
    pub(super) async fn quiet(&self, patience: Duration) {
        loop {
            sleep(patience).await;
            let lively = self.lively.swap(false, Relaxed);
            if !lively && self.under_way.load(Relaxed) == 0 && !self.multiplexed.load(Relaxed) {
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::{Instant, timeout};

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn only_who_sends_no_request_is_ended() {
        let patience = Duration::from_secs(30);
        let begun = Instant::now();
        let watch = Watch::default();
        watch.quiet(patience).await;
        assert_eq!(begun.elapsed().as_secs(), 30, "nothing came");
        // An answer that takes its time.
        watch.begin(Version::HTTP_11);
        assert!(timeout(patience * 10, watch.quiet(patience)).await.is_err());
        watch.end();
        let ended = Instant::now();
        watch.quiet(patience).await;
        assert!(ended.elapsed() <= patience * 2, "and then no other request");
        watch.begin(Version::HTTP_2);
        watch.end();
        assert!(timeout(patience * 10, watch.quiet(patience)).await.is_err(), "pings keep it");
    }
}
