//! The walk over a JSON value that writes its message: a visitor for each shape a value has in the table.

use std::fmt;

use base64::{Engine, engine::general_purpose::STANDARD};
use serde::{
    Deserialize,
    de::{
        DeserializeSeed, Deserializer, Error, IgnoredAny, MapAccess, SeqAccess, Visitor,
        value::{MapAccessDeserializer, SeqAccessDeserializer},
    },
};
use serde_json::Value;

use super::messages::{self, Field, Form, Message, Of, Shape};

/// Kinds of wire format.
const VARINT: u32 = 0;
const FIXED: u32 = 1;
const BYTES: u32 = 2;

/// Writes a number, seven bits a byte.
pub(crate) fn varint(out: &mut Vec<u8>, mut value: u64) {
    while value > 0x7f {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

/// Writes what a field begins with.
pub(crate) fn key(out: &mut Vec<u8>, number: u32, wire: u32) {
    varint(out, u64::from(number << 3 | wire));
}

fn int(out: &mut Vec<u8>, number: u32, value: i64) {
    key(out, number, VARINT);
    varint(out, value as u64);
}

/// Writes a field of text or bytes.
pub(crate) fn bytes(out: &mut Vec<u8>, number: u32, content: &[u8]) {
    key(out, number, BYTES);
    varint(out, content.len() as u64);
    out.extend_from_slice(content);
}

/// Writes a field of a message that `content` writes.
///
/// # Errors
/// Those of `content`.
pub(super) fn nested<E>(
    out: &mut Vec<u8>,
    number: u32,
    content: impl FnOnce(&mut Vec<u8>) -> Result<(), E>,
) -> Result<(), E> {
    key(out, number, BYTES);
    let at = out.len();
    // Most messages are short: room for one byte of length, more is made when it is needed.
    out.push(0);
    content(out)?;
    let length = out.len() - at - 1;
    if length <= 0x7f {
        out[at] = length as u8;
        return Ok(());
    }
    let mut spelled = Vec::with_capacity(5);
    varint(&mut spelled, length as u64);
    out.splice(at..=at, spelled);
    Ok(())
}

/// The fields of a message, from an object.
pub(super) struct Fields<'o> {
    pub(super) message: &'static Message,
    pub(super) out: &'o mut Vec<u8>,
}

impl<'de> DeserializeSeed<'de> for Fields<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for Fields<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<(), A::Error> {
        fields(self.message, map, self.out)
    }
}

/// Messages whose fields are the parent's own in JSON, gathered until all fields were seen.
#[derive(Default)]
struct Inlined {
    own: Vec<u8>,
    inner: Vec<(u32, Inlined)>,
}

impl Inlined {
    fn within(&mut self, numbers: &[u32]) -> &mut Vec<u8> {
        let Some((number, rest)) = numbers.split_first() else { return &mut self.own };
        let at = self.inner.iter().position(|(known, _)| known == number).unwrap_or_else(|| {
            self.inner.push((*number, Self::default()));
            self.inner.len() - 1
        });
        self.inner[at].1.within(rest)
    }

    fn write(self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.own);
        for (number, inner) in self.inner {
            let mut content = Vec::new();
            inner.write(&mut content);
            bytes(out, number, &content);
        }
    }
}

fn fields<'de, A: MapAccess<'de>>(
    message: &'static Message,
    mut map: A,
    out: &mut Vec<u8>,
) -> Result<(), A::Error> {
    let mut inlined = Inlined::default();
    while let Some(place) = map.next_key_seed(PlaceOf(message))? {
        match place {
            None => drop(map.next_value::<IgnoredAny>()?),
            Some(place) if place.within.is_empty() => {
                map.next_value_seed(Whole { field: &place.field, out })?;
            }
            Some(place) => {
                let out = inlined.within(&place.within);
                map.next_value_seed(Whole { field: &place.field, out })?;
            }
        }
    }
    inlined.write(out);
    Ok(())
}

/// Finds the place of a field by its name.
struct PlaceOf(&'static Message);

impl<'de> DeserializeSeed<'de> for PlaceOf {
    type Value = Option<&'static messages::Place>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_str(self)
    }
}

impl Visitor<'_> for PlaceOf {
    type Value = Option<&'static messages::Place>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a field's name")
    }

    fn visit_str<E: Error>(self, name: &str) -> Result<Self::Value, E> {
        Ok(self.0.place(name))
    }
}

/// All of a field: one value, a list or a map.
struct Whole<'o> {
    field: &'static Field,
    out: &'o mut Vec<u8>,
}

impl<'de> DeserializeSeed<'de> for Whole<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        let Self { field, out } = self;
        match field.shape {
            Shape::Single => One { number: field.number, of: field.of, out }.deserialize(deserializer),
            Shape::List | Shape::Map => deserializer.deserialize_any(Whole { field, out }),
        }
    }
}

impl<'de> Visitor<'de> for Whole<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let what = if self.field.shape == Shape::List { "a list" } else { "a map" };
        write!(f, "{what} for {}", self.field.name)
    }

    fn visit_unit<E>(self) -> Result<(), E> {
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<(), A::Error> {
        let Field { number, of, shape, .. } = *self.field;
        if shape != Shape::List {
            return Err(A::Error::custom(format!("a list is no map for {}", self.field.name)));
        }
        while items.next_element_seed(One { number, of, out: &mut *self.out })?.is_some() {}
        Ok(())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        let Field { number, of, shape, .. } = *self.field;
        if shape != Shape::Map {
            return Err(A::Error::custom(format!("a map is no list for {}", self.field.name)));
        }
        while let Some(name) = map.next_key::<String>()? {
            nested(self.out, number, |out| {
                bytes(out, 1, name.as_bytes());
                map.next_value_seed(One { number: 2, of, out })
            })?;
        }
        Ok(())
    }
}

/// One value of a field; null is none.
struct One<'o> {
    number: u32,
    of: Of,
    out: &'o mut Vec<u8>,
}

impl One<'_> {
    fn wrong<E: Error>(&self, what: &str) -> E {
        E::custom(format!("{what} cannot be written as {:?}", self.of))
    }

    /// How the message looks in JSON, if it is one.
    fn form(&self) -> Option<Form> {
        match self.of {
            Of::Message(inner) => Some(messages::at(inner).form),
            _ => None,
        }
    }

    /// Writes a message of one field with bytes.
    fn wrap(self, content: &[u8]) {
        let mut inner = Vec::with_capacity(content.len() + 6);
        bytes(&mut inner, 1, content);
        bytes(self.out, self.number, &inner);
    }

    /// Writes any JSON as it is.
    fn raw<E: Error>(self, value: &Value) -> Result<(), E> {
        self.wrap(&serde_json::to_vec(value).map_err(E::custom)?);
        Ok(())
    }

    fn number<E: Error>(self, value: i64) -> Result<(), E> {
        match (self.of, self.form()) {
            (Of::Int, _) => int(self.out, self.number, value),
            (Of::Double, _) => self.double(value as f64),
            (_, Some(Form::IntOrString)) => int_or_string(self.out, self.number, value, None),
            (_, Some(Form::Quantity)) => self.wrap(value.to_string().as_bytes()),
            (_, Some(Form::Raw)) => return self.raw(&value.into()),
            _ => return Err(self.wrong("a whole number")),
        }
        Ok(())
    }

    fn double(self, value: f64) {
        key(self.out, self.number, FIXED);
        self.out.extend_from_slice(&value.to_bits().to_le_bytes());
    }

    /// The schema that stands in a field where there could be something else.
    fn schema<'de, A: MapAccess<'de>>(self, or: &'static Message, map: A) -> Result<(), A::Error> {
        let schema = or.beside("JSONSchemaProps").ok_or_else(|| self.wrong("a schema"))?;
        let is_bool = or.form == Form::SchemaOrBool;
        nested(self.out, self.number, |out| {
            if is_bool {
                int(out, 1, 1);
            }
            nested(out, if is_bool { 2 } else { 1 }, |out| fields(schema, map, out))
        })
    }
}

/// A number, or text where there is any, even empty.
fn int_or_string(out: &mut Vec<u8>, number: u32, value: i64, text: Option<&str>) {
    let mut inner = Vec::with_capacity(text.map_or(0, str::len) + 8);
    int(&mut inner, 1, text.is_some().into());
    int(&mut inner, 2, value);
    bytes(&mut inner, 3, text.unwrap_or("").as_bytes());
    bytes(out, number, &inner);
}

/// A time as seconds and billionths.
fn time(out: &mut Vec<u8>, number: u32, time: jiff::Timestamp) {
    let nanos = time.as_nanosecond();
    let (seconds, rest) = (nanos.div_euclid(1_000_000_000), nanos.rem_euclid(1_000_000_000));
    let mut inner = Vec::with_capacity(12);
    int(&mut inner, 1, i64::try_from(seconds).unwrap_or(i64::MAX));
    int(&mut inner, 2, i64::try_from(rest).unwrap_or(0));
    bytes(out, number, &inner);
}

impl<'de> DeserializeSeed<'de> for One<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for One<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.of)
    }

    fn visit_unit<E: Error>(self) -> Result<(), E> {
        Ok(())
    }

    fn visit_bool<E: Error>(self, flag: bool) -> Result<(), E> {
        match (self.of, self.form()) {
            (Of::Bool, _) => int(self.out, self.number, flag.into()),
            (_, Some(Form::SchemaOrBool)) => {
                let mut inner = Vec::new();
                int(&mut inner, 1, flag.into());
                bytes(self.out, self.number, &inner);
            }
            (_, Some(Form::Raw)) => return self.raw(&flag.into()),
            _ => return Err(self.wrong("a boolean")),
        }
        Ok(())
    }

    fn visit_i64<E: Error>(self, value: i64) -> Result<(), E> {
        self.number(value)
    }

    fn visit_u64<E: Error>(self, value: u64) -> Result<(), E> {
        match i64::try_from(value) {
            Ok(value) => self.number(value),
            Err(_) => self.visit_f64(value as f64),
        }
    }

    fn visit_f64<E: Error>(self, value: f64) -> Result<(), E> {
        match (self.of, self.form()) {
            (Of::Double, _) => self.double(value),
            (_, Some(Form::Quantity)) => self.wrap(value.to_string().as_bytes()),
            (_, Some(Form::Raw)) => return self.raw(&value.into()),
            _ => return Err(self.wrong("a number")),
        }
        Ok(())
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<(), E> {
        match (self.of, self.form()) {
            (Of::Text, _) => bytes(self.out, self.number, text.as_bytes()),
            (Of::Bytes, _) => {
                let content = STANDARD.decode(text).map_err(E::custom)?;
                bytes(self.out, self.number, &content);
            }
            (_, Some(Form::Quantity)) => self.wrap(text.as_bytes()),
            (_, Some(Form::IntOrString)) => int_or_string(self.out, self.number, 0, Some(text)),
            (_, Some(Form::Time | Form::MicroTime)) => {
                time(self.out, self.number, text.parse().map_err(E::custom)?);
            }
            (_, Some(Form::Raw)) => return self.raw(&text.into()),
            _ => return Err(self.wrong("text")),
        }
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<(), A::Error> {
        let Of::Message(inner) = self.of else { return Err(self.wrong("a list")) };
        let message = messages::at(inner);
        match message.form {
            Form::Raw => {
                let value = Value::deserialize(SeqAccessDeserializer::new(items))?;
                self.raw(&value)
            }
            Form::Texts | Form::SchemaOrStrings => nested(self.out, self.number, |out| {
                let number = if message.form == Form::Texts { 1 } else { 2 };
                while items.next_element_seed(One { number, of: Of::Text, out: &mut *out })?.is_some() {}
                Ok(())
            }),
            Form::SchemaOrArray => {
                let schema = message.beside("JSONSchemaProps").ok_or_else(|| self.wrong("schemas"))?;
                nested(self.out, self.number, |out| {
                    while items.next_element_seed(Item { message: schema, out: &mut *out })?.is_some() {}
                    Ok(())
                })
            }
            _ => Err(self.wrong("a list")),
        }
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<(), A::Error> {
        let Of::Message(inner) = self.of else { return Err(self.wrong("an object")) };
        let message = messages::at(inner);
        match message.form {
            Form::Fields => nested(self.out, self.number, |out| fields(message, map, out)),
            Form::Raw => {
                let value = Value::deserialize(MapAccessDeserializer::new(map))?;
                self.raw(&value)
            }
            Form::SchemaOrArray | Form::SchemaOrStrings | Form::SchemaOrBool => self.schema(message, map),
            _ => Err(self.wrong("an object")),
        }
    }
}

/// A schema of a list of them.
struct Item<'o> {
    message: &'static Message,
    out: &'o mut Vec<u8>,
}

impl<'de> DeserializeSeed<'de> for Item<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        let message = self.message;
        nested(self.out, 2, |out| Fields { message, out }.deserialize(deserializer))
    }
}
