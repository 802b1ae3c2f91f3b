//! What is wrong with an object's metadata.

use serde_json::Value;
use wasmk_api::Object;
use wasmk_machinery::names;

use crate::errors::{At, Errors};
use crate::fields::{in_meta, top};
use crate::value::{entries, flag, int, list, text};

/// All annotations of an object together hold at most that many bytes.
const MAX_ANNOTATIONS: usize = 256 * 1024;
const STANDARD_FINALIZERS: [&str; 3] = ["kubernetes", "orphan", "foregroundDeletion"];

/// What names objects of a kind may have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NameRule {
    /// An RFC 1123 subdomain: most kinds.
    Subdomain,
    /// An RFC 1123 label: namespaces, services.
    Label,
    /// Whatever can stand in a URL path: roles and bindings.
    PathSegment,
    /// Nothing is required, not even a name: reviews.
    None,
}

impl NameRule {
    /// What is wrong with a name; with the `generateName` it will be made from when `prefix`.
    pub fn check(self, name: &str, prefix: bool) -> Vec<String> {
        let masked = || if prefix { names::mask_trailing_dash(name) } else { name.to_owned() };
        match self {
            Self::Subdomain => names::dns1123_subdomain(&masked()),
            Self::Label => names::dns1123_label(&masked()),
            Self::PathSegment => names::path_segment(name),
            Self::None => Vec::new(),
        }
    }
}

/// Checks the metadata of a new object, built-in or custom.
pub fn check(obj: &Object, rule: NameRule, errors: &mut Errors) {
    if rule == NameRule::None {
        return;
    }
    check_at(top(obj, "metadata"), &At::new("metadata"), rule, errors);
}

/// Checks metadata at another place, for instance that of a template with a name.
pub(crate) fn check_at(meta: &Value, at: &At<'_>, rule: NameRule, errors: &mut Errors) {
    let generate = text(meta, "generateName");
    if !generate.is_empty() {
        for why in rule.check(generate, true) {
            errors.invalid_text(&at.field("generateName"), generate, &why);
        }
    }
    let name = text(meta, "name");
    if name.is_empty() {
        errors.required(&at.field("name"), "name or generateName is required");
    } else {
        for why in rule.check(name, false) {
            errors.invalid_text(&at.field("name"), name, &why);
        }
    }
    if let Some(generation) = int(meta, "generation").filter(|g| *g < 0) {
        errors.invalid_int(&at.field("generation"), generation, NOT_NEGATIVE);
    }
    check_parts(meta, at, errors);
}

/// What is said of numbers below zero.
pub(crate) const NOT_NEGATIVE: &str = "must be greater than or equal to 0";

fn check_parts(meta: &Value, at: &At<'_>, errors: &mut Errors) {
    labels(meta, &at.field("labels"), errors);
    annotations(meta, &at.field("annotations"), errors);
    owners(list(meta, "ownerReferences"), &at.field("ownerReferences"), errors);
    let finalizers = list(meta, "finalizers");
    let at = at.field("finalizers");
    for name in finalizers.iter().filter_map(Value::as_str) {
        for why in names::qualified_name(name) {
            errors.invalid_text(&at, name, &why);
        }
    }
    let has = |name: &str| finalizers.iter().any(|f| f.as_str() == Some(name));
    if has("orphan") && has("foregroundDeletion") {
        let why = "finalizer orphan and finalizer foregroundDeletion cannot be both set";
        errors.invalid(&at, &finalizers.into(), why);
    }
}

/// Checks that a built-in object's finalizers are known or qualified by a domain.
pub(crate) fn check_finalizers(obj: &Object, errors: &mut Errors) {
    let meta = At::new("metadata");
    let at = meta.field("finalizers");
    for (i, name) in
        in_meta(obj, "finalizers").as_array().into_iter().flatten().filter_map(Value::as_str).enumerate()
    {
        if !name.contains('/') && !STANDARD_FINALIZERS.contains(&name) {
            let why = "name is neither a standard finalizer name nor is it fully qualified";
            errors.invalid_text(&at.index(i), name, why);
        }
    }
}

/// Checks the `labels` of a value that has some.
pub(crate) fn labels(holder: &Value, at: &At<'_>, errors: &mut Errors) {
    label_map(entries(holder, "labels"), at, errors);
}

/// Checks a map of labels.
pub(crate) fn label_map<'a>(
    labels: impl Iterator<Item = (&'a String, &'a Value)>,
    at: &At<'_>,
    errors: &mut Errors,
) {
    for (key, value) in labels {
        label_key(key, at, errors);
        let value = value.as_str().unwrap_or("");
        for why in names::label_value(value) {
            errors.invalid_text(at, value, &why);
        }
    }
}

/// Checks the key of a label.
pub(crate) fn label_key(key: &str, at: &At<'_>, errors: &mut Errors) {
    for why in names::qualified_name(key) {
        errors.invalid_text(at, key, &why);
    }
}

/// Checks the `annotations` of a value that has some.
pub(crate) fn annotations(holder: &Value, at: &At<'_>, errors: &mut Errors) {
    let mut size = 0;
    for (key, value) in entries(holder, "annotations") {
        // Keys of annotations may hold capitals in their prefix.
        let checked = if key.bytes().any(|c| c.is_ascii_uppercase()) {
            names::qualified_name(&key.to_lowercase())
        } else {
            names::qualified_name(key)
        };
        for why in checked {
            errors.invalid_text(at, key, &why);
        }
        size += key.len() + value.as_str().map_or(0, str::len);
    }
    if size > MAX_ANNOTATIONS {
        errors.too_long(at, MAX_ANNOTATIONS);
    }
}

fn owners(references: &[Value], at: &At<'_>, errors: &mut Errors) {
    let mut controller: Option<&str> = None;
    for reference in references {
        owner(reference, at, errors);
        if flag(reference, "controller") {
            let name = text(reference, "name");
            if let Some(first) = controller {
                let why = format!(
                    "Only one reference can have Controller set to true. Found \"true\" in references for {first} and {name}"
                );
                errors.invalid(at, &references.into(), &why);
            }
            controller = Some(name);
        }
    }
}

fn owner(reference: &Value, at: &At<'_>, errors: &mut Errors) {
    let (version, kind) = (text(reference, "apiVersion"), text(reference, "kind"));
    if version.is_empty() || version.ends_with('/') {
        errors.invalid_text(&at.field("apiVersion"), version, "version must not be empty");
    }
    for key in ["kind", "name", "uid"] {
        if text(reference, key).is_empty() {
            errors.invalid_text(&at.field(key), "", "must not be empty");
        }
    }
    if (version, kind) == ("v1", "Event") {
        errors.invalid(at, reference, "/v1, Kind=Event is disallowed from being an owner");
    }
}

/// Warnings of finalizers a custom object newly has that another writer may use as well.
pub fn finalizer_warnings(obj: &Object, old: Option<&Object>) -> Vec<String> {
    obj.finalizers()
        .filter(|name| !name.contains('/') && !STANDARD_FINALIZERS.contains(name))
        .filter(|name| old.is_none_or(|old| !old.finalizers().any(|known| known == *name)))
        .map(|name| {
            format!(
                "metadata.finalizers: \"{name}\": prefer a domain-qualified finalizer name including a path (/) to avoid accidental conflicts with other finalizer writers"
            )
        })
        .collect()
}

const IMMUTABLE_META: [&str; 6] =
    ["name", "namespace", "uid", "creationTimestamp", "deletionTimestamp", "deletionGracePeriodSeconds"];

/// What is said of a value that may not change.
pub(crate) const IMMUTABLE: &str = "field is immutable";

/// Checks the metadata of a built-in object that replaces another.
///
/// The server looks at it twice, once for every kind and once for the kind: what it finds it says twice.
pub(crate) fn check_update_twice(new: &Object, old: &Object, errors: &mut Errors) {
    let before = errors.count();
    check_update(new, old, errors);
    errors.repeat_from(before);
    check_finalizers(new, errors);
}

/// Checks the metadata of an object, built-in or custom, that replaces another, once.
pub fn check_update(new: &Object, old: &Object, errors: &mut Errors) {
    let at = At::new("metadata");
    if old.is_deleting() {
        new_finalizers(new, old, &at.field("finalizers"), errors);
    }
    if new.generation() < old.generation() {
        errors.invalid_int(&at.field("generation"), new.generation(), "must not be decremented");
    }
    for key in IMMUTABLE_META {
        let (value, before) = (in_meta(new, key), in_meta(old, key));
        if value != before {
            errors.invalid(&at.field(key), value, IMMUTABLE);
        }
    }
    let meta = top(new, "metadata");
    labels(meta, &at.field("labels"), errors);
    annotations(meta, &at.field("annotations"), errors);
    owners(list(meta, "ownerReferences"), &at.field("ownerReferences"), errors);
}

fn new_finalizers(new: &Object, old: &Object, at: &At<'_>, errors: &mut Errors) {
    let mut added: Vec<_> =
        new.finalizers().filter(|f| !old.finalizers().any(|o| o == *f)).map(|f| format!("{f:?}")).collect();
    if added.is_empty() {
        return;
    }
    added.sort();
    let list = added.join(", ");
    errors.forbidden(
        at,
        &format!(
            "no new finalizers can be added if the object is being deleted, found new finalizers []string{{{list}}}"
        ),
    );
}
