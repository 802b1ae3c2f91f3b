//! Which fields differ between two values of a type.

use std::collections::BTreeMap;

use serde_json::{Map, Value};

use super::{
    Element, Set,
    element::equal,
    set::Node,
    typed::{ListShape, MapShape, Shape, Type},
};

/// What changed from one value to another; no field is in more than one set.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Comparison {
    /// Fields only the old value has.
    pub removed: Set,
    /// Fields both have, differently.
    pub modified: Set,
    /// Fields only the new value has.
    pub added: Set,
}

impl Comparison {
    /// Whether nothing changed.
    pub fn is_same(&self) -> bool {
        self.removed.is_empty() && self.modified.is_empty() && self.added.is_empty()
    }

    /// With every set passed through `filter`.
    #[must_use]
    pub(super) fn map(&self, filter: impl Fn(&Set) -> Set) -> Self {
        Self { removed: filter(&self.removed), modified: filter(&self.modified), added: filter(&self.added) }
    }
}

/// The differences at and below one place.
#[derive(Default)]
struct Part {
    /// Whether the place itself was removed, modified, added.
    this: [bool; 3],
    below: [Vec<Node>; 3],
}

const REMOVED: usize = 0;
const MODIFIED: usize = 1;
const ADDED: usize = 2;

impl Part {
    fn is_empty(&self) -> bool {
        self.this == [false; 3] && self.below.iter().all(Vec::is_empty)
    }

    /// Hangs a child's differences below this place; the element is only made when there are any.
    fn hang(&mut self, child: Self, element: impl FnOnce() -> Element) {
        if child.is_empty() {
            return;
        }
        let element = element();
        for (which, (member, below)) in child.this.into_iter().zip(child.below).enumerate() {
            if member || !below.is_empty() {
                self.below[which].push(Node {
                    element: element.clone(),
                    member,
                    below: Set::from_nodes(below),
                });
            }
        }
    }

    fn merge(&mut self, other: Self) {
        for (which, (member, below)) in other.this.into_iter().zip(other.below).enumerate() {
            self.this[which] |= member;
            let all = Set::from_nodes(std::mem::take(&mut self.below[which])).union(&Set::from_nodes(below));
            self.below[which] = all.nodes().to_vec();
        }
    }
}

/// Compares two whole objects. `metadata.managedFields` is left out.
///
/// # Errors
/// When items of a set or of a list of type `map` cannot be told apart.
pub(super) fn compare(ty: Type<'_>, old: &Value, new: &Value) -> Result<Comparison, String> {
    let part = walk(ty, Some(old), Some(new), 0)?;
    let [removed, modified, added] = part.below.map(Set::from_nodes);
    Ok(Comparison { removed, modified, added })
}

fn walk(ty: Type<'_>, old: Option<&Value>, new: Option<&Value>, depth: usize) -> Result<Part, String> {
    let (left, right) = (ty.shape(old), ty.shape(new));
    let (mut part, leaf) = match (old, new) {
        (_, None) => by_shape(left, old, new, depth)?,
        (None, _) => by_shape(right, old, new, depth)?,
        _ if left.same_as(&right) => by_shape(right, old, new, depth)?,
        // A change of shape is both: the old one gone and the new one come.
        _ => {
            let (mut part, _) = by_shape(left, old, new, depth)?;
            let (other, leaf) = by_shape(right, old, new, depth)?;
            part.merge(other);
            (part, leaf)
        }
    };
    if !leaf {
        part.this[REMOVED] |= new.is_none();
        part.this[ADDED] |= old.is_none();
    }
    Ok(part)
}

/// The differences, and whether the place was treated as one leaf.
fn by_shape(
    shape: Shape<'_>,
    old: Option<&Value>,
    new: Option<&Value>,
    depth: usize,
) -> Result<(Part, bool), String> {
    match shape {
        Shape::Scalar(_) => Ok((leaf(old, new), true)),
        Shape::Map(map) => {
            let (left, right) = (old.and_then(Value::as_object), new.and_then(Value::as_object));
            let empty = left.is_none_or(Map::is_empty) && right.is_none_or(Map::is_empty);
            if map.atomic() || empty {
                return Ok((leaf(old, new), true));
            }
            Ok((maps(map, left, right, depth)?, false))
        }
        Shape::List(list) => {
            let (left, right) = (old.and_then(Value::as_array), new.and_then(Value::as_array));
            let empty = left.is_none_or(Vec::is_empty) && right.is_none_or(Vec::is_empty);
            if list.atomic() || empty {
                return Ok((leaf(old, new), true));
            }
            // Most lists do not change; telling their items apart would be the most of the work.
            if left == right {
                return Ok((Part::default(), false));
            }
            let none = Vec::new();
            Ok((lists(list, left.unwrap_or(&none), right.unwrap_or(&none), depth)?, false))
        }
    }
}

fn leaf(old: Option<&Value>, new: Option<&Value>) -> Part {
    let mut part = Part::default();
    match (old, new) {
        (None, _) => part.this[ADDED] = true,
        (_, None) => part.this[REMOVED] = true,
        (Some(old), Some(new)) => part.this[MODIFIED] = !equal(old, new),
    }
    part
}

fn maps(
    map: MapShape<'_>,
    old: Option<&Map<String, Value>>,
    new: Option<&Map<String, Value>>,
    depth: usize,
) -> Result<Part, String> {
    let mut part = Part::default();
    let mut pair = |key: &String, old: Option<&Value>, new: Option<&Value>| {
        if hidden(map, key, depth) {
            return Ok(());
        }
        let child = walk(map.entry(key).unwrap_or(Type::Deduced), old, new, depth + 1)?;
        part.hang(child, || Element::field(key));
        Ok::<(), String>(())
    };
    for (key, value) in old.into_iter().flatten() {
        pair(key, Some(value), new.and_then(|new| new.get(key)))?;
    }
    for (key, value) in new.into_iter().flatten() {
        if !old.is_some_and(|old| old.contains_key(key)) {
            pair(key, None, Some(value))?;
        }
    }
    Ok(part)
}

/// Whether it is `metadata.managedFields`, which nobody owns.
pub(super) fn hidden(map: MapShape<'_>, key: &str, depth: usize) -> bool {
    depth == 1 && key == "managedFields" && map.is_object_meta()
}

/// The items of a list by what tells them apart; repeated ones together.
fn index<'v>(list: ListShape<'_>, items: &'v [Value]) -> Result<BTreeMap<Element, Vec<&'v Value>>, String> {
    let mut index: BTreeMap<Element, Vec<&Value>> = BTreeMap::new();
    for (i, item) in items.iter().enumerate() {
        let element = list.element(item).map_err(|why| format!("element {i}: {why}"))?;
        index.entry(element).or_default().push(item);
    }
    Ok(index)
}

fn lists(list: ListShape<'_>, old: &[Value], new: &[Value], depth: usize) -> Result<Part, String> {
    let (left, mut right) = (index(list, old)?, index(list, new)?);
    let mut part = Part::default();
    for (element, before) in left {
        let after = right.remove(&element).unwrap_or_default();
        part.hang(items(list, &before, &after, depth)?, || element);
    }
    for (element, after) in right {
        part.hang(items(list, &[], &after, depth)?, || element);
    }
    Ok(part)
}

/// The same item before and after. Repeated items count as one atomic item.
fn items(list: ListShape<'_>, before: &[&Value], after: &[&Value], depth: usize) -> Result<Part, String> {
    let one = |old: Option<&&Value>, new: Option<&&Value>| {
        walk(list.items(), old.copied(), new.copied(), depth + 1)
    };
    match (before.len(), after.len()) {
        (0 | 1, 0 | 1) => one(before.first(), after.first()),
        (2.., 2..) => {
            let mut part = Part::default();
            part.this[MODIFIED] =
                before.len() != after.len() || !before.iter().zip(after).all(|(a, b)| equal(a, b));
            Ok(part)
        }
        (2.., _) => {
            let mut part = after.first().map_or(Ok(Part::default()), |new| one(None, Some(new)))?;
            part.this[REMOVED] = true;
            Ok(part)
        }
        _ => {
            let mut part = before.first().map_or(Ok(Part::default()), |old| one(Some(old), None))?;
            part.this[ADDED] = true;
            Ok(part)
        }
    }
}
