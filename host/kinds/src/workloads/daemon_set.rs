//! `DaemonSet`.

use serde_json::{Value, json};
use wasmk_api::{Object, Timestamp};

use crate::errors::{At, Errors};
use crate::fields::{in_meta, in_spec, spec, status};
use crate::meta::IMMUTABLE;
use crate::pod::defaults;
use crate::table::age;
use crate::value::{map_mut, or_null, set_default, some_map, text};
use crate::workloads::{always_restarts, check_template, not_negative, number, wide_cells};
use crate::{Column, Kind, columns, int_or_percent, pod_warnings, selector, status as statuses};

/// Counts the changes of the template, as an older version of the API did in a field.
const TEMPLATE_GENERATION: &str = "deprecated.daemonset.template.generation";

pub(crate) struct DaemonSet;

impl Kind for DaemonSet {
    fn set_defaults(&self, obj: &mut Object) {
        if obj.annotation(TEMPLATE_GENERATION).is_none() {
            set_template_generation(obj, 0);
        }
        let Some(spec) = some_map(&mut obj.0, "spec") else { return };
        set_default(spec, "revisionHistoryLimit", 10);
        let strategy = map_mut(spec, "updateStrategy");
        set_default(strategy, "type", "RollingUpdate");
        if strategy.get("type").and_then(Value::as_str) == Some("RollingUpdate") {
            set_default(strategy, "rollingUpdate", json!({}));
            let rolling = map_mut(strategy, "rollingUpdate");
            set_default(rolling, "maxUnavailable", 1);
            set_default(rolling, "maxSurge", 0);
        }
        defaults::template(spec, "template");
    }

    fn prepare_create(&self, obj: &mut Object) {
        statuses::reset(obj);
        set_template_generation(obj, 1);
    }

    fn prepare_update(&self, new: &mut Object, old: &Object) {
        statuses::keep(new, old);
        let before = old.annotation(TEMPLATE_GENERATION).and_then(|n| n.parse::<i64>().ok()).unwrap_or(0);
        let changed = in_spec(new, &["template"]) != in_spec(old, &["template"]);
        set_template_generation(new, before + i64::from(changed));
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
        let counts = [
            "currentNumberScheduled",
            "numberMisscheduled",
            "desiredNumberScheduled",
            "numberReady",
            "observedGeneration",
            "updatedNumberScheduled",
            "numberAvailable",
            "numberUnavailable",
            "collisionCount",
        ];
        not_negative(status(new), &counts, &At::new("status"), errors);
    }

    fn warnings(&self, obj: &Object, old: Option<&Object>) -> Vec<String> {
        pod_warnings::of_template(obj, old, &["spec", "template"])
    }

    fn columns(&self) -> &'static [Column] {
        columns::of("apps/DaemonSet")
    }

    fn row(&self, obj: &Object, now: Timestamp) -> Vec<Value> {
        let status = status(obj);
        let nodes = selector::shown_labels(in_spec(obj, &["template", "spec"]), "nodeSelector");
        let counts = [
            "desiredNumberScheduled",
            "currentNumberScheduled",
            "numberReady",
            "updatedNumberScheduled",
            "numberAvailable",
        ];
        std::iter::once(obj.name().into())
            .chain(counts.map(|key| number(status, key)))
            .chain([nodes.into(), age(obj, now)])
            .chain(wide_cells(obj))
            .collect()
    }

    fn has_generation(&self) -> bool {
        true
    }
}

fn set_template_generation(obj: &mut Object, generation: i64) {
    let mut annotations = in_meta(obj, "annotations").as_object().cloned().unwrap_or_default();
    annotations.insert(TEMPLATE_GENERATION.into(), generation.to_string().into());
    obj.set_meta("annotations", annotations);
}

fn check_spec(spec: &Value, at: &At<'_>, errors: &mut Errors) {
    let (chosen, place) = (or_null(spec, "selector"), at.field("selector"));
    if chosen.is_null() {
        errors.required(&place, "");
    }
    selector::check(chosen, &place, errors);
    if chosen.is_object() && selector::is_empty(chosen) {
        errors.invalid(&place, chosen, "empty selector is invalid for daemonset");
    }
    check_template(spec, at, errors);
    always_restarts(spec, "DaemonSet", at, errors);
    not_negative(spec, &["minReadySeconds"], at, errors);
    update_strategy(or_null(spec, "updateStrategy"), &at.field("updateStrategy"), errors);
    not_negative(spec, &["revisionHistoryLimit"], at, errors);
}

fn update_strategy(strategy: &Value, at: &At<'_>, errors: &mut Errors) {
    let rolling = or_null(strategy, "rollingUpdate");
    let place = at.field("rollingUpdate");
    match text(strategy, "type") {
        "OnDelete" => {}
        "RollingUpdate" if rolling.is_null() => errors.required(&place, ""),
        "RollingUpdate" => rolling_update(rolling, &place, errors),
        _ => {
            let shown = crate::internal::form(strategy, "apps/v1.DaemonSetUpdateStrategy");
            errors.unsupported_value(at, &shown, &["OnDelete", "RollingUpdate"]);
        }
    }
}

fn rolling_update(rolling: &Value, at: &At<'_>, errors: &mut Errors) {
    let (unavailable, surge) = (or_null(rolling, "maxUnavailable"), or_null(rolling, "maxSurge"));
    let (at_unavailable, at_surge) = (at.field("maxUnavailable"), at.field("maxSurge"));
    int_or_percent::not_negative(unavailable, &at_unavailable, errors);
    int_or_percent::not_negative(surge, &at_surge, errors);
    int_or_percent::at_most_all(unavailable, &at_unavailable, errors);
    int_or_percent::at_most_all(surge, &at_surge, errors);
    match (int_or_percent::is_zero(unavailable), int_or_percent::is_zero(surge)) {
        (false, false) => errors.invalid(&at_surge, surge, "may not be set when maxUnavailable is non-zero"),
        (true, true) => errors.required(&at_unavailable, "cannot be 0 when maxSurge is 0"),
        _ => {}
    }
}
