//! Paths, and references to fields of the pod itself.

use serde_json::Value;
use wasmk_machinery::names;

use crate::errors::{At, Errors};
use crate::resource_names::is_huge_page;
use crate::value::{text, text_at};

/// Checks a path below some folder: relative, never going up.
pub(super) fn descending_path(path: &str, at: &At<'_>, errors: &mut Errors) {
    if path.starts_with('/') {
        errors.invalid_text(at, path, "must be a relative path");
    }
    no_back_steps(path, at, errors);
}

/// Checks that a path never goes up.
pub(super) fn no_back_steps(path: &str, at: &At<'_>, errors: &mut Errors) {
    if path.split('/').any(|part| part == "..") {
        errors.invalid_text(at, path, "must not contain '..'");
    }
}

const KNOWN: [&str; 15] = [
    "metadata.annotations",
    "metadata.labels",
    "metadata.name",
    "metadata.namespace",
    "metadata.uid",
    "spec.nodeName",
    "spec.restartPolicy",
    "spec.serviceAccountName",
    "spec.schedulerName",
    "spec.host",
    "status.phase",
    "status.hostIP",
    "status.hostIPs",
    "status.podIP",
    "status.podIPs",
];
/// The fields variables can hold.
pub(super) const IN_ENV: [&str; 9] = [
    "metadata.name",
    "metadata.namespace",
    "metadata.uid",
    "spec.nodeName",
    "spec.serviceAccountName",
    "status.hostIP",
    "status.hostIPs",
    "status.podIP",
    "status.podIPs",
];
/// The fields files can hold.
pub(super) const IN_FILES: [&str; 5] =
    ["metadata.annotations", "metadata.labels", "metadata.name", "metadata.namespace", "metadata.uid"];
const RESOURCES: [&str; 6] = [
    "limits.cpu",
    "limits.ephemeral-storage",
    "limits.memory",
    "requests.cpu",
    "requests.ephemeral-storage",
    "requests.memory",
];

/// Checks a reference to a field.
pub(super) fn field_ref(reference: &Value, allowed: &[&str], at: &At<'_>, errors: &mut Errors) {
    let (version, path) = (text(reference, "apiVersion"), text(reference, "fieldPath"));
    let place = at.field("fieldPath");
    if version.is_empty() {
        errors.required(&at.field("apiVersion"), "");
        return;
    }
    if path.is_empty() {
        errors.required(&place, "");
        return;
    }
    if version != "v1" {
        let why = format!("error converting fieldPath: unsupported pod version: {version}");
        errors.invalid_text(&place, path, &why);
        return;
    }
    if let Some((field, key)) = path.strip_suffix("']").and_then(|rest| rest.split_once("['")) {
        subscripted(path, field, key, at, errors);
    } else if !KNOWN.contains(&path) {
        let why = format!("error converting fieldPath: field label not supported: {path}");
        errors.invalid_text(&place, path, &why);
    } else if !allowed.contains(&path) {
        errors.unsupported(&place, path, allowed);
    }
}

fn subscripted(path: &str, field: &str, key: &str, at: &At<'_>, errors: &mut Errors) {
    match field {
        "metadata.annotations" | "metadata.labels" => {
            let key_checked =
                if field == "metadata.annotations" { key.to_lowercase() } else { key.to_owned() };
            for why in names::qualified_name(&key_checked) {
                errors.invalid_text(at, key, &why);
            }
        }
        _ => {
            let why = format!("error converting fieldPath: field label does not support subscript: {path}");
            errors.invalid_text(&at.field("fieldPath"), path, &why);
        }
    }
}

/// Checks a reference to a container's resource.
pub(super) fn resource_ref(reference: &Value, in_files: bool, at: &At<'_>, errors: &mut Errors) {
    if in_files && text(reference, "containerName").is_empty() {
        errors.required(&at.field("containerName"), "");
    }
    let resource = text(reference, "resource");
    let huge = resource.split_once('.').is_some_and(|(_, name)| is_huge_page(name));
    if resource.is_empty() {
        errors.required(&at.field("resource"), "");
    } else if !RESOURCES.contains(&resource) && !huge {
        errors.unsupported(&at.field("resource"), resource, &RESOURCES);
    }
    let divisor = text_at(reference, "divisor").unwrap_or("0");
    let (allowed, said): (&[&str], &str) = match resource.split_once('.').map(|(_, name)| name) {
        Some("cpu") => {
            (&["0", "1m", "1"], "only divisor's values 1m and 1 are supported with the cpu resource")
        }
        Some("memory" | "ephemeral-storage") => (
            &["0", "1", "1k", "1M", "1G", "1T", "1P", "1E", "1Ki", "1Mi", "1Gi", "1Ti", "1Pi", "1Ei"],
            "only divisor's values 1, 1k, 1M, 1G, 1T, 1P, 1E, 1Ki, 1Mi, 1Gi, 1Ti, 1Pi, 1Ei are supported with the memory resource",
        ),
        _ => return,
    };
    if !allowed.contains(&divisor) {
        let name = resource.split_once('.').map_or("", |(_, name)| name);
        errors.invalid_text(&at.field("divisor"), name, said);
    }
}

/// Checks a reference to a key of a ConfigMap or Secret.
pub(super) fn key_ref(reference: &Value, at: &At<'_>, errors: &mut Errors) {
    let (name, key) = (text(reference, "name"), text(reference, "key"));
    if !name.is_empty() {
        for why in names::dns1123_subdomain(name) {
            errors.invalid_text(&at.field("name"), name, &why);
        }
    }
    if key.is_empty() {
        errors.required(&at.field("key"), "");
        return;
    }
    for why in names::config_map_key(key) {
        errors.invalid_text(&at.field("key"), key, &why);
    }
}
