//! What may change in pods.

use serde_json::{Map, Value};
use wasmk_api::Object;

use super::pod_spec;
use crate::errors::{At, Errors};
use crate::fields::{spec, status};
use crate::internal;
use crate::value::{get, int, list, or_null, text};

const UPDATABLE: &str = "pod updates may not change fields other than `spec.containers[*].image`,`spec.initContainers[*].image`,`spec.activeDeadlineSeconds`,`spec.tolerations` (only additions to existing tolerations),`spec.terminationGracePeriodSeconds` (allow it to be set to 1 if it was previously negative)";

/// Checks the replacement of a pod.
pub(crate) fn pod_update(new: &Object, old: &Object, errors: &mut Errors) {
    let at = At::new("spec");
    let (after, before) = (spec(new), spec(old));
    pod_spec(after, &at, errors);
    for key in ["containers", "initContainers"] {
        if list(after, key).len() != list(before, key).len() {
            errors.forbidden(&at.field(key), "pod updates may not add or remove containers");
            return;
        }
    }
    deadline(after, before, &at, errors);
    only_added(after, before, &at, errors);
    gates(after, before, &at, errors);
    if after == before {
        return;
    }
    let munged = munged(after, before);
    if munged != *before {
        let difference = internal::difference(before, &munged, "v1.PodSpec");
        errors.forbidden(&at, &format!("{UPDATABLE}\n{difference}"));
    }
}

fn deadline(after: &Value, before: &Value, at: &At<'_>, errors: &mut Errors) {
    let place = at.field("activeDeadlineSeconds");
    match (int(after, "activeDeadlineSeconds"), int(before, "activeDeadlineSeconds")) {
        (Some(new), Some(old)) if new > old => {
            let why = format!("must be less than or equal to previous value {old}");
            errors.invalid_int(&place, new, &why);
        }
        (None, Some(_)) => {
            errors.invalid(&place, &Value::Null, "must not update from a positive integer to nil value");
        }
        _ => {}
    }
}

/// Tolerations may be added, and those there may last longer or shorter.
fn only_added(after: &Value, before: &Value, at: &At<'_>, errors: &mut Errors) {
    let same = |a: &Value, b: &Value| {
        ["key", "operator", "value", "effect"].iter().all(|key| text(a, key) == text(b, key))
    };
    let new = list(after, "tolerations");
    let kept = list(before, "tolerations").iter().all(|old| new.iter().any(|t| same(t, old)));
    if !kept {
        let why = "existing toleration can not be modified except its tolerationSeconds";
        errors.forbidden(&at.field("tolerations"), why);
    }
}

fn gates(after: &Value, before: &Value, at: &At<'_>, errors: &mut Errors) {
    let old = list(before, "schedulingGates");
    let place = at.field("schedulingGates");
    for (i, gate) in list(after, "schedulingGates").iter().enumerate() {
        if !old.contains(gate) {
            let name = text(gate, "name");
            let why = format!("only deletion is allowed, but found new scheduling gate '{name}'");
            errors.forbidden(&place.index(i), &why);
        }
    }
}

/// The new spec with all that may change set back.
fn munged(after: &Value, before: &Value) -> Value {
    let mut copy = after.as_object().cloned().unwrap_or_default();
    for key in ["containers", "initContainers"] {
        let old = list(before, key);
        for (i, container) in
            copy.get_mut(key).and_then(Value::as_array_mut).into_iter().flatten().enumerate()
        {
            if let (Some(map), Some(old)) = (container.as_object_mut(), old.get(i)) {
                set_back(map, old, "image");
            }
        }
    }
    for key in ["activeDeadlineSeconds", "tolerations", "schedulingGates"] {
        set_back(&mut copy, before, key);
    }
    let grace = |spec: &Value| int(spec, "terminationGracePeriodSeconds");
    if grace(before).is_some_and(|g| g < 0) && grace(after) == Some(1) {
        set_back(&mut copy, before, "terminationGracePeriodSeconds");
    }
    // A pod that may not be placed yet may still be told where to go.
    if !list(before, "schedulingGates").is_empty() {
        let selector = or_null(after, "nodeSelector");
        let narrower = or_null(before, "nodeSelector")
            .as_object()
            .into_iter()
            .flatten()
            .all(|(key, value)| selector.get(key) == Some(value));
        if narrower {
            set_back(&mut copy, before, "nodeSelector");
        }
        if get(before, "affinity").is_none() {
            set_back(&mut copy, before, "affinity");
        }
    }
    Value::Object(copy)
}

fn set_back(map: &mut Map<String, Value>, old: &Value, key: &str) {
    match old.get(key) {
        Some(value) => {
            map.insert(key.into(), value.clone());
        }
        None => {
            map.shift_remove(key);
        }
    }
}

/// Checks the replacement of a pod's status.
pub(crate) fn pod_status(new: &Object, old: &Object, errors: &mut Errors) {
    let at = At::new("status");
    let (after, before) = (status(new), status(old));
    let (class, was) = (text(after, "qosClass"), text(before, "qosClass"));
    if !was.is_empty() && class != was {
        errors.invalid_text(&at.field("qosClass"), class, crate::meta::IMMUTABLE);
    }
    let policy = text(spec(new), "restartPolicy");
    if matches!(policy, "Always" | "OnFailure") {
        never_back(after, before, policy, &at, errors);
    }
}

/// Containers that have ended do not run again unless the pod restarts them.
fn never_back(after: &Value, before: &Value, policy: &str, at: &At<'_>, errors: &mut Errors) {
    if policy != "OnFailure" {
        return;
    }
    let at = at.field("containerStatuses");
    for (i, container) in list(after, "containerStatuses").iter().enumerate() {
        let name = text(container, "name");
        let old = list(before, "containerStatuses").iter().find(|c| text(c, "name") == name);
        let ended = old.and_then(|c| get(or_null(c, "state"), "terminated"));
        let succeeded = ended.is_some_and(|t| int(t, "exitCode").unwrap_or(0) == 0);
        if succeeded && get(or_null(container, "state"), "terminated").is_none() {
            errors.forbidden(&at.index(i).field("state"), "may not be transitioned to non-terminated state");
        }
    }
}
