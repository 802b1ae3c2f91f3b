//! Bindings: where policies hold, and what follows from a breach.

use serde_json::Value;
use wasmk_api::{Object, Timestamp};
use wasmk_machinery::names;

use super::{policy::match_resources, set_matching, set_rule_scope};
use crate::errors::{At, Errors};
use crate::fields::{in_spec, spec};
use crate::table::age;
use crate::value::{get, maps_mut, or_null, some_map, text, text_at, texts};
use crate::{Column, Kind, columns};

/// `ValidatingAdmissionPolicyBinding` and `MutatingAdmissionPolicyBinding`.
pub(crate) struct PolicyBinding {
    /// Whether it binds a policy that changes what it admits.
    pub(crate) mutating: bool,
}

impl Kind for PolicyBinding {
    fn set_defaults(&self, obj: &mut Object) {
        if let Some(matching) = some_map(&mut obj.0, "spec").and_then(|s| some_map(s, "matchResources")) {
            set_matching(matching);
            for key in ["resourceRules", "excludeResourceRules"] {
                maps_mut(matching, key).for_each(set_rule_scope);
            }
        }
    }

    fn check(&self, obj: &Object, errors: &mut Errors) {
        let (spec, at) = (spec(obj), At::new("spec"));
        let policy = text(spec, "policyName");
        if policy.is_empty() {
            errors.required(&at.field("policyName"), "");
        } else {
            for why in names::dns1123_subdomain(policy) {
                errors.invalid_text(&at.field("policyName"), policy, &why);
            }
        }
        if let Some(reference) = get(spec, "paramRef") {
            param_ref(reference, &at.field("paramRef"), errors);
        }
        if let Some(matching) = get(spec, "matchResources") {
            match_resources(matching, &at.field("matchResources"), errors);
        }
        if !self.mutating {
            actions(spec, &at.field("validationActions"), errors);
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
            true => "admissionregistration.k8s.io/MutatingAdmissionPolicyBinding",
            false => "admissionregistration.k8s.io/ValidatingAdmissionPolicyBinding",
        })
    }

    fn row(&self, obj: &Object, now: Timestamp) -> Vec<Value> {
        let param = match get(spec(obj), "paramRef") {
            Some(p) if !text(p, "namespace").is_empty() => {
                format!("{}/{}", text(p, "namespace"), text(p, "name"))
            }
            Some(p) => format!("*/{}", text(p, "name")),
            None => "<unset>".into(),
        };
        let policy = in_spec(obj, &["policyName"]).as_str().unwrap_or("");
        vec![obj.name().into(), policy.into(), param.into(), age(obj, now)]
    }
}

fn param_ref(reference: &Value, at: &At<'_>, errors: &mut Errors) {
    let (name, chosen) = (text(reference, "name"), get(reference, "selector"));
    match (name, chosen) {
        ("", None) => errors.required(at, "one of name or selector must be specified"),
        (name, Some(_)) if !name.is_empty() => {
            errors.forbidden(&at.field("name"), "name and selector are mutually exclusive");
        }
        _ => {}
    }
    match text_at(reference, "parameterNotFoundAction") {
        None => errors.required(&at.field("parameterNotFoundAction"), ""),
        Some("Allow" | "Deny") => {}
        Some(other) => errors.unsupported(&at.field("parameterNotFoundAction"), other, &["Deny", "Allow"]),
    }
}

fn actions(spec: &Value, at: &At<'_>, errors: &mut Errors) {
    let actions: Vec<&str> = texts(spec, "validationActions").collect();
    for (i, action) in actions.iter().enumerate() {
        if !matches!(*action, "Audit" | "Deny" | "Warn") {
            errors.unsupported(&at.index(i), action, &["Audit", "Deny", "Warn"]);
        }
        if actions[..i].contains(action) {
            errors.duplicate_text(&at.index(i), action);
        }
    }
    if actions.contains(&"Deny") && actions.contains(&"Warn") {
        let why = "must not contain both Deny and Warn (repeating the same validation failure information in the API response and headers serves no purpose)";
        errors.invalid(at, or_null(spec, "validationActions"), why);
    }
    if actions.is_empty() {
        errors.required(at, "at least one validation action is required");
    }
}
