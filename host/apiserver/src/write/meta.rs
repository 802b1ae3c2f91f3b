//! The metadata that only the system sets.

use rand::Rng;
use serde_json::Value;
use wasmk_api::{Object, Status, Timestamp};

/// Letters of generated names: none that could spell a word.
const LETTERS: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";
/// Length of the generated part of a name.
const RANDOM: usize = 5;
/// Longest prefix of a generated name that is kept.
const MAX_PREFIX: usize = 63 - RANDOM;

/// Gives a new object its identity: uid, creation time, and a name if it wants one made.
pub(crate) fn stamp(object: &mut Object, now: Timestamp) {
    for key in ["resourceVersion", "deletionTimestamp", "deletionGracePeriodSeconds", "selfLink"] {
        object.set_meta(key, Value::Null);
    }
    object.set_meta("uid", uuid::Uuid::new_v4().to_string());
    object.set_meta("creationTimestamp", now.to_string());
    if object.name().is_empty() && !object.meta("generateName").is_empty() {
        let name = generated(object.meta("generateName"));
        object.set_meta("name", name);
    }
}

/// A name that starts with a prefix.
pub(crate) fn generated(prefix: &str) -> String {
    let end = prefix.char_indices().nth(MAX_PREFIX).map_or(prefix.len(), |(at, _)| at);
    let mut rng = rand::rng();
    let random: String =
        (0..RANDOM).map(|_| char::from(LETTERS[rng.random_range(0..LETTERS.len())])).collect();
    format!("{}{random}", &prefix[..end])
}

/// Keeps in an updated object what an update cannot change. What validation refuses to see changed stays.
///
/// # Errors
/// When a replacement (not a patch) is meant for another object of that name.
pub(crate) fn carry(
    new: &mut Object,
    old: &Object,
    resource: &wasmk_api::GroupResource,
    patch: bool,
) -> Result<(), Status> {
    if !patch && !new.uid().is_empty() && new.uid() != old.uid() {
        let why = format!(
            "Precondition failed: UID in precondition: {}, UID in object meta: {}",
            new.uid(),
            old.uid()
        );
        return Err(Status::conflict(resource, old.name(), &why));
    }
    let before = |key: &str| old.metadata().and_then(|m| m.get(key)).cloned().unwrap_or(Value::Null);
    for key in ["creationTimestamp", "generation", "selfLink"] {
        new.set_meta(key, before(key));
    }
    if new.uid().is_empty() {
        new.set_meta("uid", before("uid"));
    }
    if old.is_deleting() {
        new.set_meta("deletionTimestamp", before("deletionTimestamp"));
    }
    if new.metadata().is_none_or(|m| !m.contains_key("deletionGracePeriodSeconds")) {
        new.set_meta("deletionGracePeriodSeconds", before("deletionGracePeriodSeconds"));
    }
    Ok(())
}

/// Sets `metadata.generation`.
pub(crate) fn set_generation(object: &mut Object, generation: i64) {
    object.set_meta("generation", generation);
}

/// Puts the keys of `metadata` in the order Kubernetes writes them.
pub(crate) fn order(object: &mut Object) {
    const ORDER: [&str; 15] = [
        "name",
        "generateName",
        "namespace",
        "selfLink",
        "uid",
        "resourceVersion",
        "generation",
        "creationTimestamp",
        "deletionTimestamp",
        "deletionGracePeriodSeconds",
        "labels",
        "annotations",
        "ownerReferences",
        "finalizers",
        "managedFields",
    ];
    let old = std::mem::take(object.metadata_mut());
    let mut pairs: Vec<(usize, (String, Value))> = old
        .into_iter()
        .filter(|(_, v)| !v.is_null())
        .map(|pair| (ORDER.iter().position(|k| *k == pair.0).unwrap_or(ORDER.len()), pair))
        .collect();
    pairs.sort_by_key(|(at, _)| *at);
    *object.metadata_mut() = pairs.into_iter().map(|(_, pair)| pair).collect();
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn generated_names_keep_their_prefix_and_length() {
        let name = generated("web-");
        assert!(name.starts_with("web-") && name.len() == 9, "{name}");
        assert_eq!(generated(&"x".repeat(80)).len(), 63);
    }

    #[test]
    fn identity_is_carried_over() {
        let old =
            Object::from_value(json!({"metadata": {"name": "a", "uid": "1", "creationTimestamp": "t"}}))
                .unwrap();
        let mut new = Object::from_value(json!({"metadata": {"name": "a", "generation": 7}})).unwrap();
        let resource = wasmk_api::GroupResource::new("", "things");
        carry(&mut new, &old, &resource, false).unwrap();
        assert_eq!(new, old);
        new.set_meta("uid", "2");
        assert_eq!(carry(&mut new, &old, &resource, false).unwrap_err().code, 409);
        carry(&mut new, &old, &resource, true).unwrap();
        assert_eq!(new.uid(), "2");
    }
}
