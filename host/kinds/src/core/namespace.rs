//! `Namespace`.

use serde_json::{Value, json};
use wasmk_api::{Object, Timestamp};

use crate::errors::{At, Errors};
use crate::fields::{in_spec, spec, status};
use crate::meta::NameRule;
use crate::table::age;
use crate::value::{list, map_mut, text};
use crate::{Column, Kind, columns, status as statuses};

/// Every namespace carries its name as this label.
const NAME_LABEL: &str = "kubernetes.io/metadata.name";

pub(crate) struct Namespace;

impl Kind for Namespace {
    fn set_defaults(&self, obj: &mut Object) {
        let name = obj.name().to_owned();
        if !name.is_empty() {
            map_mut(obj.metadata_mut(), "labels").insert(NAME_LABEL.into(), name.into());
        }
        if text(status(obj), "phase").is_empty() {
            statuses::status_mut(obj).insert("phase".into(), "Active".into());
        }
    }

    fn prepare_create(&self, obj: &mut Object) {
        obj.0.insert("status".into(), json!({"phase": "Active"}));
        // A name made from `generateName` came after the defaults.
        self.set_defaults(obj);
        let spec = map_mut(&mut obj.0, "spec");
        let finalizers = spec.entry("finalizers").or_insert_with(|| json!([]));
        if let Some(finalizers) = finalizers.as_array_mut()
            && !finalizers.iter().any(|f| f == "kubernetes")
        {
            finalizers.push("kubernetes".into());
        }
    }

    fn prepare_update(&self, new: &mut Object, old: &Object) {
        // Only the finalize subresource takes finalizers away.
        let finalizers = in_spec(old, &["finalizers"]).clone();
        let spec = map_mut(&mut new.0, "spec");
        match finalizers {
            Value::Null => spec.shift_remove("finalizers"),
            finalizers => spec.insert("finalizers".into(), finalizers),
        };
        statuses::keep(new, old);
    }

    fn check(&self, obj: &Object, errors: &mut Errors) {
        let spec_at = At::new("spec");
        let at = spec_at.field("finalizers");
        for finalizer in list(spec(obj), "finalizers").iter().filter_map(Value::as_str) {
            for why in wasmk_machinery::names::qualified_name(finalizer) {
                errors.invalid_text(&at, finalizer, &why);
            }
        }
    }

    fn check_update(&self, _new: &Object, _old: &Object, _errors: &mut Errors) {}

    fn check_status(&self, new: &Object, _old: &Object, errors: &mut Errors) {
        let phase = text(status(new), "phase");
        let status_at = At::new("status");
        let at = status_at.field("Phase");
        if new.is_deleting() && phase != "Terminating" {
            errors.invalid_text(&at, phase, "may only be 'Terminating' if `deletionTimestamp` is not empty");
        } else if !new.is_deleting() && phase != "Active" {
            errors.invalid_text(&at, phase, "may only be 'Active' if `deletionTimestamp` is empty");
        }
    }

    fn name_rule(&self) -> NameRule {
        NameRule::Label
    }

    fn columns(&self) -> &'static [Column] {
        columns::of("/Namespace")
    }

    fn row(&self, obj: &Object, now: Timestamp) -> Vec<Value> {
        vec![obj.name().into(), text(status(obj), "phase").into(), age(obj, now)]
    }

    fn field_names(&self) -> &'static [&'static str] {
        &["status.phase"]
    }
}
