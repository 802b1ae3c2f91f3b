//! The roles and bindings every cluster starts with.

use serde::Deserialize;
use serde_json::{Map, Value, json};
use wasmk_api::Object;

use crate::auth::rules::Rule;

const ROLES: &str = include_str!("../../data/roles.json");
const AUTOUPDATE: &str = "rbac.authorization.kubernetes.io/autoupdate";
const GROUP: &str = "rbac.authorization.k8s.io";

#[derive(Deserialize)]
struct Row {
    kind: String,
    name: String,
    #[serde(default)]
    namespace: String,
    #[serde(default)]
    labels: Map<String, Value>,
    rules: Option<Value>,
    #[serde(rename = "aggregationRule")]
    aggregation: Option<Value>,
    role: Option<String>,
    #[serde(default)]
    subjects: Vec<String>,
}

/// The rules of the cluster role of that name.
pub(crate) fn rules_of(name: &str) -> Vec<Rule> {
    let rows: Vec<Row> = serde_json::from_str(ROLES).unwrap_or_default();
    let row = rows.into_iter().find(|row| row.kind == "ClusterRole" && row.name == name);
    row.and_then(|row| serde_json::from_value(row.rules?).ok()).unwrap_or_default()
}

/// All of them.
pub(crate) fn all() -> Vec<Object> {
    let rows: Vec<Row> = serde_json::from_str(ROLES).unwrap_or_default();
    rows.into_iter().filter_map(object).collect()
}

fn object(row: Row) -> Option<Object> {
    let mut labels = Map::new();
    labels.insert("kubernetes.io/bootstrapping".into(), "rbac-defaults".into());
    labels.extend(row.labels);
    let mut metadata = json!({ "name": row.name });
    if !row.namespace.is_empty() {
        metadata["namespace"] = row.namespace.into();
    }
    metadata["annotations"] = json!({ AUTOUPDATE: "true" });
    metadata["labels"] = labels.into();
    let mut value = json!({ "kind": row.kind, "apiVersion": format!("{GROUP}/v1"), "metadata": metadata });
    match row.role {
        Some(role) => {
            let (kind, name) = role.split_once('/')?;
            value["roleRef"] = json!({ "apiGroup": GROUP, "kind": kind, "name": name });
            value["subjects"] = row.subjects.iter().filter_map(|s| subject(s)).collect();
        }
        None => {
            value["rules"] = row.rules.unwrap_or(Value::Null);
            if let Some(aggregation) = row.aggregation {
                value["aggregationRule"] = aggregation;
            }
        }
    }
    Object::from_value(value)
}

/// `U:name`, `G:name` or `S:namespace/name`.
fn subject(text: &str) -> Option<Value> {
    let (kind, name) = text.split_once(':')?;
    Some(match kind {
        "U" => json!({ "kind": "User", "apiGroup": GROUP, "name": name }),
        "G" => json!({ "kind": "Group", "apiGroup": GROUP, "name": name }),
        _ => {
            let (namespace, name) = name.split_once('/')?;
            json!({ "kind": "ServiceAccount", "name": name, "namespace": namespace })
        }
    })
}

/// A role or binding that is there, with what it lacks added, unless it says not to.
pub(crate) fn reconciled(present: &Object, wanted: &Object) -> Object {
    let mut new = present.clone();
    if present.annotation(AUTOUPDATE) == Some("false") || wanted.0.contains_key("aggregationRule") {
        return new;
    }
    for key in ["rules", "subjects"] {
        let Some(items) = wanted.0.get(key).and_then(Value::as_array) else { continue };
        let list = new.0.entry(key).or_insert_with(|| json!([]));
        if !list.is_array() {
            *list = json!([]);
        }
        if let Some(list) = list.as_array_mut() {
            let missing: Vec<Value> = items.iter().filter(|i| !list.contains(i)).cloned().collect();
            list.extend(missing);
        }
    }
    new
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_row_is_an_object() {
        let all = all();
        assert_eq!(all.len(), ROLES.lines().filter(|l| l.starts_with('{')).count());
        let masters =
            all.iter().find(|o| o.kind() == "ClusterRoleBinding" && o.name() == "cluster-admin").unwrap();
        assert_eq!(masters.0["subjects"][0]["name"], "system:masters");
    }

    #[test]
    fn what_is_missing_is_added() {
        let wanted = Object::from_value(json!({"rules": [{"verbs": ["a"]}, {"verbs": ["b"]}]})).unwrap();
        let present = Object::from_value(json!({"rules": [{"verbs": ["b"]}, {"verbs": ["own"]}]})).unwrap();
        assert_eq!(reconciled(&present, &wanted).0["rules"].as_array().unwrap().len(), 3);
    }
}
