//! What server-side apply takes away: fields a manager applied last time, does not apply now, and that
//! nobody else owns.

use std::collections::BTreeMap;

use serde_json::{Map, Value};

use super::{
    FieldManager, ManagerId, Set,
    element::equal,
    leaves::{leaves, with_named_fields},
    managed::{Entry, Managers},
    remove::remove,
    typed::Type,
};
use crate::schema::KindSchema;

/// An object in some version.
#[derive(Clone)]
struct At {
    value: Value,
    kind: KindSchema,
}

impl At {
    fn root(&self) -> Type<'_> {
        Type::root(self.kind.schema())
    }

    fn named_leaves(&self) -> Set {
        with_named_fields(self.root(), &leaves(self.root(), &self.value))
    }
}

impl FieldManager<'_> {
    /// Removes what the manager applied last time, does not now, and nobody else owns.
    pub(super) fn pruned(&self, merged: Value, managers: &Managers, own: &ManagerId, last: &Entry) -> Value {
        let kept = managers.get(own).map(|entry| &entry.set);
        let same_version = last.api_version == self.api_version();
        if same_version && kept.is_some_and(|kept| last.set.difference(kept).is_empty()) {
            return merged;
        }
        let merged_here = At { value: merged, kind: self.kind.clone() };
        let Some(merged) = self.convert(&merged_here, &last.api_version) else { return merged_here.value };
        let last_named = with_named_fields(merged.root(), &last.set);
        let pruned =
            At { value: remove(merged.root(), &merged.value, &last_named), kind: merged.kind.clone() };
        let pruned = self.with_owned(&merged, pruned, managers, &last.api_version);
        let Some(pruned) = self.convert(&pruned, &last.api_version) else { return merged_here.value };
        let gone = merged.named_leaves().difference(&pruned.named_leaves()).intersection(&last_named);
        let result = At { value: remove(merged.root(), &merged.value, &gone), kind: merged.kind.clone() };
        match self.convert(&result, &self.api_version()) {
            Some(result) => result.value,
            None => merged_here.value,
        }
    }

    /// Brings back what any manager owns, starting with the version things were removed in.
    fn with_owned(&self, merged: &At, mut pruned: At, managers: &Managers, version: &str) -> At {
        let mut owned: BTreeMap<(bool, &str), Set> = BTreeMap::new();
        for entry in managers.values() {
            let set = owned.entry((entry.api_version != version, &entry.api_version)).or_default();
            *set = set.union(&entry.set);
        }
        for ((_, version), owned) in owned {
            let (Some(merged), Some(there)) = (self.convert(merged, version), self.convert(&pruned, version))
            else {
                continue;
            };
            let stays = there.named_leaves().union(&with_named_fields(merged.root(), &owned));
            let gone = merged.named_leaves().difference(&stays);
            pruned = At { value: remove(merged.root(), &merged.value, &gone), kind: merged.kind.clone() };
        }
        pruned
    }

    fn convert(&self, object: &At, version: &str) -> Option<At> {
        let here = object.value.get("apiVersion").and_then(Value::as_str);
        match self.versions {
            Some(versions) if here != Some(version) => {
                let (value, kind) = versions.convert(&object.value, version)?;
                Some(At { value, kind })
            }
            _ => Some(object.clone()),
        }
    }
}

/// Whether two objects are the same apart from `metadata.managedFields`.
pub(super) fn equal_but_owners(a: &Value, b: &Value) -> bool {
    let (Value::Object(a), Value::Object(b)) = (a, b) else { return a == b };
    a.len() == b.len()
        && a.iter().all(|(key, left)| match (key.as_str(), left, b.get(key)) {
            ("metadata", Value::Object(left), Some(Value::Object(right))) => {
                let count =
                    |map: &Map<String, Value>| map.len() - usize::from(map.contains_key("managedFields"));
                count(left) == count(right)
                    && left
                        .iter()
                        .filter(|(key, _)| *key != "managedFields")
                        .all(|(key, left)| right.get(key).is_some_and(|right| equal(left, right)))
            }
            (_, left, Some(right)) => equal(left, right),
            _ => false,
        })
}
