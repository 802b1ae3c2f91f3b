//! The annotation in which client-side apply keeps its last configuration, and how it meets server-side apply.

use serde_json::{Map, Value};

/// The manager for which Kubernetes makes these exceptions.
pub(super) const KUBECTL: &str = "kubectl";
const ANNOTATION: &str = "kubectl.kubernetes.io/last-applied-configuration";
/// Most bytes all annotations of an object may have.
const MAX_ANNOTATIONS: usize = 256 * 1024;

fn annotations(object: &Value) -> Option<&Map<String, Value>> {
    object.get("metadata")?.get("annotations")?.as_object()
}

/// The configuration in the annotation, when it is of that version.
pub(super) fn read(live: &Value, api_version: &str) -> Option<Value> {
    let text = annotations(live)?.get(ANNOTATION)?.as_str().filter(|text| !text.is_empty())?;
    let config: Value = serde_json::from_str(text).ok()?;
    (config.get("apiVersion")?.as_str()? == api_version).then_some(config)
}

/// Brings the annotation up to date with the configuration, if the object has it. An annotation that
/// would be too large is dropped.
pub(super) fn refresh(object: &mut Value, applied: &Value) {
    let has = annotations(object).and_then(|map| map.get(ANNOTATION)).and_then(Value::as_str);
    if has.is_none_or(str::is_empty) {
        return;
    }
    let mut config = applied.clone();
    if let Some(Value::Object(map)) = config.get_mut("metadata").and_then(|m| m.get_mut("annotations")) {
        map.shift_remove(ANNOTATION);
    }
    let mut text = String::new();
    write_sorted(&config, &mut text);
    text.push('\n');
    let Some(Value::Object(map)) = object.get_mut("metadata").and_then(|m| m.get_mut("annotations")) else {
        return;
    };
    map.insert(ANNOTATION.into(), text.into());
    let size: usize = map.iter().map(|(key, value)| key.len() + value.as_str().map_or(0, str::len)).sum();
    if size > MAX_ANNOTATIONS {
        map.shift_remove(ANNOTATION);
    }
}

/// JSON as Go writes it: keys sorted, HTML escaped.
fn write_sorted(value: &Value, out: &mut String) {
    match value {
        Value::Object(map) => {
            let mut keys: Vec<&String> = map.keys().collect();
            keys.sort();
            out.push('{');
            for (i, key) in keys.into_iter().enumerate() {
                if i > 0 {
                    out.push(',');
                }
                write_text(key, out);
                out.push(':');
                write_sorted(&map[key], out);
            }
            out.push('}');
        }
        Value::Array(items) => {
            out.push('[');
            for (i, item) in items.iter().enumerate() {
                if i > 0 {
                    out.push(',');
                }
                write_sorted(item, out);
            }
            out.push(']');
        }
        Value::String(text) => write_text(text, out),
        other => out.push_str(&other.to_string()),
    }
}

fn write_text(text: &str, out: &mut String) {
    for c in Value::from(text).to_string().chars() {
        match c {
            '<' => out.push_str("\\u003c"),
            '>' => out.push_str("\\u003e"),
            '&' => out.push_str("\\u0026"),
            '\u{2028}' => out.push_str("\\u2028"),
            '\u{2029}' => out.push_str("\\u2029"),
            c => out.push(c),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn refreshes_only_what_is_there() {
        let applied = json!({"kind": "A", "apiVersion": "v1", "d": "<&>",
            "metadata": {"annotations": {ANNOTATION: "old", "a": "b"}}});
        let mut object = json!({"metadata": {"annotations": {"x": "y"}}});
        refresh(&mut object, &applied);
        assert_eq!(object, json!({"metadata": {"annotations": {"x": "y"}}}));
        object["metadata"]["annotations"][ANNOTATION] = json!("{}");
        refresh(&mut object, &applied);
        let text =
            r#"{"apiVersion":"v1","d":"\u003c\u0026\u003e","kind":"A","metadata":{"annotations":{"a":"b"}}}"#;
        assert_eq!(object["metadata"]["annotations"][ANNOTATION], json!(format!("{text}\n")));
        assert_eq!(read(&object, "v1").unwrap()["kind"], "A");
        assert_eq!(read(&object, "v2"), None);
    }

    #[test]
    fn too_large_an_annotation_is_dropped() {
        let applied = json!({"d": "x".repeat(MAX_ANNOTATIONS)});
        let mut object = json!({"metadata": {"annotations": {ANNOTATION: "{}"}}});
        refresh(&mut object, &applied);
        assert_eq!(object, json!({"metadata": {"annotations": {}}}));
    }
}
