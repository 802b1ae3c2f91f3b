//! Webhooks that are asked at admission.

use serde_json::Value;
use wasmk_api::{Object, Timestamp};
use wasmk_machinery::names;

use super::{match_conditions, policies, rule, set_matching, set_rule_scope};
use crate::errors::{At, Errors};
use crate::fields::top;
use crate::table::age;
use crate::value::{get, int, list, maps_mut, or_null, set_default, some_map, text, text_at, texts};
use crate::{Column, Kind, columns, selector};

const REVIEW_VERSIONS: [&str; 2] = ["v1", "v1beta1"];

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
fn webhook_url(url: &str, at: &At<'_>, errors: &mut Errors) {
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
fn webhook_service(service: &Value, at: &At<'_>, errors: &mut Errors) {
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
