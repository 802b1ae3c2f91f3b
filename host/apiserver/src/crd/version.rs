//! One version of a custom resource: its schema, columns, subresources and selectable fields.

use std::sync::Arc;

use serde_json::{Value, json};
use wasmk_api::{Gvk, Object, Timestamp};
use wasmk_machinery::{decode, schema::KindSchema};

use super::Converter;

/// A printed column of a custom resource.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Column {
    name: String,
    kind: String,
    format: String,
    description: String,
    priority: i64,
    path: String,
}

/// Where the scale of a custom resource is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct CustomScale {
    pub(crate) spec_replicas: Vec<String>,
    pub(crate) status_replicas: Vec<String>,
    pub(crate) selector: Option<Vec<String>>,
}

/// One version of a custom resource.
#[derive(Debug)]
pub(crate) struct CustomVersion {
    /// The kind of its objects.
    pub(crate) gvk: Gvk,
    /// What its objects look like.
    pub(crate) schema: KindSchema,
    /// Whether it has the status subresource.
    pub(crate) has_status: bool,
    /// Its scale subresource.
    pub(crate) scale: Option<CustomScale>,
    /// Fields that can be selected by, with their paths.
    pub(crate) selectable: Vec<(String, Vec<String>)>,
    /// What its objects look like in the version they are stored in.
    stored: KindSchema,
    /// The name of that version.
    stored_as: String,
    /// The webhook that converts between versions; without one, versions differ by name alone.
    pub(crate) converter: Option<Arc<Converter>>,
    /// The revision of the definition it was read from.
    pub(crate) since: u64,
    pub(super) namespaced: bool,
    columns: Vec<Column>,
}

fn dotted(path: &str) -> Vec<String> {
    path.trim_start_matches('.').split('.').filter(|p| !p.is_empty()).map(Into::into).collect()
}

pub(super) fn text<'a>(value: &'a Value, pointer: &str) -> &'a str {
    value.pointer(pointer).and_then(Value::as_str).unwrap_or("")
}

impl CustomVersion {
    /// One version of a definition; `None` when its schema cannot be read.
    pub(super) fn read(
        definition: &Object,
        version: &Value,
        converter: Option<Arc<Converter>>,
    ) -> Option<Self> {
        let spec = definition.0.get("spec")?;
        let preserve = spec.get("preserveUnknownFields") == Some(&Value::Bool(true));
        let schema_of = |version: &Value| match version.pointer("/schema/openAPIV3Schema") {
            Some(declared) if !preserve => KindSchema::custom(declared).ok(),
            _ => Some(KindSchema::any()),
        };
        let is_stored = |v: &&Value| v.get("storage") == Some(&Value::Bool(true));
        let stored = spec.get("versions").and_then(Value::as_array).into_iter().flatten().find(is_stored);
        let schema = schema_of(version)?;
        let stored_as = stored.map_or("", |v| text(v, "/name")).to_owned();
        let stored = stored.and_then(schema_of).unwrap_or_else(|| schema.clone());
        let scale =
            version.pointer("/subresources/scale").filter(|s| s.is_object()).map(|scale| CustomScale {
                spec_replicas: dotted(text(scale, "/specReplicasPath")),
                status_replicas: dotted(text(scale, "/statusReplicasPath")),
                selector: scale.get("labelSelectorPath").and_then(Value::as_str).map(dotted),
            });
        let selectable = version
            .get("selectableFields")
            .and_then(Value::as_array)
            .into_iter()
            .flatten()
            .filter_map(|f| f.get("jsonPath").and_then(Value::as_str))
            .map(|path| (path.trim_start_matches('.').to_owned(), dotted(path)))
            .collect();
        let columns = version.get("additionalPrinterColumns").and_then(Value::as_array);
        Some(Self {
            gvk: Gvk::new(text(spec, "/group"), text(version, "/name"), text(spec, "/names/kind")),
            schema,
            stored,
            stored_as,
            has_status: version.pointer("/subresources/status").is_some_and(Value::is_object),
            scale,
            selectable,
            converter,
            since: definition.resource_version().parse().unwrap_or(0),
            namespaced: text(spec, "/scope") == "Namespaced",
            columns: match columns {
                Some(columns) => columns.iter().map(Column::read).collect(),
                None => vec![Column::age()],
            },
        })
    }

    /// The definitions of its table's columns.
    pub(crate) fn column_definitions(&self) -> Vec<Value> {
        let name = &wasmk_kinds::kind("", "").columns()[0];
        let mut all = vec![json!({
            "name": name.name, "type": name.kind, "format": name.format,
            "description": name.description, "priority": name.priority,
        })];
        all.extend(self.columns.iter().map(|c| {
            json!({
                "name": c.name, "type": c.kind, "format": c.format,
                "description": c.description, "priority": c.priority,
            })
        }));
        all
    }

    /// The cells of an object's row.
    pub(crate) fn row(&self, object: &Object, now: Timestamp) -> Vec<Value> {
        let mut cells = vec![Value::from(object.name())];
        cells.extend(self.columns.iter().map(|column| column.cell(object, now)));
        cells
    }

    /// A stored object as the present schema shows it: undeclared fields are gone, defaults are filled in.
    pub(crate) fn read_stored(&self, object: Object) -> Object {
        let kept = object.clone();
        // What a webhook converted is of this version already.
        let schema = if self.converter.is_some() { &self.schema } else { &self.stored };
        let mut object = match decode::convert(object.into_value(), schema) {
            Ok(decoded) => decoded.object,
            // What does not fit the schema at all is shown as it is.
            Err(_) => return kept,
        };
        crate::machine::default_by(schema, &mut object);
        object.set_gvk(&self.gvk);
        if self.converter.is_none() && self.stored_as != self.gvk.version {
            object = fitted(object, &self.schema);
        }
        object
    }

    /// An object of this version as it is stored: what the stored version does not declare is lost, its defaults are
    /// filled in.
    pub(crate) fn to_stored(&self, object: Object) -> Object {
        if self.converter.is_some() || self.stored_as == self.gvk.version {
            return object;
        }
        let mut object = fitted(object, &self.stored);
        crate::machine::default_by(&self.stored, &mut object);
        object
    }

    /// Fills in the defaults of an object.
    pub(crate) fn default(&self, object: &mut Object) {
        crate::machine::default_custom(self, object);
    }
}

/// An object without what a schema does not declare; as it is when it does not fit the schema at all.
fn fitted(object: Object, schema: &KindSchema) -> Object {
    let kept = object.clone();
    decode::convert(object.into_value(), schema).map_or(kept, |decoded| decoded.object)
}

impl Column {
    fn read(value: &Value) -> Self {
        Self {
            name: text(value, "/name").into(),
            kind: text(value, "/type").into(),
            format: text(value, "/format").into(),
            description: match text(value, "/description") {
                "" => format!(
                    "Custom resource definition column (in JSONPath format): {}",
                    text(value, "/jsonPath")
                ),
                given => given.into(),
            },
            priority: value.get("priority").and_then(Value::as_i64).unwrap_or(0),
            path: text(value, "/jsonPath").into(),
        }
    }

    fn age() -> Self {
        let created = wasmk_kinds::kind("", "").columns()[1];
        Self {
            name: "Age".into(),
            kind: "date".into(),
            format: String::new(),
            description: created.description.into(),
            priority: 0,
            path: ".metadata.creationTimestamp".into(),
        }
    }

    fn cell(&self, object: &Object, now: Timestamp) -> Value {
        let found = crate::jsonpath::find(&object.0, &self.path);
        let first = found.first().copied();
        match (&*self.kind, first) {
            (_, None) => Value::Null,
            ("date", Some(Value::String(time))) => match time.parse::<Timestamp>() {
                Ok(then) => wasmk_api::human_duration(now.since(then)).into(),
                Err(_) => "<invalid>".into(),
            },
            ("integer", Some(value)) => value.as_i64().map_or(Value::Null, Into::into),
            ("number", Some(value)) => value.as_f64().map_or(Value::Null, Into::into),
            ("boolean", Some(value)) => value.as_bool().map_or(Value::Null, Into::into),
            ("string", Some(Value::String(text))) => text.clone().into(),
            (_, Some(_)) => {
                let texts: Vec<String> = found.iter().map(|v| crate::jsonpath::show(v)).collect();
                texts.join(" ").into()
            }
        }
    }
}
