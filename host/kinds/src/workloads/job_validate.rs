//! What is wrong with jobs.

use serde_json::{Value, json};
use wasmk_api::Object;
use wasmk_machinery::names;

use crate::errors::{At, Errors};
use crate::fields::{in_spec, spec, status};
use crate::meta::IMMUTABLE;
use crate::pod::validate;
use crate::value::{entries, flag, get, int, list, or_null, text, text_at};
use crate::workloads::not_negative;
use crate::{domain_path, internal, selector};

const MAX_RULES: usize = 20;
const MAX_EXIT_CODES: usize = 255;
/// Indexed jobs run at most that many pods at once.
const MAX_INDEXED_PARALLELISM: i64 = 100_000;

/// Checks a job.
pub(super) fn job(obj: &Object, errors: &mut Errors) {
    let (spec, at) = (spec(obj), At::new("spec"));
    generated_selector(obj, &at, errors);
    with_selector(spec, &at, errors);
    hostname(obj, errors);
}

/// Checks that the name leaves room for the suffix pods of indexed jobs get.
fn hostname(obj: &Object, errors: &mut Errors) {
    let Some(wanted) = int(spec(obj), "completions").filter(|n| *n > 0) else { return };
    if text(spec(obj), "completionMode") != "Indexed" {
        return;
    }
    let last = format!("{}-{}", obj.name(), wanted - 1);
    if !names::dns1123_label(&last).is_empty() {
        let metadata = At::new("metadata");
        let why = format!("will not able to create pod with invalid DNS hostname: {last}");
        errors.invalid_text(&metadata.field("name"), obj.name(), &why);
    }
}

fn generated_selector(obj: &Object, at: &At<'_>, errors: &mut Errors) {
    let chosen = in_spec(obj, &["selector"]);
    if flag(spec(obj), "manualSelector") || chosen.is_null() {
        return;
    }
    let expected = json!({
        "controller-uid": obj.uid(),
        "batch.kubernetes.io/controller-uid": obj.uid(),
        "job-name": obj.name(),
        "batch.kubernetes.io/job-name": obj.name(),
    });
    let labels = in_spec(obj, &["template", "metadata", "labels"]);
    let template = at.field("template");
    let metadata = template.field("metadata");
    let place = metadata.field("labels");
    for (key, value) in entries(&json!({ "labels": expected }), "labels") {
        match text_at(labels, key) {
            None => errors.required(&place.key(key), &format!("must be '{}'", value.as_str().unwrap_or(""))),
            Some(found) if Some(found) != value.as_str() => {
                let why = format!("must be '{}'", value.as_str().unwrap_or(""));
                errors.invalid(&place.key(key), labels, &why);
            }
            Some(_) => {}
        }
    }
    if !selector::selects(chosen, &expected) {
        errors.invalid(&at.field("selector"), chosen, "`selector` not auto-generated");
    }
}

fn with_selector(spec: &Value, at: &At<'_>, errors: &mut Errors) {
    job_spec(spec, at, errors);
    let chosen = or_null(spec, "selector");
    if chosen.is_null() {
        errors.required(&at.field("selector"), "");
    } else {
        selector::check(chosen, &at.field("selector"), errors);
    }
    let labels = or_null(or_null(or_null(spec, "template"), "metadata"), "labels");
    if !selector::selects(chosen, labels) {
        let template = at.field("template");
        let metadata = template.field("metadata");
        errors.invalid(&metadata.field("labels"), labels, "`selector` does not match template `labels`");
    }
}

/// Checks the spec of the jobs a cron job makes.
pub(super) fn template(spec: &Value, at: &At<'_>, errors: &mut Errors) {
    job_spec(spec, at, errors);
    if get(spec, "selector").is_some() {
        errors.invalid(&at.field("selector"), or_null(spec, "selector"), "`selector` will be auto-generated");
    }
    if flag(spec, "manualSelector") {
        errors.unsupported_value(&at.field("manualSelector"), &true.into(), &["nil", "false"]);
    }
}

fn job_spec(spec: &Value, at: &At<'_>, errors: &mut Errors) {
    let numbers = [
        "parallelism",
        "completions",
        "activeDeadlineSeconds",
        "backoffLimit",
        "ttlSecondsAfterFinished",
        "backoffLimitPerIndex",
        "maxFailedIndexes",
    ];
    not_negative(spec, &numbers, at, errors);
    let mode = text(spec, "completionMode");
    if let Some(limit) = int(spec, "backoffLimitPerIndex").filter(|_| mode != "Indexed") {
        errors.invalid_int(&at.field("backoffLimitPerIndex"), limit, "requires indexed completion mode");
    }
    if int(spec, "maxFailedIndexes").is_some() && int(spec, "backoffLimitPerIndex").is_none() {
        errors.required(&at.field("backoffLimitPerIndex"), "when maxFailedIndexes is specified");
    }
    if let Some(manager) = text_at(spec, "managedBy") {
        domain_path::check(manager, &at.field("managedBy"), errors);
        if manager.len() > 63 {
            errors.too_long(&at.field("managedBy"), 63);
        }
    }
    completion_mode(spec, at, errors);
    if let Some(policy) = get(spec, "podFailurePolicy") {
        failure_policy(policy, spec, &at.field("podFailurePolicy"), errors);
    }
    if let Some(policy) = get(spec, "successPolicy") {
        success_policy(policy, mode, &at.field("successPolicy"), errors);
    }
    replacement(spec, at, errors);
    pod_template(spec, at, errors);
}

fn completion_mode(spec: &Value, at: &At<'_>, errors: &mut Errors) {
    match text(spec, "completionMode") {
        "" | "NonIndexed" => {}
        "Indexed" => {
            if int(spec, "completions").is_none() {
                errors.required(&at.field("completions"), "when completion mode is Indexed");
            }
            if let Some(parallel) = int(spec, "parallelism").filter(|n| *n > MAX_INDEXED_PARALLELISM) {
                let why = "must be less than or equal to 100000 when completion mode is Indexed";
                errors.invalid_int(&at.field("parallelism"), parallel, why);
            }
        }
        other => errors.unsupported(&at.field("completionMode"), other, &["Indexed", "NonIndexed"]),
    }
}

fn replacement(spec: &Value, at: &At<'_>, errors: &mut Errors) {
    let allowed: &[&str] = match get(spec, "podFailurePolicy") {
        Some(_) => &["Failed"],
        None => &["Failed", "TerminatingOrFailed"],
    };
    if let Some(policy) = text_at(spec, "podReplacementPolicy").filter(|p| !allowed.contains(p)) {
        errors.unsupported(&at.field("podReplacementPolicy"), policy, allowed);
    }
}

fn pod_template(spec: &Value, at: &At<'_>, errors: &mut Errors) {
    let place = at.field("template");
    validate::template(or_null(spec, "template"), &place, errors);
    let policy = text(or_null(or_null(spec, "template"), "spec"), "restartPolicy");
    let pod = place.field("spec");
    if !matches!(policy, "OnFailure" | "Never") {
        errors.required(&pod.field("restartPolicy"), "valid values: \"OnFailure\", \"Never\"");
    } else if get(spec, "podFailurePolicy").is_some() && policy != "Never" {
        let why = "only \"Never\" is supported when podFailurePolicy is specified";
        errors.invalid_text(&pod.field("restartPolicy"), policy, why);
    }
}

fn failure_policy(policy: &Value, spec: &Value, at: &At<'_>, errors: &mut Errors) {
    let rules = list(policy, "rules");
    let at = at.field("rules");
    if rules.len() > MAX_RULES {
        errors.too_many(&at, rules.len(), MAX_RULES);
    }
    for (i, rule) in rules.iter().enumerate() {
        failure_rule(rule, spec, &at.index(i), errors);
    }
}

fn failure_rule(rule: &Value, spec: &Value, at: &At<'_>, errors: &mut Errors) {
    let actions = ["Count", "FailIndex", "FailJob", "Ignore"];
    match text(rule, "action") {
        "" => errors
            .required(&at.field("action"), "valid values: [\"Count\" \"FailIndex\" \"FailJob\" \"Ignore\"]"),
        "FailIndex" if int(spec, "backoffLimitPerIndex").is_none() => {
            let why = "requires the backoffLimitPerIndex to be set";
            errors.invalid_text(&at.field("action"), "FailIndex", why);
        }
        action if actions.contains(&action) => {}
        other => errors.unsupported(&at.field("action"), other, &actions),
    }
    let codes = get(rule, "onExitCodes");
    let conditions = list(rule, "onPodConditions");
    if let Some(codes) = codes {
        exit_codes(codes, spec, &at.field("onExitCodes"), errors);
    }
    if !conditions.is_empty() {
        pod_conditions(conditions, &at.field("onPodConditions"), errors);
    }
    match (codes.is_some(), conditions.is_empty()) {
        (true, false) => {
            let why = "specifying both OnExitCodes and OnPodConditions is not supported";
            errors.invalid_hidden(at, why);
        }
        (false, true) => {
            errors.invalid_hidden(at, "specifying one of OnExitCodes and OnPodConditions is required");
        }
        _ => {}
    }
}

fn exit_codes(codes: &Value, spec: &Value, at: &At<'_>, errors: &mut Errors) {
    let operator = text(codes, "operator");
    match operator {
        "" => errors.required(&at.field("operator"), "valid values: [\"In\" \"NotIn\"]"),
        "In" | "NotIn" => {}
        other => errors.unsupported(&at.field("operator"), other, &["In", "NotIn"]),
    }
    if let Some(name) = text_at(codes, "containerName") {
        let pod = or_null(or_null(spec, "template"), "spec");
        let mut all = list(pod, "containers").iter().chain(list(pod, "initContainers"));
        if !all.any(|c| text(c, "name") == name) {
            let why = "must be one of the container or initContainer names in the pod template";
            errors.invalid_text(&at.field("containerName"), name, why);
        }
    }
    let values: Vec<i64> = list(codes, "values").iter().filter_map(Value::as_i64).collect();
    let at = at.field("values");
    if values.is_empty() {
        errors.invalid(&at, or_null(codes, "values"), "at least one value is required");
    } else if values.len() > MAX_EXIT_CODES {
        errors.too_many(&at, values.len(), MAX_EXIT_CODES);
    }
    for (i, value) in values.iter().enumerate() {
        if operator == "In" && *value == 0 {
            errors.invalid_int(&at.index(i), 0, "must not be 0 for the In operator");
        }
        if values[..i].contains(value) {
            errors.duplicate(&at.index(i), &(*value).into());
        }
    }
    if !values.is_sorted() {
        errors.invalid(&at, or_null(codes, "values"), "must be ordered");
    }
}

fn pod_conditions(conditions: &[Value], at: &At<'_>, errors: &mut Errors) {
    if conditions.len() > MAX_RULES {
        errors.too_many(at, conditions.len(), MAX_RULES);
    }
    for (i, condition) in conditions.iter().enumerate() {
        let at = at.index(i);
        let kind = text(condition, "type");
        for why in names::qualified_name(kind) {
            errors.invalid_text(&at.field("type"), kind, &why);
        }
        match text(condition, "status") {
            "True" | "False" | "Unknown" => {}
            "" => errors.required(&at.field("status"), "valid values: [\"False\" \"True\" \"Unknown\"]"),
            other => errors.unsupported(&at.field("status"), other, &["False", "True", "Unknown"]),
        }
    }
}

fn success_policy(policy: &Value, mode: &str, at: &At<'_>, errors: &mut Errors) {
    if mode != "Indexed" {
        let shown = internal::line(policy, "batch/v1.SuccessPolicy");
        errors.invalid_shown(at, &shown, "requires indexed completion mode");
        return;
    }
    let rules = list(policy, "rules");
    let at = at.field("rules");
    if rules.is_empty() {
        let why = "at least one rules must be specified when the successPolicy is specified";
        errors.required(&at, why);
    }
    if rules.len() > MAX_RULES {
        errors.too_many(&at, rules.len(), MAX_RULES);
    }
    for (i, rule) in rules.iter().enumerate() {
        if int(rule, "succeededCount").is_none() && text_at(rule, "succeededIndexes").is_none() {
            let why = "at least one of succeededCount or succeededIndexes must be specified";
            errors.required(&at.index(i), why);
        }
        not_negative(rule, &["succeededCount"], &at.index(i), errors);
    }
}

/// Checks the replacement of a job.
pub(super) fn job_update(new: &Object, old: &Object, errors: &mut Errors) {
    let at = At::new("spec");
    with_selector(spec(new), &at, errors);
    completions_update(spec(new), spec(old), &at, errors);
    let suspended = flag(spec(old), "suspend") && get(status(old), "startTime").is_none();
    for key in ["selector", "template"] {
        let (value, before) = (or_null(spec(new), key), or_null(spec(old), key));
        let changed = match key {
            "template" if suspended => scheduling_aside(value) != scheduling_aside(before),
            _ => value != before,
        };
        if changed {
            let shown = match key {
                "template" => internal::line(value, "v1.PodTemplateSpec"),
                _ => value.to_string(),
            };
            errors.invalid_shown(&at.field(key), &shown, IMMUTABLE);
        }
    }
    for (key, name) in [
        ("completionMode", ""),
        ("podFailurePolicy", "batch/v1.PodFailurePolicy"),
        ("backoffLimitPerIndex", ""),
        ("managedBy", ""),
        ("successPolicy", "batch/v1.SuccessPolicy"),
    ] {
        let value = or_null(spec(new), key);
        if value != or_null(spec(old), key) {
            errors.invalid_shown(&at.field(key), &internal::line(value, name), IMMUTABLE);
        }
    }
}

/// A template without what may change while the job is suspended.
fn scheduling_aside(template: &Value) -> Value {
    let mut copy = template.clone();
    if let Some(meta) = copy.get_mut("metadata").and_then(Value::as_object_mut) {
        meta.retain(|key, _| !matches!(key.as_str(), "labels" | "annotations"));
    }
    if let Some(spec) = copy.get_mut("spec").and_then(Value::as_object_mut) {
        let free = ["affinity", "nodeSelector", "tolerations", "schedulingGates"];
        spec.retain(|key, _| !free.contains(&key.as_str()));
    }
    copy
}

fn completions_update(new: &Value, old: &Value, at: &At<'_>, errors: &mut Errors) {
    let (value, before) = (or_null(new, "completions"), or_null(old, "completions"));
    if value == before {
        return;
    }
    let at = at.field("completions");
    if text(new, "completionMode") != "Indexed" || value.is_null() || before.is_null() {
        errors.invalid(&at, value, IMMUTABLE);
    } else if value != or_null(new, "parallelism") {
        errors.invalid(&at, value, "can only be modified in tandem with spec.parallelism");
    }
}

/// Checks the replacement of a job's status.
pub(super) fn job_status(new: &Object, old: &Object, errors: &mut Errors) {
    let at = At::new("status");
    let (status, before) = (status(new), status(old));
    not_negative(status, &["active", "succeeded", "failed", "ready", "terminating"], &at, errors);
    let done = |status: &Value| {
        list(status, "conditions")
            .iter()
            .any(|c| matches!(text(c, "type"), "Complete" | "Failed") && text(c, "status") == "True")
    };
    if done(before) && !done(status) {
        let why = "cannot disable the Complete=True condition";
        errors.invalid_hidden(&at.field("conditions"), why);
    }
}
