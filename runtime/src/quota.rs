//! CPU time: measured for every guest, rationed for those that have a share.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::{Instant, Sleep};

use crate::shared::Shared;
use crate::usage::Usage;

/// How much of its share a guest may use in advance, as time.
const BURST: Duration = Duration::from_millis(100);

/// A share of a core, common to all instances of a guest.
///
/// Each piece of CPU time used moves the moment at which the share is paid for; a guest whose moment
/// lies in the future waits for it. An unused share is worth at most [`BURST`].
#[derive(Debug)]
pub(crate) struct Quota {
    millis: u32,
    paid_at: Mutex<Option<Instant>>,
}

impl Quota {
    pub(crate) fn new(millis: u32) -> Self {
        Self { millis: millis.max(1), paid_at: Mutex::new(None) }
    }

    /// When what has been used is paid for, if that is still to come.
    fn owed(&self, now: Instant) -> Option<Instant> {
        self.paid_at.lock().filter(|moment| *moment > now)
    }

    /// Charges `used`; when the guest may go on if it has to wait.
    fn charge(&self, used: Duration, now: Instant) -> Option<Instant> {
        let cost = used * 1000 / self.millis;
        let mut paid_at = self.paid_at.lock();
        let earliest = now.checked_sub(BURST).unwrap_or(now);
        let moment = paid_at.map_or(earliest, |before| before.max(earliest)) + cost;
        *paid_at = Some(moment);
        (moment > now).then_some(moment)
    }
}

/// Runs a guest: counts its CPU time, keeps the ticker going, and waits while its share is used up, before
/// its first step (others of its kind may have used the share) as between any two.
pub(crate) struct Metered<F> {
    guest: Pin<Box<F>>,
    shared: Arc<Shared>,
    usage: Arc<Usage>,
    quota: Option<Arc<Quota>>,
    nap: Option<Pin<Box<Sleep>>>,
    begun: bool,
}

impl<F: Future> Metered<F> {
    pub(crate) fn new(shared: &Arc<Shared>, usage: &Arc<Usage>, quota: Option<Arc<Quota>>, guest: F) -> Self {
        Self {
            guest: Box::pin(guest),
            shared: Arc::clone(shared),
            usage: Arc::clone(usage),
            quota,
            nap: None,
            begun: false,
        }
    }

    /// Begins to wait until then; whether there is anything to wait for.
    fn rest(&mut self, until: Instant, cx: &mut Context<'_>) -> bool {
        let mut nap = Box::pin(tokio::time::sleep_until(until));
        // Registers this task with the timer.
        let resting = nap.as_mut().poll(cx).is_pending();
        self.nap = resting.then_some(nap);
        resting
    }
}

impl<F: Future> Future for Metered<F> {
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        let this = &mut *self;
        if let Some(nap) = &mut this.nap {
            ready!(nap.as_mut().poll(cx));
            this.nap = None;
        }
        if !std::mem::replace(&mut this.begun, true)
            && let Some(until) = this.quota.as_ref().and_then(|q| q.owed(Instant::now()))
            && this.rest(until, cx)
        {
            return Poll::Pending;
        }
        let start = std::time::Instant::now();
        let polled = {
            let _running = this.shared.ticker.enter();
            this.guest.as_mut().poll(cx)
        };
        let used = start.elapsed();
        this.usage.add_cpu(used);
        // What a guest used that has ended is owed by those that come after it.
        let owed = this.quota.as_ref().and_then(|q| q.charge(used, Instant::now()));
        if polled.is_pending()
            && let Some(until) = owed
            // The guest's own wake-ups are seen after the rest.
            && !this.rest(until, cx)
        {
            cx.waker().wake_by_ref();
        }
        polled
    }
}

/// Runs a request's guest as [`Metered`] does, and ends it when it has used more than one request may.
pub(crate) struct Rationed<F: Future> {
    guest: Metered<F>,
    most: Option<Duration>,
    used: Duration,
    over: fn(Duration) -> F::Output,
}

impl<F: Future> Rationed<F> {
    /// `over`: what comes of a guest that has used more.
    pub(crate) fn new(guest: Metered<F>, most: Option<Duration>, over: fn(Duration) -> F::Output) -> Self {
        Self { guest, most, used: Duration::ZERO, over }
    }
}

impl<F: Future> Future for Rationed<F> {
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        let Some(most) = self.most else {
            return Pin::new(&mut self.guest).poll(cx);
        };
        // By the thread's own clock: time in which others had the processor does not count.
        let start = thread_time();
        let polled = Pin::new(&mut self.guest).poll(cx);
        self.used += thread_time().saturating_sub(start);
        // One that has ended has done its work.
        if polled.is_pending() && self.used > most {
            return Poll::Ready((self.over)(most));
        }
        polled
    }
}

/// Processor time that this thread has used.
#[allow(unsafe_code)]
pub(crate) fn thread_time() -> Duration {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the call writes to the live local it is given and keeps no pointer to it.
    let result = unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &mut time) };
    debug_assert_eq!(result, 0, "every Linux has this clock");
    Duration::new(time.tv_sec.try_into().unwrap_or(0), time.tv_nsec.try_into().unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn share_is_paid_for_in_time() {
        let ms = Duration::from_millis;
        let quota = Quota::new(500);
        let start = Instant::now() + ms(1000);
        // Half a core: 50 ms of use cost the whole burst of 100 ms.
        assert_eq!(quota.charge(ms(50), start), None);
        assert_eq!(quota.charge(ms(10), start), Some(start + ms(20)));
        // Paid for; unused time is worth no more than the burst.
        let later = start + ms(5000);
        assert_eq!(quota.charge(ms(50), later), None);
        assert_eq!(quota.charge(ms(1), later), Some(later + ms(2)));
        assert_eq!((quota.owed(later), quota.owed(later + ms(2))), (Some(later + ms(2)), None));
    }
}
