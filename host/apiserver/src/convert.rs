//! Between the version a resource is served in and the one it is stored in.

use serde_json::{Map, Value, json};
use wasmk_api::{Gvk, Object, Status};

use crate::table::Resource;

/// An object as it is stored, in the version that is served.
///
/// # Errors
/// When it cannot be converted.
pub(crate) fn to_served(resource: &Resource, object: Object) -> Result<Object, Status> {
    if resource.is_stored_version() {
        return Ok(object);
    }
    Ok(between(object, &stored_gvk(resource), &resource.gvk))
}

/// An object as it is served, in the version that is stored.
///
/// # Errors
/// When it cannot be converted.
pub(crate) fn to_stored(resource: &Resource, object: Object) -> Result<Object, Status> {
    if resource.is_stored_version() {
        return Ok(object);
    }
    Ok(between(object, &resource.gvk, &stored_gvk(resource)))
}

fn stored_gvk(resource: &Resource) -> Gvk {
    resource.stored.kind(resource.gvk.kind.clone())
}

/// The pairs of versions whose fields differ; all others differ in `apiVersion` alone.
fn between(mut object: Object, from: &Gvk, to: &Gvk) -> Object {
    match (&*from.group, &*from.version, &*to.group, &*to.version, &*from.kind) {
        ("autoscaling", "v1", _, "v2", _) => hpa_to_v2(&mut object),
        ("autoscaling", "v2", _, "v1", _) => hpa_to_v1(&mut object),
        ("events.k8s.io", _, "", _, "Event") => rename(&mut object, true),
        ("", _, "events.k8s.io", _, "Event") => rename(&mut object, false),
        _ => {}
    }
    object.set_gvk(to);
    object
}

/// Fields of events: their name in events.k8s.io, and in the core group.
const EVENT_FIELDS: [(&str, &str); 7] = [
    ("regarding", "involvedObject"),
    ("note", "message"),
    ("reportingController", "reportingComponent"),
    ("deprecatedSource", "source"),
    ("deprecatedFirstTimestamp", "firstTimestamp"),
    ("deprecatedLastTimestamp", "lastTimestamp"),
    ("deprecatedCount", "count"),
];

fn rename(object: &mut Object, to_core: bool) {
    let old = std::mem::take(&mut object.0);
    object.0 = old
        .into_iter()
        .map(|(key, value)| {
            let renamed = EVENT_FIELDS.iter().find_map(|(events, core)| match to_core {
                true => (key == *events).then_some(*core),
                false => (key == *core).then_some(*events),
            });
            (renamed.map_or(key, Into::into), value)
        })
        .collect();
    if to_core && !object.0.contains_key("source") {
        object.0.insert("source".into(), json!({}));
    }
}

const CPU: &str = "targetCPUUtilizationPercentage";
const METRICS_NOTE: &str = "autoscaling.alpha.kubernetes.io/metrics";
const BEHAVIOR_NOTE: &str = "autoscaling.alpha.kubernetes.io/behavior";
const CONDITIONS_NOTE: &str = "autoscaling.alpha.kubernetes.io/conditions";
const CURRENT_NOTE: &str = "autoscaling.alpha.kubernetes.io/current-metrics";

fn take_note(object: &mut Object, key: &str) -> Option<Value> {
    let notes = object.metadata_mut().get_mut("annotations")?.as_object_mut()?;
    let text = notes.shift_remove(key)?;
    if notes.is_empty() {
        object.set_meta("annotations", Value::Null);
    }
    serde_json::from_str(text.as_str()?).ok()
}

fn put_note(object: &mut Object, key: &str, value: &Value) {
    let notes = object.metadata_mut().entry("annotations").or_insert_with(|| json!({}));
    if let Some(notes) = notes.as_object_mut() {
        notes.insert(key.into(), value.to_string().into());
    }
}

fn cpu_metric(percent: &Value) -> Value {
    json!({"type": "Resource", "resource": {"name": "cpu", "target": {"type": "Utilization", "averageUtilization": percent}}})
}

fn part<'a>(object: &'a mut Object, key: &str) -> Option<&'a mut Map<String, Value>> {
    object.0.get_mut(key)?.as_object_mut()
}

/// What version 1 cannot say stands in annotations there.
fn hpa_to_v2(object: &mut Object) {
    let metrics = take_note(object, METRICS_NOTE);
    let behavior = take_note(object, BEHAVIOR_NOTE);
    let conditions = take_note(object, CONDITIONS_NOTE);
    let current = take_note(object, CURRENT_NOTE);
    if let Some(spec) = part(object, "spec") {
        let mut all = metrics.and_then(|m| m.as_array().cloned()).unwrap_or_default();
        if let Some(percent) = spec.shift_remove(CPU) {
            all.insert(0, cpu_metric(&percent));
        }
        if !all.is_empty() {
            spec.insert("metrics".into(), all.into());
        }
        if let Some(behavior) = behavior {
            spec.insert("behavior".into(), behavior);
        }
    }
    if let Some(status) = part(object, "status") {
        let mut all = current.and_then(|m| m.as_array().cloned()).unwrap_or_default();
        if let Some(percent) = status.shift_remove("currentCPUUtilizationPercentage") {
            all.insert(0, json!({"type": "Resource", "resource": {"name": "cpu", "current": {"averageUtilization": percent}}}));
        }
        status.insert("currentMetrics".into(), if all.is_empty() { Value::Null } else { all.into() });
        if let Some(conditions) = conditions {
            status.insert("conditions".into(), conditions);
        }
        status.entry("desiredReplicas").or_insert(json!(0));
    }
}

fn hpa_to_v1(object: &mut Object) {
    let (mut cpu, mut others) = (None, Vec::new());
    let mut notes = Vec::new();
    if let Some(spec) = part(object, "spec") {
        for metric in spec.shift_remove("metrics").and_then(|m| m.as_array().cloned()).unwrap_or_default() {
            let percent = metric.pointer("/resource/target/averageUtilization");
            match percent {
                Some(percent) if metric.pointer("/resource/name") == Some(&json!("cpu")) && cpu.is_none() => {
                    cpu = Some(percent.clone());
                }
                _ => others.push(metric),
            }
        }
        if let Some(cpu) = cpu {
            spec.insert(CPU.into(), cpu);
        }
        if let Some(behavior) = spec.shift_remove("behavior") {
            notes.push((BEHAVIOR_NOTE, behavior));
        }
    }
    if !others.is_empty() {
        notes.push((METRICS_NOTE, others.into()));
    }
    if let Some(status) = part(object, "status") {
        if let Some(conditions) = status.shift_remove("conditions") {
            notes.push((CONDITIONS_NOTE, conditions));
        }
        let mut rest = Vec::new();
        for metric in
            status.shift_remove("currentMetrics").and_then(|m| m.as_array().cloned()).unwrap_or_default()
        {
            match metric.pointer("/resource/current/averageUtilization") {
                Some(percent) if metric.pointer("/resource/name") == Some(&json!("cpu")) => {
                    status.insert("currentCPUUtilizationPercentage".into(), percent.clone());
                }
                _ => rest.push(metric),
            }
        }
        if !rest.is_empty() {
            notes.push((CURRENT_NOTE, rest.into()));
        }
    }
    for (key, value) in notes {
        put_note(object, key, &value);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn autoscalers_survive_the_way_there_and_back() {
        let v1 = Gvk::new("autoscaling", "v1", "HorizontalPodAutoscaler");
        let v2 = Gvk::new("autoscaling", "v2", "HorizontalPodAutoscaler");
        let object = Object::from_value(json!({
            "kind": "HorizontalPodAutoscaler", "apiVersion": "autoscaling/v2", "metadata": {"name": "h"},
            "spec": {"maxReplicas": 3, "metrics": [
                {"type": "Resource", "resource": {"name": "cpu", "target": {"type": "Utilization", "averageUtilization": 50}}},
                {"type": "Pods", "pods": {"metric": {"name": "x"}}},
            ]},
        }))
        .unwrap();
        let old = between(object.clone(), &v2, &v1);
        assert_eq!(old.at(&["spec", CPU]), Some(&json!(50)));
        assert_eq!(between(old, &v1, &v2), object);
    }

    #[test]
    fn events_change_the_names_of_their_fields() {
        let events = Gvk::new("events.k8s.io", "v1", "Event");
        let core = Gvk::new("", "v1", "Event");
        let object = Object::from_value(json!({
            "kind": "Event", "apiVersion": "events.k8s.io/v1", "regarding": {"kind": "Pod"}, "note": "n",
        }))
        .unwrap();
        let there = between(object, &events, &core);
        assert_eq!(there.0["message"], "n");
        assert_eq!(there.0["involvedObject"]["kind"], "Pod");
        assert_eq!(between(there, &core, &events).0["note"], "n");
    }
}
