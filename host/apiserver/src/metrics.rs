//! Counters about requests, in the names Prometheus users of Kubernetes know.

use std::{
    collections::BTreeMap,
    fmt::Write,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use parking_lot::Mutex;

/// Most different label sets that are counted; the rest is counted together.
const MAX_SERIES: usize = 2048;

#[derive(Default)]
struct Series {
    count: u64,
    seconds: f64,
}

/// Counters of one server.
#[derive(Default)]
pub(crate) struct Metrics {
    requests: Mutex<BTreeMap<(&'static str, String, u16), Series>>,
    inflight: Arc<AtomicU64>,
    watches: Arc<AtomicU64>,
    refused: AtomicU64,
}

/// Counts something as open until it is dropped.
#[must_use = "it is counted for as long as this lives"]
pub(crate) struct Open(Arc<AtomicU64>);

impl Open {
    fn new(count: &Arc<AtomicU64>) -> Self {
        count.fetch_add(1, Ordering::Relaxed);
        Self(count.clone())
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Metrics {
    /// Counts a request that was answered. `resource` is one that is served, or empty.
    pub(crate) fn answered(&self, verb: &'static str, resource: String, code: u16, took: Duration) {
        let mut requests = self.requests.lock();
        let mut key = (verb, resource, code);
        if requests.len() >= MAX_SERIES && !requests.contains_key(&key) {
            key.1.clear();
        }
        let series = requests.entry(key).or_default();
        series.count += 1;
        series.seconds += took.as_secs_f64();
    }

    /// Counts a request that was refused because there were too many.
    pub(crate) fn refused(&self) {
        self.refused.fetch_add(1, Ordering::Relaxed);
    }

    /// Counts a request as being worked on until the returned guard is dropped.
    pub(crate) fn begun(&self) -> Open {
        Open::new(&self.inflight)
    }

    /// Counts a watch until the returned guard is dropped.
    pub(crate) fn watch_opened(&self) -> Open {
        Open::new(&self.watches)
    }

    /// The number of open watches.
    pub(crate) fn watches(&self) -> u64 {
        self.watches.load(Ordering::Relaxed)
    }

    /// The text of `/metrics`; `objects` are numbers of stored objects by resource.
    pub(crate) fn text(&self, objects: &[(Box<str>, usize)], revision: u64) -> String {
        let mut out = String::new();
        let mut put = |text: std::fmt::Arguments<'_>| {
            let _ = out.write_fmt(text);
        };
        put(format_args!("# TYPE apiserver_request_total counter\n"));
        for ((verb, resource, code), series) in self.requests.lock().iter() {
            let (verb, resource) = (verb.to_uppercase(), label(resource));
            let labels = format!("verb=\"{verb}\",resource=\"{resource}\",code=\"{code}\"");
            put(format_args!("apiserver_request_total{{{labels}}} {}\n", series.count));
            put(format_args!("apiserver_request_duration_seconds_sum{{{labels}}} {}\n", series.seconds));
            put(format_args!("apiserver_request_duration_seconds_count{{{labels}}} {}\n", series.count));
        }
        let gauges = [
            ("apiserver_current_inflight_requests", self.inflight.load(Ordering::Relaxed)),
            ("apiserver_registered_watchers", self.watches()),
            ("apiserver_storage_revision", revision),
        ];
        for (name, value) in gauges {
            put(format_args!("# TYPE {name} gauge\n{name} {value}\n"));
        }
        let refused = self.refused.load(Ordering::Relaxed);
        put(format_args!("# TYPE apiserver_dropped_requests_total counter\n"));
        put(format_args!("apiserver_dropped_requests_total {refused}\n"));
        put(format_args!("# TYPE apiserver_storage_objects gauge\n"));
        for (resource, count) in objects {
            put(format_args!("apiserver_storage_objects{{resource=\"{}\"}} {count}\n", label(resource)));
        }
        out
    }
}

/// A text as the value of a label, between quotes.
fn label(text: &str) -> String {
    text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_counted_is_shown() {
        let metrics = Metrics::default();
        metrics.answered("get", "pods".into(), 200, Duration::from_millis(5));
        metrics.answered("get", "\"\n\\".into(), 200, Duration::from_millis(5));
        let (watch, request) = (metrics.watch_opened(), metrics.begun());
        let text = metrics.text(&[("core/pods".into(), 3)], 9);
        assert!(
            text.contains("apiserver_request_total{verb=\"GET\",resource=\"pods\",code=\"200\"} 1"),
            "{text}"
        );
        assert!(
            text.contains("apiserver_registered_watchers 1") && text.contains("{resource=\"core/pods\"} 3")
        );
        assert!(text.contains(r#"resource="\"\n\\","#), "{text}");
        assert!(text.contains("apiserver_current_inflight_requests 1"), "{text}");
        drop((watch, request));
        assert_eq!(metrics.watches(), 0);
        assert!(metrics.text(&[], 9).contains("apiserver_current_inflight_requests 0"));
    }

    #[test]
    fn series_are_bounded() {
        let metrics = Metrics::default();
        for at in 0..MAX_SERIES + 10 {
            metrics.answered("get", format!("r{at}"), 200, Duration::ZERO);
        }
        metrics.answered("get", "r0".into(), 200, Duration::ZERO);
        let text = metrics.text(&[], 9);
        assert!(text.contains("apiserver_request_total{verb=\"GET\",resource=\"\",code=\"200\"} 10\n"));
        assert!(text.contains("apiserver_request_total{verb=\"GET\",resource=\"r0\",code=\"200\"} 2\n"));
    }
}
