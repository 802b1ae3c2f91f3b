//! One place of a schema, as stored.

use std::{
    borrow::Cow,
    sync::{Arc, OnceLock},
};

use indexmap::IndexMap;
use regex::Regex;
use serde_json::Value;

use super::builtin;
use crate::validate::Programs;

/// What values a place holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Kind {
    /// Anything at all.
    #[default]
    Any,
    /// Fields, or a map when [`super::Schema::values`] says of what.
    Object,
    /// A list.
    Array,
    /// Text.
    String,
    /// A whole number of 32 bits.
    Integer32,
    /// A whole number of 64 bits; the integers of custom resources too.
    Integer64,
    /// A number.
    Number,
    /// True or false.
    Boolean,
    /// Base64 text.
    Bytes,
    /// A whole number or text.
    IntOrString,
    /// An amount; a number is read as its text.
    Quantity,
    /// A time with whole seconds.
    Time,
    /// A time with microseconds.
    MicroTime,
    /// Any object, kept as it is (`RawExtension`, `FieldsV1`).
    Raw,
    /// A JSON schema or a list of them.
    SchemaOrArray,
    /// A JSON schema or a boolean.
    SchemaOrBool,
    /// A JSON schema or a list of texts.
    SchemaOrStrings,
}

/// How a list merges (`x-kubernetes-list-type`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum ListType {
    #[default]
    Atomic,
    Set,
    Map,
}

/// How an object merges (`x-kubernetes-map-type`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum MapType {
    #[default]
    Granular,
    Atomic,
}

/// What Kubernetes writes for the zero value of a field.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Presence {
    /// Nothing: empty text, 0, false, empty lists and maps are not stored.
    #[default]
    Omit,
    /// Nothing when absent, but a zero that was given is kept.
    Pointer,
    /// The zero value: `""`, `0`, `false`, `{}` for structs, `null` for lists and maps.
    Always,
    /// `null` when absent; a zero that was given is kept.
    Null,
}

/// A CEL rule (`x-kubernetes-validations`).
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Rule {
    /// The expression; true means valid.
    pub rule: String,
    /// What to say when it is not.
    pub message: Option<String>,
    /// An expression that gives what to say.
    pub message_expression: Option<String>,
    /// A field reason, for instance `FieldValueForbidden`; `FieldValueInvalid` when absent.
    pub reason: Option<String>,
    /// A field below, as a JSON path (`.spec.x`), that the cause names.
    pub field_path: Option<String>,
    /// Whether a transition rule also runs without an old value, then wrapped in an optional.
    pub optional_old_self: bool,
}

/// Keywords only custom schemas have.
#[derive(Clone, Debug, Default)]
#[allow(missing_docs)]
pub struct Rules {
    /// `type` as declared, empty when absent.
    pub declared_type: Option<Box<str>>,
    pub format: Option<Box<str>>,
    pub title: Option<Box<str>>,
    pub description: Option<Box<str>>,
    pub enumeration: Option<Vec<Value>>,
    pub minimum: Option<f64>,
    pub maximum: Option<f64>,
    pub exclusive_minimum: bool,
    pub exclusive_maximum: bool,
    pub multiple_of: Option<f64>,
    pub min_length: Option<u64>,
    pub max_length: Option<u64>,
    pub pattern: Option<Box<str>>,
    pub min_items: Option<u64>,
    pub max_items: Option<u64>,
    pub unique_items: bool,
    pub min_properties: Option<u64>,
    pub max_properties: Option<u64>,
    /// `additionalProperties: false`.
    pub closed: bool,
    pub validations: Vec<Rule>,
    /// `pattern`, compiled when first needed.
    pub(crate) regex: OnceLock<Option<Regex>>,
    /// `validations`, parsed when first needed.
    pub(crate) programs: OnceLock<Arc<Programs>>,
    pub(crate) all_of: Vec<Node>,
    pub(crate) any_of: Vec<Node>,
    pub(crate) one_of: Vec<Node>,
    pub(crate) not: Option<Box<Node>>,
}

impl Rules {
    /// The compiled pattern; `None` without one, and for one that is no regular expression.
    pub(crate) fn regex(&self) -> Option<&Regex> {
        let compile = || self.pattern.as_deref().and_then(|pattern| Regex::new(pattern).ok());
        self.regex.get_or_init(compile).as_ref()
    }

    /// The schemas of `allOf`, all of which must hold.
    pub fn all_of(&self) -> impl ExactSizeIterator<Item = super::Schema<'_>> {
        self.all_of.iter().map(super::Schema::at)
    }

    /// The schemas of `anyOf`, one of which must hold.
    pub fn any_of(&self) -> impl ExactSizeIterator<Item = super::Schema<'_>> {
        self.any_of.iter().map(super::Schema::at)
    }

    /// The schemas of `oneOf`, exactly one of which must hold.
    pub fn one_of(&self) -> impl ExactSizeIterator<Item = super::Schema<'_>> {
        self.one_of.iter().map(super::Schema::at)
    }

    /// The schema of `not`, which must not hold.
    pub fn not(&self) -> Option<super::Schema<'_>> {
        self.not.as_deref().map(super::Schema::at)
    }
}

/// One place of a schema.
#[derive(Clone, Debug, Default)]
pub(crate) struct Node {
    pub(crate) kind: Kind,
    /// A built-in type that stands here.
    pub(crate) reference: Option<u32>,
    /// For the root of a built-in type: itself.
    pub(crate) own: Option<u32>,
    pub(crate) fields: IndexMap<Box<str>, Node>,
    pub(crate) required: Vec<Box<str>>,
    pub(crate) items: Option<Box<Node>>,
    pub(crate) values: Option<Box<Node>>,
    pub(crate) default: Option<Box<Value>>,
    pub(crate) list_type: ListType,
    pub(crate) list_keys: Vec<Box<str>>,
    /// `None`: as the type that stands here says.
    pub(crate) map_type: Option<MapType>,
    pub(crate) presence: Presence,
    pub(crate) preserve_unknown: bool,
    pub(crate) embedded: bool,
    pub(crate) nullable: bool,
    pub(crate) patch_strategy: Option<Cow<'static, str>>,
    pub(crate) patch_key: Option<Cow<'static, str>>,
    pub(crate) go: Option<&'static str>,
    pub(crate) rules: Option<Box<Rules>>,
}

/// How Go names the type at a place.
pub(crate) fn go_type(site: &Node) -> String {
    if let Some(name) = site.go {
        return name.into();
    }
    if let Some(id) = site.reference.or(site.own) {
        let mut parts = builtin::name(id).rsplit('.');
        let name = parts.next().unwrap_or_default();
        return format!("{}.{name}", parts.next().unwrap_or_default());
    }
    match site.kind {
        Kind::Array => format!("[]{}", site.items.as_deref().map_or("interface {}".into(), go_type)),
        Kind::Object => match &site.values {
            Some(values) => format!("map[string]{}", go_type(values)),
            None => "map[string]interface {}".into(),
        },
        Kind::String => "string".into(),
        Kind::Integer32 => "int32".into(),
        Kind::Integer64 => "int64".into(),
        Kind::Number => "float64".into(),
        Kind::Boolean => "bool".into(),
        Kind::Bytes => "[]uint8".into(),
        _ => "interface {}".into(),
    }
}
