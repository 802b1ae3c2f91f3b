//! How many pods each revision should have, by Knative's pod autoscaler rules.
//!
//! [`decide`] is a pure function of a window of samples. Around it, [`run`] sleeps while every
//! revision is at rest, samples each second while one is not, and asks for pods by writing the
//! revision's Deployment. A Wasm revision's pods account for work that is done in place: the
//! number is written after the first byte, never before.

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    sync::{Arc, atomic::Ordering::Relaxed},
    time::Duration,
};

use k8s_openapi::{api::apps::v1::Deployment, apimachinery::pkg::apis::meta::v1::ObjectMeta};
use kube::{
    Api, Client,
    api::{Patch, PatchParams},
};
use serde_json::json;
use tokio::time::{Instant, MissedTickBehavior, interval, timeout};
use tokio_util::sync::CancellationToken;
use tracing::warn;
use wasmk_api::knative::annotation;

use crate::{
    fleet::{Fleet, Key, Member, Reading},
    names,
};

/// Length of the window that decides in calm times.
const STABLE_WINDOW: Duration = Duration::from_secs(60);
/// Shortest and longest window an annotation may ask for.
const WINDOW_RANGE: (Duration, Duration) = (Duration::from_secs(6), Duration::from_secs(3600));
/// The window that notices bursts, as a share of the stable one.
const PANIC_SHARE: f64 = 0.1;
/// A burst that wants this many times the present pods starts a panic.
const PANIC_THRESHOLD: f64 = 2.0;
/// Requests at a time that a pod is expected to handle where nothing says otherwise.
const TARGET: f64 = 100.0;
/// Share of the target that pods are loaded to.
const UTILIZATION: f64 = 0.7;
/// Pods at the most change by this factor in one decision.
const MAX_SCALE_UP: f64 = 1000.0;
/// Down to this share of the present pods in one decision.
const MAX_SCALE_DOWN: f64 = 2.0;
/// Between two samples.
const TICK: Duration = Duration::from_secs(1);

/// What a revision's annotations say about its scale.
#[derive(Clone, Debug, PartialEq)]
pub struct Bounds {
    /// Fewest pods.
    pub min: i32,
    /// Most pods; 0 for no bound.
    pub max: i32,
    /// Pods at the start.
    pub initial: i32,
    /// Pods when requests come after none.
    pub activation: i32,
    /// Requests at a time that one pod is loaded with.
    pub target: f64,
    /// Length of the stable window.
    pub window: Duration,
    /// How long the last pod stays after the window.
    pub retention: Duration,
}

impl Bounds {
    /// Reads `autoscaling.knative.dev/*`; what is missing or wrong has Knative's default.
    pub fn read(metadata: &ObjectMeta, container_concurrency: i64) -> Self {
        let value = |names: &[&str]| {
            names.iter().find_map(|n| annotation(metadata, &format!("autoscaling.knative.dev/{n}")))
        };
        let count = |names: &[&str], default: i32| {
            value(names).and_then(|v| v.parse().ok()).filter(|n| *n >= 0).unwrap_or(default)
        };
        let span = |name: &str| value(&[name]).and_then(duration);
        let utilization = value(&["target-utilization-percentage", "targetUtilizationPercentage"])
            .and_then(|v| v.parse::<f64>().ok())
            .filter(|p| (1.0..=100.0).contains(p))
            .map_or(UTILIZATION, |p| p / 100.0);
        let limit = if container_concurrency > 0 { container_concurrency as f64 } else { f64::INFINITY };
        let target = value(&["target"]).and_then(|v| v.parse::<f64>().ok()).filter(|t| *t >= 0.01);
        Self {
            min: count(&["min-scale", "minScale"], 0),
            max: count(&["max-scale", "maxScale"], 0),
            initial: count(&["initial-scale", "initialScale"], 1),
            activation: count(&["activation-scale", "activationScale"], 1).max(1),
            target: (target.unwrap_or(TARGET).min(limit) * utilization).max(0.01),
            window: span("window").unwrap_or(STABLE_WINDOW).clamp(WINDOW_RANGE.0, WINDOW_RANGE.1),
            retention: span("scale-to-zero-pod-retention-period").unwrap_or_default(),
        }
    }

    fn clamp(&self, pods: f64) -> i32 {
        let most = if self.max > 0 { self.max } else { i32::MAX };
        (pods.min(f64::from(i32::MAX)) as i32).clamp(self.min.min(most), most)
    }
}

/// A duration as Go writes it, of whole or fractional `h`, `m`, `s` and `ms` parts.
fn duration(text: &str) -> Option<Duration> {
    let mut total = Duration::ZERO;
    let mut rest = text;
    while !rest.is_empty() {
        let end = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let number: f64 = rest[..end].parse().ok()?;
        let (unit, after) = [("ms", 0.001), ("s", 1.0), ("m", 60.0), ("h", 3600.0)]
            .iter()
            .find_map(|(suffix, factor)| Some((*factor, rest[end..].strip_prefix(suffix)?)))?;
        total += Duration::try_from_secs_f64(number * unit).ok()?;
        rest = after;
    }
    (!text.is_empty()).then_some(total)
}

/// What was seen of a revision's requests, newest last.
#[derive(Clone, Debug, Default)]
pub(crate) struct Window {
    /// When, and the mean number of requests at a time since the sample before.
    samples: VecDeque<(Duration, f64)>,
    panic_until: Option<Duration>,
    panic_pods: i32,
    last_busy: Option<Duration>,
}

impl Window {
    /// Adds what was seen until `now` (since any fixed moment) and forgets what is older than the window.
    pub(crate) fn add(&mut self, now: Duration, concurrency: f64, window: Duration) {
        self.samples.push_back((now, concurrency));
        if concurrency > 0.0 {
            self.last_busy = Some(now);
        }
        while self.samples.front().is_some_and(|(at, _)| *at + window <= now) {
            self.samples.pop_front();
        }
    }

    fn mean(&self, now: Duration, window: Duration) -> f64 {
        let recent: Vec<f64> =
            self.samples.iter().filter(|(at, _)| *at + window > now).map(|(_, c)| *c).collect();
        if recent.is_empty() { 0.0 } else { recent.iter().sum::<f64>() / recent.len() as f64 }
    }
}

/// The number of pods a revision should have now, given the number it has.
pub(crate) fn decide(window: &mut Window, now: Duration, pods: i32, bounds: &Bounds) -> i32 {
    let ready = f64::from(pods.max(1));
    let limited = |wanted: f64| {
        let wanted = wanted.ceil().min((ready * MAX_SCALE_UP).ceil());
        if pods > 0 { wanted.max((ready / MAX_SCALE_DOWN).floor()) } else { wanted }
    };
    let stable = window.mean(now, bounds.window);
    let short = bounds.window.mul_f64(PANIC_SHARE).max(TICK);
    let burst = window.mean(now, short);
    let (stable_pods, burst_pods) = (limited(stable / bounds.target), limited(burst / bounds.target));

    if burst_pods / ready >= PANIC_THRESHOLD {
        window.panic_until = Some(now + bounds.window);
    } else if window.panic_until.is_some_and(|until| until <= now) {
        window.panic_until = None;
        window.panic_pods = 0;
    }
    let mut wanted = stable_pods;
    if window.panic_until.is_some() {
        window.panic_pods = window.panic_pods.max(bounds.clamp(burst_pods)).max(pods);
        wanted = wanted.max(f64::from(window.panic_pods));
    }
    if stable == 0.0 {
        let rested = window.last_busy.is_none_or(|at| at + bounds.window + bounds.retention <= now);
        return if rested { bounds.clamp(0.0) } else { bounds.clamp(f64::from(pods.clamp(0, 1))) };
    }
    bounds.clamp(wanted.max(f64::from(if pods == 0 { bounds.activation } else { 1 })))
}

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
}

impl Scaler {
    /// Looks at every member that is busy or has pods; says whether there is one.
    async fn pass(&mut self, fleet: &Fleet) -> bool {
        let now = self.begun.elapsed();
        let mut work = false;
        let mut changes: BTreeMap<Key, (Arc<Member>, i32)> = BTreeMap::new();
        for member in fleet.all() {
            let pods = member.replicas.load(Relaxed);
            if pods < 0 || self.rests(&member, pods) {
                continue;
            }
            work = true;
            let seen = self.seen.entry(member.key.clone()).or_insert_with(|| first_look(now));
            let wanted = look(seen, &member, pods, now);
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
    fn rests(&mut self, member: &Member, pods: i32) -> bool {
        let reading = member.activity.read();
        let last = self.seen.get(&member.key).map_or(Reading::default(), |s| s.reading);
        let rests = pods == 0
            && member.limits.bounds.min == 0
            && reading.in_flight == 0
            && reading.started == last.started;
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
    let window = Window { last_busy: Some(now), ..Window::default() };
    Seen { window, reading: Reading::default(), at: now.saturating_sub(TICK) }
}

fn look(seen: &mut Seen, member: &Member, pods: i32, now: Duration) -> i32 {
    let reading = member.activity.read();
    let elapsed = (now - seen.at).as_secs_f64().max(0.001);
    let busy = reading.busy_micros.saturating_sub(seen.reading.busy_micros) as f64 / 1e6;
    // Ended requests by the time they took, running ones as if they had run all along.
    let ended = (busy / elapsed).min((reading.started - seen.reading.started) as f64);
    let concurrency = ended.max(if reading.started > seen.reading.started { f64::MIN_POSITIVE } else { 0.0 })
        + reading.in_flight.max(0) as f64;
    let bounds = &member.limits.bounds;
    seen.window.add(now, concurrency, bounds.window);
    (seen.reading, seen.at) = (reading, now);
    decide(&mut seen.window, now, pods, bounds)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bounds(annotations: &[(&str, &str)]) -> Bounds {
        let map = annotations.iter().map(|(k, v)| (format!("autoscaling.knative.dev/{k}"), v.to_string()));
        Bounds::read(&ObjectMeta { annotations: Some(map.collect()), ..Default::default() }, 0)
    }

    /// Plays one concurrency a second; returns the pods after each.
    fn play(bounds: &Bounds, load: impl IntoIterator<Item = f64>) -> Vec<i32> {
        let mut window = Window::default();
        let mut pods = 0;
        let step = |(i, concurrency): (usize, f64)| {
            let now = TICK * (i as u32 + 1);
            window.add(now, concurrency, bounds.window);
            pods = decide(&mut window, now, pods, bounds);
            pods
        };
        load.into_iter().enumerate().map(step).collect()
    }

    #[test]
    fn one_request_brings_a_pod_that_goes_after_the_window() {
        let pods = play(&bounds(&[("window", "6s")]), [1.0].into_iter().chain([0.0; 10]));
        assert_eq!(pods, [1, 1, 1, 1, 1, 1, 0, 0, 0, 0, 0]);
    }

    #[test]
    fn retention_keeps_the_last_pod_longer() {
        let bounds = bounds(&[("window", "6s"), ("scale-to-zero-pod-retention-period", "3s")]);
        let pods = play(&bounds, [1.0].into_iter().chain([0.0; 10]));
        assert_eq!(pods.iter().filter(|p| **p == 1).count(), 9);
    }

    #[test]
    fn load_is_spread_over_pods_within_the_bounds() {
        assert_eq!(play(&bounds(&[("target", "10")]), [70.0; 3]), [10, 10, 10]);
        assert_eq!(play(&bounds(&[("target", "10"), ("max-scale", "4")]), [70.0; 3]), [4, 4, 4]);
        assert_eq!(play(&bounds(&[("min-scale", "2")]), [0.0; 3]), [2, 2, 2]);
        assert_eq!(play(&bounds(&[("activation-scale", "3")]), [1.0]), [3]);
    }

    #[test]
    fn a_burst_panics_and_does_not_scale_down_meanwhile() {
        let bounds = bounds(&[("target", "10")]);
        let load = [7.0; 30].into_iter().chain([280.0; 6]).chain([7.0; 20]);
        let pods = play(&bounds, load);
        assert_eq!(pods[29], 1);
        assert_eq!(*pods.iter().max().unwrap(), 40);
        assert_eq!(*pods.last().unwrap(), 40);
    }

    #[test]
    fn annotations_in_both_spellings_and_nonsense() {
        assert_eq!(bounds(&[("minScale", "2")]).min, 2);
        assert_eq!(bounds(&[("min-scale", "-1"), ("window", "soon")]), bounds(&[]));
        assert_eq!(bounds(&[("window", "1s")]).window, WINDOW_RANGE.0);
        assert_eq!(duration("1m30.5s"), Some(Duration::from_millis(90_500)));
        assert_eq!(duration("5"), None);
    }
}
