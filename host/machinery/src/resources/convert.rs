//! Conversion between the served versions of built-in kinds.
//!
//! Most versions differ in nothing but `apiVersion`. Events have other field names in their own group, and
//! `autoscaling/v1` keeps what it has no fields for in annotations.

use serde_json::{Map, Value, json};
use wasmk_api::{Gvk, Object};

const METRICS: &str = "autoscaling.alpha.kubernetes.io/metrics";
const CURRENT_METRICS: &str = "autoscaling.alpha.kubernetes.io/current-metrics";
const CONDITIONS: &str = "autoscaling.alpha.kubernetes.io/conditions";
const BEHAVIOR: &str = "autoscaling.alpha.kubernetes.io/behavior";
const DEFAULT_CPU_PERCENT: i64 = 80;

/// Fields of events: name in the core group, name in `events.k8s.io`.
const EVENT_FIELDS: [(&str, &str); 7] = [
    ("involvedObject", "regarding"),
    ("message", "note"),
    ("source", "deprecatedSource"),
    ("firstTimestamp", "deprecatedFirstTimestamp"),
    ("lastTimestamp", "deprecatedLastTimestamp"),
    ("count", "deprecatedCount"),
    ("reportingComponent", "reportingController"),
];

/// Rewrites an object of a built-in kind in another version of it.
pub fn convert(object: &mut Object, to: &Gvk) {
    let Some(from) = object.gvk() else { return object.set_gvk(to) };
    if from == *to {
        return;
    }
    match (&*to.kind, &*from.group, &*to.group) {
        ("Event", "", "events.k8s.io") => rename(&mut object.0, EVENT_FIELDS),
        ("Event", "events.k8s.io", "") => rename(&mut object.0, EVENT_FIELDS.map(|(core, own)| (own, core))),
        ("HorizontalPodAutoscaler", ..) => match (&*from.version, &*to.version) {
            ("v2", "v1") => autoscaler_to_v1(object),
            ("v1", "v2") => autoscaler_to_v2(object),
            _ => (),
        },
        _ => (),
    }
    object.set_gvk(to);
}

fn rename(map: &mut Map<String, Value>, names: [(&str, &str); 7]) {
    for (old, new) in names {
        if let Some(value) = map.shift_remove(old) {
            map.insert(new.into(), value);
        }
    }
}

/// A field of a map inside the object, taken out.
fn take(object: &mut Object, section: &str, field: &str) -> Option<Value> {
    object.0.get_mut(section)?.as_object_mut()?.shift_remove(field).filter(|value| !value.is_null())
}

fn put(object: &mut Object, section: &str, field: &str, value: Value) {
    let slot = object.0.entry(section).or_insert_with(|| json!({}));
    if let Some(map) = slot.as_object_mut() {
        map.insert(field.into(), value);
    }
}

fn annotate(object: &mut Object, key: &str, value: &Value) {
    let metadata = object.metadata_mut();
    let slot = metadata.entry("annotations").or_insert_with(|| json!({}));
    if let Some(map) = slot.as_object_mut() {
        map.insert(key.into(), value.to_string().into());
    }
}

fn take_annotation(object: &mut Object, key: &str) -> Option<Value> {
    let annotations = object.metadata_mut().get_mut("annotations")?.as_object_mut()?;
    let text = annotations.shift_remove(key)?;
    let value = serde_json::from_str(text.as_str()?).ok();
    if annotations.is_empty() {
        object.metadata_mut().shift_remove("annotations");
    }
    value
}

fn items(value: Option<Value>) -> Vec<Value> {
    match value {
        Some(Value::Array(items)) => items,
        _ => Vec::new(),
    }
}

/// The average utilization of a metric that is CPU utilization and nothing else; `side` is `target` or
/// `current`.
fn cpu_utilization(metric: &Value, side: &str) -> Option<Value> {
    let resource = metric.get("resource").filter(|r| metric["type"] == "Resource" && r["name"] == "cpu")?;
    resource.get(side)?.get("averageUtilization").filter(|v| v.is_number()).cloned()
}

fn autoscaler_to_v1(object: &mut Object) {
    let mut others = Vec::new();
    for metric in items(take(object, "spec", "metrics")) {
        match cpu_utilization(&metric, "target") {
            Some(percent) => put(object, "spec", "targetCPUUtilizationPercentage", percent),
            None => others.push(metric_to_v1(&metric, "target")),
        }
    }
    if !others.is_empty() {
        annotate(object, METRICS, &others.into());
    }
    if let Some(behavior) = take(object, "spec", "behavior") {
        annotate(object, BEHAVIOR, &behavior);
    }
    let mut others = Vec::new();
    for metric in items(take(object, "status", "currentMetrics")) {
        match cpu_utilization(&metric, "current") {
            Some(percent) => put(object, "status", "currentCPUUtilizationPercentage", percent),
            None => others.push(metric_to_v1(&metric, "current")),
        }
    }
    if !others.is_empty() {
        annotate(object, CURRENT_METRICS, &others.into());
    }
    let conditions = items(take(object, "status", "conditions"));
    if !conditions.is_empty() {
        annotate(object, CONDITIONS, &conditions.into());
    }
    if object.0.contains_key("status") {
        for field in ["currentReplicas", "desiredReplicas"] {
            if object.at(&["status", field]).is_none() {
                put(object, "status", field, 0.into());
            }
        }
    }
}

fn autoscaler_to_v2(object: &mut Object) {
    let mut metrics: Vec<Value> =
        items(take_annotation(object, METRICS)).iter().map(|m| metric_to_v2(m, "target")).collect();
    let percent = take(object, "spec", "targetCPUUtilizationPercentage");
    if let Some(percent) = percent.or_else(|| metrics.is_empty().then(|| DEFAULT_CPU_PERCENT.into())) {
        let target = json!({"type": "Utilization", "averageUtilization": percent});
        metrics.insert(0, json!({"type": "Resource", "resource": {"name": "cpu", "target": target}}));
    }
    put(object, "spec", "metrics", metrics.into());
    if let Some(behavior) = take_annotation(object, BEHAVIOR) {
        put(object, "spec", "behavior", behavior);
    }
    let mut current: Vec<Value> =
        items(take_annotation(object, CURRENT_METRICS)).iter().map(|m| metric_to_v2(m, "current")).collect();
    if let Some(percent) = take(object, "status", "currentCPUUtilizationPercentage") {
        let resource = json!({"name": "cpu", "current": {"averageUtilization": percent}});
        current.insert(0, json!({"type": "Resource", "resource": resource}));
    }
    if !current.is_empty() {
        put(object, "status", "currentMetrics", current.into());
    }
    if let Some(conditions) = take_annotation(object, CONDITIONS) {
        put(object, "status", "conditions", conditions);
    }
}

/// The body of each kind of metric, and its names in `v1` for a value, an average value and a utilization.
const METRIC_KINDS: [(&str, &str, &str, &str); 5] = [
    ("resource", "", "AverageValue", "AverageUtilization"),
    ("containerResource", "", "AverageValue", "AverageUtilization"),
    ("pods", "", "AverageValue", ""),
    ("object", "Value", "averageValue", ""),
    ("external", "Value", "AverageValue", ""),
];

/// How `v1` names an amount: `targetAverageValue`, `currentValue`; averages of objects have no side.
fn v1_name(side: &str, name: &str) -> String {
    if name.starts_with(|c: char| c.is_ascii_lowercase()) { name.into() } else { format!("{side}{name}") }
}

fn metric_to_v1(metric: &Value, side: &str) -> Value {
    let mut out = json!({"type": metric["type"]});
    for (body, value, average, utilization) in METRIC_KINDS {
        let Some(Value::Object(given)) = metric.get(body) else { continue };
        let mut map = given.clone();
        let amounts = map.shift_remove(side).unwrap_or_default();
        for (field, name) in
            [("value", value), ("averageValue", average), ("averageUtilization", utilization)]
        {
            if let (false, Some(amount)) = (name.is_empty(), amounts.get(field)) {
                map.insert(v1_name(side, name), amount.clone());
            }
        }
        if let Some(Value::Object(named)) = map.shift_remove("metric") {
            map.insert("metricName".into(), named.get("name").cloned().unwrap_or_default());
            if let Some(selector) = named.get("selector") {
                map.insert(selector_name(body).into(), selector.clone());
            }
        }
        if let Some(described) = map.shift_remove("describedObject") {
            map.insert("target".into(), described);
        }
        out[body] = map.into();
    }
    out
}

fn selector_name(body: &str) -> &'static str {
    if body == "external" { "metricSelector" } else { "selector" }
}

fn metric_to_v2(metric: &Value, side: &str) -> Value {
    let mut out = json!({"type": metric["type"]});
    for (body, value, average, utilization) in METRIC_KINDS {
        let Some(Value::Object(given)) = metric.get(body) else { continue };
        let mut map = given.clone();
        if let Some(described) = map.shift_remove("target") {
            map.insert("describedObject".into(), described);
        }
        let mut amounts = Map::new();
        let names = [("value", value, "Value"), ("averageValue", average, "AverageValue")];
        for (field, name, kind) in
            names.into_iter().chain([("averageUtilization", utilization, "Utilization")])
        {
            let amount = map.shift_remove(&v1_name(side, name)).filter(|_| !name.is_empty());
            if let Some(amount) = amount {
                if side == "target" {
                    amounts.insert("type".into(), kind.into());
                }
                amounts.insert(field.into(), amount);
            }
        }
        if let Some(name) = map.shift_remove("metricName") {
            let mut named = json!({"name": name});
            if let Some(selector) = map.shift_remove(selector_name(body)) {
                named["selector"] = selector;
            }
            map.insert("metric".into(), named);
        }
        map.insert(side.into(), amounts.into());
        out[body] = map.into();
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn round_trip(mut object: Value, there: Gvk, seen: &Value) {
        let original = object.clone();
        let mut converted = Object::from_value(object.take()).unwrap();
        let back = converted.gvk().unwrap();
        convert(&mut converted, &there);
        assert_eq!(converted.clone().into_value(), *seen);
        convert(&mut converted, &back);
        assert_eq!(converted.into_value(), original);
    }

    #[test]
    fn events() {
        round_trip(
            json!({"apiVersion": "v1", "kind": "Event", "metadata": {"name": "e"}, "reason": "R",
                   "involvedObject": {"name": "p"}, "message": "m", "count": 2, "reportingComponent": "k"}),
            Gvk::new("events.k8s.io", "v1", "Event"),
            &json!({"apiVersion": "events.k8s.io/v1", "kind": "Event", "metadata": {"name": "e"}, "reason": "R",
                    "regarding": {"name": "p"}, "note": "m", "deprecatedCount": 2, "reportingController": "k"}),
        );
    }

    #[test]
    fn autoscalers() {
        let cpu = json!({"type": "Resource", "resource": {"name": "cpu", "target": {"type": "Utilization", "averageUtilization": 70}}});
        let pods = json!({"type": "Pods", "pods": {"metric": {"name": "rps", "selector": {"matchLabels": {"a": "b"}}},
                          "target": {"type": "AverageValue", "averageValue": "5"}}});
        let object_metric = json!({"type": "Object", "object": {"describedObject": {"kind": "Ingress", "name": "i"},
                                   "metric": {"name": "hits"}, "target": {"type": "Value", "value": "10"}}});
        let annotation = json!([
            {"type": "Pods", "pods": {"targetAverageValue": "5", "metricName": "rps", "selector": {"matchLabels": {"a": "b"}}}},
            {"type": "Object", "object": {"targetValue": "10", "metricName": "hits", "target": {"kind": "Ingress", "name": "i"}}},
        ]);
        round_trip(
            json!({"apiVersion": "autoscaling/v2", "kind": "HorizontalPodAutoscaler", "metadata": {"name": "h"},
                   "spec": {"maxReplicas": 3, "metrics": [cpu, pods, object_metric]}}),
            Gvk::new("autoscaling", "v1", "HorizontalPodAutoscaler"),
            &json!({"apiVersion": "autoscaling/v1", "kind": "HorizontalPodAutoscaler",
                    "metadata": {"name": "h", "annotations": {METRICS: annotation.to_string()}},
                    "spec": {"maxReplicas": 3, "targetCPUUtilizationPercentage": 70}}),
        );
    }

    #[test]
    fn without_metrics_the_target_is_cpu() {
        let mut object = Object::from_value(
            json!({"apiVersion": "autoscaling/v1", "kind": "HorizontalPodAutoscaler", "spec": {"maxReplicas": 3}}),
        )
        .unwrap();
        convert(&mut object, &Gvk::new("autoscaling", "v2", "HorizontalPodAutoscaler"));
        let target = &object.at(&["spec", "metrics"]).unwrap()[0]["resource"]["target"];
        assert_eq!(*target, json!({"type": "Utilization", "averageUtilization": 80}));
    }
}
