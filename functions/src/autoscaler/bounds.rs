//! What a revision's annotations, and the settings behind them, say about its scale.

use std::time::Duration;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use wasmk_api::knative::annotation;

use crate::{
    admission::ALIASES,
    config::{Autoscaler, HPA, KPA, duration},
};

/// Shortest and longest window an annotation may ask for.
const WINDOW_RANGE: (Duration, Duration) = (Duration::from_secs(6), Duration::from_secs(3600));
/// What a HorizontalPodAutoscaler aims at where no target is given: percent of the CPU asked for.
const CPU_TARGET: f64 = 80.0;

/// Who decides about a revision's pods.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// [`decide`](super::decide), by requests.
    Kpa,
    /// A HorizontalPodAutoscaler, by what pods use.
    Hpa,
    /// Somebody else.
    Other,
}

/// What is measured.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Metric {
    /// Requests at a time.
    Concurrency,
    /// Requests per second.
    Rps,
    /// A resource or a metric of pods, by name.
    Other(String),
}

/// Between which numbers of pods, and by what measure, a revision is scaled.
#[derive(Clone, Debug, PartialEq)]
pub struct Bounds {
    /// Who decides.
    pub class: Class,
    /// By what.
    pub metric: Metric,
    /// Fewest pods.
    pub min: i32,
    /// Most pods; 0 for no bound.
    pub max: i32,
    /// Pods at the start.
    pub initial: i32,
    /// Fewest pods when there is any.
    pub activation: i32,
    /// What one pod is loaded with.
    pub target: f64,
    /// What one pod could bear.
    pub capacity: f64,
    /// Requests that may come at once and find spare room.
    pub burst: f64,
    /// Length of the stable window.
    pub window: Duration,
    /// Length of the window that notices bursts.
    pub panic_window: Duration,
    /// A burst that wants this many times the present pods starts a panic.
    pub panic_threshold: f64,
    /// Most growth in one decision, as a factor.
    pub up_rate: f64,
    /// Most shrinking in one decision, as a divisor.
    pub down_rate: f64,
    /// How long the last pod stays after the window.
    pub retention: Duration,
    /// How long a smaller number must be wanted before it is taken.
    pub down_delay: Duration,
    /// Whether newer samples count for more.
    pub weighted: bool,
}

/// The annotations of a revision.
struct Annotations<'a>(&'a ObjectMeta);

impl Annotations<'_> {
    fn get(&self, name: &str) -> Option<&str> {
        let alias = ALIASES.iter().find(|(main, _)| *main == name).map(|(_, alias)| *alias);
        [Some(name), alias]
            .into_iter()
            .flatten()
            .find_map(|n| annotation(self.0, &format!("autoscaling.knative.dev/{n}")))
    }

    fn count(&self, name: &str) -> Option<i32> {
        self.get(name)?.parse().ok().filter(|n| *n >= 0)
    }

    fn number(&self, name: &str, least: f64, most: f64) -> Option<f64> {
        self.get(name)?.parse().ok().filter(|n| (least..=most).contains(n))
    }

    fn span(&self, name: &str) -> Option<Duration> {
        self.get(name).and_then(duration)
    }
}

impl Bounds {
    /// Reads `autoscaling.knative.dev/*`; what is missing or wrong is as the settings say.
    pub(crate) fn read(metadata: &ObjectMeta, container_concurrency: i64, settings: &Autoscaler) -> Self {
        let given = Annotations(metadata);
        let class = match given.get("class").unwrap_or(&settings.class) {
            KPA => Class::Kpa,
            HPA => Class::Hpa,
            _ => Class::Other,
        };
        let metric = match (given.get("metric"), class) {
            (Some("rps"), _) => Metric::Rps,
            (Some("concurrency"), _) | (None, Class::Kpa | Class::Other) => Metric::Concurrency,
            (None, Class::Hpa) => Metric::Other("cpu".into()),
            (Some(other), _) => Metric::Other(other.into()),
        };
        let utilization = given
            .number("target-utilization-percentage", 1.0, 100.0)
            .map_or(settings.utilization, |p| p / 100.0);
        let capacity = capacity(&given, &metric, container_concurrency, settings);
        let target = if class == Class::Hpa { capacity } else { (capacity * utilization).max(0.01) };
        let window = given.span("window").unwrap_or(settings.stable_window);
        let window = window.clamp(WINDOW_RANGE.0, WINDOW_RANGE.1);
        let panic = given.number("panic-window-percentage", 1.0, 100.0).unwrap_or(settings.panic_window);
        let threshold = given.number("panic-threshold-percentage", 110.0, 1000.0);
        let min = given.count("min-scale").unwrap_or(settings.min);
        Self {
            class,
            metric,
            min: if settings.to_zero { min } else { min.max(1) },
            max: given.count("max-scale").unwrap_or(settings.max),
            initial: given.count("initial-scale").unwrap_or(settings.initial),
            activation: given.count("activation-scale").unwrap_or(1).max(1),
            target,
            capacity,
            burst: given.number("target-burst-capacity", -1.0, f64::INFINITY).unwrap_or(settings.burst),
            window,
            panic_window: window.mul_f64(panic / 100.0).max(super::TICK),
            panic_threshold: threshold.unwrap_or(settings.panic_threshold) / 100.0,
            up_rate: settings.up_rate,
            down_rate: settings.down_rate,
            retention: given.span("scale-to-zero-pod-retention-period").unwrap_or(settings.retention),
            down_delay: given.span("scale-down-delay").unwrap_or(settings.down_delay).min(WINDOW_RANGE.1),
            weighted: given.get("metric-aggregation-algorithm").is_some_and(|a| a.starts_with("weighted")),
        }
    }

    /// A number of pods within the bounds.
    pub(crate) fn clamp(&self, pods: f64) -> i32 {
        let most = if self.max > 0 { self.max } else { i32::MAX };
        (pods.min(f64::from(i32::MAX)) as i32).clamp(self.min.min(most), most)
    }
}

fn capacity(given: &Annotations<'_>, metric: &Metric, limit: i64, settings: &Autoscaler) -> f64 {
    let target = given.number("target", 0.01, f64::INFINITY);
    match metric {
        Metric::Rps => target.unwrap_or(settings.rps),
        Metric::Concurrency if limit > 0 => target.unwrap_or(limit as f64).min(limit as f64),
        Metric::Concurrency => target.unwrap_or(settings.concurrency),
        Metric::Other(_) => target.unwrap_or(CPU_TARGET),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(annotations: &[(&str, &str)], concurrency: i64) -> Bounds {
        let map = annotations.iter().map(|(k, v)| (format!("autoscaling.knative.dev/{k}"), v.to_string()));
        let metadata = ObjectMeta { annotations: Some(map.collect()), ..Default::default() };
        Bounds::read(&metadata, concurrency, &Autoscaler::default())
    }

    #[test]
    fn annotations_in_both_spellings_and_nonsense() {
        assert_eq!(read(&[("minScale", "2")], 0).min, 2);
        assert_eq!(read(&[("min-scale", "-1"), ("window", "soon")], 0), read(&[], 0));
        assert_eq!(read(&[("window", "1s")], 0).window, WINDOW_RANGE.0);
        assert_eq!(read(&[("scaleDownDelay", "1m")], 0).down_delay, Duration::from_secs(60));
        assert!(read(&[("metricAggregationAlgorithm", "weightedExponential")], 0).weighted);
    }

    #[test]
    fn targets() {
        let target = |annotations: &[(&str, &str)], concurrency| read(annotations, concurrency).target;
        for (got, expected) in [
            (target(&[], 0), 70.0),
            (target(&[], 10), 7.0),
            (target(&[("target", "50")], 10), 7.0),
            (target(&[("target", "50")], 0), 35.0),
            (target(&[("target", "50"), ("target-utilization-percentage", "100")], 0), 50.0),
            (target(&[("metric", "rps")], 0), 140.0),
            (target(&[("metric", "rps"), ("target", "10")], 0), 7.0),
            (target(&[("class", HPA)], 0), 80.0),
        ] {
            assert!((got - expected).abs() < 1e-9, "{got} is not {expected}");
        }
        assert_eq!(read(&[("class", HPA), ("metric", "memory")], 0).metric, Metric::Other("memory".into()));
    }

    #[test]
    fn without_scale_to_zero_one_pod_stays() {
        let settings = Autoscaler { to_zero: false, ..Autoscaler::default() };
        assert_eq!(Bounds::read(&ObjectMeta::default(), 0, &settings).min, 1);
    }
}
