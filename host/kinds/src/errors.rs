//! Where a check stands in an object, and what it found wrong there.

use std::fmt;

use serde_json::Value;
use wasmk_api::Cause;
use wasmk_machinery::field::{self, Path};

/// A place in an object: `spec.containers[0].env[key]`. Built going down, on the stack; it becomes text only
/// when something is wrong there.
#[derive(Clone, Copy, Debug)]
pub struct At<'a> {
    up: Option<&'a At<'a>>,
    step: Step<'a>,
}

#[derive(Clone, Copy, Debug)]
enum Step<'a> {
    Field(&'a str),
    Index(usize),
    Key(&'a str),
}

impl<'a> At<'a> {
    /// A place from its text, for instance `spec`; empty for the whole object.
    pub const fn new(text: &'a str) -> Self {
        Self { up: None, step: Step::Field(text) }
    }

    /// That field of the map here.
    #[must_use]
    pub const fn field(&'a self, name: &'a str) -> Self {
        Self { up: Some(self), step: Step::Field(name) }
    }

    /// That item of the list here.
    #[must_use]
    pub const fn index(&'a self, index: usize) -> Self {
        Self { up: Some(self), step: Step::Index(index) }
    }

    /// The value of that key of the map here.
    #[must_use]
    pub const fn key(&'a self, key: &'a str) -> Self {
        Self { up: Some(self), step: Step::Key(key) }
    }

    fn is_root(&self) -> bool {
        self.up.is_none() && matches!(self.step, Step::Field(""))
    }
}

impl fmt::Display for At<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(up) = self.up {
            up.fmt(f)?;
        }
        match self.step {
            Step::Field(name) if self.up.is_none_or(At::is_root) => f.write_str(name),
            Step::Field(name) => write!(f, ".{name}"),
            Step::Index(index) => write!(f, "[{index}]"),
            Step::Key(key) => write!(f, "[{key}]"),
        }
    }
}

fn path(at: &At<'_>) -> Path {
    Path::new(at.to_string())
}

/// What was found wrong, in the order it was found.
#[derive(Debug, Default)]
pub struct Errors(Vec<Cause>);

impl Errors {
    /// All of it.
    pub fn done(self) -> Vec<Cause> {
        self.0
    }

    /// How many there are, to see whether a part added any.
    pub fn count(&self) -> usize {
        self.0.len()
    }

    /// A cause made elsewhere.
    pub fn push(&mut self, cause: Cause) {
        self.0.push(cause);
    }

    /// A field that must be given and is not.
    pub fn required(&mut self, at: &At<'_>, why: &str) {
        self.0.push(field::required(&path(at), why));
    }

    /// A value that breaks a rule.
    pub fn invalid(&mut self, at: &At<'_>, value: &Value, why: &str) {
        let shown = crate::internal::sorted(value);
        self.0.push(field::invalid(&path(at), shown.as_ref().unwrap_or(value), why));
    }

    /// As [`Errors::invalid`], for text.
    pub fn invalid_text(&mut self, at: &At<'_>, value: &str, why: &str) {
        self.0.push(field::invalid_str(&path(at), value, why));
    }

    /// As [`Errors::invalid`], for a number.
    pub fn invalid_int(&mut self, at: &At<'_>, value: i64, why: &str) {
        self.0.push(field::invalid(&path(at), &value.into(), why));
    }

    /// As [`Errors::invalid`], for a value written out already.
    pub fn invalid_shown(&mut self, at: &At<'_>, shown: &str, why: &str) {
        self.0.push(Cause {
            reason: "FieldValueInvalid".into(),
            message: format!("Invalid value: {shown}: {why}"),
            field: at.to_string(),
        });
    }

    /// As [`Errors::invalid`], without saying the value.
    pub fn invalid_hidden(&mut self, at: &At<'_>, why: &str) {
        self.0.push(Cause {
            reason: "FieldValueInvalid".into(),
            message: format!("Invalid value: {why}"),
            field: at.to_string(),
        });
    }

    /// A value that is none of those allowed, which are listed in the order given.
    pub fn unsupported(&mut self, at: &At<'_>, value: &str, allowed: &[&str]) {
        self.0.push(field::not_supported(&path(at), &value.into(), allowed));
    }

    /// As [`Errors::unsupported`], for a value that is no text.
    pub fn unsupported_value(&mut self, at: &At<'_>, value: &Value, allowed: &[&str]) {
        self.0.push(field::not_supported(&path(at), value, allowed));
    }

    /// A second occurrence of what must be unique.
    pub fn duplicate(&mut self, at: &At<'_>, value: &Value) {
        self.0.push(field::duplicate(&path(at), value));
    }

    /// As [`Errors::duplicate`], for text.
    pub fn duplicate_text(&mut self, at: &At<'_>, value: &str) {
        self.0.push(field::duplicate(&path(at), &value.into()));
    }

    /// Says again all that was found since there were `count`.
    pub(crate) fn repeat_from(&mut self, count: usize) {
        self.0.extend_from_within(count..);
    }

    /// Adds a reason to what was found last.
    pub fn explain_last(&mut self, why: &str) {
        if let Some(last) = self.0.last_mut() {
            last.message = format!("{}: {why}", last.message);
        }
    }

    /// A field that must not be given here.
    pub fn forbidden(&mut self, at: &At<'_>, why: &str) {
        self.0.push(field::forbidden(&path(at), why));
    }

    /// Text of more than `max` bytes.
    pub fn too_long(&mut self, at: &At<'_>, max: usize) {
        self.0.push(field::too_long(&path(at), max));
    }

    /// A list of more than `max` items.
    pub fn too_many(&mut self, at: &At<'_>, actual: usize, max: usize) {
        self.0.push(field::too_many(&path(at), actual, max));
    }

    /// A reference to what is not there; `why` may be empty.
    pub fn not_found(&mut self, at: &At<'_>, value: &str, why: &str) {
        let mut cause = field::not_found(&path(at), &value.into());
        if !why.is_empty() {
            cause.message = format!("{}: {why}", cause.message);
        }
        self.0.push(cause);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_read_as_paths() {
        let spec = At::new("spec");
        let list = spec.field("containers");
        let first = list.index(0);
        assert_eq!(first.field("limits").key("cpu").to_string(), "spec.containers[0].limits[cpu]");
        let root = At::new("");
        assert_eq!(root.field("data").key("a").to_string(), "data[a]");
    }
}
