//! The fields of every built-in type, as facts: order, optionality, and what kind of value each holds.
//!
//! `data/types.txt` has one line per type: its name (`<apiVersion>.<Type>`), then its fields. A field is
//! `json:type`, with `Go=` in front where the name in the server's own structs is not the JSON name
//! capitalized, and flags after the colon: `?` left out when empty, `!` left out when zero. A type is a letter
//! (see [`Scalar`]), `[T`, `{T` (map of text to T), `*T` (may be absent), or the name of another type: `/T`
//! in `meta/v1`, `a/v.T` in another version, `T` in the same.

use std::collections::HashMap;
use std::sync::LazyLock;

/// A value with no fields of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Scalar {
    /// `s`
    Text,
    /// `b`
    Bool,
    /// `i`
    Int,
    /// `f`
    Float,
    /// `y`, base64
    Bytes,
    /// `q`
    Quantity,
    /// `t`, whole seconds
    Time,
    /// `m`, microseconds
    MicroTime,
    /// `x`
    IntOrText,
    /// `d`
    Duration,
    /// `r`, any JSON
    Raw,
}

/// The type of a field.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Type {
    Scalar(Scalar),
    List(Box<Type>),
    Map(Box<Type>),
    /// A value that may be absent and whose zero therefore counts.
    Optional(Box<Type>),
    /// Index into [`Types::structs`].
    Struct(usize),
}

/// One field of a type.
#[derive(Clone, Debug)]
pub(crate) struct Field {
    /// The JSON name.
    pub(crate) json: &'static str,
    /// The name in the server's own structs, which some messages show; `None`: the JSON name, capitalized.
    pub(crate) go: Option<&'static str>,
    /// Left out when empty.
    pub(crate) omit_empty: bool,
    /// Left out when zero, structs included.
    pub(crate) omit_zero: bool,
    pub(crate) kind: Type,
}

/// A type with fields.
#[derive(Debug)]
pub(crate) struct Struct {
    /// Whether JSON names are also what the server's own structs show.
    pub(crate) tagged: bool,
    pub(crate) fields: Vec<Field>,
    by_name: HashMap<&'static str, usize>,
    /// Indices of fields that are written even when nobody set them.
    pub(crate) always: Vec<usize>,
}

impl Struct {
    /// The field of that JSON name.
    pub(crate) fn field(&self, json: &str) -> Option<&Field> {
        self.by_name.get(json).map(|i| &self.fields[*i])
    }
}

/// All types.
#[derive(Debug)]
pub(crate) struct Types {
    pub(crate) structs: Vec<Struct>,
    by_name: HashMap<&'static str, usize>,
}

static TYPES: LazyLock<Types> = LazyLock::new(|| Types::parse(include_str!("../data/types.txt")));

/// The table, read on first use.
pub(crate) fn types() -> &'static Types {
    &TYPES
}

impl Types {
    /// The type of that name, for instance `v1.Pod`.
    pub(crate) fn index(&self, name: &str) -> Option<usize> {
        self.by_name.get(name).copied()
    }

    /// The type an object of that `apiVersion` and kind has.
    pub(crate) fn of(&self, api_version: &str, kind: &str) -> Option<usize> {
        self.index(&format!("{api_version}.{kind}"))
    }

    fn parse(text: &'static str) -> Self {
        let lines = || text.lines().filter_map(|line| line.split_once(' '));
        let by_name: HashMap<_, _> = lines().enumerate().map(|(i, (name, _))| (name, i)).collect();
        let structs = lines().map(|(name, fields)| parse_struct(name, fields, &by_name)).collect();
        Self { structs, by_name }
    }
}

fn parse_struct(name: &'static str, text: &'static str, names: &HashMap<&'static str, usize>) -> Struct {
    let package = name.rsplit_once('.').map_or("", |(package, _)| package);
    let fields: Vec<Field> =
        text.split_whitespace().filter_map(|field| parse_field(field, package, names)).collect();
    let by_name = fields.iter().enumerate().map(|(i, f)| (f.json, i)).collect();
    let always = (0..fields.len()).filter(|i| is_always_written(&fields[*i])).collect();
    Struct { tagged: package == "meta/v1", fields, by_name, always }
}

fn is_always_written(field: &Field) -> bool {
    let unset_is_shown = matches!(
        field.kind,
        Type::Struct(_)
            | Type::Scalar(Scalar::Quantity | Scalar::IntOrText | Scalar::Time | Scalar::MicroTime)
    );
    !field.omit_zero && (!field.omit_empty || unset_is_shown)
}

fn parse_field(text: &'static str, package: &str, names: &HashMap<&'static str, usize>) -> Option<Field> {
    let (name, kind) = text.split_once(':')?;
    let (go, json) = match name.split_once('=') {
        Some((go, json)) => (Some(go.rsplit('.').next().unwrap_or(go)), json),
        None => (None, name),
    };
    let omit_empty = kind.starts_with('?');
    let kind = kind.trim_start_matches('?');
    let omit_zero = kind.starts_with('!');
    let kind = parse_type(kind.trim_start_matches('!'), package, names)?;
    Some(Field { json, go, omit_empty, omit_zero, kind })
}

fn parse_type(text: &str, package: &str, names: &HashMap<&'static str, usize>) -> Option<Type> {
    let inner = |rest: &str| parse_type(rest, package, names).map(Box::new);
    Some(match text {
        "s" => Type::Scalar(Scalar::Text),
        "b" => Type::Scalar(Scalar::Bool),
        "i" => Type::Scalar(Scalar::Int),
        "f" => Type::Scalar(Scalar::Float),
        "y" => Type::Scalar(Scalar::Bytes),
        "q" => Type::Scalar(Scalar::Quantity),
        "t" => Type::Scalar(Scalar::Time),
        "m" => Type::Scalar(Scalar::MicroTime),
        "x" => Type::Scalar(Scalar::IntOrText),
        "d" => Type::Scalar(Scalar::Duration),
        "r" => Type::Scalar(Scalar::Raw),
        _ => match text.split_at_checked(1)? {
            ("[", rest) => Type::List(inner(rest)?),
            ("{", rest) => Type::Map(inner(rest)?),
            ("*", rest) => Type::Optional(inner(rest)?),
            ("/", rest) => Type::Struct(*names.get(&*format!("meta/v1.{rest}"))?),
            _ if text.contains('.') => Type::Struct(*names.get(text)?),
            _ => Type::Struct(*names.get(&*format!("{package}.{text}"))?),
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_line_is_read_whole() {
        for line in include_str!("../data/types.txt").lines() {
            let (name, fields) = line.split_once(' ').unwrap();
            let parsed = &types().structs[types().index(name).unwrap()];
            assert_eq!(parsed.fields.len(), fields.split_whitespace().count(), "{name}");
        }
        assert!(types().of("apps/v1", "Deployment").is_some());
    }
}
