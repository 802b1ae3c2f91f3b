//! What was asked of the container runtime, as metrics by the kubelet's names.

use std::fmt::Write;

use wasmk_cri::Tally;

use super::Containers;

impl Containers {
    /// In the text format of Prometheus.
    pub(crate) fn metrics(&self) -> String {
        text(&self.client.calls())
    }
}

fn text(calls: &[(&'static str, Tally)]) -> String {
    let mut out = String::new();
    // Writing to a string cannot fail.
    let mut family = |name: &str, kind: &str, help: &str, lines: &dyn Fn(&str, &Tally) -> String| {
        let name = format!("kubelet_runtime_operations_{name}");
        let _ = write!(out, "# HELP {name} {help}\n# TYPE {name} {kind}\n");
        for (call, tally) in calls {
            let of = format!("{{operation_type=\"{}\"}}", operation(call));
            for line in lines(&of, tally).lines() {
                let _ = writeln!(out, "{name}{line}");
            }
        }
    };
    family("total", "counter", "Calls to the container runtime.", &|of, tally| {
        format!("{of} {}", tally.calls)
    });
    family("errors_total", "counter", "Calls to the container runtime that failed.", &|of, tally| {
        format!("{of} {}", tally.errors)
    });
    family("duration_seconds", "summary", "Time that calls to the container runtime took.", &|of, tally| {
        format!("_sum{of} {}\n_count{of} {}", tally.time.as_secs_f64(), tally.calls)
    });
    out
}

/// The kubelet's name of a call: `RunPodSandbox` is `run_podsandbox`.
fn operation(call: &str) -> String {
    let mut name = String::new();
    for letter in call.replace("PodSandbox", "Podsandbox").chars() {
        if letter.is_uppercase() && !name.is_empty() {
            name.push('_');
        }
        name.push(letter.to_ascii_lowercase());
    }
    name
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn calls_have_the_kubelets_names() {
        for (call, expect) in [
            ("Version", "version"),
            ("RunPodSandbox", "run_podsandbox"),
            ("PodSandboxStatus", "podsandbox_status"),
            ("ListContainerStats", "list_container_stats"),
        ] {
            assert_eq!(operation(call), expect);
        }
    }

    #[test]
    fn tallies_are_families() {
        let tally = Tally { calls: 3, errors: 1, time: Duration::from_millis(1500) };
        let text = text(&[("RunPodSandbox", tally)]);
        let of = "{operation_type=\"run_podsandbox\"}";
        for line in [
            format!("kubelet_runtime_operations_total{of} 3\n"),
            format!("kubelet_runtime_operations_errors_total{of} 1\n"),
            format!("kubelet_runtime_operations_duration_seconds_sum{of} 1.5\n"),
            format!("kubelet_runtime_operations_duration_seconds_count{of} 3\n"),
        ] {
            assert!(text.contains(&line), "{line} in {text}");
        }
    }
}
