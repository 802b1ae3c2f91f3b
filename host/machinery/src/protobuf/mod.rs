//! Writes objects as Kubernetes' protobuf: an envelope with the kind, and a message whose fields a table gives
//! numbers to. JSON goes in as it is read, so that nothing is built in between; `decode` reads what is written
//! here.

pub(crate) mod messages;
pub(crate) mod write;

use serde::{
    Deserializer,
    de::{DeserializeSeed, Error as _},
};
use serde_json::Value;
use wasmk_api::Gvk;

use crate::schema::KindSchema;
use messages::Message;

/// What every body begins with.
pub(crate) const MAGIC: [u8; 4] = *b"k8s\0";
const META: &str = "io.k8s.apimachinery.pkg.apis.meta.v1";

/// The message of a kind; cheap to copy.
#[derive(Clone, Copy, Debug)]
pub struct Type(&'static Message);

impl Type {
    /// The message of a kind of Kubernetes; none for custom resources and tables.
    pub fn of(gvk: &Gvk) -> Option<Self> {
        if gvk.group == "meta.k8s.io" {
            return match &*gvk.kind {
                "PartialObjectMetadata" | "PartialObjectMetadataList" => Self::meta(&gvk.kind),
                _ => None,
            };
        }
        Message::named(KindSchema::built_in(gvk)?.schema().type_name()?).map(Self)
    }

    fn meta(name: &str) -> Option<Self> {
        Message::named(&format!("{META}.{name}")).map(Self)
    }

    /// Writes an object's message, without an envelope. Fields the message does not have are left out.
    ///
    /// # Errors
    /// When the object is broken or a value is of another type than the field.
    pub fn write<'de, D: Deserializer<'de>>(self, object: D, out: &mut Vec<u8>) -> Result<(), D::Error> {
        write::Fields { message: self.0, out }.deserialize(object)
    }

    fn write_json(self, json: &[u8], out: &mut Vec<u8>) -> serde_json::Result<()> {
        self.write(&mut serde_json::Deserializer::from_slice(json), out)
    }
}

/// An object in its envelope.
///
/// # Errors
/// When the JSON is broken or a value is of another type than the field.
pub fn object(gvk: &Gvk, of: Type, json: &[u8]) -> serde_json::Result<Vec<u8>> {
    let mut out = Vec::with_capacity(json.len());
    envelope(&mut out, gvk, |out| of.write_json(json, out))?;
    Ok(out)
}

/// The same of a JSON value, which says itself what kind it is.
///
/// # Errors
/// When there is no message for its kind, or a value is of another type than the field.
pub fn value(value: &Value) -> serde_json::Result<Vec<u8>> {
    let text = |key: &str| value.get(key).and_then(Value::as_str).unwrap_or("");
    let gvk = wasmk_api::GroupVersion::parse(text("apiVersion")).map(|gv| gv.kind(text("kind")));
    let found = gvk.and_then(|gvk| Some((Type::of(&gvk)?, gvk)));
    let Some((of, gvk)) = found else {
        let (kind, version) = (text("kind"), text("apiVersion"));
        return Err(serde_json::Error::custom(format!("there is no message for {kind} of {version}")));
    };
    let mut out = Vec::new();
    envelope(&mut out, &gvk, |out| of.write(value, out))?;
    Ok(out)
}

/// A list in its envelope. `list` is the kind of the list, `metadata` the list's, `items` whole objects.
///
/// # Errors
/// When an item is broken, or a value is of another type than the field.
pub fn list(
    list: &Gvk,
    metadata: &Value,
    item: Type,
    items: impl Iterator<Item = impl AsRef<[u8]>>,
) -> serde_json::Result<Vec<u8>> {
    let mut out = Vec::new();
    envelope(&mut out, list, |out| {
        if let Some(meta) = Type::meta("ListMeta") {
            write::nested(out, 1, |out| meta.write(metadata, out))?;
        }
        for json in items {
            write::nested(out, 2, |out| item.write_json(json.as_ref(), out))?;
        }
        Ok(())
    })?;
    Ok(out)
}

/// A change as a stream of them has it: its length in four bytes, then a message of the word for the change and
/// the object, which is in its envelope.
pub fn event(word: &str, object: &[u8]) -> Vec<u8> {
    let mut out = vec![0; 4];
    write::bytes(&mut out, 1, word.as_bytes());
    let raw = |out: &mut Vec<u8>| {
        write::bytes(out, 1, object);
        Ok::<_, std::convert::Infallible>(())
    };
    // Writing bytes into memory cannot fail.
    let _ = write::nested(&mut out, 2, raw);
    let length = u32::try_from(out.len() - 4).unwrap_or(u32::MAX);
    out[..4].copy_from_slice(&length.to_be_bytes());
    out
}

fn envelope<E>(
    out: &mut Vec<u8>,
    gvk: &Gvk,
    message: impl FnOnce(&mut Vec<u8>) -> Result<(), E>,
) -> Result<(), E> {
    out.extend_from_slice(&MAGIC);
    write::nested(out, 1, |out| {
        write::bytes(out, 1, gvk.api_version().as_bytes());
        write::bytes(out, 2, gvk.kind.as_bytes());
        Ok(())
    })?;
    write::nested(out, 2, message)?;
    // How the message is packed: not at all. Kubernetes writes both texts always.
    write::bytes(out, 3, b"");
    write::bytes(out, 4, b"");
    Ok(())
}
