//! Defaults of pods and pod templates.

use serde_json::{Map, Value, json};

use crate::value::{maps_mut, set_default, some_map};

/// Where a pod spec stands: a few defaults are for pods alone.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Place {
    Pod,
    Template,
}

const CONTAINER_LISTS: [&str; 3] = ["initContainers", "containers", "ephemeralContainers"];

/// Sets the defaults of `obj.template` or of the template at another key.
pub(crate) fn template(owner: &mut Map<String, Value>, key: &str) {
    if let Some(template) = some_map(owner, key)
        && let Some(spec) = some_map(template, "spec")
    {
        pod_spec(spec, Place::Template);
    }
}

/// Sets the defaults of a pod spec.
pub(crate) fn pod_spec(spec: &mut Map<String, Value>, place: Place) {
    set_default(spec, "restartPolicy", "Always");
    set_default(spec, "terminationGracePeriodSeconds", 30);
    set_default(spec, "dnsPolicy", "ClusterFirst");
    set_default(spec, "securityContext", json!({}));
    set_default(spec, "schedulerName", "default-scheduler");
    mirror_service_account(spec);
    let host_network = spec.get("hostNetwork").and_then(Value::as_bool).unwrap_or(false);
    for list in CONTAINER_LISTS {
        for c in maps_mut(spec, list) {
            container(c, place);
            if place == Place::Pod && host_network && list != "ephemeralContainers" {
                host_ports(c);
            }
        }
    }
    maps_mut(spec, "volumes").for_each(volume);
    if place == Place::Pod {
        set_default(spec, "enableServiceLinks", true);
        pod_level_requests(spec);
    }
}

/// The older name of the field always says the same as the newer one.
fn mirror_service_account(spec: &mut Map<String, Value>) {
    let name = ["serviceAccountName", "serviceAccount"]
        .iter()
        .filter_map(|key| spec.get(*key)?.as_str())
        .find(|name| !name.is_empty())
        .map(str::to_owned);
    if let Some(name) = name {
        spec.insert("serviceAccountName".into(), name.clone().into());
        spec.insert("serviceAccount".into(), name.into());
    }
}

fn container(c: &mut Map<String, Value>, place: Place) {
    let image = c.get("image").and_then(Value::as_str).unwrap_or("");
    let policy = pull_policy(image);
    set_default(c, "imagePullPolicy", policy);
    set_default(c, "terminationMessagePath", "/dev/termination-log");
    set_default(c, "terminationMessagePolicy", "File");
    maps_mut(c, "ports").for_each(|port| set_default(port, "protocol", "TCP"));
    for env in maps_mut(c, "env") {
        if let Some(from) = some_map(env, "valueFrom") {
            field_ref(from);
            if let Some(file) = some_map(from, "fileKeyRef") {
                set_default(file, "optional", false);
            }
        }
    }
    for key in ["livenessProbe", "readinessProbe", "startupProbe"] {
        if let Some(p) = some_map(c, key) {
            probe(p);
        }
    }
    if let Some(lifecycle) = some_map(c, "lifecycle") {
        for key in ["postStart", "preStop"] {
            if let Some(hook) = some_map(lifecycle, key) {
                http_get(hook);
            }
        }
    }
    if place == Place::Pod
        && let Some(resources) = some_map(c, "resources")
    {
        requests_from_limits(resources);
    }
}

/// `Always` for the tag `latest`, stated or implied, else `IfNotPresent`.
fn pull_policy(image: &str) -> &'static str {
    let name = image.split('@').next().unwrap_or(image);
    let has_digest = name.len() != image.len();
    let last = name.rsplit('/').next().unwrap_or(name);
    match last.split_once(':') {
        Some((_, "latest")) => "Always",
        None if !has_digest && !image.is_empty() => "Always",
        None if image.is_empty() => "IfNotPresent",
        _ => "IfNotPresent",
    }
}

fn probe(p: &mut Map<String, Value>) {
    for (key, value) in
        [("timeoutSeconds", 1), ("periodSeconds", 10), ("successThreshold", 1), ("failureThreshold", 3)]
    {
        set_default(p, key, value);
    }
    http_get(p);
    if let Some(grpc) = some_map(p, "grpc") {
        set_default(grpc, "service", "");
    }
}

fn http_get(handler: &mut Map<String, Value>) {
    if let Some(get) = some_map(handler, "httpGet") {
        set_default(get, "path", "/");
        set_default(get, "scheme", "HTTP");
    }
}

fn field_ref(holder: &mut Map<String, Value>) {
    if let Some(reference) = some_map(holder, "fieldRef") {
        set_default(reference, "apiVersion", "v1");
    }
}

fn requests_from_limits(resources: &mut Map<String, Value>) {
    let Some(limits) = resources.get("limits").and_then(Value::as_object).cloned() else { return };
    let requests = crate::value::map_mut(resources, "requests");
    for (name, limit) in limits {
        requests.entry(name).or_insert(limit);
    }
}

fn host_ports(c: &mut Map<String, Value>) {
    for port in maps_mut(c, "ports") {
        if let Some(number) = port.get("containerPort").cloned() {
            set_default(port, "hostPort", number);
        }
    }
}

/// The resources a whole pod may state requests and limits for.
fn pod_level_resource(name: &str) -> bool {
    matches!(name, "cpu" | "memory") || name.starts_with("hugepages-")
}

/// A pod that limits itself as a whole requests what its containers request together, else its limits.
fn pod_level_requests(spec: &mut Map<String, Value>) {
    let Some(limits) =
        spec.get("resources").and_then(|r| r.get("limits")).and_then(Value::as_object).cloned()
    else {
        return;
    };
    let sums: Vec<(String, Option<String>)> = limits
        .keys()
        .filter(|name| pod_level_resource(name))
        .map(|name| (name.clone(), crate::resources::sum_of_requests(spec, name)))
        .collect();
    let Some(resources) = some_map(spec, "resources") else { return };
    let requests = crate::value::map_mut(resources, "requests");
    for (name, sum) in sums {
        let fallback = limits.get(&name).cloned().unwrap_or(Value::Null);
        requests.entry(name).or_insert_with(|| sum.map_or(fallback, Value::from));
    }
}

/// Sets the defaults of a volume; one that names no source is an empty directory.
fn volume(v: &mut Map<String, Value>) {
    if v.iter().all(|(key, value)| key == "name" || value.is_null()) {
        v.insert("emptyDir".into(), json!({}));
    }
    volume_source(v);
}

/// Sets the defaults of a volume's or persistent volume's source.
pub(crate) fn volume_source(v: &mut Map<String, Value>) {
    for key in ["secret", "configMap", "downwardAPI", "projected"] {
        if let Some(source) = some_map(v, key) {
            set_default(source, "defaultMode", 420);
        }
    }
    if let Some(source) = some_map(v, "downwardAPI") {
        maps_mut(source, "items").for_each(field_ref);
    }
    if let Some(projected) = some_map(v, "projected") {
        maps_mut(projected, "sources").for_each(projection);
    }
    for (key, field, value) in SOURCE_DEFAULTS {
        if let Some(source) = some_map(v, key) {
            set_default(source, field, *value);
        }
    }
    if let Some(disk) = some_map(v, "azureDisk") {
        set_default(disk, "readOnly", false);
    }
    if let Some(image) = some_map(v, "image") {
        let reference = image.get("reference").and_then(Value::as_str).unwrap_or("");
        let policy = pull_policy(reference);
        set_default(image, "pullPolicy", policy);
    }
    let claim = some_map(v, "ephemeral").and_then(|e| some_map(e, "volumeClaimTemplate"));
    if let Some(spec) = claim.and_then(|c| some_map(c, "spec")) {
        set_default(spec, "volumeMode", "Filesystem");
    }
}

const SOURCE_DEFAULTS: &[(&str, &str, &str)] = &[
    ("hostPath", "type", ""),
    ("iscsi", "iscsiInterface", "default"),
    ("rbd", "pool", "rbd"),
    ("rbd", "user", "admin"),
    ("rbd", "keyring", "/etc/ceph/keyring"),
    ("azureDisk", "cachingMode", "ReadWrite"),
    ("azureDisk", "kind", "Shared"),
    ("azureDisk", "fsType", "ext4"),
    ("scaleIO", "storageMode", "ThinProvisioned"),
    ("scaleIO", "fsType", "xfs"),
];

/// Sources behind features that are off are dropped.
fn projection(source: &mut Map<String, Value>) {
    source.retain(|key, _| !matches!(key.as_str(), "clusterTrustBundle" | "podCertificate"));
    if let Some(token) = some_map(source, "serviceAccountToken") {
        set_default(token, "expirationSeconds", 3600);
    }
    if let Some(downward) = some_map(source, "downwardAPI") {
        maps_mut(downward, "items").for_each(field_ref);
    }
}

#[cfg(test)]
mod tests {
    use super::pull_policy;

    #[test]
    fn pull_policy_follows_the_tag() {
        for (image, policy) in [
            ("nginx", "Always"),
            ("nginx:latest", "Always"),
            ("nginx:1.2", "IfNotPresent"),
            ("host:5000/nginx", "Always"),
            ("host:5000/nginx:1", "IfNotPresent"),
            ("nginx@sha256:abc", "IfNotPresent"),
            ("nginx:latest@sha256:abc", "Always"),
        ] {
            assert_eq!(pull_policy(image), policy, "{image}");
        }
    }
}
