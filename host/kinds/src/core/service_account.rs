//! `ServiceAccount` and `ComponentStatus`.

use serde_json::Value;
use wasmk_api::{Object, Timestamp};

use crate::fields::top;
use crate::table::age;
use crate::value::text;
use crate::{Column, Kind, columns};

/// `ServiceAccount`.
pub(crate) struct ServiceAccount;

impl Kind for ServiceAccount {
    fn warnings(&self, obj: &Object, old: Option<&Object>) -> Vec<String> {
        const MOUNTABLE: &str = "kubernetes.io/enforce-mountable-secrets";
        match obj.annotation(MOUNTABLE) {
            Some(value) if old.is_none_or(|old| old.annotation(MOUNTABLE) != Some(value)) => vec![format!(
                "metadata.annotations[{MOUNTABLE}]: deprecated in v1.32+; prefer separate namespaces to isolate access to mounted secrets"
            )],
            _ => Vec::new(),
        }
    }

    fn columns(&self) -> &'static [Column] {
        columns::of("/ServiceAccount")
    }

    fn row(&self, obj: &Object, now: Timestamp) -> Vec<Value> {
        vec![obj.name().into(), age(obj, now)]
    }
}

/// `ComponentStatus`.
pub(crate) struct ComponentStatus;

impl Kind for ComponentStatus {
    fn columns(&self) -> &'static [Column] {
        columns::of("/ComponentStatus")
    }

    fn row(&self, obj: &Object, _now: Timestamp) -> Vec<Value> {
        let conditions = top(obj, "conditions").as_array().map_or(&[][..], Vec::as_slice);
        let healthy = conditions.iter().find(|c| text(c, "type") == "Healthy");
        let state = match healthy.map(|c| text(c, "status")) {
            Some("True") => "Healthy",
            Some(_) => "Unhealthy",
            None => "Unknown",
        };
        let of = |key| healthy.map_or("", |c| text(c, key));
        vec![obj.name().into(), state.into(), of("message").into(), of("error").into()]
    }
}
