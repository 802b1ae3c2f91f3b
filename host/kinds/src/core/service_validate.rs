//! What is wrong with services.

use std::net::IpAddr;

use serde_json::{Value, json};
use wasmk_api::Object;
use wasmk_machinery::names;

use crate::core::service::is_headless;
use crate::errors::{At, Errors};
use crate::fields::{spec, status};
use crate::meta;
use crate::net;
use crate::ports;
use crate::value::{entries, get, int, list, or_null, text, text_at, texts};

const TYPES: [&str; 4] = ["ClusterIP", "ExternalName", "LoadBalancer", "NodePort"];
/// The longest session affinity, in seconds: a day.
const MAX_AFFINITY: i64 = 86_400;
/// Load balancers must not lead to the node agent's own port.
const AGENT_PORT: i64 = 10_250;

/// Checks a service.
pub(crate) fn service(obj: &Object, errors: &mut Errors) {
    let (spec, at, headless) = (spec(obj), At::new("spec"), is_headless(obj));
    let kind = text(spec, "type");
    if list(spec, "ports").is_empty() && !headless && kind != "ExternalName" {
        errors.required(&at.field("ports"), "");
    }
    by_type(spec, kind, headless, &at, errors);
    let many = list(spec, "ports").len() > 1;
    let ports_at = at.field("ports");
    for (i, port) in list(spec, "ports").iter().enumerate() {
        one_port(port, &list(spec, "ports")[..i], many, &ports_at.index(i), errors);
    }
    meta::label_map(entries(spec, "selector"), &at.field("selector"), errors);
    affinity(spec, &at, errors);
    cluster_ips(spec, kind, headless, &at, errors);
    let place = at.field("externalIPs");
    for (i, text) in texts(spec, "externalIPs").enumerate() {
        if net::ip(text, &place.index(i), errors).is_some() {
            net::not_special(text, &place.index(i), errors);
        }
    }
    match kind {
        "" => errors.required(&at.field("type"), ""),
        kind if TYPES.contains(&kind) => {}
        other => errors.unsupported(&at.field("type"), other, &TYPES),
    }
    port_sets(spec, kind, &at, errors);
    balancer(spec, kind, &at, errors);
    traffic(spec, kind, &at, errors);
}

fn by_type(spec: &Value, kind: &str, headless: bool, at: &At<'_>, errors: &mut Errors) {
    let ips = at.field("clusterIPs");
    match kind {
        "LoadBalancer" => {
            let ports = at.field("ports");
            for (i, port) in list(spec, "ports").iter().enumerate() {
                if int(port, "port") == Some(AGENT_PORT) {
                    let why = "may not expose port 10250 externally since it is used by kubelet";
                    errors.invalid_int(&ports.index(i), AGENT_PORT, why);
                }
            }
            if headless {
                errors.invalid_text(
                    &ips.index(0),
                    "None",
                    "may not be set to 'None' for LoadBalancer services",
                );
            }
        }
        "NodePort" if headless => {
            errors.invalid_text(&ips.index(0), "None", "may not be set to 'None' for NodePort services");
        }
        "ExternalName" => {
            for key in ["clusterIPs", "ipFamilies", "ipFamilyPolicy"] {
                if get(spec, key).is_some_and(|v| v.as_array().is_none_or(|l| !l.is_empty())) {
                    errors.forbidden(&at.field(key), "may not be set for ExternalName services");
                }
            }
            let name = text(spec, "externalName");
            match name.strip_suffix('.').unwrap_or(name) {
                "" => errors.required(&at.field("externalName"), ""),
                name => {
                    for why in names::dns1123_subdomain(name) {
                        errors.invalid_text(&at.field("externalName"), name, &why);
                    }
                }
            }
        }
        _ => {}
    }
}

fn one_port(port: &Value, before: &[Value], many: bool, at: &At<'_>, errors: &mut Errors) {
    let name = text(port, "name");
    if name.is_empty() {
        if many {
            errors.required(&at.field("name"), "");
        }
    } else {
        for why in names::dns1123_label(name) {
            errors.invalid_text(&at.field("name"), name, &why);
        }
        if before.iter().any(|other| text(other, "name") == name) {
            errors.duplicate_text(&at.field("name"), name);
        }
    }
    ports::number(int(port, "port").unwrap_or(0), &at.field("port"), errors);
    ports::protocol(text(port, "protocol"), &at.field("protocol"), errors);
    ports::number_or_name(or_null(port, "targetPort"), &at.field("targetPort"), errors);
    if let Some(protocol) = text_at(port, "appProtocol") {
        for why in names::qualified_name(protocol) {
            errors.invalid_text(&at.field("appProtocol"), protocol, &why);
        }
    }
}

fn affinity(spec: &Value, at: &At<'_>, errors: &mut Errors) {
    let place = at.field("sessionAffinityConfig");
    let config = or_null(spec, "sessionAffinityConfig");
    match text(spec, "sessionAffinity") {
        "" => errors.required(&at.field("sessionAffinity"), ""),
        "None" if !config.is_null() => {
            errors.forbidden(&place, "must not be set when session affinity is None");
        }
        "None" => {}
        "ClientIP" => {
            let client = place.field("clientIP");
            match int(or_null(config, "clientIP"), "timeoutSeconds") {
                None => errors.required(&place, "when session affinity type is ClientIP"),
                Some(seconds) if seconds <= 0 || seconds > MAX_AFFINITY => {
                    let why = "must be greater than 0 and less than 86400";
                    errors.invalid_int(&client.field("timeoutSeconds"), seconds, why);
                }
                Some(_) => {}
            }
        }
        other => errors.unsupported(&at.field("sessionAffinity"), other, &["ClientIP", "None"]),
    }
}

fn cluster_ips(spec: &Value, kind: &str, headless: bool, at: &At<'_>, errors: &mut Errors) {
    if kind == "ExternalName" {
        return;
    }
    let (single, many) = (text(spec, "clusterIP"), or_null(spec, "clusterIPs"));
    let ips: Vec<&str> = texts(spec, "clusterIPs").collect();
    let place = at.field("clusterIPs");
    match (single, ips.first()) {
        ("", Some(_)) => errors.invalid(&place, many, "must be empty when `clusterIP` is not specified"),
        ("", None) => {}
        (_, None) => errors.required(&place, ""),
        (single, Some(first)) if single != *first => {
            errors.invalid(&place, many, "first value must match `clusterIP`");
        }
        _ => {}
    }
    families(spec, at, errors);
    let before = errors.count();
    for (i, ip) in ips.iter().enumerate() {
        match *ip {
            "None" if ips.len() > 1 => {
                errors.invalid(&place, many, "'None' must be the first and only value");
            }
            "None" => {}
            ip => {
                net::ip(ip, &place.index(i), errors);
            }
        }
    }
    if ips.len() > 2 {
        errors.invalid(&place, many, "may only hold up to 2 values");
    }
    if errors.count() > before || headless {
        return;
    }
    let parsed: Vec<IpAddr> = ips.iter().filter_map(|ip| ip.parse().ok()).collect();
    if let [a, b] = parsed[..]
        && a.is_ipv4() == b.is_ipv4()
    {
        errors.invalid(&place, many, "may specify no more than one IP for each IP family");
    }
    for (i, (ip, family)) in parsed.iter().zip(texts(spec, "ipFamilies")).enumerate() {
        let fits = match family {
            "IPv4" => ip.is_ipv4(),
            "IPv6" => ip.is_ipv6(),
            _ => true,
        };
        if !fits {
            let why = format!("expected an {family} value as indicated by `ipFamilies[{i}]`");
            errors.invalid_text(&place.index(i), ips[i], &why);
        }
    }
}

fn families(spec: &Value, at: &At<'_>, errors: &mut Errors) {
    let families: Vec<&str> = texts(spec, "ipFamilies").collect();
    let place = at.field("ipFamilies");
    for (i, family) in families.iter().enumerate() {
        if !matches!(*family, "IPv4" | "IPv6") {
            errors.unsupported(&place.index(i), family, &["IPv4", "IPv6"]);
        }
        if families[..i].contains(family) {
            errors.duplicate_text(&place.index(i), family);
        }
    }
    let policies = ["PreferDualStack", "RequireDualStack", "SingleStack"];
    if let Some(policy) = text_at(spec, "ipFamilyPolicy").filter(|p| !policies.contains(p)) {
        errors.unsupported(&at.field("ipFamilyPolicy"), policy, &policies);
    }
}

/// Checks ports against each other.
fn port_sets(spec: &Value, kind: &str, at: &At<'_>, errors: &mut Errors) {
    let all = list(spec, "ports");
    let place = at.field("ports");
    let node_port = |port: &Value| int(port, "nodePort").filter(|n| *n != 0);
    if kind == "ClusterIP" {
        for (i, _) in all.iter().enumerate().filter(|(_, port)| node_port(port).is_some()) {
            let why = "may not be used when `type` is 'ClusterIP'";
            errors.forbidden(&place.index(i).field("nodePort"), why);
        }
    }
    for (i, port) in all.iter().enumerate() {
        let Some(number) = node_port(port) else { continue };
        let same = |other: &Value| {
            node_port(other) == Some(number) && text(other, "protocol") == text(port, "protocol")
        };
        if all[..i].iter().any(same) {
            errors.duplicate(&place.index(i).field("nodePort"), &number.into());
        }
    }
    for (i, port) in all.iter().enumerate() {
        let same = |other: &Value| {
            int(other, "port") == int(port, "port") && text(other, "protocol") == text(port, "protocol")
        };
        if all[..i].iter().any(same) {
            let shown = json!({
                "Name": "",
                "Protocol": text(port, "protocol"),
                "AppProtocol": null,
                "Port": int(port, "port").unwrap_or(0),
                "TargetPort": 0,
                "NodePort": 0,
            });
            errors.duplicate(&place.index(i), &shown);
        }
    }
}

fn balancer(spec: &Value, kind: &str, at: &At<'_>, errors: &mut Errors) {
    let ranges: Vec<&str> = texts(spec, "loadBalancerSourceRanges").collect();
    let is_balancer = kind == "LoadBalancer";
    const ONLY: &str = "may only be used when `type` is 'LoadBalancer'";
    let place = at.field("LoadBalancerSourceRanges");
    if !ranges.is_empty() && !is_balancer {
        errors.forbidden(&place, ONLY);
    } else {
        for (i, range) in ranges.iter().enumerate() {
            net::cidr(range.trim(), &place.index(i), errors);
        }
    }
    let allocate = spec.get("allocateLoadBalancerNodePorts").and_then(Value::as_bool);
    let place = at.field("allocateLoadBalancerNodePorts");
    match (is_balancer, allocate) {
        (false, Some(_)) => errors.forbidden(&place, ONLY),
        (true, None) => errors.required(&place, ""),
        _ => {}
    }
    if let Some(class) = text_at(spec, "loadBalancerClass") {
        let place = at.field("loadBalancerClass");
        if !is_balancer {
            errors.forbidden(&place, ONLY);
        } else {
            for why in names::qualified_name(class) {
                errors.invalid_text(&place, class, &why);
            }
        }
    }
}

fn traffic(spec: &Value, kind: &str, at: &At<'_>, errors: &mut Errors) {
    let external = text(spec, "externalTrafficPolicy");
    let reachable = matches!(kind, "LoadBalancer" | "NodePort")
        || (kind == "ClusterIP" && !list(spec, "externalIPs").is_empty());
    let place = at.field("externalTrafficPolicy");
    let local = matches!(external, "Local" | "Cluster");
    match (reachable, external) {
        (false, "") => {}
        (false, policy) => {
            errors.invalid_text(&place, policy, "may only be set for externally-accessible services");
        }
        (true, "") => errors.required(&place, ""),
        (true, policy) if !local => errors.unsupported(&place, policy, &["Cluster", "Local"]),
        _ => {}
    }
    if let Some(port) = int(spec, "healthCheckNodePort") {
        let place = at.field("healthCheckNodePort");
        if kind == "LoadBalancer" && external == "Local" {
            ports::number(port, &place, errors);
        } else if port != 0 {
            let why = "may only be set when `type` is 'LoadBalancer' and `externalTrafficPolicy` is 'Local'";
            errors.invalid_int(&place, port, why);
        }
    }
    let internal = text(spec, "internalTrafficPolicy");
    let place = at.field("internalTrafficPolicy");
    match (kind, internal) {
        ("NodePort" | "ClusterIP" | "LoadBalancer", "") => errors.required(&place, ""),
        (_, "" | "Cluster" | "Local") => {}
        (_, other) => errors.unsupported(&place, other, &["Cluster", "Local"]),
    }
    let distributions = ["PreferClose", "PreferSameZone", "PreferSameNode"];
    if let Some(other) = text_at(spec, "trafficDistribution").filter(|d| !distributions.contains(d)) {
        errors.unsupported(&at.field("trafficDistribution"), other, &distributions);
    }
}

/// Checks the replacement of a service.
pub(crate) fn service_update(new: &Object, old: &Object, errors: &mut Errors) {
    let (after, before) = (spec(new), spec(old));
    let stays = text(after, "type") != "ExternalName" && text(before, "type") != "ExternalName";
    let at = At::new("spec");
    if stays {
        let first = |spec| texts(spec, "clusterIPs").next();
        if let (Some(ip), Some(was)) = (first(after), first(before))
            && ip != was
        {
            let place = at.field("clusterIPs");
            errors.invalid(&place.index(0), or_null(after, "clusterIPs"), "may not change once set");
        }
    }
    if text(before, "type") == "LoadBalancer" && text(after, "type") == "LoadBalancer" {
        let (class, was) = (or_null(after, "loadBalancerClass"), or_null(before, "loadBalancerClass"));
        if class != was {
            errors.invalid(&at.field("loadBalancerClass"), class, "may not change once set");
        }
    }
    service(new, errors);
}

/// Checks the status of a service.
pub(crate) fn service_status(new: &Object, errors: &mut Errors) {
    let status_at = At::new("status");
    let at = status_at.field("loadBalancer");
    load_balancer(or_null(status(new), "loadBalancer"), &at, errors);
}

/// Checks what a load balancer reports.
pub(crate) fn load_balancer(status: &Value, at: &At<'_>, errors: &mut Errors) {
    let at = at.field("ingress");
    for (i, ingress) in list(status, "ingress").iter().enumerate() {
        let at = at.index(i);
        let (ip, host) = (text(ingress, "ip"), text(ingress, "hostname"));
        if !ip.is_empty() {
            net::ip(ip, &at.field("ip"), errors);
        }
        if let Some(mode) = text_at(ingress, "ipMode").filter(|m| !matches!(*m, "VIP" | "Proxy")) {
            errors.unsupported(&at.field("ipMode"), mode, &["Proxy", "VIP"]);
        }
        if !host.is_empty() {
            for why in names::dns1123_subdomain(host) {
                errors.invalid_text(&at.field("hostname"), host, &why);
            }
            if host.parse::<IpAddr>().is_ok() {
                errors.invalid_text(&at.field("hostname"), host, "must be a DNS name, not an IP address");
            }
        }
    }
}
