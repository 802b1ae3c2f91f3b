//! Expressions in CEL, as Kubernetes has them, within bounds.
//!
//! What an expression may cost is bounded before it runs: its length and nesting when it is parsed; callers
//! bound the times its loops may turn ([`Expression::loops`]) over the values they give it.

mod authorizer;
mod functions;
mod macros;

use std::{
    collections::BTreeSet,
    panic::{AssertUnwindSafe, catch_unwind},
};

pub use authorizer::{Check, Decider, Verdict, variables as authorizer};
pub use kube_cel::cel::Value;
use kube_cel::cel::{
    ExecutionError, IdedExpr,
    common::ast::{EntryExpr, Expr},
    objects::{Key, Map},
    parser::Parser,
};
use serde_json::Value as Json;

/// Longest expression, in bytes.
pub const MAX_LENGTH: usize = 8 << 10;
/// Deepest nesting of brackets, and most conditionals, of an expression.
const MAX_BRACKETS: usize = 50;
const MAX_CONDITIONALS: usize = 100;
/// Deepest syntax tree of an expression.
const MAX_DEPTH: usize = 150;
/// Stack of the thread that parses: the parser recurses, and the bounds above keep it within this.
const PARSER_STACK: usize = 64 << 20;

/// A parsed expression.
#[derive(Debug)]
pub struct Expression {
    root: IdedExpr,
    loops: u32,
    /// How many parts the values have that are written out in it.
    parts: u64,
    names: BTreeSet<String>,
}

impl Expression {
    /// How deep its loops nest.
    pub fn loops(&self) -> u32 {
        self.loops
    }

    /// How many turns its loops take at most over values of so many [`parts`], with those that are written out in
    /// it.
    pub fn turns(&self, parts: u64) -> u64 {
        parts.saturating_add(self.parts).saturating_pow(self.loops)
    }

    /// Whether it mentions a variable of that name.
    pub fn mentions(&self, name: &str) -> bool {
        self.names.contains(name)
    }

    /// The root of the syntax tree.
    pub(crate) fn root(&self) -> &IdedExpr {
        &self.root
    }

    /// Evaluates it with variables.
    ///
    /// # Errors
    /// What went wrong, in the words of Kubernetes' CEL library.
    pub fn run<'n>(&self, variables: impl IntoIterator<Item = (&'n str, Value)>) -> Result<Value, String> {
        let evaluate = AssertUnwindSafe(|| {
            functions::with(|functions| {
                let mut scope = functions.new_inner_scope();
                for (name, value) in variables {
                    scope.add_variable_from_value(name, value);
                }
                scope.resolve(&self.root).map_err(|error| worded(&error))
            })
        });
        // The evaluator asserts what the parser promises; a broken promise must not take the server along.
        catch_unwind(evaluate).unwrap_or_else(|_| Err("the evaluator gave up".into()))
    }
}

/// Parses an expression within bounds.
///
/// # Errors
/// What the parser says, or which bound is exceeded.
pub fn compile(source: &str) -> Result<Expression, String> {
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
    let parse = || -> Result<Expression, String> {
        let parser = Parser::default().enable_optional_syntax(true);
        let mut root = parser.parse(source).map_err(|errors| errors.to_string())?;
        if Shape::of(&root).depth > MAX_DEPTH {
            return Err("expression is nested too deep".into());
        }
        macros::expand(&mut root);
        let shape = Shape::of(&root);
        Ok(Expression { root, loops: shape.loops, parts: shape.parts, names: shape.names })
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

#[derive(Default)]
struct Shape {
    depth: usize,
    loops: u32,
    parts: u64,
    names: BTreeSet<String>,
}

impl Shape {
    fn of(expression: &IdedExpr) -> Self {
        let mut children: Vec<&IdedExpr> = Vec::new();
        let mut looped: Vec<&IdedExpr> = Vec::new();
        let mut shape = Self::default();
        match &expression.expr {
            Expr::Ident(name) => drop(shape.names.insert(name.clone())),
            Expr::Call(call) => {
                children.extend(call.target.as_deref());
                children.extend(&call.args);
            }
            Expr::Select(select) => children.push(&select.operand),
            Expr::List(list) => {
                shape.parts += list.elements.len() as u64;
                children.extend(&list.elements);
            }
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
            shape.parts += below.parts;
            shape.names.extend(below.names);
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

/// An evaluation error in the words of Kubernetes' CEL library.
fn worded(error: &ExecutionError) -> String {
    match error {
        ExecutionError::IndexOutOfBounds(Value::Int(index)) => format!("index out of bounds: {index}"),
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

/// How many parts a value has: each item and field is one, and so are 16 bytes of text, which functions look at by
/// the character.
pub fn parts(value: &Json) -> u64 {
    match value {
        Json::Array(items) => 1 + items.iter().map(parts).sum::<u64>(),
        Json::Object(map) => 1 + map.values().map(parts).sum::<u64>(),
        Json::String(text) => 1 + text.len() as u64 / 16,
        _ => 1,
    }
}

/// A JSON value as CEL has it, without a schema.
pub fn plain(value: &Json) -> Value {
    match value {
        Json::Null => Value::Null,
        Json::Bool(flag) => Value::Bool(*flag),
        Json::Number(number) => {
            number.as_i64().map_or_else(|| Value::Float(number.as_f64().unwrap_or_default()), Value::Int)
        }
        Json::String(text) => Value::String(std::sync::Arc::new(text.clone())),
        Json::Array(items) => Value::List(std::sync::Arc::new(items.iter().map(plain).collect())),
        Json::Object(map) => {
            let entries =
                map.iter().map(|(key, value)| (Key::String(std::sync::Arc::new(key.clone())), plain(value)));
            Value::Map(Map { map: std::sync::Arc::new(entries.collect()) })
        }
    }
}

/// A value of CEL as JSON.
///
/// # Errors
/// When it is of a type that JSON does not have.
pub fn json(value: &Value) -> Result<Json, String> {
    Ok(match value {
        Value::Null => Json::Null,
        Value::Bool(flag) => Json::Bool(*flag),
        Value::Int(number) => (*number).into(),
        Value::UInt(number) => (*number).into(),
        Value::Float(number) => (*number).into(),
        Value::String(text) => text.to_string().into(),
        Value::List(items) => Json::Array(items.iter().map(json).collect::<Result<_, _>>()?),
        Value::Map(map) => {
            let pairs = map.map.iter().map(|(key, value)| Ok((key.to_string(), json(value)?)));
            let mut map: serde_json::Map<String, Json> = pairs.collect::<Result<_, String>>()?;
            // The evaluator keeps no order of keys.
            map.sort_keys();
            Json::Object(map)
        }
        other => return Err(format!("a value of type {} cannot be written as JSON", other.type_of())),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn run(source: &str) -> Value {
        compile(source).and_then(|expression| expression.run([])).unwrap_or_else(|e| panic!("{source}: {e}"))
    }

    #[test]
    fn what_kubernetes_adds() {
        for source in [
            "'äö'.size() == 2 && size('äö') == 2",
            "type(1) == int && type('a') == string && type([]) == list",
            "{'a': 1}.?a.hasValue() && !{'a': 1}.?b.hasValue()",
            "{'a': 1}.?b.orValue(3) == 3",
            "{'a': 1, 'b': 2}.all(k, v, v > 0 && k != 'c')",
            "[5, 6].exists(i, v, i == 1 && v == 6)",
            "{'a': 1, 'b': 2}.existsOne(k, v, v == 2)",
            "[1, 2].all(a, [3, 4].all(b, c, a < c))",
            "quantity('1Gi').isGreaterThan(quantity('1Mi'))",
            "Object.spec{a: Object.spec.a{b: 'c'}, ?d: {}.?e} == {'a': {'b': 'c'}}",
            "jsonpatch.escapeKey('a/b~c') == 'a~1b~0c'",
            "isIP('10.0.0.1') && cidr('10.0.0.0/8').containsIP('10.1.1.1')",
        ] {
            assert_eq!(run(source), Value::Bool(true), "{source}");
        }
    }

    #[test]
    fn errors_are_worded() {
        for (source, error) in [
            ("[1][3]", "index out of bounds: 3"),
            ("1 / 0", "division by zero"),
            ("{'a': 1}['b']", "no such key: b"),
        ] {
            assert_eq!(compile(source).unwrap().run([]), Err(error.into()), "{source}");
        }
    }

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
        ] {
            // Some are fine after all; an answer within the stack is what counts.
            if let Ok(expression) = compile(&source) {
                assert!(Shape::of(expression.root()).depth <= MAX_DEPTH + 2);
            }
        }
        assert!(compile("self.all(x, self.all(y, x != y))").is_ok_and(|expression| expression.loops() == 2));
        let nested = compile("[1, 2].all(x, [3].all(y, self.all(z, x < y)))").unwrap();
        assert_eq!((nested.turns(7), nested.turns(u64::MAX)), (1000, u64::MAX));
        assert!(compile("oldSelf == self").is_ok_and(|expression| expression.mentions("oldSelf")));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn never_panics(source in "[a-z().\\[\\]{}?:!&|<>=+*/ 0-9\"',-]{0,60}") {
            if let Ok(expression) = compile(&source) {
                let _ = expression.run([("self", Value::Int(1))]);
            }
        }
    }
}
