//! Containers.

use serde_json::Value;
use wasmk_machinery::names;

use super::fields::descending_path;
use super::{env, probes, security};
use crate::errors::{At, Errors};
use crate::ports;
use crate::resource_names::{self, is_huge_page, is_overcommittable, read};
use crate::value::{entries, flag, get, int, list, or_null, text, text_at};

const DEFAULT_GRACE: i64 = 30;

/// Checks all containers of a pod. `volumes` are the names of those that are right.
pub(super) fn all(spec: &Value, volumes: &[&str], at: &At<'_>, errors: &mut Errors) {
    let pod = Pod {
        volumes,
        claims: list(spec, "resourceClaims").iter().map(|c| text(c, "name")).collect(),
        grace: int(spec, "terminationGracePeriodSeconds").unwrap_or(DEFAULT_GRACE),
        restart_policy: text(spec, "restartPolicy"),
        host_users: spec.get("hostUsers").and_then(Value::as_bool).unwrap_or(true),
    };
    regular(list(spec, "containers"), &pod, &at.field("containers"), errors);
    init(spec, &pod, &at.field("initContainers"), errors);
    ephemeral(spec, &pod, &at.field("ephemeralContainers"), errors);
    let place = at.field("resources");
    if let Some(resources) = get(spec, "resources") {
        requirements(resources, &pod.claims, &place, errors);
    }
    host_ports(spec, at, errors);
}

/// What checks of a container need to know of its pod.
struct Pod<'a> {
    volumes: &'a [&'a str],
    claims: Vec<&'a str>,
    grace: i64,
    restart_policy: &'a str,
    host_users: bool,
}

fn regular(containers: &[Value], pod: &Pod<'_>, at: &At<'_>, errors: &mut Errors) {
    if containers.is_empty() {
        errors.required(at, "");
        return;
    }
    for (i, container) in containers.iter().enumerate() {
        let at = at.index(i);
        common(container, pod, &at, errors);
        let name = text(container, "name");
        if containers[..i].iter().any(|other| text(other, "name") == name) && !name.is_empty() {
            errors.duplicate_text(&at.field("name"), name);
        }
        probes::all(container, pod.grace, &at, errors);
        restart_policy(container, &at, errors);
    }
    port_conflicts(containers, at, errors);
}

fn restart_policy(container: &Value, at: &At<'_>, errors: &mut Errors) {
    let policies = ["Always", "Never", "OnFailure"];
    if let Some(policy) = text_at(container, "restartPolicy").filter(|p| !policies.contains(p)) {
        errors.unsupported(&at.field("restartPolicy"), policy, &policies);
    }
}

fn init(spec: &Value, pod: &Pod<'_>, at: &At<'_>, errors: &mut Errors) {
    let (containers, main) = (list(spec, "initContainers"), list(spec, "containers"));
    for (i, container) in containers.iter().enumerate() {
        let at = at.index(i);
        common(container, pod, &at, errors);
        let name = text(container, "name");
        let known = containers[..i].iter().chain(main).any(|other| text(other, "name") == name);
        if known && !name.is_empty() {
            errors.duplicate_text(&at.field("name"), name);
        }
        restart_policy(container, &at, errors);
        if text(container, "restartPolicy") == "Always" {
            probes::all(container, pod.grace, &at, errors);
            continue;
        }
        for key in ["lifecycle", "livenessProbe", "readinessProbe", "startupProbe"] {
            if get(container, key).is_some() {
                let why = "may not be set for init containers without restartPolicy=Always";
                errors.forbidden(&at.field(key), why);
            }
        }
        if !list(container, "resizePolicy").is_empty() {
            let why = "must not be set for init containers";
            errors.invalid(&at.field("resizePolicy"), or_null(container, "resizePolicy"), why);
        }
    }
}

fn ephemeral(spec: &Value, pod: &Pod<'_>, at: &At<'_>, errors: &mut Errors) {
    const FORBIDDEN: [&str; 6] =
        ["ports", "livenessProbe", "readinessProbe", "startupProbe", "lifecycle", "resizePolicy"];
    let containers = list(spec, "ephemeralContainers");
    let others = || list(spec, "initContainers").iter().chain(list(spec, "containers"));
    for (i, container) in containers.iter().enumerate() {
        let at = at.index(i);
        common(container, pod, &at, errors);
        let name = text(container, "name");
        if containers[..i].iter().chain(others()).any(|other| text(other, "name") == name) {
            errors.duplicate_text(&at.field("name"), name);
        }
        let target = text(container, "targetContainerName");
        if !target.is_empty() && !others().any(|other| text(other, "name") == target) {
            errors.not_found(&at.field("targetContainerName"), target, "");
        }
        for key in FORBIDDEN.iter().filter(|key| get(container, key).is_some()) {
            errors.forbidden(&at.field(key), "cannot be set for an Ephemeral Container");
        }
        let resources = or_null(container, "resources");
        if resources.as_object().is_some_and(|r| !r.is_empty()) {
            errors.forbidden(&at.field("resources"), "cannot be set for an Ephemeral Container");
        }
    }
}

fn common(container: &Value, pod: &Pod<'_>, at: &At<'_>, errors: &mut Errors) {
    match text(container, "name") {
        "" => errors.required(&at.field("name"), ""),
        name => {
            for why in names::dns1123_label(name) {
                errors.invalid_text(&at.field("name"), name, &why);
            }
        }
    }
    match text(container, "image") {
        "" => errors.required(&at.field("image"), ""),
        image if image.trim() != image => {
            errors.invalid_text(&at.field("image"), image, "must not have leading or trailing whitespace");
        }
        _ => {}
    }
    match text(container, "terminationMessagePolicy") {
        "File" | "FallbackToLogsOnError" => {}
        "" => errors.required(&at.field("terminationMessagePolicy"), ""),
        other => {
            let policies = ["FallbackToLogsOnError", "File"];
            errors.unsupported(&at.field("terminationMessagePolicy"), other, &policies);
        }
    }
    container_ports(list(container, "ports"), &at.field("ports"), errors);
    env::variables(container, at, errors);
    env::sets(container, at, errors);
    mounts(container, pod.volumes, at, errors);
    match text(container, "imagePullPolicy") {
        "Always" | "IfNotPresent" | "Never" => {}
        "" => errors.required(&at.field("imagePullPolicy"), ""),
        other => {
            errors.unsupported(&at.field("imagePullPolicy"), other, &["Always", "IfNotPresent", "Never"]);
        }
    }
    requirements(or_null(container, "resources"), &pod.claims, &at.field("resources"), errors);
    resize_policy(container, pod.restart_policy, &at.field("resizePolicy"), errors);
    security::container(container, pod.host_users, at, errors);
}

fn container_ports(all: &[Value], at: &At<'_>, errors: &mut Errors) {
    for (i, port) in all.iter().enumerate() {
        let at = at.index(i);
        let name = text(port, "name");
        if !name.is_empty() {
            let wrong = names::port_name(name);
            for why in &wrong {
                errors.invalid_text(&at.field("name"), name, why);
            }
            if wrong.is_empty() && all[..i].iter().any(|other| text(other, "name") == name) {
                errors.duplicate_text(&at.field("name"), name);
            }
        }
        match int(port, "containerPort").unwrap_or(0) {
            0 => errors.required(&at.field("containerPort"), ""),
            number => ports::number(number, &at.field("containerPort"), errors),
        }
        if let Some(number) = int(port, "hostPort").filter(|n| *n != 0) {
            ports::number(number, &at.field("hostPort"), errors);
        }
        ports::protocol(text(port, "protocol"), &at.field("protocol"), errors);
    }
}

/// Two containers of a pod cannot have the same port of the node.
fn port_conflicts(containers: &[Value], at: &At<'_>, errors: &mut Errors) {
    let mut seen: Vec<String> = Vec::new();
    for (i, container) in containers.iter().enumerate() {
        let at = at.index(i);
        let at = at.field("ports");
        for (j, port) in list(container, "ports").iter().enumerate() {
            let Some(number) = int(port, "hostPort").filter(|n| *n != 0) else { continue };
            let key = format!("{}/{}/{number}", text(port, "protocol"), text(port, "hostIP"));
            if seen.contains(&key) {
                errors.duplicate_text(&at.index(j).field("hostPort"), &key);
            } else {
                seen.push(key);
            }
        }
    }
}

/// On the node's network a container's port is the node's.
fn host_ports(spec: &Value, at: &At<'_>, errors: &mut Errors) {
    if !flag(spec, "hostNetwork") {
        return;
    }
    let at = at.field("containers");
    for (i, container) in list(spec, "containers").iter().enumerate() {
        let at = at.index(i);
        let at = at.field("ports");
        for (j, port) in list(container, "ports").iter().enumerate() {
            let host = int(port, "hostPort").unwrap_or(0);
            if host != 0 && Some(host) != int(port, "containerPort") {
                let why = "must match `containerPort` when `hostNetwork` is true";
                errors.invalid_int(&at.index(j).field("hostPort"), host, why);
            }
        }
    }
}

fn mounts(container: &Value, volumes: &[&str], at: &At<'_>, errors: &mut Errors) {
    let all = list(container, "volumeMounts");
    let place = at.field("volumeMounts");
    for (i, mount) in all.iter().enumerate() {
        let at = place.index(i);
        let (name, path) = (text(mount, "name"), text(mount, "mountPath"));
        if name.is_empty() {
            errors.required(&at.field("name"), "");
        }
        if !volumes.contains(&name) {
            errors.not_found(&at.field("name"), name, "");
        }
        if path.is_empty() {
            errors.required(&at.field("mountPath"), "");
        }
        if all[..i].iter().any(|other| text(other, "mountPath") == path) {
            errors.invalid_text(&at.field("mountPath"), path, "must be unique");
        }
        let (sub, expression) = (text(mount, "subPath"), text(mount, "subPathExpr"));
        if !sub.is_empty() {
            descending_path(sub, &place.field("subPath"), errors);
        }
        if !expression.is_empty() {
            if !sub.is_empty() {
                let why = "subPathExpr and subPath are mutually exclusive";
                errors.invalid_text(&at.field("subPathExpr"), expression, why);
            }
            descending_path(expression, &place.field("subPathExpr"), errors);
        }
        propagation(mount, container, &at, errors);
    }
    devices(container, volumes, at, errors);
}

fn propagation(mount: &Value, container: &Value, at: &At<'_>, errors: &mut Errors) {
    let modes = ["Bidirectional", "HostToContainer", "None"];
    let Some(mode) = text_at(mount, "mountPropagation") else { return };
    let at = at.field("mountPropagation");
    if !modes.contains(&mode) {
        errors.unsupported(&at, mode, &modes);
    }
    if mode == "Bidirectional" && !flag(or_null(container, "securityContext"), "privileged") {
        errors.forbidden(&at, "Bidirectional mount propagation is available only to privileged containers");
    }
}

fn devices(container: &Value, volumes: &[&str], at: &At<'_>, errors: &mut Errors) {
    let at = at.field("volumeDevices");
    for (i, device) in list(container, "volumeDevices").iter().enumerate() {
        let at = at.index(i);
        let (name, path) = (text(device, "name"), text(device, "devicePath"));
        if name.is_empty() {
            errors.required(&at.field("name"), "");
        }
        if !volumes.contains(&name) {
            errors.not_found(&at.field("name"), name, "");
        }
        if path.is_empty() {
            errors.required(&at.field("devicePath"), "");
        } else if path.split('/').any(|part| part == "..") {
            errors.invalid_text(&at.field("devicePath"), path, "can not contain backsteps ('..')");
        }
    }
}

/// Checks what a container or pod is to have.
fn requirements(resources: &Value, claims: &[&str], at: &At<'_>, errors: &mut Errors) {
    let (limits_at, requests_at) = (at.field("limits"), at.field("requests"));
    let limits = or_null(resources, "limits");
    let mut core = false;
    let mut huge = false;
    for (name, value) in entries(resources, "limits") {
        let at = limits_at.key(name);
        resource_names::of_container(name, &at, errors);
        resource_names::quantity_of(name, value, &at, errors);
        core |= matches!(name.as_str(), "cpu" | "memory");
        huge |= is_huge_page(name);
    }
    for (name, value) in entries(resources, "requests") {
        let at = requests_at.key(name);
        resource_names::of_container(name, &at, errors);
        resource_names::quantity_of(name, value, &at, errors);
        core |= matches!(name.as_str(), "cpu" | "memory");
        let limit = or_null(limits, name);
        match (read(value), read(limit)) {
            (Some(amount), Some(most)) => {
                let shown = limit.as_str().unwrap_or("");
                if amount != most && !is_overcommittable(name) {
                    let why = format!("must be equal to {name} limit of {shown}");
                    errors.invalid(&requests_at, value, &why);
                } else if amount > most {
                    let why = format!("must be less than or equal to {name} limit of {shown}");
                    errors.invalid(&requests_at, value, &why);
                }
            }
            (Some(_), None) if !is_overcommittable(name) => {
                errors.required(&limits_at, "Limit must be set for non overcommitable resources");
            }
            _ => {}
        }
    }
    if huge && !core {
        errors.forbidden(at, "HugePages require cpu or memory");
    }
    claim_names(resources, claims, &at.field("claims"), errors);
}

fn claim_names(resources: &Value, claims: &[&str], at: &At<'_>, errors: &mut Errors) {
    let all = list(resources, "claims");
    for (i, claim) in all.iter().enumerate() {
        let at = at.index(i);
        let name = text(claim, "name");
        if name.is_empty() {
            errors.required(&at, "");
            continue;
        }
        let same =
            |other: &Value| text(other, "name") == name && text(other, "request") == text(claim, "request");
        if all[..i].iter().any(same) {
            errors.duplicate_text(&at, name);
        } else if !claims.contains(&name) {
            let mut why = "must be one of the names in pod.spec.resourceClaims".to_owned();
            if claims.is_empty() {
                why.push_str(" which is empty");
            } else {
                why = format!("{why}: {}", claims.join(", "));
            }
            errors.not_found(&at, name, &why);
        }
    }
}

fn resize_policy(container: &Value, pod_policy: &str, at: &At<'_>, errors: &mut Errors) {
    let all = list(container, "resizePolicy");
    for (i, policy) in all.iter().enumerate() {
        let resource = text(policy, "resourceName");
        match resource {
            "cpu" | "memory" => {}
            "" => errors.required(at, ""),
            other => errors.unsupported(at, other, &["cpu", "memory"]),
        }
        if all[..i].iter().any(|other| text(other, "resourceName") == resource) {
            errors.duplicate_text(at, resource);
        }
        match text(policy, "restartPolicy") {
            "NotRequired" => {}
            "RestartContainer" => {
                if pod_policy == "Never" {
                    let why = "must be 'NotRequired' when `restartPolicy` is 'Never'";
                    errors.invalid_text(at, "RestartContainer", why);
                }
            }
            "" => errors.required(at, ""),
            other => errors.unsupported(at, other, &["NotRequired", "RestartContainer"]),
        }
    }
}
