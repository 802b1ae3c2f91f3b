//! Where requests meet the schema machinery: decoding, defaults, validation, field management, patches.

use bytes::Bytes;
use serde_json::{Map, Value};
use wasmk_api::{Cause, GroupKind, GroupVersion, Gvk, Object, Status};
use wasmk_kinds::{Errors, NameRule};
use wasmk_machinery::{
    apply::{FieldManager, Reset, Versions},
    decode::{self, FieldValidation, Format},
    prune,
    schema::KindSchema,
    validate,
};

use crate::{
    call::Call,
    crd::CustomVersion,
    http::negotiate::BodyType,
    special,
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
        object = resource.round_trip(object);
    }
    Ok(object)
}

/// Brings a JSON value that was patched together into the form of an object of a kind, with its defaults. `again`
/// makes the value once more, for messages.
///
/// # Errors
/// When it is of another kind, a value has the wrong type, or with strict validation a field is unknown.
pub(crate) fn convert(
    work: &Work<'_>,
    gvk: &Gvk,
    value: Value,
    again: impl FnOnce() -> Value,
) -> Result<Object, Status> {
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
    let decoded = match decode::convert(value, &schema(work.resource, gvk)?) {
        Ok(decoded) => decoded,
        Err(why) => return refuse(&again(), &why),
    };
    let mut object = decoded.object;
    object.set_gvk(gvk);
    match validation(work.call)? {
        FieldValidation::Strict if !decoded.warnings.is_empty() => {
            return refuse(&again(), &format!("strict decoding error: {}", decoded.warnings.join(", ")));
        }
        FieldValidation::Warn => decoded.warnings.into_iter().for_each(|warning| work.call.warn(warning)),
        _ => {}
    }
    if *gvk == work.resource.gvk {
        default(work.resource, &mut object);
    }
    Ok(object)
}

/// Reads a value that policies or webhooks made of an object, with its defaults.
///
/// # Errors
/// When it is no object of that kind any more.
pub(crate) fn reread(resource: &Resource, gvk: &Gvk, value: Value) -> Result<Object, String> {
    let schema = schema(resource, gvk).map_err(|status| status.message)?;
    let mut object = decode::convert(value, &schema)?.object;
    object.set_gvk(gvk);
    if *gvk == resource.gvk {
        default(resource, &mut object);
    }
    Ok(object)
}

/// The value with its version and kind first, as messages show objects.
fn first_identity(value: &Value) -> Value {
    let Some(mut object) = Object::from_value(value.clone()) else { return value.clone() };
    crate::write::order_metadata(&mut object);
    let map = &object.0;
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
    let object = decode::decode_options(body, format, &schema).map_err(|error| {
        let broken = format == Format::Json && serde_json::from_slice::<serde::de::IgnoredAny>(body).is_err();
        Status::bad_request(match broken {
            true => format!("couldn't get version/kind; json parse error: {error}"),
            false => error,
        })
    })?;
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
    Err(Status::invalid(&resource.invalid_kind(), object.name(), causes))
}

/// # Errors
/// 422 with everything that is wrong with a new object.
pub(crate) fn validate_create(work: &Work<'_>, object: &Object) -> Result<(), Status> {
    let causes = match &work.resource.nature {
        Nature::Builtin(kind) => {
            let mut causes = kind.validate(object);
            if special::is_definition(work.resource) {
                causes.extend(validate::definition::validate(object, None));
            }
            causes
        }
        Nature::Custom(version) => {
            let mut errors = Errors::default();
            wasmk_kinds::check_metadata(object, NameRule::Subdomain, &mut errors);
            custom_causes(work, version, object, None, errors.done())
        }
    };
    verdict(work.resource, object, &causes)
}

fn custom_causes(
    work: &Work<'_>,
    version: &CustomVersion,
    object: &Object,
    old: Option<&Object>,
    before: Vec<Cause>,
) -> Vec<Cause> {
    let outcome = validate::resource(object, old, &version.schema, before);
    outcome.warnings.into_iter().for_each(|warning| work.call.warn(warning));
    outcome.causes
}

fn metadata_causes(new: &Object, old: &Object) -> Vec<Cause> {
    let mut errors = Errors::default();
    wasmk_kinds::check_metadata_update(new, old, &mut errors);
    errors.done()
}

/// # Errors
/// 422 with everything that is wrong with a changed object.
pub(crate) fn validate_update(work: &Work<'_>, new: &Object, old: &Object, mode: Mode) -> Result<(), Status> {
    let causes = match (&work.resource.nature, mode) {
        (Nature::Builtin(_), Mode::Free(_)) => Vec::new(),
        (Nature::Builtin(kind), Mode::Main | Mode::Scale) => {
            let mut causes = kind.validate_update(new, old);
            if special::is_definition(work.resource) {
                causes.extend(validate::definition::validate(new, Some(old)));
            }
            causes
        }
        (Nature::Builtin(kind), Mode::Status) => kind.validate_status(new, old),
        (Nature::Custom(version), _) => {
            // Kubernetes looks at the metadata twice, once for every kind and once for the kind, and says so.
            let mut causes = metadata_causes(new, old);
            causes.extend(causes.clone());
            custom_causes(work, version, new, Some(old), causes)
        }
    };
    verdict(work.resource, new, &causes)
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
    let others = Others(work);
    let reset = Reset::of(&gvk.group_kind(), subresource, has_status);
    use_it(FieldManager {
        gvk,
        kind: schema,
        subresource,
        reset: &reset,
        versions: Some(&others),
        now: work.now,
    })
}

/// Records who set the fields of a new object.
///
/// # Errors
/// When the kind has no schema.
pub(crate) fn manage_create(work: &Work<'_>, object: &mut Object) -> Result<(), Status> {
    let managed = if work.owned { Ok(()) } else { manage(work, &work.resource.gvk, object, None, "") };
    wasmk_kinds::forget_empty(object);
    managed
}

/// Records who changed the fields of an object.
///
/// # Errors
/// When the kind has no schema.
pub(crate) fn manage_update(
    work: &Work<'_>,
    new: &mut Object,
    old: &mut Object,
    mode: Mode,
) -> Result<(), Status> {
    // Other subresources keep account of owners themselves, before they leave out what they do not change.
    let managed = match !work.owned && matches!(mode, Mode::Main | Mode::Status) {
        true => {
            let live = Value::Object(std::mem::take(&mut old.0));
            let managed = manage(work, &work.resource.gvk, new, Some(&live), mode.subresource());
            if let Value::Object(map) = live {
                old.0 = map;
            }
            managed
        }
        false => Ok(()),
    };
    wasmk_kinds::forget_empty(new);
    managed
}

/// Records who changed an object through a subresource, or made one of another kind than the resource's.
///
/// # Errors
/// When the kind has no schema.
pub(crate) fn manage_as(
    work: &Work<'_>,
    gvk: &Gvk,
    object: &mut Object,
    old: Option<&Object>,
    subresource: &str,
) -> Result<(), Status> {
    let live = old.map(|old| Value::Object(old.0.clone()));
    manage(work, gvk, object, live.as_ref(), subresource)
}

fn manage(
    work: &Work<'_>,
    gvk: &Gvk,
    object: &mut Object,
    live: Option<&Value>,
    subresource: &str,
) -> Result<(), Status> {
    let schema = schema(work.resource, gvk)?;
    let mut value = Value::Object(std::mem::take(&mut object.0));
    // Of an object that does not fit its schema any more, nobody knows who set what.
    if live.is_some_and(|live| wasmk_machinery::apply::misfits(&schema, live)) {
        if let Value::Object(map) = value {
            object.0 = map;
        }
        object.set_meta("managedFields", Value::Null);
        return Ok(());
    }
    field_manager(work, gvk, &schema, subresource, |fields| {
        fields.update(live, &mut value, &work.manager);
    });
    if let Value::Object(map) = value {
        object.0 = map;
    }
    Ok(())
}

/// Other versions of a resource, for managers that wrote in those.
struct Others<'a>(&'a Work<'a>);

impl Versions for Others<'_> {
    fn convert(&self, object: &Value, api_version: &str) -> Option<(Value, KindSchema)> {
        let gvk = GroupVersion::parse(api_version)?.kind(object.get("kind")?.as_str()?);
        let table = self.0.core.table.load();
        let other = table.by_kind(&gvk)?;
        let object = other.served(Object::from_value(object.clone())?);
        Some((object.into_value(), schema(other, &gvk).ok()?))
    }
}

/// Whether a change changes nothing but times in the managed fields.
pub(crate) fn same(new: &Object, old: &Object) -> bool {
    equal_with(&new.0, &old.0, |key, new, old| match (key, new, old) {
        ("metadata", Value::Object(new), Value::Object(old)) => {
            equal_with(
                new,
                old,
                |key, new, old| {
                    if key == "managedFields" { same_owners(new, old) } else { new == old }
                },
            )
        }
        _ => new == old,
    })
}

/// Whether maps have the same keys, with values that are equal by that word.
fn equal_with(
    new: &Map<String, Value>,
    old: &Map<String, Value>,
    equal: impl Fn(&str, &Value, &Value) -> bool,
) -> bool {
    new.len() == old.len()
        && new.iter().all(|(key, new)| old.get(key).is_some_and(|old| equal(key, new, old)))
}

fn same_owners(new: &Value, old: &Value) -> bool {
    let (Some(new), Some(old)) = (new.as_array(), old.as_array()) else { return new == old };
    let timeless = |entry: &'_ Value| -> usize {
        entry.as_object().map_or(0, |map| map.len() - usize::from(map.contains_key("time")))
    };
    let same = |(new, old): (&Value, &Value)| {
        let (Some(fields), Some(others)) = (new.as_object(), old.as_object()) else { return new == old };
        let mut rest = fields.iter().filter(|(key, _)| *key != "time");
        timeless(new) == timeless(old) && rest.all(|(key, value)| others.get(key) == Some(value))
    };
    new.len() == old.len() && new.iter().zip(old).all(same)
}

/// Fills in the defaults of a custom resource.
pub(crate) fn default_custom(version: &CustomVersion, object: &mut Object) {
    default_by(&version.schema, object);
}

/// Fills in the defaults a custom schema declares.
pub(crate) fn default_by(schema: &KindSchema, object: &mut Object) {
    let mut value = Value::Object(std::mem::take(&mut object.0));
    wasmk_machinery::default::apply(&mut value, schema.schema());
    prune::prune_nulls(&mut value, schema.schema());
    if let Value::Object(map) = value {
        object.0 = map;
    }
}
