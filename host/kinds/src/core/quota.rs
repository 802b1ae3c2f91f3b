//! `ResourceQuota` and `LimitRange`.

use serde_json::{Map, Value};
use wasmk_api::{Object, Quantity, Timestamp};
use wasmk_machinery::names;

use crate::errors::{At, Errors};
use crate::fields::{spec, status};
use crate::meta::IMMUTABLE;
use crate::resource_names::{self, read};
use crate::table::age;
use crate::value::{entries, list, map_mut, maps_mut, or_null, some_map, text, texts};
use crate::{Column, Kind, columns};

/// `ResourceQuota`.
pub(crate) struct ResourceQuota;

const SCOPES: [&str; 7] = [
    "BestEffort",
    "CrossNamespacePodAffinity",
    "NotBestEffort",
    "NotTerminating",
    "PriorityClass",
    "Terminating",
    "VolumeAttributesClass",
];

impl Kind for ResourceQuota {
    fn check(&self, obj: &Object, errors: &mut Errors) {
        let (spec, at) = (spec(obj), At::new("spec"));
        amounts(spec, "hard", &at, errors);
        scopes(spec, &at, errors);
        scope_selector(or_null(spec, "scopeSelector"), &at.field("scopeSelector"), errors);
    }

    fn check_update(&self, new: &Object, old: &Object, errors: &mut Errors) {
        self.check(new, errors);
        let sorted = |obj| {
            let mut scopes: Vec<String> = texts(spec(obj), "scopes").map(str::to_owned).collect();
            scopes.sort();
            scopes
        };
        if sorted(new) != sorted(old) {
            let at = At::new("spec");
            errors.invalid(&at.field("scopes"), or_null(spec(new), "scopes"), IMMUTABLE);
        }
    }

    fn check_status(&self, new: &Object, _old: &Object, errors: &mut Errors) {
        let at = At::new("status");
        amounts(status(new), "hard", &at, errors);
        amounts(status(new), "used", &at, errors);
    }

    fn columns(&self) -> &'static [Column] {
        columns::of("/ResourceQuota")
    }

    fn row(&self, obj: &Object, now: Timestamp) -> Vec<Value> {
        let mut hard: Vec<(&String, &Value)> = entries(status(obj), "hard").collect();
        hard.sort_by_key(|(name, _)| *name);
        let (mut requests, mut limits) = (Vec::new(), Vec::new());
        for (name, value) in hard {
            let used = or_null(or_null(status(obj), "used"), name).as_str().unwrap_or("0");
            let shown = format!("{name}: {used}/{}", value.as_str().unwrap_or(""));
            if name.starts_with("limits.") { limits.push(shown) } else { requests.push(shown) }
        }
        vec![obj.name().into(), requests.join(", ").into(), limits.join(", ").into(), age(obj, now)]
    }
}

fn amounts(holder: &Value, key: &str, at: &At<'_>, errors: &mut Errors) {
    let at = at.field(key);
    for (name, value) in entries(holder, key) {
        let at = at.key(name);
        resource_names::of_quota(name, &at, errors);
        resource_names::quantity_of(name, value, &at, errors);
    }
}

fn scopes(spec: &Value, at: &At<'_>, errors: &mut Errors) {
    let scopes: Vec<&str> = texts(spec, "scopes").collect();
    let at = at.field("scopes");
    for scope in &scopes {
        if !SCOPES.contains(scope) {
            errors.invalid(&at, or_null(spec, "scopes"), "unsupported scope");
        }
    }
    let has = |scope| scopes.contains(&scope);
    for (a, b) in [("BestEffort", "NotBestEffort"), ("Terminating", "NotTerminating")] {
        if has(a) && has(b) {
            errors.invalid(&at, or_null(spec, "scopes"), "conflicting scopes");
        }
    }
}

fn scope_selector(selector: &Value, at: &At<'_>, errors: &mut Errors) {
    let at = at.field("matchExpressions");
    for term in list(selector, "matchExpressions") {
        let (scope, operator) = (text(term, "scopeName"), text(term, "operator"));
        let values = list(term, "values");
        if !SCOPES.contains(&scope) {
            errors.invalid_text(&at.field("scopeName"), scope, "unsupported scope");
        }
        let by_value = matches!(scope, "PriorityClass" | "VolumeAttributesClass");
        if !by_value && operator != "Exists" {
            let why = "must be 'Exist' when scope is any of ResourceQuotaScopeTerminating, ResourceQuotaScopeNotTerminating, ResourceQuotaScopeBestEffort, ResourceQuotaScopeNotBestEffort or ResourceQuotaScopeCrossNamespacePodAffinity";
            errors.invalid_text(&at.field("operator"), operator, why);
        }
        match operator {
            "In" | "NotIn" if values.is_empty() => {
                let why = "must be at least one value when `operator` is 'In' or 'NotIn' for scope selector";
                errors.required(&at.field("values"), why);
            }
            "Exists" | "DoesNotExist" if !values.is_empty() => {
                let why = "must be no value when `operator` is 'Exist' or 'DoesNotExist' for scope selector";
                errors.invalid(&at.field("values"), or_null(term, "values"), why);
            }
            "In" | "NotIn" | "Exists" | "DoesNotExist" => {}
            other => errors.invalid_text(&at.field("operator"), other, "not a valid selector operator"),
        }
    }
}

/// `LimitRange`.
pub(crate) struct LimitRange;

impl Kind for LimitRange {
    fn set_defaults(&self, obj: &mut Object) {
        let Some(spec) = some_map(&mut obj.0, "spec") else { return };
        for limit in maps_mut(spec, "limits") {
            if limit.get("type").and_then(Value::as_str) == Some("Container") {
                fill(limit, "max", "default");
                fill(limit, "default", "defaultRequest");
                fill(limit, "min", "defaultRequest");
            }
        }
    }

    fn check(&self, obj: &Object, errors: &mut Errors) {
        let limits = list(spec(obj), "limits");
        let spec_at = At::new("spec");
        let at = spec_at.field("limits");
        for (i, limit) in limits.iter().enumerate() {
            let kind = text(limit, "type");
            let at = at.index(i);
            limit_type(kind, &at.field("type"), errors);
            if limits[..i].iter().any(|other| text(other, "type") == kind) {
                errors.duplicate_text(&at.field("type"), kind);
            }
            check_limit(limit, kind, &at, errors);
        }
    }

    fn creates_on_update(&self) -> bool {
        true
    }
}

/// Adds to one list the amounts of another that it does not name.
fn fill(limit: &mut Map<String, Value>, from: &str, to: &str) {
    let Some(source) = limit.get(from).and_then(Value::as_object).filter(|m| !m.is_empty()).cloned() else {
        return;
    };
    let target = map_mut(limit, to);
    for (name, value) in source {
        target.entry(name).or_insert(value);
    }
}

fn limit_type(kind: &str, at: &At<'_>, errors: &mut Errors) {
    let wrong = names::qualified_name(kind);
    for why in &wrong {
        errors.invalid_text(at, kind, why);
    }
    let standard = matches!(kind, "Pod" | "Container" | "PersistentVolumeClaim");
    if wrong.is_empty() && !kind.contains('/') && !standard {
        errors.invalid_text(at, kind, "must be a standard limit type or fully qualified");
    }
}

fn check_limit(limit: &Value, kind: &str, at: &At<'_>, errors: &mut Errors) {
    let mut resources: Vec<&String> = Vec::new();
    for key in ["max", "min", "default", "defaultRequest", "maxLimitRequestRatio"] {
        if kind == "Pod" && matches!(key, "default" | "defaultRequest") {
            if !or_null(limit, key).is_null() {
                errors.forbidden(&at.field(key), "may not be specified when `type` is 'Pod'");
            }
            continue;
        }
        for (name, _) in entries(limit, key) {
            resource_names::any(name, &at.field(key).key(name), errors);
            if !resources.contains(&name) {
                resources.push(name);
            }
        }
    }
    let has_storage = |key: &str| or_null(or_null(limit, key), "storage").is_string();
    if kind == "PersistentVolumeClaim" && !has_storage("min") && !has_storage("max") {
        let why = "either minimum or maximum storage value is required, but neither was provided";
        errors.required(&at.field("limits"), why);
    }
    resources.sort();
    for name in resources {
        compare(limit, name, at, errors);
    }
}

/// Checks the amounts of one resource against each other.
fn compare(limit: &Value, name: &str, at: &At<'_>, errors: &mut Errors) {
    let shown = |key: &str| or_null(or_null(limit, key), name);
    let amount = |key: &str| read(shown(key));
    if let (Some(min), Some(max)) = (amount("min"), amount("max"))
        && min > max
    {
        let why = format!(
            "min value {} is greater than max value {}",
            shown("min").as_str().unwrap_or(""),
            shown("max").as_str().unwrap_or("")
        );
        errors.invalid(&at.field("min").key(name), shown("min"), &why);
    }
    let mut above = |key: &str, bound: &str, what: &str, bound_name: &str, said: &str| {
        if let (Some(value), Some(limit)) = (amount(key), amount(bound)) {
            let text = |key: &str| shown(key).as_str().unwrap_or("").to_owned();
            let broken = if bound == "min" { limit > value } else { value > limit };
            if broken {
                let relation = if bound == "min" { "less" } else { "greater" };
                let why = format!(
                    "{what} value {} is {relation} than {bound_name} value {}",
                    text(key),
                    text(bound)
                );
                errors.invalid(&at.field(key).key(name), shown(said), &why);
            }
        }
    };
    above("defaultRequest", "min", "default request", "min", "defaultRequest");
    above("defaultRequest", "max", "default request", "max", "defaultRequest");
    above("defaultRequest", "default", "default request", "default limit", "defaultRequest");
    above("default", "min", "default", "min", "default");
    // What is said to be wrong is the maximum, not the default above it.
    above("default", "max", "default", "max", "max");
    ratio(limit, name, at, errors);
}

fn ratio(limit: &Value, name: &str, at: &At<'_>, errors: &mut Errors) {
    let shown = |key: &str| or_null(or_null(limit, key), name);
    let Some(ratio) = read(shown("maxLimitRequestRatio")) else { return };
    let at = at.field("maxLimitRequestRatio");
    if ratio < Quantity::units(1) {
        let why = format!("ratio {} is less than 1", shown("maxLimitRequestRatio").as_str().unwrap_or(""));
        errors.invalid(&at.key(name), shown("maxLimitRequestRatio"), &why);
    }
}
