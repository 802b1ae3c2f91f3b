//! What `kubectl get pods` prints of a pod.

use serde_json::{Value, json};
use wasmk_api::{Object, Timestamp, human_duration};

use crate::fields::{spec, status};
use crate::table::{age, or};
use crate::value::{flag, get, int, list, or_null, text};

/// The `conditions` of a finished pod's row.
pub(crate) fn row_conditions(obj: &Object) -> Vec<Value> {
    let (reason, message) = match text(status(obj), "phase") {
        "Succeeded" => ("Succeeded", "The pod has completed successfully."),
        "Failed" => ("Failed", "The pod failed."),
        _ => return Vec::new(),
    };
    vec![json!({"type": "Completed", "status": "True", "reason": reason, "message": message})]
}

/// The cells of a pod's row.
pub(crate) fn row(obj: &Object, now: Timestamp) -> Vec<Value> {
    let summary = Summary::of(obj);
    let (spec, status) = (spec(obj), status(obj));
    let ip = list(status, "podIPs").first().map_or_else(|| text(status, "podIP"), |ip| text(ip, "ip"));
    vec![
        obj.name().into(),
        format!("{}/{}", summary.ready, summary.total).into(),
        summary.reason.as_str().into(),
        summary.restarts.shown(now).into(),
        age(obj, now),
        or(ip, "<none>").into(),
        or(text(spec, "nodeName"), "<none>").into(),
        or(text(status, "nominatedNodeName"), "<none>").into(),
        readiness_gates(spec, status).into(),
    ]
}

fn readiness_gates(spec: &Value, status: &Value) -> String {
    let gates = list(spec, "readinessGates");
    if gates.is_empty() {
        return "<none>".into();
    }
    let open = gates.iter().filter(|gate| has_condition(status, text(gate, "conditionType"))).count();
    format!("{open}/{}", gates.len())
}

fn has_condition(status: &Value, kind: &str) -> bool {
    let condition = list(status, "conditions").iter().find(|c| text(c, "type") == kind);
    condition.is_some_and(|c| text(c, "status") == "True")
}

/// How often containers restarted, and when the last one did.
#[derive(Default)]
struct Restarts {
    count: i64,
    last: Option<Timestamp>,
}

impl Restarts {
    fn add(&mut self, container: &Value) {
        self.count += int(container, "restartCount").unwrap_or(0);
        let ended = get(or_null(container, "lastState"), "terminated").map(|t| text(t, "finishedAt"));
        self.last = self.last.max(ended.and_then(|time| time.parse().ok()));
    }

    fn shown(&self, now: Timestamp) -> String {
        match self.last {
            Some(last) if self.count != 0 => {
                format!("{} ({} ago)", self.count, human_duration(now.since(last)))
            }
            _ => self.count.to_string(),
        }
    }
}

/// The state of a pod's containers taken together.
struct Summary {
    ready: usize,
    total: usize,
    reason: String,
    restarts: Restarts,
}

impl Summary {
    fn of(obj: &Object) -> Self {
        let (spec, status) = (spec(obj), status(obj));
        let sidecars = list(spec, "initContainers").iter().filter(|c| is_sidecar(c)).count();
        let mut summary = Self {
            ready: 0,
            total: list(spec, "containers").len() + sidecars,
            reason: or(text(status, "reason"), text(status, "phase")).to_owned(),
            restarts: Restarts::default(),
        };
        let gated = |c: &&Value| text(c, "type") == "PodScheduled" && text(c, "reason") == "SchedulingGated";
        if list(status, "conditions").iter().find(gated).is_some() {
            summary.reason = "SchedulingGated".into();
        }
        let mut sidecar_restarts = Restarts::default();
        let initializing = summary.init_containers(spec, status, &mut sidecar_restarts);
        if !initializing || has_condition(status, "Initialized") {
            summary.restarts = sidecar_restarts;
            summary.containers(status);
        }
        summary.deletion(obj);
        summary
    }

    /// Whether an init container is still to end, and what it is doing.
    fn init_containers(&mut self, spec: &Value, status: &Value, sidecars: &mut Restarts) -> bool {
        let declared = list(spec, "initContainers");
        for (i, container) in list(status, "initContainerStatuses").iter().enumerate() {
            let name = text(container, "name");
            let sidecar = declared.iter().any(|c| text(c, "name") == name && is_sidecar(c));
            self.restarts.add(container);
            if sidecar {
                sidecars.add(container);
            }
            let state = or_null(container, "state");
            let ended = get(state, "terminated");
            if ended.is_some_and(|t| int(t, "exitCode").unwrap_or(0) == 0) {
                continue;
            }
            if sidecar && flag(container, "started") {
                self.ready += usize::from(flag(container, "ready"));
                continue;
            }
            let waiting = text(or_null(state, "waiting"), "reason");
            self.reason = match ended {
                Some(ended) => format!("Init:{}", ended_because(ended)),
                None if !matches!(waiting, "" | "PodInitializing") => format!("Init:{waiting}"),
                None => format!("Init:{i}/{}", declared.len()),
            };
            return true;
        }
        false
    }

    fn containers(&mut self, status: &Value) {
        let mut running = false;
        for container in list(status, "containerStatuses").iter().rev() {
            self.restarts.add(container);
            let state = or_null(container, "state");
            let waiting = text(or_null(state, "waiting"), "reason");
            if !waiting.is_empty() {
                self.reason = waiting.into();
            } else if let Some(ended) = get(state, "terminated") {
                self.reason = ended_because(ended);
            } else if flag(container, "ready") && get(state, "running").is_some() {
                running = true;
                self.ready += 1;
            }
        }
        if self.reason == "Completed" && running {
            self.reason = if has_condition(status, "Ready") { "Running" } else { "NotReady" }.into();
        }
    }

    fn deletion(&mut self, obj: &Object) {
        if !obj.is_deleting() {
            return;
        }
        let status = status(obj);
        if text(status, "reason") == "NodeLost" {
            self.reason = "Unknown".into();
        } else if !matches!(text(status, "phase"), "Succeeded" | "Failed") {
            self.reason = "Terminating".into();
        }
    }
}

fn is_sidecar(container: &Value) -> bool {
    text(container, "restartPolicy") == "Always"
}

fn ended_because(ended: &Value) -> String {
    match (text(ended, "reason"), int(ended, "signal").unwrap_or(0)) {
        ("", 0) => format!("ExitCode:{}", int(ended, "exitCode").unwrap_or(0)),
        ("", signal) => format!("Signal:{signal}"),
        (reason, _) => reason.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(pod: Value, ready: &str, reason: &str, restarts: &str) {
        let obj = Object::from_value(pod).unwrap();
        let now = "2026-01-01T00:10:00Z".parse().unwrap();
        let cells = row(&obj, now);
        assert_eq!(
            (cells[1].as_str(), cells[2].as_str(), cells[3].as_str()),
            (Some(ready), Some(reason), Some(restarts))
        );
    }

    #[test]
    fn states() {
        let pod = |status: Value| json!({"metadata": {"name": "p"}, "spec": {"containers": [{"name": "c"}]}, "status": status});
        check(pod(json!({"phase": "Pending"})), "0/1", "Pending", "0");
        let waiting = |reason: &str| {
            json!({"phase": "Running", "containerStatuses": [{
                "name": "c", "restartCount": 4, "state": {"waiting": {"reason": reason}},
                "lastState": {"terminated": {"finishedAt": "2026-01-01T00:08:00Z"}},
            }]})
        };
        check(pod(waiting("CrashLoopBackOff")), "0/1", "CrashLoopBackOff", "4 (2m ago)");
        let mut leaving = pod(
            json!({"phase": "Running", "containerStatuses": [{"name": "c", "ready": true, "state": {"running": {}}}]}),
        );
        check(leaving.clone(), "1/1", "Running", "0");
        leaving["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z".into();
        check(leaving, "1/1", "Terminating", "0");
        check(pod(json!({"phase": "Failed", "reason": "Evicted"})), "0/1", "Evicted", "0");
    }

    #[test]
    fn sidecars_count() {
        let pod = json!({
            "metadata": {"name": "p"},
            "spec": {"containers": [{"name": "c"}], "initContainers": [{"name": "s", "restartPolicy": "Always"}]},
            "status": {
                "phase": "Running",
                "initContainerStatuses": [{"name": "s", "started": true, "ready": true, "state": {"running": {}}}],
                "containerStatuses": [{"name": "c", "ready": true, "state": {"running": {}}}],
            },
        });
        check(pod, "2/2", "Running", "0");
    }
}
