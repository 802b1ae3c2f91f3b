//! `StorageClass`, `VolumeAttributesClass` and `VolumeAttachment`.

use serde_json::Value;
use wasmk_api::{Object, Timestamp};
use wasmk_machinery::names;

use crate::errors::{At, Errors};
use crate::fields::{spec, status, top};
use crate::meta::IMMUTABLE;
use crate::table::age;
use crate::value::{flag, get, list, or_null, set_default, text, texts};
use crate::{Column, Kind, columns, internal};

/// Parameters together hold at most that many bytes, and there are at most that many.
const MAX_PARAMETER_SIZE: usize = 256 * 1024;
const MAX_PARAMETERS: usize = 512;

/// `StorageClass`.
pub(crate) struct StorageClass;

impl Kind for StorageClass {
    fn set_defaults(&self, obj: &mut Object) {
        set_default(&mut obj.0, "reclaimPolicy", "Delete");
        set_default(&mut obj.0, "volumeBindingMode", "Immediate");
    }

    fn check(&self, obj: &Object, errors: &mut Errors) {
        provisioner(text_of(obj, "provisioner"), &At::new("provisioner"), errors);
        parameters(top(obj, "parameters"), true, errors);
        let policy = text_of(obj, "reclaimPolicy");
        if !matches!(policy, "Delete" | "Retain") {
            errors.unsupported(&At::new("reclaimPolicy"), policy, &["Delete", "Retain"]);
        }
        match text_of(obj, "volumeBindingMode") {
            "" => errors.required(&At::new("volumeBindingMode"), ""),
            "Immediate" | "WaitForFirstConsumer" => {}
            other => {
                let modes = ["Immediate", "WaitForFirstConsumer"];
                errors.unsupported(&At::new("volumeBindingMode"), other, &modes);
            }
        }
        topologies(top(obj, "allowedTopologies"), errors);
    }

    fn check_update(&self, new: &Object, old: &Object, errors: &mut Errors) {
        if top(new, "parameters") != top(old, "parameters") {
            errors.forbidden(&At::new("parameters"), "updates to parameters are forbidden.");
        }
        if top(new, "provisioner") != top(old, "provisioner") {
            errors.forbidden(&At::new("provisioner"), "updates to provisioner are forbidden.");
        }
        for key in ["reclaimPolicy", "volumeBindingMode"] {
            if top(new, key) != top(old, key) {
                errors.invalid(&At::new(key), top(new, key), IMMUTABLE);
            }
        }
        topologies(top(new, "allowedTopologies"), errors);
    }

    fn columns(&self) -> &'static [Column] {
        columns::of("storage.k8s.io/StorageClass")
    }

    fn row(&self, obj: &Object, now: Timestamp) -> Vec<Value> {
        const DEFAULT: [&str; 2] = [
            "storageclass.kubernetes.io/is-default-class",
            "storageclass.beta.kubernetes.io/is-default-class",
        ];
        let is_default = DEFAULT.iter().any(|key| obj.annotation(key) == Some("true"));
        let name = if is_default { format!("{} (default)", obj.name()) } else { obj.name().into() };
        let grows = top(obj, "allowVolumeExpansion").as_bool().unwrap_or(false);
        vec![
            name.into(),
            text_of(obj, "provisioner").into(),
            text_of(obj, "reclaimPolicy").into(),
            text_of(obj, "volumeBindingMode").into(),
            grows.into(),
            age(obj, now),
        ]
    }
}

fn text_of<'a>(obj: &'a Object, key: &str) -> &'a str {
    top(obj, key).as_str().unwrap_or("")
}

fn provisioner(name: &str, at: &At<'_>, errors: &mut Errors) {
    if name.is_empty() {
        errors.required(at, "");
        return;
    }
    for why in names::qualified_name(&name.to_lowercase()) {
        errors.invalid_text(at, name, &why);
    }
}

fn parameters(parameters: &Value, may_be_empty: bool, errors: &mut Errors) {
    let map = parameters.as_object();
    let at = At::new("parameters");
    let count = map.map_or(0, serde_json::Map::len);
    if count == 0 && !may_be_empty {
        errors.required(&at, "must contain at least one key/value pair");
    }
    if count > MAX_PARAMETERS {
        errors.too_long(&At::new("Provisioner Parameters Length"), MAX_PARAMETERS);
        return;
    }
    let mut size = 0;
    for (key, value) in map.into_iter().flatten() {
        if key.is_empty() {
            errors.invalid_text(&at, key, "field can not be empty.");
        }
        size += key.len() + value.as_str().map_or(0, str::len);
    }
    if size > MAX_PARAMETER_SIZE {
        errors.too_long(&at, MAX_PARAMETER_SIZE);
    }
}

fn topologies(terms: &Value, errors: &mut Errors) {
    let at = At::new("allowedTopologies");
    for (i, term) in terms.as_array().into_iter().flatten().enumerate() {
        let at = at.index(i);
        let at = at.field("matchLabelExpressions");
        let expressions = list(term, "matchLabelExpressions");
        for (j, expression) in expressions.iter().enumerate() {
            let at = at.index(j);
            let values: Vec<&str> = texts(expression, "values").collect();
            if values.is_empty() {
                errors.required(&at.field("values"), "");
            }
            for (k, value) in values.iter().enumerate() {
                if values[..k].contains(value) {
                    errors.duplicate_text(&at.field("values").index(k), value);
                }
            }
            let key = text(expression, "key");
            crate::meta::label_key(key, &at.field("key"), errors);
            if expressions[..j].iter().any(|other| text(other, "key") == key) {
                errors.duplicate_text(&at.field("key"), key);
            }
        }
    }
}

/// `VolumeAttributesClass`.
pub(crate) struct VolumeAttributesClass;

impl Kind for VolumeAttributesClass {
    fn check(&self, obj: &Object, errors: &mut Errors) {
        provisioner(text_of(obj, "driverName"), &At::new("driverName"), errors);
        parameters(top(obj, "parameters"), false, errors);
    }

    fn check_update(&self, new: &Object, old: &Object, errors: &mut Errors) {
        for key in ["driverName", "parameters"] {
            if top(new, key) != top(old, key) {
                errors.invalid(&At::new(key), top(new, key), IMMUTABLE);
            }
        }
    }

    fn columns(&self) -> &'static [Column] {
        columns::of("storage.k8s.io/VolumeAttributesClass")
    }

    fn row(&self, obj: &Object, now: Timestamp) -> Vec<Value> {
        vec![obj.name().into(), text_of(obj, "driverName").into(), age(obj, now)]
    }
}

/// `VolumeAttachment`.
pub(crate) struct VolumeAttachment;

impl Kind for VolumeAttachment {
    fn check(&self, obj: &Object, errors: &mut Errors) {
        let (spec, at) = (spec(obj), At::new("spec"));
        attacher(text(spec, "attacher"), &at.field("attacher"), errors);
        let source = or_null(spec, "source");
        let place = at.field("source");
        match (get(source, "persistentVolumeName"), get(source, "inlineVolumeSpec")) {
            (None, None) => {
                let why = "must specify exactly one of inlineVolumeSpec and persistentVolumeName";
                errors.required(&place, why);
            }
            (Some(_), Some(_)) => {
                let why = "must specify exactly one of inlineVolumeSpec and persistentVolumeName";
                errors.forbidden(&place, why);
            }
            (Some(name), None) if name.as_str() == Some("") => {
                errors.required(
                    &place.field("persistentVolumeName"),
                    "must specify non empty persistentVolumeName",
                );
            }
            _ => {}
        }
        let node = text(spec, "nodeName");
        for why in names::dns1123_subdomain(node) {
            errors.invalid_text(&at.field("nodeName"), node, &why);
        }
    }

    fn check_update(&self, new: &Object, old: &Object, errors: &mut Errors) {
        self.check(new, errors);
        if spec(new) != spec(old) {
            let shown = internal::line(spec(new), "storage.k8s.io/v1.VolumeAttachmentSpec");
            errors.invalid_shown(&At::new("spec"), &shown, IMMUTABLE);
        }
    }

    fn allows_unconditional_update(&self) -> bool {
        false
    }

    fn columns(&self) -> &'static [Column] {
        columns::of("storage.k8s.io/VolumeAttachment")
    }

    fn row(&self, obj: &Object, now: Timestamp) -> Vec<Value> {
        let spec = spec(obj);
        vec![
            obj.name().into(),
            text(spec, "attacher").into(),
            text(or_null(spec, "source"), "persistentVolumeName").into(),
            text(spec, "nodeName").into(),
            flag(status(obj), "attached").into(),
            age(obj, now),
        ]
    }
}

/// Checks the name of a volume driver.
pub(crate) fn attacher(name: &str, at: &At<'_>, errors: &mut Errors) {
    if name.is_empty() {
        errors.required(at, "");
        return;
    }
    if name.len() > 63 {
        errors.too_long(at, 63);
    }
    for why in names::dns1123_subdomain(&name.to_lowercase()) {
        errors.invalid_text(at, name, &why);
    }
}
