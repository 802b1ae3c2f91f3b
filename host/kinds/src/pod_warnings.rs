//! What is allowed in pods but probably not meant.

use serde_json::Value;
use wasmk_api::Object;

use crate::resource_names::read;
use crate::value::{entries, get, int, list, or_null, text, text_at};

const DEPRECATED_NODE_LABELS: [(&str, &str); 4] = [
    ("beta.kubernetes.io/arch", "deprecated since v1.14; use \"kubernetes.io/arch\" instead"),
    ("beta.kubernetes.io/os", "deprecated since v1.14; use \"kubernetes.io/os\" instead"),
    (
        "failure-domain.beta.kubernetes.io/region",
        "deprecated since v1.17; use \"topology.kubernetes.io/region\" instead",
    ),
    (
        "failure-domain.beta.kubernetes.io/zone",
        "deprecated since v1.17; use \"topology.kubernetes.io/zone\" instead",
    ),
];
const DEPRECATED_SOURCES: [(&str, &str); 9] = [
    ("gitRepo", "deprecated in v1.11"),
    ("photonPersistentDisk", "deprecated in v1.11, non-functional in v1.16+"),
    ("scaleIO", "deprecated in v1.16, non-functional in v1.22+"),
    ("flocker", "deprecated in v1.22, non-functional in v1.25+"),
    ("storageos", "deprecated in v1.22, non-functional in v1.25+"),
    ("quobyte", "deprecated in v1.22, non-functional in v1.25+"),
    ("glusterfs", "deprecated in v1.25, non-functional in v1.26+"),
    ("cephfs", "deprecated in v1.28, non-functional in v1.31+"),
    ("rbd", "deprecated in v1.28, non-functional in v1.31+"),
];

/// The warnings of the pod template at a path of an object; none when an update leaves it as it was.
pub(crate) fn of_template(obj: &Object, old: Option<&Object>, path: &[&str]) -> Vec<String> {
    let template = obj.at(path);
    if old.is_some_and(|old| old.at(path) == template) {
        return Vec::new();
    }
    let Some(template) = template else { return Vec::new() };
    let place = path.join(".");
    let meta = or_null(template, "metadata");
    of_spec(or_null(template, "spec"), meta, &format!("{place}.spec"), &format!("{place}.metadata"))
}

/// The warnings of a pod spec.
pub(crate) fn of_spec(spec: &Value, meta: &Value, place: &str, meta_place: &str) -> Vec<String> {
    let mut out = Vec::new();
    node_labels(spec, place, &mut out);
    host_aliases(spec, place, &mut out);
    volumes(spec, place, &mut out);
    pull_secrets(spec, place, &mut out);
    containers(spec, place, &mut out);
    annotations(meta, meta_place, &mut out);
    if int(spec, "terminationGracePeriodSeconds").is_some_and(|grace| grace < 0) {
        out.push(format!(
            "{place}.terminationGracePeriodSeconds: must be >= 0; negative values are invalid and will be treated as 1"
        ));
    }
    out
}

fn node_labels(spec: &Value, place: &str, out: &mut Vec<String>) {
    for (key, why) in DEPRECATED_NODE_LABELS {
        if or_null(spec, "nodeSelector").get(key).is_some() {
            out.push(format!("{place}.nodeSelector[{key}]: {why}"));
        }
    }
}

fn host_aliases(spec: &Value, place: &str, out: &mut Vec<String>) {
    let aliases = list(spec, "hostAliases");
    for (i, alias) in aliases.iter().enumerate() {
        let ip = text(alias, "ip");
        if aliases[..i].iter().any(|other| text(other, "ip") == ip) {
            out.push(format!(
                "{place}.hostAliases: duplicate definition of IP \"{ip}\", entries will be merged"
            ));
        }
    }
}

fn volumes(spec: &Value, place: &str, out: &mut Vec<String>) {
    for (i, volume) in list(spec, "volumes").iter().enumerate() {
        for (key, why) in DEPRECATED_SOURCES {
            if get(volume, key).is_some() {
                out.push(format!("{place}.volumes[{i}].{key}: {why}"));
            }
        }
        let Some(projected) = get(volume, "projected") else { continue };
        let empty = |source: &Value| source.as_object().is_none_or(serde_json::Map::is_empty);
        if list(projected, "sources").iter().all(empty) {
            out.push(format!("volume \"{}\" (Projected) has no sources provided", text(volume, "name")));
        }
    }
}

fn pull_secrets(spec: &Value, place: &str, out: &mut Vec<String>) {
    let secrets = list(spec, "imagePullSecrets");
    for (i, secret) in secrets.iter().enumerate() {
        if text(secret, "name").is_empty() {
            out.push(format!("{place}.imagePullSecrets[{i}].name: invalid empty name \"\""));
        }
    }
}

fn containers(spec: &Value, place: &str, out: &mut Vec<String>) {
    let mut ports: Vec<(Port, String)> = Vec::new();
    for key in ["initContainers", "containers"] {
        for (i, container) in list(spec, key).iter().enumerate() {
            let place = format!("{place}.{key}[{i}]");
            env(container, &place, out);
            amounts(container, &place, out);
            if key == "containers" {
                duplicate_ports(container, &place, &mut ports, out);
            }
        }
    }
}

fn env(container: &Value, place: &str, out: &mut Vec<String>) {
    let all = list(container, "env");
    for (i, variable) in all.iter().enumerate() {
        let name = text(variable, "name");
        if all[..i].iter().any(|other| text(other, "name") == name) {
            out.push(format!(
                "{place}.env[{i}]: hides previous definition of \"{name}\", which may be dropped when using apply"
            ));
        }
    }
}

fn amounts(container: &Value, place: &str, out: &mut Vec<String>) {
    for key in ["limits", "requests"] {
        let resources = or_null(container, "resources");
        for name in ["memory", "ephemeral-storage"] {
            let amount = or_null(or_null(resources, key), name);
            if read(amount).is_some_and(|q| !q.is_whole()) {
                let shown = amount.as_str().unwrap_or("");
                out.push(format!(
                    "{place}.resources.{key}[{name}]: fractional byte value \"{shown}\" is invalid, must be an integer"
                ));
            }
        }
    }
}

/// Port, protocol, host port and host address.
type Port = (i64, String, i64, String);

fn duplicate_ports(container: &Value, place: &str, seen: &mut Vec<(Port, String)>, out: &mut Vec<String>) {
    for (i, port) in list(container, "ports").iter().enumerate() {
        let place = format!("{place}.ports[{i}]");
        let key = (
            int(port, "containerPort").unwrap_or(0),
            text(port, "protocol").to_owned(),
            int(port, "hostPort").unwrap_or(0),
            text(port, "hostIP").to_owned(),
        );
        match seen.iter().find(|(other, _)| *other == key) {
            Some((_, first)) => out.push(format!("{place}: duplicate port definition with {first}")),
            None => seen.push((key, place)),
        }
    }
}

fn annotations(meta: &Value, place: &str, out: &mut Vec<String>) {
    const REMOVED: [(&str, &str); 2] = [
        (
            "scheduler.alpha.kubernetes.io/critical-pod",
            "non-functional in v1.16+; use the \"priorityClassName\" field instead",
        ),
        (
            "seccomp.security.alpha.kubernetes.io/pod",
            "non-functional in v1.27+; use the \"seccompProfile\" field instead",
        ),
    ];
    for (key, why) in REMOVED {
        if text_at(or_null(meta, "annotations"), key).is_some() {
            out.push(format!("{place}.annotations[{key}]: {why}"));
        }
    }
    for (key, _) in entries(meta, "annotations") {
        if key.starts_with("container.apparmor.security.beta.kubernetes.io/") {
            out.push(format!(
                "{place}.annotations[{key}]: deprecated since v1.30; use the \"appArmorProfile\" field instead"
            ));
        }
    }
}
