//! `Deployment`.

use serde_json::{Value, json};
use wasmk_api::{Object, Timestamp};

use crate::errors::{At, Errors};
use crate::fields::{in_meta, in_spec, spec, status};
use crate::int_or_percent;
use crate::meta::IMMUTABLE;
use crate::pod::defaults;
use crate::value::{int, map_mut, or_null, set_default, some_map, text};
use crate::workloads::{SCALE, always_restarts, check_template, not_negative, number, wide_cells};
use crate::{Column, Kind, Scale, columns, pod_warnings, selector, status as statuses};

pub(crate) struct Deployment;

impl Kind for Deployment {
    fn set_defaults(&self, obj: &mut Object) {
        let Some(spec) = some_map(&mut obj.0, "spec") else { return };
        set_default(spec, "replicas", 1);
        set_default(spec, "revisionHistoryLimit", 10);
        set_default(spec, "progressDeadlineSeconds", 600);
        let strategy = map_mut(spec, "strategy");
        set_default(strategy, "type", "RollingUpdate");
        if strategy.get("type").and_then(Value::as_str) == Some("RollingUpdate") {
            set_default(strategy, "rollingUpdate", json!({}));
            let rolling = map_mut(strategy, "rollingUpdate");
            set_default(rolling, "maxUnavailable", "25%");
            set_default(rolling, "maxSurge", "25%");
        }
        defaults::template(spec, "template");
    }

    fn prepare_status(&self, new: &mut Object, old: &Object) {
        statuses::only(new, old);
        let labels = in_meta(old, "labels").clone();
        new.set_meta("labels", labels);
    }

    fn check(&self, obj: &Object, errors: &mut Errors) {
        check_spec(spec(obj), &At::new("spec"), errors);
    }

    fn check_update(&self, new: &Object, old: &Object, errors: &mut Errors) {
        let at = At::new("spec");
        check_spec(spec(new), &at, errors);
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
        columns::of("apps/Deployment")
    }

    fn row(&self, obj: &Object, now: Timestamp) -> Vec<Value> {
        let status = status(obj);
        let ready = int(status, "readyReplicas").unwrap_or(0);
        let wanted = int(spec(obj), "replicas").unwrap_or(0);
        let [names, images, selector] = wide_cells(obj);
        vec![
            obj.name().into(),
            format!("{ready}/{wanted}").into(),
            number(status, "updatedReplicas"),
            number(status, "availableReplicas"),
            crate::table::age(obj, now),
            names,
            images,
            selector,
        ]
    }

    fn has_generation(&self) -> bool {
        true
    }

    fn spec_changed(&self, new: &Object, old: &Object) -> bool {
        // The deployment's revision and the like stand in annotations, which its replica sets take over.
        spec(new) != spec(old) || in_meta(new, "annotations") != in_meta(old, "annotations")
    }

    fn scale(&self) -> Option<Scale> {
        Some(SCALE)
    }
}

fn check_spec(spec: &Value, at: &At<'_>, errors: &mut Errors) {
    not_negative(spec, &["replicas"], at, errors);
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
    check_template(spec, at, errors);
    always_restarts(spec, "ReplicaSet", at, errors);
    strategy(or_null(spec, "strategy"), &at.field("strategy"), errors);
    not_negative(spec, &["minReadySeconds", "revisionHistoryLimit"], at, errors);
    if let Some(deadline) = int(spec, "progressDeadlineSeconds") {
        not_negative(spec, &["progressDeadlineSeconds"], at, errors);
        if deadline <= int(spec, "minReadySeconds").unwrap_or(0) {
            let why = "must be greater than minReadySeconds";
            errors.invalid_int(&at.field("progressDeadlineSeconds"), deadline, why);
        }
    }
}

fn strategy(strategy: &Value, at: &At<'_>, errors: &mut Errors) {
    let rolling = or_null(strategy, "rollingUpdate");
    let place = at.field("rollingUpdate");
    match text(strategy, "type") {
        "Recreate" if !rolling.is_null() => {
            errors.forbidden(&place, "may not be specified when strategy `type` is 'Recreate'");
        }
        "Recreate" => {}
        "RollingUpdate" if rolling.is_null() => {
            errors.required(&place, "this should be defaulted and never be nil");
        }
        "RollingUpdate" => rolling_update(rolling, &place, errors),
        other => {
            errors.unsupported(&at.field("type"), other, &["Recreate", "RollingUpdate"]);
        }
    }
}

fn rolling_update(rolling: &Value, at: &At<'_>, errors: &mut Errors) {
    let (unavailable, surge) = (or_null(rolling, "maxUnavailable"), or_null(rolling, "maxSurge"));
    int_or_percent::not_negative(unavailable, &at.field("maxUnavailable"), errors);
    int_or_percent::not_negative(surge, &at.field("maxSurge"), errors);
    if int_or_percent::is_zero(unavailable) && int_or_percent::is_zero(surge) {
        let why = "may not be 0 when `maxSurge` is 0";
        errors.invalid(&at.field("maxUnavailable"), unavailable, why);
    }
    int_or_percent::at_most_all(unavailable, &at.field("maxUnavailable"), errors);
}

fn check_status(status: &Value, at: &At<'_>, errors: &mut Errors) {
    let counts = [
        "observedGeneration",
        "replicas",
        "updatedReplicas",
        "readyReplicas",
        "availableReplicas",
        "unavailableReplicas",
        "collisionCount",
    ];
    not_negative(status, &counts, at, errors);
    let number = |key| int(status, key).unwrap_or(0);
    for (smaller, larger) in [
        ("updatedReplicas", "replicas"),
        ("readyReplicas", "replicas"),
        ("availableReplicas", "replicas"),
        ("availableReplicas", "readyReplicas"),
    ] {
        if number(smaller) > number(larger) {
            let larger = if larger == "replicas" { "status.replicas" } else { "readyReplicas" };
            errors.invalid_int(
                &at.field(smaller),
                number(smaller),
                &format!("cannot be greater than {larger}"),
            );
        }
    }
}
