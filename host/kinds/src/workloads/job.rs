//! `Job`.

use serde_json::{Map, Value, json};
use wasmk_api::{Object, Timestamp, human_duration};

use crate::errors::Errors;
use crate::fields::{in_meta, in_spec, spec, status};
use crate::pod::defaults;
use crate::table::age;
use crate::value::{get, int, list, map_mut, maps_mut, set_default, some_map, text};
use crate::workloads::{job_validate, wide_cells};
use crate::{Column, Kind, columns, fields, pod_warnings, status as statuses};

pub(crate) struct Job;

impl Kind for Job {
    fn set_defaults(&self, obj: &mut Object) {
        if let Some(spec) = some_map(&mut obj.0, "spec") {
            job_spec(spec);
            defaults::template(spec, "template");
        }
        label_like_pods(obj);
    }

    fn prepare_create(&self, obj: &mut Object) {
        statuses::reset(obj);
        generate_selector(obj);
        label_like_pods(obj);
    }

    fn check(&self, obj: &Object, errors: &mut Errors) {
        job_validate::job(obj, errors);
    }

    fn check_update(&self, new: &Object, old: &Object, errors: &mut Errors) {
        job_validate::job_update(new, old, errors);
    }

    fn check_status(&self, new: &Object, old: &Object, errors: &mut Errors) {
        job_validate::job_status(new, old, errors);
    }

    fn warnings(&self, obj: &Object, old: Option<&Object>) -> Vec<String> {
        pod_warnings::of_template(obj, old, &["spec", "template"])
    }

    fn columns(&self) -> &'static [Column] {
        columns::of("batch/Job")
    }

    fn row(&self, obj: &Object, now: Timestamp) -> Vec<Value> {
        let [names, images, selector] = wide_cells(obj);
        vec![
            obj.name().into(),
            state(obj).into(),
            completions(obj).into(),
            duration(obj, now).into(),
            age(obj, now),
            names,
            images,
            selector,
        ]
    }

    fn field_names(&self) -> &'static [&'static str] {
        &["status.successful"]
    }

    fn fields(&self, obj: &Object) -> Vec<(&'static str, String)> {
        vec![("status.successful", fields::value_or(obj, "status.succeeded", "0"))]
    }

    fn has_generation(&self) -> bool {
        true
    }

    fn orphans_by_default(&self) -> bool {
        true
    }
}

fn job_spec(spec: &mut Map<String, Value>) {
    let unset = |spec: &Map<String, Value>, key: &str| spec.get(key).is_none_or(Value::is_null);
    if unset(spec, "completions") && unset(spec, "parallelism") {
        spec.insert("completions".into(), 1.into());
    }
    set_default(spec, "parallelism", 1);
    let backoff = if unset(spec, "backoffLimitPerIndex") { 6 } else { i64::from(i32::MAX) };
    set_default(spec, "backoffLimit", backoff);
    set_default(spec, "completionMode", "NonIndexed");
    set_default(spec, "suspend", false);
    set_default(spec, "manualSelector", false);
    let replacement = if unset(spec, "podFailurePolicy") { "TerminatingOrFailed" } else { "Failed" };
    set_default(spec, "podReplacementPolicy", replacement);
    if let Some(policy) = some_map(spec, "podFailurePolicy") {
        for rule in maps_mut(policy, "rules") {
            maps_mut(rule, "onPodConditions").for_each(|pattern| set_default(pattern, "status", "True"));
        }
    }
}

/// A job without labels takes those of its pods, unless its name is too long to be one of them.
fn label_like_pods(obj: &mut Object) {
    if obj.name().len() > wasmk_machinery::names::LABEL_MAX {
        return;
    }
    let labels = in_spec(obj, &["template", "metadata", "labels"]).clone();
    if labels.is_object() && obj.labels().next().is_none() {
        obj.set_meta("labels", labels);
    }
}

/// Makes selector and pod labels unique to the job, unless it brings a selector of its own.
fn generate_selector(obj: &mut Object) {
    if in_spec(obj, &["manualSelector"]).as_bool() == Some(true) {
        return;
    }
    let (name, uid) = (obj.name().to_owned(), obj.uid().to_owned());
    let Some(spec) = some_map(&mut obj.0, "spec") else { return };
    let meta = map_mut(map_mut(spec, "template"), "metadata");
    let labels = map_mut(meta, "labels");
    for (key, value) in [
        ("controller-uid", &uid),
        ("job-name", &name),
        ("batch.kubernetes.io/controller-uid", &uid),
        ("batch.kubernetes.io/job-name", &name),
    ] {
        labels.entry(key).or_insert_with(|| value.clone().into());
    }
    let selector = map_mut(spec, "selector");
    map_mut(selector, "matchLabels")
        .entry("batch.kubernetes.io/controller-uid")
        .or_insert_with(|| json!(uid));
}

fn has_condition(status: &Value, kind: &str) -> bool {
    list(status, "conditions").iter().any(|c| text(c, "type") == kind && text(c, "status") == "True")
}

fn state(obj: &Object) -> &'static str {
    let status = status(obj);
    match () {
        () if has_condition(status, "Complete") => "Complete",
        () if has_condition(status, "Failed") => "Failed",
        () if !in_meta(obj, "deletionTimestamp").is_null() => "Terminating",
        () if has_condition(status, "Suspended") => "Suspended",
        () if has_condition(status, "FailureTarget") => "FailureTarget",
        () if has_condition(status, "SuccessCriteriaMet") => "SuccessCriteriaMet",
        () => "Running",
    }
}

fn completions(obj: &Object) -> String {
    let done = int(status(obj), "succeeded").unwrap_or(0);
    match (int(spec(obj), "completions"), int(spec(obj), "parallelism").unwrap_or(0)) {
        (Some(wanted), _) => format!("{done}/{wanted}"),
        (None, parallel) if parallel > 1 => format!("{done}/1 of {parallel}"),
        _ => format!("{done}/1"),
    }
}

fn duration(obj: &Object, now: Timestamp) -> String {
    let status = status(obj);
    let time = |key| get(status, key).and_then(Value::as_str).and_then(|t| t.parse::<Timestamp>().ok());
    match (time("startTime"), time("completionTime")) {
        (None, _) => String::new(),
        (Some(start), Some(end)) => human_duration(end.since(start)),
        (Some(start), None) => human_duration(now.since(start)),
    }
}
