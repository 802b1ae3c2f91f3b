//! Makes patches out of what changed: what a client that applies configurations computes.

use serde_json::{Map, Value};

use super::{
    PatchError,
    lists::{DIRECTIVE, Items, items_of, map_of, no_key, sort_by},
    strategic::{DELETE_PRIMITIVES, RETAIN_KEYS, SET_ORDER, combine, contains},
};
use crate::{patch::gofmt, schema::Schema};

/// The JSON merge patch that makes `modified` of `original`.
pub fn diff(original: &Value, modified: &Value) -> Value {
    match (original, modified) {
        (Value::Object(original), Value::Object(modified)) => {
            Value::Object(diff_maps(original, modified, Want { changes: true, deletions: true }))
        }
        (_, modified) => modified.clone(),
    }
}

#[derive(Clone, Copy)]
struct Want {
    changes: bool,
    deletions: bool,
}

fn diff_maps(original: &Map<String, Value>, modified: &Map<String, Value>, want: Want) -> Map<String, Value> {
    let mut patch = Map::new();
    for (key, new) in modified {
        match (original.get(key), new) {
            (Some(Value::Object(old)), Value::Object(new)) => {
                let below = diff_maps(old, new, want);
                if !below.is_empty() {
                    patch.insert(key.clone(), Value::Object(below));
                }
            }
            (Some(old), new) if old == new => (),
            (_, new) if want.changes => {
                patch.insert(key.clone(), new.clone());
            }
            _ => (),
        }
    }
    if want.deletions {
        for key in original.keys().filter(|key| !modified.contains_key(*key)) {
            patch.insert(key.clone(), Value::Null);
        }
    }
    patch
}

/// The JSON merge patch to send for a configuration of a custom resource: changes from `current` to
/// `modified`, and the removal of what `original` (the last configuration) had and `modified` has not.
pub fn three_way_merge(original: &Value, modified: &Value, current: &Value) -> Value {
    let empty = Map::new();
    let map = |value| Value::as_object(value).unwrap_or(&empty);
    let changes = diff_maps(map(current), map(modified), Want { changes: true, deletions: false });
    let deletions = diff_maps(map(original), map(modified), Want { changes: false, deletions: true });
    let mut patch = Value::Object(deletions);
    overlay(&mut patch, changes);
    patch
}

/// Merges maps, nulls included.
fn overlay(target: &mut Value, patch: Map<String, Value>) {
    let Value::Object(target) = target else { return };
    for (key, value) in patch {
        match (target.get_mut(&key), value) {
            (Some(here @ Value::Object(_)), Value::Object(below)) => overlay(here, below),
            (_, value) => {
                target.insert(key, value);
            }
        }
    }
}

/// The strategic merge patch that makes `modified` of `original`.
///
/// # Errors
/// When items of a merging list lack their key, or lists mix types.
pub fn two_way_strategic(
    schema: Schema<'_>,
    original: &Value,
    modified: &Value,
) -> Result<Value, PatchError> {
    let empty = Map::new();
    let map = |value| Value::as_object(value).unwrap_or(&empty);
    let diff = Diff { changes: true, deletions: true };
    Ok(Value::Object(diff.maps(map(original), map(modified), Some(schema), false)?))
}

/// The strategic merge patch to send for a configuration: changes from `current` to `modified`, and the
/// removal of what `original` (the last configuration) had and `modified` has not. Values that others
/// changed since are overwritten where the configuration gives one, and left alone elsewhere.
///
/// # Errors
/// When items of a merging list lack their key, or lists mix types.
pub fn three_way_strategic(
    schema: Schema<'_>,
    original: &Value,
    modified: &Value,
    current: &Value,
) -> Result<Value, PatchError> {
    let empty = Map::new();
    let map = |value| Value::as_object(value).unwrap_or(&empty);
    let changes =
        Diff { changes: true, deletions: false }.maps(map(current), map(modified), Some(schema), false)?;
    let deletions =
        Diff { changes: false, deletions: true }.maps(map(original), map(modified), Some(schema), false)?;
    combine(schema, deletions, changes).map(Value::Object)
}

/// Which differences to look for.
#[derive(Clone, Copy)]
struct Diff {
    changes: bool,
    deletions: bool,
}

impl Diff {
    fn maps(
        self,
        original: &Map<String, Value>,
        modified: &Map<String, Value>,
        schema: Option<Schema<'_>>,
        retain_keys: bool,
    ) -> Result<Map<String, Value>, PatchError> {
        let mut patch = Map::new();
        for (key, new) in modified {
            let field = schema.and_then(|schema| schema.field(key).or_else(|| schema.values()));
            match (original.get(key), new) {
                (Some(Value::Object(old)), Value::Object(new)) => {
                    self.map_field(key, old, new, field, &mut patch)?;
                }
                (Some(Value::Array(old)), Value::Array(new)) if merges(field) => {
                    self.list_field(key, old, new, field, &mut patch)?;
                }
                (Some(old), new) if old == new => (),
                (_, new) if self.changes => {
                    patch.insert(key.clone(), new.clone());
                }
                _ => (),
            }
        }
        if self.deletions {
            for key in original.keys().filter(|key| !modified.contains_key(*key)) {
                patch.insert(key.clone(), Value::Null);
            }
        }
        if retain_keys {
            let more = original.iter().any(|(key, value)| !value.is_null() && !modified.contains_key(key));
            let mut keys: Vec<&str> =
                modified.iter().filter(|(_, value)| !value.is_null()).map(|(key, _)| key.as_str()).collect();
            if !keys.is_empty() && (!patch.is_empty() || more) {
                keys.sort_unstable();
                patch.insert(RETAIN_KEYS.into(), keys.into());
            }
        }
        Ok(patch)
    }

    fn map_field(
        self,
        key: &str,
        old: &Map<String, Value>,
        new: &Map<String, Value>,
        field: Option<Schema<'_>>,
        patch: &mut Map<String, Value>,
    ) -> Result<(), PatchError> {
        if field.is_some_and(|field| field.has_patch_strategy("replace")) {
            if self.changes && old != new {
                patch.insert(key.into(), Value::Object(new.clone()));
            }
            return Ok(());
        }
        let retain_keys = field.is_some_and(|field| field.has_patch_strategy("retainKeys"));
        let below = self.maps(old, new, field, retain_keys)?;
        if !below.is_empty() {
            patch.insert(key.into(), Value::Object(below));
        }
        Ok(())
    }

    fn list_field(
        self,
        key: &str,
        old: &[Value],
        new: &[Value],
        field: Option<Schema<'_>>,
        patch: &mut Map<String, Value>,
    ) -> Result<(), PatchError> {
        if old.is_empty() {
            if !new.is_empty() && self.changes {
                patch.insert(key.into(), Value::Array(new.to_vec()));
            }
            return Ok(());
        }
        match items_of([old, new])? {
            Items::Maps => self.maps_list(key, old, new, field, patch),
            Items::Scalars => {
                self.scalars_list(key, old, new, patch);
                Ok(())
            }
        }
    }

    fn maps_list(
        self,
        key: &str,
        old: &[Value],
        new: &[Value],
        field: Option<Schema<'_>>,
        patch: &mut Map<String, Value>,
    ) -> Result<(), PatchError> {
        let Some(merge_key) = field.and_then(Schema::patch_key) else {
            return Err(PatchError::Failed(format!("cannot merge lists without merge key for {key}")));
        };
        let items = field.and_then(Schema::items);
        let retain_keys = field.is_some_and(|field| field.has_patch_strategy("retainKeys"));
        for item in old.iter().chain(new) {
            if map_of(item)?.get(merge_key).is_none() {
                return Err(no_key(item, merge_key));
            }
        }
        let mut changes = Vec::new();
        for item in new {
            match old.iter().find(|other| other[merge_key] == item[merge_key]) {
                Some(before) => {
                    let mut below = self.maps(map_of(before)?, map_of(item)?, items, retain_keys)?;
                    if !below.is_empty() {
                        below.insert(merge_key.into(), item[merge_key].clone());
                        changes.push(Value::Object(below));
                    }
                }
                None if self.changes => changes.push(item.clone()),
                None => (),
            }
        }
        let mut changes = sort_by(changes, new, Some(merge_key))?;
        if self.deletions {
            changes.extend(deletions(old, new, merge_key));
        }
        let ids = |list: &[Value]| list.iter().map(|item| item[merge_key].clone()).collect::<Vec<_>>();
        let reordered = self.changes && ids(old) != ids(new);
        if !changes.is_empty() || reordered {
            let one = |id| Value::Object([(merge_key.to_owned(), id)].into_iter().collect());
            let order = ids(new).into_iter().map(one).collect();
            patch.insert(format!("{SET_ORDER}{key}"), Value::Array(order));
        }
        if !changes.is_empty() {
            patch.insert(key.into(), Value::Array(changes));
        }
        Ok(())
    }

    fn scalars_list(self, key: &str, old: &[Value], new: &[Value], patch: &mut Map<String, Value>) {
        let missing = |from: &[Value], items: &[Value]| {
            let mut items: Vec<Value> = items.iter().filter(|item| !from.contains(item)).cloned().collect();
            items.dedup();
            items
        };
        let added = if self.changes { missing(old, new) } else { Vec::new() };
        let mut gone = if self.deletions { missing(new, old) } else { Vec::new() };
        gone.sort_by_cached_key(gofmt::plain);
        gone.dedup();
        if !gone.is_empty() || (self.changes && old != new) {
            patch.insert(format!("{SET_ORDER}{key}"), Value::Array(new.to_vec()));
        }
        if !added.is_empty() {
            patch.insert(key.into(), Value::Array(added));
        }
        if !gone.is_empty() {
            patch.insert(format!("{DELETE_PRIMITIVES}{key}"), Value::Array(gone));
        }
    }
}

/// Directives that delete what only the old list has.
fn deletions(old: &[Value], new: &[Value], key: &str) -> Vec<Value> {
    let gone = old.iter().filter(|item| !contains(new, item, Some(key)));
    let mut gone: Vec<&Value> = gone.map(|item| &item[key]).collect();
    gone.sort_by_cached_key(|id| gofmt::plain(id));
    let directive = |id: &Value| {
        let fields = [(key.to_owned(), id.clone()), (DIRECTIVE.to_owned(), "delete".into())];
        Value::Object(fields.into_iter().collect())
    };
    gone.into_iter().map(directive).collect()
}

fn merges(field: Option<Schema<'_>>) -> bool {
    field.is_some_and(|field| field.has_patch_strategy("merge"))
}
