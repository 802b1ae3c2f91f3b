//! What a value at a place of the schema is to apply: a scalar, a list or a map, and how it merges.

use serde_json::Value;

use super::Element;
use crate::schema::{Kind, ListType, MapType, Presence, Schema};

const OBJECT_META: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta";

/// The type of a place.
#[derive(Clone, Copy)]
pub(super) enum Type<'a> {
    /// As a schema says; `true` when a schema further up lets undeclared fields be.
    Of(Schema<'a>, bool),
    /// Told from the value: maps are granular, lists atomic.
    Deduced,
    /// Told from the value: maps and lists are atomic.
    Atomic,
}

/// How the value at a place is walked.
#[derive(Clone, Copy)]
pub(super) enum Shape<'a> {
    Map(MapShape<'a>),
    List(ListShape<'a>),
    Scalar(Scalar),
}

/// What a scalar may be.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Scalar {
    Number,
    Text,
    Boolean,
    Any,
}

#[derive(Clone, Copy)]
pub(super) struct MapShape<'a>(Type<'a>);

#[derive(Clone, Copy)]
pub(super) struct ListShape<'a>(Type<'a>);

impl<'a> Type<'a> {
    pub(super) fn root(schema: Schema<'a>) -> Self {
        Self::Of(schema, schema.preserve_unknown())
    }

    fn below(schema: Schema<'a>, preserve: bool) -> Self {
        Self::Of(schema, preserve || schema.preserve_unknown())
    }

    /// The shape of a value here; null takes any, a map where more than one is possible.
    pub(super) fn shape(self, value: Option<&Value>) -> Shape<'a> {
        let Self::Of(schema, _) = self else { return self.by_value(value) };
        match schema.kind() {
            Kind::Object => Shape::Map(MapShape(self)),
            Kind::Array => Shape::List(ListShape(self)),
            Kind::String if matches!(schema.format(), "" | "byte") => Shape::Scalar(Scalar::Text),
            Kind::Bytes => Shape::Scalar(Scalar::Text),
            Kind::Integer32 | Kind::Integer64 | Kind::Number => Shape::Scalar(Scalar::Number),
            Kind::Boolean => Shape::Scalar(Scalar::Boolean),
            Kind::String | Kind::Quantity | Kind::Time | Kind::MicroTime => Shape::Scalar(Scalar::Any),
            Kind::Raw => Self::Atomic.by_value(value),
            Kind::Any
            | Kind::IntOrString
            | Kind::SchemaOrArray
            | Kind::SchemaOrBool
            | Kind::SchemaOrStrings => self.by_value(value),
        }
    }

    fn by_value(self, value: Option<&Value>) -> Shape<'a> {
        match value {
            Some(Value::Array(_)) => Shape::List(ListShape(self)),
            Some(Value::Bool(_) | Value::Number(_) | Value::String(_)) => Shape::Scalar(Scalar::Any),
            Some(Value::Object(_) | Value::Null) | None => Shape::Map(MapShape(self)),
        }
    }

    /// Whether it is the metadata of an object.
    pub(super) fn is_object_meta(self) -> bool {
        matches!(self, Self::Of(schema, _) if schema.type_name() == Some(OBJECT_META))
    }
}

impl Shape<'_> {
    pub(super) fn same_as(&self, other: &Self) -> bool {
        std::mem::discriminant(self) == std::mem::discriminant(other)
    }
}

impl<'a> MapShape<'a> {
    pub(super) fn atomic(self) -> bool {
        match self.0 {
            Type::Of(schema, _) => schema.map_type() == MapType::Atomic,
            Type::Deduced => false,
            Type::Atomic => true,
        }
    }

    /// The type of a declared field.
    pub(super) fn declared(self, name: &str) -> Option<Type<'a>> {
        match self.0 {
            Type::Of(schema, preserve) => Some(Type::below(schema.field(name)?, preserve)),
            Type::Deduced | Type::Atomic => None,
        }
    }

    /// The type of fields and keys that are not declared; `None` when there may be none.
    pub(super) fn undeclared(self) -> Option<Type<'a>> {
        let Type::Of(schema, preserve) = self.0 else { return Some(self.0) };
        if let Some(values) = schema.values() {
            return Some(match values.kind() {
                Kind::Any if values.rules().is_none() && values.type_name().is_none() => Type::Deduced,
                _ => Type::below(values, preserve),
            });
        }
        let closed = schema.rules().is_some_and(|rules| rules.closed);
        ((preserve || !schema.has_fields()) && !closed).then_some(Type::Deduced)
    }

    /// The type of a field or key, declared or not.
    pub(super) fn entry(self, name: &str) -> Option<Type<'a>> {
        self.declared(name).or_else(|| self.undeclared())
    }

    /// Whether it says nothing at all of its fields.
    pub(super) fn untold(self) -> bool {
        match self.0 {
            Type::Of(schema, _) => !schema.has_fields() && matches!(self.undeclared(), Some(Type::Deduced)),
            Type::Deduced => true,
            Type::Atomic => false,
        }
    }

    pub(super) fn is_object_meta(self) -> bool {
        self.0.is_object_meta()
    }
}

impl<'a> ListShape<'a> {
    pub(super) fn kind(self) -> ListType {
        match self.0 {
            Type::Of(schema, _) => schema.list_type(),
            Type::Deduced | Type::Atomic => ListType::Atomic,
        }
    }

    pub(super) fn atomic(self) -> bool {
        self.kind() == ListType::Atomic
    }

    pub(super) fn items(self) -> Type<'a> {
        match self.0 {
            Type::Of(schema, preserve) => match schema.items() {
                Some(items) => Type::below(items, preserve),
                None => Type::Atomic,
            },
            Type::Deduced | Type::Atomic => Type::Atomic,
        }
    }

    /// What tells that item of a set or a list of type `map` apart.
    pub(super) fn element(self, item: &Value) -> Result<Element, String> {
        let (ListType::Map, Type::Of(schema, _)) = (self.kind(), self.0) else { return set_element(item) };
        let map = match item {
            Value::Object(map) => map,
            Value::Null => return Err("associative list with keys may not have a null element".into()),
            _ => return Err("associative list with keys may not have non-map elements".into()),
        };
        let items = schema.items();
        let mut fields = Vec::with_capacity(schema.list_keys().len());
        for key in schema.list_keys() {
            let default = || items.and_then(|items| items.field(key)).and_then(default_key);
            if let Some(value) = map.get(&**key).cloned().or_else(default) {
                fields.push((key.clone(), value));
            }
        }
        if fields.is_empty() {
            let keys: Vec<String> = schema.list_keys().iter().map(|key| crate::field::quoted(key)).collect();
            let keys = keys.join(" ");
            return Err(format!(
                "associative list with keys has an element that omits all key fields [{keys}] \
                 (and doesn't have default values for any key fields)"
            ));
        }
        Ok(Element::key(fields))
    }
}

fn set_element(item: &Value) -> Result<Element, String> {
    match item {
        Value::Object(_) => Err("associative list without keys has an element that's a map type".into()),
        Value::Array(_) => Err("not supported: associative list with lists as elements".into()),
        Value::Null => Err("associative list without keys has an element that's an explicit null".into()),
        scalar => Ok(Element::Value(scalar.clone())),
    }
}

/// What an absent key counts as: its default, or the zero value where Kubernetes always writes one.
fn default_key(schema: Schema<'_>) -> Option<Value> {
    if let Some(default) = schema.default() {
        return Some(default.clone());
    }
    if schema.presence() != Presence::Always {
        return None;
    }
    match schema.kind() {
        Kind::String => Some("".into()),
        Kind::Integer32 | Kind::Integer64 | Kind::Number => Some(0.into()),
        Kind::Boolean => Some(false.into()),
        _ => None,
    }
}
