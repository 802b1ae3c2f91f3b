//! `PersistentVolumeClaim`.

use serde_json::{Value, json};
use wasmk_api::{Object, Timestamp};

use crate::errors::{At, Errors};
use crate::fields::{spec, status};
use crate::resource_names::{self, read};
use crate::storage::volume::{class_name, class_of, modes, positive, volume_mode};
use crate::table::{access_modes, age, or};
use crate::value::{get, list, map_mut, or_null, set_default, some_map, text, text_at};
use crate::{Column, Kind, columns, internal, selector, status as statuses};

pub(crate) struct PersistentVolumeClaim;

impl Kind for PersistentVolumeClaim {
    fn set_defaults(&self, obj: &mut Object) {
        if let Some(spec) = some_map(&mut obj.0, "spec") {
            set_default(spec, "volumeMode", "Filesystem");
        }
        set_default(map_mut(&mut obj.0, "status"), "phase", "Pending");
    }

    fn prepare_create(&self, obj: &mut Object) {
        obj.0.insert("status".into(), json!({"phase": "Pending"}));
        mirror_source(obj);
    }

    fn prepare_update(&self, new: &mut Object, old: &Object) {
        statuses::keep(new, old);
        mirror_source(new);
    }

    fn check(&self, obj: &Object, errors: &mut Errors) {
        claim_spec(spec(obj), &At::new("spec"), errors);
    }

    fn check_update(&self, new: &Object, old: &Object, errors: &mut Errors) {
        self.check(new, errors);
        let (after, before) = (spec(new), spec(old));
        let mut compared = after.clone();
        forgive(&mut compared, before, text(status(old), "phase") == "Bound");
        let difference = internal::difference(before, &compared, "v1.PersistentVolumeClaimSpec");
        if !difference.is_empty() {
            let why = format!(
                "spec is immutable after creation except resources.requests and volumeAttributesClassName for bound claims\n{difference}"
            );
            errors.forbidden(&At::new("spec"), &why);
        }
        shrunk(new, old, errors);
    }

    fn columns(&self) -> &'static [Column] {
        columns::of("/PersistentVolumeClaim")
    }

    fn row(&self, obj: &Object, now: Timestamp) -> Vec<Value> {
        let (spec, status) = (spec(obj), status(obj));
        let phase = match obj.is_deleting() {
            true => "Terminating",
            false => text(status, "phase"),
        };
        let bound = !text(spec, "volumeName").is_empty();
        let modes = if bound { access_modes(list(status, "accessModes")) } else { String::new() };
        let capacity = if bound { text(or_null(status, "capacity"), "storage") } else { "" };
        vec![
            obj.name().into(),
            phase.into(),
            text(spec, "volumeName").into(),
            capacity.into(),
            modes.into(),
            class_of(obj).into(),
            text_at(spec, "volumeAttributesClassName").unwrap_or("<unset>").into(),
            age(obj, now),
            or(text(spec, "volumeMode"), "<unset>").into(),
        ]
    }
}

/// The older field for what to fill the volume with, and the newer one, say the same.
fn mirror_source(obj: &mut Object) {
    let Some(spec) = some_map(&mut obj.0, "spec") else { return };
    let (source, reference) = (spec.get("dataSource").cloned(), spec.get("dataSourceRef").cloned());
    match (source, reference) {
        (Some(source), None) if source.is_object() => {
            spec.insert("dataSourceRef".into(), source);
        }
        (None, Some(reference)) if text(&reference, "namespace").is_empty() && reference.is_object() => {
            spec.insert("dataSource".into(), reference);
        }
        _ => {}
    }
}

/// Checks the spec of a claim.
pub(crate) fn claim_spec(spec: &Value, at: &At<'_>, errors: &mut Errors) {
    selector::check(or_null(spec, "selector"), &at.field("selector"), errors);
    if list(spec, "accessModes").is_empty() {
        errors.required(&at.field("accessModes"), "at least 1 access mode is required");
    }
    modes(spec, at, errors);
    let wanted = or_null(or_null(or_null(spec, "resources"), "requests"), "storage");
    let place = at.field("resources");
    let place = place.key("storage");
    if wanted.is_null() {
        errors.required(&place, "");
    } else {
        resource_names::not_negative(wanted, &place, errors);
        positive(wanted, &place, errors);
    }
    class_name(spec, at, errors);
    volume_mode(spec, at, errors);
    for key in ["dataSource", "dataSourceRef"] {
        if let Some(source) = get(spec, key) {
            data_source(source, &at.field(key), errors);
        }
    }
    if let (Some(source), Some(reference)) = (get(spec, "dataSource"), get(spec, "dataSourceRef")) {
        let differs = ["kind", "name", "apiGroup"].iter().any(|key| source.get(key) != reference.get(key));
        if differs {
            errors.invalid_shown(at, "{}", "must match dataSourceRef");
        }
    }
}

fn data_source(source: &Value, at: &At<'_>, errors: &mut Errors) {
    for key in ["name", "kind"] {
        if text(source, key).is_empty() {
            errors.required(&at.field(key), "");
        }
    }
    let kind = text(source, "kind");
    if text(source, "apiGroup").is_empty() && kind != "PersistentVolumeClaim" {
        let why = "must be 'PersistentVolumeClaim' when referencing the default apiGroup";
        errors.invalid_text(at, kind, why);
    }
}

/// Takes over what may change, so that the rest can be compared.
fn forgive(new: &mut Value, old: &Value, bound: bool) {
    let Some(spec) = new.as_object_mut() else { return };
    if text(old, "volumeName").is_empty() {
        match old.get("volumeName") {
            Some(name) => spec.insert("volumeName".into(), name.clone()),
            None => spec.shift_remove("volumeName"),
        };
    }
    if or_null(old, "storageClassName").is_null() {
        // A claim that named no class may be given the default one.
        spec.shift_remove("storageClassName");
    }
    if bound {
        if let Some(before) = old.get("resources") {
            spec.insert("resources".into(), before.clone());
        }
        match old.get("volumeAttributesClassName") {
            Some(name) => spec.insert("volumeAttributesClassName".into(), name.clone()),
            None => spec.shift_remove("volumeAttributesClassName"),
        };
    }
    for key in ["dataSource", "dataSourceRef"] {
        if old.get(key).is_none() && spec.get(key).is_some() {
            // Objects stored before the fields mirrored each other.
            let other = if key == "dataSource" { "dataSourceRef" } else { "dataSource" };
            if old.get(other).is_some() {
                spec.shift_remove(key);
            }
        }
    }
}

fn shrunk(new: &Object, old: &Object, errors: &mut Errors) {
    let wanted = |obj| or_null(or_null(or_null(spec(obj), "resources"), "requests"), "storage");
    let capacity = read(or_null(or_null(status(old), "capacity"), "storage"));
    let (after, before) = (read(wanted(new)), read(wanted(old)));
    if let (Some(after), Some(before)) = (after, before)
        && after < before
        && capacity.is_none_or(|capacity| after < capacity)
        && text(status(old), "phase") == "Bound"
    {
        let at = At::new("spec");
        let resources = at.field("resources");
        let requests = resources.field("requests");
        let why = "field can not be less than status.capacity";
        errors.forbidden(&requests.field("storage"), why);
    }
}
