//! Kinds of the group `admissionregistration.k8s.io`, and what they share: what a webhook or policy is about.

mod binding;
mod policy;
mod webhook;

use serde_json::{Map, Value, json};
use wasmk_machinery::names;

use crate::errors::{At, Errors};
use crate::value::{or_null, set_default, text, text_at, texts};

pub(crate) use binding::PolicyBinding;
pub(crate) use policy::Policy;
pub(crate) use webhook::Webhooks;

const OPERATIONS: [&str; 5] = ["*", "CONNECT", "CREATE", "DELETE", "UPDATE"];
const MAX_CONDITIONS: usize = 64;

fn set_rule_scope(rule: &mut Map<String, Value>) {
    set_default(rule, "scope", "*");
}

/// The defaults of what webhooks and policies match.
fn set_matching(holder: &mut Map<String, Value>) {
    set_default(holder, "matchPolicy", "Equivalent");
    set_default(holder, "namespaceSelector", json!({}));
    set_default(holder, "objectSelector", json!({}));
}

/// Checks a rule: which operations on which resources.
fn rule(rule: &Value, at: &At<'_>, errors: &mut Errors) {
    let operations: Vec<&str> = texts(rule, "operations").collect();
    let place = at.field("operations");
    if operations.is_empty() {
        errors.required(&place, "");
    }
    if operations.len() > 1 && operations.contains(&"*") {
        let why = "if '*' is present, must not specify other operations";
        errors.invalid(&place, or_null(rule, "operations"), why);
    }
    for (i, operation) in operations.iter().enumerate() {
        if !OPERATIONS.contains(operation) {
            errors.unsupported(&place.index(i), operation, &OPERATIONS);
        }
    }
    for (key, may_be_empty) in [("apiGroups", true), ("apiVersions", false)] {
        let values: Vec<&str> = texts(rule, key).collect();
        let place = at.field(key);
        if values.is_empty() {
            errors.required(&place, "");
        }
        if values.len() > 1 && values.contains(&"*") {
            let what = if key == "apiGroups" { "API groups" } else { "API versions" };
            let why = format!("if '*' is present, must not specify other {what}");
            errors.invalid(&place, or_null(rule, key), &why);
        }
        for (i, _) in values.iter().enumerate().filter(|(_, v)| v.is_empty() && !may_be_empty) {
            errors.required(&place.index(i), "");
        }
    }
    resources(rule, &at.field("resources"), errors);
    let scopes = ["*", "Cluster", "Namespaced"];
    if let Some(scope) = text_at(rule, "scope").filter(|s| !scopes.contains(s)) {
        errors.unsupported(&at.field("scope"), scope, &scopes);
    }
}

fn resources(rule: &Value, at: &At<'_>, errors: &mut Errors) {
    let all: Vec<&str> = texts(rule, "resources").collect();
    if all.is_empty() {
        errors.required(at, "");
    }
    let mut wildcards: (Vec<&str>, Vec<&str>) = (Vec::new(), Vec::new());
    for (i, entry) in all.iter().enumerate() {
        let place = at.index(i);
        if entry.is_empty() {
            errors.required(&place, "");
        } else if *entry == "*/*" && all.len() > 1 {
            let why = "if '*/*' is present, must not specify other resources";
            errors.invalid(at, or_null(rule, "resources"), why);
        }
        let (resource, sub) = entry.split_once('/').unwrap_or((entry, ""));
        if wildcards.0.contains(&resource) && !sub.is_empty() {
            let why = format!("if '{resource}/*' is present, must not specify {entry}");
            errors.invalid_text(&place, entry, &why);
        }
        if wildcards.1.contains(&sub) && !sub.is_empty() {
            let why = format!("if '*/{sub}' is present, must not specify {entry}");
            errors.invalid_text(&place, entry, &why);
        }
        if sub == "*" {
            wildcards.0.push(resource);
        }
        if resource == "*" {
            wildcards.1.push(sub);
        }
    }
}

fn policies(holder: &Value, at: &At<'_>, errors: &mut Errors) {
    for (key, allowed) in [
        ("failurePolicy", ["Fail", "Ignore"]),
        ("matchPolicy", ["Equivalent", "Exact"]),
        ("reinvocationPolicy", ["IfNeeded", "Never"]),
    ] {
        if let Some(policy) = text_at(holder, key).filter(|p| !allowed.contains(p)) {
            errors.unsupported(&at.field(key), policy, &allowed);
        }
    }
}

fn match_conditions(conditions: &[Value], at: &At<'_>, errors: &mut Errors) {
    if conditions.len() > MAX_CONDITIONS {
        errors.too_many(at, conditions.len(), MAX_CONDITIONS);
    }
    for (i, condition) in conditions.iter().enumerate() {
        let at = at.index(i);
        let (name, expression) = (text(condition, "name"), text(condition, "expression"));
        if expression.trim().is_empty() {
            errors.required(&at.field("expression"), "");
        } else {
            crate::expression::boolean(expression, &at.field("expression"), errors);
        }
        if name.is_empty() {
            errors.required(&at.field("name"), "");
        } else {
            for why in names::qualified_name(name) {
                errors.invalid_text(&at.field("name"), name, &why);
            }
            if conditions[..i].iter().any(|other| text(other, "name") == name) {
                errors.duplicate_text(&at.field("name"), name);
            }
        }
    }
}
