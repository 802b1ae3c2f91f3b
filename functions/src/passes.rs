//! Which objects a controller is to look at: each once however often it is woken, never two passes of one at a
//! time, and those that ask for it again later. What fails is tried again after pauses that grow, as everywhere in
//! Kubernetes, or as soon as something of it changes.

use std::{
    collections::{BTreeSet, HashMap, VecDeque},
    time::Duration,
};

use futures::{StreamExt, stream::FuturesUnordered};
use parking_lot::Mutex;
use tokio::{
    sync::Notify,
    time::{Instant, sleep_until},
};
use tokio_util::task::AbortOnDropHandle;
use tracing::warn;

use crate::{context::Error, fleet::Key};

/// Pause before a failed pass is tried again; each failure after it doubles it.
const FIRST_PAUSE: Duration = Duration::from_millis(5);
/// The longest of these pauses.
const LONGEST_PAUSE: Duration = Duration::from_secs(1000);

/// When an object is looked at again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Again {
    /// When something of it changes.
    OnChange,
    /// Then, or after that time.
    In(Duration),
}

impl Again {
    /// After that time at the latest.
    pub(crate) fn but_within(self, most: Duration) -> Self {
        match self {
            Self::OnChange => Self::In(most),
            Self::In(span) => Self::In(span.min(most)),
        }
    }
}

/// The objects to be looked at. Bounded by the number of objects there are: each has one place.
#[derive(Default)]
pub(crate) struct Queue {
    waiting: Mutex<Waiting>,
    woken: Notify,
}

#[derive(Default)]
struct Waiting {
    due: VecDeque<Key>,
    later: BTreeSet<(Instant, Key)>,
    states: HashMap<Key, State>,
}

#[derive(Default)]
struct State {
    due: bool,
    running: bool,
    later: Option<Instant>,
    /// How often its passes have failed since one went well.
    failures: u32,
}

/// The pause after so many failures.
fn pause(failures: u32) -> Duration {
    let doublings = failures.saturating_sub(1).min(u32::BITS - 1);
    FIRST_PAUSE.saturating_mul(1 << doublings).min(LONGEST_PAUSE)
}

impl Queue {
    /// Has an object looked at.
    pub(crate) fn add(&self, key: Key) {
        if self.waiting.lock().add(key) {
            self.woken.notify_one();
        }
    }

    /// Has objects looked at.
    pub(crate) fn extend(&self, keys: impl IntoIterator<Item = Key>) {
        keys.into_iter().for_each(|key| self.add(key));
    }

    /// The next object, when its time has come. For one caller.
    async fn next(&self) -> Key {
        loop {
            let first = {
                let mut waiting = self.waiting.lock();
                waiting.ripen(Instant::now());
                if let Some(key) = waiting.begin() {
                    return key;
                }
                waiting.later.first().map(|(at, _)| *at)
            };
            let ripe = async {
                match first {
                    Some(at) => sleep_until(at).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = self.woken.notified() => {}
                () = ripe => {}
            }
        }
    }

    fn done(&self, key: Key, again: Again) {
        self.waiting.lock().done(key, again);
        self.woken.notify_one();
    }

    fn failed(&self, key: Key) {
        self.waiting.lock().failed(key);
        self.woken.notify_one();
    }
}

impl Waiting {
    /// Whether there is something new to begin.
    fn add(&mut self, key: Key) -> bool {
        let state = self.states.entry(key.clone()).or_default();
        if let Some(at) = state.later.take() {
            self.later.remove(&(at, key.clone()));
        }
        if std::mem::replace(&mut state.due, true) || state.running {
            return false;
        }
        self.due.push_back(key);
        true
    }

    fn begin(&mut self) -> Option<Key> {
        let key = self.due.pop_front()?;
        let state = self.states.entry(key.clone()).or_default();
        (state.due, state.running) = (false, true);
        Some(key)
    }

    fn ripen(&mut self, now: Instant) {
        while self.later.first().is_some_and(|(at, _)| *at <= now) {
            if let Some((_, key)) = self.later.pop_first() {
                self.states.entry(key.clone()).or_default().later = None;
                self.add(key);
            }
        }
    }

    fn failed(&mut self, key: Key) {
        let state = self.states.entry(key.clone()).or_default();
        state.failures = state.failures.saturating_add(1);
        let again = Again::In(pause(state.failures));
        self.ended(key, again);
    }

    fn done(&mut self, key: Key, again: Again) {
        self.states.entry(key.clone()).or_default().failures = 0;
        self.ended(key, again);
    }

    fn ended(&mut self, key: Key, again: Again) {
        let state = self.states.entry(key.clone()).or_default();
        state.running = false;
        match again {
            _ if state.due => self.due.push_back(key),
            Again::In(span) => {
                let at = Instant::now() + span;
                state.later = Some(at);
                self.later.insert((at, key));
            }
            Again::OnChange => drop(self.states.remove(&key)),
        }
    }
}

/// Looks at what a queue names, so many objects at a time, for ever. What fails is said and tried again.
pub(crate) async fn run<F>(controller: &'static str, queue: &Queue, at_a_time: usize, pass: impl Fn(Key) -> F)
where
    F: Future<Output = Result<Again, Error>> + Send + 'static,
{
    let mut running = FuturesUnordered::new();
    loop {
        tokio::select! {
            key = queue.next(), if running.len() < at_a_time => {
                let pass = AbortOnDropHandle::new(tokio::spawn(pass(key.clone())));
                running.push(async move { (key, pass.await) });
            }
            Some((key, done)) = running.next() => {
                match done {
                    Ok(Ok(again)) => queue.done(key, again),
                    Ok(Err(error)) => {
                        warn!(controller, "{}", with_causes(&error));
                        queue.failed(key);
                    }
                    Err(ended) => {
                        warn!(controller, "the pass of {key} broke off: {ended}");
                        queue.failed(key);
                    }
                }
            }
        }
    }
}

fn with_causes(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(error.source(), |e| e.source());
    causes.fold(error.to_string(), |text, cause| format!("{text}: {cause}"))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use tokio::{sync::mpsc, time::timeout};

    use super::*;

    const MOMENT: Duration = Duration::from_millis(1);

    fn key(name: &str) -> Key {
        Key::new("default", name)
    }

    async fn next(queue: &Queue) -> Option<String> {
        timeout(MOMENT, queue.next()).await.ok().map(|key| key.name)
    }

    #[tokio::test(start_paused = true)]
    async fn each_is_looked_at_once_and_never_twice_at_a_time() {
        let queue = Queue::default();
        queue.extend(["a", "b", "a"].map(key));
        assert_eq!((next(&queue).await.as_deref(), next(&queue).await.as_deref()), (Some("a"), Some("b")));
        assert_eq!(next(&queue).await, None);
        queue.extend(["a", "a"].map(key));
        assert_eq!(next(&queue).await, None, "its pass has not ended");
        queue.done(key("a"), Again::In(Duration::from_secs(9)));
        assert_eq!(next(&queue).await.as_deref(), Some("a"), "what came meanwhile does not wait");
        queue.done(key("a"), Again::OnChange);
        queue.done(key("b"), Again::OnChange);
        assert!(queue.waiting.lock().states.is_empty(), "nothing is kept of what rests");
    }

    #[tokio::test(start_paused = true)]
    async fn later_comes_in_time_or_with_a_change() {
        let queue = Queue::default();
        queue.extend(["a", "b"].map(key));
        for (name, seconds) in [("a", 20), ("b", 10)] {
            assert_eq!(next(&queue).await.as_deref(), Some(name));
            queue.done(key(name), Again::In(Duration::from_secs(seconds)));
        }
        assert_eq!(next(&queue).await, None);
        queue.add(key("a"));
        assert_eq!(next(&queue).await.as_deref(), Some("a"));
        queue.done(key("a"), Again::OnChange);
        assert_eq!(queue.next().await.name, "b");
        queue.done(key("b"), Again::OnChange);
        tokio::time::advance(Duration::from_secs(60)).await;
        assert_eq!(next(&queue).await, None);
    }

    #[test]
    fn pauses_double_up_to_the_longest() {
        let millis: Vec<u128> =
            [1, 2, 3, 10, 18, 19, 40, u32::MAX].iter().map(|n| pause(*n).as_millis()).collect();
        assert_eq!(millis, [5, 10, 20, 2560, 655_360, 1_000_000, 1_000_000, 1_000_000]);
    }

    #[tokio::test(start_paused = true)]
    async fn what_keeps_failing_is_tried_less_and_less_until_it_goes_well_or_changes() {
        let queue = Queue::default();
        queue.add(key("a"));
        let mut after = Vec::new();
        for _ in 0..8 {
            let waited = Instant::now();
            assert_eq!(queue.next().await.name, "a");
            after.push(waited.elapsed().as_millis());
            queue.failed(key("a"));
        }
        // The timer's own grain is a millisecond.
        let expected = [0, 5, 10, 20, 40, 80, 160, 320];
        assert!(after.iter().zip(expected).all(|(is, least)| (least..=least + 2).contains(is)), "{after:?}");
        queue.add(key("a"));
        assert_eq!(next(&queue).await.as_deref(), Some("a"), "a change does not wait");
        queue.failed(key("a"));
        assert_eq!(queue.waiting.lock().states[&key("a")].failures, 9, "it has not gone well");
        queue.next().await;
        queue.done(key("a"), Again::In(Duration::from_secs(1)));
        assert_eq!(queue.waiting.lock().states[&key("a")].failures, 0);
    }

    #[tokio::test(start_paused = true)]
    async fn what_fails_or_breaks_off_is_tried_again() {
        let (queue, (sender, mut passes)) = (Arc::new(Queue::default()), mpsc::channel(8));
        let known = queue.clone();
        let task = tokio::spawn(async move {
            let tries = Mutex::new(HashMap::<String, u32>::new());
            let pass = |key: Key| {
                let mut tries = tries.lock();
                let nth = tries.entry(key.name.clone()).or_default();
                *nth += 1;
                let (nth, sender) = (*nth, sender.clone());
                async move {
                    sender.send(format!("{} {nth}", key.name)).await.unwrap();
                    assert!(key.name != "broken" || nth > 1, "a pass that panics");
                    match nth {
                        1 => Err(Error::Form {
                            what: key.name,
                            source: serde_json::from_str::<u8>("x").unwrap_err(),
                        }),
                        _ => Ok(Again::OnChange),
                    }
                }
            };
            run("test", &known, 2, pass).await;
        });
        queue.extend(["wrong", "broken"].map(key));
        let mut seen = Vec::new();
        for _ in 0..4 {
            seen.push(passes.recv().await.unwrap());
        }
        seen[..2].sort();
        seen[2..].sort();
        assert_eq!(seen, ["broken 1", "wrong 1", "broken 2", "wrong 2"]);
        assert!(timeout(Duration::from_secs(60), passes.recv()).await.is_err());
        task.abort();
    }
}
