//! Probes and hooks of containers.

use serde_json::Value;
use wasmk_machinery::names;

use crate::errors::{At, Errors};
use crate::ports;
use crate::value::{get, int, list, or_null, text, text_at};
use crate::workloads::not_negative;

/// Checks the probes and hooks of a container; `grace` is the pod's grace period in seconds.
pub(super) fn all(container: &Value, grace: i64, at: &At<'_>, errors: &mut Errors) {
    if let Some(lifecycle) = get(container, "lifecycle") {
        let at = at.field("lifecycle");
        for key in ["postStart", "preStop"] {
            if let Some(hook) = get(lifecycle, key) {
                handler(hook, grace, &at.field(key), errors);
            }
        }
    }
    for key in ["livenessProbe", "readinessProbe", "startupProbe"] {
        let Some(one) = get(container, key) else { continue };
        let at = at.field(key);
        probe(one, grace, &at, errors);
        let success = int(one, "successThreshold").unwrap_or(1);
        if key != "readinessProbe" && success != 1 {
            errors.invalid_int(&at.field("successThreshold"), success, "must be 1");
        }
        if key == "readinessProbe"
            && let Some(seconds) = int(one, "terminationGracePeriodSeconds")
        {
            let why = "must not be set for readinessProbes";
            errors.invalid_int(&at.field("terminationGracePeriodSeconds"), seconds, why);
        }
    }
}

fn probe(probe: &Value, grace: i64, at: &At<'_>, errors: &mut Errors) {
    handler(probe, grace, at, errors);
    let numbers =
        ["initialDelaySeconds", "timeoutSeconds", "periodSeconds", "successThreshold", "failureThreshold"];
    not_negative(probe, &numbers, at, errors);
    if let Some(seconds) = int(probe, "terminationGracePeriodSeconds").filter(|s| *s <= 0) {
        errors.invalid_int(&at.field("terminationGracePeriodSeconds"), seconds, "must be greater than 0");
    }
}

fn handler(handler: &Value, grace: i64, at: &At<'_>, errors: &mut Errors) {
    let mut count = 0;
    for key in ["exec", "httpGet", "tcpSocket", "grpc", "sleep"] {
        let Some(action) = get(handler, key) else { continue };
        let at = at.field(key);
        if count > 0 {
            errors.forbidden(&at, "may not specify more than 1 handler type");
            continue;
        }
        count += 1;
        match key {
            "exec" => {
                if list(action, "command").is_empty() {
                    errors.required(&at.field("command"), "");
                }
            }
            "httpGet" => http_get(action, &at, errors),
            "tcpSocket" => ports::number_or_name(or_null(action, "port"), &at.field("port"), errors),
            "grpc" => ports::number(int(action, "port").unwrap_or(0), &at.field("port"), errors),
            _ => sleep(int(action, "seconds").unwrap_or(0), grace, &at, errors),
        }
    }
    if count == 0 {
        errors.required(at, "must specify a handler type");
    }
}

fn sleep(seconds: i64, grace: i64, at: &At<'_>, errors: &mut Errors) {
    if seconds < 0 || seconds > grace {
        let why = format!("must be non-negative and less than terminationGracePeriodSeconds ({grace})");
        errors.invalid_int(&at.field("seconds"), seconds, &why);
    }
}

fn http_get(action: &Value, at: &At<'_>, errors: &mut Errors) {
    if text(action, "path").is_empty() {
        errors.required(&at.field("path"), "");
    }
    ports::number_or_name(or_null(action, "port"), &at.field("port"), errors);
    let scheme = text_at(action, "scheme").unwrap_or("");
    if !matches!(scheme, "HTTP" | "HTTPS") {
        errors.unsupported(&at.field("scheme"), scheme, &["HTTP", "HTTPS"]);
    }
    for header in list(action, "httpHeaders") {
        let name = text(header, "name");
        for why in names::http_header_name(name) {
            errors.invalid_text(&at.field("httpHeaders"), name, &why);
        }
    }
}
