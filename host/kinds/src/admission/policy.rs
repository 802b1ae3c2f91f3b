//! Policies: what they hold objects to, or make of them.

use serde_json::Value;
use wasmk_api::{Object, Timestamp};
use wasmk_machinery::names;

use super::{match_conditions, policies, rule, set_matching, set_rule_scope};
use crate::errors::{At, Errors};
use crate::fields::spec;
use crate::table::age;
use crate::value::{get, list, map_mut, maps_mut, set_default, some_map, text, text_at};
use crate::{Column, Kind, columns, selector};

/// `ValidatingAdmissionPolicy` and `MutatingAdmissionPolicy`.
pub(crate) struct Policy {
    /// Whether it changes what it admits.
    pub(crate) mutating: bool,
}

impl Kind for Policy {
    fn set_defaults(&self, obj: &mut Object) {
        let spec = map_mut(&mut obj.0, "spec");
        set_default(spec, "failurePolicy", "Fail");
        if let Some(matching) = some_map(spec, "matchConstraints") {
            set_matching(matching);
            for key in ["resourceRules", "excludeResourceRules"] {
                maps_mut(matching, key).for_each(set_rule_scope);
            }
        }
    }

    fn check(&self, obj: &Object, errors: &mut Errors) {
        let (spec, at) = (spec(obj), At::new("spec"));
        match text_at(spec, "failurePolicy") {
            None => errors.required(&at.field("failurePolicy"), ""),
            Some("Fail" | "Ignore") => {}
            Some(other) => errors.unsupported(&at.field("failurePolicy"), other, &["Fail", "Ignore"]),
        }
        if let Some(kind) = get(spec, "paramKind") {
            param_kind(kind, &at.field("paramKind"), errors);
        }
        match get(spec, "matchConstraints") {
            None => errors.required(&at.field("matchConstraints"), ""),
            Some(matching) => {
                let place = at.field("matchConstraints");
                match_resources(matching, &place, errors);
                if list(matching, "resourceRules").is_empty() {
                    errors.required(&place.field("resourceRules"), "");
                }
            }
        }
        match_conditions(list(spec, "matchConditions"), &at.field("matchConditions"), errors);
        variables(list(spec, "variables"), &at.field("variables"), errors);
        if self.mutating {
            mutations(spec, &at, errors);
        } else {
            validations(spec, &at, errors);
        }
    }

    fn allows_unconditional_update(&self) -> bool {
        false
    }

    fn has_generation(&self) -> bool {
        true
    }

    fn columns(&self) -> &'static [Column] {
        columns::of(match self.mutating {
            true => "admissionregistration.k8s.io/MutatingAdmissionPolicy",
            false => "admissionregistration.k8s.io/ValidatingAdmissionPolicy",
        })
    }

    fn row(&self, obj: &Object, now: Timestamp) -> Vec<Value> {
        let key = if self.mutating { "mutations" } else { "validations" };
        let param = match get(spec(obj), "paramKind") {
            Some(kind) => format!("{}/{}", text(kind, "apiVersion"), text(kind, "kind")),
            None => "<unset>".into(),
        };
        vec![obj.name().into(), list(spec(obj), key).len().into(), param.into(), age(obj, now)]
    }
}

fn param_kind(kind: &Value, at: &At<'_>, errors: &mut Errors) {
    for key in ["apiVersion", "kind"] {
        if text(kind, key).is_empty() {
            errors.required(&at.field(key), "");
        }
    }
    let name = text(kind, "kind");
    if !name.is_empty() {
        for why in names::dns1035_label(&name.to_lowercase()) {
            let why = format!("may have mixed case, but should otherwise match: {why}");
            errors.invalid_text(&at.field("kind"), name, &why);
        }
    }
}

/// Checks what a policy or binding is about.
pub(super) fn match_resources(matching: &Value, at: &At<'_>, errors: &mut Errors) {
    if text_at(matching, "matchPolicy").is_none() {
        errors.required(&at.field("matchPolicy"), "");
    }
    policies(matching, at, errors);
    for key in ["namespaceSelector", "objectSelector"] {
        match get(matching, key) {
            None => errors.required(&at.field(key), ""),
            Some(chosen) => selector::check(chosen, &at.field(key), errors),
        }
    }
    for key in ["resourceRules", "excludeResourceRules"] {
        let at = at.field(key);
        for (i, one) in list(matching, key).iter().enumerate() {
            rule(one, &at.index(i), errors);
        }
    }
}

fn variables(variables: &[Value], at: &At<'_>, errors: &mut Errors) {
    for (i, variable) in variables.iter().enumerate() {
        let at = at.index(i);
        for key in ["name", "expression"] {
            if text(variable, key).trim().is_empty() {
                errors.required(&at.field(key), key_missing(key));
            }
        }
        let expression = text(variable, "expression");
        if !expression.trim().is_empty() {
            crate::expression::any(expression, &at.field("expression"), errors);
        }
    }
}

fn key_missing(key: &str) -> &'static str {
    if key == "name" { "name is not specified" } else { "expression is not specified" }
}

fn validations(spec: &Value, at: &At<'_>, errors: &mut Errors) {
    let all = list(spec, "validations");
    if all.is_empty() && list(spec, "auditAnnotations").is_empty() {
        let why = "validations or auditAnnotations must contain at least one item";
        errors.required(&at.field("validations"), why);
        errors.required(&at.field("auditAnnotations"), why);
        return;
    }
    let place = at.field("validations");
    for (i, validation) in all.iter().enumerate() {
        check_validation(validation, &place.index(i), errors);
    }
}

fn check_validation(validation: &Value, at: &At<'_>, errors: &mut Errors) {
    let expression = text(validation, "expression");
    if expression.trim().is_empty() {
        errors.required(&at.field("expression"), "expression is not specified");
    } else {
        crate::expression::boolean(expression, &at.field("expression"), errors);
    }
    let message_expression = text(validation, "messageExpression");
    if !message_expression.trim().is_empty() {
        crate::expression::string(message_expression, &at.field("messageExpression"), errors);
    }
    let message = text(validation, "message");
    if !message.is_empty() && message.trim().is_empty() {
        let why = "message must be non-empty if specified";
        errors.invalid_text(&at.field("message"), message, why);
    } else if message.contains(['\n', '\r']) {
        errors.invalid_text(&at.field("message"), message, "must not contain line breaks");
    } else if message.is_empty() && expression.contains(['\n', '\r']) {
        let why = "must be specified if expression contains line breaks";
        errors.required(&at.field("message"), why);
    }
    let reasons = ["Forbidden", "Invalid", "RequestEntityTooLarge", "Unauthorized"];
    if let Some(reason) = text_at(validation, "reason").filter(|r| !reasons.contains(r)) {
        errors.unsupported(&at.field("reason"), reason, &["Forbidden", "Invalid", "RequestEntityTooLarge"]);
    }
}

fn mutations(spec: &Value, at: &At<'_>, errors: &mut Errors) {
    let all = list(spec, "mutations");
    let place = at.field("mutations");
    if all.is_empty() {
        errors.required(&place, "mutations must contain at least one item");
    }
    for (i, mutation) in all.iter().enumerate() {
        let at = place.index(i);
        let (own, other) = match text(mutation, "patchType") {
            "ApplyConfiguration" => ("applyConfiguration", "jsonPatch"),
            "JSONPatch" => ("jsonPatch", "applyConfiguration"),
            "" => {
                errors.required(&at.field("patchType"), "");
                continue;
            }
            odd => {
                errors.unsupported(&at.field("patchType"), odd, &["ApplyConfiguration", "JSONPatch"]);
                continue;
            }
        };
        if get(mutation, other).is_some() {
            let why = format!("must not be specified when patchType is {}", text(mutation, "patchType"));
            errors.invalid_text(&at.field(other), &format!("{{{other}}}"), &why);
        }
        match get(mutation, own) {
            None => errors.required(
                &at.field(own),
                &format!("must be specified when patchType is {}", text(mutation, "patchType")),
            ),
            Some(body) if text(body, "expression").trim().is_empty() => {
                errors.required(&at.field(own).field("expression"), "expression is not specified");
            }
            Some(_) => {}
        }
    }
    match text(spec, "reinvocationPolicy") {
        "" => errors.required(&at.field("reinvocationPolicy"), ""),
        "Never" | "IfNeeded" => {}
        other => errors.unsupported(&at.field("reinvocationPolicy"), other, &["IfNeeded", "Never"]),
    }
}
