//! Volumes of a template and where its containers mount them.

use std::collections::BTreeSet;

use serde_json::Value;

use super::{pod::set_fields, problem::Problems};
use crate::config::Config;

/// Kinds of volumes with the feature that opens them and what it calls them.
const KINDS: [(&str, &str, &str); 9] = [
    ("secret", "", ""),
    ("configMap", "", ""),
    ("projected", "", ""),
    ("emptyDir", "kubernetes.podspec-volumes-emptydir", "EmptyDir volume"),
    ("persistentVolumeClaim", "kubernetes.podspec-persistent-volume-claim", "Persistent volume claim"),
    ("hostPath", "kubernetes.podspec-volumes-hostpath", "HostPath volume"),
    ("csi", "kubernetes.podspec-volumes-csi", "CSI volume"),
    ("ephemeral", "kubernetes.podspec-volumes-ephemeral", "Ephemeral volume"),
    ("image", "kubernetes.podspec-volumes-image", "Image volume"),
];
/// Places that belong to the system.
const RESERVED: [&str; 3] = ["/", "/dev", "/dev/log"];

/// Checks a pod's volumes.
pub(super) fn check(spec: &Value, base: &str, config: &Config, problems: &mut Problems) {
    let containers =
        ["containers", "initContainers"].iter().flat_map(|k| spec[*k].as_array().into_iter().flatten());
    let mounts = containers.flat_map(|c| c["volumeMounts"].as_array().into_iter().flatten());
    let mounted: BTreeSet<&str> = mounts.filter_map(|m| m["name"].as_str()).collect();
    let mut seen = BTreeSet::new();
    for (i, volume) in spec["volumes"].as_array().into_iter().flatten().enumerate() {
        let at = format!("{base}.volumes[{i}]");
        let name = volume["name"].as_str().unwrap_or("");
        if !seen.insert(name) {
            problems.add(format!("duplicate volume name {name:?}"), format!("{at}.name"));
        }
        if !mounted.contains(name) {
            problems.add(format!("volume with name {name:?} not mounted"), format!("{at}.name"));
        }
        let inner = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
        if name.is_empty() {
            problems.missing(format!("{at}.name"));
        } else if name.len() > 63 || !name.chars().all(inner) || name.starts_with('-') || name.ends_with('-')
        {
            problems.invalid(name, format!("{at}.name"));
        }
        source(volume, name, &at, config, problems);
    }
}

fn source(volume: &Value, name: &str, at: &str, config: &Config, problems: &mut Problems) {
    let open = |feature: &str| feature.is_empty() || config.features.has(feature);
    let mut given = Vec::new();
    for field in set_fields(volume).filter(|f| *f != "name") {
        match KINDS.iter().find(|(kind, ..)| *kind == field) {
            Some((kind, feature, _)) if open(feature) => given.push(*kind),
            Some((kind, _, what)) => {
                let claim = volume["persistentVolumeClaim"]["claimName"].as_str();
                let found = what.replacen("Persistent", "persistent", 1);
                let message =
                    format!("{what} support is disabled, but found {found} {}", claim.unwrap_or(name));
                problems.add(message, at);
                problems.disallowed(format!("{at}.{kind}"));
            }
            None => problems.disallowed(format!("{at}.{field}")),
        }
    }
    let claim = &volume["persistentVolumeClaim"];
    if claim.is_object()
        && claim["readOnly"] != true
        && !config.features.has("kubernetes.podspec-persistent-volume-write")
    {
        let name = claim["claimName"].as_str().unwrap_or("");
        let message = "Persistent volume write support is disabled, but found persistent volume claim";
        problems.add(format!("{message} {name} that is not read-only"), at);
    }
    match given.len() {
        0 => {
            let known: Vec<&str> = KINDS.iter().filter(|(_, f, _)| open(f)).map(|(kind, ..)| *kind).collect();
            problems.neither(at, &known);
        }
        1 => {}
        _ => problems.both(at, &given),
    }
}

/// Checks where a container mounts a pod's volumes.
pub(super) fn mounts(container: &Value, at: &str, pod: &Value, config: &Config, problems: &mut Problems) {
    let volumes = pod["volumes"].as_array().map(Vec::as_slice).unwrap_or_default();
    let mut paths = BTreeSet::new();
    for (i, mount) in container["volumeMounts"].as_array().into_iter().flatten().enumerate() {
        let at = format!("{at}.volumeMounts[{i}]");
        let open = ["name", "readOnly", "mountPath", "subPath"];
        let propagates = config.features.has("kubernetes.podspec-volumes-mount-propagation");
        let is_open = |f: &&str| open.contains(f) || (*f == "mountPropagation" && propagates);
        set_fields(mount).filter(|f| !is_open(f)).for_each(|f| problems.disallowed(format!("{at}.{f}")));
        path(mount["mountPath"].as_str().unwrap_or(""), &at, &mut paths, problems);
        let Some(volume) = volumes.iter().find(|v| v["name"] == mount["name"]) else {
            problems.add("volumeMount has no matching volume", format!("{at}.name"));
            continue;
        };
        let writable =
            ["emptyDir", "persistentVolumeClaim", "ephemeral"].iter().any(|k| volume[*k].is_object());
        let read_only = mount["readOnly"] == true;
        if !writable && !read_only {
            problems.add("volume mount should be readOnly for this type of volume", format!("{at}.readOnly"));
        }
        if volume["persistentVolumeClaim"]["readOnly"] == true && !read_only {
            problems.add("volume is readOnly but volume mount is not", format!("{at}.readOnly"));
        }
    }
}

fn path<'a>(path: &'a str, at: &str, seen: &mut BTreeSet<&'a str>, problems: &mut Problems) {
    let at = format!("{at}.mountPath");
    let clean = if path.len() > 1 { path.trim_end_matches('/') } else { path };
    if path.is_empty() {
        problems.missing(at);
    } else if RESERVED.contains(&clean) {
        problems.add(format!("mountPath {clean:?} is a reserved path"), at);
    } else if !path.starts_with('/') {
        problems.invalid(path, at);
    } else if !seen.insert(clean) {
        problems.invalid(format!("{path:?} must be unique"), at);
    }
}
