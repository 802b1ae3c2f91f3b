//! Variables of containers.

use serde_json::Value;
use wasmk_machinery::names;

use super::fields::{IN_ENV, field_ref, key_ref, resource_ref};
use crate::errors::{At, Errors};
use crate::value::{get, list, text};

const ONE_AT_A_TIME: &str = "may not have more than one field specified at a time";

/// Checks variables.
pub(super) fn variables(container: &Value, at: &At<'_>, errors: &mut Errors) {
    let at = at.field("env");
    for (i, variable) in list(container, "env").iter().enumerate() {
        let at = at.index(i);
        let name = text(variable, "name");
        if name.is_empty() {
            errors.required(&at.field("name"), "");
        } else {
            for why in names::env_var_name(name) {
                errors.invalid_text(&at.field("name"), name, &why);
            }
        }
        if let Some(from) = get(variable, "valueFrom") {
            value_from(from, text(variable, "value"), &at.field("valueFrom"), errors);
        }
    }
}

fn value_from(from: &Value, value: &str, at: &At<'_>, errors: &mut Errors) {
    let mut count = 0;
    if let Some(reference) = get(from, "fieldRef") {
        count += 1;
        field_ref(reference, &IN_ENV, &at.field("fieldRef"), errors);
    }
    if let Some(reference) = get(from, "resourceFieldRef") {
        count += 1;
        resource_ref(reference, false, &at.field("resourceFieldRef"), errors);
    }
    for key in ["configMapKeyRef", "secretKeyRef"] {
        if let Some(reference) = get(from, key) {
            count += 1;
            key_ref(reference, &at.field(key), errors);
        }
    }
    if let Some(reference) = get(from, "fileKeyRef") {
        count += 1;
        let at = at.field("fileKeyRef");
        for key in ["volumeName", "path", "key"] {
            if text(reference, key).is_empty() {
                errors.required(&at.field(key), "");
            }
        }
    }
    if count == 0 {
        let why = "must specify one of: `fieldRef`, `resourceFieldRef`, `configMapKeyRef`, `secretKeyRef` or `fileKeyRef`";
        errors.invalid_text(at, "", why);
    } else if !value.is_empty() {
        errors.invalid_text(at, "", "may not be specified when `value` is not empty");
    } else if count > 1 {
        errors.invalid_text(at, "", ONE_AT_A_TIME);
    }
}

/// Checks whole sets of variables.
pub(super) fn sets(container: &Value, at: &At<'_>, errors: &mut Errors) {
    let place = at.field("envFrom");
    for (i, from) in list(container, "envFrom").iter().enumerate() {
        let at = place.index(i);
        let prefix = text(from, "prefix");
        if !prefix.is_empty() {
            for why in names::env_var_name(prefix) {
                errors.invalid_text(&at.field("prefix"), prefix, &why);
            }
        }
        let mut count = 0;
        for key in ["configMapRef", "secretRef"] {
            let Some(reference) = get(from, key) else { continue };
            count += 1;
            let name = text(reference, "name");
            for why in names::dns1123_subdomain(name).into_iter().filter(|_| !name.is_empty()) {
                errors.invalid_text(&at.field(key).field("name"), name, &why);
            }
        }
        if count == 0 {
            errors.invalid_text(&place, "", "must specify one of: `configMapRef` or `secretRef`");
        } else if count > 1 {
            errors.invalid_text(&place, "", ONE_AT_A_TIME);
        }
    }
}
