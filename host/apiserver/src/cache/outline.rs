//! The part of an object that field selectors look at.

use std::{borrow::Cow, fmt};

use serde::{
    Deserialize, Deserializer,
    de::{DeserializeSeed, IgnoredAny, MapAccess, SeqAccess, Visitor},
};
use serde_json::{Map, Value};
use wasmk_api::Object;

/// Levels of an object that selectable fields of built-in kinds are on: `spec.nodeName`.
pub(super) const LEVELS: usize = 2;

/// The single values of an object's first two levels. Lists and what is deeper, nearly all of an object, are
/// passed over.
///
/// # Errors
/// When the text is no JSON object.
pub(super) fn outline(text: &[u8]) -> serde_json::Result<Object> {
    let mut reader = serde_json::Deserializer::from_slice(text);
    match Level(LEVELS).deserialize(&mut reader)? {
        Some(Value::Object(map)) => Ok(Object(map)),
        _ => Err(serde::de::Error::custom("not an object")),
    }
}

/// So many levels of objects are still kept.
#[derive(Clone, Copy)]
struct Level(usize);

/// Text that is borrowed where it has no escapes.
#[derive(Deserialize)]
#[serde(transparent)]
pub(super) struct Text<'a>(#[serde(borrow)] pub(super) Cow<'a, str>);

impl<'de> DeserializeSeed<'de> for Level {
    type Value = Option<Value>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Level {
    type Value = Option<Value>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_bool<E>(self, value: bool) -> Result<Self::Value, E> {
        Ok(Some(value.into()))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Self::Value, E> {
        Ok(Some(value.into()))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Self::Value, E> {
        Ok(Some(value.into()))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Self::Value, E> {
        Ok(Some(value.into()))
    }

    fn visit_str<E>(self, value: &str) -> Result<Self::Value, E> {
        Ok(Some(value.into()))
    }

    fn visit_unit<E>(self) -> Result<Self::Value, E> {
        Ok(None)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Self::Value, A::Error> {
        while list.next_element::<IgnoredAny>()?.is_some() {}
        Ok(None)
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let Some(below) = self.0.checked_sub(1) else {
            while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
            return Ok(None);
        };
        let mut kept = Map::new();
        while let Some(Text(key)) = map.next_key()? {
            if let Some(value) = map.next_value_seed(Level(below))? {
                kept.insert(key.into_owned(), value);
            }
        }
        Ok(Some(kept.into()))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use wasmk_machinery::resources::Registry;

    use super::*;

    #[test]
    fn single_values_of_two_levels_are_kept() {
        let check = |text: &str, expect: Option<Value>| {
            assert_eq!(outline(text.as_bytes()).ok().map(|o| Value::Object(o.0)), expect, "{text}");
        };
        check(
            r#"{"type": "a\nb", "n": -1, "list": [1, {"x": 2}], "spec": {"nodeName": "n", "replicas": 3, "half": 0.5,
               "on": true, "off": null, "containers": [{"name": "c"}], "template": {"spec": {}}}}"#,
            Some(
                json!({"type": "a\nb", "n": -1, "spec": {"nodeName": "n", "replicas": 3, "half": 0.5, "on": true}}),
            ),
        );
        check("{}", Some(json!({})));
        check("[1]", None);
        check("1", None);
        check("{\"a\":", None);
        check("{\"a\": {\"b\": {\"c\": }}}", None);
    }

    #[test]
    fn no_selectable_field_is_deeper() {
        let registry = Registry::built_in();
        let names = registry.all().flat_map(|row| wasmk_kinds::kind(&row.group, &row.kind).field_names());
        let (deep, rest): (Vec<_>, Vec<_>) = names.partition(|name| name.split('.').count() > LEVELS);
        assert!(rest.contains(&&"spec.nodeName"));
        assert!(deep.is_empty(), "{deep:?}");
    }
}
