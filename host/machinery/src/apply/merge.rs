//! Merges a configuration into a live object.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Map, Value};

use super::{
    Element,
    compare::hidden,
    typed::{ListShape, MapShape, Shape, Type},
};

/// The live object with everything the configuration says. Fields only the live object has stay, and so
/// does its order where the configuration leaves the choice. `metadata.managedFields` is left out.
///
/// # Errors
/// When items of a set or of a list of type `map` cannot be told apart.
pub(super) fn merge(ty: Type<'_>, live: &Value, config: &Value) -> Result<Value, String> {
    Ok(walk(ty, Some(live), Some(config), 0)?.unwrap_or(Value::Null))
}

fn walk(
    ty: Type<'_>,
    live: Option<&Value>,
    config: Option<&Value>,
    depth: usize,
) -> Result<Option<Value>, String> {
    let shape = if config.is_some() { ty.shape(config) } else { ty.shape(live) };
    let leaf = || Ok(config.or(live).cloned());
    match shape {
        Shape::Scalar(_) => leaf(),
        Shape::Map(map) => {
            let (left, right) = (live.and_then(Value::as_object), config.and_then(Value::as_object));
            let empty = left.is_none_or(Map::is_empty) && right.is_none_or(Map::is_empty);
            if map.atomic() || empty { leaf() } else { maps(map, left, right, depth) }
        }
        Shape::List(list) => {
            let (left, right) = (live.and_then(Value::as_array), config.and_then(Value::as_array));
            let empty = left.is_none_or(Vec::is_empty) && right.is_none_or(Vec::is_empty);
            if list.atomic() || empty {
                return leaf();
            }
            let none = Vec::new();
            lists(list, left.unwrap_or(&none), right.unwrap_or(&none), depth)
        }
    }
}

fn maps(
    map: MapShape<'_>,
    live: Option<&Map<String, Value>>,
    config: Option<&Map<String, Value>>,
    depth: usize,
) -> Result<Option<Value>, String> {
    let mut out = Map::new();
    let mut pair = |key: &String, live: Option<&Value>, config: Option<&Value>| {
        if hidden(map, key, depth) {
            return Ok(());
        }
        if let Some(value) = walk(map.entry(key).unwrap_or(Type::Deduced), live, config, depth + 1)? {
            out.insert(key.clone(), value);
        }
        Ok::<(), String>(())
    };
    for (key, value) in live.into_iter().flatten() {
        pair(key, Some(value), config.and_then(|config| config.get(key)))?;
    }
    for (key, value) in config.into_iter().flatten() {
        if !live.is_some_and(|live| live.contains_key(key)) {
            pair(key, None, Some(value))?;
        }
    }
    Ok((!out.is_empty()).then_some(Value::Object(out)))
}

/// A list's items with what tells them apart.
struct Indexed<'v> {
    items: &'v [Value],
    elements: Vec<Element>,
    /// Where an item stands; `None` when it stands more than once.
    places: BTreeMap<Element, Option<usize>>,
}

impl<'v> Indexed<'v> {
    fn new(list: ListShape<'_>, items: &'v [Value]) -> Result<Self, String> {
        let mut elements = Vec::with_capacity(items.len());
        let mut places = BTreeMap::new();
        for (i, item) in items.iter().enumerate() {
            let element = list.element(item).map_err(|why| format!("element {i}: {why}"))?;
            places.entry(element.clone()).and_modify(|place| *place = None).or_insert(Some(i));
            elements.push(element);
        }
        Ok(Self { items, elements, places })
    }

    fn has(&self, element: &Element) -> bool {
        self.places.contains_key(element)
    }

    fn item(&self, element: &Element) -> Option<&'v Value> {
        self.places.get(element).copied().flatten().map(|i| &self.items[i])
    }
}

/// From where the next item of a merged list is taken.
enum Turn {
    /// The live list, at this place.
    Live(usize),
    /// The configuration, at this place, merged with the live item of the same name.
    Config(usize),
}

/// The order of a merged list: the configuration's; items only the live list has stay near their old
/// neighbours.
fn turns(live: &Indexed<'_>, config: &Indexed<'_>) -> Vec<Turn> {
    let mut turns = Vec::with_capacity(live.items.len().max(config.items.len()));
    let mut merged: BTreeSet<&Element> = BTreeSet::new();
    // The items both have, in the configuration's order; the first is the next to come.
    let mut shared = config.elements.iter().filter(|element| live.has(element)).peekable();
    let (mut l, mut c) = (0, 0);
    while l < live.items.len() || c < config.items.len() {
        let theirs = config.elements.get(c);
        if let Some(mine) = live.elements.get(l) {
            let shared_here = config.has(mine);
            let waits = shared.peek().is_some_and(|next| *next != mine);
            if theirs.is_some_and(|theirs| theirs != mine) && shared_here && waits {
                // Not the next shared item to come: its turn is where the configuration has it.
                l += 1;
                continue;
            }
            if theirs != Some(mine) && !shared_here {
                turns.push(Turn::Live(l));
                l += 1;
                continue;
            }
            if theirs == Some(mine) || merged.contains(mine) {
                l += 1;
            }
        }
        if let Some(theirs) = theirs {
            merged.insert(theirs);
            turns.push(Turn::Config(c));
            c += 1;
            if shared.peek() == Some(&theirs) {
                shared.next();
            }
        }
    }
    turns
}

fn lists(
    list: ListShape<'_>,
    live: &[Value],
    config: &[Value],
    depth: usize,
) -> Result<Option<Value>, String> {
    let (left, right) = (Indexed::new(list, live)?, Indexed::new(list, config)?);
    let mut out = Vec::with_capacity(live.len().max(config.len()));
    for turn in turns(&left, &right) {
        let (live, config) = match turn {
            Turn::Live(l) => (Some(&live[l]), None),
            Turn::Config(c) => (left.item(&right.elements[c]), Some(&config[c])),
        };
        out.extend(walk(list.items(), live, config, depth + 1)?);
    }
    Ok((!out.is_empty()).then_some(Value::Array(out)))
}
