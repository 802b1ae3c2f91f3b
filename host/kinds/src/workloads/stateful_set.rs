//! `StatefulSet`.

use serde_json::{Value, json};
use wasmk_api::{Object, Timestamp};
use wasmk_machinery::names;

use crate::errors::{At, Errors};
use crate::fields::{in_spec, spec, status};
use crate::normalize::normalize_as;
use crate::pod::defaults;
use crate::table::age;
use crate::value::{int, map_mut, or_null, set_default, some_map, text};
use crate::workloads::{SCALE, always_restarts, check_labels, not_negative};
use crate::{Column, Kind, Scale, columns, int_or_percent, meta, pod_warnings, selector};

pub(crate) struct StatefulSet;

impl Kind for StatefulSet {
    fn set_defaults(&self, obj: &mut Object) {
        let Some(spec) = some_map(&mut obj.0, "spec") else { return };
        set_default(spec, "podManagementPolicy", "OrderedReady");
        set_default(spec, "replicas", 1);
        set_default(spec, "revisionHistoryLimit", 10);
        let strategy = map_mut(spec, "updateStrategy");
        set_default(strategy, "type", "RollingUpdate");
        if strategy.get("type").and_then(Value::as_str) == Some("RollingUpdate") {
            set_default(strategy, "rollingUpdate", json!({}));
            set_default(map_mut(strategy, "rollingUpdate"), "partition", 0);
        }
        let retention = map_mut(spec, "persistentVolumeClaimRetentionPolicy");
        set_default(retention, "whenDeleted", "Retain");
        set_default(retention, "whenScaled", "Retain");
        defaults::template(spec, "template");
        for claim in spec.get_mut("volumeClaimTemplates").and_then(Value::as_array_mut).into_iter().flatten()
        {
            claim_template(claim);
        }
    }

    fn check(&self, obj: &Object, errors: &mut Errors) {
        check_spec(spec(obj), &At::new("spec"), errors);
    }

    fn check_update(&self, new: &Object, old: &Object, errors: &mut Errors) {
        check_spec(spec(new), &At::new("spec"), errors);
        if frozen(spec(new)) != frozen(spec(old)) {
            errors.forbidden(&At::new("spec"), FROZEN);
        }
    }

    fn check_status(&self, new: &Object, _old: &Object, errors: &mut Errors) {
        check_status(status(new), &At::new("status"), errors);
    }

    fn warnings(&self, obj: &Object, old: Option<&Object>) -> Vec<String> {
        pod_warnings::of_template(obj, old, &["spec", "template"])
    }

    fn columns(&self) -> &'static [Column] {
        columns::of("apps/StatefulSet")
    }

    fn row(&self, obj: &Object, now: Timestamp) -> Vec<Value> {
        let ready = int(status(obj), "readyReplicas").unwrap_or(0);
        let wanted = int(spec(obj), "replicas").unwrap_or(0);
        let (names, images) = crate::table::containers(in_spec(obj, &["template", "spec"]));
        vec![obj.name().into(), format!("{ready}/{wanted}").into(), age(obj, now), names, images]
    }

    fn has_generation(&self) -> bool {
        true
    }

    fn scale(&self) -> Option<Scale> {
        Some(SCALE)
    }
}

/// Templates of claims are stored as whole claims.
fn claim_template(claim: &mut Value) {
    let Some(map) = claim.as_object_mut() else { return };
    map.insert("kind".into(), "PersistentVolumeClaim".into());
    map.insert("apiVersion".into(), "v1".into());
    if let Some(spec) = some_map(map, "spec") {
        set_default(spec, "volumeMode", "Filesystem");
    }
    set_default(map_mut(map, "status"), "phase", "Pending");
    normalize_as(claim, "v1.PersistentVolumeClaim");
}

const FROZEN: &str = "updates to statefulset spec for fields other than 'replicas', 'ordinals', 'template', 'updateStrategy', 'revisionHistoryLimit', 'persistentVolumeClaimRetentionPolicy' and 'minReadySeconds' are forbidden";
const MUTABLE: [&str; 7] = [
    "replicas",
    "ordinals",
    "template",
    "updateStrategy",
    "revisionHistoryLimit",
    "persistentVolumeClaimRetentionPolicy",
    "minReadySeconds",
];

/// The part of the spec that may not change.
fn frozen(spec: &Value) -> Vec<(&String, &Value)> {
    let mut parts: Vec<_> =
        spec.as_object().into_iter().flatten().filter(|(key, _)| !MUTABLE.contains(&key.as_str())).collect();
    parts.sort_by_key(|(key, _)| *key);
    parts
}

fn check_spec(spec: &Value, at: &At<'_>, errors: &mut Errors) {
    match text(spec, "podManagementPolicy") {
        "OrderedReady" | "Parallel" => {}
        "" => errors.required(&at.field("podManagementPolicy"), ""),
        other => {
            let why = "must be 'OrderedReady' or 'Parallel'";
            errors.invalid_text(&at.field("podManagementPolicy"), other, why);
        }
    }
    update_strategy(or_null(spec, "updateStrategy"), &at.field("updateStrategy"), errors);
    let retention = or_null(spec, "persistentVolumeClaimRetentionPolicy");
    let place = at.field("persistentVolumeClaimRetentionPolicy");
    for key in ["whenDeleted", "whenScaled"] {
        let policy = text(retention, key);
        if retention.is_object() && !matches!(policy, "Retain" | "Delete") {
            errors.unsupported(&place.field(key), policy, &["Delete", "Retain"]);
        }
    }
    not_negative(spec, &["replicas", "minReadySeconds"], at, errors);
    not_negative(or_null(spec, "ordinals"), &["start"], &at.field("ordinals"), errors);
    let service = text(spec, "serviceName");
    if !service.is_empty() {
        for why in names::dns1123_label(service) {
            errors.invalid_text(&at.field("serviceName"), service, &why);
        }
    }
    let (chosen, place) = (or_null(spec, "selector"), at.field("selector"));
    if chosen.is_null() {
        errors.required(&place, "");
    } else {
        selector::check(chosen, &place, errors);
        if selector::is_empty(chosen) {
            errors.invalid(&place, chosen, "empty selector is invalid for statefulset");
        }
    }
    // The template's spec is not looked into: its mounts may name volumes that come from claims.
    check_labels(spec, at, errors);
    let (meta, place) = (or_null(or_null(spec, "template"), "metadata"), at.field("template"));
    meta::labels(meta, &place.field("labels"), errors);
    meta::annotations(meta, &place.field("annotations"), errors);
    always_restarts(spec, "StatefulSet", at, errors);
    not_negative(spec, &["revisionHistoryLimit"], at, errors);
}

fn update_strategy(strategy: &Value, at: &At<'_>, errors: &mut Errors) {
    let rolling = or_null(strategy, "rollingUpdate");
    let place = at.field("rollingUpdate");
    match text(strategy, "type") {
        "" => errors.required(at, ""),
        "OnDelete" if !rolling.is_null() => {
            let shown = crate::internal::line(rolling, "apps/v1.RollingUpdateStatefulSetStrategy");
            errors.invalid_shown(&place, &shown, "only allowed for updateStrategy 'RollingUpdate'");
        }
        "OnDelete" => {}
        "RollingUpdate" => {
            not_negative(rolling, &["partition"], &place, errors);
            let (unavailable, place) = (or_null(rolling, "maxUnavailable"), place.field("maxUnavailable"));
            int_or_percent::not_negative(unavailable, &place, errors);
            if !unavailable.is_null() && int_or_percent::is_zero(unavailable) {
                errors.invalid(&place, unavailable, "cannot be 0");
            }
            int_or_percent::at_most_all(unavailable, &place, errors);
        }
        _ => {
            let shown = crate::internal::line(strategy, "apps/v1.StatefulSetUpdateStrategy");
            errors.invalid_shown(at, &shown, "must be 'RollingUpdate' or 'OnDelete'");
        }
    }
}

fn check_status(status: &Value, at: &At<'_>, errors: &mut Errors) {
    let counts = [
        "replicas",
        "readyReplicas",
        "currentReplicas",
        "updatedReplicas",
        "observedGeneration",
        "collisionCount",
    ];
    not_negative(status, &counts, at, errors);
    let number = |key| int(status, key).unwrap_or(0);
    for key in ["readyReplicas", "currentReplicas", "updatedReplicas", "availableReplicas"] {
        if number(key) > number("replicas") {
            errors.invalid_int(&at.field(key), number(key), "cannot be greater than status.replicas");
        }
    }
}
