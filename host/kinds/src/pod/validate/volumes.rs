//! Volumes and where they come from.

use serde_json::Value;
use wasmk_machinery::names;

use super::fields::{IN_FILES, descending_path, field_ref, no_back_steps, resource_ref};
use crate::errors::{At, Errors};
use crate::resource_names;
use crate::storage::claim::claim_spec;
use crate::storage::class::attacher;
use crate::value::{get, int, list, or_null, text, text_at};

/// Checks all volumes; gives the names of those that are right.
pub(super) fn all<'a>(spec: &'a Value, at: &At<'_>, errors: &mut Errors) -> Vec<&'a str> {
    let mut right = Vec::new();
    for (i, volume) in list(spec, "volumes").iter().enumerate() {
        let at = at.index(i);
        let before = errors.count();
        if source(volume, &at, false, errors) == 0 {
            errors.required(&at, "must specify a volume type");
        }
        let name = text(volume, "name");
        if name.is_empty() {
            errors.required(&at.field("name"), "");
        } else {
            for why in names::dns1123_label(name) {
                errors.invalid_text(&at.field("name"), name, &why);
            }
        }
        if right.contains(&name) {
            errors.duplicate_text(&at.field("name"), name);
        }
        if errors.count() == before {
            right.push(name);
        }
    }
    right
}

/// The kinds of source, in the order they are looked at.
const SOURCES: [&str; 31] = [
    "emptyDir",
    "hostPath",
    "gitRepo",
    "gcePersistentDisk",
    "awsElasticBlockStore",
    "secret",
    "nfs",
    "iscsi",
    "glusterfs",
    "flocker",
    "persistentVolumeClaim",
    "rbd",
    "cinder",
    "cephfs",
    "quobyte",
    "downwardAPI",
    "fc",
    "flexVolume",
    "configMap",
    "azureFile",
    "vsphereVolume",
    "photonPersistentDisk",
    "portworxVolume",
    "azureDisk",
    "storageos",
    "projected",
    "scaleIO",
    "csi",
    "ephemeral",
    "image",
    "local",
];

/// Checks where a volume, or a persistent one, comes from; gives the number of sources it names.
pub(crate) fn source(volume: &Value, at: &At<'_>, persistent: bool, errors: &mut Errors) -> usize {
    let mut count = 0;
    for key in SOURCES {
        let Some(source) = get(volume, key) else { continue };
        let at = at.field(key);
        count += 1;
        if count > 1 {
            errors.forbidden(&at, "may not specify more than 1 volume type");
            continue;
        }
        one(key, source, persistent, &at, errors);
    }
    count
}

fn need(source: &Value, keys: &[&str], at: &At<'_>, errors: &mut Errors) {
    for key in keys {
        if text(source, key).is_empty() {
            errors.required(&at.field(key), "");
        }
    }
}

fn one(key: &str, source: &Value, persistent: bool, at: &At<'_>, errors: &mut Errors) {
    match key {
        "emptyDir" => {
            resource_names::not_negative(or_null(source, "sizeLimit"), &at.field("sizeLimit"), errors);
        }
        "hostPath" => host_path(source, at, errors),
        "gitRepo" => need(source, &["repository"], at, errors),
        "gcePersistentDisk" => {
            need(source, &["pdName"], at, errors);
            partition(source, at, errors);
        }
        "awsElasticBlockStore" => {
            need(source, &["volumeID"], at, errors);
            partition(source, at, errors);
        }
        "secret" => {
            need(source, &["secretName"], at, errors);
            files(source, at, errors);
        }
        "configMap" => {
            need(source, &["name"], at, errors);
            files(source, at, errors);
        }
        "nfs" => nfs(source, at, errors),
        "iscsi" => iscsi(source, at, errors),
        "glusterfs" => need(source, &["endpoints", "path"], at, errors),
        "persistentVolumeClaim" => need(source, &["claimName"], at, errors),
        "rbd" => {
            if list(source, "monitors").is_empty() {
                errors.required(&at.field("monitors"), "");
            }
            need(source, &["image"], at, errors);
        }
        "cinder" => need(source, &["volumeID"], at, errors),
        "cephfs" if list(source, "monitors").is_empty() => errors.required(&at.field("monitors"), ""),
        "quobyte" => need(source, &["registry", "volume"], at, errors),
        "downwardAPI" => downward(source, true, at, errors),
        "fc" => fibre_channel(source, at, errors),
        "flexVolume" => need(source, &["driver"], at, errors),
        "azureFile" => need(source, &["secretName", "shareName"], at, errors),
        "vsphereVolume" => need(source, &["volumePath"], at, errors),
        "photonPersistentDisk" => need(source, &["pdID"], at, errors),
        "portworxVolume" => need(source, &["volumeID"], at, errors),
        "azureDisk" => azure_disk(source, at, errors),
        "projected" => projected(source, at, errors),
        "scaleIO" => need(source, &["gateway", "system", "volumeName"], at, errors),
        "csi" => csi(source, persistent, at, errors),
        "ephemeral" => ephemeral(source, at, errors),
        "image" => image(source, at, errors),
        "local" => {
            need(source, &["path"], at, errors);
            no_back_steps(text(source, "path"), &at.field("path"), errors);
        }
        _ => {}
    }
}

fn host_path(source: &Value, at: &At<'_>, errors: &mut Errors) {
    const TYPES: [&str; 8] =
        ["", "BlockDevice", "CharDevice", "Directory", "DirectoryOrCreate", "File", "FileOrCreate", "Socket"];
    let path = text(source, "path");
    if path.is_empty() {
        errors.required(&at.field("path"), "");
        return;
    }
    no_back_steps(path, &at.field("path"), errors);
    if let Some(kind) = text_at(source, "type").filter(|t| !TYPES.contains(t)) {
        errors.unsupported(&at.field("type"), kind, &TYPES);
    }
}

fn partition(source: &Value, at: &At<'_>, errors: &mut Errors) {
    let number = int(source, "partition").unwrap_or(0);
    for why in names::in_range(number, 0, 255) {
        errors.invalid_int(&at.field("partition"), number, &why);
    }
}

fn mode(source: &Value, key: &str, at: &At<'_>, errors: &mut Errors) {
    if let Some(mode) = int(source, key).filter(|m| !(0..=0o777).contains(m)) {
        let why = "must be a number between 0 and 0777 (octal), both inclusive";
        errors.invalid_int(&at.field(key), mode, why);
    }
}

/// Checks the files made from keys.
fn files(source: &Value, at: &At<'_>, errors: &mut Errors) {
    mode(source, "defaultMode", at, errors);
    let place = at.field("items");
    for (i, item) in list(source, "items").iter().enumerate() {
        let at = place.index(i);
        if text(item, "key").is_empty() {
            errors.required(&at.field("key"), "");
        }
        let path = text(item, "path");
        if path.is_empty() {
            errors.required(&at.field("path"), "");
        }
        local_path(path, &at.field("path"), errors);
        mode(item, "mode", &at, errors);
    }
}

/// Checks a path below a volume, whose first part is not a hidden one of the system's.
fn local_path(path: &str, at: &At<'_>, errors: &mut Errors) {
    descending_path(path, at, errors);
    // A path made of `..` alone was named already.
    if path.starts_with("..") && !path.starts_with("../") && path != ".." {
        errors.invalid_text(at, path, "must not start with '..'");
    }
}

fn nfs(source: &Value, at: &At<'_>, errors: &mut Errors) {
    need(source, &["server", "path"], at, errors);
    let path = text(source, "path");
    if !path.starts_with('/') {
        errors.invalid_text(&at.field("path"), path, "must be an absolute path");
    }
}

fn iscsi(source: &Value, at: &At<'_>, errors: &mut Errors) {
    need(source, &["targetPortal", "iqn"], at, errors);
    let iqn = text(source, "iqn");
    let known = ["iqn.", "eui.", "naa."].iter().any(|prefix| iqn.starts_with(prefix));
    if !iqn.is_empty() && !known {
        errors.invalid_text(&at.field("iqn"), iqn, "must be valid format starting with iqn, eui, or naa");
    }
    let lun = int(source, "lun").unwrap_or(0);
    for why in names::in_range(lun, 0, 255) {
        errors.invalid_int(&at.field("lun"), lun, &why);
    }
    let chap = ["chapAuthDiscovery", "chapAuthSession"].iter().any(|key| crate::value::flag(source, key));
    if chap && get(source, "secretRef").is_none() {
        errors.required(&at.field("secretRef"), "");
    }
}

fn fibre_channel(source: &Value, at: &At<'_>, errors: &mut Errors) {
    let (names_given, ids) = (!list(source, "targetWWNs").is_empty(), !list(source, "wwids").is_empty());
    match (names_given, ids) {
        (false, false) => {
            let why = "must specify either targetWWNs or wwids, but not both";
            errors.required(&at.field("targetWWNs"), why);
        }
        (true, true) => errors.invalid(
            &at.field("targetWWNs"),
            or_null(source, "targetWWNs"),
            "targetWWNs and wwids can not be specified simultaneously",
        ),
        _ => {}
    }
    if names_given && int(source, "lun").is_none() {
        errors.required(&at.field("lun"), "lun is required if targetWWNs is specified");
    }
}

fn azure_disk(source: &Value, at: &At<'_>, errors: &mut Errors) {
    need(source, &["diskName", "diskURI"], at, errors);
    for (key, allowed) in
        [("cachingMode", ["None", "ReadOnly", "ReadWrite"]), ("kind", ["Dedicated", "Managed", "Shared"])]
    {
        if let Some(value) = text_at(source, key).filter(|v| !allowed.contains(v)) {
            errors.unsupported(&at.field(key), value, &allowed);
        }
    }
}

fn downward(source: &Value, with_mode: bool, at: &At<'_>, errors: &mut Errors) {
    if with_mode {
        mode(source, "defaultMode", at, errors);
    }
    let place = at.field("items");
    for (i, item) in list(source, "items").iter().enumerate() {
        let at = place.index(i);
        let path = text(item, "path");
        if path.is_empty() {
            errors.required(&at.field("path"), "");
        }
        local_path(path, &at.field("path"), errors);
        match (get(item, "fieldRef"), get(item, "resourceFieldRef")) {
            (Some(reference), other) => {
                field_ref(reference, &IN_FILES, &at.field("fieldRef"), errors);
                if other.is_some() {
                    let why = "fieldRef and resourceFieldRef can not be specified simultaneously";
                    errors.invalid_text(&at, "resource", why);
                }
            }
            (None, Some(reference)) => resource_ref(reference, true, &at.field("resourceFieldRef"), errors),
            (None, None) => {
                errors.required(&at.field("fieldRef"), "one of fieldRef and resourceFieldRef is required");
            }
        }
        mode(item, "mode", &at, errors);
    }
}

fn projected(source: &Value, at: &At<'_>, errors: &mut Errors) {
    mode(source, "defaultMode", at, errors);
    let place = at.field("sources");
    for (i, part) in list(source, "sources").iter().enumerate() {
        let at = place.index(i);
        let mut count = 0;
        for key in ["secret", "configMap", "downwardAPI", "serviceAccountToken"] {
            let Some(inner) = get(part, key) else { continue };
            count += 1;
            let at = at.field(key);
            if count > 1 {
                errors.forbidden(&at, "may not specify more than 1 volume type per source");
                continue;
            }
            match key {
                "downwardAPI" => downward(inner, false, &at, errors),
                "serviceAccountToken" => token(inner, &at, errors),
                _ => {
                    need(inner, &["name"], &at, errors);
                    files(inner, &at, errors);
                }
            }
        }
    }
}

fn token(source: &Value, at: &At<'_>, errors: &mut Errors) {
    let seconds = int(source, "expirationSeconds").unwrap_or(0);
    let place = at.field("expirationSeconds");
    if seconds < 600 {
        errors.invalid_int(&place, seconds, "may not specify a duration less than 10 minutes");
    }
    if seconds > 1 << 32 {
        errors.invalid_int(&place, seconds, "may not specify a duration larger than 2^32 seconds");
    }
    let path = text(source, "path");
    if path.is_empty() {
        errors.required(&at.field("path"), "");
    } else {
        local_path(path, &at.field("path"), errors);
    }
}

fn csi(source: &Value, persistent: bool, at: &At<'_>, errors: &mut Errors) {
    attacher(text(source, "driver"), &at.field("driver"), errors);
    if persistent {
        need(source, &["volumeHandle"], at, errors);
    } else if let Some(reference) = get(source, "nodePublishSecretRef")
        && text(reference, "name").is_empty()
    {
        let place = at.field("nodePublishSecretRef");
        errors.required(&place.field("name"), "");
    }
}

fn ephemeral(source: &Value, at: &At<'_>, errors: &mut Errors) {
    let at = at.field("volumeClaimTemplate");
    let Some(template) = get(source, "volumeClaimTemplate") else {
        errors.required(&at, "");
        return;
    };
    let meta = or_null(template, "metadata");
    let place = at.field("metadata");
    for (key, _) in meta.as_object().into_iter().flatten() {
        if !matches!(key.as_str(), "labels" | "annotations") {
            errors.forbidden(&place.field(key), "cannot be set");
        }
    }
    claim_spec(or_null(template, "spec"), &at.field("spec"), errors);
}

fn image(source: &Value, at: &At<'_>, errors: &mut Errors) {
    need(source, &["reference"], at, errors);
    let policies = ["Always", "IfNotPresent", "Never"];
    let policy = text(source, "pullPolicy");
    if !policies.contains(&policy) {
        errors.unsupported(&at.field("pullPolicy"), policy, &policies);
    }
}
