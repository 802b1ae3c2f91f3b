//! `ConfigMap` and `Secret`.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::Value;
use wasmk_api::{Object, Timestamp};
use wasmk_machinery::names;

use crate::errors::{At, Errors};
use crate::fields::top;
use crate::meta::IMMUTABLE;
use crate::table::age;
use crate::value::{map_mut, set_default};
use crate::{Column, Kind, columns};

/// Values together hold at most that many bytes.
const MAX_SIZE: usize = 1024 * 1024;

/// The annotation that says whose token a secret holds.
const ACCOUNT: &str = "kubernetes.io/service-account.name";

/// `ConfigMap`.
pub(crate) struct ConfigMap;

impl Kind for ConfigMap {
    fn check(&self, obj: &Object, errors: &mut Errors) {
        let (data, binary) = (top(obj, "data"), top(obj, "binaryData"));
        let mut size = 0;
        for (key, value) in data.as_object().into_iter().flatten() {
            check_key(key, &At::new("data"), errors);
            if binary.get(key).is_some() {
                let why = "duplicate of key present in binaryData";
                errors.invalid_text(&At::new("data").key(key), key, why);
            }
            size += value.as_str().map_or(0, str::len);
        }
        for (key, value) in binary.as_object().into_iter().flatten() {
            check_key(key, &At::new("binaryData"), errors);
            size += decoded_len(value);
        }
        if size > MAX_SIZE {
            errors.too_long(&At::new(""), MAX_SIZE);
        }
    }

    fn check_update(&self, new: &Object, old: &Object, errors: &mut Errors) {
        frozen(new, old, &["data", "binaryData"], errors);
        self.check(new, errors);
    }

    fn columns(&self) -> &'static [Column] {
        columns::of("/ConfigMap")
    }

    fn row(&self, obj: &Object, now: Timestamp) -> Vec<Value> {
        let count = |key| top(obj, key).as_object().map_or(0, serde_json::Map::len);
        vec![obj.name().into(), (count("data") + count("binaryData")).into(), age(obj, now)]
    }
}

fn check_key(key: &str, at: &At<'_>, errors: &mut Errors) {
    for why in names::config_map_key(key) {
        errors.invalid_text(&at.key(key), key, &why);
    }
}

fn decoded_len(value: &Value) -> usize {
    value.as_str().map_or(0, |text| text.trim_end_matches('=').len() * 3 / 4)
}

/// Nothing but metadata changes once an object says that it is immutable.
fn frozen(new: &Object, old: &Object, keys: &[&str], errors: &mut Errors) {
    if top(old, "immutable").as_bool() != Some(true) {
        return;
    }
    if top(new, "immutable").as_bool() != Some(true) {
        errors.forbidden(&At::new("immutable"), "field is immutable when `immutable` is set");
    }
    for key in keys {
        if top(new, key) != top(old, key) {
            errors.forbidden(&At::new(key), "field is immutable when `immutable` is set");
        }
    }
}

/// `Secret`.
pub(crate) struct Secret;

impl Kind for Secret {
    fn set_defaults(&self, obj: &mut Object) {
        set_default(&mut obj.0, "type", "Opaque");
        // Plain text is for writing alone: it is kept among the data.
        if let Some(Value::Object(plain)) = obj.0.shift_remove("stringData") {
            let data = map_mut(&mut obj.0, "data");
            for (key, value) in plain {
                data.insert(key, STANDARD.encode(value.as_str().unwrap_or("")).into());
            }
        }
    }

    fn check(&self, obj: &Object, errors: &mut Errors) {
        let data = top(obj, "data");
        let mut size = 0;
        for (key, value) in data.as_object().into_iter().flatten() {
            check_key(key, &At::new("data"), errors);
            size += decoded_len(value);
        }
        if size > MAX_SIZE {
            errors.too_long(&At::new("data"), MAX_SIZE);
        }
        check_type(obj, data, errors);
    }

    fn check_update(&self, new: &Object, old: &Object, errors: &mut Errors) {
        if top(new, "type") != top(old, "type") {
            errors.invalid(&At::new("type"), top(new, "type"), IMMUTABLE);
        }
        frozen(new, old, &["data"], errors);
        self.check(new, errors);
    }

    fn columns(&self) -> &'static [Column] {
        columns::of("/Secret")
    }

    fn row(&self, obj: &Object, now: Timestamp) -> Vec<Value> {
        let count = top(obj, "data").as_object().map_or(0, serde_json::Map::len);
        vec![obj.name().into(), top(obj, "type").clone(), count.into(), age(obj, now)]
    }

    fn field_names(&self) -> &'static [&'static str] {
        &["type"]
    }
}

fn check_type(obj: &Object, data: &Value, errors: &mut Errors) {
    let at = At::new("data");
    let mut need = |key: &str| {
        if data.get(key).is_none() {
            errors.required(&at.key(key), "");
        }
    };
    match top(obj, "type").as_str().unwrap_or("") {
        "kubernetes.io/service-account-token" if obj.annotation(ACCOUNT).is_none_or(str::is_empty) => {
            let metadata = At::new("metadata");
            let annotations = metadata.field("annotations");
            errors.required(&annotations.key(ACCOUNT), "");
        }
        "kubernetes.io/tls" => ["tls.crt", "tls.key"].into_iter().for_each(need),
        "kubernetes.io/ssh-auth" => need("ssh-privatekey"),
        "kubernetes.io/basic-auth" if data.get("username").is_none() && data.get("password").is_none() => {
            errors.required(&at.key("username"), "");
            errors.required(&at.key("password"), "");
        }
        "kubernetes.io/dockerconfigjson" => docker_config(data, ".dockerconfigjson", errors),
        "kubernetes.io/dockercfg" => docker_config(data, ".dockercfg", errors),
        _ => {}
    }
}

fn docker_config(data: &Value, key: &str, errors: &mut Errors) {
    let data_at = At::new("data");
    let at = data_at.key(key);
    let Some(encoded) = data.get(key).and_then(Value::as_str) else {
        errors.required(&at, "");
        return;
    };
    let Err(why) = serde_json::from_slice::<Value>(&STANDARD.decode(encoded).unwrap_or_default()) else {
        return;
    };
    let why = match why.is_eof() {
        true => "unexpected end of JSON input".to_owned(),
        false => why.to_string(),
    };
    errors.invalid_text(&at, "<secret contents redacted>", &why);
}
