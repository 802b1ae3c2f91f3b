//! From the bytes of a request to an object: JSON, YAML or protobuf, checked against the schema with
//! Kubernetes' three levels of field validation and its wording.

mod doc;
mod json;
mod protobuf;
mod scalar;
mod typed;
mod yaml;

use serde_json::{Map, Value};
use wasmk_api::{Gvk, Object, Reason, Status};

pub use doc::{MAX_DEPTH, MAX_STRICT_ERRORS};
pub use scalar::{canonical_base64, canonical_quantity, canonical_time};

use crate::{
    field::Path,
    prune,
    schema::{KindSchema, Schema},
};
use doc::{Doc, Strict, TooDeep, number};

/// How a body is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Format {
    Json,
    Yaml,
    /// Kubernetes' envelope around a protobuf message; built-in kinds only.
    Protobuf,
}

impl Format {
    /// From a `Content-Type` header, whose parameters do not matter; none at all means JSON.
    pub fn of_content_type(header: &str) -> Option<Self> {
        match header.split(';').next().unwrap_or("").trim() {
            "" | "application/json" => Some(Self::Json),
            "application/yaml" => Some(Self::Yaml),
            "application/vnd.kubernetes.protobuf" => Some(Self::Protobuf),
            _ => None,
        }
    }

    /// The answer to a content type that is none of these.
    pub fn unsupported() -> Status {
        let message = "the body of the request was in an unknown format - accepted media types include: \
                       application/json, application/yaml, application/vnd.kubernetes.protobuf";
        Status::new(Reason::UnsupportedMediaType, message)
    }
}

/// What is done about unknown and repeated fields (`fieldValidation`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum FieldValidation {
    /// They are dropped.
    Ignore,
    /// They are dropped, with a warning each.
    #[default]
    Warn,
    /// They are an error.
    Strict,
}

impl FieldValidation {
    /// From the query parameter, where empty means `Warn`; `None` for any other word.
    pub fn parse(text: &str) -> Option<Self> {
        match text {
            "" | "Warn" => Some(Self::Warn),
            "Ignore" => Some(Self::Ignore),
            "Strict" => Some(Self::Strict),
            _ => None,
        }
    }
}

/// A decoded object and what to warn the client of.
#[derive(Clone, Debug, Default)]
pub struct Decoded {
    /// Unknown fields are gone, `apiVersion` and `kind` are set.
    pub object: Object,
    /// Texts for Warning headers, in order.
    pub warnings: Vec<String>,
}

/// Decodes a body that must hold an object of `gvk`.
///
/// # Errors
/// A `Status` in Kubernetes' words: no such syntax, another kind, a value of the wrong type, and with
/// [`FieldValidation::Strict`] unknown and repeated fields.
pub fn decode(
    body: &[u8],
    format: Format,
    gvk: &Gvk,
    schema: &KindSchema,
    validation: FieldValidation,
) -> Result<Decoded, Status> {
    let unrecognized = |error: String| {
        let kind = &gvk.kind;
        let summary = summary(body);
        Status::bad_request(format!(
            "the object provided is unrecognized (must be of type {kind}): {error} ({summary})"
        ))
    };
    let mut strict = Strict::default();
    let doc = match format {
        Format::Protobuf => {
            return protobuf_object(body, gvk, schema).map_err(|e| e.status(gvk, unrecognized));
        }
        Format::Json => json::parse(body)
            .map_err(|e| unrecognized(format!("couldn't get version/kind; json parse error: {e}")))?,
        Format::Yaml => yaml_doc(body, &mut strict).map_err(unrecognized)?,
    };
    let given = identity(&doc, gvk)
        .map_err(|e| unrecognized(format!("couldn't get version/kind; json parse error: {e}")))?;
    check_kind(&given, gvk, schema)?;
    let cannot = |error: &str| cannot_be_handled(&given, gvk, error);
    let mut map = match schema.is_built_in() {
        true => {
            let typed = typed::read(doc, schema.schema());
            typed.strict.0.into_iter().for_each(|error| strict.push(error));
            typed.error.map_or(Ok(typed.map), |error| Err(cannot(&error)))?
        }
        false => custom(doc, schema.schema(), &mut strict).map_err(|error| cannot(&error))?,
    };
    let warnings = match validation {
        FieldValidation::Strict if !strict.0.is_empty() => {
            return Err(cannot(&format!("strict decoding error: {}", strict.0.join(", "))));
        }
        FieldValidation::Warn => strict.0,
        _ => Vec::new(),
    };
    map.insert("kind".into(), given.kind.clone().into());
    map.insert("apiVersion".into(), given.api_version().into());
    Ok(Decoded { object: Object(map), warnings })
}

/// Checks a JSON value that was patched together, as [`decode`] checks a body; the value is brought into
/// the form Kubernetes keeps.
///
/// # Errors
/// Go's sentence about the first value of a wrong type; strict errors come in [`Decoded::warnings`], for
/// the caller to refuse or to pass on.
pub fn convert(value: Value, schema: &KindSchema) -> Result<Decoded, String> {
    let mut strict = Strict::default();
    let map = match schema.is_built_in() {
        true => {
            let typed = typed::read(from_value(value, 0), schema.schema());
            strict = typed.strict;
            typed.error.map_or(Ok(typed.map), Err)?
        }
        false => {
            let mut value = value;
            tidy(&mut value, 0).map_err(too_deep)?;
            custom_value(value, schema.schema(), &mut strict)?
        }
    };
    Ok(Decoded { object: Object(map), warnings: strict.0 })
}

/// Decodes a body into an options type (`DeleteOptions`) or any other built-in type, without looking at
/// its kind. An empty body is an empty object.
///
/// # Errors
/// Go's sentence about what is wrong.
pub fn decode_options(body: &[u8], format: Format, schema: &KindSchema) -> Result<Object, String> {
    if body.is_empty() {
        return Ok(Object::default());
    }
    let doc = match format {
        Format::Json => json::parse(body)?,
        Format::Yaml => yaml_doc(body, &mut Strict::default())?,
        Format::Protobuf => {
            return protobuf::unwrap(body).and_then(|m| protobuf::read(m.raw, schema)).map(Object);
        }
    };
    let typed = typed::read(doc, schema.schema());
    typed.error.map_or(Ok(Object(typed.map)), Err)
}

/// Reads a built-in kind's object or list of its own word: the kind is the one its envelope names.
///
/// # Errors
/// Go's sentence about what is wrong.
pub fn from_protobuf(body: &[u8]) -> Result<Object, String> {
    let envelope = protobuf::unwrap(body)?;
    let (version, kind) = (envelope.api_version, envelope.kind);
    let gvk = wasmk_api::GroupVersion::parse(version).map(|gv| gv.kind(kind));
    let partial = gvk.as_ref().is_some_and(|gvk| gvk.group == "meta.k8s.io");
    let schema = match (kind, gvk) {
        // Whatever the objects are, their metadata is the same.
        ("PartialObjectMetadata", _) if partial => KindSchema::of_type("io.k8s.api.core.v1.ConfigMap"),
        ("PartialObjectMetadataList", _) if partial => {
            KindSchema::of_type("io.k8s.api.core.v1.ConfigMapList")
        }
        (_, gvk) => gvk.and_then(|gvk| KindSchema::built_in(&gvk)),
    };
    let schema = schema.ok_or_else(|| format!("no kind {kind:?} is registered for version {version:?}"))?;
    let mut map = protobuf::read(envelope.raw, &schema)?;
    map.insert("kind".into(), kind.into());
    map.insert("apiVersion".into(), version.into());
    Ok(Object(map))
}

/// A body as plain JSON, with the strict errors about repeated keys; for patches, which are read without
/// a schema.
///
/// # Errors
/// Go's sentence about the syntax, or that it is nested too deep.
pub fn plain(body: &[u8], format: Format) -> Result<(Value, Vec<String>), String> {
    let mut strict = Strict::default();
    let doc = match format {
        Format::Json => json::parse(body)?,
        Format::Yaml => yaml_doc(body, &mut strict)?,
        Format::Protobuf => return Err("a patch cannot be protobuf".into()),
    };
    let value = doc.into_value(&mut String::new(), &mut strict).map_err(too_deep)?;
    Ok((value, strict.0))
}

/// Reads a custom resource's `metadata` as Kubernetes' own type: the fields, and the unknown ones dropped.
pub(crate) fn read_metadata(metadata: Value) -> Result<(Map<String, Value>, Vec<String>), String> {
    let Some(schema) = KindSchema::of_type("io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta") else {
        return Err("no metadata type".into());
    };
    let typed = typed::read(from_value(metadata, 0), schema.schema());
    match typed.error {
        Some(error) => Err(error),
        None => {
            Ok((typed.map, typed.strict.0.iter().filter_map(|e| Some(e.split('"').nth(1)?.into())).collect()))
        }
    }
}

fn yaml_doc(body: &[u8], strict: &mut Strict) -> Result<Doc, String> {
    let parsed = yaml::parse(body)?;
    if !parsed.repeated.is_empty() {
        strict.push(format!("yaml: unmarshal errors:\n  {}", parsed.repeated.join("\n  ")));
    }
    Ok(parsed.doc)
}

/// A custom resource: any JSON, metadata typed, undeclared fields pruned.
fn custom(doc: Doc, schema: Schema<'_>, strict: &mut Strict) -> Result<Map<String, Value>, String> {
    let value = doc.into_value(&mut String::new(), strict).map_err(too_deep)?;
    custom_value(value, schema, strict)
}

fn too_deep(_: TooDeep) -> String {
    "exceeded max depth".into()
}

/// Brings numbers to the form [`number`] gives them, in place.
///
/// # Errors
/// When the value is nested too deep.
fn tidy(value: &mut Value, depth: usize) -> Result<(), TooDeep> {
    match value {
        Value::Array(_) | Value::Object(_) if depth >= MAX_DEPTH => Err(TooDeep),
        Value::Array(items) => items.iter_mut().try_for_each(|item| tidy(item, depth + 1)),
        Value::Object(map) => map.values_mut().try_for_each(|value| tidy(value, depth + 1)),
        Value::Number(given) if given.as_i64().is_none() => {
            *value = number(&given.to_string());
            Ok(())
        }
        _ => Ok(()),
    }
}

fn custom_value(value: Value, schema: Schema<'_>, strict: &mut Strict) -> Result<Map<String, Value>, String> {
    let Value::Object(mut map) = value else {
        return Err("json: cannot unmarshal value into Go value of type map[string]interface {}".into());
    };
    if let Some(given) = map.get_mut("metadata") {
        let (metadata, unknown) = read_metadata(given.take())?;
        *given = Value::Object(metadata);
        unknown.iter().for_each(|field| strict.add("unknown", &format!("metadata.{field}")));
    }
    let removed = prune::prune(&mut map, schema);
    removed.iter().for_each(|path| strict.add("unknown", path));
    let mut value = Value::Object(map);
    prune::prune_nulls(&mut value, schema);
    let mut unknown = Vec::new();
    prune::coerce_embedded(&mut value, schema, &Path::root(), &mut unknown)
        .map_err(|cause| format!("{}: {}", cause.field, cause.message))?;
    unknown.iter().for_each(|path| strict.add("unknown", path));
    match value {
        Value::Object(map) => Ok(map),
        _ => Ok(Map::new()),
    }
}

/// The kind a document says it is, with what it leaves out taken from the kind that is expected.
fn identity(doc: &Doc, expected: &Gvk) -> Result<Gvk, String> {
    let entries: &[(String, Doc)] = match doc {
        Doc::Null => &[],
        Doc::Object(entries) => entries,
        other => {
            let found = other.type_name();
            return Err(format!(
                "json: cannot unmarshal {found} into Go value of type struct {{ APIVersion string \
                 \"json:\\\"apiVersion,omitempty\\\"\"; Kind string \"json:\\\"kind,omitempty\\\"\" }}"
            ));
        }
    };
    let text = |name: &str| -> Result<&str, String> {
        match entries.iter().rfind(|(key, _)| key == name) {
            None | Some((_, Doc::Null)) => Ok(""),
            Some((_, Doc::String(text))) => Ok(text),
            Some((_, other)) => {
                let found = other.type_name();
                Err(format!("json: cannot unmarshal {found} into Go struct field .{name} of type string"))
            }
        }
    };
    given_kind(text("apiVersion")?, text("kind")?, expected)
}

fn given_kind(api_version: &str, kind: &str, expected: &Gvk) -> Result<Gvk, String> {
    let kind = if kind.is_empty() { &expected.kind } else { kind };
    if api_version.is_empty() {
        return Ok(expected.group_version().kind(kind));
    }
    wasmk_api::GroupVersion::parse(api_version)
        .map(|gv| gv.kind(kind))
        .ok_or_else(|| format!("unexpected GroupVersion string: {api_version}"))
}

/// Refuses an object of another kind or version than expected.
fn check_kind(given: &Gvk, expected: &Gvk, schema: &KindSchema) -> Result<(), Status> {
    if given == expected {
        return Ok(());
    }
    let versions_differ = given.group_version() != expected.group_version();
    if schema.is_built_in() {
        let known = KindSchema::built_in(given).is_some() || given.group.is_empty() && given.kind == "List";
        if !known {
            let (kind, version) = (&given.kind, given.api_version());
            let error =
                format!("no kind \"{kind}\" is registered for version \"{version}\" in scheme \"wasmk\"");
            return Err(cannot_be_handled(given, expected, &error));
        }
        if given.kind != expected.kind || given.group != expected.group && given.kind != "Event" {
            let error = format!(
                "converting ({}.{}) to ({}.{}): unknown conversion",
                given.version,
                given.kind,
                internal_package(&expected.group),
                expected.kind
            );
            return Err(cannot_be_handled(given, expected, &error));
        }
    }
    match versions_differ {
        // Another kind of the same version of a custom resource is a validation error, found later.
        false => Ok(()),
        true => Err(Status::bad_request(format!(
            "the API version in the data ({}) does not match the expected API version ({})",
            given.api_version(),
            expected.api_version()
        ))),
    }
}

/// The Go package of a group's internal types.
fn internal_package(group: &str) -> &str {
    match group {
        "" | "events.k8s.io" => "core",
        "internal.apiserver.k8s.io" => "apiserverinternal",
        group => group.split('.').next().unwrap_or(group),
    }
}

fn cannot_be_handled(given: &Gvk, expected: &Gvk, error: &str) -> Status {
    Status::bad_request(format!(
        "{} in version \"{}\" cannot be handled as a {}: {error}",
        given.kind, given.version, expected.kind
    ))
}

/// The beginning of a body for an error message: text when it looks like JSON, else hexadecimal.
fn summary(body: &[u8]) -> String {
    const SHOWN: usize = 30;
    let cut = &body[..body.len().min(SHOWN)];
    let tail = if body.len() > SHOWN { " ..." } else { "" };
    match body.first() {
        None => "<empty>".into(),
        Some(b'{') => format!("{}{tail}", String::from_utf8_lossy(cut)),
        Some(_) => format!("{}{tail}", cut.iter().map(|b| format!("{b:02x}")).collect::<String>()),
    }
}

/// A value as a document; nesting beyond the bound is marked as the parsers do.
fn from_value(value: Value, depth: usize) -> Doc {
    match value {
        Value::Null => Doc::Null,
        Value::Bool(flag) => Doc::Bool(flag),
        Value::Number(number) => Doc::Number(number.to_string().into()),
        Value::String(text) => Doc::String(text),
        Value::Array(_) if depth >= MAX_DEPTH => Doc::TooDeep(true),
        Value::Object(_) if depth >= MAX_DEPTH => Doc::TooDeep(false),
        Value::Array(items) => {
            Doc::Array(items.into_iter().map(|item| from_value(item, depth + 1)).collect())
        }
        Value::Object(map) => {
            Doc::Object(map.into_iter().map(|(key, value)| (key, from_value(value, depth + 1))).collect())
        }
    }
}

enum ProtobufError {
    Envelope(String),
    Message(Gvk, String),
    Kind(Box<Status>),
}

impl ProtobufError {
    fn status(self, expected: &Gvk, unrecognized: impl FnOnce(String) -> Status) -> Status {
        match self {
            Self::Envelope(error) => unrecognized(error),
            Self::Message(given, error) => cannot_be_handled(&given, expected, &error),
            Self::Kind(status) => *status,
        }
    }
}

fn protobuf_object(body: &[u8], gvk: &Gvk, schema: &KindSchema) -> Result<Decoded, ProtobufError> {
    let envelope = protobuf::unwrap(body).map_err(ProtobufError::Envelope)?;
    let given = given_kind(envelope.api_version, envelope.kind, gvk).map_err(ProtobufError::Envelope)?;
    check_kind(&given, gvk, schema).map_err(|status| ProtobufError::Kind(Box::new(status)))?;
    let mut map =
        protobuf::read(envelope.raw, schema).map_err(|error| ProtobufError::Message(given.clone(), error))?;
    map.insert("kind".into(), given.kind.clone().into());
    map.insert("apiVersion".into(), given.api_version().into());
    Ok(Decoded { object: Object(map), warnings: Vec::new() })
}

#[cfg(test)]
mod tests;
