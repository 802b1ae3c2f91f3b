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
/// How long after its first request a function that is answered in place gets the pod that accounts for it. No
/// request waits for that pod, and making it is a hundred times the work of answering one: when a thousand functions
/// wake at once, the processor belongs to their requests.
const AFTER: Duration = Duration::from_secs(1);
/// Between two writes about such functions.
const PACE: Duration = Duration::from_millis(20);
/// Such writes that come at once after a rest.
const BURST: u32 = 5;
/// Functions that get their pod though they have come to rest before its turn. Of a greater crowd the rest go
/// unaccounted: their pods would be gone before anybody looked for them.
const CROWD: usize = 100;

/// Scales every member of the fleet until told to stop.
pub(crate) async fn run(workloads: Arc<Workloads>, fleet: Arc<Fleet>, stop: CancellationToken) {
    let mut scaler = Scaler::new(workloads);
    let mut ticks = interval(TICK);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        let turn = scaler.next_turn();
        tokio::select! {
            () = stop.cancelled() => return,
            // Members that appear with pods, or with a minimum, are looked at without a request.
            () = fleet.woken.notified() => scaler.look_at(fleet.take_noted()),
            _ = ticks.tick(), if !scaler.active.is_empty() => {
                let all = scaler.active.values().cloned().collect();
                scaler.look_at(all);
            }
            Some(written) = scaler.writes.next() => scaler.written(written),
            () = sleep_until(turn.unwrap_or_else(Instant::now)), if turn.is_some() => {}
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
    /// Numbers to be written that requests may wait for; those of members without pods first.
    urgent: BTreeMap<(bool, Key), (Arc<Member>, i32)>,
    /// Numbers of members that are answered in place, by when they are due.
    paced: BTreeMap<(Instant, Key), (Arc<Member>, i32)>,
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
    /// When the number that is to be written is due.
    due: Option<Instant>,
}

impl Scaler {
    fn new(workloads: Arc<Workloads>) -> Self {
        Self {
            workloads,
            begun: Instant::now(),
            turn: Instant::now(),
            active: HashMap::new(),
            seen: HashMap::new(),
            urgent: BTreeMap::new(),
            paced: BTreeMap::new(),
            writing: HashSet::new(),
            writes: FuturesUnordered::new(),
        }
    }

    /// Decides how many pods these members should have; notes the numbers that differ.
    fn look_at(&mut self, members: Vec<Arc<Member>>) {
        let now = self.begun.elapsed();
        for member in members {
            if self.is_owed_a_pod(&member) {
                continue;
            }
            self.withdraw(&member.key);
            let pods = member.replicas.load(Relaxed);
            let bounds = &member.limits().bounds;
            if member.is_gone() {
                self.active.remove(&member.key);
                self.seen.remove(&member.key);
            } else if pods < 0 || bounds.class != Class::Kpa || self.rests(&member) {
                self.active.remove(&member.key);
                if let Some(seen) = self.seen.get_mut(&member.key) {
                    (seen.window, seen.due) = (Window::default(), None);
                }
            } else {
                let seen = self.seen.entry(member.key.clone()).or_insert_with(|| first_look(now));
                let wanted = look(seen, &member, pods, now, bounds);
                if wanted == pods {
                    seen.due = None;
                } else {
                    self.note(&member, pods, wanted);
                }
                self.active.insert(member.key.clone(), member.clone());
            }
        }
    }

    /// Whether a member has neither pods nor requests, nor has had any since the last look.
    fn rests(&self, member: &Member) -> bool {
        let reading = member.activity.read();
        let last = self.seen.get(&member.key).map_or(Reading::default(), |s| s.reading);
        let pods = member.replicas.load(Relaxed);
        pods == 0
            && member.limits().bounds.min == 0
            && reading.in_flight == 0
            && reading.started == last.started
    }

    /// Whether a member rests, but is still to get the pod that accounts for what it did.
    fn is_owed_a_pod(&self, member: &Member) -> bool {
        let due = self.seen.get(&member.key).and_then(|seen| seen.due);
        let waits = due.is_some_and(|due| self.paced.contains_key(&(due, member.key.clone())));
        waits && self.paced.len() <= CROWD && !member.is_gone() && self.rests(member)
    }

    /// Notes a number of pods to be written.
    fn note(&mut self, member: &Arc<Member>, pods: i32, wanted: i32) {
        let (key, number) = (member.key.clone(), (member.clone(), wanted));
        if member.in_place().is_none() {
            self.urgent.insert((pods > 0, key), number);
            return;
        }
        let after = if pods > 0 { Duration::ZERO } else { AFTER };
        if let Some(seen) = self.seen.get_mut(&key) {
            let due = *seen.due.get_or_insert_with(|| Instant::now() + after);
            self.paced.insert((due, key), number);
        }
    }

    /// Forgets the number that was to be written for a member.
    fn withdraw(&mut self, key: &Key) {
        for busy in [false, true] {
            self.urgent.remove(&(busy, key.clone()));
        }
        if let Some(due) = self.seen.get(key).and_then(|seen| seen.due) {
            self.paced.remove(&(due, key.clone()));
        }
    }

    /// Begins to write what is to be written, as much as may be at a time.
    fn write(&mut self) {
        while self.writes.len() < WRITES {
            let Some((member, pods)) = self.next_urgent().or_else(|| self.next_paced()) else { return };
            if member.replicas.load(Relaxed) == pods {
                continue;
            }
            self.writing.insert(member.key.clone());
            self.writes.push(write(self.workloads.clone(), member, pods).boxed());
        }
    }

    fn next_urgent(&mut self) -> Option<(Arc<Member>, i32)> {
        let next = self.urgent.keys().find(|(_, key)| !self.writing.contains(key)).cloned();
        self.urgent.remove(&next?)
    }

    fn next_paced(&mut self) -> Option<(Arc<Member>, i32)> {
        let now = Instant::now();
        let next = self.paced.keys().find(|(_, key)| !self.writing.contains(key)).cloned();
        let next = next.filter(|(due, _)| self.turn.max(*due) <= now)?;
        let rested = now.checked_sub(PACE * (BURST - 1)).unwrap_or(now);
        self.turn = self.turn.max(rested) + PACE;
        if let Some(seen) = self.seen.get_mut(&next.1) {
            seen.due = None;
        }
        self.paced.remove(&next)
    }

    /// When what waits for its turn may be written, if anything does.
    fn next_turn(&self) -> Option<Instant> {
        let next = self.paced.keys().find(|(_, key)| !self.writing.contains(key))?;
        (self.writes.len() < WRITES).then_some(self.turn.max(next.0))
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
        assert!(scaler.active.is_empty() && scaler.urgent.is_empty(), "they rest");
        let requests: Vec<_> = members.iter().map(|member| fleet.begin(member, Instant::now())).collect();
        scaler.look_at(fleet.take_noted());
        scaler.write();
        assert_eq!((scaler.writes.len(), scaler.urgent.len()), (WRITES, 5));
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
        assert!(begun(&scaler, "z"), "requests wait for its pod");
        assert_eq!(scaler.writes.len(), 1, "and for those of the others none does");
        // Looked at once more, at rest by now, they still get their pods in due time.
        tokio::time::advance(TICK / 2).await;
        scaler.look_at(scaler.active.values().cloned().collect());
        scaler.write();
        assert_eq!(scaler.writes.len(), 1);
        tokio::time::sleep_until(scaler.next_turn().unwrap()).await;
        scaler.write();
        assert_eq!(scaler.writes.len(), BURST as usize + 1);
        assert!(!begun(&scaler, "a7"));
        tokio::time::sleep_until(scaler.next_turn().unwrap()).await;
        scaler.write();
        assert_eq!(scaler.writes.len(), BURST as usize + 2);
        tokio::time::advance(PACE * BURST).await;
        scaler.write();
        assert_eq!((scaler.writes.len(), scaler.next_turn()), (9, None));
    }

    #[tokio::test(start_paused = true)]
    async fn a_great_crowd_that_rests_again_is_not_accounted_for() {
        let (fleet, mut scaler) = (Fleet::default(), Scaler::new(silent()));
        let prepared = crate::executor::Prepared { handler: Arc::new(Nothing), image: String::new() };
        let wake = |n: usize| {
            let member = fleet.member(&Key::new("default", format!("f{n}")), Limits::default());
            fleet.set_replicas(&member, 0);
            member.set_in_place(Some(prepared.clone()));
            drop(fleet.begin(&member, Instant::now()));
        };
        (0..3 * CROWD).for_each(wake);
        scaler.look_at(fleet.take_noted());
        assert_eq!(scaler.paced.len(), 3 * CROWD);
        scaler.look_at(scaler.active.values().cloned().collect());
        assert_eq!((scaler.paced.len(), scaler.active.len()), (CROWD, CROWD));
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
