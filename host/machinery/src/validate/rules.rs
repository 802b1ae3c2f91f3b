//! Rules in CEL (`x-kubernetes-validations`).
//!
//! A rule is parsed once, when the schema is first used. The times its loops may turn over the value at
//! hand are bounded before it runs.

use std::{collections::HashMap, sync::Arc};

use kube_cel::cel::{
    Value as Cel,
    objects::{Key, Map as CelMap, OptionalValue},
};
use serde_json::{Map, Value};
use wasmk_api::Cause;

use super::{OldItems, Outcome, formats, old_field};
use crate::{
    cel::{self, Expression, plain},
    field::{self, Path},
    schema::{Kind, Rule, Schema},
};

/// Most loop turns of all rules of one object together.
const MAX_WORK: u64 = 10_000_000;
/// Longest message an expression may give.
const MAX_MESSAGE: usize = 5 << 10;

/// The parsed rules of one place of a schema.
#[derive(Debug)]
pub(crate) struct Programs(Vec<(Result<Expression, String>, Option<Expression>)>);

impl Programs {
    fn of(rules: &[Rule]) -> Self {
        let parse = |rule: &Rule| {
            let message = rule.message_expression.as_deref().and_then(|text| cel::compile(text).ok());
            (cel::compile(&rule.rule), message)
        };
        Self(rules.iter().map(parse).collect())
    }
}

/// Whether any place of the schema has rules.
pub(super) fn has_rules(schema: Schema<'_>) -> bool {
    !schema.validations().is_empty()
        || schema.fields().any(|(_, field)| field.rules().is_some() && has_rules(field))
        || schema.items().is_some_and(has_rules)
        || schema.values().is_some_and(has_rules)
}

/// Runs the rules on a value that fits its schema.
pub(super) fn validate(new: &Value, old: Option<&Value>, schema: Schema<'_>) -> Outcome {
    let mut run = Run { outcome: Outcome::default(), work: 0, exhausted: false };
    run.walk(new, old, schema, &Path::root());
    run.outcome
}

struct Run {
    outcome: Outcome,
    work: u64,
    exhausted: bool,
}

impl Run {
    fn walk(&mut self, new: &Value, old: Option<&Value>, schema: Schema<'_>, path: &Path) {
        if new.is_null() || self.exhausted || schema.rules().is_none() {
            return;
        }
        self.rules(new, old, schema, path);
        match new {
            Value::Object(map) => {
                for (key, value) in map {
                    if let Some(field) = schema.field(key) {
                        self.walk(value, old_field(old, key), field, &path.child(key));
                    } else if let Some(values) = schema.values() {
                        self.walk(value, old_field(old, key), values, &path.key(key));
                    }
                }
            }
            Value::Array(items) => {
                let Some(of) = schema.items() else { return };
                let old = OldItems::of(old, schema);
                for (index, item) in items.iter().enumerate() {
                    self.walk(item, old.get(item), of, &path.index(index));
                }
            }
            _ => (),
        }
    }

    fn rules(&mut self, new: &Value, old: Option<&Value>, schema: Schema<'_>, path: &Path) {
        let (rules, Some(holder)) = (schema.validations(), schema.rules()) else { return };
        if rules.is_empty() {
            return;
        }
        let programs = holder.programs.get_or_init(|| Arc::new(Programs::of(rules)));
        let size = cel::parts(new) + old.map_or(0, cel::parts);
        let subject = to_cel(new, schema, path.is_root());
        let before = old.filter(|old| !old.is_null()).map(|old| to_cel(old, schema, path.is_root()));
        for (rule, (program, message)) in rules.iter().zip(&programs.0) {
            let says = rule.message.as_deref().unwrap_or(&rule.rule).trim();
            let kind = type_word(schema);
            let refuse = |what: &str| field::invalid_str(path, kind, what);
            let program = match program {
                Ok(program) => program,
                Err(error) => {
                    self.outcome
                        .causes
                        .push(refuse(&format!("rule compile error: compilation failed: {error}")));
                    continue;
                }
            };
            let before = match (program.mentions("oldSelf"), rule.optional_old_self, &before) {
                (false, ..) => None,
                (true, false, None) => continue,
                (true, false, Some(before)) => Some(before.clone()),
                (true, true, before) => Some(optional(before.clone())),
            };
            self.work = self.work.saturating_add(program.turns(size));
            if self.work > MAX_WORK {
                self.exhausted = true;
                let what = format!("call cost exceeds limit for rule: {says}");
                self.outcome
                    .causes
                    .push(refuse(&format!("no further validation rules will be run due to {what}")));
                return;
            }
            let cause = match execute(program, &subject, before.as_ref()) {
                Ok(Cel::Bool(true)) => continue,
                Ok(Cel::Bool(false)) => {
                    let said = message.as_ref().and_then(|message| said(message, &subject, before.as_ref()));
                    failed(rule, said, new, schema, path)
                }
                Ok(_) => refuse("rule did not evaluate to a bool"),
                Err(error) => refuse(&format!("{error} evaluating rule: {says}")),
            };
            // What was stored so is not held against an update.
            match old == Some(new) {
                true => self.outcome.warnings.push(format!("{}: {}", cause.field, cause.message)),
                false => self.outcome.causes.push(cause),
            }
        }
    }
}

fn optional(value: Option<Cel>) -> Cel {
    Cel::Opaque(Arc::new(value.map_or_else(OptionalValue::none, OptionalValue::of)))
}

fn type_word(schema: Schema<'_>) -> &str {
    schema.rules().and_then(|rules| rules.declared_type.as_deref()).unwrap_or("")
}

fn execute(expression: &Expression, subject: &Cel, before: Option<&Cel>) -> Result<Cel, String> {
    let old = before.map(|before| ("oldSelf", before.clone()));
    expression.run([("self", subject.clone())].into_iter().chain(old))
}

/// What the message expression says, if that is fit to be shown.
fn said(message: &Expression, subject: &Cel, before: Option<&Cel>) -> Option<String> {
    match execute(message, subject, before).ok()? {
        Cel::String(text) => {
            let text = text.trim();
            let fit = !text.is_empty() && text.len() <= MAX_MESSAGE && !text.contains('\n');
            fit.then(|| text.to_string())
        }
        _ => None,
    }
}

/// The cause of a rule that is broken.
fn failed(rule: &Rule, said: Option<String>, value: &Value, schema: Schema<'_>, path: &Path) -> Cause {
    let detail = said
        .or_else(|| rule.message.as_ref().map(|message| message.trim().to_string()))
        .unwrap_or_else(|| format!("failed rule: {}", rule.rule.trim()));
    let path = match &rule.field_path {
        Some(relative) => below(path, relative, schema).unwrap_or_else(|| path.clone()),
        None => path.clone(),
    };
    let shown = (!value.is_object() && !value.is_array()).then_some(value);
    match rule.reason.as_deref() {
        Some("FieldValueForbidden") => field::forbidden(&path, &detail),
        Some("FieldValueRequired") => field::required(&path, &detail),
        Some("FieldValueDuplicate") => match shown {
            Some(value) => field::duplicate(&path, value),
            None => field::without_value("FieldValueDuplicate", &path, "Duplicate value"),
        },
        _ => match shown {
            Some(value) => field::invalid(&path, value, &detail),
            None => field::without_value("FieldValueInvalid", &path, &format!("Invalid value: {detail}")),
        },
    }
}

/// The path of a field below, from a JSON path of names: `.a.b`, `['c.d']`; `None` when the schema does
/// not have it.
pub(super) fn below(path: &Path, relative: &str, schema: Schema<'_>) -> Option<Path> {
    let (mut path, mut schema, mut rest) = (path.clone(), schema, relative.trim());
    if rest.is_empty() {
        return None;
    }
    while !rest.is_empty() {
        let name;
        if let Some(quoted) = rest.strip_prefix("['") {
            (name, rest) = quoted.split_once("']")?;
        } else {
            let plain = rest.strip_prefix('.')?;
            let end = plain.find(['.', '[']).unwrap_or(plain.len());
            (name, rest) = plain.split_at(end);
        }
        (path, schema) = match (schema.field(name), schema.values()) {
            (Some(field), _) => (path.child(name), field),
            (None, Some(values)) => (path.key(name), values),
            (None, None) => return None,
        };
    }
    Some(path)
}

/// A value as CEL sees it: declared fields only, texts of some formats as what they stand for.
fn to_cel(value: &Value, schema: Schema<'_>, root: bool) -> Cel {
    match value {
        Value::Null => Cel::Null,
        Value::Bool(flag) => Cel::Bool(*flag),
        Value::Number(number) => match (schema.kind(), number.as_i64()) {
            (Kind::Number, _) | (_, None) => Cel::Float(number.as_f64().unwrap_or_default()),
            (_, Some(whole)) => Cel::Int(whole),
        },
        Value::String(text) => text_to_cel(text, schema.format()),
        Value::Array(items) => match schema.items() {
            Some(of) => Cel::List(Arc::new(items.iter().map(|item| to_cel(item, of, false)).collect())),
            None => plain(value),
        },
        Value::Object(map) => {
            let identity = root || schema.embedded_resource();
            let mut out = HashMap::with_capacity(map.len());
            for (key, value) in map {
                let (name, value) = match (schema.field(key), schema.values()) {
                    _ if identity && key == "metadata" => (key.clone(), identity_metadata(value)),
                    (Some(field), _) => (escaped(key), to_cel(value, field, false)),
                    (None, Some(values)) => (key.clone(), to_cel(value, values, false)),
                    (None, None) => continue,
                };
                out.insert(Key::String(Arc::new(name)), value);
            }
            Cel::Map(CelMap { map: Arc::new(out) })
        }
    }
}

/// Rules see an object's names, not the rest of its metadata.
fn identity_metadata(metadata: &Value) -> Cel {
    let seen: Map<String, Value> = metadata
        .as_object()
        .into_iter()
        .flatten()
        .filter(|(key, _)| matches!(&***key, "name" | "generateName"))
        .map(|(key, value)| (key.clone(), value.clone()))
        .collect();
    plain(&Value::Object(seen))
}

fn text_to_cel(text: &str, format: &str) -> Cel {
    use base64::{Engine, engine::general_purpose::STANDARD};
    let string = || Cel::String(Arc::new(text.to_string()));
    match format {
        "byte" => STANDARD.decode(text).map_or_else(|_| string(), |bytes| Cel::Bytes(Arc::new(bytes))),
        "duration" => formats::duration(text)
            .map_or_else(string, |nanos| Cel::Duration(chrono::Duration::nanoseconds(nanos))),
        "date-time" => chrono::DateTime::parse_from_rfc3339(text).map_or_else(|_| string(), Cel::Timestamp),
        "date" => chrono::DateTime::parse_from_rfc3339(&format!("{text}T00:00:00Z"))
            .map_or_else(|_| string(), Cel::Timestamp),
        _ => string(),
    }
}

/// Words CEL keeps for itself.
const RESERVED: [&str; 20] = [
    "true",
    "false",
    "null",
    "in",
    "as",
    "break",
    "const",
    "continue",
    "else",
    "for",
    "function",
    "if",
    "import",
    "let",
    "loop",
    "package",
    "namespace",
    "return",
    "var",
    "while",
];

/// A field's name as rules write it.
pub(super) fn escaped(name: &str) -> String {
    if RESERVED.contains(&name) || name == "void" {
        return format!("__{name}__");
    }
    if !name.contains("__") && !name.contains(['.', '-', '/']) {
        return name.into();
    }
    name.replace("__", "__underscores__")
        .replace('.', "__dot__")
        .replace('-', "__dash__")
        .replace('/', "__slash__")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_escaped() {
        for (name, escape) in [
            ("plain", "plain"),
            ("a-b", "a__dash__b"),
            ("a.b/c", "a__dot__b__slash__c"),
            ("a__b", "a__underscores__b"),
            ("namespace", "__namespace__"),
        ] {
            assert_eq!(escaped(name), escape);
        }
    }
}
