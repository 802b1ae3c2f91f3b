//! Values that are a number or a percentage.

use serde_json::Value;
use wasmk_machinery::names;

use crate::errors::{At, Errors};
use crate::meta::NOT_NEGATIVE;

/// Checks that it is a whole number of at least zero, or a percentage; null is fine.
pub(crate) fn not_negative(value: &Value, at: &At<'_>, errors: &mut Errors) {
    match value {
        Value::String(text) => {
            for why in names::percent(text) {
                errors.invalid_text(at, text, &why);
            }
        }
        Value::Number(number) => {
            if let Some(number) = number.as_i64().filter(|n| *n < 0) {
                errors.invalid_int(at, number, NOT_NEGATIVE);
            }
        }
        _ => {}
    }
}

/// The percentage it states, if it states one.
pub(crate) fn percentage(value: &Value) -> Option<i64> {
    value.as_str()?.strip_suffix('%')?.parse().ok()
}

/// Checks that a percentage is at most the whole.
pub(crate) fn at_most_all(value: &Value, at: &At<'_>, errors: &mut Errors) {
    if percentage(value).is_some_and(|p| p > 100) {
        errors.invalid(at, value, "must not be greater than 100%");
    }
}

/// Whether it states zero, as number or percentage.
pub(crate) fn is_zero(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Number(number) => number.as_i64() == Some(0),
        other => percentage(other) == Some(0),
    }
}

/// A number or percentage for a cell, or a stand-in.
pub(crate) fn shown(value: &Value, stand_in: &str) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Number(number) => number.to_string(),
        _ => stand_in.into(),
    }
}
