//! Templates and the revisions made from them.

use serde_json::Value;
use wasmk_api::{Object, PerRequest};

use super::{
    autoscaling, metadata, pod,
    problem::{Problems, label_faults, listed},
};
use crate::config::Config;

/// Annotation: how long a deployment may make no progress.
pub(crate) const DEADLINE: [&str; 2] =
    ["serving.knative.dev/progress-deadline", "serving.knative.dev/progressDeadline"];
/// Differences shown at the most.
const MAX_SHOWN: usize = 20;

/// Checks a template of `parent`.
pub(super) fn template(
    template: &Value,
    base: &str,
    parent: &Object,
    config: &Config,
    problems: &mut Problems,
) {
    spec(&template["spec"], &format!("{base}.spec"), config, problems);
    let at = format!("{base}.metadata.annotations");
    let annotations = &template["metadata"]["annotations"];
    autoscaling::check(annotations, &at, config, problems);
    if let Err(wrong) = PerRequest::read(|key| annotations[key].as_str()) {
        let why = format!("{} was expected", wrong.expected);
        problems.detailed(format!("invalid value: {}", wrong.value), format!("{at}.{}", wrong.key), &why);
    }
    let pairs = annotations.as_object().into_iter().flatten();
    let pairs = pairs.filter_map(|(key, value)| Some((key.as_str(), value.as_str()?)));
    metadata::seconds(pairs, &DEADLINE, "progress-deadline", &at, problems);
    name(template["metadata"]["name"].as_str().unwrap_or(""), base, parent, problems);
}

/// A template may name its revision, beginning with the parent's name.
fn name(name: &str, base: &str, parent: &Object, problems: &mut Problems) {
    if name.is_empty() {
        return;
    }
    let at = format!("{base}.metadata.name");
    let faults = label_faults(name);
    if !faults.is_empty() {
        return problems.invalid(format!("not a DNS 1035 label: {}", listed(&faults)), at);
    }
    if parent.name().is_empty() && !parent.meta("generateName").is_empty() {
        return problems.disallowed(at);
    }
    let prefix = format!("{}-", parent.name());
    if !name.starts_with(&prefix) {
        problems.invalid(format!("{name:?} must have prefix {prefix:?}"), at);
    }
}

/// Checks what a revision runs.
pub(super) fn spec(spec: &Value, base: &str, config: &Config, problems: &mut Problems) {
    pod::check(spec, base, config, problems);
    let most = config.defaults.max_timeout;
    if let Some(seconds) = spec["timeoutSeconds"].as_i64().filter(|s| !(0..=most).contains(s)) {
        problems.bounds(seconds, 0, most, format!("{base}.timeoutSeconds"));
    }
    let timeout = spec["timeoutSeconds"].as_i64().unwrap_or(config.defaults.timeout);
    for key in ["responseStartTimeoutSeconds", "idleTimeoutSeconds"] {
        if let Some(seconds) = spec[key].as_i64().filter(|s| !(0..=timeout).contains(s)) {
            problems.bounds(seconds, 0, timeout, format!("{base}.{key}"));
        }
    }
    let least = i64::from(!config.defaults.allow_unlimited);
    let most = config.defaults.max_concurrency;
    if let Some(n) = spec["containerConcurrency"].as_i64().filter(|n| !(least..=most).contains(n)) {
        problems.bounds(n, least, most, format!("{base}.containerConcurrency"));
    }
}

/// A revision's spec stays as it was made.
pub(super) fn immutable(object: &Object, old: &Object, problems: &mut Problems) {
    let (new, old) = (object.0.get("spec"), old.0.get("spec"));
    if new != old {
        let changes = differences(old.unwrap_or(&Value::Null), new.unwrap_or(&Value::Null));
        problems.detailed("Immutable fields changed (-old +new)", "spec", &changes);
    }
}

/// A template that names its revision gets another name with every change.
pub(super) fn renamed(object: &Object, old: Option<&Object>, problems: &mut Problems) {
    let template = |o: &Object| o.at(&["spec", "template"]).cloned().unwrap_or(Value::Null);
    let Some(old) = old.map(template) else { return };
    let new = template(object);
    let name = new["metadata"]["name"].as_str().unwrap_or("");
    if !name.is_empty() && old["metadata"]["name"] == name && old != new {
        let message = "Saw the following changes without a name change (-old +new)";
        problems.detailed(message, "spec.template.metadata.name", &differences(&old, &new));
    }
}

/// What differs, a path a line.
fn differences(old: &Value, new: &Value) -> String {
    let mut lines = Vec::new();
    compare("", old, new, &mut lines);
    lines.truncate(MAX_SHOWN);
    lines.join("\n")
}

fn compare(path: &str, old: &Value, new: &Value, lines: &mut Vec<String>) {
    match (old, new) {
        (Value::Object(a), Value::Object(b)) => {
            for key in a.keys().chain(b.keys().filter(|k| !a.contains_key(*k))) {
                let null = &Value::Null;
                compare(
                    &format!("{path}.{key}"),
                    a.get(key).unwrap_or(null),
                    b.get(key).unwrap_or(null),
                    lines,
                );
            }
        }
        (Value::Array(a), Value::Array(b)) if a.len() == b.len() => {
            a.iter().zip(b).enumerate().for_each(|(i, (a, b))| compare(&format!("{path}[{i}]"), a, b, lines));
        }
        (old, new) if old != new => {
            lines.push(format!("{}:\n\t-: {old}\n\t+: {new}", path.trim_start_matches('.')));
        }
        _ => {}
    }
}
