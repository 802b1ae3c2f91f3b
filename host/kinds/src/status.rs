//! The division between what users write and what the system reports.

use serde_json::{Map, Value};
use wasmk_api::Object;

use crate::normalize::zero_of;

/// Empties the status of kinds that have one.
pub(crate) fn reset(obj: &mut Object) {
    if let Some(zero) = zero_of(obj, "status") {
        obj.0.insert("status".into(), zero);
    }
}

/// Takes the status of the old object.
pub(crate) fn keep(new: &mut Object, old: &Object) {
    match old.0.get("status") {
        Some(status) if zero_of(old, "status").is_some() => {
            new.0.insert("status".into(), status.clone());
        }
        Some(_) => {}
        None => {
            new.0.shift_remove("status");
        }
    }
}

/// Takes everything but status and metadata from the old object.
pub(crate) fn only(new: &mut Object, old: &Object) {
    new.0.retain(|key, _| matches!(key.as_str(), "metadata" | "status") || old.0.contains_key(key));
    for (key, value) in &old.0 {
        if !matches!(key.as_str(), "metadata" | "status") {
            new.0.insert(key.clone(), value.clone());
        }
    }
}

/// A field of `status`, to write to.
pub(crate) fn status_mut(obj: &mut Object) -> &mut Map<String, Value> {
    crate::value::map_mut(&mut obj.0, "status")
}
