//! `PriorityClass`, `RuntimeClass` and `StorageVersionMigration`.

use serde_json::Value;
use wasmk_api::{Object, Timestamp};
use wasmk_machinery::names;

use crate::errors::{At, Errors};
use crate::fields::{spec, top};
use crate::meta::IMMUTABLE;
use crate::pod::validate;
use crate::resource_names;
use crate::selector::plain_selector;
use crate::table::age;
use crate::value::{entries, list, or_null, set_default, text};
use crate::{Column, Kind, columns};

/// `PriorityClass`.
pub(crate) struct PriorityClass;

/// The highest priority users may define.
const HIGHEST_PRIORITY: i64 = 1_000_000_000;

impl Kind for PriorityClass {
    fn set_defaults(&self, obj: &mut Object) {
        set_default(&mut obj.0, "preemptionPolicy", "PreemptLowerPriority");
    }

    fn check(&self, obj: &Object, errors: &mut Errors) {
        let value = top(obj, "value").as_i64().unwrap_or(0);
        let metadata = At::new("metadata");
        if let Some(known) = system_priority(obj.name()) {
            if value != known {
                let why = format!(
                    "only system-defined PriorityClasses with the value {known} may be named {}",
                    obj.name()
                );
                errors.forbidden(&metadata.field("name"), &why);
            }
        } else {
            if obj.name().starts_with("system-") {
                let why = "priority class names with 'system-' prefix are reserved for system use only. error: system- priority class is not known";
                errors.forbidden(&metadata.field("name"), why);
            }
            if value > HIGHEST_PRIORITY {
                let why = "maximum allowed value of a user defined priority is 1000000000";
                errors.forbidden(&At::new("value"), why);
            }
        }
        let policy = top(obj, "preemptionPolicy").as_str().unwrap_or("");
        if !matches!(policy, "Never" | "PreemptLowerPriority") {
            errors.unsupported(&At::new("preemptionPolicy"), policy, &["Never", "PreemptLowerPriority"]);
        }
    }

    fn check_update(&self, new: &Object, old: &Object, errors: &mut Errors) {
        if top(new, "value") != top(old, "value") {
            errors.forbidden(&At::new("Value"), "may not be changed in an update.");
        }
        if top(new, "preemptionPolicy") != top(old, "preemptionPolicy") {
            errors.invalid(&At::new("preemptionPolicy"), top(new, "preemptionPolicy"), IMMUTABLE);
        }
    }

    fn has_generation(&self) -> bool {
        true
    }

    fn spec_changed(&self, _new: &Object, _old: &Object) -> bool {
        false
    }

    fn columns(&self) -> &'static [Column] {
        columns::of("scheduling.k8s.io/PriorityClass")
    }

    fn row(&self, obj: &Object, now: Timestamp) -> Vec<Value> {
        vec![
            obj.name().into(),
            top(obj, "value").as_i64().unwrap_or(0).into(),
            top(obj, "globalDefault").as_bool().unwrap_or(false).into(),
            age(obj, now),
            top(obj, "preemptionPolicy").as_str().unwrap_or("").into(),
        ]
    }
}

fn system_priority(name: &str) -> Option<i64> {
    match name {
        "system-node-critical" => Some(2_000_001_000),
        "system-cluster-critical" => Some(2_000_000_000),
        _ => None,
    }
}

/// `RuntimeClass`.
pub(crate) struct RuntimeClass;

impl Kind for RuntimeClass {
    fn check(&self, obj: &Object, errors: &mut Errors) {
        let handler = top(obj, "handler").as_str().unwrap_or("");
        for why in names::dns1123_label(handler) {
            errors.invalid_text(&At::new("handler"), handler, &why);
        }
        let at = At::new("overhead");
        let at = at.field("limits");
        for (name, value) in entries(top(obj, "overhead"), "podFixed") {
            resource_names::of_container(name, &at.key(name), errors);
            resource_names::not_negative(value, &at.key(name), errors);
        }
        let scheduling = top(obj, "scheduling");
        let at = At::new("scheduling");
        plain_selector(scheduling, "nodeSelector", &at, errors);
        validate::tolerations(list(scheduling, "tolerations"), &at.field("tolerations"), errors);
    }

    fn check_update(&self, new: &Object, old: &Object, errors: &mut Errors) {
        self.check(new, errors);
        if top(new, "handler") != top(old, "handler") {
            errors.invalid(&At::new("handler"), top(new, "handler"), IMMUTABLE);
        }
    }

    fn allows_unconditional_update(&self) -> bool {
        false
    }

    fn columns(&self) -> &'static [Column] {
        columns::of("node.k8s.io/RuntimeClass")
    }

    fn row(&self, obj: &Object, now: Timestamp) -> Vec<Value> {
        vec![obj.name().into(), top(obj, "handler").clone(), age(obj, now)]
    }
}

/// `StorageVersionMigration`.
pub(crate) struct StorageVersionMigration;

impl Kind for StorageVersionMigration {
    fn check(&self, obj: &Object, errors: &mut Errors) {
        let at = At::new("spec");
        let place = at.field("resource");
        for why in names::dns1035_label(text(or_null(spec(obj), "resource"), "resource")) {
            errors.invalid_text(
                &place.field("resource"),
                text(or_null(spec(obj), "resource"), "resource"),
                &why,
            );
        }
    }
}
