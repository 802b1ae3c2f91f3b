//! A parsed document before types are known: repeated keys and numbers as written are kept.

use serde_json::{Map, Number, Value};

/// Deepest nesting of an object. Readers of what is stored refuse more than 128 levels.
pub const MAX_DEPTH: usize = 110;
/// Most strict-decoding errors that are collected, as in Kubernetes.
pub const MAX_STRICT_ERRORS: usize = 100;

#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Doc {
    Null,
    Bool(bool),
    /// The literal as it was written.
    Number(Box<str>),
    String(String),
    Array(Vec<Doc>),
    Object(Vec<(String, Doc)>),
    /// A list (`true`) or map nested beyond [`MAX_DEPTH`]; its syntax was checked, its content dropped.
    TooDeep(bool),
}

impl Doc {
    /// What Go's decoder calls the type.
    pub(crate) fn type_name(&self) -> &'static str {
        match self {
            Self::Null => "null",
            Self::Bool(_) => "bool",
            Self::Number(_) => "number",
            Self::String(_) => "string",
            Self::Array(_) | Self::TooDeep(true) => "array",
            Self::Object(_) | Self::TooDeep(false) => "object",
        }
    }

    /// As a JSON value; the last of repeated keys wins, and `repeated` is told each path once.
    ///
    /// # Errors
    /// When it was nested too deep.
    pub(crate) fn into_value(self, path: &mut String, repeated: &mut Strict) -> Result<Value, TooDeep> {
        Ok(match self {
            Self::Null => Value::Null,
            Self::Bool(flag) => Value::Bool(flag),
            Self::Number(literal) => number(&literal),
            Self::String(text) => Value::String(text),
            Self::Array(items) => {
                let mut list = Vec::with_capacity(items.len());
                for (index, item) in items.into_iter().enumerate() {
                    let length = path.len();
                    path.push_str(&format!("[{index}]"));
                    list.push(item.into_value(path, repeated)?);
                    path.truncate(length);
                }
                Value::Array(list)
            }
            Self::Object(entries) => {
                let mut map = Map::with_capacity(entries.len());
                for (key, doc) in entries {
                    let length = push_key(path, &key);
                    if map.contains_key(&key) {
                        repeated.add("duplicate", path);
                    }
                    let value = doc.into_value(path, repeated)?;
                    path.truncate(length);
                    map.insert(key, value);
                }
                Value::Object(map)
            }
            Self::TooDeep(_) => return Err(TooDeep),
        })
    }
}

/// The document is nested deeper than [`MAX_DEPTH`].
pub(crate) struct TooDeep;

/// Appends `.key` and returns the length to truncate to afterwards.
pub(crate) fn push_key(path: &mut String, key: &str) -> usize {
    let length = path.len();
    if length > 0 {
        path.push('.');
    }
    path.push_str(key);
    length
}

/// Errors that only strict decoding minds, in the order met, each once.
#[derive(Debug, Default)]
pub(crate) struct Strict(pub(crate) Vec<String>);

impl Strict {
    pub(crate) fn add(&mut self, what: &str, path: &str) {
        self.push(format!("{what} field \"{path}\""));
    }

    pub(crate) fn push(&mut self, error: String) {
        if self.0.len() < MAX_STRICT_ERRORS && !self.0.contains(&error) {
            self.0.push(error);
        }
    }
}

/// A number as Kubernetes keeps it in free-form objects: whole if it fits 64 bits, else a float.
pub(crate) fn number(literal: &str) -> Value {
    if let Ok(whole) = literal.parse::<i64>() {
        return whole.into();
    }
    let float = literal.parse::<f64>().unwrap_or(0.0);
    // Go writes a float without a fraction as a whole number.
    if float.fract() == 0.0 && float.abs() < 9.0e18 {
        return (float as i64).into();
    }
    Number::from_f64(float).map_or(Value::Null, Value::Number)
}
