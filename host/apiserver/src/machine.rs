//! Where requests meet the schema machinery: decoding, defaults, validation, field management, patches.

use bytes::Bytes;
use serde_json::{Map, Value};
use wasmk_api::{Cause, GroupKind, Gvk, Object, Status};

use crate::{
    call::Call,
    http::negotiate::BodyType,
    table::{Nature, Resource},
    write::{DeleteOptions, Mode, Work},
};

/// Longest name of a field manager.
const MAX_MANAGER: usize = 128;

/// Checks the name of a field manager.
///
/// # Errors
/// When it is too long or has characters that cannot be printed.
pub(crate) fn check_manager(call: &Call, manager: &str) -> Result<(), Status> {
    let refuse = |message: String| {
        let kind = match call.info.verb {
            "create" => "CreateOptions",
            "patch" => "PatchOptions",
            _ => "UpdateOptions",
        };
        let cause = Cause { reason: "FieldValueInvalid".into(), message, field: "fieldManager".into() };
        Err(Status::invalid(&GroupKind { group: "meta.k8s.io".into(), kind: kind.into() }, "", &[cause]))
    };
    if manager.len() > MAX_MANAGER {
        let mut status = refuse(format!("Too long: may not be more than {MAX_MANAGER} bytes"));
        if let Err(status) = &mut status {
            status.message = status.message.replace("Invalid value", "Too long");
        }
        return status;
    }
    match manager.chars().position(char::is_control) {
        Some(_) => refuse(format!("Invalid value: {manager:?}: should only contain printable characters")),
        None => Ok(()),
    }
}

/// Reads a body as an object of a kind, with its defaults.
///
/// # Errors
/// When it is none.
pub(crate) fn decode(
    _call: &Call,
    resource: &Resource,
    gvk: &Gvk,
    body: &Bytes,
    body_type: BodyType,
) -> Result<Object, Status> {
    let value: Value = match body_type {
        BodyType::Json => serde_json::from_slice(body).map_err(|e| Status::bad_request(e.to_string()))?,
        BodyType::Yaml => serde_yaml::from_slice(body).map_err(|e| Status::bad_request(e.to_string()))?,
        BodyType::Protobuf => return Err(Status::bad_request("protobuf")),
    };
    let mut object = Object::from_value(value).ok_or_else(|| Status::bad_request("no object"))?;
    if object.kind().is_empty() && object.api_version().is_empty() {
        object.set_gvk(gvk);
    }
    default(resource, &mut object);
    Ok(object)
}

/// Reads the options of a delete.
///
/// # Errors
/// When they cannot be read.
pub(crate) fn decode_options(_call: &Call, body: &Bytes) -> Result<DeleteOptions, Status> {
    serde_json::from_slice(body).map_err(|e| Status::bad_request(e.to_string()))
}

/// Fills in defaults.
pub(crate) fn default(resource: &Resource, object: &mut Object) {
    match &resource.nature {
        Nature::Builtin(kind) => kind.default(object),
        Nature::Custom(version) => version.default(object),
    }
}

/// Warnings about an object.
pub(crate) fn warnings(resource: &Resource, object: &Object, old: Option<&Object>) -> Vec<String> {
    resource.kind().warnings(object, old)
}

fn verdict(resource: &Resource, object: &Object, causes: &[Cause]) -> Result<(), Status> {
    if causes.is_empty() {
        return Ok(());
    }
    Err(Status::invalid(&resource.group_kind(), object.name(), causes))
}

/// # Errors
/// 422 with everything that is wrong with a new object.
pub(crate) fn validate_create(resource: &Resource, object: &Object) -> Result<(), Status> {
    let causes = match &resource.nature {
        Nature::Builtin(kind) => kind.validate(object),
        Nature::Custom(version) => version.validate(object, None),
    };
    verdict(resource, object, &causes)
}

/// # Errors
/// 422 with everything that is wrong with a changed object.
pub(crate) fn validate_update(resource: &Resource, new: &Object, old: &Object, mode: Mode) -> Result<(), Status> {
    let causes = match (&resource.nature, mode) {
        (_, Mode::Free(_)) => Vec::new(),
        (Nature::Builtin(kind), Mode::Main | Mode::Scale) => kind.validate_update(new, old),
        (Nature::Builtin(kind), Mode::Status) => kind.validate_status(new, old),
        (Nature::Custom(version), _) => version.validate(new, Some(old)),
    };
    verdict(resource, new, &causes)
}

/// Records who set the fields of a new object.
///
/// # Errors
/// When what the object says about its managers cannot be read.
pub(crate) fn manage_create(_work: &Work<'_>, _object: &mut Object) -> Result<(), Status> {
    Ok(())
}

/// Records who changed the fields of an object.
///
/// # Errors
/// When what the object says about its managers cannot be read.
pub(crate) fn manage_update(_work: &Work<'_>, _new: &mut Object, _old: &Object, _mode: Mode) -> Result<(), Status> {
    Ok(())
}

/// Whether a change changes nothing but times in the managed fields.
pub(crate) fn same(new: &Object, old: &Object) -> bool {
    if new == old {
        return true;
    }
    let strip = |object: &Object| -> Map<String, Value> {
        let mut map = object.0.clone();
        let fields = map.get_mut("metadata").and_then(|m| m.get_mut("managedFields")).and_then(Value::as_array_mut);
        for field in fields.into_iter().flatten().filter_map(Value::as_object_mut) {
            field.shift_remove("time");
        }
        map
    };
    strip(new) == strip(old)
}

/// Fills in the defaults of a custom resource.
pub(crate) fn default_custom(_version: &crate::crd::CustomVersion, _object: &mut Object) {}

/// What is wrong with a custom resource.
pub(crate) fn validate_custom(
    _version: &crate::crd::CustomVersion,
    _object: &Object,
    _old: Option<&Object>,
    _namespaced: bool,
) -> Vec<Cause> {
    Vec::new()
}
