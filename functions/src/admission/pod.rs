//! What of a pod's spec a template may set.

use serde_json::Value;

use super::{container, problem::Problems, volumes};
use crate::config::Config;

/// Fields of a template that belong to Knative, or that it may always set.
const OPEN: [&str; 10] = [
    "containers",
    "volumes",
    "serviceAccountName",
    "imagePullSecrets",
    "enableServiceLinks",
    "automountServiceAccountToken",
    "containerConcurrency",
    "timeoutSeconds",
    "responseStartTimeoutSeconds",
    "idleTimeoutSeconds",
];

/// Fields that a feature opens.
const GATED: [(&str, &str); 16] = [
    ("affinity", "kubernetes.podspec-affinity"),
    ("topologySpreadConstraints", "kubernetes.podspec-topologyspreadconstraints"),
    ("hostAliases", "kubernetes.podspec-hostaliases"),
    ("nodeSelector", "kubernetes.podspec-nodeselector"),
    ("runtimeClassName", "kubernetes.podspec-runtimeclassname"),
    ("tolerations", "kubernetes.podspec-tolerations"),
    ("securityContext", "kubernetes.podspec-securitycontext"),
    ("shareProcessNamespace", "kubernetes.podspec-shareprocessnamespace"),
    ("priorityClassName", "kubernetes.podspec-priorityclassname"),
    ("schedulerName", "kubernetes.podspec-schedulername"),
    ("initContainers", "kubernetes.podspec-init-containers"),
    ("dnsPolicy", "kubernetes.podspec-dnspolicy"),
    ("dnsConfig", "kubernetes.podspec-dnsconfig"),
    ("hostIPC", "kubernetes.podspec-hostipc"),
    ("hostPID", "kubernetes.podspec-hostpid"),
    ("hostNetwork", "kubernetes.podspec-hostnetwork"),
];

/// Fields of an object that are set to anything.
pub(super) fn set_fields(value: &Value) -> impl Iterator<Item = &str> {
    let is_set = |value: &Value| match value {
        Value::Null | Value::Bool(false) => false,
        Value::String(text) => !text.is_empty(),
        Value::Array(list) => !list.is_empty(),
        Value::Number(number) => number.as_f64() != Some(0.0),
        _ => true,
    };
    value.as_object().into_iter().flatten().filter(move |(_, v)| is_set(v)).map(|(key, _)| key.as_str())
}

/// Checks a pod's spec.
pub(super) fn check(spec: &Value, base: &str, config: &Config, problems: &mut Problems) {
    for field in set_fields(spec) {
        let gate = GATED.iter().find(|(name, _)| *name == field).map(|(_, feature)| *feature);
        if !OPEN.contains(&field) && !gate.is_some_and(|feature| config.features.has(feature)) {
            problems.disallowed(format!("{base}.{field}"));
        }
    }
    if spec["automountServiceAccountToken"] == true {
        problems.disallowed(format!("{base}.automountServiceAccountToken"));
    }
    volumes::check(spec, base, config, problems);
    let containers = spec["containers"].as_array().map(Vec::as_slice).unwrap_or_default();
    let port = ports(containers, base, problems);
    if containers.is_empty() {
        problems.missing(format!("{base}.containers"));
    }
    if containers.len() > 1 && !config.features.has("multi-container") {
        let message = format!("multi-container is off, but found {} containers", containers.len());
        problems.add(message, format!("{base}.containers"));
    }
    for (i, one) in containers.iter().enumerate() {
        let serves = containers.len() == 1 || one["ports"].as_array().is_some_and(|p| !p.is_empty());
        let part = if serves { container::Part::User } else { container::Part::Sidecar };
        container::check(one, &format!("{base}.containers[{i}]"), part, &port, spec, config, problems);
    }
    for (i, one) in spec["initContainers"].as_array().into_iter().flatten().enumerate() {
        let at = format!("{base}.initContainers[{i}]");
        container::check(one, &at, container::Part::Init, &port, spec, config, problems);
    }
}

/// The name of the one port that there may be over all containers.
fn ports(containers: &[Value], base: &str, problems: &mut Problems) -> String {
    let all: Vec<&Value> =
        containers.iter().flat_map(|c| c["ports"].as_array().into_iter().flatten()).collect();
    let at = format!("{base}.containers[*].ports");
    if all.is_empty() && containers.len() > 1 {
        problems.missing(at);
    } else if all.len() > 1 {
        let details = "Only a single port is allowed across all containers";
        problems.detailed("more than one container port is set", at, details);
    }
    let named = all.first().and_then(|p| p["name"].as_str()).filter(|n| !n.is_empty());
    named.unwrap_or("http").into()
}
