//! The annotations `autoscaling.knative.dev/*` of a template.

use std::time::Duration;

use serde_json::Value;

use super::problem::Problems;
use crate::config::{Config, HPA, KPA, duration, go_duration};

const PREFIX: &str = "autoscaling.knative.dev/";
/// Bounds of the window.
const WINDOW: (Duration, Duration) = (Duration::from_secs(6), Duration::from_secs(3600));
/// Names with a second spelling, by which older manifests know them.
pub(crate) const ALIASES: [(&str, &str); 10] = [
    ("min-scale", "minScale"),
    ("max-scale", "maxScale"),
    ("initial-scale", "initialScale"),
    ("scale-down-delay", "scaleDownDelay"),
    ("metric-aggregation-algorithm", "metricAggregationAlgorithm"),
    ("panic-window-percentage", "panicWindowPercentage"),
    ("panic-threshold-percentage", "panicThresholdPercentage"),
    ("scale-to-zero-pod-retention-period", "scaleToZeroPodRetentionPeriod"),
    ("target-burst-capacity", "targetBurstCapacity"),
    ("target-utilization-percentage", "targetUtilizationPercentage"),
];

/// The full key and the text of an annotation in one of its spellings.
fn find<'a>(annotations: &'a Value, name: &str) -> Option<(String, &'a str)> {
    let alias = ALIASES.iter().find(|(main, _)| *main == name).map(|(_, alias)| *alias);
    [Some(name), alias].into_iter().flatten().find_map(|spelling| {
        let key = format!("{PREFIX}{spelling}");
        let text = annotations[&key].as_str()?;
        Some((key, text))
    })
}

struct Check<'a> {
    annotations: &'a Value,
    base: &'a str,
    problems: &'a mut Problems,
}

/// Checks all of them.
pub(super) fn check(annotations: &Value, base: &str, config: &Config, problems: &mut Problems) {
    let mut check = Check { annotations, base, problems };
    check.class_and_metric(&config.autoscaler.class);
    check.scales(config);
    check.numbers();
    check.spans();
}

impl Check<'_> {
    fn at(&self, key: &str) -> String {
        format!("{}.{key}", self.base)
    }

    fn class_and_metric(&mut self, default_class: &str) {
        let class = find(self.annotations, "class");
        if let Some((key, value)) = &class
            && value.ends_with(".knative.dev")
            && ![KPA, HPA].contains(value)
        {
            self.problems.invalid(value, self.at(key));
        }
        let class = class.map_or(default_class, |(_, value)| value);
        if let Some((key, metric)) = find(self.annotations, "metric") {
            let known = match class {
                KPA => ["concurrency", "rps"].contains(&metric),
                HPA => !metric.is_empty(),
                _ => true,
            };
            if !known {
                self.problems.invalid(metric, self.at(&key));
            }
        }
        if let Some((key, way)) = find(self.annotations, "metric-aggregation-algorithm")
            && class == KPA
            && !["", "linear", "weighted-exponential", "weightedExponential"].contains(&way)
        {
            self.problems.invalid(way, self.at(&key));
        }
    }

    fn count(&mut self, name: &str) -> Option<i32> {
        let (key, text) = find(self.annotations, name)?;
        match text.parse::<i128>() {
            Err(_) => self.problems.invalid(text, self.at(&key)),
            Ok(n) if !(0..=i128::from(i32::MAX)).contains(&n) => {
                self.problems.bounds(text, 0, i32::MAX, self.at(&key));
            }
            Ok(n) => return i32::try_from(n).ok(),
        }
        None
    }

    fn scales(&mut self, config: &Config) {
        let min = self.count("min-scale").unwrap_or(0);
        let max = self.count("max-scale");
        let limit = config.autoscaler.max_limit;
        if let Some(max) = max.filter(|max| *max != 0 && *max < min) {
            let message = format!("max-scale={max} is less than min-scale={min}");
            self.problems.add(message.clone(), self.at("autoscaling.knative.dev/max-scale"));
            self.problems.add(message, self.at("autoscaling.knative.dev/min-scale"));
        }
        if let (Some(max), Some((key, _))) = (max, find(self.annotations, "max-scale").filter(|_| limit > 0))
        {
            match max {
                0 => {
                    let message = format!("max-scale=0 (unlimited), must be less than {limit}");
                    self.problems.add(message, self.at(&key));
                }
                max if max > limit => self.problems.bounds(max, 1, limit, self.at(&key)),
                _ => {}
            }
        }
        self.activation(min, max.unwrap_or(0));
        if let Some((key, text)) = find(self.annotations, "initial-scale") {
            match text.parse::<i64>() {
                Err(_) => self.problems.invalid(text, self.at(&key)),
                Ok(n) if n < 0 => {
                    self.problems.invalid(text, self.at(&format!("{key} must be greater than 0")))
                }
                Ok(0) if !config.autoscaler.zero_initial => {
                    self.problems.invalid(text, self.at(&format!("{key}=0 not allowed by cluster")));
                }
                Ok(_) => {}
            }
        }
    }

    fn activation(&mut self, min: i32, max: i32) {
        let Some((key, text)) = find(self.annotations, "activation-scale") else { return };
        let at = self.at(&key);
        match text.parse::<i32>() {
            Err(_) => self.problems.invalid(text, at),
            Ok(n) if min > n => {
                self.problems.add(format!("min-scale={min} is greater than activation-scale={n}"), at);
            }
            Ok(n) if max != 0 && max < n => {
                self.problems.add(format!("max-scale={max} is less than activation-scale={n}"), at);
            }
            Ok(n) if n < 2 => self.problems.add(format!("activation-scale={n} must be greater than 1"), at),
            Ok(_) => {}
        }
    }

    fn numbers(&mut self) {
        for (name, low, high) in [
            ("panic-window-percentage", 1.0, 100.0),
            ("panic-threshold-percentage", 110.0, 1000.0),
            ("target-utilization-percentage", 1.0, 100.0),
        ] {
            let Some((key, text)) = find(self.annotations, name) else { continue };
            match text.parse::<f64>() {
                Ok(n) if (low..=high).contains(&n) => {}
                Ok(_) => self.problems.bounds(text, low, high, self.at(&key)),
                Err(_) => self.problems.invalid(text, self.at(&key)),
            }
        }
        if let Some((key, text)) = find(self.annotations, "target") {
            match text.parse::<f64>() {
                Ok(n) if n >= 0.01 => {}
                Ok(_) => self.problems.add(format!("target {text} should be at least 0.01"), self.at(&key)),
                Err(_) => self.problems.invalid(text, self.at(&key)),
            }
        }
        if let Some((key, text)) = find(self.annotations, "target-burst-capacity")
            && !text.parse::<f64>().is_ok_and(|n| n >= 0.0 || n == -1.0)
        {
            self.problems.invalid(text, self.at(&key));
        }
    }

    fn spans(&mut self) {
        for (name, least, whole) in [
            ("window", WINDOW.0, true),
            ("scale-down-delay", Duration::ZERO, true),
            ("scale-to-zero-pod-retention-period", Duration::ZERO, false),
        ] {
            let Some((key, text)) = find(self.annotations, name) else { continue };
            let negative = text.strip_prefix('-').and_then(duration).is_some();
            match duration(text) {
                Some(span) if span < least || span > WINDOW.1 => {
                    self.problems.bounds(text, go_duration(least), go_duration(WINDOW.1), self.at(&key));
                }
                Some(span) if whole && span.subsec_nanos() != 0 => {
                    self.problems.add("must be specified with at most second precision", self.at(&key));
                }
                Some(_) => {}
                None if negative => {
                    self.problems.bounds(text, go_duration(least), go_duration(WINDOW.1), self.at(&key));
                }
                None => self.problems.invalid(text, self.at(&key)),
            }
        }
    }
}
