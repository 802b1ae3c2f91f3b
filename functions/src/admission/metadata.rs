//! Names, annotations, labels and who made an object.

use serde_json::Value;
use wasmk_api::{Object, knative::GROUP};

use super::problem::{Problems, label_faults, listed};
use crate::config::duration;

/// Annotation: who made an object.
const CREATOR: &str = "serving.knative.dev/creator";
/// Annotation: who changed its spec last.
const MODIFIER: &str = "serving.knative.dev/lastModifier";
/// Annotation: how long a rollout takes, in both spellings.
pub(crate) const ROLLOUT: [&str; 2] =
    ["serving.knative.dev/rollout-duration", "serving.knative.dev/rolloutDuration"];

/// Writes down who made the object, or who changed its spec. What another object owns belongs to who made that.
pub(super) fn note_user(object: &mut Object, old: Option<&Object>, user: &str) {
    let owned = object.metadata().and_then(|m| m.get("ownerReferences")).is_some_and(|o| !o.is_null());
    if user.is_empty() || object.kind() == "Revision" || (owned && object.kind() != "Service") {
        return;
    }
    let mut notes = vec![(MODIFIER, user.to_string())];
    match old {
        None => notes.push((CREATOR, user.to_string())),
        Some(old) if old.0.get("spec") == object.0.get("spec") => {
            // A replaced object need not repeat them.
            notes = [CREATOR, MODIFIER]
                .iter()
                .filter(|key| object.annotation(key).is_none())
                .filter_map(|key| Some((*key, old.annotation(key)?.to_string())))
                .collect();
        }
        Some(old) if object.annotation(CREATOR).is_none() => {
            notes.extend(old.annotation(CREATOR).map(|who| (CREATOR, who.to_string())));
        }
        Some(_) => {}
    }
    if notes.is_empty() {
        return;
    }
    let annotations =
        object.metadata_mut().entry("annotations").or_insert_with(|| Value::Object(Default::default()));
    if let Some(map) = annotations.as_object_mut() {
        map.extend(notes.into_iter().map(|(key, who)| (key.to_string(), who.into())));
    }
}

/// The rules for what users make: its name, no autoscaling annotations, and nobody else in its creator's place.
pub(super) fn check(object: &Object, old: Option<&Object>, problems: &mut Problems) {
    name(object, problems);
    let prefix = "autoscaling.knative.dev";
    for (key, _) in object.annotations().filter(|(key, _)| key.starts_with(prefix)) {
        let details =
            "autoscaling annotations must be put under \"spec.template.metadata.annotations\" to work";
        problems.detailed(format!("invalid key name {key:?}"), "metadata.annotations", details);
    }
    if let Some(value) = object.label("networking.knative.dev/visibility").filter(|v| *v != "cluster-local") {
        problems.invalid(value, "metadata.labels.networking.knative.dev/visibility");
    }
    creators(object, old, problems);
}

fn creators(object: &Object, old: Option<&Object>, problems: &mut Problems) {
    let Some(old) = old else { return };
    let owned = object.metadata().and_then(|m| m.get("ownerReferences")).is_some_and(|o| !o.is_null());
    if owned && object.kind() != "Service" {
        return;
    }
    if old.annotation(CREATOR).is_some() && object.annotation(CREATOR) != old.annotation(CREATOR) {
        problems.add("annotation value is immutable", format!("metadata.annotations.{GROUP}/creator"));
    }
    let same = object.0.get("spec") == old.0.get("spec");
    if same && object.annotation(MODIFIER) != old.annotation(MODIFIER) && old.annotation(MODIFIER).is_some() {
        problems.invalid(
            object.annotation(MODIFIER).unwrap_or(""),
            format!("metadata.annotations.{GROUP}/lastModifier"),
        );
    }
}

/// Names become parts of host names.
pub(super) fn name(object: &Object, problems: &mut Problems) {
    let generated = object.meta("generateName").trim_end_matches('-');
    for (text, path, what) in [
        (object.name(), "metadata.name", "not a DNS 1035 label"),
        (generated, "metadata.generateName", "not a DNS 1035 label prefix"),
    ] {
        let faults = if text.is_empty() { Vec::new() } else { label_faults(text) };
        if !faults.is_empty() {
            problems.invalid(format!("{what}: {}", listed(&faults)), path);
        }
    }
}

/// A label that names an owner is only for what that owner owns.
pub(super) fn owned(object: &Object, label: &str, kind: &str, problems: &mut Problems) {
    let Some(name) = object.label(label) else { return };
    let owners = object.metadata().and_then(|m| m.get("ownerReferences")).and_then(Value::as_array);
    let fits = owners.into_iter().flatten().any(|o| o["kind"] == kind && o["name"] == name);
    if !fits {
        problems.missing(format!("metadata.labels.{label}"));
    }
}

/// How long a rollout takes.
pub(super) fn rollout(object: &Object, problems: &mut Problems) {
    seconds(object.annotations(), &ROLLOUT, "rollout-duration", "metadata.annotations", problems);
}

/// An annotation that is a duration of whole seconds.
pub(super) fn seconds<'a>(
    mut annotations: impl Iterator<Item = (&'a str, &'a str)>,
    keys: &[&str],
    what: &str,
    base: &str,
    problems: &mut Problems,
) {
    let Some((key, text)) = annotations.find(|(key, value)| keys.contains(key) && !value.is_empty()) else {
        return;
    };
    let path = format!("{base}.{key}");
    match (duration(text), text.strip_prefix('-').and_then(duration)) {
        (Some(span), _) if span.subsec_nanos() != 0 => {
            problems.add(format!("{what}={text} is not at second precision"), path);
        }
        (Some(_), _) => {}
        (None, Some(_)) => problems.add(format!("{what}={text} must be positive"), path),
        (None, None) => problems.invalid(text, path),
    }
}

/// The rules of a DomainMapping: its name is a domain, its reference names something.
pub(super) fn domain(object: &Object, old: Option<&Object>, problems: &mut Problems) {
    if !object.meta("generateName").is_empty() {
        problems.disallowed("metadata.generateName");
    }
    let name = object.name();
    let part = |p: &str| {
        let inner = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
        (1..=63).contains(&p.len()) && p.chars().all(inner) && !p.starts_with('-') && !p.ends_with('-')
    };
    if !name.contains('.') || !name.split('.').all(part) {
        let why = "should be a domain with at least two segments separated by dots";
        problems.add(format!("invalid name {name:?}: name: Invalid value: {name:?}: {why}"), "metadata.name");
    }
    if name.ends_with(".svc.cluster.local") || name.ends_with(".cluster.local") {
        let why = "must not be a subdomain of cluster local domain \"cluster.local\"";
        problems.add(format!("invalid name {name:?}: {why}"), "metadata.name");
    }
    creators(object, old, problems);
    let reference = object.at(&["spec", "ref"]).unwrap_or(&Value::Null);
    for key in ["name", "kind"] {
        if reference[key].as_str().unwrap_or("").is_empty() {
            problems.missing(format!("spec.ref.{key}"));
        }
    }
    let (version, group) = (reference["apiVersion"].as_str().unwrap_or(""), reference["group"].as_str());
    if version.is_empty() && group.is_none() {
        problems.missing("spec.ref.apiVersion");
    }
    let namespace = reference["namespace"].as_str().unwrap_or("");
    if !namespace.is_empty() && namespace != object.namespace() {
        let details = format!("parent namespace: {:?} does not match ref: {namespace:?}", object.namespace());
        problems.detailed("mismatched namespaces", "spec.ref.namespace", &details);
    }
}
