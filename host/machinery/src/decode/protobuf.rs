//! Reads Kubernetes' protobuf bodies: an envelope with the kind, and a message whose fields a table
//! (`data/messages.tsv`) gives names to. The message becomes a document that is read like JSON, so that
//! zero values and canonical forms come out the same.

use std::collections::HashMap;

use base64::{Engine, engine::general_purpose::STANDARD};
use serde_json::{Map, Value};

use super::{
    doc::{Doc, MAX_DEPTH},
    json, typed,
};
use crate::{
    protobuf::{
        MAGIC,
        messages::{self, Field, Form, Message, Of, Shape},
    },
    schema::KindSchema,
};

/// What the envelope says of the message in it.
pub(super) struct Envelope<'b> {
    pub(super) api_version: &'b str,
    pub(super) kind: &'b str,
    pub(super) raw: &'b [u8],
}

/// Opens the envelope.
///
/// # Errors
/// When there is none, or it is broken.
pub(super) fn unwrap(body: &[u8]) -> Result<Envelope<'_>, String> {
    let Some(envelope) = body.strip_prefix(&MAGIC) else {
        return Err(
            "provided data does not appear to be a protobuf message, expected prefix [107 56 115 0]".into()
        );
    };
    let mut opened = Envelope { api_version: "", kind: "", raw: &[] };
    for field in Fields(envelope) {
        match field? {
            (1, Wire::Bytes(type_meta)) => {
                for field in Fields(type_meta) {
                    match field? {
                        (1, Wire::Bytes(text)) => opened.api_version = utf8(text)?,
                        (2, Wire::Bytes(text)) => opened.kind = utf8(text)?,
                        _ => (),
                    }
                }
            }
            (2, Wire::Bytes(raw)) => opened.raw = raw,
            _ => (),
        }
    }
    Ok(opened)
}

fn utf8(bytes: &[u8]) -> Result<&str, String> {
    std::str::from_utf8(bytes).map_err(|_| "proto: invalid UTF-8".into())
}

/// Reads a message of a built-in type.
///
/// # Errors
/// A sentence about what is broken, or about the first value of a wrong type.
pub(super) fn read(raw: &[u8], schema: &KindSchema) -> Result<Map<String, Value>, String> {
    let schema = schema.schema();
    let name = schema.type_name().ok_or("proto: no message for this type")?;
    let found = Message::named(name).ok_or("proto: no message for this type")?;
    let doc = message(raw, found, 0)?;
    let typed = typed::read(doc, schema);
    typed.error.map_or(Ok(typed.map), Err)
}

enum Wire<'b> {
    Varint(u64),
    Fixed64(u64),
    Bytes(&'b [u8]),
    /// A 32-bit value, which no message of the table has.
    Other,
}

/// The fields of a message, as they come.
struct Fields<'b>(&'b [u8]);

impl<'b> Fields<'b> {
    fn varint(&mut self) -> Result<u64, String> {
        let mut value = 0u64;
        for shift in (0..64).step_by(7) {
            let (byte, rest) = self.0.split_first().ok_or("unexpected EOF")?;
            self.0 = rest;
            value |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Ok(value);
            }
        }
        Err("proto: integer overflow".into())
    }

    fn take(&mut self, length: u64) -> Result<&'b [u8], String> {
        let length = usize::try_from(length).map_err(|_| "proto: integer overflow")?;
        let (taken, rest) = self.0.split_at_checked(length).ok_or("unexpected EOF")?;
        self.0 = rest;
        Ok(taken)
    }

    fn field(&mut self) -> Result<(u64, Wire<'b>), String> {
        let tag = self.varint()?;
        let wire = match tag & 7 {
            0 => Wire::Varint(self.varint()?),
            1 => Wire::Fixed64(u64::from_le_bytes(self.take(8)?.try_into().unwrap_or_default())),
            2 => {
                let length = self.varint()?;
                Wire::Bytes(self.take(length)?)
            }
            5 => self.take(4).map(|_| Wire::Other)?,
            kind => return Err(format!("proto: illegal wireType {kind}")),
        };
        Ok((tag >> 3, wire))
    }
}

impl<'b> Iterator for Fields<'b> {
    type Item = Result<(u64, Wire<'b>), String>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.0.is_empty() {
            return None;
        }
        let field = self.field();
        if field.is_err() {
            self.0 = &[];
        }
        Some(field)
    }
}

fn message(raw: &[u8], message: &'static Message, depth: usize) -> Result<Doc, String> {
    if depth > MAX_DEPTH {
        return Err("proto: exceeded max depth".into());
    }
    if let Some(doc) = special(raw, message, depth)? {
        return Ok(doc);
    }
    let mut entries: Vec<(String, Doc)> = Vec::new();
    let mut positions: HashMap<&str, usize> = HashMap::new();
    for wire in Fields(raw) {
        let (number, wire) = wire?;
        let Some(field) = message.field(number) else { continue };
        let doc = match field.shape {
            Shape::Map => map_entry(wire, field, depth)?,
            _ => value(wire, field, depth)?,
        };
        if field.name.is_empty() {
            if let Doc::Object(inner) = doc {
                entries.extend(inner);
            }
            continue;
        }
        match (positions.get(field.name).map(|at| &mut entries[*at].1), field.shape, doc) {
            (Some(Doc::Array(list)), Shape::List, doc) => list.push(doc),
            (Some(Doc::Object(map)), Shape::Map, Doc::Object(entry)) => map.extend(entry),
            (Some(slot), _, doc) => *slot = doc,
            (None, shape, doc) => {
                positions.insert(field.name, entries.len());
                let doc = if shape == Shape::List { Doc::Array(vec![doc]) } else { doc };
                entries.push((field.name.into(), doc));
            }
        }
    }
    Ok(Doc::Object(entries))
}

fn value(wire: Wire<'_>, field: &Field, depth: usize) -> Result<Doc, String> {
    Ok(match (field.of, wire) {
        (Of::Text, Wire::Bytes(text)) => Doc::String(String::from_utf8_lossy(text).into_owned()),
        (Of::Bytes, Wire::Bytes(bytes)) => Doc::String(STANDARD.encode(bytes)),
        (Of::Bool, Wire::Varint(flag)) => Doc::Bool(flag != 0),
        (Of::Int, Wire::Varint(number)) => Doc::Number((number as i64).to_string().into()),
        (Of::Double, Wire::Fixed64(bits)) => Doc::Number(f64::from_bits(bits).to_string().into()),
        (Of::Message(inner), Wire::Bytes(raw)) => message(raw, messages::at(inner), depth + 1)?,
        _ => return Err(format!("proto: wrong wireType for field {} ({})", field.number, field.name)),
    })
}

/// One entry of a map: a message of key and value.
fn map_entry(wire: Wire<'_>, field: &Field, depth: usize) -> Result<Doc, String> {
    let Wire::Bytes(raw) = wire else { return Err("proto: wrong wireType for a map".into()) };
    let mut key = String::new();
    let mut found = None;
    for part in Fields(raw) {
        match part? {
            (1, Wire::Bytes(text)) => key = String::from_utf8_lossy(text).into_owned(),
            (2, wire) => found = Some(value(wire, field, depth)?),
            _ => (),
        }
    }
    let absent = || value(Wire::Bytes(&[]), field, depth);
    Ok(Doc::Object(vec![(key, found.map_or_else(absent, Ok)?)]))
}

/// Messages whose JSON form is not an object of their fields.
fn special(raw: &[u8], message: &'static Message, depth: usize) -> Result<Option<Doc>, String> {
    let mut fields = Fields(raw);
    let doc = match message.form {
        Form::Fields => return Ok(None),
        Form::Quantity => match fields.next().transpose()? {
            Some((1, Wire::Bytes(text))) if !text.is_empty() => Doc::String(utf8(text)?.into()),
            _ => Doc::String("0".into()),
        },
        Form::Time | Form::MicroTime => time(raw, message.form == Form::MicroTime)?,
        Form::IntOrString => int_or_string(raw)?,
        Form::Raw => match fields.next().transpose()? {
            Some((1, Wire::Bytes(text))) if !text.is_empty() => json::parse(text)?,
            _ => Doc::Null,
        },
        Form::Texts => {
            let mut items = Vec::new();
            for field in fields {
                if let (1, Wire::Bytes(text)) = field? {
                    items.push(Doc::String(String::from_utf8_lossy(text).into_owned()));
                }
            }
            Doc::Array(items)
        }
        Form::SchemaOrArray | Form::SchemaOrStrings | Form::SchemaOrBool => schema_or(raw, message, depth)?,
    };
    Ok(Some(doc))
}

fn time(raw: &[u8], micro: bool) -> Result<Doc, String> {
    if raw.is_empty() {
        return Ok(Doc::Null);
    }
    let (mut seconds, mut nanos) = (0, 0);
    for field in Fields(raw) {
        match field? {
            (1, Wire::Varint(value)) => seconds = value as i64,
            (2, Wire::Varint(value)) => nanos = value as i32,
            _ => (),
        }
    }
    // Times of whole seconds keep none of the rest.
    let nanos = if micro { nanos } else { 0 };
    let time = jiff::Timestamp::new(seconds, nanos).map_err(|_| "proto: time out of range")?;
    Ok(Doc::String(if micro { format!("{time:.6}") } else { format!("{time:.0}") }))
}

fn int_or_string(raw: &[u8]) -> Result<Doc, String> {
    let (mut is_text, mut number, mut text) = (false, 0, String::new());
    for field in Fields(raw) {
        match field? {
            (1, Wire::Varint(kind)) => is_text = kind == 1,
            (2, Wire::Varint(value)) => number = value as i32,
            (3, Wire::Bytes(bytes)) => text = utf8(bytes)?.into(),
            _ => (),
        }
    }
    Ok(if is_text { Doc::String(text) } else { Doc::Number(number.to_string().into()) })
}

fn schema_or(raw: &[u8], or: &'static Message, depth: usize) -> Result<Doc, String> {
    let schema = or.beside("JSONSchemaProps").ok_or("proto: no message of schemas")?;
    let is_bool = or.form == Form::SchemaOrBool;
    let mut list = Vec::new();
    let mut allows = false;
    for field in Fields(raw) {
        match (field?, is_bool) {
            ((1, Wire::Varint(flag)), true) => allows = flag != 0,
            ((2, Wire::Bytes(raw)), true) | ((1, Wire::Bytes(raw)), false) => {
                return message(raw, schema, depth + 1);
            }
            ((2, Wire::Bytes(raw)), false) if or.form == Form::SchemaOrStrings => {
                list.push(Doc::String(utf8(raw)?.into()));
            }
            ((2, Wire::Bytes(raw)), false) => list.push(message(raw, schema, depth + 1)?),
            _ => (),
        }
    }
    Ok(if is_bool { Doc::Bool(allows) } else { Doc::Array(list) })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    /// Encodes a length-delimited field.
    fn bytes(number: u8, content: &[u8]) -> Vec<u8> {
        let mut out = vec![number << 3 | 2];
        let mut length = content.len();
        while length > 0x7f {
            out.push(length as u8 | 0x80);
            length >>= 7;
        }
        out.push(length as u8);
        out.extend_from_slice(content);
        out
    }

    fn varint(number: u8, value: u8) -> Vec<u8> {
        vec![number << 3, value]
    }

    fn pod() -> KindSchema {
        KindSchema::of_type("io.k8s.api.core.v1.Pod").unwrap()
    }

    #[test]
    fn a_pod() {
        let metadata = [
            bytes(1, b"p"),
            bytes(8, &[]),
            bytes(11, &[bytes(1, b"app"), bytes(2, b"web")].concat()),
            bytes(11, &[bytes(1, b"x"), bytes(2, b"y")].concat()),
        ]
        .concat();
        let limits = [bytes(1, b"cpu"), bytes(2, &bytes(1, b"1000m"))].concat();
        let port = [varint(1, 0), varint(2, 80)].concat();
        let probe = bytes(1, &bytes(2, &[bytes(1, b"/"), bytes(2, &port)].concat()));
        let container =
            [bytes(1, b"c"), bytes(2, b"image"), bytes(8, &bytes(1, &limits)), bytes(10, &probe)].concat();
        let volume = [bytes(1, b"v"), bytes(2, &bytes(2, &bytes(1, b"")))].concat();
        let spec = [bytes(1, &volume), bytes(2, &container), varint(4, 0), varint(11, 0)].concat();
        let raw = [bytes(1, &metadata), bytes(2, &spec)].concat();
        let map = read(&raw, &pod()).unwrap();
        assert_eq!(
            Value::Object(map),
            json!({
                "metadata": {"name": "p", "labels": {"app": "web", "x": "y"}},
                "spec": {
                    "volumes": [{"name": "v", "emptyDir": {}}],
                    "containers": [{"name": "c", "image": "image", "resources": {"limits": {"cpu": "1"}},
                                    "livenessProbe": {"httpGet": {"path": "/", "port": 80}}}],
                    "terminationGracePeriodSeconds": 0,
                }
            })
        );
    }

    #[test]
    fn envelopes() {
        let body = [&MAGIC[..], &bytes(1, &[bytes(1, b"v1"), bytes(2, b"Pod")].concat()), &bytes(2, b"raw")]
            .concat();
        let envelope = unwrap(&body).unwrap();
        assert_eq!((envelope.api_version, envelope.kind, envelope.raw), ("v1", "Pod", &b"raw"[..]));
        assert!(unwrap(b"abc").is_err() && unwrap(&[&MAGIC[..], &[0x12, 5]].concat()).is_err());
    }

    proptest! {
        #[test]
        fn never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = read(&bytes, &pod());
            let _ = unwrap(&[&MAGIC[..], &bytes].concat());
        }

        #[test]
        fn nested_garbage_never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..100)) {
            let spec = super::tests::bytes(2, &super::tests::bytes(2, &bytes));
            let _ = read(&spec, &pod());
        }
    }
}
