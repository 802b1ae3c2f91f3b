//! What is wrong with pods and pod templates.

use serde_json::Value;
use wasmk_api::Object;

use crate::errors::{At, Errors};
use crate::fields::{spec, top};
use crate::meta;
use crate::value::{list, or_null, text};

/// Checks a pod template.
pub(crate) fn template(template: &Value, at: &At<'_>, errors: &mut Errors) {
    let meta = or_null(template, "metadata");
    meta::labels(meta, &at.field("labels"), errors);
    meta::annotations(meta, &at.field("annotations"), errors);
    pod_spec(or_null(template, "spec"), &at.field("spec"), errors);
}

/// Checks a new pod.
pub(crate) fn pod(obj: &Object, errors: &mut Errors) {
    let at = At::new("spec");
    pod_spec(spec(obj), &at, errors);
    let _ = top;
}

fn pod_spec(spec: &Value, at: &At<'_>, errors: &mut Errors) {
    let containers = list(spec, "containers");
    let at = at.field("containers");
    if containers.is_empty() {
        errors.required(&at, "");
    }
    for (i, container) in containers.iter().enumerate() {
        if text(container, "name").is_empty() {
            errors.required(&at.index(i).field("name"), "");
        }
        if text(container, "image").is_empty() {
            errors.required(&at.index(i).field("image"), "");
        }
    }
}

/// Checks the replacement of a pod.
pub(crate) fn pod_update(new: &Object, _old: &Object, errors: &mut Errors) {
    pod(new, errors);
}

/// Checks the replacement of a pod's status.
pub(crate) fn pod_status(_new: &Object, _old: &Object, _errors: &mut Errors) {}
