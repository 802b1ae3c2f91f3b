//! Whether a configuration fits the schema, in the words Kubernetes uses.

use std::collections::BTreeSet;

use serde_json::{Map, Value};

use super::{
    Element,
    typed::{ListShape, MapShape, Scalar, Shape, Type},
};
use crate::patch::gofmt;

/// Most faults that are listed.
const MAX_FAULTS: usize = 64;

/// What is wrong with a configuration; `None` when nothing is.
pub(super) fn validate(ty: Type<'_>, value: &Value) -> Option<String> {
    let mut faults = Vec::new();
    walk(ty, value, &mut String::new(), &mut faults);
    match &*faults {
        [] => None,
        [one] => Some(one.clone()),
        many => {
            Some(format!("errors:\n{}", many.iter().map(|f| format!("  {f}")).collect::<Vec<_>>().join("\n")))
        }
    }
}

fn fault(path: &str, what: String, faults: &mut Vec<String>) {
    if faults.len() < MAX_FAULTS {
        faults.push(if path.is_empty() { what } else { format!("{path}: {what}") });
    }
}

fn walk(ty: Type<'_>, value: &Value, path: &mut String, faults: &mut Vec<String>) {
    match (ty.shape(Some(value)), value) {
        (_, Value::Null) => (),
        (Shape::Map(map), Value::Object(fields)) => fields_of(map, fields, path, faults),
        (Shape::Map(_), other) => {
            fault(path, format!("expected map, got &{{{}}}", gofmt::plain(other)), faults)
        }
        (Shape::List(list), Value::Array(items)) => items_of(list, items, path, faults),
        (Shape::List(_), other) => {
            fault(path, format!("expected list, got &{{{}}}", gofmt::plain(other)), faults);
        }
        (Shape::Scalar(scalar), value) => {
            if let Some(what) = scalar_fault(scalar, value) {
                fault(path, what, faults);
            }
        }
    }
}

fn scalar_fault(scalar: Scalar, value: &Value) -> Option<String> {
    match (scalar, value) {
        (Scalar::Number, Value::Number(_))
        | (Scalar::Text, Value::String(_))
        | (Scalar::Boolean, Value::Bool(_))
        | (Scalar::Any, Value::Number(_) | Value::String(_) | Value::Bool(_)) => None,
        (Scalar::Number, other) => {
            Some(format!("expected numeric (int or float), got {}", gofmt::type_name(other)))
        }
        (Scalar::Text, other) => {
            Some(format!("expected string, got &value.valueUnstructured{{Value:{}}}", gofmt::syntax(other)))
        }
        (Scalar::Boolean, other) => Some(format!("expected boolean, got &{{{}}}", gofmt::plain(other))),
        (Scalar::Any, other) => Some(format!("expected any scalar, got &{{{}}}", gofmt::plain(other))),
    }
}

fn below(path: &mut String, element: &Element, step: impl FnOnce(&mut String)) {
    let length = path.len();
    path.push_str(&element.to_string());
    step(path);
    path.truncate(length);
}

fn fields_of(map: MapShape<'_>, fields: &Map<String, Value>, path: &mut String, faults: &mut Vec<String>) {
    for (key, value) in fields {
        let element = Element::field(key);
        match map.entry(key) {
            Some(ty) => below(path, &element, |path| walk(ty, value, path, faults)),
            None => {
                below(path, &element, |path| fault(path, "field not declared in schema".into(), faults));
            }
        }
    }
}

fn items_of(list: ListShape<'_>, items: &[Value], path: &mut String, faults: &mut Vec<String>) {
    let mut seen = BTreeSet::new();
    for (i, item) in items.iter().enumerate() {
        let element = if list.atomic() {
            Element::Index(i64::try_from(i).unwrap_or(i64::MAX))
        } else {
            match list.element(item) {
                Ok(element) => element,
                Err(why) => return fault(path, format!("element {i}: {why}"), faults),
            }
        };
        below(path, &element, |path| walk(list.items(), item, path, faults));
        if !list.atomic() && !seen.insert(element.clone()) {
            fault(path, format!("duplicate entries for key {element}"), faults);
        }
    }
}
