//! What is wrong with CEL expressions, as far as it can be told without running them.

use kube_cel::cel::common::ast::{Expr, IdedExpr, LiteralValue, operators};
use kube_cel::cel::parser::Parser;

use crate::errors::{At, Errors};

/// What expressions of policies and webhooks may name.
const VARIABLES: [&str; 7] =
    ["object", "oldObject", "request", "params", "namespaceObject", "authorizer", "variables"];
/// Deeper expressions are not looked into.
const MAX_DEPTH: usize = 200;

/// The type of a value, where it can be told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Type {
    Bool,
    Bytes,
    Double,
    Int,
    List,
    Map,
    Null,
    String,
    Uint,
    /// It depends on the data.
    Dyn,
}

impl Type {
    fn name(self) -> &'static str {
        match self {
            Self::Bool => "bool",
            Self::Bytes => "bytes",
            Self::Double => "double",
            Self::Int => "int",
            Self::List => "list",
            Self::Map => "map",
            Self::Null => "null_type",
            Self::String => "string",
            Self::Uint => "uint",
            Self::Dyn => "dyn",
        }
    }
}

/// Checks an expression of any type.
pub(crate) fn any(text: &str, at: &At<'_>, errors: &mut Errors) {
    typed(text, None, at, errors);
}

/// Checks an expression that must be true or false.
pub(crate) fn boolean(text: &str, at: &At<'_>, errors: &mut Errors) {
    typed(text, Some(Type::Bool), at, errors);
}

/// Checks an expression that must be text.
pub(crate) fn string(text: &str, at: &At<'_>, errors: &mut Errors) {
    typed(text, Some(Type::String), at, errors);
}

fn typed(text: &str, wanted: Option<Type>, at: &At<'_>, errors: &mut Errors) {
    let parsed = match Parser::new().enable_optional_syntax(true).parse(text) {
        Ok(parsed) => parsed,
        Err(wrong) => {
            errors.invalid_text(at, text, &format!("compilation failed: {}", spaced(&wrong.to_string())));
            return;
        }
    };
    let mut scope = Vec::new();
    let mut unknown = None;
    let found = infer(&parsed, &mut scope, &mut unknown, 0);
    if let Some(unknown) = unknown {
        errors.invalid_text(at, text, &format!("compilation failed: {}", undeclared(text, &unknown)));
    } else if let Some(wanted) = wanted.filter(|wanted| found != Type::Dyn && found != *wanted) {
        let why = format!("must evaluate to {} but got {}", wanted.name(), found.name());
        errors.invalid_text(at, text, &why);
    }
}

/// The lines that show the place stand one blank in.
fn spaced(message: &str) -> String {
    message.replace("\n| ", "\n | ")
}

/// A name nothing stands behind.
enum Unknown {
    Variable(String),
    Function(String),
}

/// `ERROR: <input>:1:1: undeclared reference to 'x' …`, with the line and a mark below the place.
fn undeclared(text: &str, unknown: &Unknown) -> String {
    let (name, offset) = match unknown {
        Unknown::Variable(name) => (name, word(text, name)),
        // A call is shown where its arguments begin.
        Unknown::Function(name) => (name, word(text, name) + name.len()),
    };
    let before = &text[..offset.min(text.len())];
    let line = before.matches('\n').count();
    let column = before.rsplit('\n').next().unwrap_or("").chars().count();
    let shown = text.lines().nth(line).unwrap_or("");
    let dots = ".".repeat(column);
    format!(
        "ERROR: <input>:{}:{}: undeclared reference to '{name}' (in container '')\n | {shown}\n | {dots}^",
        line + 1,
        column + 1
    )
}

/// Where a name stands alone in a text.
fn word(text: &str, name: &str) -> usize {
    let part_of_name = |c: char| c.is_alphanumeric() || c == '_';
    let alone =
        |at: usize| !text[..at].ends_with(part_of_name) && !text[at + name.len()..].starts_with(part_of_name);
    text.match_indices(name).map(|(at, _)| at).find(|at| alone(*at)).unwrap_or(0)
}

fn infer(expr: &IdedExpr, scope: &mut Vec<String>, unknown: &mut Option<Unknown>, depth: usize) -> Type {
    if depth > MAX_DEPTH {
        return Type::Dyn;
    }
    match &expr.expr {
        Expr::Literal(literal) => literal_type(literal),
        Expr::Ident(name) => {
            if !VARIABLES.contains(&name.as_str()) && !scope.contains(name) && type_named(name).is_none() {
                unknown.get_or_insert(Unknown::Variable(name.clone()));
            }
            Type::Dyn
        }
        Expr::Select(select) => {
            infer(&select.operand, scope, unknown, depth + 1);
            if select.test { Type::Bool } else { Type::Dyn }
        }
        Expr::List(list) => {
            list.elements.iter().for_each(|e| {
                infer(e, scope, unknown, depth + 1);
            });
            Type::List
        }
        Expr::Map(_) => Type::Map,
        Expr::Comprehension(loop_) => {
            infer(&loop_.iter_range, scope, unknown, depth + 1);
            let names = [Some(&loop_.iter_var), loop_.iter_var2.as_ref(), Some(&loop_.accu_var)];
            let known = scope.len();
            scope.extend(names.into_iter().flatten().cloned());
            let start = infer(&loop_.accu_init, scope, unknown, depth + 1);
            infer(&loop_.loop_step, scope, unknown, depth + 1);
            scope.truncate(known);
            // `all` and `exists` start from a truth value, and end with one.
            if start == Type::Bool { Type::Bool } else { Type::Dyn }
        }
        Expr::Call(call) => {
            if let Some(target) = &call.target {
                infer(target, scope, unknown, depth + 1);
            }
            let arguments: Vec<Type> =
                call.args.iter().map(|a| infer(a, scope, unknown, depth + 1)).collect();
            if let Some(found) = operator_type(&call.func_name, &arguments) {
                return found;
            }
            if !FUNCTIONS.contains(&call.func_name.as_str()) {
                unknown.get_or_insert(Unknown::Function(call.func_name.clone()));
            }
            function_type(&call.func_name)
        }
        _ => Type::Dyn,
    }
}

fn literal_type(literal: &LiteralValue) -> Type {
    match literal {
        LiteralValue::Boolean(_) => Type::Bool,
        LiteralValue::Bytes(_) => Type::Bytes,
        LiteralValue::Double(_) => Type::Double,
        LiteralValue::Int(_) => Type::Int,
        LiteralValue::Null => Type::Null,
        LiteralValue::String(_) => Type::String,
        LiteralValue::UInt(_) => Type::Uint,
    }
}

fn type_named(name: &str) -> Option<Type> {
    [Type::Bool, Type::Bytes, Type::Double, Type::Int, Type::List, Type::Map, Type::String, Type::Uint]
        .into_iter()
        .find(|t| t.name() == name)
        .or_else(|| matches!(name, "type" | "dyn" | "null_type").then_some(Type::Dyn))
}

fn operator_type(name: &str, arguments: &[Type]) -> Option<Type> {
    use operators as op;
    Some(match name {
        op::LOGICAL_AND
        | op::LOGICAL_OR
        | op::LOGICAL_NOT
        | op::EQUALS
        | op::NOT_EQUALS
        | op::LESS
        | op::LESS_EQUALS
        | op::GREATER
        | op::GREATER_EQUALS
        | op::IN
        | op::NOT_STRICTLY_FALSE => Type::Bool,
        op::ADD | op::SUBSTRACT | op::MULTIPLY | op::DIVIDE | op::MODULO => match arguments {
            [a, b] if a == b => *a,
            [Type::Dyn, other] | [other, Type::Dyn] => *other,
            _ => Type::Dyn,
        },
        op::NEGATE => arguments.first().copied().unwrap_or(Type::Dyn),
        op::CONDITIONAL => match arguments {
            [_, a, b] if a == b => *a,
            _ => Type::Dyn,
        },
        name if name.starts_with('_') || name.starts_with('@') => Type::Dyn,
        _ => return None,
    })
}

fn function_type(name: &str) -> Type {
    match name {
        "has" | "startsWith" | "endsWith" | "contains" | "matches" | "all" | "exists" | "exists_one"
        | "isURL" | "isIP" | "isCIDR" | "isQuantity" | "isSemver" | "allowed" | "isSorted" | "hasValue" => {
            Type::Bool
        }
        "size" | "indexOf" | "lastIndexOf" | "int" => Type::Int,
        "string" | "lowerAscii" | "upperAscii" | "replace" | "trim" | "substring" | "join" => Type::String,
        "double" => Type::Double,
        "uint" => Type::Uint,
        "bool" => Type::Bool,
        "bytes" => Type::Bytes,
        _ => Type::Dyn,
    }
}

/// The functions the server's expressions know.
const FUNCTIONS: [&str; 129] = [
    "add",
    "all",
    "allowed",
    "asApproximateFloat",
    "asInteger",
    "bool",
    "bytes",
    "charAt",
    "check",
    "cidr",
    "compareTo",
    "contains",
    "containsCIDR",
    "containsIP",
    "distinct",
    "double",
    "duration",
    "dyn",
    "endsWith",
    "equivalent",
    "error",
    "errored",
    "escapeKey",
    "exists",
    "existsOne",
    "exists_one",
    "family",
    "fieldSelector",
    "filter",
    "find",
    "findAll",
    "first",
    "flatten",
    "format",
    "getDate",
    "getDayOfMonth",
    "getDayOfWeek",
    "getDayOfYear",
    "getEscapedPath",
    "getFullYear",
    "getHost",
    "getHostname",
    "getHours",
    "getMilliseconds",
    "getMinutes",
    "getMonth",
    "getPort",
    "getQuery",
    "getScheme",
    "getSeconds",
    "greatest",
    "group",
    "has",
    "hasValue",
    "indexOf",
    "int",
    "intersects",
    "ip",
    "isCIDR",
    "isCanonical",
    "isGlobalUnicast",
    "isGreaterThan",
    "isIP",
    "isInteger",
    "isLessThan",
    "isLinkLocalMulticast",
    "isLinkLocalUnicast",
    "isLoopback",
    "isQuantity",
    "isSemver",
    "isSorted",
    "isURL",
    "isUnspecified",
    "join",
    "labelSelector",
    "last",
    "lastIndexOf",
    "least",
    "lowerAscii",
    "major",
    "map",
    "masked",
    "matches",
    "max",
    "min",
    "minor",
    "name",
    "named",
    "namespace",
    "none",
    "of",
    "ofNonZeroValue",
    "optFlatMap",
    "optMap",
    "or",
    "orValue",
    "patch",
    "path",
    "prefixLength",
    "quantity",
    "quote",
    "reason",
    "replace",
    "resource",
    "reverse",
    "semver",
    "serviceAccount",
    "sign",
    "size",
    "slice",
    "sort",
    "split",
    "startsWith",
    "string",
    "sub",
    "subresource",
    "substring",
    "sum",
    "timestamp",
    "transformList",
    "transformMap",
    "transformMapEntry",
    "trim",
    "type",
    "uint",
    "upperAscii",
    "url",
    "validate",
    "value",
];

#[cfg(test)]
mod tests {
    use super::*;

    fn wrong(text: &str, check: fn(&str, &At<'_>, &mut Errors)) -> Vec<String> {
        let mut errors = Errors::default();
        check(text, &At::new("f"), &mut errors);
        errors.done().into_iter().map(|cause| cause.message).collect()
    }

    #[test]
    fn expressions_that_cannot_be_meant() {
        for good in [
            "true",
            "object.spec.replicas <= 5",
            "has(object.spec) && object.spec.list.all(x, x.size() > 2)",
            "request.userInfo.username.startsWith('a')",
            "!(object.a in ['x', 'y'])",
            "variables.x ? true : false",
            "authorizer.group('').resource('pods').check('get').allowed()",
        ] {
            assert_eq!(wrong(good, boolean), Vec::<String>::new(), "{good}");
        }
        assert_eq!(wrong("1 + 1", boolean), [r#"Invalid value: "1 + 1": must evaluate to bool but got int"#]);
        assert!(wrong("a ===", boolean)[0].contains("compilation failed: ERROR: <input>:1:"));
        assert!(
            wrong("foo.bar", any)[0]
                .ends_with("undeclared reference to 'foo' (in container '')\n | foo.bar\n | ^")
        );
        assert_eq!(wrong("'a'", string), Vec::<String>::new());
    }
}
