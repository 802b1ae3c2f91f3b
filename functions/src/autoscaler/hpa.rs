//! The HorizontalPodAutoscaler of a revision whose class is `hpa.autoscaling.knative.dev`.

use serde_json::{Value, json};
use wasmk_api::knative::Revision;

use super::{Bounds, Metric};
use crate::{context::owner, names};

/// The object that scales a revision's Deployment by what its pods use. Such a revision never goes to zero.
pub(crate) fn autoscaler(revision: &Revision, bounds: &Bounds) -> Value {
    let name = revision.metadata.name.as_deref().unwrap_or("");
    let max = if bounds.max > 0 { bounds.max } else { i32::MAX };
    json!({
        "apiVersion": "autoscaling/v2",
        "kind": "HorizontalPodAutoscaler",
        "metadata": {
            "name": name,
            "namespace": revision.metadata.namespace,
            "labels": revision.metadata.labels,
            "ownerReferences": [owner(revision)],
        },
        "spec": {
            "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": names::deployment(name)},
            "minReplicas": bounds.min.max(1),
            "maxReplicas": max,
            "metrics": [metric(bounds)],
        },
    })
}

fn metric(bounds: &Bounds) -> Value {
    let target = bounds.target.ceil();
    match &bounds.metric {
        Metric::Other(name) if name == "cpu" => json!({"type": "Resource", "resource": {
            "name": "cpu", "target": {"type": "Utilization", "averageUtilization": target as i64}}}),
        Metric::Other(name) if name == "memory" => json!({"type": "Resource", "resource": {
            "name": "memory", "target": {"type": "AverageValue", "averageValue": format!("{target}Mi")}}}),
        other => {
            let name = match other {
                Metric::Concurrency => "concurrency",
                Metric::Rps => "rps",
                Metric::Other(name) => name,
            };
            json!({"type": "Pods", "pods": {
                "metric": {"name": name}, "target": {"type": "AverageValue", "averageValue": format!("{target}")}}})
        }
    }
}
