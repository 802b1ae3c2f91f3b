//! Ports, by number or name.

use serde_json::Value;
use wasmk_machinery::names;

use crate::errors::{At, Errors};

/// The protocols of ports, in the order messages list them.
pub(crate) const PROTOCOLS: [&str; 3] = ["SCTP", "TCP", "UDP"];

/// Checks a port's number.
pub(crate) fn number(port: i64, at: &At<'_>, errors: &mut Errors) {
    for why in names::port_number(port) {
        errors.invalid_int(at, port, &why);
    }
}

/// Checks a port that is a number or a name.
pub(crate) fn number_or_name(port: &Value, at: &At<'_>, errors: &mut Errors) {
    match port {
        Value::String(name) => {
            for why in names::port_name(name) {
                errors.invalid_text(at, name, &why);
            }
        }
        port => number(port.as_i64().unwrap_or(0), at, errors),
    }
}

/// Checks a protocol that must be given.
pub(crate) fn protocol(name: &str, at: &At<'_>, errors: &mut Errors) {
    match name {
        "" => errors.required(at, ""),
        name if PROTOCOLS.contains(&name) => {}
        other => errors.unsupported(at, other, &PROTOCOLS),
    }
}
