//! Reads a document into a built-in type as Go does: null is absent, unknown fields go (strict decoding
//! names them), the first value of a wrong type is the error.

use std::collections::HashSet;

use serde_json::{Map, Value};

use super::{
    doc::{Doc, Strict, TooDeep, push_key},
    scalar,
};
use crate::schema::{Kind, KindSchema, Presence, Schema};

const SCHEMA_TYPE: &str = "io.k8s.apiextensions-apiserver.pkg.apis.apiextensions.v1.JSONSchemaProps";

/// The outcome: the object as far as it could be read, and what was wrong.
pub(crate) struct Typed {
    pub(crate) map: Map<String, Value>,
    pub(crate) strict: Strict,
    pub(crate) error: Option<String>,
}

/// Reads the document as an object of that type.
pub(crate) fn read(doc: Doc, schema: Schema<'_>) -> Typed {
    let mut reader = Reader::default();
    let value = reader.value(doc, schema, Value::Null);
    let map = if let Value::Object(map) = value { map } else { Map::new() };
    Typed { map, strict: reader.strict, error: reader.error }
}

#[derive(Default)]
struct Reader {
    strict: Strict,
    /// The first error; reading goes on, as in Go, to find what strict decoding minds.
    error: Option<String>,
    /// Where we are, with list indices, for strict errors.
    path: String,
    /// Where we are in Go's words: the innermost struct, and the fields down to here.
    structure: String,
    fields: String,
}

impl Reader {
    fn fail(&mut self, error: impl FnOnce(&Self) -> String) {
        if self.error.is_none() {
            self.error = Some(error(self));
        }
    }

    fn mismatch(&mut self, found: &str, wanted: &str) {
        self.fail(|this| match &*this.structure {
            "" => format!("json: cannot unmarshal {found} into Go value of type {wanted}"),
            structure => format!(
                "json: cannot unmarshal {found} into Go struct field {structure}.{} of type {wanted}",
                this.fields
            ),
        });
    }

    /// The value of the document at a place; `Null` for absent. `previous` is what an earlier field of the
    /// same name gave: objects are read into it.
    fn value(&mut self, doc: Doc, schema: Schema<'_>, previous: Value) -> Value {
        if doc == Doc::Null {
            return match schema.kind() {
                // Go leaves scalars and structs alone, and sets maps, lists and pointers to nil.
                Kind::Array | Kind::Any => Value::Null,
                Kind::Object if schema.values().is_some() => Value::Null,
                _ if matches!(schema.presence(), Presence::Pointer | Presence::Null) => Value::Null,
                _ => previous,
            };
        }
        match schema.kind() {
            Kind::Object => self.object(doc, schema, previous),
            Kind::Array => self.array(doc, schema),
            Kind::String => match doc {
                Doc::String(text) => Value::String(text),
                other => self.wrong(&other, schema),
            },
            Kind::Boolean => match doc {
                Doc::Bool(flag) => Value::Bool(flag),
                other => self.wrong(&other, schema),
            },
            Kind::Integer32 => self.integer(doc, schema, i64::from(i32::MIN), i64::from(i32::MAX)),
            Kind::Integer64 => self.integer(doc, schema, i64::MIN, i64::MAX),
            Kind::Number => match doc {
                Doc::Number(literal) => super::doc::number(&literal),
                other => self.wrong(&other, schema),
            },
            Kind::Bytes => match doc {
                Doc::String(text) => self.checked(scalar::canonical_base64(&text)),
                other => self.wrong(&other, schema),
            },
            Kind::Quantity => match doc {
                Doc::String(text) => {
                    self.checked(scalar::canonical_quantity(text.trim()).map_err(Into::into))
                }
                Doc::Number(text) => self.checked(scalar::canonical_quantity(&text).map_err(Into::into)),
                other => self.checked(scalar::canonical_quantity(other.type_name()).map_err(Into::into)),
            },
            Kind::Time | Kind::MicroTime => match doc {
                Doc::String(text) if text.is_empty() => Value::Null,
                Doc::String(text) => {
                    self.checked(scalar::canonical_time(&text, schema.kind() == Kind::MicroTime))
                }
                other => {
                    self.mismatch(other.type_name(), "string");
                    Value::Null
                }
            },
            Kind::IntOrString => match doc {
                Doc::String(text) => Value::String(text),
                other => {
                    let (low, high) = (i64::from(i32::MIN), i64::from(i32::MAX));
                    self.integer_of(other, "int32", low, high)
                }
            },
            Kind::Raw | Kind::Any => self.free(doc),
            Kind::SchemaOrArray | Kind::SchemaOrBool | Kind::SchemaOrStrings => self.schema_or(doc, schema),
        }
    }

    fn wrong(&mut self, doc: &Doc, schema: Schema<'_>) -> Value {
        self.mismatch(doc.type_name(), &schema.go_type());
        Value::Null
    }

    fn checked(&mut self, result: Result<String, String>) -> Value {
        match result {
            Ok(text) => Value::String(text),
            Err(error) => {
                self.fail(|_| error);
                Value::Null
            }
        }
    }

    fn free(&mut self, doc: Doc) -> Value {
        match doc.into_value(&mut self.path.clone(), &mut Strict::default()) {
            Ok(value) => value,
            Err(TooDeep) => {
                self.fail(|_| "exceeded max depth".into());
                Value::Null
            }
        }
    }

    fn integer(&mut self, doc: Doc, schema: Schema<'_>, low: i64, high: i64) -> Value {
        match doc {
            doc @ Doc::Number(_) => self.integer_of(doc, &schema.go_type(), low, high),
            other => self.wrong(&other, schema),
        }
    }

    fn integer_of(&mut self, doc: Doc, wanted: &str, low: i64, high: i64) -> Value {
        let Doc::Number(literal) = doc else {
            self.mismatch(doc.type_name(), wanted);
            return Value::Null;
        };
        match literal.parse::<i64>() {
            Ok(whole) if (low..=high).contains(&whole) => whole.into(),
            _ => {
                self.mismatch(&format!("number {literal}"), wanted);
                Value::Null
            }
        }
    }

    fn array(&mut self, doc: Doc, schema: Schema<'_>) -> Value {
        let (items, of) = match (doc, schema.items()) {
            (Doc::Array(items), Some(of)) => (items, of),
            (other, _) => return self.wrong(&other, schema),
        };
        let mut list = Vec::with_capacity(items.len());
        for (index, item) in items.into_iter().enumerate() {
            let length = self.path.len();
            self.path.push_str(&format!("[{index}]"));
            let value = self.value(item, of, Value::Null);
            self.path.truncate(length);
            list.push(zero_for_null(value, of));
        }
        Value::Array(list)
    }

    fn object(&mut self, doc: Doc, schema: Schema<'_>, previous: Value) -> Value {
        let entries = match doc {
            Doc::Object(entries) => entries,
            other => return self.wrong(&other, schema),
        };
        let map = if let Value::Object(map) = previous { map } else { Map::new() };
        match schema.values() {
            Some(of) => self.map(entries, of, map),
            None => self.structure(entries, schema, map),
        }
    }

    fn map(&mut self, entries: Vec<(String, Doc)>, of: Schema<'_>, mut map: Map<String, Value>) -> Value {
        let mut seen = HashSet::with_capacity(entries.len());
        for (key, doc) in entries {
            let length = push_key(&mut self.path, &key);
            if seen.contains(&key) {
                self.strict.add("duplicate", &self.path);
            }
            let value = self.value(doc, of, Value::Null);
            self.path.truncate(length);
            map.insert(key.clone(), zero_for_null(value, of));
            seen.insert(key);
        }
        Value::Object(map)
    }

    fn structure(
        &mut self,
        entries: Vec<(String, Doc)>,
        schema: Schema<'_>,
        mut map: Map<String, Value>,
    ) -> Value {
        let outer = std::mem::replace(&mut self.structure, struct_name(schema));
        let mut seen: Vec<String> = Vec::with_capacity(entries.len());
        for (key, doc) in entries {
            let length = push_key(&mut self.path, &key);
            let Some(field) = schema.field(&key) else {
                self.strict.add("unknown", &self.path);
                self.path.truncate(length);
                continue;
            };
            if seen.contains(&key) {
                self.strict.add("duplicate", &self.path);
            }
            let fields = push_key(&mut self.fields, &key);
            let previous = map.shift_remove(&key).unwrap_or(Value::Null);
            let value = self.value(doc, field, previous);
            self.fields.truncate(fields);
            self.path.truncate(length);
            let absent = value.is_null() || field.presence() == Presence::Omit && is_zero(&value);
            if !absent {
                map.insert(key.clone(), value);
            }
            seen.push(key);
        }
        self.structure = outer;
        Value::Object(map)
    }

    /// The unions of JSON schemas in custom resource definitions.
    fn schema_or(&mut self, doc: Doc, schema: Schema<'_>) -> Value {
        let kind = schema.kind();
        let nested = KindSchema::of_type(SCHEMA_TYPE);
        let Some(nested) = nested.as_ref().map(KindSchema::schema) else { return Value::Null };
        match (kind, doc) {
            (_, doc @ Doc::Object(_)) => self.value(doc, nested, Value::Null),
            (Kind::SchemaOrArray, Doc::Array(items)) => {
                Value::Array(items.into_iter().map(|item| self.value(item, nested, Value::Null)).collect())
            }
            (Kind::SchemaOrStrings, doc @ Doc::Array(_)) => self.free(doc),
            (Kind::SchemaOrBool, Doc::Bool(flag)) => Value::Bool(flag),
            (Kind::SchemaOrBool, _) => {
                self.fail(|_| "boolean or JSON schema expected".into());
                Value::Null
            }
            _ => Value::Null,
        }
    }
}

/// The Go struct's name, without its package.
fn struct_name(schema: Schema<'_>) -> String {
    schema.type_name().and_then(|name| name.rsplit('.').next()).unwrap_or("").into()
}

/// Null in a list or map is the zero value of its items' type.
fn zero_for_null(value: Value, schema: Schema<'_>) -> Value {
    if !value.is_null() {
        return value;
    }
    match schema.kind() {
        Kind::String | Kind::Bytes => "".into(),
        Kind::Integer32 | Kind::Integer64 | Kind::Number | Kind::IntOrString => 0.into(),
        Kind::Boolean => false.into(),
        Kind::Quantity => "0".into(),
        Kind::Object if schema.values().is_none() => Value::Object(Map::new()),
        _ => Value::Null,
    }
}

/// Whether it is left out where zero values are; lists and maps when they are empty.
fn is_zero(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => true,
        Value::Bool(true) => false,
        Value::Number(number) => number.as_f64() == Some(0.0),
        Value::String(text) => text.is_empty(),
        Value::Array(items) => items.is_empty(),
        Value::Object(map) => map.is_empty(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::decode::json;
    use serde_json::json;

    fn read_as(kind: &str, text: &str) -> Typed {
        let schema = KindSchema::of_type(kind).unwrap();
        read(json::parse(text.as_bytes()).unwrap(), schema.schema())
    }

    const CONFIG_MAP: &str = "io.k8s.api.core.v1.ConfigMap";
    const POD: &str = "io.k8s.api.core.v1.Pod";

    #[test]
    fn strict_errors_in_order() {
        let text = r#"{"metadata":{"name":"c","name":"c","zzz":1},"immutable":false,"immutable":false,"data":{"a":"1","a":"2"}}"#;
        let typed = read_as(CONFIG_MAP, text);
        assert_eq!(
            typed.strict.0,
            [
                r#"duplicate field "metadata.name""#,
                r#"unknown field "metadata.zzz""#,
                r#"duplicate field "immutable""#,
                r#"duplicate field "data.a""#
            ]
        );
        let typed = read_as(POD, r#"{"spec":{"containers":[{"ports":[{"colour":1}]}]}}"#);
        assert_eq!(typed.strict.0, [r#"unknown field "spec.containers[0].ports[0].colour""#]);
    }

    #[test]
    fn repeated_maps_are_merged() {
        let typed = read_as(CONFIG_MAP, r#"{"data":{"a":"1"},"data":{"b":"2"}}"#);
        assert_eq!(Value::Object(typed.map), json!({"data": {"a": "1", "b": "2"}}));
        assert_eq!(typed.strict.0, [r#"duplicate field "data""#]);
    }

    #[test]
    fn type_errors_in_gos_words() {
        for (kind, text, error) in [
            (
                CONFIG_MAP,
                r#"{"data":{"a":5}}"#,
                "json: cannot unmarshal number into Go struct field ConfigMap.data of type string",
            ),
            (
                CONFIG_MAP,
                r#"{"data":[[]]}"#,
                "json: cannot unmarshal array into Go struct field ConfigMap.data of type map[string]string",
            ),
            (
                POD,
                r#"{"metadata":{"labels":{"a":true}}}"#,
                "json: cannot unmarshal bool into Go struct field ObjectMeta.metadata.labels of type string",
            ),
            (
                POD,
                r#"{"metadata":[]}"#,
                "json: cannot unmarshal array into Go struct field Pod.metadata of type v1.ObjectMeta",
            ),
            (
                POD,
                r#"{"spec":{"containers":[{"ports":[{"containerPort":80.5}]}]}}"#,
                "json: cannot unmarshal number 80.5 into Go struct field ContainerPort.spec.containers.ports.containerPort of type int32",
            ),
            (
                POD,
                r#"{"spec":{"containers":[{"resources":{"limits":{"cpu":"abc"}}}]}}"#,
                "quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'",
            ),
            (POD, "[]", "json: cannot unmarshal array into Go value of type v1.Pod"),
        ] {
            assert_eq!(read_as(kind, text).error.as_deref(), Some(error), "{text}");
        }
    }

    #[test]
    fn values_take_their_stored_form() {
        let text = r#"{"metadata":{"name":null,"labels":{"a":null},"creationTimestamp":"2024-01-01T00:00:00+01:00"},
            "spec":{"hostNetwork":false,"terminationGracePeriodSeconds":0,"volumes":null,
            "containers":[{"name":"c","resources":{"limits":{"cpu":0.5,"memory":"1024Mi"}},
            "livenessProbe":{"httpGet":{"port":"http"}}}]}}"#;
        let typed = read_as(POD, text);
        assert_eq!(typed.error, None);
        assert_eq!(
            Value::Object(typed.map),
            json!({"metadata": {"labels": {"a": ""}, "creationTimestamp": "2023-12-31T23:00:00Z"},
                "spec": {"terminationGracePeriodSeconds": 0,
                    "containers": [{"name": "c", "resources": {"limits": {"cpu": "500m", "memory": "1Gi"}},
                                    "livenessProbe": {"httpGet": {"port": "http"}}}]}})
        );
    }
}
