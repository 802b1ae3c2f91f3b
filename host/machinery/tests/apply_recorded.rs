//! Sequences of writes to one object, with the object and the owners of its fields that Kubernetes 1.36
//! recorded after each: see `data/README.md`.

use serde_json::{Value, json};
use wasmk_api::{GroupKind, Gvk, Status, Timestamp};
use wasmk_machinery::{
    apply::{FieldManager, Reset},
    decode::convert,
    patch,
    schema::KindSchema,
};

const RECORDED: &str = include_str!("data/writes.jsonl");

/// Runs one sequence; returns what differs from the recording.
struct Run {
    case: Value,
    gvk: Gvk,
    kind: KindSchema,
    faults: Vec<String>,
}

impl Run {
    fn new(line: &str) -> Self {
        let case: Value = serde_json::from_str(line).expect("a line of JSON");
        let text = |i: usize| case["kind"][i].as_str().expect("kind");
        let (group, version) = text(0).split_once('/').unwrap_or(("", text(0)));
        let gvk = Gvk::new(group, version, text(1));
        let kind = match case.get("schema") {
            Some(schema) => KindSchema::custom(schema).expect("a schema"),
            None => KindSchema::built_in(&gvk).expect("a built-in kind"),
        };
        Self { case, gvk, kind, faults: Vec::new() }
    }

    fn fault(&mut self, step: usize, what: String) {
        self.faults.push(format!("{} step {step}: {what}", self.case["name"]));
    }

    fn all(mut self, mut live: Option<Value>) -> Vec<String> {
        for (i, step) in self.case["steps"].as_array().cloned().unwrap_or_default().iter().enumerate() {
            let outcome = self.write(i, step, live.as_ref());
            match (outcome, step.get("expect"), step.get("error")) {
                (Ok(object), Some(expect), _) => {
                    self.compare(i, &object, expect);
                    live = Some(if expect.is_null() { object } else { expect.clone() });
                }
                (Err(status), None, Some(error)) => {
                    let found = json!([status.code, status.message]);
                    if found != *error {
                        self.fault(i, format!("found {found}, recorded {error}"));
                    }
                }
                // Validation is not run here.
                (Ok(_), None, Some(error)) if [422, 400].contains(&error[0].as_u64().unwrap_or(0)) => (),
                (Ok(_), None, error) => self.fault(i, format!("succeeded, recorded {error:?}")),
                (Err(status), ..) => self.fault(i, format!("refused: {}", status.message)),
            }
        }
        self.faults
    }

    /// Carries a write out, ending with the object as recorded (defaults and server-set fields filled in).
    fn write(&mut self, i: usize, step: &Value, live: Option<&Value>) -> Result<Value, Status> {
        let text = |key: &str| step.get(key).and_then(Value::as_str).unwrap_or("");
        let (gvk, kind) = (self.gvk.clone(), self.kind.clone());
        let group_kind = GroupKind { group: gvk.group.clone(), kind: gvk.kind.clone() };
        let reset = Reset::of(&group_kind, text("subresource"), true);
        let manager = FieldManager {
            gvk: &gvk,
            kind: &kind,
            subresource: text("subresource"),
            reset: &reset,
            versions: None,
            now: Timestamp::now(),
        };
        let body = step["body"].clone();
        if text("op") == "apply" {
            let force = step.get("force") == Some(&json!(true));
            let applied = manager.apply(live, &body, text("manager"), force)?;
            let entries = applied["metadata"].get("managedFields").cloned();
            let object = convert(applied, &kind).map_err(Status::bad_request)?.object.into_value();
            return Ok(self.settled(i, step, object, entries));
        }
        let before = || live.cloned().unwrap_or_default();
        let patched = match text("op") {
            "merge" => patch::merge(before(), body),
            "json" => patch::json(before(), &body)?,
            "strategic" => patch::strategic(kind.schema(), before(), body)?,
            _ => body,
        };
        let entries = patched["metadata"].get("managedFields").cloned();
        let object = convert(patched, &kind).map_err(Status::bad_request)?.object.into_value();
        let mut object = self.settled(i, step, object, entries);
        manager.update(live, &mut object, text("manager"));
        Ok(object)
    }

    /// Checks that the object has nothing the recorded one has not, and completes it from that.
    fn settled(&mut self, i: usize, step: &Value, object: Value, entries: Option<Value>) -> Value {
        let subresource = step.get("subresource").is_some();
        let mut settled = match step.get("expect") {
            Some(expect) if !expect.is_null() => {
                let mut missing = Vec::new();
                // What a write leaves alone is put back by the resource's own rules.
                let keep = |path: &str| path.starts_with(".status") == subresource;
                lacks(expect, &object, "", &keep, &mut missing);
                missing.into_iter().for_each(|path| self.fault(i, format!("not in the recording: {path}")));
                expect.clone()
            }
            _ => {
                let mut object = object;
                object["metadata"]["uid"] = json!("1");
                object
            }
        };
        if let Some(metadata) = settled["metadata"].as_object_mut() {
            match entries {
                Some(entries) => metadata.insert("managedFields".into(), entries),
                None => metadata.remove("managedFields"),
            };
        }
        settled
    }

    fn compare(&mut self, i: usize, object: &Value, expect: &Value) {
        if self.case.get("partial").is_some() || expect.is_null() {
            return;
        }
        let (found, recorded) = (owners(object), owners(expect));
        if found != recorded {
            let text = |entries: Vec<Value>| {
                entries.iter().map(|entry| format!("\n    {entry}")).collect::<String>()
            };
            self.fault(i, format!("owners\n  found:{}\n  recorded:{}", text(found), text(recorded)));
        }
    }
}

/// The entries without the moment of their times, in the order of the recording.
fn owners(object: &Value) -> Vec<Value> {
    let mut entries = object["metadata"]["managedFields"].as_array().cloned().unwrap_or_default();
    for entry in entries.iter_mut().filter_map(Value::as_object_mut) {
        if let Some(time) = entry.get_mut("time") {
            *time = json!("set");
        }
    }
    let key = |entry: &Value| {
        ["operation", "manager", "subresource", "apiVersion"]
            .map(|k| entry[k].as_str().unwrap_or("").to_owned())
    };
    entries.sort_by_key(key);
    entries
}

/// Lists what `part` has and `whole` has not, or differently.
fn lacks(whole: &Value, part: &Value, path: &str, keep: &dyn Fn(&str) -> bool, out: &mut Vec<String>) {
    match (whole, part) {
        (Value::Object(whole), Value::Object(part)) => {
            for (key, value) in part {
                let path = format!("{path}.{key}");
                // The server sets these itself.
                let own = ["resourceVersion", "generation", "managedFields", "uid", "creationTimestamp"];
                if path.starts_with(".metadata.") && own.contains(&key.as_str()) {
                    continue;
                }
                match whole.get(key) {
                    Some(there) => lacks(there, value, &path, keep, out),
                    None if value.is_null() || !keep(&path) => (),
                    None => out.push(format!("{path}: {value}")),
                }
            }
        }
        (Value::Array(whole), Value::Array(part)) if whole.len() == part.len() => {
            for (i, (whole, part)) in whole.iter().zip(part).enumerate() {
                lacks(whole, part, &format!("{path}[{i}]"), keep, out);
            }
        }
        (whole, part) if whole == part || part.is_null() || !keep(path) => (),
        (whole, part) => out.push(format!("{path}: {part}, recorded {whole}")),
    }
}

/// The object that another sequence leaves behind.
fn left_by(name: &str) -> Option<Value> {
    let cases = RECORDED.lines().map(|line| serde_json::from_str::<Value>(line).expect("a line of JSON"));
    let case = cases.into_iter().find(|case| case["name"] == name)?;
    Some(case["steps"].as_array()?.last()?["expect"].clone())
}

#[test]
fn writes_as_recorded() {
    let mut faults = Vec::new();
    for line in RECORDED.lines() {
        let run = Run::new(line);
        let live = run.case["after"].as_str().map(|name| left_by(name).expect("an earlier sequence"));
        faults.extend(run.all(live));
    }
    assert!(RECORDED.lines().count() > 100, "the recording is there");
    assert!(faults.is_empty(), "{} differences:\n{}", faults.len(), faults.join("\n"));
}
