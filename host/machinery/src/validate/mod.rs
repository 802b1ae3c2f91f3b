//! Validation of custom resources against their schema, and of the definitions themselves.
//!
//! An update is ratcheted: what was already stored and did not change is not held against the object.

pub mod definition;
mod formats;
mod lists;
mod rules;
mod structural;
mod typecheck;
mod values;

use std::collections::HashMap;

use serde_json::Value;
use wasmk_api::{Cause, Object};

use crate::{
    field::{Path, invalid, required},
    names,
    schema::{KindSchema, Schema},
};

pub(crate) use rules::Programs;
pub use values::validate_value;

/// What validation found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Outcome {
    /// Why the object is refused; empty when it is valid.
    pub causes: Vec<Cause>,
    /// Rules that unchanged values break; for Warning headers.
    pub warnings: Vec<String>,
}

/// Validates a custom resource after defaulting. `old` is what is stored when it is an update. `before`
/// are the causes found in its metadata; they come first, and rules are not run on an object that lacks
/// what they may rely on.
pub fn resource(object: &Object, old: Option<&Object>, kind: &KindSchema, before: Vec<Cause>) -> Outcome {
    let schema = kind.schema();
    let new = Value::Object(object.0.clone());
    let old = old.map(|old| Value::Object(old.0.clone()));
    let mut outcome = Outcome { causes: before, warnings: Vec::new() };
    let causes = &mut outcome.causes;
    causes.extend(values::validate(&new, old.as_ref(), schema));
    embedded(&new, schema, &Path::root(), causes);
    let stored_lists_are_valid = old.as_ref().is_none_or(|old| lists::validate(old, schema).is_empty());
    if stored_lists_are_valid {
        causes.extend(lists::validate(&new, schema));
    }
    if !rules::has_rules(schema) {
        return outcome;
    }
    if causes.iter().any(|cause| BLOCKING.contains(&&*cause.reason)) {
        let says = "some validation rules were not checked because the object was invalid; correct the existing \
                    errors to complete validation";
        causes.push(invalid(&Path::root(), &Value::Null, says));
        return outcome;
    }
    let found = rules::validate(&new, old.as_ref(), schema);
    outcome.causes.extend(found.causes);
    outcome.warnings.extend(found.warnings);
    outcome
}

/// Causes after which rules are not run.
const BLOCKING: [&str; 5] = [
    "FieldValueNotSupported",
    "FieldValueRequired",
    "FieldValueTooLong",
    "FieldValueTooMany",
    "FieldValueTypeInvalid",
];

/// Whole resources inside the object must say what they are.
fn embedded(value: &Value, schema: Schema<'_>, path: &Path, causes: &mut Vec<Cause>) {
    match value {
        Value::Object(map) => {
            if schema.embedded_resource() {
                for name in ["apiVersion", "kind"] {
                    let text = map.get(name).and_then(Value::as_str).unwrap_or("");
                    if text.is_empty() {
                        causes.push(required(&path.child(name), ""));
                    } else if name == "kind" {
                        let errors = names::dns1035_label(&text.to_ascii_lowercase());
                        let says =
                            format!("may have mixed case, but should otherwise match: {}", errors.join(","));
                        if !errors.is_empty() {
                            causes.push(invalid(&path.child(name), &text.into(), &says));
                        }
                    }
                }
            }
            for (key, value) in map {
                if let Some(below) = schema.field(key).or_else(|| schema.values())
                    && below.rules().is_some()
                {
                    embedded(value, below, &path.child(key), causes);
                }
            }
        }
        Value::Array(items) => {
            let Some(of) = schema.items() else { return };
            items.iter().enumerate().for_each(|(i, item)| embedded(item, of, &path.index(i), causes));
        }
        _ => (),
    }
}

/// The earlier value that corresponds to a field or key.
fn old_field<'v>(old: Option<&'v Value>, key: &str) -> Option<&'v Value> {
    old?.as_object()?.get(key)
}

/// The items of an earlier list by their keys, in lists of type map; other lists are compared as a whole.
struct OldItems<'v, 's> {
    keys: &'s [Box<str>],
    by_key: HashMap<String, &'v Value>,
}

impl<'v, 's> OldItems<'v, 's> {
    fn of(old: Option<&'v Value>, list: Schema<'s>) -> Self {
        let keys = list.list_keys();
        let items = old.and_then(Value::as_array).filter(|_| !keys.is_empty());
        let by_key = items.into_iter().flatten().map(|item| (identity(item, keys), item)).collect();
        Self { keys, by_key }
    }

    /// The one that corresponds to an item.
    fn get(&self, item: &Value) -> Option<&'v Value> {
        if self.by_key.is_empty() {
            return None;
        }
        self.by_key.get(&identity(item, self.keys)).copied()
    }
}

fn identity(item: &Value, keys: &[Box<str>]) -> String {
    let parts: Vec<&Value> = keys.iter().map(|key| item.get(&**key).unwrap_or(&Value::Null)).collect();
    serde_json::to_string(&parts).unwrap_or_default()
}

#[cfg(test)]
mod tests;
