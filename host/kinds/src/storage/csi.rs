//! `CSIDriver`, `CSINode` and `CSIStorageCapacity`.

use serde_json::{Value, json};
use wasmk_api::{Object, Timestamp};
use wasmk_machinery::names;

use crate::errors::{At, Errors};
use crate::fields::{in_spec, spec, top};
use crate::meta::{self, IMMUTABLE};
use crate::resource_names;
use crate::storage::class::attacher;
use crate::table::age;
use crate::value::{flag, get, int, list, map_mut, or_null, set_default, text, texts};
use crate::{Column, Kind, columns, selector};

const FS_GROUP_POLICIES: [&str; 3] = ["File", "None", "ReadWriteOnceWithFSType"];

/// `CSIDriver`.
pub(crate) struct CsiDriver;

impl Kind for CsiDriver {
    fn set_defaults(&self, obj: &mut Object) {
        let spec = map_mut(&mut obj.0, "spec");
        set_default(spec, "attachRequired", true);
        for key in ["podInfoOnMount", "storageCapacity", "requiresRepublish", "seLinuxMount"] {
            set_default(spec, key, false);
        }
        set_default(spec, "fsGroupPolicy", "ReadWriteOnceWithFSType");
        if spec.get("volumeLifecycleModes").and_then(Value::as_array).is_none_or(Vec::is_empty) {
            spec.insert("volumeLifecycleModes".into(), json!(["Persistent"]));
        }
    }

    fn prepare_update(&self, new: &mut Object, old: &Object) {
        // New drivers have no generation; it begins with the first change.
        let changed = spec(new) != spec(old);
        let generation = old.generation() + i64::from(changed);
        new.set_meta("generation", if generation == 0 { Value::Null } else { generation.into() });
    }

    fn check(&self, obj: &Object, errors: &mut Errors) {
        driver_spec(spec(obj), errors);
    }

    fn check_update(&self, new: &Object, old: &Object, errors: &mut Errors) {
        driver_spec(spec(new), errors);
        let at = At::new("spec");
        // The message names one field as it never was called.
        for (key, said) in
            [("attachRequired", "attachedRequired"), ("volumeLifecycleModes", "volumeLifecycleModes")]
        {
            let value = in_spec(new, &[key]);
            if value != in_spec(old, &[key]) {
                errors.invalid(&at.field(said), value, IMMUTABLE);
            }
        }
    }

    fn warnings(&self, obj: &Object, _old: Option<&Object>) -> Vec<String> {
        let tokens = !list(spec(obj), "tokenRequests").is_empty();
        if tokens && get(spec(obj), "serviceAccountTokenInSecrets").is_none() {
            return vec![
                "spec.serviceAccountTokenInSecrets is unset; if supported by this CSI driver, set to true to prevent possible logging of tokens in volume attributes"
                    .into(),
            ];
        }
        Vec::new()
    }

    fn allows_unconditional_update(&self) -> bool {
        false
    }

    fn columns(&self) -> &'static [Column] {
        columns::of("storage.k8s.io/CSIDriver")
    }

    fn row(&self, obj: &Object, now: Timestamp) -> Vec<Value> {
        let spec = spec(obj);
        let audiences: Vec<&str> = list(spec, "tokenRequests").iter().map(|t| text(t, "audience")).collect();
        let tokens = if audiences.is_empty() { "<unset>".to_owned() } else { audiences.join(",") };
        let modes: Vec<&str> = texts(spec, "volumeLifecycleModes").collect();
        let modes = if modes.is_empty() { "<none>".to_owned() } else { modes.join(",") };
        vec![
            obj.name().into(),
            spec.get("attachRequired").and_then(Value::as_bool).unwrap_or(true).into(),
            flag(spec, "podInfoOnMount").into(),
            flag(spec, "storageCapacity").into(),
            tokens.into(),
            flag(spec, "requiresRepublish").into(),
            modes.into(),
            age(obj, now),
        ]
    }
}

fn driver_spec(spec: &Value, errors: &mut Errors) {
    let at = At::new("spec");
    for key in ["attachRequired", "podInfoOnMount", "storageCapacity"] {
        if get(spec, key).is_none() {
            errors.required(&at.field(key), "");
        }
    }
    let policy = text(spec, "fsGroupPolicy");
    if !FS_GROUP_POLICIES.contains(&policy) {
        errors.unsupported(&at.field("fsGroupPolicy"), policy, &FS_GROUP_POLICIES);
    }
    let place = at.field("tokenRequests");
    let requests = list(spec, "tokenRequests");
    for (i, request) in requests.iter().enumerate() {
        let at = place.index(i);
        let audience = text(request, "audience");
        if requests[..i].iter().any(|other| text(other, "audience") == audience) {
            errors.duplicate_text(&at.field("audience"), audience);
        }
        if let Some(seconds) = int(request, "expirationSeconds") {
            let place = at.field("expirationSeconds");
            if seconds < 600 {
                errors.invalid_int(&place, seconds, "may not specify a duration less than 10 minutes");
            }
            if seconds > 1 << 32 {
                errors.invalid_int(&place, seconds, "may not specify a duration larger than 2^32 seconds");
            }
        }
    }
    let place = at.field("volumeLifecycleModes");
    for mode in texts(spec, "volumeLifecycleModes").filter(|m| !matches!(*m, "Persistent" | "Ephemeral")) {
        errors.unsupported(&place, mode, &["Ephemeral", "Persistent"]);
    }
}

/// `CSINode`.
pub(crate) struct CsiNode;

impl Kind for CsiNode {
    fn check(&self, obj: &Object, errors: &mut Errors) {
        let drivers = list(spec(obj), "drivers");
        let spec_at = At::new("spec");
        let at = spec_at.field("drivers");
        for (i, driver) in drivers.iter().enumerate() {
            let at = at.index(i);
            let name = text(driver, "name");
            attacher(name, &at.field("name"), errors);
            let node = text(driver, "nodeID");
            if node.is_empty() {
                errors.required(&at.field("nodeID"), "");
            } else if node.len() > 192 {
                errors.invalid_text(&at.field("nodeID"), node, "must be 192 characters or less");
            }
            if let Some(count) = int(or_null(driver, "allocatable"), "count").filter(|c| *c < 0) {
                errors.invalid_int(&at.field("allocatable").field("count"), count, meta::NOT_NEGATIVE);
            }
            let keys: Vec<&str> = texts(driver, "topologyKeys").collect();
            for (j, key) in keys.iter().enumerate() {
                if key.is_empty() {
                    errors.required(&at.field("topologyKeys"), "");
                }
                if keys[..j].contains(key) {
                    errors.duplicate_text(&at.field("topologyKeys"), key);
                }
                for why in names::qualified_name(key) {
                    errors.invalid_text(&at.field("topologyKeys"), key, &why);
                }
            }
            if drivers[..i].iter().any(|other| text(other, "name") == name) {
                errors.duplicate_text(&at.field("name"), name);
            }
        }
    }

    fn allows_unconditional_update(&self) -> bool {
        false
    }

    fn columns(&self) -> &'static [Column] {
        columns::of("storage.k8s.io/CSINode")
    }

    fn row(&self, obj: &Object, now: Timestamp) -> Vec<Value> {
        vec![obj.name().into(), list(spec(obj), "drivers").len().into(), age(obj, now)]
    }
}

/// `CSIStorageCapacity`.
pub(crate) struct CsiStorageCapacity;

impl Kind for CsiStorageCapacity {
    fn check(&self, obj: &Object, errors: &mut Errors) {
        selector::check(top(obj, "nodeTopology"), &At::new("nodeTopology"), errors);
        let class = top(obj, "storageClassName").as_str().unwrap_or("");
        for why in names::dns1123_subdomain(class) {
            errors.invalid_text(&At::new("storageClassName"), class, &why);
        }
        for key in ["capacity", "maximumVolumeSize"] {
            resource_names::not_negative(top(obj, key), &At::new(key), errors);
        }
    }

    fn check_update(&self, new: &Object, old: &Object, errors: &mut Errors) {
        self.check(new, errors);
        for key in ["nodeTopology", "storageClassName"] {
            if top(new, key) != top(old, key) {
                errors.invalid(&At::new(key), top(new, key), IMMUTABLE);
            }
        }
    }

    fn allows_unconditional_update(&self) -> bool {
        false
    }
}
