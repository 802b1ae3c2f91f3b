//! One object as the cache keeps it: the very bytes of the store, with what selectors look at beside them.
//!
//! The store's value says everything but the revision, which is put in its place whenever the object is written out:
//! store and cache, and the past that each of them remembers, hold one copy of an object between them.

use bytes::{BufMut, Bytes};
use serde::Deserialize;
use serde_json::Value;
use wasmk_api::{FieldSelector, LabelSelector, Object};
use wasmk_kinds::Kind;

use super::outline::{Text, outline};

/// How the cache reads objects of one resource.
#[derive(Clone, Copy)]
pub(crate) enum Reader {
    /// A built-in kind, with its selectable fields.
    Kind(&'static dyn Kind),
    /// A kind nothing is known about: only labels and names can be selected by.
    Plain,
}

/// An object of the store in the form answers are made of.
#[derive(Debug)]
pub(crate) struct Entry {
    /// The namespace, empty for cluster-scoped objects.
    pub(crate) namespace: Box<str>,
    /// The name.
    pub(crate) name: Box<str>,
    /// The revision of its last change: its `resourceVersion`.
    pub(crate) revision: u64,
    /// The object as JSON without `metadata.resourceVersion`, starting with kind and apiVersion.
    value: Bytes,
    /// Where `"metadata"` starts in `value`: lists of built-in kinds leave out what comes before.
    item_at: u32,
    uid: Piece,
    labels: Box<[(Piece, Piece)]>,
    /// What pieces are about that does not stand in `value` as it is.
    aside: Box<str>,
    fields: Box<[(&'static str, Box<str>)]>,
}

/// A text within an entry's value, or behind its end in what stands aside.
#[derive(Clone, Copy, Debug, Default)]
struct Piece {
    at: u32,
    length: u32,
}

/// Makes pieces of texts.
struct Pieces<'a> {
    value: &'a Bytes,
    aside: String,
}

impl Pieces<'_> {
    fn piece(&mut self, text: &str) -> Piece {
        let within = (text.as_ptr() as usize).wrapping_sub(self.value.as_ptr() as usize);
        let at = if within < self.value.len() {
            within
        } else {
            self.aside.push_str(text);
            self.value.len() + self.aside.len() - text.len()
        };
        // The store takes no values that come near 4 GiB.
        let number = |n| u32::try_from(n).unwrap_or(u32::MAX);
        Piece { at: number(at), length: number(text.len()) }
    }
}

#[derive(Deserialize)]
struct Head<'a> {
    #[serde(borrow, default)]
    metadata: Meta<'a>,
}

#[derive(Default, Deserialize)]
struct Meta<'a> {
    #[serde(borrow, default)]
    labels: Labels<'a>,
    #[serde(borrow, default)]
    uid: Option<Text<'a>>,
}

#[derive(Default)]
struct Labels<'a>(Vec<(std::borrow::Cow<'a, str>, std::borrow::Cow<'a, str>)>);

impl<'de: 'a, 'a> Deserialize<'de> for Labels<'a> {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Pairs;
        impl<'de> serde::de::Visitor<'de> for Pairs {
            type Value = Labels<'de>;
            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("labels")
            }
            fn visit_unit<E>(self) -> Result<Labels<'de>, E> {
                Ok(Labels::default())
            }
            fn visit_map<A: serde::de::MapAccess<'de>>(self, mut map: A) -> Result<Labels<'de>, A::Error> {
                let mut all = Vec::new();
                while let Some(pair) = map.next_entry::<Text<'de>, Text<'de>>()? {
                    all.push((pair.0.0, pair.1.0));
                }
                Ok(Labels(all))
            }
        }
        deserializer.deserialize_any(Pairs)
    }
}

impl Entry {
    /// Reads a value of the store. `key` is what follows the resource's prefix: `name` or `namespace/name`.
    /// `None` when the value is no object.
    pub(crate) fn read(key: &str, value: &Bytes, revision: u64, reader: Reader) -> Option<Self> {
        let (namespace, name) = key.split_once('/').unwrap_or(("", key));
        let (value, item_at) = written_by_us(value)?;
        let mut pieces = Pieces { value: &value, aside: String::new() };
        let Head { metadata: Meta { labels, uid } } = serde_json::from_slice(&value).ok()?;
        let labels = labels.0.iter().map(|(key, text)| (pieces.piece(key), pieces.piece(text))).collect();
        let uid = pieces.piece(uid.as_ref().map_or("", |uid| &uid.0));
        let fields = match reader {
            Reader::Kind(kind) if !kind.field_names().is_empty() => {
                let fields = kind.fields(&outline(&value).ok()?);
                fields.into_iter().map(|(name, text)| (name, text.into_boxed_str())).collect()
            }
            _ => Box::default(),
        };
        let (namespace, name, aside) = (namespace.into(), name.into(), pieces.aside.into_boxed_str());
        Some(Self { namespace, name, revision, value, item_at, uid, labels, aside, fields })
    }

    /// The same object at the revision of its deletion.
    pub(crate) fn tombstone(&self, revision: u64) -> Self {
        Self {
            namespace: self.namespace.clone(),
            name: self.name.clone(),
            revision,
            value: self.value.clone(),
            item_at: self.item_at,
            uid: self.uid,
            labels: self.labels.clone(),
            aside: self.aside.clone(),
            fields: self.fields.clone(),
        }
    }

    /// Writes the whole object as JSON, with its revision as the first field of its metadata.
    pub(crate) fn write(&self, out: &mut impl BufMut) {
        self.write_from(0, out);
    }

    /// Writes the object's JSON from `"metadata"` on, without the opening brace.
    pub(crate) fn write_item(&self, out: &mut impl BufMut) {
        self.write_from(self.item_at as usize, out);
    }

    fn write_from(&self, start: usize, out: &mut impl BufMut) {
        let open = self.item_at as usize + METADATA.len();
        out.put_slice(&self.value[start..open]);
        out.put_slice(VERSION);
        out.put_slice(itoa::Buffer::new().format(self.revision).as_bytes());
        // What follows is the next field, or the end.
        out.put_slice(if self.value.get(open) == Some(&b'}') { b"\"" } else { b"\"," });
        out.put_slice(&self.value[open..]);
    }

    /// The whole object as JSON.
    pub(crate) fn body(&self) -> Bytes {
        let mut out = Vec::with_capacity(self.length());
        self.write(&mut out);
        out.into()
    }

    /// At most so many bytes is the whole object as JSON.
    pub(crate) fn length(&self) -> usize {
        self.value.len() + VERSION.len() + MAX_DIGITS + 2
    }

    /// The object as it is stored: the whole of it but for its revision.
    pub(crate) fn stored(&self) -> &Bytes {
        &self.value
    }

    /// Whether it is stored in that `apiVersion`.
    pub(crate) fn is_version(&self, api_version: &str) -> bool {
        let head = &self.value[..self.item_at as usize];
        let head = head.strip_suffix(b"\",").unwrap_or(head);
        head.strip_suffix(api_version.as_bytes()).is_some_and(|rest| rest.ends_with(b"\"apiVersion\":\""))
    }

    /// The object, parsed anew.
    pub(crate) fn object(&self) -> Object {
        serde_json::from_slice(&self.body()).map(Object).unwrap_or_default()
    }

    /// The object's kind and metadata, parsed anew: these are the same in all of its versions.
    pub(crate) fn head(&self) -> Object {
        #[derive(Deserialize)]
        struct Head {
            kind: Value,
            metadata: Value,
        }
        let body = self.body();
        let Ok(head) = serde_json::from_slice::<Head>(&body) else { return Object::default() };
        let pairs = [("kind", head.kind), ("metadata", head.metadata)];
        Object(pairs.into_iter().map(|(key, value)| (key.to_owned(), value)).collect())
    }

    fn bytes(&self, piece: Piece) -> &[u8] {
        let (at, length) = (piece.at as usize, piece.length as usize);
        let (of, at) = match at.checked_sub(self.value.len()) {
            Some(at) => (self.aside.as_bytes(), at),
            None => (&self.value[..], at),
        };
        of.get(at..at + length).unwrap_or_default()
    }

    fn text(&self, piece: Piece) -> &str {
        // It was text when it was read.
        std::str::from_utf8(self.bytes(piece)).unwrap_or_default()
    }

    /// Its `metadata.uid`.
    pub(crate) fn uid(&self) -> &str {
        self.text(self.uid)
    }

    /// A label's value.
    pub(crate) fn label(&self, key: &str) -> Option<&str> {
        let found = self.labels.iter().find(|(k, _)| self.bytes(*k) == key.as_bytes());
        found.map(|(_, value)| self.text(*value))
    }

    /// All labels.
    pub(crate) fn labels(&self) -> impl Iterator<Item = (&str, &str)> {
        self.labels.iter().map(|(key, value)| (self.text(*key), self.text(*value)))
    }

    /// A selectable field's value.
    pub(crate) fn field(&self, name: &str) -> Option<&str> {
        match name {
            "metadata.name" => Some(&self.name),
            "metadata.namespace" => Some(&self.namespace),
            _ => self.fields.iter().find(|(k, _)| *k == name).map(|(_, v)| &**v),
        }
    }

    /// Bytes it takes, roughly.
    pub(crate) fn size(&self) -> usize {
        self.value.len() + 200
    }
}

/// What a list or watch selects by.
#[derive(Clone, Debug, Default)]
pub(crate) struct Filter {
    /// Only this namespace; empty for all.
    pub(crate) namespace: String,
    /// Conditions on labels.
    pub(crate) labels: LabelSelector,
    /// Conditions on fields.
    pub(crate) fields: FieldSelector,
    /// Fields of a custom resource that must be looked up in the object: name and path.
    pub(crate) custom: Vec<(String, Vec<String>)>,
}

impl Filter {
    /// Whether an object is selected.
    pub(crate) fn matches(&self, entry: &Entry) -> bool {
        if !self.namespace.is_empty() && *self.namespace != *entry.namespace {
            return false;
        }
        if !self.labels.is_empty() && !self.labels.matches_with(|key| entry.label(key)) {
            return false;
        }
        if self.custom.is_empty() {
            return self.fields.matches_with(|name| entry.field(name));
        }
        let object = entry.object();
        let values: Vec<(&str, String)> =
            self.custom.iter().map(|(n, p)| (n.as_str(), field_text(&object, p))).collect();
        self.fields.matches_with(|name| {
            values.iter().find(|(n, _)| *n == name).map(|(_, v)| v.as_str()).or_else(|| entry.field(name))
        })
    }

    /// The one name that can match, if the selector names one.
    pub(crate) fn single_name(&self) -> Option<&str> {
        self.fields.required("metadata.name")
    }
}

fn field_text(object: &Object, path: &[String]) -> String {
    let keys: Vec<&str> = path.iter().map(String::as_str).collect();
    match object.at(&keys) {
        Some(Value::String(text)) => text.clone(),
        Some(Value::Bool(flag)) => flag.to_string(),
        Some(Value::Number(number)) => number.to_string(),
        _ => String::new(),
    }
}

const METADATA: &[u8] = b"\"metadata\":{";
/// What stands before the revision, as the first field of the metadata.
const VERSION: &[u8] = b"\"resourceVersion\":\"";
/// Digits of a revision at most.
const MAX_DIGITS: usize = 20;
/// What most objects stay below when they are written, in bytes.
const USUAL: usize = 4096;

/// Writes an object as it is stored: kind, apiVersion and metadata first, without a resource version.
/// What is returned takes no more memory than it has bytes: it is kept.
pub(crate) fn encode(object: &Object) -> Bytes {
    let mut out = Vec::with_capacity(USUAL);
    out.extend_from_slice(b"{\"kind\":");
    write(&mut out, &object.kind());
    out.extend_from_slice(b",\"apiVersion\":");
    write(&mut out, &object.api_version());
    out.extend_from_slice(b",\"metadata\":{");
    let mut first = true;
    for (key, value) in object.metadata().into_iter().flatten() {
        if key == "resourceVersion" || value.is_null() {
            continue;
        }
        pair(&mut out, &mut first, key, value);
    }
    out.push(b'}');
    first = false;
    for (key, value) in &object.0 {
        if !matches!(key.as_str(), "kind" | "apiVersion" | "metadata") {
            pair(&mut out, &mut first, key, value);
        }
    }
    out.push(b'}');
    Bytes::copy_from_slice(&out)
}

fn pair(out: &mut Vec<u8>, first: &mut bool, key: &str, value: &Value) {
    if !std::mem::take(first) {
        out.push(b',');
    }
    write(out, &key);
    out.push(b':');
    write(out, value);
}

fn write(out: &mut Vec<u8>, value: &impl serde::Serialize) {
    // Writing JSON values into memory cannot fail.
    let _ = serde_json::to_writer(out, value);
}

/// A stored value with where its metadata starts. One that is not of [`encode`]'s form is brought to it.
fn written_by_us(value: &Bytes) -> Option<(Bytes, u32)> {
    if let Some(at) = spliceable(value) {
        return Some((value.clone(), u32::try_from(at).ok()?));
    }
    let written = encode(&Object(serde_json::from_slice(value).ok()?));
    let at = spliceable(&written)?;
    Some((written, u32::try_from(at).ok()?))
}

/// Where `"metadata":{` starts when the value begins with kind and apiVersion, which hold no quotes.
fn spliceable(value: &[u8]) -> Option<usize> {
    let rest = value.strip_prefix(b"{\"kind\":\"")?;
    let kind = rest.iter().position(|b| *b == b'"')?;
    let rest = rest[kind..].strip_prefix(b"\",\"apiVersion\":\"")?;
    let version = rest.iter().position(|b| *b == b'"')?;
    let rest = rest[version..].strip_prefix(b"\",")?;
    rest.starts_with(METADATA).then(|| value.len() - rest.len())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_resource_version_is_spliced_in() {
        let object = Object::from_value(json!({
            "spec": {"a": 1}, "apiVersion": "v1", "kind": "Thing",
            "metadata": {"name": "x", "uid": "u-1", "labels": {"k": "v\""}},
        }))
        .unwrap();
        let entry = Entry::read("ns/x", &encode(&object), 7, Reader::Plain).unwrap();
        assert_eq!(
            entry.body(),
            r#"{"kind":"Thing","apiVersion":"v1","metadata":{"resourceVersion":"7","name":"x","uid":"u-1","labels":{"k":"v\""}},"spec":{"a":1}}"#
        );
        assert_eq!((&*entry.namespace, &*entry.name, entry.label("k")), ("ns", "x", Some("v\"")));
        let mut item = Vec::new();
        entry.write_item(&mut item);
        assert!(item.starts_with(b"\"metadata\":{\"resourceVersion\":\"7\""));
        assert!(entry.body().len() <= entry.length());
        assert!(entry.is_version("v1") && !entry.is_version("1"));
        assert_eq!(entry.uid(), "u-1");
        let gone = entry.tombstone(1234);
        assert_eq!((gone.revision, gone.object().resource_version()), (1234, "1234"));
        assert_eq!(gone.tombstone(7).body(), entry.body());
        let parsed =
            Entry::read("ns/x", &encode(&object), 7, Reader::Kind(wasmk_kinds::kind("", "Pod"))).unwrap();
        assert_eq!((parsed.uid(), parsed.body()), ("u-1", entry.body()));
        assert_eq!(parsed.labels().collect::<Vec<_>>(), entry.labels().collect::<Vec<_>>());
    }

    #[test]
    fn foreign_values_are_written_anew_and_garbage_is_refused() {
        let entry =
            Entry::read("x", &r#"{"metadata":{},"kind":"A","apiVersion":"v1"}"#.into(), 1, Reader::Plain)
                .unwrap();
        assert_eq!(entry.body(), r#"{"kind":"A","apiVersion":"v1","metadata":{"resourceVersion":"1"}}"#);
        assert!(Entry::read("x", &"[1]".into(), 1, Reader::Plain).is_none());
    }

    #[test]
    fn an_object_is_held_once_by_store_and_cache() {
        let labels = json!({"serving.knative.dev/service": "hello", "app": "x"});
        let object =
            json!({"kind": "T", "apiVersion": "v1", "metadata": {"name": "x", "uid": "u", "labels": labels}});
        let value = encode(&Object::from_value(object).unwrap());
        let entry = Entry::read("ns/x", &value, u64::MAX, Reader::Plain).unwrap();
        let gone = entry.tombstone(9);
        assert!([&entry, &gone].iter().all(|e| std::ptr::eq(e.stored().as_ptr(), value.as_ptr())));
        assert!(entry.aside.is_empty(), "labels and uid stand in the value");
        assert_eq!(
            (entry.label("app"), entry.object().resource_version()),
            (Some("x"), "18446744073709551615")
        );
    }
}
