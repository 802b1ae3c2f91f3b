//! How long pods take to start, from their arrival at this node to the run of all their containers.

use std::{
    fmt::Write,
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

/// Upper ends of the buckets, in milliseconds.
const ENDS: [u64; 16] =
    [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10_000, 30_000, 60_000, 300_000];
/// The kubelet's name for it.
const NAME: &str = "kubelet_pod_start_duration_seconds";

/// A histogram.
#[derive(Debug, Default)]
pub(crate) struct Starts {
    buckets: [AtomicU64; ENDS.len()],
    count: AtomicU64,
    micros: AtomicU64,
}

impl Starts {
    /// Counts one pod.
    pub(crate) fn add(&self, took: Duration) {
        let millis = took.as_micros().div_ceil(1000);
        if let Some(bucket) = ENDS.iter().position(|end| millis <= u128::from(*end)) {
            self.buckets[bucket].fetch_add(1, Ordering::Relaxed);
        }
        self.count.fetch_add(1, Ordering::Relaxed);
        self.micros.fetch_add(u64::try_from(took.as_micros()).unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    /// In the text format of Prometheus.
    pub(crate) fn text(&self) -> String {
        let mut out = format!(
            "# HELP {NAME} Time from a pod's arrival at the node to the run of all its containers.\n# TYPE {NAME} histogram\n"
        );
        let mut total = 0;
        for (bucket, end) in self.buckets.iter().zip(ENDS) {
            total += bucket.load(Ordering::Relaxed);
            let end = Duration::from_millis(end).as_secs_f64();
            // Writing to a string cannot fail.
            let _ = writeln!(out, "{NAME}_bucket{{le=\"{end}\"}} {total}");
        }
        let count = self.count.load(Ordering::Relaxed);
        let sum = Duration::from_micros(self.micros.load(Ordering::Relaxed)).as_secs_f64();
        let _ = write!(out, "{NAME}_bucket{{le=\"+Inf\"}} {count}\n{NAME}_sum {sum}\n{NAME}_count {count}\n");
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_are_cumulative() {
        let starts = Starts::default();
        for millis in [1, 3, 4, 400, 1_000_000] {
            starts.add(Duration::from_millis(millis));
        }
        let text = starts.text();
        for (end, expect) in [("0.001", 1), ("0.002", 1), ("0.005", 3), ("0.5", 4), ("300", 4), ("+Inf", 5)] {
            assert!(text.contains(&format!("_bucket{{le=\"{end}\"}} {expect}\n")), "{end} in {text}");
        }
        assert!(text.ends_with("_sum 1000.408\nkubelet_pod_start_duration_seconds_count 5\n"), "{text}");
    }
}
