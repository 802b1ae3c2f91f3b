//! Custom resource definitions: what is filled in, and what is refused.

mod schema;

use std::collections::HashSet;

use serde_json::{Map, Value, json};
use wasmk_api::{Cause, Object};

use crate::{
    field::{Path, duplicate, forbidden, invalid, invalid_str, not_supported, required, too_many},
    names,
    schema::KindSchema,
    validate::{rules, structural::list},
};

/// Most selectable fields of a version.
const MAX_SELECTABLE: usize = 8;
const COLUMN_TYPES: [&str; 5] = ["boolean", "date", "integer", "number", "string"];
const COLUMN_FORMATS: [&str; 7] = ["byte", "date", "date-time", "double", "float", "int32", "int64"];
const APPROVAL: &str = "api-approved.kubernetes.io";

fn at<'v>(value: &'v Value, path: &[&str]) -> &'v Value {
    path.iter().fold(value, |value, key| &value[*key])
}

fn text<'v>(value: &'v Value, path: &[&str]) -> &'v str {
    at(value, path).as_str().unwrap_or("")
}

/// Fills in what a definition leaves out: names that follow from the kind, and no conversion.
pub fn default(definition: &mut Object) {
    let Some(Value::Object(spec)) = definition.0.get_mut("spec") else { return };
    if let Some(Value::Object(names)) = spec.get_mut("names") {
        let kind = names.get("kind").and_then(Value::as_str).unwrap_or("").to_string();
        for (name, value) in [("singular", kind.to_lowercase()), ("listKind", format!("{kind}List"))] {
            let absent = names.get(name).and_then(Value::as_str).is_none_or(str::is_empty);
            if absent && !kind.is_empty() {
                names.insert(name.into(), value.into());
            }
        }
    }
    let conversion = spec.entry("conversion").or_insert_with(|| json!({"strategy": "None"}));
    if let Some(service) =
        conversion.pointer_mut("/webhook/clientConfig/service").and_then(Value::as_object_mut)
    {
        service.entry("port").or_insert(443.into());
    }
}

/// Sets `status.storedVersions` before a definition is stored: the storage version is among them.
pub fn prepare(definition: &mut Object, old: Option<&Object>) {
    let spec = definition.0.get("spec").cloned().unwrap_or_default();
    let storage = list(&spec, "versions").iter().find(|version| version["storage"] == true);
    let Some(storage) = storage.map(|version| version["name"].clone()) else { return };
    let mut stored = match old.and_then(|old| old.at(&["status", "storedVersions"])) {
        Some(Value::Array(stored)) => stored.clone(),
        _ => Vec::new(),
    };
    if !stored.contains(&storage) {
        stored.push(storage);
    }
    let status = definition.0.entry("status").or_insert_with(|| json!({}));
    if let Some(status) = status.as_object_mut() {
        status.insert("storedVersions".into(), stored.into());
    }
}

/// What is wrong with a definition besides its metadata (but for the name's form, which depends on the
/// spec). `old` is what is stored when it is an update.
pub fn validate(definition: &Object, old: Option<&Object>) -> Vec<Cause> {
    let whole = Value::Object(definition.0.clone());
    let old = old.map(|old| Value::Object(old.0.clone()));
    let mut causes = Vec::new();
    let wanted =
        format!("{}.{}", text(&whole, &["spec", "names", "plural"]), text(&whole, &["spec", "group"]));
    let name = text(&whole, &["metadata", "name"]);
    if name != wanted && old.is_none() && !name.is_empty() {
        let says = r#"must be spec.names.plural+"."+spec.group"#;
        causes.push(invalid_str(&Path::new("metadata.name"), name, says));
    }
    spec(&whole["spec"], &Path::new("spec"), &mut causes);
    if let Some(old) = &old {
        immutable(&whole, old, &mut causes);
    }
    stored_versions(&whole, &mut causes);
    approval(&whole, old.as_ref(), &mut causes);
    causes
}

fn spec(spec: &Value, path: &Path, causes: &mut Vec<Cause>) {
    group(text(spec, &["group"]), &path.child("group"), causes);
    enumerated(text(spec, &["scope"]), &["Cluster", "Namespaced"], &path.child("scope"), causes);
    let versions = list(spec, "versions");
    // What all versions share is looked at once, and reported above them.
    let shared: Vec<&str> = ["schema", "subresources", "additionalPrinterColumns", "selectableFields"]
        .into_iter()
        .filter(|part| versions.windows(2).all(|pair| pair[0].get(*part) == pair[1].get(*part)))
        .collect();
    for (index, version) in versions.iter().enumerate() {
        let path = path.child("versions").index(index);
        if version.pointer("/schema/openAPIV3Schema").is_none_or(Value::is_null) {
            causes.push(required(&path.child("schema").child("openAPIV3Schema"), ""));
        }
        let errors = names::dns1035_label(text(version, &["name"]));
        if !errors.is_empty() {
            causes.push(invalid_str(&path.child("name"), text(version, &["name"]), &errors.join(",")));
        }
        for part in ["schema", "subresources", "additionalPrinterColumns", "selectableFields"] {
            if !shared.contains(&part) {
                version_part(version, part, &path.child(part), causes);
            }
        }
    }
    version_list(spec, versions, &shared, path, causes);
    required_names(&spec["names"], &path.child("names"), causes);
    if let Some(first) = versions.first() {
        for part in &shared {
            let name = if *part == "schema" { "validation" } else { part };
            version_part(first, part, &path.child(name), causes);
        }
    }
    conversion(&spec["conversion"], &path.child("conversion"), causes);
}

fn group(group: &str, path: &Path, causes: &mut Vec<Cause>) {
    let errors = names::dns1123_subdomain(group);
    if group.is_empty() {
        causes.push(required(path, ""));
    } else if !errors.is_empty() {
        causes.push(invalid_str(path, group, &errors.join(",")));
    } else if !group.contains('.') {
        causes.push(invalid_str(path, group, "should be a domain with at least one dot"));
    }
}

fn enumerated(value: &str, allowed: &[&str], path: &Path, causes: &mut Vec<Cause>) {
    if value.is_empty() {
        causes.push(required(path, ""));
    } else if !allowed.contains(&value) {
        causes.push(not_supported(path, &value.into(), allowed));
    }
}

/// The versions as Kubernetes shows them in causes: its internal form.
fn shown(versions: &[Value], shared: &[&str]) -> Value {
    if versions.is_empty() {
        return Value::Null;
    }
    let part = |version: &Value, name: &str| match shared.contains(&name) {
        true => Value::Null,
        false => version.get(name).cloned().unwrap_or_default(),
    };
    let show = |version: &Value| {
        json!({
            "Name": version["name"], "Served": version["served"] == true, "Storage": version["storage"] == true,
            "Deprecated": version["deprecated"] == true, "DeprecationWarning": version["deprecationWarning"],
            "Schema": part(version, "schema"), "Subresources": part(version, "subresources"),
            "AdditionalPrinterColumns": part(version, "additionalPrinterColumns"),
            "SelectableFields": part(version, "selectableFields"),
        })
    };
    versions.iter().map(show).collect()
}

fn version_list(spec: &Value, versions: &[Value], shared: &[&str], path: &Path, causes: &mut Vec<Cause>) {
    let place = path.child("versions");
    let names: HashSet<&str> = versions.iter().map(|version| text(version, &["name"])).collect();
    if names.len() != versions.len() {
        causes.push(invalid(&place, &shown(versions, shared), "must contain unique version names"));
    }
    if versions.iter().filter(|version| version["storage"] == true).count() != 1 {
        let says = "must have exactly one version marked as storage version";
        causes.push(invalid(&place, &shown(versions, shared), says));
    }
    if let Some(first) = versions.first() {
        let errors = names::dns1035_label(text(first, &["name"]));
        if !errors.is_empty() && !text(first, &["name"]).is_empty() {
            causes.push(invalid_str(&path.child("version"), text(first, &["name"]), &errors.join(",")));
        }
    }
    if spec["preserveUnknownFields"] == true {
        let says = "cannot set to true, set x-kubernetes-preserve-unknown-fields to true in \
                    spec.versions[*].schema instead";
        causes.push(invalid(&path.child("preserveUnknownFields"), &true.into(), says));
    }
}

fn required_names(given: &Value, path: &Path, causes: &mut Vec<Cause>) {
    for name in ["plural", "singular", "kind", "listKind"] {
        if text(given, &[name]).is_empty() {
            causes.push(required(&path.child(name), ""));
        }
    }
    for name in ["plural", "singular", "kind", "listKind"] {
        let value = text(given, &[name]);
        let mixed = name.to_lowercase().ends_with("kind");
        let errors = names::dns1035_label(&if mixed { value.to_lowercase() } else { value.into() });
        if value.is_empty() || errors.is_empty() {
            continue;
        }
        let prefix = if mixed { "may have mixed case, but should otherwise match: " } else { "" };
        causes.push(invalid_str(&path.child(name), value, &format!("{prefix}{}", errors.join(","))));
    }
    let (kind, list_kind) = (text(given, &["kind"]), text(given, &["listKind"]));
    if !kind.is_empty() && kind == list_kind {
        causes.push(invalid_str(&path.child("listKind"), kind, "kind and listKind may not be the same"));
    }
    for name in ["shortNames", "categories"] {
        for (index, value) in list(given, name).iter().enumerate() {
            let value = value.as_str().unwrap_or("");
            let errors = names::dns1035_label(value);
            if !errors.is_empty() {
                causes.push(invalid_str(&path.child(name).index(index), value, &errors.join(",")));
            }
        }
    }
}

fn version_part(version: &Value, part: &str, path: &Path, causes: &mut Vec<Cause>) {
    match part {
        "schema" => {
            let Some(schema) = version.pointer("/schema/openAPIV3Schema").filter(|s| s.is_object()) else {
                return;
            };
            let has_status = version.pointer("/subresources/status").is_some();
            schema::validate(schema, has_status, &path.child("openAPIV3Schema"), causes);
        }
        "subresources" => scale(&version["subresources"]["scale"], &path.child("scale"), causes),
        "additionalPrinterColumns" => {
            for (index, one) in list(version, part).iter().enumerate() {
                column(one, &path.index(index), causes);
            }
        }
        _ => selectable(version, path, causes),
    }
}

/// A dotted path from the root: `.spec.replicas`.
fn simple_path(value: &str, path: &Path, causes: &mut Vec<Cause>) -> bool {
    let simple = value.starts_with('.');
    if !simple {
        causes.push(invalid_str(path, value, "must be a simple json path starting with ."));
    }
    simple
}

fn scale(scale: &Value, path: &Path, causes: &mut Vec<Cause>) {
    if !scale.is_object() {
        return;
    }
    let rows: [(&str, bool, &[&str], &str); 3] = [
        ("specReplicasPath", true, &[".spec."], "should be a json path under .spec"),
        ("statusReplicasPath", true, &[".status."], "should be a json path under .status"),
        (
            "labelSelectorPath",
            false,
            &[".spec.", ".status."],
            "should be a json path under either .spec or .status",
        ),
    ];
    for (name, needed, prefixes, says) in rows {
        let (value, path) = (text(scale, &[name]), path.child(name));
        if value.is_empty() {
            if needed {
                causes.push(required(&path, ""));
            }
        } else if simple_path(value, &path, causes)
            && !prefixes.iter().any(|prefix| value.starts_with(prefix))
        {
            causes.push(invalid_str(&path, value, says));
        }
    }
}

fn column(column: &Value, path: &Path, causes: &mut Vec<Cause>) {
    let one_of = |allowed: &[&str]| format!("must be one of {}", allowed.join(","));
    if text(column, &["name"]).is_empty() {
        causes.push(required(&path.child("name"), ""));
    }
    let kind = text(column, &["type"]);
    if kind.is_empty() {
        causes.push(required(&path.child("type"), &one_of(&COLUMN_TYPES)));
    } else if !COLUMN_TYPES.contains(&kind) {
        causes.push(invalid_str(&path.child("type"), kind, &one_of(&COLUMN_TYPES)));
    }
    let format = text(column, &["format"]);
    if !format.is_empty() && !COLUMN_FORMATS.contains(&format) {
        causes.push(invalid_str(&path.child("format"), format, &one_of(&COLUMN_FORMATS)));
    }
    let place = path.child("JSONPath");
    match text(column, &["jsonPath"]) {
        "" => causes.push(required(&place, "")),
        value => drop(simple_path(value, &place, causes)),
    }
}

fn selectable(version: &Value, path: &Path, causes: &mut Vec<Cause>) {
    let fields = list(version, "selectableFields");
    let Some(kind) = version.pointer("/schema/openAPIV3Schema").and_then(|s| KindSchema::custom(s).ok())
    else {
        return;
    };
    let mut seen = HashSet::new();
    for (index, field) in fields.iter().enumerate() {
        let path = path.index(index).child("jsonPath");
        let value = text(field, &["jsonPath"]);
        if value.is_empty() {
            causes.push(required(&path, ""));
            continue;
        }
        match selected_type(&kind, value) {
            Err(says) => causes.push(invalid_str(&path, value, &format!("is an invalid path: {says}"))),
            Ok(found) => {
                if !matches!(found.as_str(), "string" | "boolean" | "integer") {
                    let says = "must point to a field of type string, boolean or integer. Enum string fields and \
                                strings with formats are allowed.";
                    causes.push(invalid_str(&path, value, says));
                }
                if !seen.insert(value) {
                    causes.push(duplicate(&path, &value.into()));
                }
            }
        }
    }
    if seen.len() > MAX_SELECTABLE {
        causes.push(too_many(path, seen.len(), MAX_SELECTABLE));
    }
}

/// The declared type at a path.
fn selected_type(kind: &KindSchema, path: &str) -> Result<String, &'static str> {
    const NOT_FOUND: &str = "does not refer to a valid field";
    // Metadata is the server's own and not part of the schema.
    if path == ".metadata" || path.starts_with(".metadata.") || !path.starts_with('.') {
        return Err(NOT_FOUND);
    }
    rules::below(&Path::root(), path, kind.schema()).ok_or(NOT_FOUND)?;
    let mut schema = kind.schema();
    for name in path.split('.').skip(1) {
        let name = name.split('[').next().unwrap_or(name);
        schema = schema.field(name).or_else(|| schema.values()).ok_or(NOT_FOUND)?;
    }
    Ok(schema.rules().and_then(|rules| rules.declared_type.as_deref()).unwrap_or("").into())
}

fn conversion(conversion: &Value, path: &Path, causes: &mut Vec<Cause>) {
    if !conversion.is_object() {
        return;
    }
    let strategy = text(conversion, &["strategy"]);
    enumerated(strategy, &["None", "Webhook"], &path.child("strategy"), causes);
    let client = &conversion["webhook"]["clientConfig"];
    let versions = list(&conversion["webhook"], "conversionReviewVersions");
    let (client_path, versions_path) =
        (path.child("webhookClientConfig"), path.child("conversionReviewVersions"));
    if strategy != "Webhook" {
        let says = "should not be set when strategy is not set to Webhook";
        if client.is_object() {
            causes.push(forbidden(&client_path, says));
        }
        if !versions.is_empty() {
            causes.push(forbidden(&versions_path, says));
        }
        return;
    }
    if !client.is_object() {
        causes.push(required(&client_path, "required when strategy is set to Webhook"));
    } else if client["url"].is_string() == client["service"].is_object() {
        causes.push(required(&client_path, "exactly one of url or service is required"));
    }
    if versions.is_empty() {
        causes.push(required(&versions_path, ""));
    } else if !versions.iter().any(|version| matches!(version.as_str(), Some("v1" | "v1beta1"))) {
        let says = "must include at least one of v1, v1beta1";
        causes.push(invalid(&versions_path, &versions.into(), says));
    }
}

fn immutable(new: &Value, old: &Value, causes: &mut Vec<Cause>) {
    let established = list(&old["status"], "conditions")
        .iter()
        .any(|condition| condition["type"] == "Established" && condition["status"] == "True");
    let rows: [(&[&str], bool); 4] = [
        (&["spec", "scope"], established),
        (&["spec", "names", "kind"], established),
        (&["spec", "group"], true),
        (&["spec", "names", "plural"], true),
    ];
    for (field, fixed) in rows {
        if fixed && at(new, field) != at(old, field) {
            causes.push(invalid(&Path::root().down(field), at(new, field), "field is immutable"));
        }
    }
}

fn stored_versions(whole: &Value, causes: &mut Vec<Cause>) {
    let (stored, versions) = (list(&whole["status"], "storedVersions"), list(&whole["spec"], "versions"));
    let path = Path::new("status.storedVersions");
    if stored.is_empty() {
        causes.push(invalid(&path, &Value::Null, "must have at least one stored version"));
        return;
    }
    for version in versions.iter().filter(|version| version["storage"] == true) {
        if !stored.contains(&version["name"]) {
            let says = format!("must have the storage version {}", text(version, &["name"]));
            causes.push(invalid(&path, &stored.into(), &says));
        }
    }
    for (index, name) in stored.iter().enumerate() {
        if !versions.iter().any(|version| version["name"] == *name) {
            let v = name.as_str().unwrap_or("");
            let says = format!(
                "missing from spec.versions; {v} was previously a storage version, and must remain in spec.versions \
                 until a storage migration ensures no data remains persisted in {v} and removes {v} from \
                 status.storedVersions"
            );
            causes.push(invalid(&path.index(index), name, &says));
        }
    }
}

/// Groups of the Kubernetes project need an approval.
fn approval(new: &Value, old: Option<&Value>, causes: &mut Vec<Cause>) {
    let group = text(new, &["spec", "group"]);
    let protected = ["k8s.io", "kubernetes.io"]
        .iter()
        .any(|domain| group.strip_suffix(domain).is_some_and(|rest| rest.is_empty() || rest.ends_with('.')));
    let given = |value: &Value| at(value, &["metadata", "annotations", APPROVAL]).clone();
    if !protected || old.is_some_and(|old| given(old) == given(new)) {
        return;
    }
    let path = Path::new("metadata.annotations").key(APPROVAL);
    let says = "protected groups must have approval annotation \"api-approved.kubernetes.io\"";
    match given(new).as_str().unwrap_or("") {
        "" => {
            let link = "see https://github.com/kubernetes/enhancements/pull/1111";
            causes.push(required(&path, &format!("{says}, {link}")));
        }
        value if value.starts_with("unapproved") || value.contains("://") => (),
        value => {
            let says = format!("{says} with either a URL or a reason starting with \"unapproved\"");
            causes.push(invalid_str(&path, value, &says));
        }
    }
}

/// The schema of one version, from a definition that was accepted.
pub fn version_schema(version: &Map<String, Value>) -> KindSchema {
    let schema = version.get("schema").and_then(|schema| schema.get("openAPIV3Schema"));
    schema.and_then(|schema| KindSchema::custom(schema).ok()).unwrap_or_else(KindSchema::any)
}
