//! One object as the cache keeps it: encoded once, with what selectors look at beside it.

use bytes::{Bytes, BytesMut};
use serde::Deserialize;
use serde_json::Value;
use wasmk_api::{FieldSelector, LabelSelector, Object};
use wasmk_kinds::Kind;

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
    /// The whole object as JSON, `metadata.resourceVersion` included, starting with kind and apiVersion.
    pub(crate) body: Bytes,
    /// Where `"metadata"` starts in `body`: lists of built-in kinds leave out what comes before.
    item_at: u32,
    /// Its `metadata.uid`.
    pub(crate) uid: Box<str>,
    labels: Box<[(Box<str>, Box<str>)]>,
    fields: Box<[(&'static str, Box<str>)]>,
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

/// Text that is borrowed where it has no escapes.
#[derive(Deserialize)]
#[serde(transparent)]
struct Text<'a>(#[serde(borrow)] std::borrow::Cow<'a, str>);

impl Entry {
    /// Reads a value of the store. `key` is what follows the resource's prefix: `name` or `namespace/name`.
    /// `None` when the value is no object.
    pub(crate) fn read(key: &str, value: &[u8], revision: u64, reader: Reader) -> Option<Self> {
        let (namespace, name) = key.split_once('/').unwrap_or(("", key));
        let (body, item_at) = with_revision(value, revision)?;
        let (uid, labels, fields) = match reader {
            Reader::Kind(kind) if !kind.field_names().is_empty() => {
                let object = Object(serde_json::from_slice(value).ok()?);
                let labels = object.labels().map(|(k, v)| (k.into(), v.into())).collect();
                let fields = kind.fields(&object).into_iter().map(|(k, v)| (k, v.into_boxed_str())).collect();
                (object.uid().into(), labels, fields)
            }
            _ => {
                let head: Head<'_> = serde_json::from_slice(value).ok()?;
                let uid = head.metadata.uid.map_or_else(Box::default, |uid| uid.0.into());
                let pairs = head.metadata.labels.0.into_iter();
                (uid, pairs.map(|(k, v)| (k.into(), v.into())).collect(), Box::default())
            }
        };
        let (namespace, name) = (namespace.into(), name.into());
        Some(Self { namespace, name, revision, body, item_at, uid, labels, fields })
    }

    /// The same object at the revision of its deletion.
    pub(crate) fn tombstone(&self, revision: u64) -> Self {
        // The body has the present revision where every body has it.
        let at = self.item_at as usize + METADATA.len() + VERSION.len();
        let rest = &self.body[at + self.revision.to_string().len()..];
        let mut body = BytesMut::with_capacity(self.body.len() + 20);
        body.extend_from_slice(&self.body[..at]);
        body.extend_from_slice(revision.to_string().as_bytes());
        body.extend_from_slice(rest);
        Self {
            namespace: self.namespace.clone(),
            name: self.name.clone(),
            revision,
            body: body.freeze(),
            item_at: self.item_at,
            uid: self.uid.clone(),
            labels: self.labels.clone(),
            fields: self.fields.clone(),
        }
    }

    /// The object's JSON from `"metadata"` on, without the opening brace.
    pub(crate) fn item(&self) -> &[u8] {
        &self.body[self.item_at as usize..]
    }

    /// Whether it is stored in that `apiVersion`.
    pub(crate) fn is_version(&self, api_version: &str) -> bool {
        let head = &self.body[..self.item_at as usize];
        let head = head.strip_suffix(b"\",").unwrap_or(head);
        head.strip_suffix(api_version.as_bytes()).is_some_and(|rest| rest.ends_with(b"\"apiVersion\":\""))
    }

    /// The object, parsed anew.
    pub(crate) fn object(&self) -> Object {
        serde_json::from_slice(&self.body).map(Object).unwrap_or_default()
    }

    /// A label's value.
    pub(crate) fn label(&self, key: &str) -> Option<&str> {
        self.labels.iter().find(|(k, _)| &**k == key).map(|(_, v)| &**v)
    }

    /// All labels.
    pub(crate) fn labels(&self) -> impl Iterator<Item = (&str, &str)> {
        self.labels.iter().map(|(k, v)| (&**k, &**v))
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
        self.body.len() + 200
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

/// Writes an object as it is stored: kind, apiVersion and metadata first, without a resource version.
pub(crate) fn encode(object: &Object) -> Vec<u8> {
    let mut out = Vec::with_capacity(512);
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
    out
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

/// Adds the resource version to a stored value; also where its metadata starts. Values written by
/// [`encode`] are spliced, others are parsed and written again.
fn with_revision(value: &[u8], revision: u64) -> Option<(Bytes, u32)> {
    let Some(at) = spliceable(value) else {
        let object = Object(serde_json::from_slice(value).ok()?);
        let written = encode(&object);
        spliceable(&written)?;
        return with_revision(&written, revision);
    };
    let open = at + METADATA.len();
    let mut body = BytesMut::with_capacity(value.len() + 44);
    body.extend_from_slice(&value[..open]);
    body.extend_from_slice(VERSION);
    body.extend_from_slice(format!("{revision}\"").as_bytes());
    if value.get(open) != Some(&b'}') {
        body.extend_from_slice(b",");
    }
    body.extend_from_slice(&value[open..]);
    Some((body.freeze(), u32::try_from(at).ok()?))
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
            entry.body,
            r#"{"kind":"Thing","apiVersion":"v1","metadata":{"resourceVersion":"7","name":"x","uid":"u-1","labels":{"k":"v\""}},"spec":{"a":1}}"#
        );
        assert_eq!((&*entry.namespace, &*entry.name, entry.label("k")), ("ns", "x", Some("v\"")));
        assert!(entry.item().starts_with(b"\"metadata\""));
        assert!(entry.is_version("v1") && !entry.is_version("1"));
        assert_eq!(&*entry.uid, "u-1");
        let gone = entry.tombstone(1234);
        assert_eq!((gone.revision, gone.object().resource_version()), (1234, "1234"));
        assert_eq!(gone.tombstone(7).body, entry.body);
        let parsed =
            Entry::read("ns/x", &encode(&object), 7, Reader::Kind(wasmk_kinds::kind("", "Pod"))).unwrap();
        assert_eq!((&*parsed.uid, &parsed.body), ("u-1", &entry.body));
    }

    #[test]
    fn foreign_values_are_written_anew_and_garbage_is_refused() {
        let entry =
            Entry::read("x", br#"{"metadata":{},"kind":"A","apiVersion":"v1"}"#, 1, Reader::Plain).unwrap();
        assert_eq!(entry.body, r#"{"kind":"A","apiVersion":"v1","metadata":{"resourceVersion":"1"}}"#);
        assert!(Entry::read("x", b"[1]", 1, Reader::Plain).is_none());
    }
}
