//! `PersistentVolume`.

use serde_json::{Value, json};
use wasmk_api::{Object, Timestamp};
use wasmk_machinery::names;

use crate::errors::{At, Errors};
use crate::fields::{in_spec, spec, status};
use crate::meta::IMMUTABLE;
use crate::pod::{defaults, validate};
use crate::resource_names::{self, read};
use crate::table::{access_modes, age, or};
use crate::value::{entries, get, list, map, map_mut, or_null, set_default, some_map, text, text_at};
use crate::{Column, Kind, columns, internal, status as statuses};

pub(crate) const ACCESS_MODES: [&str; 4] =
    ["ReadOnlyMany", "ReadWriteMany", "ReadWriteOnce", "ReadWriteOncePod"];

pub(crate) struct PersistentVolume;

impl Kind for PersistentVolume {
    fn set_defaults(&self, obj: &mut Object) {
        if let Some(spec) = some_map(&mut obj.0, "spec") {
            set_default(spec, "persistentVolumeReclaimPolicy", "Retain");
            set_default(spec, "volumeMode", "Filesystem");
            defaults::volume_source(spec);
        }
        set_default(map_mut(&mut obj.0, "status"), "phase", "Pending");
    }

    fn prepare_create(&self, obj: &mut Object) {
        let now = Timestamp::now();
        obj.0.insert("status".into(), json!({"phase": "Pending", "lastPhaseTransitionTime": now}));
    }

    fn prepare_status(&self, new: &mut Object, old: &Object) {
        statuses::only(new, old);
        if text(status(new), "phase") != text(status(old), "phase") {
            let now = Timestamp::now().to_string();
            statuses::status_mut(new).insert("lastPhaseTransitionTime".into(), now.into());
        }
    }

    fn check(&self, obj: &Object, errors: &mut Errors) {
        volume_spec(spec(obj), errors);
    }

    fn check_update(&self, new: &Object, old: &Object, errors: &mut Errors) {
        self.check(new, errors);
        let at = At::new("spec");
        let source = "v1.PersistentVolumeSource";
        let difference = internal::difference(&own_source(spec(old)), &own_source(spec(new)), source);
        if !difference.is_empty() {
            let why = format!("spec.persistentvolumesource is immutable after creation\n{difference}");
            errors.forbidden(&at.field("persistentvolumesource"), &why);
        }
        let mode = in_spec(new, &["volumeMode"]);
        if mode != in_spec(old, &["volumeMode"]) {
            errors.invalid(&at.field("volumeMode"), mode, IMMUTABLE);
        }
        let (affinity, before) = (in_spec(new, &["nodeAffinity"]), in_spec(old, &["nodeAffinity"]));
        if !before.is_null() && affinity != before {
            let shown = internal::line(affinity, "v1.VolumeNodeAffinity");
            errors.invalid_shown(&at.field("nodeAffinity"), &shown, IMMUTABLE);
        }
    }

    fn columns(&self) -> &'static [Column] {
        columns::of("/PersistentVolume")
    }

    fn row(&self, obj: &Object, now: Timestamp) -> Vec<Value> {
        let (spec, status) = (spec(obj), status(obj));
        let claim = match get(spec, "claimRef") {
            Some(claim) => format!("{}/{}", text(claim, "namespace"), text(claim, "name")),
            None => String::new(),
        };
        let phase = match obj.is_deleting() {
            true => "Terminating",
            false => text(status, "phase"),
        };
        vec![
            obj.name().into(),
            text(or_null(spec, "capacity"), "storage").into(),
            access_modes(list(spec, "accessModes")).into(),
            text(spec, "persistentVolumeReclaimPolicy").into(),
            phase.into(),
            claim.into(),
            class_of(obj).into(),
            text_at(spec, "volumeAttributesClassName").map_or("<unset>", |c| c).into(),
            text(status, "reason").into(),
            age(obj, now),
            or(text(spec, "volumeMode"), "<unset>").into(),
        ]
    }

    fn has_generation(&self) -> bool {
        false
    }
}

/// The class of a volume or claim: the older annotation goes before the field.
pub(crate) fn class_of(obj: &Object) -> &str {
    obj.annotation("volume.beta.kubernetes.io/storage-class")
        .unwrap_or_else(|| text(spec(obj), "storageClassName"))
}

/// The part of a spec that says where the volume is.
fn own_source(spec: &Value) -> Value {
    const OTHER: [&str; 10] = [
        "capacity",
        "accessModes",
        "claimRef",
        "persistentVolumeReclaimPolicy",
        "storageClassName",
        "mountOptions",
        "volumeMode",
        "nodeAffinity",
        "volumeAttributesClassName",
        "",
    ];
    let parts = spec.as_object().into_iter().flatten().filter(|(key, _)| !OTHER.contains(&key.as_str()));
    Value::Object(parts.map(|(key, value)| (key.clone(), value.clone())).collect())
}

fn volume_spec(spec: &Value, errors: &mut Errors) {
    let at = At::new("spec");
    if list(spec, "accessModes").is_empty() {
        errors.required(&at.field("accessModes"), "");
    }
    modes(spec, &at, errors);
    let capacity = map(spec, "capacity").filter(|c| !c.is_empty());
    let place = at.field("capacity");
    if capacity.is_none() {
        errors.required(&place, "");
    }
    if capacity.is_none_or(|c| c.len() > 1 || !c.contains_key("storage")) {
        let shown = capacity.map_or(Value::Null, |c| Value::Object(c.clone()));
        errors.unsupported_value(&place, &shown, &["storage"]);
    }
    for (name, value) in entries(spec, "capacity") {
        resource_names::not_negative(value, &place.key(name), errors);
        positive(value, &place.key(name), errors);
    }
    let policy = text(spec, "persistentVolumeReclaimPolicy");
    if !policy.is_empty() && !matches!(policy, "Delete" | "Recycle" | "Retain") {
        let place = at.field("persistentVolumeReclaimPolicy");
        errors.unsupported(&place, policy, &["Delete", "Recycle", "Retain"]);
    }
    node_affinity(spec, &at, errors);
    let count = validate::volumes::source(&own_source(spec), &at, true, errors);
    if count == 0 {
        errors.required(&at, "must specify a volume type");
    }
    let path = text(or_null(spec, "hostPath"), "path");
    if policy == "Recycle" && !path.is_empty() && path.split('/').all(|part| matches!(part, "" | ".")) {
        let why = "may not be 'recycle' for a hostPath mount of '/'";
        errors.forbidden(&at.field("persistentVolumeReclaimPolicy"), why);
    }
    class_name(spec, &at, errors);
    volume_mode(spec, &at, errors);
}

fn node_affinity(spec: &Value, at: &At<'_>, errors: &mut Errors) {
    let place = at.field("nodeAffinity");
    match get(spec, "nodeAffinity") {
        None if get(spec, "local").is_some() => {
            errors.required(&place, "Local volume requires node affinity");
        }
        None => {}
        Some(affinity) => match get(affinity, "required") {
            None => errors.required(&place.field("required"), "must specify required node constraints"),
            Some(required) => {
                validate::affinity::node_selector(required, &place.field("required"), errors);
            }
        },
    }
}

/// Checks that an amount is above zero.
pub(crate) fn positive(value: &Value, at: &At<'_>, errors: &mut Errors) {
    if read(value).is_some_and(|amount| amount <= wasmk_api::Quantity::default()) {
        errors.invalid(at, value, "must be greater than zero");
    }
}

/// Checks access modes.
pub(crate) fn modes(spec: &Value, at: &At<'_>, errors: &mut Errors) {
    let at = at.field("accessModes");
    let modes: Vec<&str> = list(spec, "accessModes").iter().filter_map(Value::as_str).collect();
    for mode in modes.iter().filter(|mode| !ACCESS_MODES.contains(mode)) {
        errors.unsupported(&at, mode, &ACCESS_MODES);
    }
    let single = modes.contains(&"ReadWriteOncePod");
    if single && modes.iter().any(|mode| *mode != "ReadWriteOncePod") {
        errors.forbidden(&at, "may not use ReadWriteOncePod with other access modes");
    }
}

/// Checks the name of a storage class.
pub(crate) fn class_name(spec: &Value, at: &At<'_>, errors: &mut Errors) {
    let class = text(spec, "storageClassName");
    if !class.is_empty() {
        for why in names::dns1123_subdomain(class) {
            errors.invalid_text(&at.field("storageClassName"), class, &why);
        }
    }
}

/// Checks the mode of a volume.
pub(crate) fn volume_mode(spec: &Value, at: &At<'_>, errors: &mut Errors) {
    if let Some(mode) = text_at(spec, "volumeMode").filter(|m| !matches!(*m, "Block" | "Filesystem")) {
        errors.unsupported(&at.field("volumeMode"), mode, &["Block", "Filesystem"]);
    }
}
