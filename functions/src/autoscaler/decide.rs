//! The number of pods for what was seen: a pure function of a window of samples.

use std::{collections::VecDeque, time::Duration};

use super::Bounds;

/// What was seen of a revision's requests, newest last.
#[derive(Clone, Debug, Default)]
pub(crate) struct Window {
    /// When, and the mean of the metric since the sample before.
    samples: VecDeque<(Duration, f64)>,
    panic_until: Option<Duration>,
    panic_pods: i32,
    last_busy: Option<Duration>,
    /// Decisions of late, for the delay of smaller ones.
    wanted: VecDeque<(Duration, i32)>,
}

/// What is to be done.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Decision {
    /// The number of pods.
    pub pods: i32,
    /// Room left for requests that come at once; below zero, they may have to wait.
    pub spare: f64,
}

impl Window {
    /// Empty, as if the last request had been just now.
    pub(super) fn busy_at(now: Duration) -> Self {
        Self { last_busy: Some(now), ..Self::default() }
    }

    /// Adds what was seen until `now` (since any fixed moment) and forgets what is older than the window.
    pub(crate) fn add(&mut self, now: Duration, value: f64, window: Duration) {
        self.samples.push_back((now, value));
        if value > 0.0 {
            self.last_busy = Some(now);
        }
        while self.samples.front().is_some_and(|(at, _)| *at + window <= now) {
            self.samples.pop_front();
        }
    }

    /// The mean over the latest samples; with `weighted`, each counts for more than the ones before it.
    fn mean(&self, now: Duration, window: Duration, weighted: bool) -> f64 {
        let recent: Vec<f64> =
            self.samples.iter().filter(|(at, _)| *at + window > now).map(|(_, value)| *value).collect();
        if recent.is_empty() {
            return 0.0;
        }
        // So that all but a thousandth of the weight falls within the window.
        let keep = if weighted { 0.001_f64.powf(1.0 / recent.len() as f64) } else { 1.0 };
        let (mut sum, mut weights, mut weight) = (0.0, 0.0, 1.0);
        for value in recent.iter().rev() {
            sum += value * weight;
            weights += weight;
            weight *= keep;
        }
        sum / weights
    }

    /// The largest number wanted over the delay.
    fn delayed(&mut self, now: Duration, pods: i32, delay: Duration) -> i32 {
        if delay.is_zero() {
            return pods;
        }
        self.wanted.push_back((now, pods));
        while self.wanted.front().is_some_and(|(at, _)| *at + delay <= now) {
            self.wanted.pop_front();
        }
        self.wanted.iter().map(|(_, pods)| *pods).max().unwrap_or(pods)
    }
}

/// The number of pods a revision should have now, given the number it has.
pub(crate) fn decide(window: &mut Window, now: Duration, pods: i32, bounds: &Bounds) -> Decision {
    let ready = f64::from(pods.max(1));
    let stable = window.mean(now, bounds.window, bounds.weighted);
    let burst = window.mean(now, bounds.panic_window, bounds.weighted);
    let limited = |load: f64| {
        let wanted = (load / bounds.target).ceil().min((ready * bounds.up_rate).ceil());
        let wanted = if pods > 0 { wanted.max((ready / bounds.down_rate).floor()) } else { wanted };
        if load > 0.0 { wanted.max(f64::from(bounds.activation)) } else { wanted }
    };
    let (stable_pods, burst_pods) = (limited(stable), limited(burst));
    panic(window, now, pods, (burst / bounds.target).ceil() / ready, bounds.clamp(burst_pods), bounds);

    let spare = f64::from(pods) * bounds.capacity - burst - bounds.burst.max(0.0);
    if stable == 0.0 {
        let rested = window.last_busy.is_none_or(|at| at + bounds.window + bounds.retention <= now);
        let last = if rested { 0 } else { pods.clamp(0, 1) };
        let pods = window.delayed(now, bounds.clamp(f64::from(last)), bounds.down_delay);
        return Decision { pods, spare };
    }
    let mut wanted = bounds.clamp(stable_pods.max(1.0));
    if window.panic_until.is_some() {
        wanted = wanted.max(window.panic_pods);
    }
    Decision { pods: window.delayed(now, wanted, bounds.down_delay), spare }
}

/// Begins, goes on with or ends a panic: a time in which pods only grow in number.
fn panic(window: &mut Window, now: Duration, pods: i32, over: f64, wanted: i32, bounds: &Bounds) {
    if over >= bounds.panic_threshold {
        window.panic_until = Some(now + bounds.window);
    } else if window.panic_until.is_some_and(|until| until <= now) {
        window.panic_until = None;
        window.panic_pods = 0;
    }
    if window.panic_until.is_some() {
        window.panic_pods = window.panic_pods.max(wanted).max(bounds.clamp(f64::from(pods)));
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

    use super::*;
    use crate::{autoscaler::TICK, config::Autoscaler};

    fn bounds(annotations: &[(&str, &str)]) -> Bounds {
        let map = annotations.iter().map(|(k, v)| (format!("autoscaling.knative.dev/{k}"), v.to_string()));
        let metadata = ObjectMeta { annotations: Some(map.collect()), ..Default::default() };
        Bounds::read(&metadata, 0, &Autoscaler::default())
    }

    /// Plays one value of the metric a second; returns the pods after each.
    fn play(bounds: &Bounds, load: impl IntoIterator<Item = f64>) -> Vec<i32> {
        let mut window = Window::default();
        let mut pods = 0;
        let step = |(i, value): (usize, f64)| {
            let now = TICK * (i as u32 + 1);
            window.add(now, value, bounds.window);
            pods = decide(&mut window, now, pods, bounds).pods;
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
        assert_eq!(play(&bounds(&[("metric", "rps"), ("target", "100")]), [700.0; 2]), [10, 10]);
    }

    #[test]
    fn activation_holds_while_there_is_any_load() {
        let bounds = bounds(&[("activation-scale", "3"), ("window", "6s")]);
        assert_eq!(play(&bounds, [1.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0]), [3, 3, 3, 3, 3, 3, 0]);
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
    fn pods_at_most_halve_in_a_decision() {
        let bounds = bounds(&[("target", "10"), ("window", "6s")]);
        let pods = play(&bounds, [280.0; 6].into_iter().chain([7.0; 30]));
        assert!(pods.windows(2).skip(1).all(|w| w[1] <= w[0] && w[1] >= w[0] / 2), "{pods:?}");
        assert_eq!((pods[0], *pods.last().unwrap()), (40, 1));
    }

    #[test]
    fn a_delay_keeps_pods_for_returning_load() {
        let plain = [("target", "10"), ("window", "6s"), ("panic-threshold-percentage", "1000")];
        let load = || [70.0; 6].into_iter().chain([7.0; 12]);
        let now = play(&bounds(&plain), load());
        let later = play(&bounds(&[&plain[..], &[("scale-down-delay", "10s")]].concat()), load());
        let below = |pods: &[i32]| pods.iter().skip(6).position(|p| *p < 10).unwrap_or(99);
        assert!(below(&later) >= below(&now) + 9, "{now:?} {later:?}");
    }

    #[test]
    fn newer_samples_weigh_more_when_asked() {
        let plain = [("target", "10"), ("panic-threshold-percentage", "1000")];
        let weighted = [&plain[..], &[("metric-aggregation-algorithm", "weighted-exponential")]].concat();
        let load = || [7.0; 30].into_iter().chain([60.0; 5]);
        let last = |bounds: &Bounds| *play(bounds, load()).last().unwrap();
        assert!(last(&bounds(&weighted)) > last(&bounds(&plain)));
    }

    #[test]
    fn spare_room_is_what_pods_can_bear_beyond_load_and_burst() {
        let bounds = bounds(&[("target", "10"), ("target-burst-capacity", "5")]);
        let mut window = Window::default();
        window.add(TICK, 8.0, bounds.window);
        assert_eq!(decide(&mut window, TICK, 2, &bounds).spare, 20.0 - 8.0 - 5.0);
    }
}
