//! The objects every cluster starts with, apart from roles.

use serde_json::{Value, json};
use wasmk_api::Object;

use crate::config::Config;

fn object(value: Value) -> Option<Object> {
    Object::from_value(value)
}

fn namespace(name: &str) -> Value {
    json!({
        "kind": "Namespace", "apiVersion": "v1",
        "metadata": { "name": name, "labels": { "kubernetes.io/metadata.name": name } },
        "spec": { "finalizers": ["kubernetes"] },
    })
}

fn priority(name: &str, value: i64, description: &str) -> Value {
    json!({
        "kind": "PriorityClass", "apiVersion": "scheduling.k8s.io/v1", "metadata": { "name": name },
        "value": value, "description": description, "preemptionPolicy": "PreemptLowerPriority",
    })
}

/// Objects that are written once and belong to the user afterwards.
pub(crate) fn all(config: &Config) -> Vec<Object> {
    let mut all: Vec<Value> =
        ["default", "kube-system", "kube-public", "kube-node-lease"].into_iter().map(namespace).collect();
    all.push(priority(
        "system-cluster-critical",
        2_000_000_000,
        "Used for system critical pods that must run in the cluster, but can be moved to another node if necessary.",
    ));
    all.push(priority(
        "system-node-critical",
        2_000_001_000,
        "Used for system critical pods that must not be moved from their current node.",
    ));
    all.push(json!({
        "kind": "ServiceCIDR", "apiVersion": "networking.k8s.io/v1", "metadata": { "name": "kubernetes" },
        "spec": { "cidrs": [config.service_range.to_string()] },
    }));
    all.into_iter().filter_map(object).collect()
}

/// What servers of aggregated APIs need to know to recognise this server and its users.
fn authentication(config: &Config) -> Value {
    let mut data = json!({ "client-ca-file": config.client_ca });
    let proxy = &config.front_proxy;
    if !proxy.ca.is_empty() {
        for (key, value) in [
            ("allowed-names", json!([proxy.name]).to_string()),
            ("client-ca-file", proxy.ca.clone()),
            ("extra-headers-prefix", r#"["X-Remote-Extra-"]"#.into()),
            ("group-headers", r#"["X-Remote-Group"]"#.into()),
            ("uid-headers", r#"["X-Remote-Uid"]"#.into()),
            ("username-headers", r#"["X-Remote-User"]"#.into()),
        ] {
            data[format!("requestheader-{key}")] = value.into();
        }
    }
    json!({
        "kind": "ConfigMap", "apiVersion": "v1",
        "metadata": { "name": "extension-apiserver-authentication", "namespace": "kube-system" },
        "data": data,
    })
}

/// The service of the API, and where it is reached.
pub(crate) fn own_service(config: &Config) -> Vec<Object> {
    let labels = json!({ "component": "apiserver", "provider": "kubernetes" });
    let service = json!({
        "kind": "Service", "apiVersion": "v1",
        "metadata": { "name": "kubernetes", "namespace": "default", "labels": labels },
        "spec": {
            "ports": [{ "name": "https", "protocol": "TCP", "port": 443, "targetPort": config.advertise_port }],
            "clusterIP": config.service_range.at(1).to_string(),
            "clusterIPs": [config.service_range.at(1).to_string()],
            "type": "ClusterIP", "sessionAffinity": "None",
        },
    });
    let port = json!([{ "name": "https", "port": config.advertise_port, "protocol": "TCP" }]);
    let address = config.advertise_address.to_string();
    let endpoints = json!({
        "kind": "Endpoints", "apiVersion": "v1",
        "metadata": {
            "name": "kubernetes", "namespace": "default",
            "labels": { "endpointslice.kubernetes.io/skip-mirror": "true" },
        },
        "subsets": [{ "addresses": [{ "ip": address }], "ports": port }],
    });
    let slice = json!({
        "kind": "EndpointSlice", "apiVersion": "discovery.k8s.io/v1",
        "metadata": {
            "name": "kubernetes", "namespace": "default",
            "labels": { "kubernetes.io/service-name": "kubernetes" },
        },
        "addressType": if config.advertise_address.is_ipv4() { "IPv4" } else { "IPv6" },
        "endpoints": [{ "addresses": [address], "conditions": { "ready": true } }],
        "ports": port,
    });
    let mut all = vec![authentication(config), service];
    if !wasmk_kinds::is_own(config.advertise_address) {
        all.extend([endpoints, slice]);
    }
    all.into_iter().filter_map(object).collect()
}

/// The present object with the wanted fields, apart from those the server allocated.
pub(crate) fn reconciled(present: &Object, wanted: &Object) -> Object {
    let mut new = present.clone();
    for (key, value) in &wanted.0 {
        match (key.as_str(), new.0.get_mut(key).and_then(Value::as_object_mut), value.as_object()) {
            ("kind" | "apiVersion" | "metadata", ..) => {}
            (_, Some(old), Some(fields)) => old.extend(fields.iter().map(|(k, v)| (k.clone(), v.clone()))),
            _ => {
                new.0.insert(key.clone(), value.clone());
            }
        }
    }
    new
}
