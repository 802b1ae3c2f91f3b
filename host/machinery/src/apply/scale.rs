//! Owners of the `scale` subresource, which are kept in its parent.
//!
//! A request to `scale` first turns the parent's entries into the scale object's with [`to_scale`], then
//! runs the write with the scale's own field manager, then takes the result back with [`to_parent`].

use std::collections::BTreeMap;

use serde_json::Value;

use super::{
    Element, Set,
    managed::{self, Entry, ManagerId, Managers},
};

/// The version of the scale kind.
const SCALE_VERSION: &str = "autoscaling/v1";

/// Where each `apiVersion` of the parent has its replicas; `None` when it has none.
pub type ReplicaPaths<'a> = BTreeMap<&'a str, Option<&'a [&'a str]>>;

fn elements(path: &[&str]) -> Vec<Element> {
    path.iter().map(|name| Element::field(name)).collect()
}

fn decode(entries: &[Value]) -> Managers {
    managed::decode(entries).unwrap_or_default()
}

/// The scale object's entries: those of the parent's managers that own its replicas.
pub fn to_scale(parent: &[Value], paths: &ReplicaPaths<'_>) -> Vec<Value> {
    let own = |(id, entry): (ManagerId, Entry)| {
        let path = (*paths.get(&*entry.api_version)?)?;
        let set = Set::of(&[&["spec", "replicas"]]);
        let there = Entry { set, api_version: SCALE_VERSION.into(), time: entry.time };
        entry.set.has(&elements(path)).then(|| (id.at_version(SCALE_VERSION), there))
    };
    managed::encode(&decode(parent).into_iter().filter_map(own).collect())
}

/// The parent's entries after a write to its scale in that version of the parent.
pub fn to_parent(
    parent: &[Value],
    scale: &[Value],
    api_version: &str,
    paths: &ReplicaPaths<'_>,
) -> Vec<Value> {
    let mut scale = decode(scale);
    let mut out = Managers::new();
    for (id, mut entry) in decode(parent) {
        let Some(path) = paths.get(&*entry.api_version) else { continue };
        if let Some(path) = path.filter(|path| entry.set.has(&elements(path)))
            && scale.remove(&id.at_version(SCALE_VERSION)).is_none()
        {
            entry.set = entry.set.difference(&Set::of(&[path]));
        }
        if !entry.set.is_empty() {
            out.insert(id, entry);
        }
    }
    let Some(Some(path)) = paths.get(api_version) else { return managed::encode(&out) };
    for (id, entry) in scale {
        if entry.set.has(&elements(&["spec", "replicas"])) {
            // Kubernetes forgets the time of the write here.
            let entry = Entry { set: Set::of(&[path]), api_version: api_version.into(), time: None };
            out.insert(id.at_version(api_version), entry);
        }
    }
    managed::encode(&out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn entry(name: &str, version: &str, subresource: &str, fields: Value) -> Value {
        let mut entry = json!({"manager": name, "operation": "Update", "apiVersion": version,
            "fieldsType": "FieldsV1", "fieldsV1": fields});
        if !subresource.is_empty() {
            entry["subresource"] = subresource.into();
        }
        entry
    }

    #[test]
    fn there_and_back() {
        let replicas = || json!({"f:spec": {"f:replicas": {}}});
        let path: &[&str] = &["spec", "replicas"];
        let paths = ReplicaPaths::from([("apps/v1", Some(path))]);
        let parent = [
            entry("a", "apps/v1", "", json!({"f:spec": {"f:paused": {}, "f:replicas": {}}})),
            entry("b", "apps/v1", "", json!({"f:spec": {"f:paused": {}}})),
            entry("c", "gone/v1", "", replicas()),
        ];
        let scale = to_scale(&parent, &paths);
        assert_eq!(scale, [entry("a", "autoscaling/v1", "", replicas())]);
        assert_eq!(to_parent(&parent, &scale, "apps/v1", &paths), parent[..2]);
        let stolen = [entry("s", "autoscaling/v1", "scale", replicas())];
        assert_eq!(
            to_parent(&parent, &stolen, "apps/v1", &paths),
            [
                entry("a", "apps/v1", "", json!({"f:spec": {"f:paused": {}}})),
                parent[1].clone(),
                entry("s", "apps/v1", "scale", replicas()),
            ]
        );
    }
}
