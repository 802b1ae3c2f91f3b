//! Where requests meet the schema machinery: decoding, defaults, validation, field management, patches.

use bytes::Bytes;
use serde_json::{Map, Value};
use wasmk_api::{Cause, GroupKind, Gvk, Object, Status};
use wasmk_machinery::{
    apply::{FieldManager, Reset},
    decode::{self, FieldValidation, Format},
    prune,
    schema::KindSchema,
};

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
    let refuse = |reason: &str, message: String| {
        let kind = call.options_kind();
        let cause = Cause { reason: reason.into(), message, field: "fieldManager".into() };
        Err(Status::invalid(&GroupKind { group: "meta.k8s.io".into(), kind: kind.into() }, "", &[cause]))
    };
    if manager.len() > MAX_MANAGER {
        return refuse("FieldValueTooLong", format!("Too long: may not be more than {MAX_MANAGER} bytes"));
    }
    match manager.chars().position(char::is_control) {
        Some(_) => refuse(
            "FieldValueInvalid",
            format!("Invalid value: {manager:?}: should only contain printable characters"),
        ),
        None => Ok(()),
    }
}

/// The schema of a kind as the resource serves it; `gvk` may also be the kind of a subresource.
///
/// # Errors
/// When there is none.
pub(crate) fn schema(resource: &Resource, gvk: &Gvk) -> Result<KindSchema, Status> {
    match &resource.nature {
        Nature::Custom(version) if version.gvk == *gvk => Ok(version.schema.clone()),
        _ => KindSchema::built_in(gvk).ok_or_else(|| Status::internal(format!("no schema of {gvk}"))),
    }
}

/// What the request says about unknown and repeated fields.
///
/// # Errors
/// When it says none of the known words.
pub(crate) fn validation(call: &Call) -> Result<FieldValidation, Status> {
    let word = call.query.text("fieldValidation");
    FieldValidation::parse(word).ok_or_else(|| {
        let kind = call.options_kind();
        let cause = Cause {
            reason: "FieldValueNotSupported".into(),
            message: format!(
                "Unsupported value: {word:?}: supported values: \"\", \"Ignore\", \"Strict\", \"Warn\""
            ),
            field: "fieldValidation".into(),
        };
        Status::invalid(&GroupKind { group: "meta.k8s.io".into(), kind: kind.into() }, "", &[cause])
    })
}

/// Reads a body as an object of a kind, with its defaults.
///
/// # Errors
/// When it is none.
pub(crate) fn decode(
    call: &Call,
    resource: &Resource,
    gvk: &Gvk,
    body: &Bytes,
    body_type: BodyType,
) -> Result<Object, Status> {
    let format = match body_type {
        BodyType::Json => Format::Json,
        BodyType::Yaml => Format::Yaml,
        BodyType::Protobuf => Format::Protobuf,
    };
    let decoded = decode::decode(body, format, gvk, &schema(resource, gvk)?, validation(call)?)?;
    decoded.warnings.into_iter().for_each(|warning| call.warn(warning));
    let mut object = decoded.object;
    if *gvk == resource.gvk {
        default(resource, &mut object);
    }
    Ok(object)
}

/// Brings a JSON value that was patched together into the form of an object of a kind, with its defaults.
///
/// # Errors
/// When it is of another kind, a value has the wrong type, or with strict validation a field is unknown.
pub(crate) fn convert(work: &Work<'_>, gvk: &Gvk, value: Value) -> Result<Object, Status> {
    let text = |key: &str| value.get(key).and_then(Value::as_str).unwrap_or("").to_owned();
    let (kind, version) = (text("kind"), text("apiVersion"));
    let refuse = |value: &Value, why: &str| {
        let shown = serde_json::to_string(&first_identity(value)).unwrap_or_default();
        let cause = Cause {
            reason: "FieldValueInvalid".into(),
            message: format!("Invalid value: {shown:?}: {why}"),
            field: "patch".into(),
        };
        Err(Status::invalid(&GroupKind { group: String::new(), kind: String::new() }, "", &[cause]))
    };
    if kind != gvk.kind || version != gvk.api_version() {
        let why = format!("no kind {kind:?} is registered for version {version:?} in scheme \"wasmk\"");
        return refuse(&value, &why);
    }
    let kept = value.clone();
    let decoded = match decode::convert(value, &schema(work.resource, gvk)?) {
        Ok(decoded) => decoded,
        Err(why) => return refuse(&kept, &why),
    };
    let mut object = decoded.object;
    object.set_gvk(gvk);
    match validation(work.call)? {
        FieldValidation::Strict if !decoded.warnings.is_empty() => {
            return refuse(&kept, &format!("strict decoding error: {}", decoded.warnings.join(", ")));
        }
        FieldValidation::Warn => decoded.warnings.into_iter().for_each(|warning| work.call.warn(warning)),
        _ => {}
    }
    if *gvk == work.resource.gvk {
        default(work.resource, &mut object);
    }
    Ok(object)
}

/// The value with its version and kind first, as messages show objects.
fn first_identity(value: &Value) -> Value {
    let Value::Object(map) = value else { return value.clone() };
    let mut out = Map::new();
    for key in ["apiVersion", "kind"] {
        if let Some(value) = map.get(key) {
            out.insert(key.into(), value.clone());
        }
    }
    for (key, value) in map {
        out.entry(key.clone()).or_insert_with(|| value.clone());
    }
    Value::Object(out)
}

/// Reads the options of a delete.
///
/// # Errors
/// When they cannot be read.
pub(crate) fn decode_options(call: &Call, body: &Bytes) -> Result<DeleteOptions, Status> {
    let format = match crate::http::negotiate::body_type(&call.headers)? {
        BodyType::Json => Format::Json,
        BodyType::Yaml => Format::Yaml,
        BodyType::Protobuf => Format::Protobuf,
    };
    let schema = KindSchema::of_type("io.k8s.apimachinery.pkg.apis.meta.v1.DeleteOptions")
        .ok_or_else(|| Status::internal("no schema of DeleteOptions"))?;
    let object = decode::decode_options(body, format, &schema).map_err(Status::bad_request)?;
    object.typed().map_err(|e| Status::bad_request(e.to_string()))
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
pub(crate) fn validate_update(
    resource: &Resource,
    new: &Object,
    old: &Object,
    mode: Mode,
) -> Result<(), Status> {
    let causes = match (&resource.nature, mode) {
        (_, Mode::Free(_)) => Vec::new(),
        (Nature::Builtin(kind), Mode::Main | Mode::Scale) => kind.validate_update(new, old),
        (Nature::Builtin(kind), Mode::Status) => kind.validate_status(new, old),
        (Nature::Custom(version), _) => version.validate(new, Some(old)),
    };
    verdict(resource, new, &causes)
}

/// Gives `use_it` the field manager of a kind and subresource.
pub(crate) fn field_manager<T>(
    work: &Work<'_>,
    gvk: &Gvk,
    schema: &KindSchema,
    subresource: &str,
    use_it: impl FnOnce(FieldManager<'_>) -> T,
) -> T {
    let has_status = work.resource.subresource("status").is_some();
    let reset = Reset::of(&gvk.group_kind(), subresource, has_status);
    use_it(FieldManager { gvk, kind: schema, subresource, reset: &reset, versions: None, now: work.now })
}

/// Records who set the fields of a new object.
///
/// # Errors
/// When the kind has no schema.
pub(crate) fn manage_create(work: &Work<'_>, object: &mut Object) -> Result<(), Status> {
    if work.owned {
        return Ok(());
    }
    manage(work, object, None, "")
}

/// Records who changed the fields of an object.
///
/// # Errors
/// When the kind has no schema.
pub(crate) fn manage_update(
    work: &Work<'_>,
    new: &mut Object,
    old: &Object,
    mode: Mode,
) -> Result<(), Status> {
    // The scale keeps account of its owners itself.
    if work.owned || mode == Mode::Scale {
        return Ok(());
    }
    manage(work, new, Some(old), mode.subresource())
}

fn manage(
    work: &Work<'_>,
    object: &mut Object,
    old: Option<&Object>,
    subresource: &str,
) -> Result<(), Status> {
    let gvk = &work.resource.gvk;
    let schema = schema(work.resource, gvk)?;
    let mut value = Value::Object(std::mem::take(&mut object.0));
    let live = old.map(|o| Value::Object(o.0.clone()));
    field_manager(work, gvk, &schema, subresource, |fields| {
        fields.update(live.as_ref(), &mut value, &work.manager)
    });
    if let Value::Object(map) = value {
        object.0 = map;
    }
    Ok(())
}

/// Whether a change changes nothing but times in the managed fields.
pub(crate) fn same(new: &Object, old: &Object) -> bool {
    if new == old {
        return true;
    }
    let strip = |object: &Object| -> Map<String, Value> {
        let mut map = object.0.clone();
        let fields =
            map.get_mut("metadata").and_then(|m| m.get_mut("managedFields")).and_then(Value::as_array_mut);
        for field in fields.into_iter().flatten().filter_map(Value::as_object_mut) {
            field.shift_remove("time");
        }
        map
    };
    strip(new) == strip(old)
}

/// Fills in the defaults of a custom resource.
pub(crate) fn default_custom(version: &crate::crd::CustomVersion, object: &mut Object) {
    let schema = version.schema.schema();
    let mut value = Value::Object(std::mem::take(&mut object.0));
    wasmk_machinery::default::apply(&mut value, schema);
    prune::prune_nulls(&mut value, schema);
    if let Value::Object(map) = value {
        object.0 = map;
    }
}

/// What is wrong with a custom resource.
pub(crate) fn validate_custom(
    _version: &crate::crd::CustomVersion,
    _object: &Object,
    _old: Option<&Object>,
    _namespaced: bool,
) -> Vec<Cause> {
    Vec::new()
}
