//! One API object as JSON.

use serde::{Deserialize, Serialize, de::DeserializeOwned};
use serde_json::{Map, Value, json};

use crate::{GroupVersion, Gvk};

/// An API object: a JSON map that keeps every field it was given, in order.
///
/// The accessors read `metadata` leniently (a missing or ill-typed field reads as
/// absent); strictness is the decoder's task, before an `Object` is stored.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Object(pub Map<String, Value>);

impl Object {
    /// An object of that kind with no other field.
    pub fn new(gvk: &Gvk) -> Self {
        let mut map = Map::new();
        map.insert("kind".into(), gvk.kind.clone().into());
        map.insert("apiVersion".into(), gvk.api_version().into());
        map.insert("metadata".into(), json!({}));
        Self(map)
    }

    /// The object of a JSON value; `None` when it is no map.
    pub fn from_value(value: Value) -> Option<Self> {
        match value {
            Value::Object(map) => Some(Self(map)),
            _ => None,
        }
    }

    /// Any serializable object, for instance a struct of [`k8s_openapi`].
    ///
    /// # Errors
    /// When it does not serialize to a JSON map.
    pub fn of<T: Serialize>(typed: &T) -> serde_json::Result<Self> {
        serde_json::from_value(serde_json::to_value(typed)?)
    }

    /// Reads it as a typed struct.
    ///
    /// # Errors
    /// When a field does not have the type that the struct wants.
    pub fn typed<T: DeserializeOwned>(&self) -> serde_json::Result<T> {
        T::deserialize(&Value::Object(self.0.clone()))
    }

    /// The object as a JSON value.
    pub fn into_value(self) -> Value {
        Value::Object(self.0)
    }

    /// `kind`, or empty.
    pub fn kind(&self) -> &str {
        self.text("kind")
    }

    /// `apiVersion`, or empty.
    pub fn api_version(&self) -> &str {
        self.text("apiVersion")
    }

    /// Group, version and kind; `None` when `apiVersion` is not of the form `group/version`.
    pub fn gvk(&self) -> Option<Gvk> {
        Some(GroupVersion::parse(self.api_version())?.kind(self.kind()))
    }

    /// Sets `apiVersion` and `kind`.
    pub fn set_gvk(&mut self, gvk: &Gvk) {
        self.0.insert("kind".into(), gvk.kind.clone().into());
        self.0.insert("apiVersion".into(), gvk.api_version().into());
    }

    fn text(&self, key: &str) -> &str {
        self.0.get(key).and_then(Value::as_str).unwrap_or("")
    }

    /// `metadata`, if it is a map.
    pub fn metadata(&self) -> Option<&Map<String, Value>> {
        self.0.get("metadata")?.as_object()
    }

    /// `metadata`, made when it is missing or no map.
    pub fn metadata_mut(&mut self) -> &mut Map<String, Value> {
        let slot = self.0.entry("metadata").or_insert_with(|| json!({}));
        if !slot.is_object() {
            *slot = json!({});
        }
        slot.as_object_mut().expect("made a map above")
    }

    /// A text field of `metadata`, or empty.
    pub fn meta(&self, key: &str) -> &str {
        self.metadata().and_then(|m| m.get(key)).and_then(Value::as_str).unwrap_or("")
    }

    /// Sets a field of `metadata`; `Value::Null` removes it.
    pub fn set_meta(&mut self, key: &str, value: impl Into<Value>) {
        match value.into() {
            Value::Null => {
                self.metadata_mut().shift_remove(key);
            }
            value => {
                self.metadata_mut().insert(key.into(), value);
            }
        }
    }

    /// `metadata.name`, or empty.
    pub fn name(&self) -> &str {
        self.meta("name")
    }

    /// `metadata.namespace`, or empty.
    pub fn namespace(&self) -> &str {
        self.meta("namespace")
    }

    /// `metadata.uid`, or empty.
    pub fn uid(&self) -> &str {
        self.meta("uid")
    }

    /// `metadata.resourceVersion`, or empty.
    pub fn resource_version(&self) -> &str {
        self.meta("resourceVersion")
    }

    /// `metadata.generation`, or 0.
    pub fn generation(&self) -> i64 {
        self.metadata().and_then(|m| m.get("generation")).and_then(Value::as_i64).unwrap_or(0)
    }

    /// Whether `metadata.deletionTimestamp` is set.
    pub fn is_deleting(&self) -> bool {
        !self.meta("deletionTimestamp").is_empty()
    }

    /// `metadata.labels` as pairs; entries that are not text are left out.
    pub fn labels(&self) -> impl Iterator<Item = (&str, &str)> {
        self.text_map("labels")
    }

    /// One label.
    pub fn label(&self, key: &str) -> Option<&str> {
        self.metadata()?.get("labels")?.get(key)?.as_str()
    }

    /// `metadata.annotations` as pairs; entries that are not text are left out.
    pub fn annotations(&self) -> impl Iterator<Item = (&str, &str)> {
        self.text_map("annotations")
    }

    /// One annotation.
    pub fn annotation(&self, key: &str) -> Option<&str> {
        self.metadata()?.get("annotations")?.get(key)?.as_str()
    }

    fn text_map(&self, key: &str) -> impl Iterator<Item = (&str, &str)> {
        self.metadata()
            .and_then(|m| m.get(key))
            .and_then(Value::as_object)
            .into_iter()
            .flatten()
            .filter_map(|(k, v)| Some((k.as_str(), v.as_str()?)))
    }

    /// `metadata.finalizers`.
    pub fn finalizers(&self) -> impl Iterator<Item = &str> {
        self.metadata()
            .and_then(|m| m.get("finalizers"))
            .and_then(Value::as_array)
            .into_iter()
            .flatten()
            .filter_map(Value::as_str)
    }

    /// The value at a path of keys, for instance `["spec", "replicas"]`.
    pub fn at(&self, path: &[&str]) -> Option<&Value> {
        let (first, rest) = path.split_first()?;
        rest.iter().try_fold(self.0.get(*first)?, |value, key| value.get(*key))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_leniently() {
        let odd = Object::from_value(json!({"metadata": {"name": 3, "labels": {"a": "b", "c": 1}}})).unwrap();
        assert_eq!(odd.name(), "");
        assert_eq!(odd.labels().collect::<Vec<_>>(), [("a", "b")]);
        assert_eq!(Object::default().at(&["spec", "x"]), None);
    }
}
