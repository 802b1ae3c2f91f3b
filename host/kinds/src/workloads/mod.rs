//! Kinds that make pods from a template.

pub(crate) mod cron_job;
pub(crate) mod daemon_set;
pub(crate) mod deployment;
pub(crate) mod job;
mod job_validate;
pub(crate) mod replica_set;
pub(crate) mod revision;
pub(crate) mod stateful_set;

use serde_json::Value;
use wasmk_api::Object;

use crate::errors::{At, Errors};
use crate::fields::in_spec;
use crate::meta::NOT_NEGATIVE;
use crate::pod::validate;
use crate::selector;
use crate::value::{int, or_null, text};
use crate::{Scale, ScaleSelector};

/// Where most scalable kinds keep their numbers.
pub(crate) const SCALE: Scale = Scale {
    spec_replicas: &["spec", "replicas"],
    status_replicas: &["status", "replicas"],
    selector: ScaleSelector::LabelSelector(&["spec", "selector"]),
};

/// Names, images and selector: the wide columns of workloads.
pub(crate) fn wide_cells(obj: &Object) -> [Value; 3] {
    let (names, images) = crate::table::containers(in_spec(obj, &["template", "spec"]));
    [names, images, selector::shown(in_spec(obj, &["selector"])).into()]
}

/// A number of `spec` or `status` for a cell.
pub(crate) fn number(value: &Value, key: &str) -> Value {
    int(value, key).unwrap_or(0).into()
}

/// Checks that numbers are not below zero.
pub(crate) fn not_negative(holder: &Value, keys: &[&str], at: &At<'_>, errors: &mut Errors) {
    for key in keys {
        if let Some(number) = int(holder, key).filter(|n| *n < 0) {
            errors.invalid_int(&at.field(key), number, NOT_NEGATIVE);
        }
    }
}

/// Checks that the selector selects the pods the template makes, then the template.
pub(crate) fn check_template(spec: &Value, at: &At<'_>, errors: &mut Errors) {
    check_labels(spec, at, errors);
    validate::template(or_null(spec, "template"), &at.field("template"), errors);
}

/// Checks that the selector selects the pods the template makes.
pub(crate) fn check_labels(spec: &Value, at: &At<'_>, errors: &mut Errors) {
    let labels = or_null(or_null(or_null(spec, "template"), "metadata"), "labels");
    if !selector::selects(or_null(spec, "selector"), labels) {
        let template = at.field("template");
        let metadata = template.field("metadata");
        errors.invalid(&metadata.field("labels"), labels, "`selector` does not match template `labels`");
    }
}

/// Pods of controllers that keep a number of them running always restart their containers, without end.
pub(crate) fn always_restarts(spec: &Value, kind: &str, at: &At<'_>, errors: &mut Errors) {
    let template = at.field("template");
    let at = template.field("spec");
    let pod = or_null(or_null(spec, "template"), "spec");
    let policy = text(pod, "restartPolicy");
    if policy != "Always" {
        errors.unsupported(&at.field("restartPolicy"), policy, &["Always"]);
    }
    if int(pod, "activeDeadlineSeconds").is_some() {
        let why = format!("activeDeadlineSeconds in {kind} is not Supported");
        errors.forbidden(&at.field("activeDeadlineSeconds"), &why);
    }
}
