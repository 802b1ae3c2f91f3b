//! `metadata.managedFields`: who owns which fields of an object.

use std::{cmp::Ordering, collections::BTreeMap};

use serde_json::{Map, Value, json};
use wasmk_api::Timestamp;

use super::{Set, error::FieldsError};

/// Most managers of the operation `Update` an object has; older ones become [`ANCIENT`].
pub const MAX_UPDATE_MANAGERS: usize = 10;
/// The manager that inherits the fields of update managers beyond [`MAX_UPDATE_MANAGERS`].
pub const ANCIENT: &str = "ancient-changes";
/// The manager that owns what was there before an object was first applied.
pub const BEFORE_FIRST_APPLY: &str = "before-first-apply";

/// How a manager came to own fields.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Operation {
    /// By server-side apply.
    Apply,
    /// By any other write.
    Update,
}

impl Operation {
    fn as_str(self) -> &'static str {
        match self {
            Self::Apply => "Apply",
            Self::Update => "Update",
        }
    }
}

/// What tells the entries of `managedFields` apart.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ManagerId {
    name: String,
    operation: Operation,
    /// Empty for [`Operation::Apply`]: an applier keeps its entry when it changes the version.
    api_version: String,
    subresource: String,
    /// Orders identities as Kubernetes does: by their JSON.
    order: String,
}

impl ManagerId {
    /// The identity of that manager; the empty name is `unknown`.
    pub fn new(name: &str, operation: Operation, api_version: &str, subresource: &str) -> Self {
        let name = if name.is_empty() { "unknown" } else { name };
        let api_version = if operation == Operation::Apply { "" } else { api_version };
        let mut order = format!("{}\u{1}{}", json!(name), operation.as_str());
        for part in [api_version, subresource].into_iter().filter(|part| !part.is_empty()) {
            order.push('\u{1}');
            order.push_str(part);
        }
        // Kubernetes' JSON goes on with a comma or ends with a brace, which is the greater.
        order.push('\u{2}');
        Self {
            name: name.into(),
            operation,
            api_version: api_version.into(),
            subresource: subresource.into(),
            order,
        }
    }

    /// The manager's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// How it came to own fields.
    pub fn operation(&self) -> Operation {
        self.operation
    }

    /// The same manager, writing in another version.
    #[must_use]
    pub(super) fn at_version(&self, api_version: &str) -> Self {
        Self::new(&self.name, self.operation, api_version, &self.subresource)
    }

    /// As conflicts name it: `"kubectl" with subresource "scale" using apps/v1`.
    pub fn shown(&self) -> String {
        let mut text = crate::field::quoted(&self.name);
        if !self.subresource.is_empty() {
            text.push_str(&format!(" with subresource {}", crate::field::quoted(&self.subresource)));
        }
        if self.operation == Operation::Update {
            text.push_str(&format!(" using {}", self.api_version));
        }
        text
    }
}

impl PartialOrd for ManagerId {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for ManagerId {
    fn cmp(&self, other: &Self) -> Ordering {
        self.order.cmp(&other.order)
    }
}

/// What one manager owns.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Entry {
    pub(super) set: Set,
    /// The version the set is meant for.
    pub(super) api_version: String,
    pub(super) time: Option<Timestamp>,
}

impl Entry {
    fn seconds(&self) -> i64 {
        self.time.map_or(0, |time| time.0.as_second())
    }
}

/// All managers of an object.
pub(super) type Managers = BTreeMap<ManagerId, Entry>;

/// The raw entries of an object, if it has the field.
pub(super) fn entries_of(object: &Value) -> Option<&Vec<Value>> {
    object.get("metadata")?.get("managedFields")?.as_array()
}

/// Whether the entries say that tracking shall start anew: none, or one without any field.
pub(super) fn is_reset(entries: &[Value]) -> bool {
    match entries {
        [] => true,
        [Value::Object(only)] => only.values().all(|v| v.is_null() || v.as_str() == Some("")),
        _ => false,
    }
}

/// Reads the entries of an object.
pub(super) fn decode(entries: &[Value]) -> Result<Managers, FieldsError> {
    let mut managers = Managers::new();
    for entry in entries {
        let text = |key: &str| entry.get(key).and_then(Value::as_str).unwrap_or("");
        let operation = match text("operation") {
            "Apply" => Operation::Apply,
            "Update" => Operation::Update,
            _ => return Err(FieldsError::Shape),
        };
        let api_version = text("apiVersion");
        if api_version.is_empty() || text("fieldsType") != "FieldsV1" {
            return Err(FieldsError::Shape);
        }
        let set = entry.get("fieldsV1").map_or(Ok(Set::default()), Set::from_value)?;
        let id = ManagerId::new(text("manager"), operation, api_version, text("subresource"));
        let time = text("time").parse().ok();
        managers.insert(id, Entry { set, api_version: api_version.into(), time });
    }
    Ok(managers)
}

/// The entries in the order Kubernetes writes them: appliers first, then by time, then by name.
pub(super) fn encode(managers: &Managers) -> Vec<Value> {
    let mut sorted: Vec<(&ManagerId, &Entry)> = managers.iter().collect();
    sorted.sort_by(|(a, x), (b, y)| {
        let key = |id: &ManagerId, entry: &Entry| (id.operation, entry.seconds());
        key(a, x).cmp(&key(b, y)).then_with(|| {
            (&a.name, &x.api_version, &a.subresource).cmp(&(&b.name, &y.api_version, &b.subresource))
        })
    });
    sorted.into_iter().map(|(id, entry)| encode_one(id, entry)).collect()
}

fn encode_one(id: &ManagerId, entry: &Entry) -> Value {
    let mut map = Map::new();
    map.insert("manager".into(), id.name.clone().into());
    map.insert("operation".into(), id.operation.as_str().into());
    map.insert("apiVersion".into(), entry.api_version.clone().into());
    if let Some(time) = entry.time {
        map.insert("time".into(), time.to_string().into());
    }
    map.insert("fieldsType".into(), "FieldsV1".into());
    map.insert("fieldsV1".into(), entry.set.to_value());
    if !id.subresource.is_empty() {
        map.insert("subresource".into(), id.subresource.clone().into());
    }
    Value::Object(map)
}

/// Puts the managers into the object; none at all leave no field.
pub(super) fn store(object: &mut Value, managers: &Managers) {
    put(object, encode(managers));
}

pub(super) fn put(object: &mut Value, entries: Vec<Value>) {
    let Value::Object(map) = object else { return };
    let metadata = map.entry("metadata").or_insert_with(|| json!({}));
    let Value::Object(metadata) = metadata else { return };
    if entries.is_empty() {
        metadata.shift_remove("managedFields");
    } else {
        metadata.insert("managedFields".into(), Value::Array(entries));
    }
}

/// Merges the oldest update managers, version by version, until few enough are left.
pub(super) fn cap(managers: &mut Managers) {
    let mut updaters: Vec<(i64, ManagerId)> = managers
        .iter()
        .filter(|(id, _)| id.operation == Operation::Update)
        .map(|(id, entry)| (entry.seconds(), id.clone()))
        .collect();
    let mut excess = updaters.len().saturating_sub(MAX_UPDATE_MANAGERS);
    updaters.sort();
    let mut first_of: BTreeMap<String, ManagerId> = BTreeMap::new();
    for (_, id) in updaters {
        if excess == 0 {
            return;
        }
        let Some(version) = managers.get(&id).map(|entry| entry.api_version.clone()) else { continue };
        let Some(first) = first_of.get(&version) else {
            first_of.insert(version, id);
            continue;
        };
        let bucket = ManagerId::new(ANCIENT, Operation::Update, &version, "");
        let Some(entry) = managers.remove(&id) else { continue };
        let mut whole = match managers.remove(&bucket) {
            Some(bucket) => bucket,
            None => managers.remove(first).unwrap_or_else(|| entry.clone()),
        };
        whole.set = whole.set.union(&entry.set);
        whole.time = entry.time;
        managers.insert(bucket, whole);
        excess -= 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn identities() {
        for (id, shown) in [
            (ManagerId::new("m", Operation::Apply, "v1", ""), r#""m""#),
            (ManagerId::new("", Operation::Update, "apps/v1", ""), r#""unknown" using apps/v1"#),
            (
                ManagerId::new("m", Operation::Update, "v1", "status"),
                r#""m" with subresource "status" using v1"#,
            ),
        ] {
            assert_eq!(id.shown(), shown);
        }
        let with = ManagerId::new("m", Operation::Apply, "v1", "status");
        assert!(with < ManagerId::new("m", Operation::Apply, "v1", ""));
    }

    #[test]
    fn resets() {
        assert!(is_reset(&[]) && is_reset(&[json!({})]));
        assert!(!is_reset(&[json!({"manager": "m"})]) && !is_reset(&[json!({}), json!({})]));
    }

    #[test]
    fn sorted_by_operation_time_and_name() {
        let entry = |name: &str, operation: &str, time: &str| {
            json!({"manager": name, "operation": operation, "apiVersion": "v1", "time": time,
                   "fieldsType": "FieldsV1", "fieldsV1": {"f:a": {}}})
        };
        let entries = [
            entry("b", "Update", "2026-01-01T00:00:00Z"),
            entry("a", "Update", "2026-01-01T00:00:00Z"),
            entry("c", "Update", "2025-01-01T00:00:00Z"),
            entry("z", "Apply", "2027-01-01T00:00:00Z"),
        ];
        let sorted = encode(&decode(&entries).unwrap());
        let names: Vec<&str> = sorted.iter().map(|e| e["manager"].as_str().unwrap()).collect();
        assert_eq!(names, ["z", "c", "a", "b"]);
        assert!(decode(&[json!({"operation": "Other"})]).is_err());
    }
}
