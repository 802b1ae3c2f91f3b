//! `HorizontalPodAutoscaler` and `Scale`.

use serde_json::{Map, Value, json};
use wasmk_api::{Object, Timestamp};
use wasmk_machinery::names;

use crate::errors::{At, Errors};
use crate::fields::{in_spec, spec, status, top};
use crate::resource_names::{self, read};
use crate::table::age;
use crate::value::{get, int, list, map_mut, or_null, set_default, some_map, text, text_at};
use crate::workloads::not_negative;
use crate::{Column, Kind, NameRule, columns, normalize};

/// How many metrics a table shows.
const SHOWN: usize = 2;
/// The longest period of a scaling policy, and the longest stabilization window, in seconds.
const MAX_PERIOD: i64 = 1800;
const MAX_WINDOW: i64 = 3600;

/// `HorizontalPodAutoscaler`, of any version.
pub(crate) struct HorizontalPodAutoscaler;

impl Kind for HorizontalPodAutoscaler {
    fn default(&self, obj: &mut Object) {
        // An empty list of policies is refused, an absent one has defaults.
        let emptied: Vec<&str> = ["scaleUp", "scaleDown"]
            .into_iter()
            .filter(|rules| {
                let policies = in_spec(obj, &["behavior", rules, "policies"]);
                policies.as_array().is_some_and(Vec::is_empty)
            })
            .collect();
        normalize::normalize(obj);
        let behavior = some_map(&mut obj.0, "spec").and_then(|spec| some_map(spec, "behavior"));
        if let Some(behavior) = behavior {
            for rules in emptied {
                map_mut(behavior, rules).insert("policies".into(), json!([]));
            }
        }
        self.set_defaults(obj);
    }

    fn set_defaults(&self, obj: &mut Object) {
        let newer = obj.api_version() != "autoscaling/v1";
        let Some(spec) = some_map(&mut obj.0, "spec") else { return };
        set_default(spec, "minReplicas", 1);
        if !newer {
            return;
        }
        if spec.get("metrics").and_then(Value::as_array).is_none_or(Vec::is_empty) {
            let target = json!({"type": "Utilization", "averageUtilization": 80});
            let metric = json!({"type": "Resource", "resource": {"name": "cpu", "target": target}});
            spec.insert("metrics".into(), json!([metric]));
        }
        if let Some(behavior) = some_map(spec, "behavior") {
            let all = json!({"type": "Percent", "value": 100, "periodSeconds": 15});
            let four = json!({"type": "Pods", "value": 4, "periodSeconds": 15});
            rules(map_mut(behavior, "scaleUp"), json!([four, all]), Some(0));
            rules(map_mut(behavior, "scaleDown"), json!([all]), None);
        }
    }

    fn check(&self, obj: &Object, errors: &mut Errors) {
        check_spec(spec(obj), errors);
    }

    fn check_status(&self, new: &Object, _old: &Object, errors: &mut Errors) {
        not_negative(status(new), &["currentReplicas", "desiredReplicas"], &At::new("status"), errors);
    }

    fn columns(&self) -> &'static [Column] {
        columns::of("autoscaling/HorizontalPodAutoscaler")
    }

    fn row(&self, obj: &Object, now: Timestamp) -> Vec<Value> {
        let spec = spec(obj);
        let target = or_null(spec, "scaleTargetRef");
        let least = int(spec, "minReplicas").map_or_else(|| "<unset>".to_owned(), |n| n.to_string());
        vec![
            obj.name().into(),
            format!("{}/{}", text(target, "kind"), text(target, "name")).into(),
            targets(obj).into(),
            least.into(),
            int(spec, "maxReplicas").unwrap_or(0).into(),
            int(status(obj), "currentReplicas").unwrap_or(0).into(),
            age(obj, now),
        ]
    }
}

fn rules(rules: &mut Map<String, Value>, policies: Value, window: Option<i64>) {
    set_default(rules, "selectPolicy", "Max");
    set_default(rules, "policies", policies);
    if let Some(window) = window {
        set_default(rules, "stabilizationWindowSeconds", window);
    }
}

/// `cpu: 20%/80%`, for each metric.
fn targets(obj: &Object) -> String {
    let (spec, status) = (spec(obj), status(obj));
    if obj.api_version() == "autoscaling/v1" {
        let Some(wanted) = int(spec, "targetCPUUtilizationPercentage") else { return "<none>".into() };
        let now = int(status, "currentCPUUtilizationPercentage");
        let now = now.map_or_else(|| "<unknown>".into(), |n| format!("{n}%"));
        return format!("cpu: {now}/{wanted}%");
    }
    let metrics = list(spec, "metrics");
    if metrics.is_empty() {
        return "<none>".into();
    }
    let current = list(status, "currentMetrics");
    let shown: Vec<String> =
        metrics.iter().enumerate().take(SHOWN).map(|(i, m)| metric(m, current.get(i))).collect();
    match metrics.len() > SHOWN {
        true => format!("{} + {} more...", shown.join(", "), metrics.len() - SHOWN),
        false => shown.join(", "),
    }
}

/// Where each type of metric is described.
fn part(kind: &str) -> &'static str {
    match kind {
        "Pods" => "pods",
        "Object" => "object",
        "External" => "external",
        "ContainerResource" => "containerResource",
        _ => "resource",
    }
}

fn metric(metric: &Value, current: Option<&Value>) -> String {
    let kind = text(metric, "type");
    let source = or_null(metric, part(kind));
    let target = or_null(source, "target");
    let now = current.map_or(&crate::value::NULL, |c| or_null(or_null(c, part(kind)), "current"));
    let value = |key: &str| text_at(now, key).unwrap_or("<unknown>").to_owned();
    let average = text_at(target, "averageValue");
    match (kind, average) {
        ("Resource" | "ContainerResource", None) => {
            let used = int(now, "averageUtilization").map_or("<unknown>".into(), |n| format!("{n}%"));
            let wanted = int(target, "averageUtilization").map_or("<auto>".into(), |n| format!("{n}%"));
            format!("{}: {used}/{wanted}", text(source, "name"))
        }
        ("Resource" | "ContainerResource", Some(wanted)) => {
            format!("{}: {}/{wanted}", text(source, "name"), value("averageValue"))
        }
        ("Pods", wanted) => format!("{}/{}", value("averageValue"), wanted.unwrap_or("")),
        (_, Some(wanted)) => format!("{}/{wanted} (avg)", value("averageValue")),
        (_, None) => format!("{}/{}", value("value"), text(target, "value")),
    }
}

fn check_spec(spec: &Value, errors: &mut Errors) {
    let at = At::new("spec");
    let least = int(spec, "minReplicas");
    if let Some(least) = least.filter(|n| *n < 1) {
        errors.invalid_int(&at.field("minReplicas"), least, "must be greater than or equal to 1");
    }
    let most = int(spec, "maxReplicas").unwrap_or(0);
    if most < 1 {
        errors.required(&at.field("maxReplicas"), "must be set and greater than 0");
    }
    if least.is_some_and(|least| most < least) {
        errors.invalid_int(&at.field("maxReplicas"), most, "must be greater than or equal to `minReplicas`");
    }
    reference(or_null(spec, "scaleTargetRef"), &at.field("scaleTargetRef"), errors);
    if let Some(percent) = int(spec, "targetCPUUtilizationPercentage").filter(|p| *p < 1) {
        errors.invalid_int(&at.field("targetCPUUtilizationPercentage"), percent, "must be greater than 0");
    }
    let place = at.field("metrics");
    for (i, metric) in list(spec, "metrics").iter().enumerate() {
        check_metric(metric, &place.index(i), errors);
    }
    if let Some(behavior) = get(spec, "behavior") {
        let at = at.field("behavior");
        for key in ["scaleUp", "scaleDown"] {
            if let Some(rules) = get(behavior, key) {
                check_rules(rules, &at.field(key), errors);
            }
        }
    }
}

fn reference(reference: &Value, at: &At<'_>, errors: &mut Errors) {
    for key in ["kind", "name"] {
        let value = text(reference, key);
        if value.is_empty() {
            errors.required(&at.field(key), "");
        }
        for why in names::path_segment(value) {
            errors.invalid_text(&at.field(key), value, &why);
        }
    }
}

/// The types of metrics as errors list them.
const METRICS: [&str; 5] = ["ContainerResource", "External", "Object", "Pods", "Resource"];
/// Where metrics are described, in the order in which the first of them is looked at.
const SOURCES: [&str; 5] = ["object", "external", "pods", "resource", "containerResource"];

fn check_metric(metric: &Value, at: &At<'_>, errors: &mut Errors) {
    let kind = text(metric, "type");
    let place = at.field("type");
    if kind.is_empty() {
        errors.required(&place, "must specify a metric source type");
    }
    let known = METRICS.contains(&kind);
    if !known {
        errors.unsupported(&place, kind, &METRICS);
    }
    let present: Vec<&str> = SOURCES.into_iter().filter(|field| get(metric, field).is_some()).collect();
    if let Some(field) = present.first() {
        check_source(or_null(metric, field), field, &at.field(field), errors);
    }
    let expected = if known { part(kind) } else { "" };
    if !known {
        // It is said once for the type and once for the source that does not follow from it.
        errors.unsupported(&place, kind, &METRICS);
    } else if !present.contains(&expected) {
        errors.required(&at.field(expected), "must populate information for the given metric source");
    }
    if present.len() > 1 {
        for field in present.into_iter().filter(|field| *field != expected) {
            errors.forbidden(&at.field(field), "must populate the given metric source only");
        }
    }
}

fn check_source(source: &Value, field: &str, at: &At<'_>, errors: &mut Errors) {
    let (target, place) = (or_null(source, "target"), at.field("target"));
    match field {
        "resource" | "containerResource" => {
            let name = text(source, "name");
            if name.is_empty() {
                errors.required(&at.field("name"), "must specify a resource name");
            } else if field == "containerResource" {
                resource_names::of_container(name, &at.field("name"), errors);
            }
            if field == "containerResource" {
                container(text(source, "container"), &at.field("container"), errors);
            }
            check_target(target, &place, errors);
            resource_target(target, &place, errors);
        }
        _ => {
            if field == "object" {
                reference(or_null(source, "describedObject"), &at.field("describedObject"), errors);
            }
            metric_name(text(or_null(source, "metric"), "name"), &at.field("metric"), errors);
            check_target(target, &place, errors);
            named_target(target, field, &place, errors);
        }
    }
}

fn container(name: &str, at: &At<'_>, errors: &mut Errors) {
    if name.is_empty() {
        errors.required(at, "must specify a container");
        return;
    }
    for why in names::dns1123_label(name) {
        errors.invalid_text(at, name, &why);
    }
}

fn resource_target(target: &Value, at: &At<'_>, errors: &mut Errors) {
    let (usage, value) = (int(target, "averageUtilization"), get(target, "averageValue"));
    match (usage, value) {
        (Some(_), Some(_)) => {
            let why = "may not set both a target raw value and a target utilization";
            errors.forbidden(&at.field("averageValue"), why);
        }
        (None, None) => {
            let why = "must set either a target raw value or a target utilization";
            errors.required(&at.field("averageUtilization"), why);
        }
        _ => {}
    }
}

fn metric_name(name: &str, at: &At<'_>, errors: &mut Errors) {
    if name.is_empty() {
        errors.required(&at.field("name"), "must specify a metric name");
    }
    for why in names::path_segment(name) {
        errors.invalid_text(&at.field("name"), name, &why);
    }
}

fn named_target(target: &Value, field: &str, at: &At<'_>, errors: &mut Errors) {
    let (value, average) = (get(target, "value").is_some(), get(target, "averageValue").is_some());
    let place = at.field("averageValue");
    match field {
        "pods" if !average => errors.required(&place, "must specify a positive target averageValue"),
        "object" if !value && !average => {
            errors.required(&place, "must set either a target value or averageValue");
        }
        "external" if !value && !average => {
            errors.required(&place, "must set either a target value for metric or a per-pod target");
        }
        "external" if value && average => {
            let why = "may not set both a target value for metric and a per-pod target";
            errors.forbidden(&at.field("value"), why);
        }
        _ => {}
    }
}

fn check_target(target: &Value, at: &At<'_>, errors: &mut Errors) {
    let kind = text(target, "type");
    if kind.is_empty() {
        errors.required(&at.field("type"), "must specify a metric target type");
    }
    if !matches!(kind, "Utilization" | "Value" | "AverageValue") {
        let why = "must be either Utilization, Value, or AverageValue";
        errors.invalid_text(&at.field("type"), kind, why);
    }
    for key in ["value", "averageValue"] {
        let amount = or_null(target, key);
        if read(amount).is_some_and(|q| q <= wasmk_api::Quantity::default()) {
            errors.invalid(&at.field(key), amount, "must be positive");
        }
    }
    if let Some(percent) = int(target, "averageUtilization").filter(|p| *p < 1) {
        errors.invalid_int(&at.field("averageUtilization"), percent, "must be greater than 0");
    }
}

fn check_rules(rules: &Value, at: &At<'_>, errors: &mut Errors) {
    not_negative(rules, &["stabilizationWindowSeconds"], at, errors);
    if let Some(window) = int(rules, "stabilizationWindowSeconds").filter(|w| *w > MAX_WINDOW) {
        let why = "must be less than or equal to 3600";
        errors.invalid_int(&at.field("stabilizationWindowSeconds"), window, why);
    }
    let selections = ["Disabled", "Max", "Min"];
    if let Some(selection) = text_at(rules, "selectPolicy").filter(|s| !selections.contains(s)) {
        errors.unsupported(&at.field("selectPolicy"), selection, &selections);
    }
    let policies = list(rules, "policies");
    let place = at.field("policies");
    if policies.is_empty() {
        errors.required(&place, "must specify at least one Policy");
    }
    for (i, policy) in policies.iter().enumerate() {
        check_policy(policy, &place.index(i), errors);
    }
    if read(or_null(rules, "tolerance")).is_some_and(wasmk_api::Quantity::is_negative) {
        errors.invalid(
            &at.field("tolerance"),
            or_null(rules, "tolerance"),
            "must be greater or equal to zero",
        );
    }
}

fn check_policy(policy: &Value, at: &At<'_>, errors: &mut Errors) {
    let kind = text(policy, "type");
    if !matches!(kind, "Percent" | "Pods") {
        errors.unsupported(&at.field("type"), kind, &["Percent", "Pods"]);
    }
    for (key, most) in [("value", i64::MAX), ("periodSeconds", MAX_PERIOD)] {
        let number = int(policy, key).unwrap_or(0);
        if number <= 0 {
            errors.invalid_int(&at.field(key), number, "must be greater than zero");
        }
        if number > most {
            errors.invalid_int(&at.field(key), number, &format!("must be less than or equal to {most}"));
        }
    }
}

/// `Scale`.
pub(crate) struct ScaleKind;

impl Kind for ScaleKind {
    fn prepare_create(&self, _obj: &mut Object) {}

    fn check(&self, obj: &Object, errors: &mut Errors) {
        not_negative(spec(obj), &["replicas"], &At::new("spec"), errors);
    }

    fn name_rule(&self) -> NameRule {
        NameRule::Subdomain
    }

    fn columns(&self) -> &'static [Column] {
        columns::of("autoscaling/Scale")
    }

    fn row(&self, obj: &Object, now: Timestamp) -> Vec<Value> {
        let replicas = |part: &str| int(top(obj, part), "replicas").unwrap_or(0).into();
        vec![obj.name().into(), replicas("spec"), replicas("status"), age(obj, now)]
    }
}
