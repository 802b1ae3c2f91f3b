//! The protobuf messages of Kubernetes' types, parsed one by one from `data/messages.tsv` when first asked
//! for.

use std::{
    collections::HashMap,
    sync::{LazyLock, OnceLock},
};

/// The table; `data/README.md` describes the format.
const TABLE: &str = include_str!("../../data/messages.tsv");

/// A message.
#[derive(Debug)]
pub(crate) struct Message {
    /// How it looks in JSON.
    pub(crate) form: Form,
    /// The package its name is in, for the messages beside it.
    package: &'static str,
    fields: Vec<Field>,
    places: HashMap<&'static str, Place>,
}

/// How a message looks in JSON.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Form {
    /// An object of its fields.
    Fields,
    /// The text of an amount.
    Quantity,
    /// A time of whole seconds.
    Time,
    /// A time of microseconds.
    MicroTime,
    /// A number or text.
    IntOrString,
    /// Any JSON, which the message holds as it is.
    Raw,
    /// A list of texts.
    Texts,
    /// A schema or a list of them.
    SchemaOrArray,
    /// A schema or a list of texts.
    SchemaOrStrings,
    /// A schema or a boolean.
    SchemaOrBool,
}

/// A field of a message.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Field {
    /// Its number.
    pub(crate) number: u32,
    /// Its name in JSON; empty when the message's fields are the parent's own.
    pub(crate) name: &'static str,
    /// How often it is there.
    pub(crate) shape: Shape,
    /// What a value is.
    pub(crate) of: Of,
}

/// How often a field is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Shape {
    /// Once.
    Single,
    /// Once for each item of a list.
    List,
    /// Once for each entry of a map with text keys.
    Map,
}

/// What a value is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Of {
    /// Text.
    Text,
    /// Bytes, in JSON as base64.
    Bytes,
    /// True or false.
    Bool,
    /// A whole number.
    Int,
    /// A number.
    Double,
    /// Another message, by its place in the index.
    Message(u32),
}

/// Where a JSON field is written: in messages within messages whose fields are the parent's own in JSON.
#[derive(Clone, Debug)]
pub(crate) struct Place {
    /// The numbers of the messages around it, from the outside.
    pub(crate) within: Vec<u32>,
    /// The field.
    pub(crate) field: Field,
}

impl Message {
    /// The message of a type, by its OpenAPI name.
    pub(crate) fn named(name: &str) -> Option<&'static Self> {
        position(name).map(at)
    }

    /// A message of the same package.
    pub(crate) fn beside(&self, name: &str) -> Option<&'static Self> {
        Self::named(&format!("{}.{name}", self.package))
    }

    /// The field of a number.
    pub(crate) fn field(&self, number: u64) -> Option<&Field> {
        // Nearly all messages count their fields without a gap.
        let guess = usize::try_from(number).ok()?.checked_sub(1).and_then(|at| self.fields.get(at));
        let is = |field: &&Field| u64::from(field.number) == number;
        guess.filter(is).or_else(|| self.fields.iter().find(is))
    }

    /// Where the field of a JSON name is written.
    pub(crate) fn place(&self, name: &str) -> Option<&Place> {
        self.places.get(name)
    }
}

struct Slot {
    name: &'static str,
    body: &'static str,
    message: OnceLock<Message>,
}

/// Sorted by name.
static INDEX: LazyLock<Vec<Slot>> = LazyLock::new(|| {
    let blocks = TABLE.split("\n=").map(|block| block.strip_prefix('=').unwrap_or(block));
    let parts = blocks.map(|block| block.split_once('\n').unwrap_or((block, "")));
    let mut slots: Vec<Slot> =
        parts.map(|(name, body)| Slot { name: name.trim_end(), body, message: OnceLock::new() }).collect();
    slots.sort_by_key(|slot| slot.name);
    slots
});

fn position(name: &str) -> Option<u32> {
    INDEX.binary_search_by(|slot| slot.name.cmp(name)).ok().map(|at| at as u32)
}

/// A message by its place, which [`Of::Message`] holds.
pub(crate) fn at(position: u32) -> &'static Message {
    let slot = &INDEX[position as usize];
    slot.message.get_or_init(|| parse(slot.name, slot.body))
}

fn parse(name: &'static str, body: &'static str) -> Message {
    let (package, short) = name.rsplit_once('.').unwrap_or(("", name));
    let fields: Vec<Field> = body.lines().filter_map(|line| field(line, package)).collect();
    let mut places = HashMap::new();
    for field in &fields {
        match field.of {
            Of::Message(inner) if field.name.is_empty() => {
                for (name, place) in &at(inner).places {
                    let within = [&[field.number], &*place.within].concat();
                    places.entry(*name).or_insert(Place { within, field: place.field });
                }
            }
            _ => {
                places.insert(field.name, Place { within: Vec::new(), field: *field });
            }
        }
    }
    Message { form: form(short), package, fields, places }
}

fn form(short: &str) -> Form {
    match short {
        "Quantity" => Form::Quantity,
        "Time" => Form::Time,
        "MicroTime" => Form::MicroTime,
        "IntOrString" => Form::IntOrString,
        "RawExtension" | "FieldsV1" | "JSON" => Form::Raw,
        "ExtraValue" | "Verbs" => Form::Texts,
        "JSONSchemaPropsOrArray" => Form::SchemaOrArray,
        "JSONSchemaPropsOrStringArray" => Form::SchemaOrStrings,
        "JSONSchemaPropsOrBool" => Form::SchemaOrBool,
        _ => Form::Fields,
    }
}

fn field(line: &'static str, package: &str) -> Option<Field> {
    let mut columns = line.split('\t');
    let (number, name, spelling) = (columns.next()?.parse().ok()?, columns.next()?, columns.next()?);
    let (shape, element) = match spelling.split_at_checked(1) {
        Some(("[", element)) => (Shape::List, element),
        Some(("{", element)) => (Shape::Map, element),
        _ => (Shape::Single, spelling),
    };
    let of = match element.split_at_checked(1)? {
        ("s", _) => Of::Text,
        ("y", _) => Of::Bytes,
        ("b", _) => Of::Bool,
        ("i", _) => Of::Int,
        ("f", _) => Of::Double,
        ("@", full) if full.contains('.') => Of::Message(position(full)?),
        ("@", short) => Of::Message(position(&format!("{package}.{short}"))?),
        _ => return None,
    };
    Some(Field { number, name, shape, of })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_line_of_the_table_is_a_field() {
        for slot in &*INDEX {
            let message = Message::named(slot.name).unwrap();
            assert_eq!(message.fields.len(), slot.body.lines().count(), "{}", slot.name);
            for field in &message.fields {
                assert_eq!(message.field(field.number.into()).unwrap().name, field.name, "{}", slot.name);
            }
        }
        assert!(Message::named("io.k8s.api.core.v1.Nothing").is_none());
    }

    #[test]
    fn fields_of_inlined_messages_are_found() {
        let volume = Message::named("io.k8s.api.core.v1.Volume").unwrap();
        let place = volume.place("emptyDir").unwrap();
        assert_eq!((&*place.within, place.field.number), (&[2][..], 2));
        let rule = Message::named("io.k8s.api.admissionregistration.v1.NamedRuleWithOperations").unwrap();
        assert_eq!(rule.place("apiGroups").unwrap().within, [2, 2]);
    }
}
