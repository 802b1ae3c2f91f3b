//! Kinds of the group `admissionregistration.k8s.io`.

use serde_json::{Map, Value, json};
use wasmk_api::{Object, Timestamp};
use wasmk_machinery::names;

use crate::errors::{At, Errors};
use crate::fields::{in_spec, spec, top};
use crate::table::age;
use crate::value::{get, int, list, map_mut, maps_mut, or_null, set_default, some_map, text, text_at, texts};
use crate::{Column, Kind, columns, selector};

const OPERATIONS: [&str; 5] = ["*", "CONNECT", "CREATE", "DELETE", "UPDATE"];
const REVIEW_VERSIONS: [&str; 2] = ["v1", "v1beta1"];
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

/// `ValidatingWebhookConfiguration` and `MutatingWebhookConfiguration`.
pub(crate) struct Webhooks {
    /// The key of its columns.
    pub(crate) columns: &'static str,
}

impl Kind for Webhooks {
    fn set_defaults(&self, obj: &mut Object) {
        let mutating = obj.kind().starts_with("Mutating");
        for hook in maps_mut(&mut obj.0, "webhooks") {
            set_default(hook, "failurePolicy", "Fail");
            set_matching(hook);
            set_default(hook, "timeoutSeconds", 10);
            if mutating {
                set_default(hook, "reinvocationPolicy", "Never");
            }
            maps_mut(hook, "rules").for_each(set_rule_scope);
            if let Some(service) = some_map(hook, "clientConfig").and_then(|c| some_map(c, "service")) {
                set_default(service, "port", 443);
            }
        }
    }

    fn check(&self, obj: &Object, errors: &mut Errors) {
        let hooks = top(obj, "webhooks").as_array().map_or(&[][..], Vec::as_slice);
        let at = At::new("webhooks");
        for (i, hook) in hooks.iter().enumerate() {
            let at = at.index(i);
            webhook(hook, &at, errors);
            let name = text(hook, "name");
            if !name.is_empty() && hooks[..i].iter().any(|other| text(other, "name") == name) {
                errors.duplicate_text(&at.field("name"), name);
            }
        }
    }

    fn allows_unconditional_update(&self) -> bool {
        false
    }

    fn has_generation(&self) -> bool {
        true
    }

    fn spec_changed(&self, new: &Object, old: &Object) -> bool {
        top(new, "webhooks") != top(old, "webhooks")
    }

    fn columns(&self) -> &'static [Column] {
        columns::of(self.columns)
    }

    fn row(&self, obj: &Object, now: Timestamp) -> Vec<Value> {
        let count = top(obj, "webhooks").as_array().map_or(0, Vec::len);
        vec![obj.name().into(), count.into(), age(obj, now)]
    }
}

fn webhook(hook: &Value, at: &At<'_>, errors: &mut Errors) {
    let name = text(hook, "name");
    fully_qualified(name, &at.field("name"), errors);
    review_versions(hook, &at.field("admissionReviewVersions"), errors);
    let place = at.field("rules");
    for (i, one) in list(hook, "rules").iter().enumerate() {
        rule(one, &place.index(i), errors);
    }
    policies(hook, at, errors);
    match text_at(hook, "sideEffects") {
        None => errors.required(&at.field("sideEffects"), "must specify one of None, NoneOnDryRun"),
        Some("None" | "NoneOnDryRun") => {}
        Some(other) => errors.unsupported(&at.field("sideEffects"), other, &["None", "NoneOnDryRun"]),
    }
    if let Some(seconds) = int(hook, "timeoutSeconds").filter(|s| !(1..=30).contains(s)) {
        let why = "the timeout value must be between 1 and 30 seconds";
        errors.invalid_int(&at.field("timeoutSeconds"), seconds, why);
    }
    selectors(hook, at, errors);
    client_config(or_null(hook, "clientConfig"), &at.field("clientConfig"), errors);
    match_conditions(list(hook, "matchConditions"), &at.field("matchConditions"), errors);
}

/// A name of at least three labels.
fn fully_qualified(name: &str, at: &At<'_>, errors: &mut Errors) {
    if name.is_empty() {
        errors.required(at, "");
        return;
    }
    let wrong = names::dns1123_subdomain(name);
    for why in &wrong {
        errors.invalid_text(at, name, why);
    }
    if wrong.is_empty() && name.split('.').count() < 3 {
        errors.invalid_text(at, name, "should be a domain with at least three segments separated by dots");
    }
}

fn review_versions(hook: &Value, at: &At<'_>, errors: &mut Errors) {
    let versions: Vec<&str> = texts(hook, "admissionReviewVersions").collect();
    if versions.is_empty() {
        errors.required(at, "must specify one of v1, v1beta1");
        return;
    }
    for (i, version) in versions.iter().enumerate() {
        if versions[..i].contains(version) {
            errors.invalid_text(&at.index(i), version, "duplicate version");
            continue;
        }
        for why in names::dns1035_label(version) {
            errors.invalid_text(&at.index(i), version, &why);
        }
    }
    if !versions.iter().any(|version| REVIEW_VERSIONS.contains(version)) {
        let why = "must include at least one of v1, v1beta1";
        errors.invalid(at, or_null(hook, "admissionReviewVersions"), why);
    }
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

fn selectors(holder: &Value, at: &At<'_>, errors: &mut Errors) {
    for key in ["namespaceSelector", "objectSelector"] {
        selector::check(or_null(holder, key), &at.field(key), errors);
    }
}

fn client_config(config: &Value, at: &At<'_>, errors: &mut Errors) {
    let (url, service) = (text_at(config, "url"), get(config, "service"));
    match (url, service) {
        (Some(_), Some(_)) | (None, None) => {
            errors.required(at, "exactly one of url or service is required");
        }
        (Some(url), None) => webhook_url(url, &at.field("url"), errors),
        (None, Some(service)) => webhook_service(service, &at.field("service"), errors),
    }
}

/// Checks the address of a webhook.
pub(crate) fn webhook_url(url: &str, at: &At<'_>, errors: &mut Errors) {
    const FORM: &str = "desired format: https://host[/path]";
    let Some(rest) = url.strip_prefix("https://") else {
        let scheme = url.split_once("://").map_or("", |(scheme, _)| scheme);
        errors.invalid_text(at, scheme, &format!("'https' is the only allowed URL scheme; {FORM}"));
        return;
    };
    let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
    let (host, tail) = rest.split_at(end);
    if host.is_empty() {
        errors.invalid_text(at, host, &format!("host must be specified; {FORM}"));
    }
    if let Some((user, _)) = host.split_once('@') {
        errors.invalid_text(at, user, "user information is not permitted in the URL");
    }
    if let Some((_, fragment)) = tail.split_once('#') {
        errors.invalid_text(at, fragment, "fragments are not permitted in the URL");
    }
    let tail = tail.split('#').next().unwrap_or(tail);
    if let Some((_, query)) = tail.split_once('?') {
        errors.invalid_text(at, query, "query parameters are not permitted in the URL");
    }
}

/// Checks the service of a webhook.
pub(crate) fn webhook_service(service: &Value, at: &At<'_>, errors: &mut Errors) {
    for key in ["name", "namespace"] {
        if text(service, key).is_empty() {
            errors.required(&at.field(key), &format!("service {key} is required"));
        }
    }
    if let Some(port) = int(service, "port")
        && !(1..=65_535).contains(&port)
    {
        let why = "port is not valid: must be between 1 and 65535, inclusive";
        errors.invalid_int(&at.field("port"), port, why);
    }
    let Some(path) = text_at(service, "path") else { return };
    let place = at.field("path");
    if matches!(path, "/" | "//") {
        if path == "//" {
            errors.invalid_text(&place, path, "segment[0] may not be empty");
        }
        return;
    }
    if !path.starts_with('/') {
        errors.invalid_text(&place, path, "must start with a '/'");
    }
    let trimmed = path.strip_suffix('/').unwrap_or(path);
    // What stands before the first slash is no segment.
    let steps = trimmed.split_once('/').map_or("", |(_, steps)| steps);
    let (checked, first) = if path.starts_with('/') { (steps, 0) } else { (trimmed, 0) };
    for (i, segment) in checked.split('/').enumerate().map(|(i, s)| (i + first, s)) {
        let unslashed = !path.starts_with('/') && i == 0;
        if segment.is_empty() || unslashed {
            errors.invalid_text(&place, path, &format!("segment[{i}] may not be empty"));
            continue;
        }
        for why in names::dns1123_subdomain(segment) {
            errors.invalid_text(&place, path, &format!("segment[{i}]: {why}"));
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

fn match_resources(matching: &Value, at: &At<'_>, errors: &mut Errors) {
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
