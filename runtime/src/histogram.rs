//! Distributions of times, counted without a lock.

use std::fmt::Write;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// Upper ends of the buckets, in microseconds; a last one has no end.
const ENDS: [u64; 19] = [
    10, 25, 50, 100, 250, 500, 1_000, 2_500, 5_000, 10_000, 25_000, 50_000, 100_000, 250_000, 500_000,
    1_000_000, 2_500_000, 5_000_000, 10_000_000,
];

/// How often something took how long.
#[derive(Debug, Default)]
pub struct Histogram {
    buckets: [AtomicU64; ENDS.len() + 1],
    nanos: AtomicU64,
}

/// A distribution of times at one moment, or how much it has grown.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Times {
    buckets: [u64; ENDS.len() + 1],
    nanos: u64,
}

impl Times {
    /// How much it has grown since `before`.
    pub(crate) fn since(&self, before: &Self) -> Self {
        let buckets = std::array::from_fn(|i| self.buckets[i].saturating_sub(before.buckets[i]));
        Self { buckets, nanos: self.nanos.saturating_sub(before.nanos) }
    }
}

impl Histogram {
    /// Counts one time.
    pub fn record(&self, time: Duration) {
        let nanos = u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
        let bucket = ENDS.partition_point(|end| end * 1000 < nanos);
        self.buckets[bucket].fetch_add(1, Ordering::Relaxed);
        self.nanos.fetch_add(nanos, Ordering::Relaxed);
    }

    /// All that is counted.
    pub(crate) fn times(&self) -> Times {
        let buckets = std::array::from_fn(|i| self.buckets[i].load(Ordering::Relaxed));
        Times { buckets, nanos: self.nanos.load(Ordering::Relaxed) }
    }

    /// Adds what was counted elsewhere.
    pub(crate) fn add(&self, times: &Times) {
        for (bucket, more) in self.buckets.iter().zip(times.buckets) {
            bucket.fetch_add(more, Ordering::Relaxed);
        }
        self.nanos.fetch_add(times.nanos, Ordering::Relaxed);
    }

    /// Times counted so far.
    pub fn count(&self) -> u64 {
        self.buckets.iter().map(|bucket| bucket.load(Ordering::Relaxed)).sum()
    }

    /// Appends the lines of this distribution in Prometheus' text format, in seconds. `labels` are written as
    /// they are, without braces; the family's `# TYPE` line is the caller's.
    pub fn write(&self, name: &str, labels: &str, out: &mut String) {
        let mut below = 0;
        for (i, bucket) in self.buckets.iter().enumerate() {
            below += bucket.load(Ordering::Relaxed);
            let end = ENDS.get(i).map_or("+Inf".to_owned(), |micros| (*micros as f64 / 1e6).to_string());
            // Writing to a string cannot fail.
            let _ = writeln!(out, "{name}_bucket{{{labels},le=\"{end}\"}} {below}");
        }
        let seconds = self.nanos.load(Ordering::Relaxed) as f64 / 1e9;
        let _ = writeln!(out, "{name}_sum{{{labels}}} {seconds}\n{name}_count{{{labels}}} {below}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_fall_into_buckets_that_add_up() {
        let histogram = Histogram::default();
        for micros in [1, 10, 11, 2_000, 60_000_000] {
            histogram.record(Duration::from_micros(micros));
        }
        let mut text = String::new();
        histogram.write("t_seconds", "phase=\"x\"", &mut text);
        for line in [
            "t_seconds_bucket{phase=\"x\",le=\"0.00001\"} 2",
            "t_seconds_bucket{phase=\"x\",le=\"0.000025\"} 3",
            "t_seconds_bucket{phase=\"x\",le=\"0.0025\"} 4",
            "t_seconds_bucket{phase=\"x\",le=\"10\"} 4",
            "t_seconds_bucket{phase=\"x\",le=\"+Inf\"} 5",
            "t_seconds_sum{phase=\"x\"} 60.002022",
            "t_seconds_count{phase=\"x\"} 5",
        ] {
            assert!(text.lines().any(|l| l == line), "{line} is not in\n{text}");
        }
        assert_eq!(histogram.count(), 5);
    }
}
