//! The arithmetic of horizontal autoscaling: from usage to replicas, within limits and
//! at a limited pace.

use std::time::Duration;

use k8s_openapi::api::autoscaling::v2::{HPAScalingPolicy, HPAScalingRules, HorizontalPodAutoscalerBehavior};
use wasmk_api::{Quantity, Timestamp};

/// Ratios this close to one change nothing, unless an autoscaler says otherwise.
const TOLERANCE: f64 = 0.1;
/// How long an earlier, higher recommendation holds scaling down back.
const SETTLE_DOWN: Duration = Duration::from_secs(300);
/// Recommendations and changes remembered.
pub(super) const MAX_MEMORY: usize = 512;

/// A pod as one metric sees it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sample {
    /// What it uses, if the metric has it.
    pub(super) usage: Option<i64>,
    /// What it requests (for utilization), or 0.
    pub(super) request: i64,
    /// Whether it serves: one that is starting up says little.
    pub(super) ready: bool,
}

/// What a metric aims at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Target {
    /// Percent of what is requested.
    Utilization(i64),
    /// An amount per pod.
    Average(i64),
}

/// How far from its target a metric may be without a change.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Tolerance {
    up: f64,
    down: f64,
}

impl Tolerance {
    /// Of an autoscaler's rules.
    pub(super) fn of(behavior: Option<&HorizontalPodAutoscalerBehavior>) -> Self {
        let of = |rules: Option<&HPAScalingRules>| {
            let text = rules.and_then(|r| r.tolerance.as_ref());
            let amount = text.and_then(|q| q.0.parse::<Quantity>().ok());
            amount.map_or(TOLERANCE, |q| q.milli_value() as f64 / 1000.0)
        };
        Self {
            up: of(behavior.and_then(|b| b.scale_up.as_ref())),
            down: of(behavior.and_then(|b| b.scale_down.as_ref())),
        }
    }

    /// Whether a ratio of what is measured to what is aimed at changes nothing.
    pub(super) fn covers(self, ratio: f64) -> bool {
        (1.0 - self.down..=1.0 + self.up).contains(&ratio)
    }
}

/// The replicas at which one measure of the whole would be at its target: the ready pods
/// times how far it is above. A target that is at zero begins with the ratio itself.
pub(super) fn whole(current: i32, ready: i32, measured: i64, target: i64, tolerance: Tolerance) -> i32 {
    let ratio = measured as f64 / target.max(1) as f64;
    if current == 0 {
        return ratio.ceil() as i32;
    }
    if tolerance.covers(ratio) { current } else { (ratio * f64::from(ready)).ceil() as i32 }
}

/// The replicas over which one measure of the whole is shared out at the target's amount each.
pub(super) fn shared(current: i32, measured: i64, each: i64, tolerance: Tolerance) -> i32 {
    let wanted = measured as f64 / each.max(1) as f64;
    let ratio = if current == 0 { f64::INFINITY } else { wanted / f64::from(current) };
    if tolerance.covers(ratio) { current } else { wanted.ceil() as i32 }
}

/// A metric's proposal and what it measured: percent (for utilization), average per pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Proposal {
    pub(super) replicas: i32,
    pub(super) percent: Option<i64>,
    pub(super) average: i64,
}

/// The replicas that would bring a metric to its target.
///
/// # Errors
/// In words for the condition, when nothing was measured or requests are missing.
pub(super) fn propose(
    current: i32,
    samples: &[Sample],
    target: Target,
    tolerance: Tolerance,
) -> Result<Proposal, String> {
    let measured: Vec<(i64, i64)> =
        samples.iter().filter(|s| s.ready).filter_map(|s| Some((s.usage?, s.request))).collect();
    if measured.is_empty() {
        return Err("no metrics returned from resource metrics API".into());
    }
    if matches!(target, Target::Utilization(_)) && samples.iter().any(|s| s.request <= 0) {
        return Err("missing request for the resource".into());
    }
    let ratio = |all: &[(i64, i64)]| {
        let usage: i64 = all.iter().map(|(u, _)| u).sum();
        match target {
            Target::Utilization(percent) => {
                let request: i64 = all.iter().map(|(_, r)| r).sum();
                usage as f64 * 100.0 / request.max(1) as f64 / percent.max(1) as f64
            }
            Target::Average(amount) => usage as f64 / all.len() as f64 / amount.max(1) as f64,
        }
    };
    let usage: i64 = measured.iter().map(|(u, _)| u).sum();
    let request: i64 = measured.iter().map(|(_, r)| r).sum();
    let average = usage / i64::try_from(measured.len()).unwrap_or(1);
    let percent = matches!(target, Target::Utilization(_)).then(|| usage * 100 / request.max(1));
    let done = |replicas| Ok(Proposal { replicas, percent, average });
    let first = ratio(&measured);
    if tolerance.covers(first) {
        return done(current);
    }
    // Pods without a measure are taken to speak against the change.
    let mut all = measured;
    for sample in samples.iter().filter(|s| !s.ready || s.usage.is_none()) {
        match (first < 1.0, sample.usage) {
            (true, None) => all.push((full(target, sample), sample.request)),
            (false, _) => all.push((0, sample.request)),
            (true, Some(_)) => {}
        }
    }
    let second = ratio(&all);
    if tolerance.covers(second) || (first > 1.0) != (second > 1.0) {
        return done(current);
    }
    let wanted = (second * all.len() as f64).ceil() as i32;
    let backwards = (first > 1.0 && wanted < current) || (first < 1.0 && wanted > current);
    done(if backwards { current } else { wanted })
}

/// What a pod is taken to use that is not measured while others have little to do.
fn full(target: Target, sample: &Sample) -> i64 {
    match target {
        Target::Utilization(percent) => sample.request.saturating_mul(percent.max(100)) / 100,
        Target::Average(amount) => amount,
    }
}

/// What happened to an autoscaler's target lately.
#[derive(Clone, Debug, Default)]
pub(super) struct Memory {
    /// Recommendations before they were smoothed.
    pub(super) recommended: Vec<(Timestamp, i32)>,
    /// Changes: by how many pods.
    pub(super) changes: Vec<(Timestamp, i32)>,
}

/// The limits of an autoscaler.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    pub(super) min: i32,
    pub(super) max: i32,
}

/// The outcome and the reason it is limited, if it is.
pub(super) type Limited = (i32, Option<(&'static str, &'static str)>);

/// Smooths a recommendation: holds it for the stabilization window, paces it, keeps it in
/// its limits.
pub(super) fn smooth(
    current: i32,
    wanted: i32,
    limits: Limits,
    behavior: Option<&HorizontalPodAutoscalerBehavior>,
    memory: &mut Memory,
    now: Timestamp,
) -> Limited {
    let up = behavior.and_then(|b| b.scale_up.as_ref());
    let down = behavior.and_then(|b| b.scale_down.as_ref());
    let window = |rules: Option<&HPAScalingRules>, default: Duration| {
        let seconds = rules.and_then(|r| r.stabilization_window_seconds).and_then(|s| u64::try_from(s).ok());
        seconds.map_or(default, Duration::from_secs)
    };
    let (hold_up, hold_down) = (window(up, Duration::ZERO), window(down, SETTLE_DOWN));
    memory.recommended.push((now, wanted));
    forget(&mut memory.recommended, now, hold_up.max(hold_down));
    let within = |span: Duration| {
        memory.recommended.iter().filter(move |(at, _)| now.since(*at) <= span).map(|(_, n)| *n)
    };
    let least = within(hold_up).min().unwrap_or(wanted);
    let most = within(hold_down).max().unwrap_or(wanted);
    let steady = current.max(least).min(most);
    forget(&mut memory.changes, now, Duration::from_secs(1800));
    let (paced, rate) = match steady.cmp(&current) {
        std::cmp::Ordering::Greater => (steady.min(pace_up(current, up, memory, now)), "ScaleUpLimit"),
        std::cmp::Ordering::Less => (steady.max(pace_down(current, down, memory, now)), "ScaleDownLimit"),
        std::cmp::Ordering::Equal => (steady, ""),
    };
    if paced > limits.max {
        return (
            limits.max,
            Some(("TooManyReplicas", "the desired replica count is more than the maximum replica count")),
        );
    }
    if paced < limits.min {
        return (
            limits.min,
            Some(("TooFewReplicas", "the desired replica count is less than the minimum replica count")),
        );
    }
    let reason = (paced != steady)
        .then_some((rate, "the desired replica count is changing faster than the policy allows"));
    (paced, reason)
}

fn forget(list: &mut Vec<(Timestamp, i32)>, now: Timestamp, span: Duration) {
    list.retain(|(at, _)| now.since(*at) <= span);
    let surplus = list.len().saturating_sub(MAX_MEMORY);
    list.drain(..surplus);
}

fn policy(kind: &str, value: i32) -> HPAScalingPolicy {
    HPAScalingPolicy { type_: kind.into(), value, period_seconds: 15 }
}

/// The most replicas that the policies allow now.
fn pace_up(current: i32, rules: Option<&HPAScalingRules>, memory: &Memory, now: Timestamp) -> i32 {
    let default = vec![policy("Pods", 4), policy("Percent", 100)];
    let policies = rules.and_then(|r| r.policies.clone()).filter(|p| !p.is_empty()).unwrap_or(default);
    let allowed = policies.iter().map(|p| {
        let start = current - changed(memory, p, now, 1);
        match &*p.type_ {
            "Pods" => start + p.value,
            _ => (f64::from(start) * (1.0 + f64::from(p.value) / 100.0)).ceil() as i32,
        }
    });
    match rules.and_then(|r| r.select_policy.as_deref()) {
        Some("Disabled") => current,
        Some("Min") => allowed.min().unwrap_or(current),
        _ => allowed.max().unwrap_or(current),
    }
}

/// The fewest replicas that the policies allow now.
fn pace_down(current: i32, rules: Option<&HPAScalingRules>, memory: &Memory, now: Timestamp) -> i32 {
    let default = vec![policy("Percent", 100)];
    let policies = rules.and_then(|r| r.policies.clone()).filter(|p| !p.is_empty()).unwrap_or(default);
    let allowed = policies.iter().map(|p| {
        let start = current + changed(memory, p, now, -1);
        match &*p.type_ {
            "Pods" => start - p.value,
            _ => (f64::from(start) * (1.0 - f64::from(p.value) / 100.0)) as i32,
        }
    });
    match rules.and_then(|r| r.select_policy.as_deref()) {
        Some("Disabled") => current,
        Some("Min") => allowed.max().unwrap_or(current),
        _ => allowed.min().unwrap_or(current),
    }
}

/// By how many pods the target changed in that direction within a policy's period.
fn changed(memory: &Memory, policy: &HPAScalingPolicy, now: Timestamp, sign: i32) -> i32 {
    let period = Duration::from_secs(u64::try_from(policy.period_seconds).unwrap_or(0));
    let recent = memory.changes.iter().filter(|(at, _)| now.since(*at) < period);
    recent.map(|(_, by)| (by * sign).max(0)).sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Usages in percent of a request of 1000; `-` not measured, `!` not ready.
    fn samples(text: &str) -> Vec<Sample> {
        let sample = |word: &str| {
            let ready = !word.ends_with('!');
            let usage = word.trim_end_matches('!').parse::<i64>().ok().map(|p| p * 10);
            Sample { usage, request: 1000, ready }
        };
        text.split_whitespace().map(sample).collect()
    }

    #[test]
    fn usage_over_target_times_pods_rounded_up() {
        let check = |current, usages: &str, target, expect| {
            let proposal =
                propose(current, &samples(usages), Target::Utilization(target), Tolerance::of(None)).unwrap();
            assert_eq!(proposal.replicas, expect, "{usages}");
        };
        check(2, "160 160", 80, 4);
        check(2, "85 85", 80, 2);
        check(4, "20 20 20 20", 80, 1);
        check(3, "100 100 -", 80, 3);
        check(3, "200 200 -", 80, 5);
        check(3, "10 10 -", 80, 2);
        check(3, "200 200 200!", 80, 5);
        check(1, "500", 50, 10);
        assert!(propose(1, &samples("-"), Target::Utilization(80), Tolerance::of(None)).is_err());
        let bare = [Sample { usage: Some(5), request: 0, ready: true }];
        assert!(propose(1, &bare, Target::Utilization(80), Tolerance::of(None)).is_err());
        assert_eq!(propose(1, &bare, Target::Average(2), Tolerance::of(None)).unwrap().replicas, 3);
    }

    fn at(seconds: u64) -> Timestamp {
        let start: Timestamp = "2026-01-01T00:00:00Z".parse().unwrap();
        start.after(Duration::from_secs(seconds))
    }

    #[test]
    fn up_at_once_but_paced_and_down_after_a_while() {
        let limits = Limits { min: 2, max: 20 };
        let mut memory = Memory::default();
        assert_eq!(smooth(2, 15, limits, None, &mut memory, at(0)).0, 6);
        memory.changes.push((at(0), 4));
        assert_eq!(smooth(6, 15, limits, None, &mut memory, at(5)).0, 6, "the period's pods are spent");
        assert_eq!(smooth(6, 15, limits, None, &mut memory, at(15)).0, 12);
        assert_eq!(smooth(12, 3, limits, None, &mut memory, at(60)).0, 12, "held");
        assert_eq!(smooth(12, 3, limits, None, &mut memory, at(316)).0, 3);
        let (replicas, why) = smooth(12, 0, limits, None, &mut memory, at(700));
        assert_eq!((replicas, why.unwrap().0), (2, "TooFewReplicas"));
        let (replicas, why) = smooth(19, 99, limits, None, &mut memory, at(1200));
        assert_eq!((replicas, why.unwrap().0), (20, "TooManyReplicas"));
    }

    #[test]
    fn measures_of_the_whole() {
        let usual = Tolerance::of(None);
        assert_eq!(whole(4, 4, 150, 100, usual), 6);
        assert_eq!(whole(4, 3, 200, 100, usual), 6, "only those that serve have carried it");
        assert_eq!(whole(4, 4, 109, 100, usual), 4);
        assert_eq!(whole(0, 0, 250, 100, usual), 3, "from nothing");
        assert_eq!(shared(2, 1000, 100, usual), 10);
        assert_eq!(shared(10, 1050, 100, usual), 10);
        assert_eq!(shared(5, 0, 100, usual), 0);
        let strict = serde_json::from_value(serde_json::json!({"scaleUp": {"tolerance": "20m"}})).unwrap();
        assert_eq!(shared(10, 1050, 100, Tolerance::of(Some(&strict))), 11);
        assert_eq!(shared(10, 950, 100, Tolerance::of(Some(&strict))), 10);
    }

    proptest! {
        /// Whatever is recommended, the outcome stays in its limits and moves no faster than the
        /// policies allow; the same recommendation for long enough is reached and then kept.
        #[test]
        fn paced_within_limits(start in 1..50i32, wanted in prop::collection::vec(0..60i32, 1..30), min in 1..10i32, span in 0..40i32) {
            let limits = Limits { min, max: min + span };
            let mut memory = Memory::default();
            let mut current = start.clamp(limits.min, limits.max);
            let mut seconds = 0;
            let last = *wanted.last().unwrap();
            for wanted in wanted.iter().copied().chain(std::iter::repeat_n(last, 60)) {
                seconds += 15;
                let (next, _) = smooth(current, wanted, limits, None, &mut memory, at(seconds));
                prop_assert!((limits.min..=limits.max).contains(&next));
                prop_assert!(next <= (current * 2).max(current + 4));
                if next != current {
                    memory.changes.push((at(seconds), next - current));
                }
                current = next;
            }
            prop_assert_eq!(current, last.clamp(limits.min, limits.max));
        }
    }
}
