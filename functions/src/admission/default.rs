//! What objects get where they are silent.

use std::collections::BTreeSet;

use serde_json::{Map, Value, json};
use wasmk_api::Object;

use crate::config::Config;

/// Fills in an object of any of the kinds. A revision is filled in once, when it is made.
pub(super) fn object(object: &mut Object, old: Option<&Object>, config: &Config) {
    let (kind, create) = (object.kind().to_string(), old.is_none());
    let namespace = object.namespace().to_string();
    // What is no map is for the schema to refuse.
    let Some(spec) = object.0.get_mut("spec").filter(|spec| spec.is_object()) else { return };
    match kind.as_str() {
        "Service" => {
            template(spec, config, create);
            if spec["traffic"].as_array().is_none_or(Vec::is_empty) {
                spec["traffic"] = json!([{"latestRevision": true, "percent": 100}]);
            }
            traffic(spec);
        }
        "Configuration" => template(spec, config, create),
        "Route" => traffic(spec),
        "Revision" if create => revision(spec, config, true),
        "DomainMapping" => reference(spec, &namespace),
        _ => {}
    }
}

fn reference(spec: &mut Value, namespace: &str) {
    let Some(reference) = spec.get_mut("ref").filter(|r| r.is_object()) else { return };
    if text(reference, "namespace").is_empty() && !namespace.is_empty() {
        reference["namespace"] = namespace.into();
    }
}

fn text<'a>(value: &'a Value, key: &str) -> &'a str {
    value[key].as_str().unwrap_or("")
}

fn template(spec: &mut Value, config: &Config, create: bool) {
    if let Some(spec) = spec.pointer_mut("/template/spec").filter(|spec| spec.is_object()) {
        revision(spec, config, create);
    }
}

fn traffic(spec: &mut Value) {
    for target in spec.get_mut("traffic").and_then(Value::as_array_mut).into_iter().flatten() {
        if target.is_object() && target["latestRevision"].is_null() {
            target["latestRevision"] = text(target, "revisionName").is_empty().into();
        }
    }
}

fn revision(spec: &mut Value, config: &Config, create: bool) {
    let defaults = &config.defaults;
    if spec["timeoutSeconds"].as_i64().unwrap_or(0) == 0 {
        spec["timeoutSeconds"] = defaults.timeout.into();
    }
    let timeout = spec["timeoutSeconds"].as_i64().unwrap_or(0);
    for (key, seconds) in
        [("idleTimeoutSeconds", defaults.idle), ("responseStartTimeoutSeconds", defaults.response_start)]
    {
        if spec[key].is_null() && seconds != 0 && seconds < timeout {
            spec[key] = seconds.into();
        }
    }
    if spec["containerConcurrency"].is_null() {
        spec["containerConcurrency"] = defaults.concurrency.into();
    }
    names(spec, config);
    let writable = writable_volumes(spec);
    let alone = spec["containers"].as_array().map_or(0, Vec::len) == 1;
    let containers = spec.get_mut("containers").and_then(Value::as_array_mut);
    for container in containers.into_iter().flatten().filter(|c| c.is_object()) {
        resources(container, config);
        probes(container, alone);
        mounts(container, &writable);
    }
    if create
        && spec["enableServiceLinks"].is_null()
        && let Some(links) = defaults.service_links
    {
        spec["enableServiceLinks"] = links.into();
    }
}

/// Containers without a name get the usual one, with a number where it is taken or there are several.
fn names(spec: &mut Value, config: &Config) {
    let lists =
        [("containers", &config.defaults.container), ("initContainers", &config.defaults.init_container)];
    let mut taken: BTreeSet<String> = lists
        .iter()
        .flat_map(|(key, _)| spec[*key].as_array().into_iter().flatten())
        .map(|c| text(c, "name").to_string())
        .collect();
    for (key, name) in lists {
        let Some(containers) = spec.get_mut(key).and_then(Value::as_array_mut) else { continue };
        let several = containers.len() > 1 || taken.contains(name);
        let mut numbers = 0..;
        for container in containers.iter_mut().filter(|c| c.is_object() && text(c, "name").is_empty()) {
            let free = match several {
                false => name.clone(),
                true => numbers
                    .by_ref()
                    .map(|n: usize| format!("{name}-{n}"))
                    .find(|candidate| !taken.contains(candidate))
                    .unwrap_or_default(),
            };
            taken.insert(free.clone());
            container["name"] = free.into();
        }
    }
}

fn resources(container: &mut Value, config: &Config) {
    if !container["resources"].is_object() {
        container["resources"] = json!({});
    }
    for (name, request, limit) in &config.defaults.resources {
        for (kind, amount) in [("requests", request), ("limits", limit)] {
            if let Some(amount) = amount {
                let map = container["resources"]
                    .as_object_mut()
                    .map(|r| r.entry(kind).or_insert_with(|| Value::Object(Map::new())));
                if let Some(Value::Object(map)) = map {
                    map.entry(*name).or_insert_with(|| amount.clone().into());
                }
            }
        }
    }
}

fn probes(container: &mut Value, alone: bool) {
    let serves = alone || container["ports"].as_array().is_some_and(|p| !p.is_empty());
    if serves && !container["readinessProbe"].is_object() {
        container["readinessProbe"] = json!({});
    }
    let Some(probe) = container.get_mut("readinessProbe").filter(|p| p.is_object()) else { return };
    let handled = ["tcpSocket", "httpGet", "exec", "grpc"].iter().any(|h| probe[*h].is_object());
    if serves && !handled {
        probe["tcpSocket"] = json!({"port": 0});
    }
    let unset = |probe: &Value, key: &str| probe[key].as_i64().unwrap_or(0) == 0;
    if unset(probe, "successThreshold") {
        probe["successThreshold"] = 1.into();
    }
    if !unset(probe, "periodSeconds") {
        for (key, default) in [("failureThreshold", 3), ("timeoutSeconds", 1)] {
            if unset(probe, key) {
                probe[key] = default.into();
            }
        }
    }
}

/// Volumes that a container may write to.
fn writable_volumes(spec: &Value) -> BTreeSet<String> {
    let kinds = ["emptyDir", "persistentVolumeClaim", "ephemeral"];
    let volumes = spec["volumes"].as_array().into_iter().flatten();
    volumes.filter(|v| kinds.iter().any(|k| !v[*k].is_null())).map(|v| text(v, "name").to_string()).collect()
}

fn mounts(container: &mut Value, writable: &BTreeSet<String>) {
    let Some(mounts) = container.get_mut("volumeMounts").and_then(Value::as_array_mut) else { return };
    for mount in mounts.iter_mut().filter(|m| m.is_object()) {
        if !writable.contains(text(mount, "name")) {
            mount["readOnly"] = true.into();
        }
    }
}
