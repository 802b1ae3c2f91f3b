//! `ReplicaSet` and its forerunner `ReplicationController`.

use serde_json::{Value, json};
use wasmk_api::{Object, Timestamp};

use crate::errors::{At, Errors};
use crate::fields::{in_spec, spec, status};
use crate::meta::IMMUTABLE;
use crate::pod::{defaults, validate};
use crate::table::age;
use crate::value::{int, map, or_null, set_default, some_map, text};
use crate::workloads::{SCALE, always_restarts, check_template, not_negative, number, wide_cells};
use crate::{Column, Kind, Scale, ScaleSelector, columns, pod_warnings, selector};

/// `ReplicaSet`.
pub(crate) struct ReplicaSet;

impl Kind for ReplicaSet {
    fn set_defaults(&self, obj: &mut Object) {
        let Some(spec) = some_map(&mut obj.0, "spec") else { return };
        set_default(spec, "replicas", 1);
        defaults::template(spec, "template");
    }

    fn check(&self, obj: &Object, errors: &mut Errors) {
        check_replica_set(spec(obj), &At::new("spec"), errors);
    }

    fn check_update(&self, new: &Object, old: &Object, errors: &mut Errors) {
        let at = At::new("spec");
        check_replica_set(spec(new), &at, errors);
        let selector = in_spec(new, &["selector"]);
        if selector != in_spec(old, &["selector"]) {
            errors.invalid(&at.field("selector"), selector, IMMUTABLE);
        }
    }

    fn check_status(&self, new: &Object, _old: &Object, errors: &mut Errors) {
        check_status(status(new), &At::new("status"), errors);
    }

    fn warnings(&self, obj: &Object, old: Option<&Object>) -> Vec<String> {
        pod_warnings::of_template(obj, old, &["spec", "template"])
    }

    fn columns(&self) -> &'static [Column] {
        columns::of("apps/ReplicaSet")
    }

    fn row(&self, obj: &Object, now: Timestamp) -> Vec<Value> {
        let [names, images, selector] = wide_cells(obj);
        counts(obj, now).into_iter().chain([names, images, selector]).collect()
    }

    fn has_generation(&self) -> bool {
        true
    }

    fn field_names(&self) -> &'static [&'static str] {
        &[]
    }

    fn scale(&self) -> Option<Scale> {
        Some(SCALE)
    }
}

fn counts(obj: &Object, now: Timestamp) -> Vec<Value> {
    let status = status(obj);
    vec![
        obj.name().into(),
        number(spec(obj), "replicas"),
        number(status, "replicas"),
        number(status, "readyReplicas"),
        age(obj, now),
    ]
}

fn check_replica_set(spec: &Value, at: &At<'_>, errors: &mut Errors) {
    not_negative(spec, &["replicas", "minReadySeconds"], at, errors);
    let chosen = or_null(spec, "selector");
    let place = at.field("selector");
    if chosen.is_null() {
        errors.required(&place, "");
    } else {
        selector::check(chosen, &place, errors);
        if selector::is_empty(chosen) {
            errors.invalid(&place, chosen, "empty selector is invalid for deployment");
        }
    }
    if or_null(spec, "template").is_null() {
        errors.required(&at.field("template"), "");
        return;
    }
    check_template(spec, at, errors);
    always_restarts(spec, "ReplicaSet", at, errors);
}

fn check_status(status: &Value, at: &At<'_>, errors: &mut Errors) {
    let counts =
        ["replicas", "fullyLabeledReplicas", "readyReplicas", "availableReplicas", "observedGeneration"];
    not_negative(status, &counts, at, errors);
    let number = |key| int(status, key).unwrap_or(0);
    for key in ["fullyLabeledReplicas", "readyReplicas", "availableReplicas"] {
        if number(key) > number("replicas") {
            errors.invalid_int(&at.field(key), number(key), "cannot be greater than status.replicas");
        }
    }
    if number("availableReplicas") > number("readyReplicas") {
        let why = "cannot be greater than readyReplicas";
        errors.invalid_int(&at.field("availableReplicas"), number("availableReplicas"), why);
    }
}

/// `ReplicationController`.
pub(crate) struct ReplicationController;

impl Kind for ReplicationController {
    fn set_defaults(&self, obj: &mut Object) {
        let labels = in_spec(obj, &["template", "metadata", "labels"]).clone();
        if let Some(spec) = some_map(&mut obj.0, "spec") {
            set_default(spec, "replicas", 1);
            if labels.is_object() {
                set_default(spec, "selector", labels.clone());
            }
            defaults::template(spec, "template");
        }
        if labels.is_object() && obj.labels().next().is_none() {
            obj.set_meta("labels", labels);
        }
    }

    fn check(&self, obj: &Object, errors: &mut Errors) {
        check_controller(spec(obj), &At::new("spec"), errors);
    }

    fn check_status(&self, new: &Object, _old: &Object, errors: &mut Errors) {
        check_status(status(new), &At::new("status"), errors);
    }

    fn warnings(&self, obj: &Object, old: Option<&Object>) -> Vec<String> {
        pod_warnings::of_template(obj, old, &["spec", "template"])
    }

    fn columns(&self) -> &'static [Column] {
        columns::of("/ReplicationController")
    }

    fn row(&self, obj: &Object, now: Timestamp) -> Vec<Value> {
        let (names, images) = crate::table::containers(in_spec(obj, &["template", "spec"]));
        let selector = selector::shown_labels(spec(obj), "selector").into();
        counts(obj, now).into_iter().chain([names, images, selector]).collect()
    }

    fn field_names(&self) -> &'static [&'static str] {
        &["status.replicas"]
    }

    fn has_generation(&self) -> bool {
        true
    }

    fn scale(&self) -> Option<Scale> {
        Some(Scale { selector: ScaleSelector::Map(&["spec", "selector"]), ..SCALE })
    }

    fn orphans_by_default(&self) -> bool {
        true
    }
}

fn check_controller(spec: &Value, at: &At<'_>, errors: &mut Errors) {
    not_negative(spec, &["minReadySeconds"], at, errors);
    let chosen = map(spec, "selector").filter(|s| !s.is_empty());
    if chosen.is_none() {
        errors.required(&at.field("selector"), "");
    }
    if int(spec, "replicas").is_none() {
        errors.required(&at.field("replicas"), "");
    }
    not_negative(spec, &["replicas"], at, errors);
    let template = or_null(spec, "template");
    let place = at.field("template");
    if template.is_null() {
        errors.required(&place, "");
        return;
    }
    let labels = or_null(or_null(template, "metadata"), "labels");
    if chosen.is_some() && !selector::selects(&json!({"matchLabels": spec["selector"]}), labels) {
        let meta = place.field("metadata");
        errors.invalid(&meta.field("labels"), labels, "`selector` does not match template `labels`");
    }
    validate::template(template, &place, errors);
    let policy = text(or_null(template, "spec"), "restartPolicy");
    if policy != "Always" {
        let spec = place.field("spec");
        errors.unsupported(&spec.field("restartPolicy"), policy, &["Always"]);
    }
}
