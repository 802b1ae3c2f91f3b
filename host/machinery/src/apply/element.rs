//! One step of a path to a field, and its text forms.

use std::{cmp::Ordering, fmt};

use serde_json::{Map, Number, Value};

use super::error::FieldsError;

/// One step of a path: a field, or an item of a list told apart by its keys, its value or its position.
///
/// Elements are ordered as Kubernetes orders them: fields, then keys, values and positions.
#[derive(Clone, Debug)]
pub enum Element {
    /// A field of an object, or a key of a map (`f:name`).
    Field(Box<str>),
    /// An item of a list of type `map`, by its key fields sorted by name (`k:{"name":"a"}`).
    Key(Vec<(Box<str>, Value)>),
    /// An item of a list of type `set` (`v:"a"`).
    Value(Value),
    /// An item by position (`i:0`).
    Index(i64),
}

impl Element {
    /// The field of that name.
    pub fn field(name: &str) -> Self {
        Self::Field(name.into())
    }

    /// The item with these key fields, in any order.
    pub fn key(mut fields: Vec<(Box<str>, Value)>) -> Self {
        fields.sort_by(|a, b| a.0.cmp(&b.0));
        Self::Key(fields)
    }

    /// Reads the form used in `fieldsV1`; `None` for kinds of elements not known (they are ignored).
    ///
    /// # Errors
    /// When the text is of a known kind but malformed.
    pub fn parse(text: &str) -> Result<Option<Self>, FieldsError> {
        let malformed = |why: &str| FieldsError::Element { element: text.into(), why: why.into() };
        let (kind, rest) = match text.as_bytes() {
            [kind, b':', ..] => (*kind, &text[2..]),
            [_, _, ..] => return Err(malformed("missing colon")),
            _ => return Err(malformed("key must be 2 characters long:")),
        };
        let json = |text| serde_json::from_str::<Value>(text).map_err(|e| malformed(&e.to_string()));
        Ok(Some(match kind {
            b'f' => Self::field(rest),
            b'v' => Self::Value(json(rest)?),
            b'i' => Self::Index(rest.parse().map_err(|_| malformed("expected a number"))?),
            b'k' => match json(rest)? {
                Value::Object(map) => Self::key(map.into_iter().map(|(k, v)| (k.into(), v)).collect()),
                _ => return Err(malformed("expected an object")),
            },
            _ => return Ok(None),
        }))
    }

    /// The form used in `fieldsV1`.
    pub fn serialize(&self) -> String {
        match self {
            Self::Field(name) => format!("f:{name}"),
            Self::Value(value) => format!("v:{value}"),
            Self::Index(index) => format!("i:{index}"),
            Self::Key(fields) => {
                let map: Map<String, Value> =
                    fields.iter().map(|(k, v)| (k.to_string(), v.clone())).collect();
                format!("k:{}", Value::Object(map))
            }
        }
    }

    fn rank(&self) -> u8 {
        match self {
            Self::Field(_) => 0,
            Self::Key(_) => 1,
            Self::Value(_) => 2,
            Self::Index(_) => 3,
        }
    }
}

/// As conflicts show it: `.name`, `[name="a"]`, `[="a"]`, `[0]`.
impl fmt::Display for Element {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Field(name) => write!(f, ".{name}"),
            Self::Index(index) => write!(f, "[{index}]"),
            Self::Value(value) => write!(f, "[={}]", shown(value)),
            Self::Key(fields) => {
                f.write_str("[")?;
                for (i, (name, value)) in fields.iter().enumerate() {
                    let comma = if i == 0 { "" } else { "," };
                    write!(f, "{comma}{name}={}", shown(value))?;
                }
                f.write_str("]")
            }
        }
    }
}

fn shown(value: &Value) -> String {
    match value {
        Value::String(text) => crate::field::quoted(text),
        other => other.to_string(),
    }
}

impl PartialEq for Element {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Element {}

impl PartialOrd for Element {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Element {
    fn cmp(&self, other: &Self) -> Ordering {
        match (self, other) {
            (Self::Field(a), Self::Field(b)) => a.cmp(b),
            (Self::Key(a), Self::Key(b)) => {
                let pairs = a.iter().zip(b).map(|(a, b)| a.0.cmp(&b.0).then_with(|| compare(&a.1, &b.1)));
                pairs.into_iter().find(|o| o.is_ne()).unwrap_or_else(|| a.len().cmp(&b.len()))
            }
            (Self::Value(a), Self::Value(b)) => compare(a, b),
            (Self::Index(a), Self::Index(b)) => a.cmp(b),
            _ => self.rank().cmp(&other.rank()),
        }
    }
}

/// An order of JSON values: numbers, text, booleans, lists, maps, null. Numbers compare by amount.
pub(super) fn compare(a: &Value, b: &Value) -> Ordering {
    match (a, b) {
        (Value::Number(a), Value::Number(b)) => compare_numbers(a, b),
        (Value::String(a), Value::String(b)) => a.cmp(b),
        (Value::Bool(a), Value::Bool(b)) => a.cmp(b),
        (Value::Array(a), Value::Array(b)) => {
            let pairs = a.iter().zip(b).map(|(a, b)| compare(a, b));
            pairs.into_iter().find(|o| o.is_ne()).unwrap_or_else(|| a.len().cmp(&b.len()))
        }
        (Value::Object(a), Value::Object(b)) => compare_maps(a, b),
        _ => rank(a).cmp(&rank(b)),
    }
}

fn compare_maps(a: &Map<String, Value>, b: &Map<String, Value>) -> Ordering {
    let sorted = |map: &Map<String, Value>| {
        let mut keys: Vec<String> = map.keys().cloned().collect();
        keys.sort();
        keys
    };
    let (left, right) = (sorted(a), sorted(b));
    let pairs = left.iter().zip(&right).map(|(x, y)| x.cmp(y).then_with(|| compare(&a[x], &b[y])));
    pairs.into_iter().find(|o| o.is_ne()).unwrap_or_else(|| left.len().cmp(&right.len()))
}

fn compare_numbers(a: &Number, b: &Number) -> Ordering {
    match (a.as_i64(), b.as_i64()) {
        (Some(a), Some(b)) => a.cmp(&b),
        _ => a.as_f64().unwrap_or(0.0).total_cmp(&b.as_f64().unwrap_or(0.0)),
    }
}

fn rank(value: &Value) -> u8 {
    match value {
        Value::Number(_) => 0,
        Value::String(_) => 1,
        Value::Bool(_) => 2,
        Value::Array(_) => 3,
        Value::Object(_) => 4,
        Value::Null => 5,
    }
}

/// Whether two values are the same; numbers by amount, maps in any order.
pub(super) fn equal(a: &Value, b: &Value) -> bool {
    match (a, b) {
        (Value::Number(a), Value::Number(b)) => a == b || compare_numbers(a, b).is_eq(),
        (Value::Array(a), Value::Array(b)) => a.len() == b.len() && a.iter().zip(b).all(|(a, b)| equal(a, b)),
        (Value::Object(a), Value::Object(b)) => {
            a.len() == b.len() && a.iter().all(|(key, a)| b.get(key).is_some_and(|b| equal(a, b)))
        }
        (a, b) => a == b,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn text_forms() {
        for (text, shown) in [
            ("f:spec", ".spec"),
            (r#"k:{"containerPort":80,"protocol":"TCP"}"#, r#"[containerPort=80,protocol="TCP"]"#),
            (r#"v:"a\"b""#, r#"[="a\"b"]"#),
            ("v:1", "[=1]"),
            ("i:3", "[3]"),
            ("f:", "."),
        ] {
            let element = Element::parse(text).unwrap().unwrap();
            assert_eq!((element.serialize().as_str(), element.to_string().as_str()), (text, shown));
        }
        assert_eq!(Element::parse("x:future").unwrap(), None);
        for bad in ["", "f", "fx", "v:{", "k:[]", "i:x"] {
            assert!(Element::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn order() {
        let parse = |text| Element::parse(text).unwrap().unwrap();
        let sorted =
            ["f:a", "f:b", r#"k:{"a":1}"#, r#"k:{"a":1,"b":1}"#, r#"k:{"a":"x"}"#, "v:1", r#"v:"a""#, "i:0"];
        let elements: Vec<Element> = sorted.iter().map(|text| parse(text)).collect();
        assert!(elements.is_sorted());
        assert_eq!(parse(r#"k:{"b":1.0,"a":1}"#), parse(r#"k:{"a":1,"b":1}"#));
        assert!(
            equal(&json!({"a": [1, 2.0]}), &json!({"a": [1.0, 2]})) && !equal(&json!([1]), &json!([1, 1]))
        );
    }
}
