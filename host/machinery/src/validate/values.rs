//! Types, bounds and combined schemas: what a JSON schema says of a value.

use std::{collections::HashSet, fmt};

use serde_json::{Map, Value};
use wasmk_api::Cause;

use super::{OldItems, formats, old_field};
use crate::{
    field::{self, Path},
    schema::{Kind, Rules, Schema},
};

/// Validates a value against a schema, without ratcheting; for defaults of definitions.
pub fn validate_value(value: &Value, schema: Schema<'_>) -> Vec<Cause> {
    validate(value, None, schema)
}

/// Validates a value; what equals its old value is not complained about.
pub(super) fn validate(value: &Value, old: Option<&Value>, schema: Schema<'_>) -> Vec<Cause> {
    let mut found = Found::default();
    check(value, old, schema, "", &mut found);
    found.errors.into_iter().map(Error::cause).collect()
}

#[derive(Default)]
struct Found {
    errors: Vec<Error>,
    /// How much was looked at, to choose among failed alternatives.
    checked: usize,
}

impl Found {
    fn add(&mut self, path: &str, what: What) {
        self.errors.push(Error { path: path.into(), what });
    }
}

struct Error {
    path: String,
    what: What,
}

enum What {
    Required,
    /// The value and those allowed.
    Enumeration(Value, Vec<Value>),
    TooLong(u64),
    TooMany(usize, u64),
    /// The type wanted and found.
    Type(String, Value),
    /// The value and what is wrong after the path's name.
    Bound(Value, String),
    /// A sentence about the object as a whole.
    Whole(String),
}

impl Error {
    fn cause(self) -> Cause {
        let path = Path::new(self.path.trim_start_matches('.'));
        let name = self.path.as_str();
        match self.what {
            What::Required => field::required(&path, ""),
            What::Enumeration(value, allowed) => {
                let text = |value: &Value| value.as_str().map_or_else(|| value.to_string(), String::from);
                field::not_supported(&path, &value, &allowed.iter().map(text).collect::<Vec<_>>())
            }
            What::TooLong(max) => field::too_long(&path, max as usize),
            What::TooMany(actual, max) => field::too_many(&path, actual, max as usize),
            What::Type(wanted, found) => {
                let text = found.as_str().map_or_else(|| found.to_string(), field::quoted);
                field::type_invalid(
                    &path,
                    &found,
                    &format!("{name} in body must be of type {wanted}: {text}"),
                )
            }
            What::Bound(value, says) => field::invalid(&path, &value, &format!("{name} in body {says}")),
            What::Whole(says) => field::invalid(&Path::root(), &"".into(), &says),
        }
    }
}

fn below(path: &str, key: &str) -> String {
    if path.is_empty() { key.into() } else { format!("{path}.{key}") }
}

/// Ratcheting: errors of a value that did not change are dropped.
fn check(value: &Value, old: Option<&Value>, schema: Schema<'_>, path: &str, found: &mut Found) {
    let before = found.errors.len();
    look(value, old, schema, path, found);
    if found.errors.len() > before && old == Some(value) {
        found.errors.truncate(before);
    }
}

fn look(value: &Value, old: Option<&Value>, schema: Schema<'_>, path: &str, found: &mut Found) {
    found.checked += 1;
    let Some(rules) = schema.rules() else { return };
    check_type(value, schema, rules, path, found);
    if value.is_null() {
        enumeration(value, rules, path, found);
        return;
    }
    combined(value, old, rules, path, found);
    match value {
        Value::String(text) => string(text, rules, path, found),
        Value::Number(number) => self::number(number, rules, path, found),
        Value::Array(items) => array(items, old, schema, rules, path, found),
        _ => (),
    }
    enumeration(value, rules, path, found);
    if let Value::Object(map) = value {
        object(map, old, schema, rules, path, found);
    }
}

fn type_of(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "boolean",
        Value::Number(number) if number.is_f64() => "number",
        Value::Number(_) => "integer",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    }
}

fn check_type(value: &Value, schema: Schema<'_>, rules: &Rules, path: &str, found: &mut Found) {
    let wanted = match (schema.kind(), &rules.declared_type) {
        (Kind::IntOrString, _) => "integer,string",
        (_, Some(wanted)) => wanted,
        (_, None) => return,
    };
    let actual = type_of(value);
    if value.is_null() && schema.nullable() {
        return;
    }
    let fits = wanted.split(',').any(|one| {
        one == actual
            || one == "number" && actual == "integer"
            || one == "integer" && value.as_f64().is_some_and(|number| number.fract() == 0.0)
    });
    if !fits {
        found.add(path, What::Type(wanted.into(), actual.into()));
    }
}

fn string(text: &str, rules: &Rules, path: &str, found: &mut Found) {
    let length = text.chars().count() as u64;
    let value = || Value::String(text.into());
    let regex = rules.regex();
    if let Some(max) = rules.max_length.filter(|max| length > *max) {
        found.add(path, What::TooLong(max));
    } else if let Some(min) = rules.min_length.filter(|min| length < *min) {
        found.add(path, What::Bound(value(), format!("should be at least {min} chars long")));
    } else if let (Some(regex), Some(pattern)) = (regex, &rules.pattern)
        && !regex.is_match(text)
    {
        found.add(path, What::Bound(value(), format!("should match '{pattern}'")));
    }
    if let Some(format) = &rules.format
        && !formats::holds(format, text)
    {
        found.add(path, What::Type(format.to_string(), value()));
    }
}

/// A float as Go prints it.
struct Shown(f64);

impl fmt::Display for Shown {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.abs() >= 1e21 || self.0 != 0.0 && self.0.abs() < 1e-4 {
            write!(f, "{:e}", self.0)
        } else {
            write!(f, "{}", self.0)
        }
    }
}

fn number(number: &serde_json::Number, rules: &Rules, path: &str, found: &mut Found) {
    let Some(float) = number.as_f64() else { return };
    let value = || Value::Number(number.clone());
    let fits = match rules.format.as_deref() {
        Some("int32") => float >= f64::from(i32::MIN) && float <= f64::from(i32::MAX),
        Some("float") => float.abs() <= f64::from(f32::MAX),
        _ => true,
    };
    if !fits {
        let format = rules.format.as_deref().unwrap_or_default();
        let wanted = rules.declared_type.as_deref().unwrap_or("number");
        let name = if path.is_empty() { "." } else { path };
        let says = format!("Checked value must be of type {wanted} with format {format} in {name}");
        found.add("", What::Whole(says));
    }
    if let Some(factor) = rules.multiple_of {
        let quotient = float / factor;
        if (quotient - quotient.round()).abs() > 1e-9 {
            found.add(path, What::Bound(value(), format!("should be a multiple of {}", Shown(factor))));
        }
    }
    if let Some(max) = rules.maximum {
        let (outside, says) = match rules.exclusive_maximum {
            true => (float >= max, "should be less than"),
            false => (float > max, "should be less than or equal to"),
        };
        if outside {
            found.add(path, What::Bound(value(), format!("{says} {}", Shown(max))));
        }
    }
    if let Some(min) = rules.minimum {
        let (outside, says) = match rules.exclusive_minimum {
            true => (float <= min, "should be greater than"),
            false => (float < min, "should be greater than or equal to"),
        };
        if outside {
            found.add(path, What::Bound(value(), format!("{says} {}", Shown(min))));
        }
    }
}

fn array(
    items: &[Value],
    old: Option<&Value>,
    schema: Schema<'_>,
    rules: &Rules,
    path: &str,
    found: &mut Found,
) {
    if let Some(of) = schema.items() {
        let old = OldItems::of(old, schema);
        for (index, item) in items.iter().enumerate() {
            check(item, old.get(item), of, &format!("{path}[{index}]"), found);
        }
    }
    let size = items.len();
    if let Some(min) = rules.min_items.filter(|min| (size as u64) < *min) {
        found.add(path, What::Bound(size.into(), format!("should have at least {min} items")));
    }
    if let Some(max) = rules.max_items.filter(|max| size as u64 > *max) {
        found.add(path, What::TooMany(size, max));
    }
    let mut seen = HashSet::new();
    if rules.unique_items && items.iter().any(|item| !seen.insert(item.to_string())) {
        found.add(path, What::Bound(Value::Array(items.into()), "shouldn't contain duplicates".into()));
    }
}

fn object(
    map: &Map<String, Value>,
    old: Option<&Value>,
    schema: Schema<'_>,
    rules: &Rules,
    path: &str,
    found: &mut Found,
) {
    let size = map.len();
    if let Some(min) = rules.min_properties.filter(|min| (size as u64) < *min) {
        return found.add(path, What::Bound(size.into(), format!("should have at least {min} properties")));
    }
    if let Some(max) = rules.max_properties.filter(|max| size as u64 > *max) {
        return found.add(path, What::TooMany(size, max));
    }
    for name in schema.required() {
        if !map.contains_key(&**name) {
            found.add(&below(path, name), What::Required);
        }
    }
    for (key, value) in map {
        if let Some(field) = schema.field(key) {
            let field = field.restrictions().unwrap_or(field);
            // The identity of the object is the server's business.
            let ratcheted =
                if path.is_empty() && matches!(&**key, "apiVersion" | "kind") { None } else { old };
            check(value, old_field(ratcheted, key), field, &below(path, key), found);
        } else if let Some(values) = schema.values() {
            check(value, old_field(old, key), values, &below(path, key), found);
        } else if rules.closed && !schema.preserve_unknown() {
            found.add(path, What::Bound("".into(), format!(".{key} is a forbidden property")));
        }
    }
}

fn enumeration(value: &Value, rules: &Rules, path: &str, found: &mut Found) {
    let Some(allowed) = &rules.enumeration else { return };
    let same = |one: &Value| one == value || one.as_f64().is_some() && one.as_f64() == value.as_f64();
    if !allowed.iter().any(same) {
        found.add(path, What::Enumeration(value.clone(), allowed.clone()));
    }
}

/// `anyOf`, `oneOf`, `allOf` and `not`.
fn combined(value: &Value, old: Option<&Value>, rules: &Rules, path: &str, found: &mut Found) {
    let attempt = |schema: Schema<'_>| {
        let mut attempt = Found::default();
        check(value, old, schema, path, &mut attempt);
        attempt
    };
    let best = |attempts: Vec<Found>| {
        // The first of those that got furthest.
        attempts.into_iter().reduce(|best, next| if next.checked > best.checked { next } else { best })
    };
    if rules.any_of().len() > 0 {
        let attempts: Vec<Found> = rules.any_of().map(attempt).collect();
        if attempts.iter().all(|attempt| !attempt.errors.is_empty()) {
            found.add("", What::Whole(format!("\"{path}\" must validate at least one schema (anyOf)")));
            found.errors.extend(best(attempts).map(|best| best.errors).unwrap_or_default());
        }
    }
    if rules.one_of().len() > 0 {
        let attempts: Vec<Found> = rules.one_of().map(attempt).collect();
        let valid = attempts.iter().filter(|attempt| attempt.errors.is_empty()).count();
        let says = format!("\"{path}\" must validate one and only one schema (oneOf).");
        match valid {
            0 => {
                found.add("", What::Whole(format!("{says} Found none valid")));
                found.errors.extend(best(attempts).map(|best| best.errors).unwrap_or_default());
            }
            1 => (),
            many => found.add("", What::Whole(format!("{says} Found {many} valid alternatives"))),
        }
    }
    if rules.all_of().len() > 0 {
        let (count, mut valid) = (rules.all_of().len(), 0);
        for attempt in rules.all_of().map(attempt) {
            valid += usize::from(attempt.errors.is_empty());
            found.errors.extend(attempt.errors);
        }
        if valid != count {
            let tail = if valid == 0 { ". None validated" } else { "" };
            found.add("", What::Whole(format!("\"{path}\" must validate all the schemas (allOf){tail}")));
        }
    }
    if let Some(not) = rules.not()
        && attempt(not).errors.is_empty()
    {
        found.add("", What::Whole(format!("\"{path}\" must not validate the schema (not)")));
    }
}
