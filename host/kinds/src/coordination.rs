//! Kinds of the group `coordination.k8s.io`.

use serde_json::Value;
use wasmk_api::{Object, Timestamp};

use crate::errors::{At, Errors};
use crate::fields::spec;
use crate::meta::NOT_NEGATIVE;
use crate::table::age;
use crate::value::{int, text, text_at};
use crate::{Column, Kind, columns};

/// `Lease`.
pub(crate) struct Lease;

impl Kind for Lease {
    fn check(&self, obj: &Object, errors: &mut Errors) {
        let at = At::new("spec");
        if let Some(seconds) = int(spec(obj), "leaseDurationSeconds").filter(|s| *s <= 0) {
            errors.invalid_int(&at.field("leaseDurationSeconds"), seconds, "must be greater than 0");
        }
        if let Some(count) = int(spec(obj), "leaseTransitions").filter(|c| *c < 0) {
            errors.invalid_int(&at.field("leaseTransitions"), count, NOT_NEGATIVE);
        }
        if let Some(strategy) = text_at(spec(obj), "strategy") {
            crate::domain_path::check(strategy, &at.field("strategy"), errors);
        }
    }

    fn allows_unconditional_update(&self) -> bool {
        false
    }

    fn creates_on_update(&self) -> bool {
        true
    }

    fn columns(&self) -> &'static [Column] {
        columns::of("coordination.k8s.io/Lease")
    }

    fn row(&self, obj: &Object, now: Timestamp) -> Vec<Value> {
        vec![obj.name().into(), text(spec(obj), "holderIdentity").into(), age(obj, now)]
    }
}

/// `LeaseCandidate`.
pub(crate) struct LeaseCandidate;

impl Kind for LeaseCandidate {
    fn check(&self, obj: &Object, errors: &mut Errors) {
        let at = At::new("spec");
        for key in ["leaseName", "strategy", "binaryVersion"] {
            if text(spec(obj), key).is_empty() {
                errors.required(&at.field(key), "");
            }
        }
    }

    fn allows_unconditional_update(&self) -> bool {
        false
    }

    fn columns(&self) -> &'static [Column] {
        columns::of("coordination.k8s.io/LeaseCandidate")
    }

    fn row(&self, obj: &Object, now: Timestamp) -> Vec<Value> {
        let texts = ["leaseName", "binaryVersion", "emulationVersion", "pingTime", "renewTime"];
        std::iter::once(obj.name().into())
            .chain(texts.map(|key| text(spec(obj), key).into()))
            .chain([age(obj, now)])
            .collect()
    }
}
