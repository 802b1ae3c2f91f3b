//! A first look at the types of a rule, when it is defined: fields that do not exist, operands that do not
//! fit, results that are no boolean. What cannot be known without running it counts as fitting.

use kube_cel::cel::{
    IdedExpr,
    common::ast::{Expr, LiteralValue},
};

use super::rules::escaped;
use crate::{
    cel::Expression,
    schema::{Kind, Schema},
};

#[derive(Clone)]
enum Type<'s> {
    /// Not known before the rule runs.
    Any,
    /// A type of CEL by name.
    Plain(&'static str),
    /// Whatever the schema holds here; `true` at the root of a resource.
    Place(Schema<'s>, bool),
}

struct Problem {
    /// Where in the source, to point at.
    needle: String,
    says: String,
}

/// What is wrong with a rule for values of that schema, in the words of Kubernetes' compiler.
pub(super) fn check(rule: &str, checked: &Expression, schema: Schema<'_>, root: bool) -> Option<String> {
    let scope = vec![("self", Type::Place(schema, root)), ("oldSelf", Type::Any)];
    match infer(checked.root(), &scope) {
        Err(problem) => Some(pointed(rule, &problem)),
        Ok(result) => match result.name() {
            Some("bool") | None => None,
            Some(_) => Some("cel expression must evaluate to a bool".into()),
        },
    }
}

/// The message with the place it is about.
fn pointed(rule: &str, problem: &Problem) -> String {
    let at = rule.find(&problem.needle).unwrap_or(0);
    let line = rule[..at].matches('\n').count();
    let start = rule[..at].rfind('\n').map_or(0, |end| end + 1);
    let column = rule[start..at].chars().count();
    let text = rule[start..].lines().next().unwrap_or("");
    let (says, dots) = (&problem.says, ".".repeat(column));
    format!("compilation failed: ERROR: <input>:{}:{}: {says}\n | {text}\n | {dots}^", line + 1, column + 1)
}

impl<'s> Type<'s> {
    /// The name of a type that is known.
    fn name(&self) -> Option<&'static str> {
        match self {
            Self::Any => None,
            Self::Plain(name) => Some(name),
            Self::Place(schema, _) => match (schema.kind(), schema.format()) {
                _ if schema.nullable() => None,
                (Kind::String, "byte") => Some("bytes"),
                (Kind::String, "date" | "date-time") => Some("google.protobuf.Timestamp"),
                (Kind::String, "duration") => Some("google.protobuf.Duration"),
                (Kind::String, _) => Some("string"),
                (Kind::Integer64 | Kind::Integer32, _) => Some("int"),
                (Kind::Number, _) => Some("double"),
                (Kind::Boolean, _) => Some("bool"),
                _ => None,
            },
        }
    }

    fn field(&self, name: &str) -> Result<Type<'s>, Problem> {
        let Self::Place(schema, root) = self else { return Ok(Self::Any) };
        let identity = *root || schema.embedded_resource();
        if let Some((_, field)) = schema.fields().find(|(key, _)| escaped(key) == name) {
            return Ok(if field.rules().is_some() { Self::Place(field, false) } else { Self::Any });
        }
        if let Some(values) = schema.values() {
            return Ok(Self::Place(values, false));
        }
        let open = schema.preserve_unknown() || schema.kind() != Kind::Object || identity;
        match open {
            true => Ok(Self::Any),
            false => Err(Problem { needle: format!(".{name}"), says: format!("undefined field '{name}'") }),
        }
    }

    fn element(&self) -> Type<'s> {
        match self {
            Self::Place(schema, _) => {
                schema.items().or_else(|| schema.values()).map_or(Self::Any, |of| Self::Place(of, false))
            }
            _ => Self::Any,
        }
    }

    /// What a loop over it goes through: items, or the keys of a map.
    fn turned(&self) -> Type<'s> {
        match self {
            Self::Place(schema, _) if schema.items().is_none() => match schema.kind() {
                Kind::Object => Self::Plain("string"),
                _ => Self::Any,
            },
            _ => self.element(),
        }
    }
}

fn infer<'s>(expression: &IdedExpr, scope: &[(&str, Type<'s>)]) -> Result<Type<'s>, Problem> {
    Ok(match &expression.expr {
        Expr::Literal(literal) => match literal {
            LiteralValue::Boolean(_) => Type::Plain("bool"),
            LiteralValue::Bytes(_) => Type::Plain("bytes"),
            LiteralValue::Double(_) => Type::Plain("double"),
            LiteralValue::Int(_) => Type::Plain("int"),
            LiteralValue::String(_) => Type::Plain("string"),
            LiteralValue::UInt(_) => Type::Plain("uint"),
            LiteralValue::Null => Type::Any,
        },
        Expr::Ident(name) => {
            scope.iter().rev().find(|(known, _)| known == name).map_or(Type::Any, |(_, of)| of.clone())
        }
        Expr::Select(select) => {
            let field = infer(&select.operand, scope)?.field(&select.field)?;
            if select.test { Type::Plain("bool") } else { field }
        }
        Expr::Call(call) => {
            let mut operands = Vec::with_capacity(call.args.len());
            let target = call.target.as_deref().map(|target| infer(target, scope)).transpose()?;
            for argument in &call.args {
                operands.push(infer(argument, scope)?);
            }
            called(&call.func_name, target.is_some(), &operands)?
        }
        Expr::Comprehension(over) => {
            let range = infer(&over.iter_range, scope)?;
            let mut inner = scope.to_vec();
            match &over.iter_var2 {
                None => inner.push((&over.iter_var, range.turned())),
                Some(second) => inner.extend([(&*over.iter_var, Type::Any), (&**second, range.element())]),
            }
            let start = infer(&over.accu_init, scope)?;
            inner.push((&over.accu_var, Type::Any));
            infer(&over.loop_step, &inner)?;
            // Loops that begin with true or false end with one.
            if start.name() == Some("bool") { start } else { Type::Any }
        }
        Expr::List(_) | Expr::Map(_) | Expr::Struct(_) | Expr::Unspecified => Type::Any,
    })
}

const BOOLEAN_FUNCTIONS: [&str; 11] = [
    "startsWith",
    "endsWith",
    "contains",
    "matches",
    "hasValue",
    "isIP",
    "isCIDR",
    "isURL",
    "isQuantity",
    "isSorted",
    "@in",
];

fn called<'s>(name: &str, is_method: bool, operands: &[Type<'s>]) -> Result<Type<'s>, Problem> {
    let known: Vec<Option<&str>> = operands.iter().map(Type::name).collect();
    let mismatch = |symbol: &str| {
        let names: Vec<&str> = known.iter().map(|name| name.unwrap_or("dyn")).collect();
        Problem {
            needle: symbol.into(),
            says: format!("found no matching overload for '{name}' applied to '({})'", names.join(", ")),
        }
    };
    Ok(match (name, &known[..], operands) {
        ("_==_" | "_!=_", [Some(a), Some(b)], _) if a != b => return Err(mismatch(&name[1..3])),
        ("_<_" | "_<=_" | "_>_" | "_>=_", [Some(a), Some(b)], _) if a != b && !(number(a) && number(b)) => {
            return Err(mismatch(name.trim_matches('_')));
        }
        ("_==_" | "_!=_" | "_<_" | "_<=_" | "_>_" | "_>=_" | "!_", ..) => Type::Plain("bool"),
        ("_&&_" | "_||_", [Some(a), Some(b)], _) if *a != "bool" || *b != "bool" => {
            return Err(mismatch(name.trim_matches('_')));
        }
        ("_&&_" | "_||_", ..) => Type::Plain("bool"),
        ("_+_" | "_-_" | "_*_" | "_/_" | "_%_", [Some(a), Some(b)], [first, _]) => match () {
            () if a == b && (number(a) || name == "_+_") => Type::Plain(first.name().unwrap_or_default()),
            () if number(a) || *a == "string" => return Err(mismatch(name.trim_matches('_'))),
            () => Type::Any,
        },
        ("_?_:_", [_, Some(a), Some(b)], [_, first, _]) if a == b => first.clone(),
        ("_[_]", _, [of, _]) => of.element(),
        ("size", ..) => Type::Plain("int"),
        (name, ..) if is_method && BOOLEAN_FUNCTIONS.contains(&name) => Type::Plain("bool"),
        _ => Type::Any,
    })
}

fn number(name: &str) -> bool {
    matches!(name, "int" | "uint" | "double")
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::{cel::compile, schema::KindSchema};

    fn problem(place: Value, rule: &str) -> Option<String> {
        let kind = KindSchema::custom(&json!({"type": "object", "properties": {"x": place}})).unwrap();
        let schema = kind.schema().field("x").unwrap();
        check(rule, &compile(rule).unwrap(), schema, false)
    }

    #[test]
    fn problems() {
        let object =
            || json!({"type": "object", "properties": {"a": {"type": "integer"}, "b-c": {"type": "string"}}});
        assert_eq!(
            problem(object(), "self.b > 1").unwrap(),
            "compilation failed: ERROR: <input>:1:5: undefined field 'b'\n | self.b > 1\n | ....^"
        );
        assert_eq!(
            problem(json!({"type": "integer"}), r#"self == "a""#).unwrap(),
            "compilation failed: ERROR: <input>:1:6: found no matching overload for '_==_' applied to '(int, string)'\n | self == \"a\"\n | .....^"
        );
        assert_eq!(
            problem(json!({"type": "integer"}), "self + 1").unwrap(),
            "cel expression must evaluate to a bool"
        );
        assert!(problem(object(), "self.all(k, k.startsWith('x')) && self.nothing").is_some());
    }

    #[test]
    fn rules_that_fit() {
        let object = json!({"type": "object", "properties": {"a": {"type": "integer"}, "b-c": {"type": "string"},
            "l": {"type": "array", "items": {"type": "object", "properties": {"n": {"type": "string"}}}},
            "m": {"type": "object", "additionalProperties": {"type": "number"}},
            "i": {"x-kubernetes-int-or-string": true}}});
        for rule in [
            "has(self.a) && self.a > 1",
            "self.b__dash__c == 'x'",
            "self.l.all(e, e.n != '')",
            "self.l.exists(e, has(e.n) && e.n.startsWith('a'))",
            "self.m.all(k, self.m[k] > 1.0)",
            "type(self.i) == int ? self.i < 100 : self.i.endsWith('%')",
            "self.a + 1 == 2 || size(self.l) > 3",
            "!has(oldSelf.a) || self.a >= oldSelf.a",
            "self.l.map(e, e.n).isSorted()",
        ] {
            assert_eq!(problem(object.clone(), rule), None, "{rule}");
        }
    }
}
