//! The order of merged lists, shared by applying and making strategic merge patches.

use serde_json::{Map, Value};

use super::{PatchError, gofmt};

pub(super) const DIRECTIVE: &str = "$patch";

fn failed(message: String) -> PatchError {
    PatchError::Failed(message)
}

/// A list whose items lack the key by which they merge.
pub(super) fn no_key(item: &Value, key: &str) -> PatchError {
    failed(format!("map: {} does not contain declared merge key: {key}", gofmt::plain(item)))
}

/// A value of another type than needed.
pub(super) fn bad_type(expected: &str, found: &Value) -> PatchError {
    let found = if found.is_null() { "%!s(<nil>)" } else { gofmt::type_name(found) };
    failed(format!("expected a {expected}, but received a {found}"))
}

/// An item as a map.
pub(super) fn map_of(item: &Value) -> Result<&Map<String, Value>, PatchError> {
    item.as_object().ok_or_else(|| bad_type("map[string]interface {}", item))
}

/// What tells an item apart: the value of its merge key, or the item itself where there is no key.
pub(super) fn identity<'v>(item: &'v Value, key: Option<&str>) -> Option<&'v Value> {
    match key {
        Some(key) => item.as_object()?.get(key),
        None => Some(item),
    }
}

/// What lists contain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Items {
    Maps,
    Scalars,
}

/// The common type of all items; lists of lists are not supported.
pub(super) fn items_of(lists: [&[Value]; 2]) -> Result<Items, PatchError> {
    let mut all = lists.into_iter().flatten();
    let Some(first) = all.next() else {
        return Err(failed("no elements in any of the given slices".into()));
    };
    if first.is_array() {
        return Err(PatchError::Unprocessable("lists of lists are not supported".into()));
    }
    let name = gofmt::type_name(first);
    if first.is_null() || all.any(|item| gofmt::type_name(item) != name) {
        let shown = lists.map(|list| gofmt::plain(&Value::Array(list.to_vec()))).join(" ");
        return Err(failed(format!("list element types are not identical: [{shown}]")));
    }
    Ok(if first.is_object() { Items::Maps } else { Items::Scalars })
}

/// Where an item stands in a list.
pub(super) fn index(list: &[Value], item: &Value, key: Option<&str>) -> Option<usize> {
    let wanted = identity(item, key);
    list.iter().position(|other| identity(other, key) == wanted)
}

/// Sorts items as `order` has them; items marked for deletion go to the end.
pub(super) fn sort_by(
    items: Vec<Value>,
    order: &[Value],
    key: Option<&str>,
) -> Result<Vec<Value>, PatchError> {
    if let Some(key) = key {
        for item in items.iter().chain(order) {
            if map_of(item)?.get(key).is_none() {
                return Err(no_key(item, key));
            }
        }
    }
    let deleted =
        |item: &Value| key.is_some() && item.get(DIRECTIVE).and_then(Value::as_str) == Some("delete");
    let (gone, mut kept): (Vec<Value>, Vec<Value>) = items.into_iter().partition(deleted);
    kept.sort_by_cached_key(|item| index(order, item, key).unwrap_or(usize::MAX));
    kept.extend(gone);
    Ok(kept)
}

/// Puts what only the server has between what the patch has, by the places both had on the server.
pub(super) fn interleave(
    patch: Vec<Value>,
    server_only: Vec<Value>,
    patch_order: &[Value],
    server_order: &[Value],
    key: Option<&str>,
) -> Result<Vec<Value>, PatchError> {
    let patch = sort_by(patch, patch_order, key)?;
    let server_only = sort_by(server_only, server_order, key)?;
    let mut all = Vec::with_capacity(patch.len() + server_only.len());
    let mut right = patch.into_iter().peekable();
    for item in server_only {
        let place = index(server_order, &item, key);
        // The item goes before the first one of the patch that stood behind it on the server.
        while let Some(next) = right.peek() {
            match (place, index(server_order, next, key)) {
                (Some(here), Some(there)) if here < there => break,
                _ => all.extend(right.next()),
            }
        }
        all.push(item);
    }
    all.extend(right);
    Ok(all)
}

/// Splits items into those that `by` has and the others.
pub(super) fn partition(
    items: Vec<Value>,
    by: &[Value],
    key: Option<&str>,
) -> Result<(Vec<Value>, Vec<Value>), PatchError> {
    if let Some(key) = key {
        for item in &items {
            if map_of(item)?.get(key).is_none() {
                return Err(no_key(item, key));
            }
        }
    }
    Ok(items.into_iter().partition(|item| index(by, item, key).is_some()))
}

/// Keeps the first of equal items.
pub(super) fn without_repeats(items: Vec<Value>) -> Vec<Value> {
    let mut kept: Vec<Value> = Vec::with_capacity(items.len());
    for item in items {
        if !kept.contains(&item) {
            kept.push(item);
        }
    }
    kept
}
