//! Cells that many tables have in common.

use serde_json::Value;
use wasmk_api::{Object, Timestamp, human_duration};

use crate::value::{list, text};

/// How long ago the object was made, as kubectl prints it; `<unknown>` without a time.
pub(crate) fn age(obj: &Object, now: Timestamp) -> Value {
    since(obj.meta("creationTimestamp"), now).into()
}

/// How long ago a time was; `<unknown>` when it is none.
pub(crate) fn since(time: &str, now: Timestamp) -> String {
    match time.parse::<Timestamp>() {
        Ok(time) => human_duration(now.since(time)),
        Err(_) => "<unknown>".into(),
    }
}

/// The names and images of a pod spec's containers.
pub(crate) fn containers(spec: &Value) -> (Value, Value) {
    let join = |key| list(spec, "containers").iter().map(|c| text(c, key)).collect::<Vec<_>>().join(",");
    (join("name").into(), join("image").into())
}

/// A text, or a stand-in when it is empty.
pub(crate) fn or<'a>(text: &'a str, stand_in: &'a str) -> &'a str {
    if text.is_empty() { stand_in } else { text }
}

/// Short forms of access modes, each once, in their usual order.
pub(crate) fn access_modes(modes: &[Value]) -> String {
    const SHORT: [(&str, &str); 4] = [
        ("ReadWriteOnce", "RWO"),
        ("ReadOnlyMany", "ROX"),
        ("ReadWriteMany", "RWX"),
        ("ReadWriteOncePod", "RWOP"),
    ];
    let has = |mode: &str| modes.iter().any(|m| m.as_str() == Some(mode));
    SHORT.iter().filter(|(mode, _)| has(mode)).map(|(_, short)| *short).collect::<Vec<_>>().join(",")
}

/// `True` or `False`, as some columns print a flag.
pub(crate) fn yes_no(flag: bool) -> Value {
    if flag { "True" } else { "False" }.into()
}
