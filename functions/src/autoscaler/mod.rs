//! How many pods each revision should have, by Knative's pod autoscaler rules.
//!
//! [`decide()`] is a pure function of a window of samples. Around it, [`run`] sleeps while every
//! revision is at rest, samples each second while one is not, and asks for pods by writing the
//! revision's Deployment. A Wasm revision's pods account for work that is done in place: the
//! number is written after the first byte, never before.

mod bounds;
mod decide;
mod hpa;

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, atomic::Ordering::Relaxed},
    time::Duration,
};

use k8s_openapi::api::apps::v1::Deployment;
use kube::{
    Api, Client,
    api::{Patch, PatchParams},
};
use serde_json::json;
use tokio::time::{Instant, MissedTickBehavior, interval, timeout};
use tokio_util::sync::CancellationToken;
use tracing::warn;

pub use self::bounds::{Bounds, Class, Metric};
use self::decide::{Window, decide};
pub(crate) use self::hpa::autoscaler as horizontal;
use crate::{
    fleet::{Fleet, Key, Member, Reading},
    names,
};

/// Between two samples.
const TICK: Duration = Duration::from_secs(1);

/// Scales every member of the fleet until told to stop.
pub(crate) async fn run(client: Client, fleet: Arc<Fleet>, stop: CancellationToken) {
    let mut scaler = Scaler { client, begun: Instant::now(), seen: HashMap::new() };
    let mut changed = fleet.changed.subscribe();
    let mut ticks = interval(TICK);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        let work = scaler.pass(&fleet).await;
        tokio::select! {
            () = stop.cancelled() => return,
            () = fleet.woken.notified() => {}
            _ = ticks.tick(), if work => {}
            // Members that appear with pods, or with a minimum, are looked at without a request.
            _ = changed.changed() => {}
        }
    }
}

struct Scaler {
    client: Client,
    begun: Instant,
    seen: HashMap<Key, Seen>,
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
    /// Looks at every member that is busy or has pods; says whether there is one.
    async fn pass(&mut self, fleet: &Fleet) -> bool {
        let now = self.begun.elapsed();
        let mut work = false;
        self.seen.retain(|key, _| fleet.get(key).is_some());
        let mut changes: BTreeMap<Key, (Arc<Member>, i32)> = BTreeMap::new();
        for member in fleet.all() {
            let pods = member.replicas.load(Relaxed);
            let bounds = &member.limits().bounds;
            if pods < 0 || bounds.class != Class::Kpa || self.rests(&member, pods, bounds) {
                continue;
            }
            work = true;
            let seen = self.seen.entry(member.key.clone()).or_insert_with(|| first_look(now));
            let wanted = look(seen, &member, pods, now, bounds);
            if wanted != pods {
                changes.insert(member.key.clone(), (member, wanted));
            }
        }
        for (key, (member, wanted)) in changes {
            match timeout(Duration::from_secs(5), self.write(&key, wanted)).await {
                Ok(Ok(())) => member.replicas.store(wanted, Relaxed),
                Ok(Err(e)) => {
                    warn!(revision = %key, error = %e, "cannot scale to {wanted}; the next pass tries again")
                }
                Err(_) => {
                    warn!(revision = %key, "scaling to {wanted} took too long; the next pass tries again")
                }
            }
        }
        work
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

    async fn write(&self, key: &Key, replicas: i32) -> kube::Result<()> {
        let api: Api<Deployment> = Api::namespaced(self.client.clone(), &key.namespace);
        let patch = Patch::Merge(json!({"spec": {"replicas": replicas}}));
        match api.patch(&names::deployment(&key.name), &PatchParams::default(), &patch).await {
            // The revision went meanwhile, and its deployment with it.
            Err(kube::Error::Api(status)) if status.code == 404 => Ok(()),
            done => done.map(drop),
        }
    }
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
