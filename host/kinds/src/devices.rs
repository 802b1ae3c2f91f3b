//! Kinds of the group `resource.k8s.io`.

use serde_json::{Map, Value};
use wasmk_api::{Object, Timestamp};
use wasmk_machinery::names;

use crate::errors::{At, Errors};
use crate::fields::{spec, status, top};
use crate::meta::IMMUTABLE;
use crate::table::age;
use crate::value::{get, int, list, maps_mut, or_null, set_default, some_map, text, text_at};
use crate::{Column, Kind, columns, internal};

const MAX_REQUESTS: usize = 32;

/// Sets the defaults of a claim's spec.
fn claim_defaults(spec: &mut Map<String, Value>) {
    let Some(devices) = some_map(spec, "devices") else { return };
    for request in maps_mut(devices, "requests") {
        if let Some(exactly) = some_map(request, "exactly") {
            request_defaults(exactly);
        } else if request.contains_key("deviceClassName") {
            // Older versions have the fields in the request itself.
            request_defaults(request);
        }
        maps_mut(request, "firstAvailable").for_each(request_defaults);
    }
}

fn request_defaults(request: &mut Map<String, Value>) {
    set_default(request, "allocationMode", "ExactCount");
    let exact = request.get("allocationMode").and_then(Value::as_str) == Some("ExactCount");
    if exact && request.get("count").and_then(Value::as_i64).unwrap_or(0) == 0 {
        request.insert("count".into(), 1.into());
    }
    maps_mut(request, "tolerations").for_each(|t| set_default(t, "operator", "Equal"));
}

/// `ResourceClaim`.
pub(crate) struct ResourceClaim;

impl Kind for ResourceClaim {
    fn set_defaults(&self, obj: &mut Object) {
        if let Some(spec) = some_map(&mut obj.0, "spec") {
            claim_defaults(spec);
        }
    }

    fn check(&self, obj: &Object, errors: &mut Errors) {
        check_claim(spec(obj), &At::new("spec"), errors);
    }

    fn check_update(&self, new: &Object, old: &Object, errors: &mut Errors) {
        if spec(new) != spec(old) {
            let name = format!("{}.ResourceClaimSpec", new.api_version());
            errors.invalid_shown(&At::new("spec"), &internal::line(spec(new), &name), IMMUTABLE);
        }
        self.check(new, errors);
    }

    fn columns(&self) -> &'static [Column] {
        columns::of("resource.k8s.io/ResourceClaim")
    }

    fn row(&self, obj: &Object, now: Timestamp) -> Vec<Value> {
        let status = status(obj);
        let mut states = Vec::new();
        if obj.is_deleting() {
            states.push("deleted");
        }
        match (get(status, "allocation"), list(status, "reservedFor").is_empty()) {
            (None, _) if !obj.is_deleting() => states.push("pending"),
            (None, _) => {}
            (Some(_), true) => states.push("allocated"),
            (Some(_), false) => states.extend(["allocated", "reserved"]),
        }
        vec![obj.name().into(), states.join(",").into(), age(obj, now)]
    }
}

fn check_claim(spec: &Value, at: &At<'_>, errors: &mut Errors) {
    let at = at.field("devices");
    let requests = list(or_null(spec, "devices"), "requests");
    let place = at.field("requests");
    if requests.len() > MAX_REQUESTS {
        errors.too_many(&place, requests.len(), MAX_REQUESTS);
    }
    for (i, request) in requests.iter().enumerate() {
        let at = place.index(i);
        let name = text(request, "name");
        request_name(name, &at.field("name"), errors);
        if requests[..i].iter().any(|other| text(other, "name") == name) {
            errors.duplicate_text(&at.field("name"), name);
        }
        let (exactly, available) = (get(request, "exactly"), list(request, "firstAvailable"));
        let older = get(request, "deviceClassName").is_some();
        match (exactly, available.is_empty()) {
            (Some(exactly), true) => check_request(exactly, &at.field("exactly"), errors),
            (None, false) => {
                let at = at.field("firstAvailable");
                for (j, one) in available.iter().enumerate() {
                    request_name(text(one, "name"), &at.index(j).field("name"), errors);
                    check_request(one, &at.index(j), errors);
                }
            }
            (Some(_), false) => {
                errors.invalid_hidden(
                    &at,
                    "exactly one of `exactly` or `firstAvailable` is required, but multiple fields are set",
                );
            }
            (None, true) if older => check_request(request, &at, errors),
            (None, true) => errors.required(&at, "exactly one of `exactly` or `firstAvailable` is required"),
        }
    }
}

fn request_name(name: &str, at: &At<'_>, errors: &mut Errors) {
    if name.is_empty() {
        errors.required(at, "");
        return;
    }
    for why in names::dns1123_label(name) {
        errors.invalid_text(at, name, &why);
    }
}

fn check_request(request: &Value, at: &At<'_>, errors: &mut Errors) {
    let class = text(request, "deviceClassName");
    if class.is_empty() {
        errors.required(&at.field("deviceClassName"), "");
    } else {
        for why in names::dns1123_subdomain(class) {
            errors.invalid_text(&at.field("deviceClassName"), class, &why);
        }
    }
    let count = int(request, "count").unwrap_or(0);
    let place = at.field("count");
    match text(request, "allocationMode") {
        "All" if count != 0 => {
            let why = "must not be specified when allocationMode is 'All'";
            errors.invalid_int(&place, count, why);
        }
        "ExactCount" if count <= 0 => errors.invalid_int(&place, count, "must be greater than zero"),
        "All" | "ExactCount" => {}
        other => errors.unsupported(&at.field("allocationMode"), other, &["All", "ExactCount"]),
    }
}

/// `ResourceClaimTemplate`.
pub(crate) struct ResourceClaimTemplate;

impl Kind for ResourceClaimTemplate {
    fn set_defaults(&self, obj: &mut Object) {
        if let Some(spec) = some_map(&mut obj.0, "spec").and_then(|spec| some_map(spec, "spec")) {
            claim_defaults(spec);
        }
    }

    fn check(&self, obj: &Object, errors: &mut Errors) {
        let at = At::new("spec");
        check_claim(or_null(spec(obj), "spec"), &at.field("spec"), errors);
    }

    fn check_update(&self, new: &Object, old: &Object, errors: &mut Errors) {
        if spec(new) != spec(old) {
            let name = format!("{}.ResourceClaimTemplateSpec", new.api_version());
            errors.invalid_shown(&At::new("spec"), &internal::line(spec(new), &name), IMMUTABLE);
        }
        self.check(new, errors);
    }

    fn columns(&self) -> &'static [Column] {
        columns::of("resource.k8s.io/ResourceClaimTemplate")
    }

    fn row(&self, obj: &Object, now: Timestamp) -> Vec<Value> {
        vec![obj.name().into(), age(obj, now)]
    }
}

/// `DeviceClass`.
pub(crate) struct DeviceClass;

impl Kind for DeviceClass {
    fn has_generation(&self) -> bool {
        true
    }

    fn columns(&self) -> &'static [Column] {
        columns::of("resource.k8s.io/DeviceClass")
    }

    fn row(&self, obj: &Object, now: Timestamp) -> Vec<Value> {
        vec![obj.name().into(), age(obj, now)]
    }
}

/// `DeviceTaintRule`.
pub(crate) struct DeviceTaintRule;

impl Kind for DeviceTaintRule {
    fn has_generation(&self) -> bool {
        true
    }

    fn columns(&self) -> &'static [Column] {
        columns::of("resource.k8s.io/DeviceTaintRule")
    }

    fn row(&self, obj: &Object, now: Timestamp) -> Vec<Value> {
        vec![obj.name().into(), age(obj, now)]
    }
}

/// `ResourceSlice`.
pub(crate) struct ResourceSlice;

impl Kind for ResourceSlice {
    fn check(&self, obj: &Object, errors: &mut Errors) {
        let (spec, at) = (spec(obj), At::new("spec"));
        if text(spec, "driver").is_empty() {
            errors.required(&at.field("driver"), "");
        }
        if text(or_null(spec, "pool"), "name").is_empty() {
            errors.required(&at.field("pool").field("name"), "");
        }
    }

    fn check_update(&self, new: &Object, old: &Object, errors: &mut Errors) {
        self.check(new, errors);
        let at = At::new("spec");
        for key in ["nodeName", "driver"] {
            let value = or_null(top(new, "spec"), key);
            if value != or_null(top(old, "spec"), key) {
                errors.invalid(&at.field(key), value, IMMUTABLE);
            }
        }
    }

    fn has_generation(&self) -> bool {
        true
    }

    fn field_names(&self) -> &'static [&'static str] {
        &["spec.nodeName", "spec.driver"]
    }

    fn columns(&self) -> &'static [Column] {
        columns::of("resource.k8s.io/ResourceSlice")
    }

    fn row(&self, obj: &Object, now: Timestamp) -> Vec<Value> {
        let spec = spec(obj);
        vec![
            obj.name().into(),
            text_at(spec, "nodeName").unwrap_or("<none>").into(),
            text(spec, "driver").into(),
            text(or_null(spec, "pool"), "name").into(),
            age(obj, now),
        ]
    }
}
