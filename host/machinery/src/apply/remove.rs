//! Takes fields and items out of a value.

use serde_json::{Map, Value};

use super::{
    Element, Set,
    typed::{ListShape, MapShape, Shape, Type},
};

/// The value without the members of the set. What becomes empty thereby becomes null.
pub(super) fn remove(ty: Type<'_>, value: &Value, set: &Set) -> Value {
    if set.is_empty() {
        return value.clone();
    }
    match (ty.shape(Some(value)), value) {
        (Shape::Map(map), Value::Object(fields)) if !map.atomic() => from_map(map, fields, set),
        (Shape::List(list), Value::Array(items)) if !list.atomic() => from_list(list, items, set),
        (Shape::Scalar(_), value) => value.clone(),
        _ => Value::Null,
    }
}

fn from_map(map: MapShape<'_>, fields: &Map<String, Value>, set: &Set) -> Value {
    let mut out = Map::with_capacity(fields.len());
    for (key, value) in fields {
        let kept = match set.get_field(key) {
            Some(node) if node.member => continue,
            Some(node) => remove(map.entry(key).unwrap_or(Type::Deduced), value, &node.below),
            None => value.clone(),
        };
        out.insert(key.clone(), kept);
    }
    if out.is_empty() { Value::Null } else { Value::Object(out) }
}

fn from_list(list: ListShape<'_>, items: &[Value], set: &Set) -> Value {
    let mut out = Vec::with_capacity(items.len());
    for item in items {
        let node = list.element(item).ok().and_then(|element: Element| set.get(&element));
        match node {
            Some(node) if node.member => (),
            Some(node) => out.push(remove(list.items(), item, &node.below)),
            None => out.push(item.clone()),
        }
    }
    if out.is_empty() { Value::Null } else { Value::Array(out) }
}
