//! `PodDisruptionBudget`.

use serde_json::{Value, json};
use wasmk_api::{Object, Timestamp};

use crate::errors::{At, Errors};
use crate::fields::{in_spec, spec, status};
use crate::table::age;
use crate::value::{get, int, or_null, text_at};
use crate::workloads::not_negative;
use crate::{Column, Kind, columns, int_or_percent, internal, selector};

pub(crate) struct PodDisruptionBudget;

impl Kind for PodDisruptionBudget {
    fn check(&self, obj: &Object, errors: &mut Errors) {
        let (spec, at) = (spec(obj), At::new("spec"));
        if get(spec, "minAvailable").is_some() && get(spec, "maxUnavailable").is_some() {
            let shown = internal::line(spec, "policy/v1.PodDisruptionBudgetSpec");
            errors.invalid_shown(&at, &shown, "minAvailable and maxUnavailable cannot be both set");
        }
        for key in ["minAvailable", "maxUnavailable"] {
            let value = or_null(spec, key);
            int_or_percent::not_negative(value, &at.field(key), errors);
            int_or_percent::at_most_all(value, &at.field(key), errors);
        }
        selector::check(or_null(spec, "selector"), &at.field("selector"), errors);
        let policies = ["AlwaysAllow", "IfHealthyBudget"];
        if let Some(policy) = text_at(spec, "unhealthyPodEvictionPolicy").filter(|p| !policies.contains(p)) {
            errors.unsupported(&at.field("unhealthyPodEvictionPolicy"), policy, &policies);
        }
    }

    fn check_status(&self, new: &Object, _old: &Object, errors: &mut Errors) {
        let counts = ["disruptionsAllowed", "currentHealthy", "desiredHealthy", "expectedPods"];
        not_negative(status(new), &counts, &At::new("status"), errors);
    }

    fn allows_unconditional_update(&self) -> bool {
        false
    }

    fn columns(&self) -> &'static [Column] {
        columns::of("policy/PodDisruptionBudget")
    }

    fn row(&self, obj: &Object, now: Timestamp) -> Vec<Value> {
        vec![
            obj.name().into(),
            int_or_percent::shown(in_spec(obj, &["minAvailable"]), "N/A").into(),
            int_or_percent::shown(in_spec(obj, &["maxUnavailable"]), "N/A").into(),
            int(status(obj), "disruptionsAllowed").unwrap_or(0).into(),
            age(obj, now),
        ]
    }

    fn has_generation(&self) -> bool {
        true
    }
}

/// `Eviction`, the body of the eviction subresource.
pub(crate) struct Eviction;

impl Kind for Eviction {
    fn prepare_create(&self, obj: &mut Object) {
        if obj.0.get("deleteOptions").is_none_or(Value::is_null) {
            obj.0.insert("deleteOptions".into(), json!({}));
        }
    }
}
