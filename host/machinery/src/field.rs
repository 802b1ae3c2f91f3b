//! Paths to fields and the causes that name them, worded as Kubernetes words them.
//!
//! [`Path`] is built going down (`path.child("spec").index(0)`), a cause is made at the spot:
//!
//! ```
//! use wasmk_machinery::field::{Path, invalid};
//! let cause = invalid(&Path::new("spec").child("replicas"), &(-1).into(), "must be positive");
//! assert_eq!(cause.field, "spec.replicas");
//! assert_eq!(cause.message, "Invalid value: -1: must be positive");
//! ```

use std::fmt;

use serde_json::Value;
use wasmk_api::Cause;

/// The path of a field: `spec.containers[0].env[key]`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Path(String);

impl Path {
    /// The path of the whole object.
    pub fn root() -> Self {
        Self::default()
    }

    /// A path from its text, for instance `spec` or `spec.template`.
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// That field of the object here.
    #[must_use]
    pub fn child(&self, name: &str) -> Self {
        match &*self.0 {
            "" => Self(name.into()),
            parent => Self(format!("{parent}.{name}")),
        }
    }

    /// Several fields down: `path.down(&["spec", "template"])`.
    #[must_use]
    pub fn down(&self, names: &[&str]) -> Self {
        names.iter().fold(self.clone(), |path, name| path.child(name))
    }

    /// That item of the list here.
    #[must_use]
    pub fn index(&self, index: usize) -> Self {
        Self(format!("{}[{index}]", self.0))
    }

    /// The value of that key of the map here.
    #[must_use]
    pub fn key(&self, key: &str) -> Self {
        Self(format!("{}[{key}]", self.0))
    }

    /// Whether it is the path of the whole object.
    pub fn is_root(&self) -> bool {
        self.0.is_empty()
    }

    /// As text; empty for the root.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Path {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl From<&str> for Path {
    fn from(text: &str) -> Self {
        Self(text.into())
    }
}

fn cause(reason: &str, path: &Path, message: String) -> Cause {
    // Go prints the path of the whole object, a nil pointer, that way.
    let field = if path.is_root() { "<nil>".into() } else { path.0.clone() };
    Cause { reason: reason.into(), message, field }
}

fn with_detail(head: &str, detail: &str) -> String {
    if detail.is_empty() { head.into() } else { format!("{head}: {detail}") }
}

/// A field that must be given and is not.
pub fn required(path: &Path, detail: &str) -> Cause {
    cause("FieldValueRequired", path, with_detail("Required value", detail))
}

/// A value that does not satisfy a rule. Text is quoted, `null` says `null`, maps and lists are JSON.
pub fn invalid(path: &Path, value: &Value, detail: &str) -> Cause {
    cause("FieldValueInvalid", path, with_detail(&format!("Invalid value: {}", shown(value)), detail))
}

/// As [`invalid`], for text.
pub fn invalid_str(path: &Path, value: &str, detail: &str) -> Cause {
    cause("FieldValueInvalid", path, with_detail(&format!("Invalid value: {}", quoted(value)), detail))
}

/// A value of the wrong type.
pub fn type_invalid(path: &Path, value: &Value, detail: &str) -> Cause {
    cause("FieldValueTypeInvalid", path, with_detail(&format!("Invalid value: {}", shown(value)), detail))
}

/// A cause whose message is given whole, for values that are not shown.
pub fn without_value(reason: &str, path: &Path, message: &str) -> Cause {
    cause(reason, path, message.into())
}

/// A value not among those allowed, which are listed in the order given.
pub fn not_supported<S: AsRef<str>>(path: &Path, value: &Value, allowed: &[S]) -> Cause {
    let allowed: Vec<String> = allowed.iter().map(|text| quoted(text.as_ref())).collect();
    let detail = match allowed.is_empty() {
        true => String::new(),
        false => format!("supported values: {}", allowed.join(", ")),
    };
    cause(
        "FieldValueNotSupported",
        path,
        with_detail(&format!("Unsupported value: {}", shown(value)), &detail),
    )
}

/// A second occurrence of something that must be unique.
pub fn duplicate(path: &Path, value: &Value) -> Cause {
    cause("FieldValueDuplicate", path, format!("Duplicate value: {}", shown(value)))
}

/// A field that must not be given here, or not by this user.
pub fn forbidden(path: &Path, detail: &str) -> Cause {
    cause("FieldValueForbidden", path, with_detail("Forbidden", detail))
}

/// Text of more than `max` bytes.
pub fn too_long(path: &Path, max: usize) -> Cause {
    let plural = if max == 1 { "byte" } else { "bytes" };
    cause("FieldValueTooLong", path, format!("Too long: may not be more than {max} {plural}"))
}

/// Text of more than `max` characters.
pub fn too_long_characters(path: &Path, max: usize) -> Cause {
    let plural = if max == 1 { "character" } else { "characters" };
    cause("FieldValueTooLong", path, format!("Too long: may not be more than {max} {plural}"))
}

/// Text of fewer than `min` characters.
pub fn too_short(path: &Path, min: usize) -> Cause {
    let plural = if min == 1 { "character" } else { "characters" };
    cause("FieldValueTooShort", path, format!("Too short: must be at least {min} {plural}"))
}

/// A list or map of fewer than `min` items.
pub fn too_few(path: &Path, actual: usize, min: usize) -> Cause {
    let plural = if min == 1 { "item" } else { "items" };
    cause("FieldValueTooFew", path, format!("Too few: {actual}: must have at least {min} {plural}"))
}

/// A list of more than `max` items.
pub fn too_many(path: &Path, actual: usize, max: usize) -> Cause {
    let plural = if max == 1 { "item" } else { "items" };
    cause("FieldValueTooMany", path, format!("Too many: {actual}: must have at most {max} {plural}"))
}

/// A reference to something that is not there.
pub fn not_found(path: &Path, value: &Value) -> Cause {
    cause("FieldValueNotFound", path, format!("Not found: {}", shown(value)))
}

/// A fault of the server while checking the field.
pub fn internal(path: &Path, error: impl fmt::Display) -> Cause {
    cause("InternalError", path, format!("Internal error: {error}"))
}

/// A value as causes show it: text quoted, everything else as JSON with Go's escapes for HTML.
pub fn shown(value: &Value) -> String {
    match value {
        Value::String(text) => quoted(text),
        Value::Array(_) | Value::Object(_) => {
            value.to_string().replace('<', "\\u003c").replace('>', "\\u003e").replace('&', "\\u0026")
        }
        other => other.to_string(),
    }
}

/// A number as Go writes it: without a fraction when it is whole.
pub fn number(number: f64) -> Value {
    if number.fract() == 0.0 && number.abs() < 9.0e15 { (number as i64).into() } else { number.into() }
}

/// Text in double quotes with Go's escapes (`%q`).
pub fn quoted(text: &str) -> String {
    use fmt::Write;
    let mut out = String::with_capacity(text.len() + 2);
    out.push('"');
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\u{7}' => out.push_str("\\a"),
            '\u{8}' => out.push_str("\\b"),
            '\u{b}' => out.push_str("\\v"),
            '\u{c}' => out.push_str("\\f"),
            c if (c as u32) < 0x20 || c == '\u{7f}' => {
                let _ = write!(out, "\\x{:02x}", c as u32);
            }
            c if c.is_control() => {
                let _ = write!(out, "\\u{:04x}", c as u32);
            }
            c => out.push(c),
        }
    }
    out.push('"');
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn paths() {
        let path = Path::root().child("spec").child("containers").index(2).child("limits").key("cpu");
        assert_eq!(path.as_str(), "spec.containers[2].limits[cpu]");
        assert_eq!(Path::new("metadata").down(&["labels", "a"]).to_string(), "metadata.labels.a");
    }

    #[test]
    fn messages() {
        let path = Path::new("f");
        for (cause, reason, message) in [
            (required(&path, ""), "FieldValueRequired", "Required value"),
            (required(&path, "say it"), "FieldValueRequired", "Required value: say it"),
            (invalid(&path, &json!("a\"b"), "bad"), "FieldValueInvalid", r#"Invalid value: "a\"b": bad"#),
            (invalid(&path, &json!({"a": 1}), "bad"), "FieldValueInvalid", r#"Invalid value: {"a":1}: bad"#),
            (invalid(&path, &json!(null), ""), "FieldValueInvalid", "Invalid value: null"),
            (
                not_supported(&path, &json!("x"), &["a", "b"]),
                "FieldValueNotSupported",
                r#"Unsupported value: "x": supported values: "a", "b""#,
            ),
            (duplicate(&path, &json!("x")), "FieldValueDuplicate", r#"Duplicate value: "x""#),
            (forbidden(&path, "no"), "FieldValueForbidden", "Forbidden: no"),
            (too_long(&path, 1), "FieldValueTooLong", "Too long: may not be more than 1 byte"),
            (too_many(&path, 3, 2), "FieldValueTooMany", "Too many: 3: must have at most 2 items"),
            (not_found(&path, &json!("x")), "FieldValueNotFound", r#"Not found: "x""#),
            (internal(&path, "boom"), "InternalError", "Internal error: boom"),
        ] {
            assert_eq!((&*cause.reason, &*cause.message, &*cause.field), (reason, message, "f"));
        }
    }
}
