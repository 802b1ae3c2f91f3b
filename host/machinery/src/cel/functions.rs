//! The functions expressions may call: CEL's own, Kubernetes' libraries, and what those leave out.

use std::sync::Arc;

use kube_cel::{
    KubeCelExt,
    cel::{
        Context, ExecutionError, ResolveResult, Value,
        extractors::{Arguments, This},
    },
};

thread_local! {
    /// Registered once per thread; each run adds its variables in a scope below.
    static FUNCTIONS: Context<'static> = context();
}

pub(super) fn with<T>(then: impl FnOnce(&Context<'static>) -> T) -> T {
    FUNCTIONS.with(then)
}

/// Names of types, which expressions compare with `type(x)`.
const TYPES: [(&str, &str); 11] = [
    ("bool", "bool"),
    ("bytes", "bytes"),
    ("double", "double"),
    ("int", "int"),
    ("list", "list"),
    ("map", "map"),
    ("null_type", "null_type"),
    ("string", "string"),
    ("uint", "uint"),
    ("optional_type", "optional_type"),
    ("type", "type"),
];

fn context() -> Context<'static> {
    let mut context = Context::default().with_all();
    context.add_function("size", size);
    context.add_function("type", type_of);
    context.add_function("@pairs", pairs);
    context.add_function("escapeKey", escape_key);
    super::authorizer::register(&mut context);
    for (name, stands_for) in TYPES {
        context.add_variable_from_value(name, Value::String(Arc::new(format!("type:{stands_for}"))));
    }
    context
}

/// As CEL has it: text is measured in characters.
fn size(This(this): This<Value>) -> ResolveResult {
    let size = match &this {
        Value::List(items) => items.len(),
        Value::Map(map) => map.map.len(),
        Value::String(text) => text.chars().count(),
        Value::Bytes(bytes) => bytes.len(),
        _ => return Err(ExecutionError::NoSuchOverload),
    };
    Ok(Value::Int(i64::try_from(size).unwrap_or(i64::MAX)))
}

/// A key as it stands in the path of a JSON patch.
fn escape_key(Arguments(arguments): Arguments) -> ResolveResult {
    match &arguments[..] {
        [Value::String(key)] => Ok(Value::String(Arc::new(key.replace('~', "~0").replace('/', "~1")))),
        _ => Err(ExecutionError::NoSuchOverload),
    }
}

fn type_of(Arguments(arguments): Arguments) -> ResolveResult {
    let [value] = &arguments[..] else {
        return Err(ExecutionError::invalid_argument_count(1, arguments.len()));
    };
    let name = match value {
        Value::Bool(_) => "bool",
        Value::Bytes(_) => "bytes",
        Value::Float(_) => "double",
        Value::Int(_) => "int",
        Value::List(_) => "list",
        Value::Map(_) => "map",
        Value::Null => "null_type",
        Value::String(_) => "string",
        Value::UInt(_) => "uint",
        Value::Duration(_) => "google.protobuf.Duration",
        Value::Timestamp(_) => "google.protobuf.Timestamp",
        Value::Opaque(opaque) => opaque.runtime_type_name(),
        Value::Function(..) => "function",
    };
    Ok(Value::String(Arc::new(format!("type:{name}"))))
}

/// What loops with two variables go through: index and item of lists, key and value of maps.
fn pairs(Arguments(arguments): Arguments) -> ResolveResult {
    let [value] = &arguments[..] else {
        return Err(ExecutionError::invalid_argument_count(1, arguments.len()));
    };
    let pair = |first: Value, second: &Value| Value::List(Arc::new(vec![first, second.clone()]));
    let pairs = match value {
        Value::List(items) => (0i64..).zip(items.iter()).map(|(i, item)| pair(Value::Int(i), item)).collect(),
        Value::Map(map) => map.map.iter().map(|(key, item)| pair(key.clone().into(), item)).collect(),
        _ => return Err(ExecutionError::NoSuchOverload),
    };
    Ok(Value::List(Arc::new(pairs)))
}
