//! Rules in CEL (`x-kubernetes-validations`).
//!
//! A rule is parsed once, when the schema is first used. What it may cost is bounded before it runs: its
//! length and nesting when it is parsed, and the times its loops may turn over the value at hand.

use std::{collections::HashMap, sync::Arc};

use kube_cel::{
    KubeCelExt,
    cel::{
        Context, ExecutionError, Program, Value as Cel,
        common::ast::{EntryExpr, Expr, IdedExpr},
        objects::{Key, Map as CelMap, OptionalValue},
    },
};
use serde_json::{Map, Value};
use wasmk_api::Cause;

use super::{Outcome, formats, old_field, old_item};
use crate::{
    field::{self, Path},
    schema::{Kind, Rule, Schema},
};

/// Longest rule, in bytes.
pub(super) const MAX_LENGTH: usize = 8 << 10;
/// Deepest nesting of brackets, and most conditionals, of a rule.
const MAX_BRACKETS: usize = 50;
const MAX_CONDITIONALS: usize = 100;
/// Deepest syntax tree of a rule.
const MAX_DEPTH: usize = 150;
/// Stack of the thread that parses a rule: the parser recurses, and the bounds above keep it within this.
const PARSER_STACK: usize = 64 << 20;
/// Most loop turns of all rules of one object together.
const MAX_WORK: u64 = 10_000_000;
/// Longest message an expression may give.
const MAX_MESSAGE: usize = 5 << 10;

/// A parsed expression.
#[derive(Debug)]
pub(super) struct Checked {
    program: Program,
    /// How deep its loops nest.
    loops: u32,
    pub(super) uses_old: bool,
}

impl Checked {
    /// The root of the syntax tree.
    pub(super) fn expression(&self) -> &IdedExpr {
        self.program.expression()
    }
}

/// The parsed rules of one place of a schema.
#[derive(Debug)]
pub(crate) struct Programs(Vec<(Result<Checked, String>, Option<Checked>)>);

impl Programs {
    fn of(rules: &[Rule]) -> Self {
        let parse = |rule: &Rule| {
            let message = rule.message_expression.as_deref().and_then(|text| compile(text).ok());
            (compile(&rule.rule), message)
        };
        Self(rules.iter().map(parse).collect())
    }
}

/// Parses an expression within bounds.
///
/// # Errors
/// What the parser says, or which bound is exceeded.
pub(super) fn compile(source: &str) -> Result<Checked, String> {
    if source.len() > MAX_LENGTH {
        return Err(format!("expression is longer than {MAX_LENGTH} bytes"));
    }
    let (mut depth, mut deepest) = (0usize, 0);
    for c in source.bytes() {
        match c {
            b'(' | b'[' | b'{' => depth += 1,
            b')' | b']' | b'}' => depth = depth.saturating_sub(1),
            _ => (),
        }
        deepest = deepest.max(depth);
    }
    if deepest > MAX_BRACKETS || source.bytes().filter(|c| *c == b'?').count() > MAX_CONDITIONALS {
        return Err("expression is nested too deep".into());
    }
    let parse = || -> Result<Checked, String> {
        let program = Program::compile(source).map_err(|errors| errors.to_string())?;
        let shape = Shape::of(program.expression());
        match shape.depth > MAX_DEPTH {
            true => Err("expression is nested too deep".into()),
            false => Ok(Checked { program, loops: shape.loops, uses_old: shape.uses_old }),
        }
    };
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().stack_size(PARSER_STACK).spawn_scoped(scope, parse);
        match thread.map(|thread| thread.join()) {
            Ok(Ok(parsed)) => parsed,
            Ok(Err(_)) => Err("the parser gave up".into()),
            Err(error) => Err(error.to_string()),
        }
    })
}

#[derive(Clone, Copy, Default)]
struct Shape {
    depth: usize,
    loops: u32,
    uses_old: bool,
}

impl Shape {
    fn of(expression: &IdedExpr) -> Self {
        let mut children: Vec<&IdedExpr> = Vec::new();
        let mut looped: Vec<&IdedExpr> = Vec::new();
        let mut shape = Self::default();
        match &expression.expr {
            Expr::Ident(name) => shape.uses_old = name == "oldSelf",
            Expr::Call(call) => {
                children.extend(call.target.as_deref());
                children.extend(&call.args);
            }
            Expr::Select(select) => children.push(&select.operand),
            Expr::List(list) => children.extend(&list.elements),
            Expr::Map(map) => children.extend(map.entries.iter().flat_map(|e| entry_parts(&e.expr))),
            Expr::Struct(of) => children.extend(of.entries.iter().flat_map(|e| entry_parts(&e.expr))),
            Expr::Comprehension(over) => {
                children.extend([&over.iter_range, &over.accu_init, &over.result]);
                looped.extend([&over.loop_cond, &over.loop_step]);
            }
            Expr::Literal(_) | Expr::Unspecified => (),
        }
        for (child, turns) in children.into_iter().map(|c| (c, 0)).chain(looped.into_iter().map(|c| (c, 1))) {
            let below = Self::of(child);
            shape.depth = shape.depth.max(below.depth);
            shape.loops = shape.loops.max(below.loops + turns);
            shape.uses_old |= below.uses_old;
        }
        shape.depth += 1;
        shape
    }
}

fn entry_parts(entry: &EntryExpr) -> Vec<&IdedExpr> {
    match entry {
        EntryExpr::StructField(field) => vec![&field.value],
        EntryExpr::MapEntry(entry) => vec![&entry.key, &entry.value],
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
                for (index, item) in items.iter().enumerate() {
                    self.walk(item, old_item(old, item, schema), of, &path.index(index));
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
        let size = count(new) + old.map_or(0, count);
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
            let before = match (program.uses_old, rule.optional_old_self, &before) {
                (false, ..) => None,
                (true, false, None) => continue,
                (true, false, Some(before)) => Some(before.clone()),
                (true, true, before) => Some(optional(before.clone())),
            };
            self.work = self.work.saturating_add(size.saturating_pow(program.loops));
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
                Err(error) => refuse(&format!("{} evaluating rule: {says}", worded(&error))),
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

fn count(value: &Value) -> u64 {
    match value {
        Value::Array(items) => 1 + items.iter().map(count).sum::<u64>(),
        Value::Object(map) => 1 + map.values().map(count).sum::<u64>(),
        // Functions look at text by the character.
        Value::String(text) => 1 + text.len() as u64 / 16,
        _ => 1,
    }
}

fn type_word(schema: Schema<'_>) -> &str {
    schema.rules().and_then(|rules| rules.declared_type.as_deref()).unwrap_or("")
}

thread_local! {
    /// The functions, registered once per thread; each run adds its variables in a scope below.
    static FUNCTIONS: Context<'static> = Context::default().with_all();
}

fn execute(checked: &Checked, subject: &Cel, before: Option<&Cel>) -> Result<Cel, ExecutionError> {
    FUNCTIONS.with(|functions| {
        let mut scope = functions.new_inner_scope();
        scope.add_variable_from_value("self", subject.clone());
        if let Some(before) = before {
            scope.add_variable_from_value("oldSelf", before.clone());
        }
        scope.resolve(checked.expression())
    })
}

/// What the message expression says, if that is fit to be shown.
fn said(message: &Checked, subject: &Cel, before: Option<&Cel>) -> Option<String> {
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

/// An evaluation error in the words of Kubernetes' CEL library.
fn worded(error: &ExecutionError) -> String {
    match error {
        ExecutionError::IndexOutOfBounds(Cel::Int(index)) => format!("index out of bounds: {index}"),
        ExecutionError::DivisionByZero(_) => "division by zero".into(),
        ExecutionError::RemainderByZero(_) => "modulus by zero".into(),
        ExecutionError::NoSuchKey(key) => format!("no such key: {key}"),
        ExecutionError::Overflow(..) => "integer overflow".into(),
        ExecutionError::NoSuchOverload => "no such overload".into(),
        ExecutionError::UndeclaredReference(name) => format!("undeclared reference to '{name}'"),
        ExecutionError::FunctionError { message, .. } => message.clone(),
        other => other.to_string(),
    }
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

fn plain(value: &Value) -> Cel {
    match value {
        Value::Null => Cel::Null,
        Value::Bool(flag) => Cel::Bool(*flag),
        Value::Number(number) => {
            number.as_i64().map_or_else(|| Cel::Float(number.as_f64().unwrap_or_default()), Cel::Int)
        }
        Value::String(text) => Cel::String(Arc::new(text.clone())),
        Value::Array(items) => Cel::List(Arc::new(items.iter().map(plain).collect())),
        Value::Object(map) => {
            let entries = map.iter().map(|(key, value)| (Key::String(Arc::new(key.clone())), plain(value)));
            Cel::Map(CelMap { map: Arc::new(entries.collect()) })
        }
    }
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
    use proptest::prelude::*;

    #[test]
    fn expressions_are_bounded() {
        for source in [
            "(".repeat(4000),
            "!".repeat(4000) + "true",
            "1+".repeat(3000) + "1",
            "a.".repeat(3000) + "a",
            "true?".repeat(3000),
            "x".repeat(MAX_LENGTH + 1),
            "[".repeat(49) + &"]".repeat(49) + &" || true".repeat(900),
            "self.a && ".repeat(700) + "true",
        ] {
            // An answer is all that is asked for.
            let _ = compile(&source);
        }
        assert!(compile("self.all(x, self.all(y, x != y))").is_ok_and(|checked| checked.loops == 2));
        assert!(compile("oldSelf == self").is_ok_and(|checked| checked.uses_old));
    }

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

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn never_panics(source in "[a-z().\\[\\]{}?:!&|<>=+*/ 0-9\"',-]{0,60}") {
            if let Ok(checked) = compile(&source) {
                let _ = execute(&checked, &Cel::Int(1), None);
            }
        }
    }
}
