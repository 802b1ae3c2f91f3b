//! Which fields a value sets, and sets of fields seen through a schema.

use std::collections::BTreeMap;

use serde_json::Value;

use super::{
    Element, Set,
    compare::hidden,
    set::Node,
    typed::{Shape, Type},
};

/// Every leaf, item and map key of an object. `metadata.managedFields` is left out.
pub(super) fn leaves(ty: Type<'_>, value: &Value) -> Set {
    walk(ty, value, 0).1
}

/// Whether the place is a leaf, and what is below it.
fn walk(ty: Type<'_>, value: &Value, depth: usize) -> (bool, Set) {
    match (ty.shape(Some(value)), value) {
        (Shape::Scalar(_), _) => (true, Set::default()),
        (Shape::Map(map), value) => match value {
            _ if map.atomic() => (true, Set::default()),
            Value::Object(fields) => {
                let field = |(key, value): (&String, &Value)| {
                    let (leaf, below) = walk(map.entry(key).unwrap_or(Type::Deduced), value, depth + 1);
                    let empty = value.is_null() || value.as_object().is_some_and(|map| map.is_empty());
                    let member = leaf || empty || map.declared(key).is_none();
                    Node { element: Element::field(key), member, below }
                };
                let fields = fields.iter().filter(|(key, _)| !hidden(map, key, depth));
                (false, Set::from_nodes(fields.map(field).collect()))
            }
            _ => (false, Set::default()),
        },
        (Shape::List(list), value) => match value {
            _ if list.atomic() => (true, Set::default()),
            Value::Array(items) => {
                let mut found: BTreeMap<Element, Set> = BTreeMap::new();
                for item in items {
                    let Ok(element) = list.element(item) else { continue };
                    // A repeated item is owned as a whole.
                    found
                        .entry(element)
                        .and_modify(|below| *below = Set::default())
                        .or_insert_with(|| walk(list.items(), item, depth + 1).1);
                }
                let node = |(element, below)| Node { element, member: true, below };
                (false, Set::from_nodes(found.into_iter().map(node).collect()))
            }
            _ => (false, Set::default()),
        },
    }
}

/// The set with every declared field on the way to a member as a member too.
pub(super) fn with_named_fields(ty: Type<'_>, set: &Set) -> Set {
    let node = |node: &Node| {
        let (declared, below) = match (ty.shape(None), &node.element) {
            (Shape::Map(map), Element::Field(name)) => (map.declared(name).is_some(), map.entry(name)),
            (Shape::List(list), Element::Key(_)) => (false, Some(list.items())),
            _ => (false, None),
        };
        let below = match below {
            Some(ty) if !node.below.is_empty() => with_named_fields(ty, &node.below),
            _ => node.below.clone(),
        };
        let member = node.member || (declared && !below.is_empty());
        Node { element: node.element.clone(), member, below }
    };
    Set::from_nodes(set.nodes().iter().map(node).collect())
}

/// The type of what is below an element, as far as the schema tells.
fn type_below<'a>(shape: Shape<'a>, element: &Element) -> Option<Type<'a>> {
    match (shape, element) {
        (Shape::Map(map), Element::Field(name)) if !map.untold() => map.entry(name),
        (Shape::List(list), _) => Some(list.items()),
        _ => None,
    }
}

/// Whether no member is below what is atomic now.
pub(super) fn is_reconciled(ty: Type<'_>, set: &Set) -> bool {
    let shape = ty.shape(None);
    let below = set.nodes().iter().filter(|node| !node.below.is_empty());
    below
        .filter_map(|node| Some((type_below(shape, &node.element)?, &node.below)))
        .all(|(ty, below)| !is_atomic(ty) && is_reconciled(ty, below))
}

/// The set adapted to the schema: below what is atomic now, only the atomic place itself is owned.
pub(super) fn reconcile(ty: Type<'_>, set: &Set) -> Set {
    let shape = ty.shape(None);
    let node = |node: &Node| {
        let ty = type_below(shape, &node.element);
        let Some(ty) = ty.filter(|_| !node.below.is_empty()) else { return node.clone() };
        if is_atomic(ty) {
            return Node { element: node.element.clone(), member: true, below: Set::default() };
        }
        Node { element: node.element.clone(), member: node.member, below: reconcile(ty, &node.below) }
    };
    Set::from_nodes(set.nodes().iter().map(node).collect())
}

fn is_atomic(ty: Type<'_>) -> bool {
    match ty.shape(None) {
        Shape::Map(map) => !map.untold() && map.atomic(),
        Shape::List(list) => list.atomic(),
        Shape::Scalar(_) => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::schema::KindSchema;
    use serde_json::json;

    #[test]
    fn what_became_atomic_is_owned_as_a_whole() {
        let gvk = wasmk_api::Gvk::new("", "v1", "Service");
        let kind = KindSchema::built_in(&gvk).unwrap();
        let ty = Type::root(kind.schema());
        let old = json!({"f:spec": {"f:ports": {"k:{\"port\":1,\"protocol\":\"TCP\"}": {".": {}, "f:port": {}}},
            "f:selector": {"f:app": {}}}});
        let set = Set::from_value(&old).unwrap();
        assert!(!is_reconciled(ty, &set));
        let fixed = reconcile(ty, &set);
        let mut expect = old.clone();
        expect["f:spec"]["f:selector"] = json!({});
        assert_eq!(fixed.to_value(), expect);
        assert!(is_reconciled(ty, &fixed));
        assert_eq!(reconcile(ty, &fixed), fixed);
    }
}
