//! The protobuf form of the version 2 document (`gnostic.openapi.v2.Document`), which client-go's discovery
//! client asks for and takes nothing else.

use serde_json::Value;

use crate::protobuf::write::{bytes, key, varint};

/// How a value is written.
enum Form {
    Text,
    Flag,
    Whole,
    Double,
    /// Any value, as YAML (of which JSON is a part).
    Any,
    /// A message of that table.
    Message(&'static Message),
    /// A list, an element at a time.
    Each(&'static Form),
    /// A map, wrapped in a message whose field of that number repeats pairs of name and value.
    Named(u32, &'static Form),
    /// A message with one field of that number.
    Wrapped(u32, &'static Form),
    /// A parameter: in the body, in the path or in the query.
    Parameter,
    /// `additionalProperties`: a schema or a boolean.
    SchemaOrFlag,
    /// One text, or a list of them.
    Texts,
}

/// The fields of a message: JSON name, number, form; and the number of its extensions, 0 for none.
struct Message {
    fields: &'static [(&'static str, u32, Form)],
    extensions: u32,
}

static DOCUMENT: Message = Message {
    fields: &[
        ("swagger", 1, Form::Text),
        ("info", 2, Form::Message(&INFO)),
        ("paths", 8, Form::Named(2, &Form::Message(&PATH))),
        ("definitions", 9, Form::Named(1, &Form::Message(&SCHEMA))),
    ],
    extensions: 16,
};
static INFO: Message =
    Message { fields: &[("title", 1, Form::Text), ("version", 2, Form::Text)], extensions: 7 };
static PATH: Message = Message {
    fields: &[
        ("get", 2, Form::Message(&OPERATION)),
        ("put", 3, Form::Message(&OPERATION)),
        ("post", 4, Form::Message(&OPERATION)),
        ("delete", 5, Form::Message(&OPERATION)),
        ("patch", 8, Form::Message(&OPERATION)),
        ("parameters", 9, Form::Each(&Form::Parameter)),
    ],
    extensions: 10,
};
static OPERATION: Message = Message {
    fields: &[
        ("parameters", 8, Form::Each(&Form::Parameter)),
        ("responses", 9, Form::Named(1, &Form::Wrapped(1, &Form::Message(&RESPONSE)))),
    ],
    extensions: 13,
};
static RESPONSE: Message = Message {
    fields: &[("description", 1, Form::Text), ("schema", 2, Form::Wrapped(1, &Form::Message(&SCHEMA)))],
    extensions: 5,
};
static BODY: Message = Message {
    fields: &[
        ("description", 1, Form::Text),
        ("name", 2, Form::Text),
        ("in", 3, Form::Text),
        ("required", 4, Form::Flag),
        ("schema", 5, Form::Message(&SCHEMA)),
    ],
    extensions: 6,
};
static QUERY: Message = Message {
    fields: &[
        ("required", 1, Form::Flag),
        ("in", 2, Form::Text),
        ("description", 3, Form::Text),
        ("name", 4, Form::Text),
        ("type", 6, Form::Text),
        ("uniqueItems", 20, Form::Flag),
    ],
    extensions: 23,
};
static PLACE: Message = Message {
    fields: &[
        ("required", 1, Form::Flag),
        ("in", 2, Form::Text),
        ("description", 3, Form::Text),
        ("name", 4, Form::Text),
        ("type", 5, Form::Text),
        ("uniqueItems", 19, Form::Flag),
    ],
    extensions: 22,
};
static SCHEMA: Message = Message {
    fields: &[
        ("$ref", 1, Form::Text),
        ("format", 2, Form::Text),
        ("title", 3, Form::Text),
        ("description", 4, Form::Text),
        ("default", 5, Form::Any),
        ("multipleOf", 6, Form::Double),
        ("maximum", 7, Form::Double),
        ("exclusiveMaximum", 8, Form::Flag),
        ("minimum", 9, Form::Double),
        ("exclusiveMinimum", 10, Form::Flag),
        ("maxLength", 11, Form::Whole),
        ("minLength", 12, Form::Whole),
        ("pattern", 13, Form::Text),
        ("maxItems", 14, Form::Whole),
        ("minItems", 15, Form::Whole),
        ("uniqueItems", 16, Form::Flag),
        ("maxProperties", 17, Form::Whole),
        ("minProperties", 18, Form::Whole),
        ("required", 19, Form::Each(&Form::Text)),
        ("enum", 20, Form::Each(&Form::Any)),
        ("additionalProperties", 21, Form::SchemaOrFlag),
        ("type", 22, Form::Texts),
        ("items", 23, Form::Wrapped(1, &Form::Message(&SCHEMA))),
        ("properties", 25, Form::Named(1, &Form::Message(&SCHEMA))),
    ],
    extensions: 31,
};

/// Encodes a version 2 document.
pub(super) fn encode(document: &Value) -> Vec<u8> {
    let mut out = Vec::new();
    message(&mut out, document, &DOCUMENT);
    out
}

fn nested(out: &mut Vec<u8>, number: u32, write: impl FnOnce(&mut Vec<u8>)) {
    let mut inner = Vec::new();
    write(&mut inner);
    bytes(out, number, &inner);
}

fn message(out: &mut Vec<u8>, value: &Value, of: &'static Message) {
    let Some(map) = value.as_object() else { return };
    for (name, number, form) in of.fields {
        if let Some(value) = map.get(*name) {
            field(out, *number, value, form);
        }
    }
    for (name, value) in map.iter().filter(|(name, _)| name.starts_with("x-")) {
        nested(out, of.extensions, |pair| {
            bytes(pair, 1, name.as_bytes());
            field(pair, 2, value, &Form::Any);
        });
    }
}

fn field(out: &mut Vec<u8>, number: u32, value: &Value, form: &'static Form) {
    match form {
        Form::Text => bytes(out, number, value.as_str().unwrap_or_default().as_bytes()),
        Form::Flag => {
            key(out, number, 0);
            out.push(u8::from(value == true));
        }
        Form::Whole => {
            key(out, number, 0);
            varint(out, value.as_u64().unwrap_or_default());
        }
        Form::Double => {
            key(out, number, 1);
            out.extend_from_slice(&value.as_f64().unwrap_or_default().to_le_bytes());
        }
        Form::Any => nested(out, number, |any| bytes(any, 2, value.to_string().as_bytes())),
        Form::Message(of) => nested(out, number, |inner| message(inner, value, of)),
        Form::Each(form) => {
            value.as_array().into_iter().flatten().for_each(|one| field(out, number, one, form))
        }
        Form::Named(pairs, form) => nested(out, number, |inner| {
            for (name, value) in value.as_object().into_iter().flatten() {
                nested(inner, *pairs, |pair| {
                    bytes(pair, 1, name.as_bytes());
                    field(pair, 2, value, form);
                });
            }
        }),
        Form::Wrapped(only, form) => nested(out, number, |inner| field(inner, *only, value, form)),
        Form::Parameter => nested(out, number, |item| nested(item, 1, |inner| parameter(inner, value))),
        Form::SchemaOrFlag => nested(out, number, |inner| match value {
            Value::Bool(_) => field(inner, 2, value, &Form::Flag),
            schema => nested(inner, 1, |inner| message(inner, schema, &SCHEMA)),
        }),
        Form::Texts => nested(out, number, |inner| match value {
            Value::Array(texts) => texts.iter().for_each(|text| field(inner, 1, text, &Form::Text)),
            text => field(inner, 1, text, &Form::Text),
        }),
    }
}

fn parameter(out: &mut Vec<u8>, value: &Value) {
    match value["in"].as_str() {
        Some("body") => nested(out, 1, |inner| message(inner, value, &BODY)),
        Some("path") => nested(out, 2, |other| nested(other, 4, |inner| message(inner, value, &PLACE))),
        _ => nested(out, 2, |other| nested(other, 3, |inner| message(inner, value, &QUERY))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn bytes_on_the_wire() {
        let document = json!({"swagger": "2.0", "definitions": {"T": {"type": "string", "x-k": true, "maxLength": 300}}});
        let extension = [&b"\xfa\x01\x0d\x0a\x03x-k\x12\x06\x12\x04true"[..]].concat();
        let schema = [&b"\x58\xac\x02\xb2\x01\x08\x0a\x06string"[..], &extension].concat();
        let mut named = b"\x0a\x01T\x12".to_vec();
        varint(&mut named, schema.len() as u64);
        named.extend(&schema);
        let mut expected = b"\x0a\x032.0\x4a".to_vec();
        varint(&mut expected, named.len() as u64 + 2);
        expected.push(0x0a);
        varint(&mut expected, named.len() as u64);
        expected.extend(&named);
        assert_eq!(encode(&document), expected);
    }
}
