//! How many pods each revision should have, by Knative's pod autoscaler rules.
//!
//! [`decide()`] is a pure function of a window of samples. Around it, [`run`] sleeps while every
//! revision is at rest, samples each second those that are not, and asks for pods by writing the
//! revision's Deployment, many at a time and without waiting for one before it looks on. A Wasm
//! revision's pods account for work that is done in place: the number is written after the first
//! byte, never before.

mod bounds;
mod decide;
mod hpa;

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    sync::{Arc, atomic::Ordering::Relaxed},
    time::Duration,
};

use futures::{
    StreamExt,
    future::{BoxFuture, FutureExt},
    stream::FuturesUnordered,
};
use tokio::time::{Instant, MissedTickBehavior, interval, sleep_until, timeout};
use tokio_util::sync::CancellationToken;
use tracing::warn;

pub use self::bounds::{Bounds, Class, Metric};
use self::decide::{Window, decide};
pub(crate) use self::hpa::autoscaler as horizontal;
use crate::{
    fleet::{Fleet, Key, Member, Reading},
    workloads::Workloads,
};

/// Between two samples.
const TICK: Duration = Duration::from_secs(1);
/// Deployments written at a time.
const WRITES: usize = 16;
/// Longest time for one of them.
const WRITE_LIMIT: Duration = Duration::from_secs(5);
/// Between two writes about functions that are answered in place, whose pods no request waits for: when a thousand
/// of them wake at once, the processor belongs to the requests.
const PACE: Duration = Duration::from_millis(20);
/// Such writes that come at once after a rest.
const BURST: u32 = 5;

/// Scales every member of the fleet until told to stop.
pub(crate) async fn run(workloads: Arc<Workloads>, fleet: Arc<Fleet>, stop: CancellationToken) {
    let mut scaler = Scaler::new(workloads);
    let mut ticks = interval(TICK);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            // Members that appear with pods, or with a minimum, are looked at without a request.
            () = fleet.woken.notified() => scaler.look_at(fleet.take_noted()),
            _ = ticks.tick(), if !scaler.active.is_empty() => {
                let all = scaler.active.values().cloned().collect();
                scaler.look_at(all);
            }
            Some(written) = scaler.writes.next() => scaler.written(written),
            () = sleep_until(scaler.turn), if scaler.is_paced() => {}
        }
        scaler.write();
    }
}

struct Scaler {
    workloads: Arc<Workloads>,
    begun: Instant,
    /// Members that are busy or have pods.
    active: HashMap<Key, Arc<Member>>,
    /// What is known of those that are active, or have been.
    seen: HashMap<Key, Seen>,
    /// Numbers to be written; those of members without pods, for which requests may wait, first.
    pending: BTreeMap<(bool, Key), (Arc<Member>, i32)>,
    /// Members whose number is being written.
    writing: HashSet<Key>,
    writes: FuturesUnordered<BoxFuture<'static, Written>>,
    /// When the next write may begin that nobody waits for.
    turn: Instant,
}

/// A number of pods that was to be written, and what came of it.
struct Written {
    member: Arc<Member>,
    pods: i32,
    outcome: Result<(), String>,
}

#[derive(Default)]
struct Seen {
    window: Window,
    reading: Reading,
    at: Duration,
    /// Whether it has had its initial number of pods.
    started: bool,
}

impl Scaler {
    fn new(workloads: Arc<Workloads>) -> Self {
        Self {
            workloads,
            begun: Instant::now(),
            turn: Instant::now(),
            active: HashMap::new(),
            seen: HashMap::new(),
            pending: BTreeMap::new(),
            writing: HashSet::new(),
            writes: FuturesUnordered::new(),
        }
    }

    /// Decides how many pods these members should have; notes the numbers that differ.
    fn look_at(&mut self, members: Vec<Arc<Member>>) {
        let now = self.begun.elapsed();
        for member in members {
            for busy in [false, true] {
                self.pending.remove(&(busy, member.key.clone()));
            }
            let pods = member.replicas.load(Relaxed);
            let bounds = &member.limits().bounds;
            if member.is_gone() {
                self.active.remove(&member.key);
                self.seen.remove(&member.key);
            } else if pods < 0 || bounds.class != Class::Kpa || self.rests(&member, pods, bounds) {
                self.active.remove(&member.key);
            } else {
                let seen = self.seen.entry(member.key.clone()).or_insert_with(|| first_look(now));
                let wanted = look(seen, &member, pods, now, bounds);
                if wanted != pods {
                    self.pending.insert((pods > 0, member.key.clone()), (member.clone(), wanted));
                }
                self.active.insert(member.key.clone(), member.clone());
            }
        }
    }

    /// Whether a member has neither pods nor requests, nor has had any since the last look.
    fn rests(&mut self, member: &Member, pods: i32, bounds: &Bounds) -> bool {
        let reading = member.activity.read();
        let last = self.seen.get(&member.key).map_or(Reading::default(), |s| s.reading);
        let rests = pods == 0 && bounds.min == 0 && reading.in_flight == 0 && reading.started == last.started;
        if rests && let Some(seen) = self.seen.get_mut(&member.key) {
            seen.window = Window::default();
        }
        rests
    }

    /// Begins to write what is to be written, as much as may be at a time.
    fn write(&mut self) {
        while self.writes.len() < WRITES {
            let now = Instant::now();
            let in_turn = self.turn <= now;
            let ready = |(key, (member, _)): &(&(bool, Key), &(Arc<Member>, i32))| {
                !self.writing.contains(&key.1) && (in_turn || member.in_place().is_none())
            };
            let next = self.pending.iter().find(ready).map(|(key, _)| key.clone());
            let Some((member, pods)) = next.and_then(|next| self.pending.remove(&next)) else { return };
            if member.replicas.load(Relaxed) == pods {
                continue;
            }
            if member.in_place().is_some() {
                let rested = now.checked_sub(PACE * (BURST - 1)).unwrap_or(now);
                self.turn = self.turn.max(rested) + PACE;
            }
            self.writing.insert(member.key.clone());
            self.writes.push(write(self.workloads.clone(), member, pods).boxed());
        }
    }

    /// Whether there is something to write that waits for its turn.
    fn is_paced(&self) -> bool {
        self.writes.len() < WRITES && self.pending.keys().any(|(_, key)| !self.writing.contains(key))
    }

    /// What failed is decided anew with the next look.
    fn written(&mut self, Written { member, pods, outcome }: Written) {
        self.writing.remove(&member.key);
        match outcome {
            Ok(()) => member.replicas.store(pods, Relaxed),
            Err(why) => {
                warn!(revision = %member.key, "cannot scale to {pods}; it is tried again: {why}");
            }
        }
    }
}

async fn write(workloads: Arc<Workloads>, member: Arc<Member>, pods: i32) -> Written {
    let outcome = match timeout(WRITE_LIMIT, workloads.scale(&member, pods)).await {
        Ok(done) => done.map_err(|e| e.to_string()),
        Err(_) => Err("it took too long".into()),
    };
    Written { member, pods, outcome }
}

/// A member seen for the first time counts as busy now: pods left from an earlier life go in due time.
fn first_look(now: Duration) -> Seen {
    let window = Window::busy_at(now);
    Seen { window, at: now.saturating_sub(TICK), ..Seen::default() }
}

fn look(seen: &mut Seen, member: &Member, pods: i32, now: Duration, bounds: &Bounds) -> i32 {
    let reading = member.activity.read();
    let elapsed = (now - seen.at).as_secs_f64().max(0.001);
    let begun = (reading.started - seen.reading.started) as f64;
    let load = match bounds.metric {
        Metric::Rps => begun / elapsed,
        _ => {
            let busy = reading.busy_micros.saturating_sub(seen.reading.busy_micros) as f64 / 1e6;
            // Ended requests by the time they took, running ones as if they had run all along.
            (busy / elapsed).min(begun) + reading.in_flight.max(0) as f64
        }
    };
    // The shortest request is activity, too.
    let load = load.max(if begun > 0.0 { f64::MIN_POSITIVE } else { 0.0 });
    seen.window.add(now, load, bounds.window);
    (seen.reading, seen.at) = (reading, now);
    let wanted = decide(&mut seen.window, now, pods, bounds).pods;
    let ready = i32::try_from(member.backends.borrow().len()).unwrap_or(i32::MAX);
    seen.started |= member.in_place().is_some() || ready >= bounds.initial;
    if seen.started { wanted } else { wanted.max(bounds.clamp(f64::from(bounds.initial))) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{cache::Cache, config::Live, fleet::Limits};

    /// An API that takes writes and never answers.
    fn silent() -> Arc<Workloads> {
        let service = tower::service_fn(|_: http::Request<kube::client::Body>| {
            std::future::pending::<Result<http::Response<kube::client::Body>, std::io::Error>>()
        });
        let client = kube::Client::new(service, "default");
        Arc::new(Workloads::new(client, Live::new("example.com"), Cache::new()))
    }

    #[tokio::test(start_paused = true)]
    async fn writes_that_hang_hold_up_nothing_else() {
        let (fleet, mut scaler) = (Fleet::default(), Scaler::new(silent()));
        let members: Vec<_> = (0..WRITES + 5)
            .map(|n| fleet.member(&Key::new("default", format!("f{n:02}")), Limits::default()))
            .collect();
        members.iter().for_each(|member| fleet.set_replicas(member, 0));
        scaler.look_at(fleet.take_noted());
        assert!(scaler.active.is_empty() && scaler.pending.is_empty(), "they rest");
        let requests: Vec<_> = members.iter().map(|member| fleet.begin(member, Instant::now())).collect();
        scaler.look_at(fleet.take_noted());
        scaler.write();
        assert_eq!((scaler.writes.len(), scaler.pending.len()), (WRITES, 5));
        // Looked at again, those under way are not written a second time.
        let all = scaler.active.values().cloned().collect();
        scaler.look_at(all);
        scaler.write();
        assert_eq!(scaler.writes.len(), WRITES);
        let failed = scaler.writes.next().await.unwrap();
        assert_eq!(failed.outcome, Err("it took too long".into()));
        scaler.written(failed);
        scaler.write();
        assert_eq!((scaler.writes.len(), scaler.writing.len()), (WRITES, WRITES));
        drop(requests);
    }

    struct Nothing;

    #[async_trait::async_trait]
    impl crate::executor::Handler for Nothing {
        async fn call(
            &self,
            _: http::Request<crate::executor::Body>,
            _: Duration,
        ) -> http::Response<crate::executor::Body> {
            http::Response::new(crate::executor::full(""))
        }
    }

    #[tokio::test(start_paused = true)]
    async fn functions_that_need_no_pod_leave_the_processor_to_requests() {
        tokio::time::advance(Duration::from_secs(10)).await;
        let (fleet, mut scaler) = (Fleet::default(), Scaler::new(silent()));
        tokio::time::advance(Duration::from_secs(10)).await;
        let prepared = crate::executor::Prepared { handler: Arc::new(Nothing), image: String::new() };
        let make = |name: String, in_place: bool| {
            let member = fleet.member(&Key::new("default", name), Limits::default());
            fleet.set_replicas(&member, 0);
            member.set_in_place(in_place.then(|| prepared.clone()));
            drop(fleet.begin(&member, Instant::now()));
        };
        (0..8).for_each(|n| make(format!("a{n}"), true));
        make("z".into(), false);
        scaler.look_at(fleet.take_noted());
        scaler.write();
        let begun = |scaler: &Scaler, name: &str| scaler.writing.contains(&Key::new("default", name));
        assert_eq!(scaler.writes.len(), BURST as usize + 1);
        assert!(begun(&scaler, "z"), "requests wait for its pod");
        assert!(scaler.is_paced() && !begun(&scaler, "a7"));
        tokio::time::sleep_until(scaler.turn).await;
        scaler.write();
        assert_eq!(scaler.writes.len(), BURST as usize + 2);
        tokio::time::advance(PACE * BURST).await;
        scaler.write();
        assert_eq!((scaler.writes.len(), scaler.is_paced()), (9, false));
    }

    #[tokio::test(start_paused = true)]
    async fn only_members_that_are_busy_are_looked_at() {
        let (fleet, mut scaler) = (Fleet::default(), Scaler::new(silent()));
        let make = |name: &str, pods: i32| {
            let member = fleet.member(&Key::new("default", name), Limits::default());
            fleet.set_replicas(&member, pods);
            member
        };
        let (idle, busy) = (make("idle", 0), make("busy", 1));
        scaler.look_at(fleet.take_noted());
        assert_eq!(scaler.active.keys().collect::<Vec<_>>(), [&busy.key]);
        fleet.begin(&idle, Instant::now());
        scaler.look_at(fleet.take_noted());
        assert_eq!(scaler.active.len(), 2, "a request that has ended is work as well");
        fleet.retain(|key| *key == idle.key);
        scaler.look_at(fleet.take_noted());
        assert_eq!(scaler.active.keys().collect::<Vec<_>>(), [&idle.key]);
        assert_eq!(scaler.seen.len(), 1);
    }
}
