//! Strategic merge patch: a merge patch that knows which lists merge by key.
//!
//! Directives: `$patch` (`replace`, `delete`) in maps and list items, `$retainKeys`,
//! `$setElementOrder/<list>` and `$deleteFromPrimitiveList/<list>` beside the list they are about.

use serde_json::{Map, Value};

use super::{
    PatchError, gofmt,
    lists::{
        DIRECTIVE, Items, bad_type, identity, index, interleave, items_of, map_of, no_key, partition,
        without_repeats,
    },
};
use crate::schema::Schema;

pub(super) const RETAIN_KEYS: &str = "$retainKeys";
pub(super) const SET_ORDER: &str = "$setElementOrder/";
pub(super) const DELETE_PRIMITIVES: &str = "$deleteFromPrimitiveList/";

/// Applies a strategic merge patch to an object of a built-in kind.
///
/// # Errors
/// When a directive is unknown or malformed, an item of a list lacks its merge key, or lists mix types.
pub fn strategic(schema: Schema<'_>, target: Value, patch: Value) -> Result<Value, PatchError> {
    let (Value::Object(target), Value::Object(patch)) = (target, patch) else {
        return Err(PatchError::BadRequest("invalid JSON document".into()));
    };
    Ok(Value::Object(Merge { onto_patch: false }.maps(target, patch, Some(schema))?))
}

/// Merges a patch into another; the result has both effects, directives included.
pub(super) fn combine(
    schema: Schema<'_>,
    first: Map<String, Value>,
    second: Map<String, Value>,
) -> Result<Map<String, Value>, PatchError> {
    Merge { onto_patch: true }.maps(first, second, Some(schema))
}

#[derive(Clone, Copy)]
struct Merge {
    /// Whether the target is itself a patch: then nulls and parallel lists are kept.
    onto_patch: bool,
}

/// How the field of that name merges: its schema, whether as a merging list, and by which key.
struct Field<'a> {
    schema: Option<Schema<'a>>,
    replace: bool,
    merge: bool,
    key: Option<&'a str>,
}

fn field<'a>(schema: Option<Schema<'a>>, name: &str) -> Result<Field<'a>, PatchError> {
    let Some(parent) = schema else {
        return Ok(Field { schema: None, replace: false, merge: false, key: None });
    };
    let Some(found) = parent.field(name).or_else(|| parent.values()) else {
        if !parent.has_fields() {
            return Ok(Field { schema: None, replace: false, merge: false, key: None });
        }
        let ty = parent.go_type();
        let ty = ty.rsplit('.').next().unwrap_or_default();
        return Err(PatchError::Failed(format!(
            "unable to find api field in struct {ty} for the json field \"{name}\""
        )));
    };
    Ok(Field {
        schema: Some(found),
        replace: found.has_patch_strategy("replace"),
        merge: found.has_patch_strategy("merge"),
        key: found.patch_key(),
    })
}

impl Merge {
    fn maps(
        self,
        mut target: Map<String, Value>,
        mut patch: Map<String, Value>,
        schema: Option<Schema<'_>>,
    ) -> Result<Map<String, Value>, PatchError> {
        if let Some(directive) = patch.get(DIRECTIVE) {
            return match directive.as_str() {
                Some("replace") => {
                    patch.shift_remove(DIRECTIVE);
                    Ok(patch)
                }
                Some("delete") => Ok(Map::new()),
                _ => Err(unknown_directive(&patch)),
            };
        }
        self.retain_keys(&mut target, &mut patch)?;
        self.ordered_lists(&mut target, &mut patch, schema)?;
        for (key, value) in patch {
            self.entry(&mut target, key, value, schema)?;
        }
        Ok(target)
    }

    fn entry(
        self,
        target: &mut Map<String, Value>,
        key: String,
        value: Value,
        schema: Option<Schema<'_>>,
    ) -> Result<(), PatchError> {
        let delete_list = key.starts_with(DELETE_PRIMITIVES.trim_end_matches('/'));
        if delete_list && self.onto_patch {
            target.insert(key, value);
            return Ok(());
        }
        let key = match key.strip_prefix(DELETE_PRIMITIVES) {
            Some(name) => name.to_owned(),
            None if delete_list => return Err(bad_request("invalid patch format of primitive list")),
            None => key,
        };
        if value.is_null() {
            target.shift_remove(&key);
            if !self.onto_patch {
                return Ok(());
            }
        }
        let merged = match (target.get_mut(&key), value) {
            (Some(here @ Value::Object(_)), Value::Object(patch)) => {
                let field = field(schema, &key)?;
                let Value::Object(here) = here.take() else { return Ok(()) };
                let merged = if field.replace { patch } else { self.maps(here, patch, field.schema)? };
                Some(Value::Object(merged))
            }
            (Some(here @ Value::Array(_)), Value::Array(patch)) => {
                let field = field(schema, &key)?;
                let Value::Array(here) = here.take() else { return Ok(()) };
                let merged = if field.merge || delete_list {
                    self.lists(here, patch, &field, delete_list)?
                } else {
                    patch
                };
                Some(Value::Array(merged))
            }
            _ if delete_list => return Ok(()),
            (Some(_), value) if !value.is_object() && !value.is_array() => Some(value),
            (_, value) => without_directives(if self.onto_patch { value } else { without_nulls(value) }),
        };
        match merged {
            Some(merged) => target.insert(key, merged),
            None => target.shift_remove(&key),
        };
        Ok(())
    }

    /// Removes from the target what `$retainKeys` does not list.
    fn retain_keys(
        self,
        target: &mut Map<String, Value>,
        patch: &mut Map<String, Value>,
    ) -> Result<(), PatchError> {
        let Some(keys) = patch.shift_remove(RETAIN_KEYS) else { return Ok(()) };
        if self.onto_patch {
            match target.get(RETAIN_KEYS) {
                Some(there) if *there != keys => {
                    let (there, keys) = (gofmt::plain(there), gofmt::plain(&keys));
                    return Err(PatchError::Failed(format!(
                        "{there} and {keys} are not deep equal: this may happen when calculating the 3-way diff patch"
                    )));
                }
                Some(_) => (),
                None => {
                    target.insert(RETAIN_KEYS.into(), keys);
                }
            }
            return Ok(());
        }
        let malformed = || bad_request("invalid patch format of retainKeys");
        let keys = keys.as_array().ok_or_else(malformed)?;
        let listed = |name: &str| keys.iter().any(|key| key.as_str() == Some(name));
        let unlisted = patch.iter().any(|(key, value)| {
            let about_list =
                key.starts_with("$deleteFromPrimitiveList") || key.starts_with("$setElementOrder");
            !value.is_null() && !about_list && !listed(key)
        });
        if unlisted {
            return Err(malformed());
        }
        target.retain(|key, _| listed(key));
        Ok(())
    }

    /// Merges the lists for which the patch gives an order, and takes them out of the patch.
    fn ordered_lists(
        self,
        target: &mut Map<String, Value>,
        patch: &mut Map<String, Value>,
        schema: Option<Schema<'_>>,
    ) -> Result<(), PatchError> {
        let directives: Vec<String> =
            patch.keys().filter(|key| key.starts_with("$setElementOrder")).cloned().collect();
        for directive in directives {
            let Some(order) = patch.shift_remove(&directive) else { continue };
            let malformed = || bad_request("invalid patch format of setElementOrder list");
            if self.onto_patch {
                match target.get(&directive) {
                    Some(there) if *there != order => return Err(malformed()),
                    Some(_) => (),
                    None => {
                        target.insert(directive.clone(), order.clone());
                    }
                }
            }
            let Value::Array(order) = order else { return Err(bad_type("[]interface {}", &order)) };
            let name = directive.strip_prefix(SET_ORDER).ok_or_else(malformed)?;
            self.ordered_list(target, patch, name, &order, schema)?;
        }
        Ok(())
    }

    fn ordered_list(
        self,
        target: &mut Map<String, Value>,
        patch: &mut Map<String, Value>,
        name: &str,
        order: &[Value],
        schema: Option<Schema<'_>>,
    ) -> Result<(), PatchError> {
        let list = |value: Option<Value>| match value {
            None => Ok(None),
            Some(Value::Array(items)) => Ok(Some(items)),
            Some(other) => Err(bad_type("[]interface {}", &other)),
        };
        let (here, changes) = (list(target.get(name).cloned())?, list(patch.get(name).cloned())?);
        let field = field(schema, name)?;
        check_order(changes.as_deref().unwrap_or_default(), order, field.key)?;
        let server_order = here.clone().unwrap_or_default();
        items_if_any(&server_order, changes.as_deref().unwrap_or_default())?;
        let merged = match (here, changes) {
            (None, None) => return Ok(()),
            (Some(here), None) => here,
            (None, Some(changes)) => changes.into_iter().filter_map(without_directives).collect(),
            (Some(here), Some(changes)) if field.merge => self.lists(here, changes, &field, false)?,
            (Some(_), Some(changes)) => changes,
        };
        let (ours, server_only) = partition(merged, order, field.key)?;
        let all = interleave(ours, server_only, order, &server_order, field.key)?;
        patch.shift_remove(name);
        target.insert(name.into(), Value::Array(all));
        Ok(())
    }

    fn lists(
        self,
        mut here: Vec<Value>,
        patch: Vec<Value>,
        field: &Field<'_>,
        delete_list: bool,
    ) -> Result<Vec<Value>, PatchError> {
        if here.is_empty() && patch.is_empty() {
            return Ok(here);
        }
        let (merged, patch, server_order, key) = match items_of([&here, &patch])? {
            Items::Scalars if delete_list && !self.onto_patch => {
                here.retain(|item| !patch.contains(item));
                return Ok(here);
            }
            Items::Scalars => {
                let both = here.iter().chain(&patch).cloned().collect();
                (without_repeats(both), patch, here, None)
            }
            Items::Maps => {
                let Some(key) = field.key else {
                    let name = field.schema.and_then(Schema::items).map(Schema::go_type).unwrap_or_default();
                    let name = name.rsplit('.').next().unwrap_or_default();
                    return Err(PatchError::Failed(format!(
                        "cannot merge lists without merge key for {name}"
                    )));
                };
                let (here, patch) = special_items(here, patch, key)?;
                let order = keys_only(&here, key);
                (self.keyed(here, &patch, key, field)?, patch, order, Some(key))
            }
        };
        let (ours, server_only) = partition(merged, &patch, key)?;
        interleave(ours, server_only, &patch, &server_order, key)
    }

    /// Merges items of the patch into those with the same key; others are appended.
    fn keyed(
        self,
        mut here: Vec<Value>,
        patch: &[Value],
        key: &str,
        field: &Field<'_>,
    ) -> Result<Vec<Value>, PatchError> {
        let items = field.schema.and_then(Schema::items);
        for change in patch {
            let Some(wanted) = map_of(change)?.get(key) else { return Err(no_key(change, key)) };
            match here.iter_mut().find(|item| identity(item, Some(key)) == Some(wanted)) {
                Some(found) => {
                    let (Value::Object(old), Value::Object(change)) = (found.take(), change.clone()) else {
                        continue;
                    };
                    *found = Value::Object(self.maps(old, change, items)?);
                }
                None => here.push(change.clone()),
            }
        }
        Ok(here)
    }
}

fn bad_request(message: &str) -> PatchError {
    PatchError::BadRequest(message.into())
}

fn unknown_directive(map: &Map<String, Value>) -> PatchError {
    let directive = map.get(DIRECTIVE).map(gofmt::plain).unwrap_or_default();
    let map = gofmt::plain(&Value::Object(map.clone()));
    PatchError::Failed(format!("unknown patch type: {directive} in map: {map}"))
}

/// The items with nothing but their key, as a record of their order.
fn keys_only(items: &[Value], key: &str) -> Vec<Value> {
    let only = |item: &Value| {
        let id = identity(item, Some(key)).cloned();
        Value::Object(id.into_iter().map(|id| (key.to_owned(), id)).collect())
    };
    items.iter().map(only).collect()
}

fn items_if_any(a: &[Value], b: &[Value]) -> Result<(), PatchError> {
    match a.is_empty() && b.is_empty() {
        true => Ok(()),
        false => items_of([a, b]).map(drop),
    }
}

/// Carries out `$patch` directives among the items: deletes, or starts over.
fn special_items(
    mut here: Vec<Value>,
    patch: Vec<Value>,
    key: &str,
) -> Result<(Vec<Value>, Vec<Value>), PatchError> {
    let mut plain = Vec::with_capacity(patch.len());
    let mut replace = false;
    for item in patch {
        let map = map_of(&item)?;
        match map.get(DIRECTIVE).map(Value::as_str) {
            None => plain.push(item),
            Some(Some("delete")) => {
                let Some(gone) = map.get(key) else { return Err(no_key(&item, key)) };
                here.retain(|other| identity(other, Some(key)) != Some(gone));
            }
            Some(Some("replace")) => replace = true,
            Some(Some("merge")) => {
                return Err(PatchError::Failed("merging lists cannot yet be specified in the patch".into()));
            }
            Some(_) => return Err(unknown_directive(map)),
        }
    }
    Ok(if replace { (plain, Vec::new()) } else { (here, plain) })
}

/// Checks that the items of the patch stand in the order it demands.
fn check_order(patch: &[Value], order: &[Value], key: Option<&str>) -> Result<(), PatchError> {
    if patch.is_empty() || order.is_empty() {
        return Ok(());
    }
    let mut places = order.iter();
    for item in patch {
        if key.is_some() && map_of(item)?.contains_key(DIRECTIVE) {
            continue;
        }
        if let Some(key) = key {
            for map in order.iter().chain([item]) {
                if map_of(map)?.get(key).is_none() {
                    return Err(no_key(map, key));
                }
            }
        }
        let wanted = identity(item, key);
        if !places.any(|place| identity(place, key) == wanted) {
            let shown = |list: &[Value]| gofmt::plain(&Value::Array(list.to_vec()));
            return Err(PatchError::Failed(format!(
                "The order in patch list:\n{}\n doesn't match $setElementOrder list:\n{}\n",
                shown(patch),
                shown(order)
            )));
        }
    }
    Ok(())
}

/// The value without maps that hold a `$patch` directive; `None` when it is one itself.
fn without_directives(value: Value) -> Option<Value> {
    match value {
        Value::Object(map) if map.contains_key(DIRECTIVE) => None,
        Value::Object(map) => {
            let kept = map.into_iter().filter_map(|(key, value)| Some((key, without_directives(value)?)));
            Some(Value::Object(kept.collect()))
        }
        Value::Array(items) => Some(Value::Array(items.into_iter().filter_map(without_directives).collect())),
        scalar => Some(scalar),
    }
}

/// The value without fields that are null.
fn without_nulls(value: Value) -> Value {
    match value {
        Value::Object(map) => {
            let kept = map.into_iter().filter(|(_, value)| !value.is_null());
            Value::Object(kept.map(|(key, value)| (key, without_nulls(value))).collect())
        }
        Value::Array(items) => Value::Array(items.into_iter().map(without_nulls).collect()),
        scalar => scalar,
    }
}

/// Whether the item stands in the list.
pub(super) fn contains(list: &[Value], item: &Value, key: Option<&str>) -> bool {
    index(list, item, key).is_some()
}
