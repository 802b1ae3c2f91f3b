//! `Service`.

use serde_json::{Map, Value, json};
use wasmk_api::{Object, Timestamp};

use crate::core::service_validate;
use crate::errors::Errors;
use crate::fields::{in_spec, spec, status};
use crate::meta::NameRule;
use crate::table::age;
use crate::value::{int, list, map_mut, maps_mut, or_null, set_default, some_map, text, texts};
use crate::{Column, Kind, columns, selector, status as statuses};

/// Load balancers' addresses are cut to that many characters outside wide output.
const ADDRESS_WIDTH: usize = 16;

pub(crate) struct Service;

impl Kind for Service {
    fn set_defaults(&self, obj: &mut Object) {
        let Some(spec) = some_map(&mut obj.0, "spec") else { return };
        set_default(spec, "sessionAffinity", "None");
        match spec["sessionAffinity"].as_str() {
            Some("None") => {
                spec.shift_remove("sessionAffinityConfig");
            }
            Some("ClientIP") => {
                let config = map_mut(spec, "sessionAffinityConfig");
                set_default(map_mut(config, "clientIP"), "timeoutSeconds", 10_800);
            }
            _ => {}
        }
        set_default(spec, "type", "ClusterIP");
        maps_mut(spec, "ports").for_each(port);
        let kind = spec["type"].as_str().unwrap_or("").to_owned();
        let external_ips =
            spec.get("externalIPs").and_then(Value::as_array).is_some_and(|ips| !ips.is_empty());
        if matches!(&*kind, "NodePort" | "LoadBalancer") || (kind == "ClusterIP" && external_ips) {
            set_default(spec, "externalTrafficPolicy", "Cluster");
        }
        if matches!(&*kind, "NodePort" | "LoadBalancer" | "ClusterIP") {
            set_default(spec, "internalTrafficPolicy", "Cluster");
        }
        if kind == "LoadBalancer" {
            set_default(spec, "allocateLoadBalancerNodePorts", true);
            if let Some(status) = some_map(&mut obj.0, "status").and_then(|s| some_map(s, "loadBalancer")) {
                maps_mut(status, "ingress").filter(|i| i.contains_key("ip")).for_each(|ingress| {
                    set_default(ingress, "ipMode", "VIP");
                });
            }
        }
    }

    fn prepare_create(&self, obj: &mut Object) {
        statuses::reset(obj);
        let Some(spec) = some_map(&mut obj.0, "spec") else { return };
        mirror_cluster_ip(spec);
        set_families(spec);
    }

    fn prepare_update(&self, new: &mut Object, old: &Object) {
        statuses::keep(new, old);
        let Some(spec) = some_map(&mut new.0, "spec") else { return };
        keep_allocated(spec, crate::fields::spec(old));
        drop_unneeded(spec, crate::fields::spec(old));
        mirror_cluster_ip(spec);
        follow_cluster_ip(spec, crate::fields::spec(old));
        set_families(spec);
    }

    fn check(&self, obj: &Object, errors: &mut Errors) {
        service_validate::service(obj, errors);
    }

    fn check_update(&self, new: &Object, old: &Object, errors: &mut Errors) {
        service_validate::service_update(new, old, errors);
    }

    fn check_status(&self, new: &Object, _old: &Object, errors: &mut Errors) {
        service_validate::service_status(new, errors);
    }

    fn warnings(&self, obj: &Object, old: Option<&Object>) -> Vec<String> {
        let mut warnings = Vec::new();
        if old.is_some_and(|old| spec(old) == spec(obj)) {
            return warnings;
        }
        if text(spec(obj), "trafficDistribution") == "PreferClose" {
            warnings.push(
                "spec.trafficDistribution: \"PreferClose\" is deprecated; use \"PreferSameZone\"".into(),
            );
        }
        if !list(spec(obj), "externalIPs").is_empty() && text(spec(obj), "type") == "ExternalName" {
            warnings.push("spec.externalIPs is ignored when spec.type is \"ExternalName\"".into());
        }
        let headless = text(spec(obj), "clusterIP") == "None";
        if headless && text(spec(obj), "sessionAffinity") == "ClientIP" {
            warnings.push("spec.SessionAffinity is ignored for headless services".into());
        }
        if headless && !text(spec(obj), "loadBalancerIP").is_empty() {
            warnings.push("spec.loadBalancerIP is ignored for headless services".into());
        }
        warnings
    }

    fn name_rule(&self) -> NameRule {
        NameRule::Label
    }

    fn columns(&self) -> &'static [Column] {
        columns::of("/Service")
    }

    fn row(&self, obj: &Object, now: Timestamp) -> Vec<Value> {
        let spec = spec(obj);
        let cluster_ip = match (text(spec, "clusterIP"), list(spec, "clusterIPs").is_empty()) {
            ("", true) => "<none>",
            ("", false) => texts(spec, "clusterIPs").next().unwrap_or("<none>"),
            (ip, _) => ip,
        };
        vec![
            obj.name().into(),
            text(spec, "type").into(),
            cluster_ip.into(),
            external(obj).into(),
            ports(list(spec, "ports")).into(),
            age(obj, now),
            selector::shown_labels(spec, "selector").into(),
        ]
    }

    fn field_names(&self) -> &'static [&'static str] {
        &["spec.clusterIP", "spec.type"]
    }
}

fn port(port: &mut Map<String, Value>) {
    set_default(port, "protocol", "TCP");
    let unset = match port.get("targetPort") {
        None | Some(Value::Null) => true,
        Some(Value::String(name)) => name.is_empty(),
        Some(number) => number.as_i64() == Some(0),
    };
    if unset && let Some(number) = port.get("port").cloned() {
        port.insert("targetPort".into(), number);
    }
}

/// Whether services of that type have cluster addresses; the empty type is defaulted elsewhere.
fn needs_cluster_ip(kind: &str) -> bool {
    kind != "ExternalName"
}

fn needs_node_port(spec: &Value) -> bool {
    match text(spec, "type") {
        "NodePort" => true,
        "LoadBalancer" => spec.get("allocateLoadBalancerNodePorts").and_then(Value::as_bool).unwrap_or(true),
        _ => false,
    }
}

/// The older single address is the first of the newer list.
fn mirror_cluster_ip(spec: &mut Map<String, Value>) {
    let single = spec.get("clusterIP").and_then(Value::as_str).unwrap_or("").to_owned();
    if !single.is_empty() && spec.get("clusterIPs").and_then(Value::as_array).is_none_or(Vec::is_empty) {
        spec.insert("clusterIPs".into(), json!([single]));
    }
}

/// Who changes the single address alone means the first of the list too.
fn follow_cluster_ip(spec: &mut Map<String, Value>, old: &Value) {
    let single = spec.get("clusterIP").and_then(Value::as_str).unwrap_or("").to_owned();
    if single.is_empty()
        || single == text(old, "clusterIP")
        || spec.get("clusterIPs") != old.get("clusterIPs")
    {
        return;
    }
    if let Some(first) =
        spec.get_mut("clusterIPs").and_then(Value::as_array_mut).and_then(|ips| ips.first_mut())
    {
        *first = single.into();
    }
}

/// This cluster has IPv4; services without addresses or selector may be of both families.
fn set_families(spec: &mut Map<String, Value>) {
    if spec.get("type").and_then(Value::as_str) == Some("ExternalName") {
        return;
    }
    let empty = |key: &str| spec.get(key).and_then(Value::as_object).is_none_or(Map::is_empty);
    let manual = empty("selector") && spec.get("clusterIP").and_then(Value::as_str) == Some("None");
    let no_families = spec.get("ipFamilies").and_then(Value::as_array).is_none_or(Vec::is_empty);
    let policy = spec.get("ipFamilyPolicy").and_then(Value::as_str).map(str::to_owned);
    if manual && no_families && policy.as_deref().is_none_or(|p| p == "RequireDualStack") {
        spec.insert("ipFamilies".into(), json!(["IPv4", "IPv6"]));
        set_default(spec, "ipFamilyPolicy", "RequireDualStack");
        return;
    }
    if no_families {
        spec.insert("ipFamilies".into(), json!(["IPv4"]));
    }
    let both = spec["ipFamilies"].as_array().is_some_and(|f| f.len() > 1);
    set_default(spec, "ipFamilyPolicy", if both { "RequireDualStack" } else { "SingleStack" });
}

/// What was allocated stays when an update leaves it out.
fn keep_allocated(spec: &mut Map<String, Value>, old: &Value) {
    let kind = spec.get("type").and_then(Value::as_str).unwrap_or("").to_owned();
    let unset = |spec: &Map<String, Value>, key: &str| match spec.get(key) {
        None | Some(Value::Null) => true,
        Some(Value::String(text)) => text.is_empty(),
        Some(Value::Array(items)) => items.is_empty(),
        Some(_) => false,
    };
    if needs_cluster_ip(text(old, "type")) && needs_cluster_ip(&kind) {
        if unset(spec, "clusterIP") && unset(spec, "clusterIPs") {
            for key in ["clusterIP", "clusterIPs"] {
                copy(spec, old, key);
            }
        } else if unset(spec, "clusterIPs") && spec.get("clusterIP") == old.get("clusterIP") {
            copy(spec, old, "clusterIPs");
        }
        for key in ["ipFamilies", "ipFamilyPolicy"] {
            if unset(spec, key) {
                copy(spec, old, key);
            }
        }
    }
    if needs_node_port(old) && matches!(&*kind, "NodePort" | "LoadBalancer") {
        let same = |a: &Value, b: &Map<String, Value>| {
            text(a, "protocol") == b.get("protocol").and_then(Value::as_str).unwrap_or("")
                && a.get("port") == b.get("port")
        };
        for port in maps_mut(spec, "ports") {
            let before = list(old, "ports").iter().find(|p| same(p, port)).and_then(|p| p.get("nodePort"));
            if let Some(number) = before.cloned() {
                set_default(port, "nodePort", number);
            }
        }
    }
    if int(old, "healthCheckNodePort").is_some()
        && kind == "LoadBalancer"
        && spec.get("externalTrafficPolicy").and_then(Value::as_str) == Some("Local")
        && unset(spec, "healthCheckNodePort")
    {
        copy(spec, old, "healthCheckNodePort");
    }
}

fn copy(spec: &mut Map<String, Value>, old: &Value, key: &str) {
    if let Some(value) = old.get(key) {
        spec.insert(key.into(), value.clone());
    }
}

/// What the old type needed and the new one does not, goes, unless it was changed by hand.
fn drop_unneeded(spec: &mut Map<String, Value>, old: &Value) {
    let kind = spec.get("type").and_then(Value::as_str).unwrap_or("").to_owned();
    if needs_cluster_ip(text(old, "type")) && !needs_cluster_ip(&kind) {
        for key in ["clusterIP", "clusterIPs", "ipFamilies", "ipFamilyPolicy", "internalTrafficPolicy"] {
            if spec.get(key) == old.get(key) {
                spec.shift_remove(key);
            }
        }
    }
    if needs_node_port(old) && !matches!(&*kind, "NodePort" | "LoadBalancer") {
        for (i, port) in maps_mut(spec, "ports").enumerate() {
            if port.get("nodePort") == list(old, "ports").get(i).and_then(|p| p.get("nodePort")) {
                port.shift_remove("nodePort");
            }
        }
    }
    let external = matches!(&*kind, "NodePort" | "LoadBalancer");
    for (key, needed) in [
        ("externalTrafficPolicy", external),
        ("allocateLoadBalancerNodePorts", kind == "LoadBalancer"),
        ("loadBalancerClass", kind == "LoadBalancer"),
        ("healthCheckNodePort", kind == "LoadBalancer"),
    ] {
        if !needed && spec.get(key) == old.get(key) {
            spec.shift_remove(key);
        }
    }
}

fn external(obj: &Object) -> String {
    let spec = spec(obj);
    let own = texts(spec, "externalIPs").collect::<Vec<_>>().join(",");
    match text(spec, "type") {
        "ExternalName" => text(spec, "externalName").to_owned(),
        "LoadBalancer" => {
            let given = balancer_addresses(or_null(status(obj), "loadBalancer"));
            match (&*given, &*own) {
                ("", "") => "<pending>".into(),
                (given, "") => given.into(),
                ("", own) => own.into(),
                (given, own) => format!("{given},{own}"),
            }
        }
        _ if own.is_empty() => "<none>".into(),
        _ => own,
    }
}

/// The addresses or names of a load balancer, cut to a column's width.
pub(crate) fn balancer_addresses(balancer: &Value) -> String {
    let mut all: Vec<&str> = Vec::new();
    for ingress in list(balancer, "ingress") {
        let address = [text(ingress, "ip"), text(ingress, "hostname")].into_iter().find(|a| !a.is_empty());
        all.extend(address.filter(|a| !all.contains(a)));
    }
    all.sort_unstable();
    let joined = all.join(",");
    match joined.char_indices().nth(ADDRESS_WIDTH) {
        Some(_) => joined.chars().take(ADDRESS_WIDTH - 3).collect::<String>() + "...",
        None => joined,
    }
}

fn ports(ports: &[Value]) -> String {
    if ports.is_empty() {
        return "<none>".into();
    }
    let shown = |port: &Value| {
        let (number, protocol) = (int(port, "port").unwrap_or(0), text(port, "protocol"));
        match int(port, "nodePort").filter(|n| *n > 0) {
            Some(node) => format!("{number}:{node}/{protocol}"),
            None => format!("{number}/{protocol}"),
        }
    };
    ports.iter().map(shown).collect::<Vec<_>>().join(",")
}

/// Whether it is a service without a cluster address.
pub(crate) fn is_headless(obj: &Object) -> bool {
    in_spec(obj, &["clusterIP"]).as_str() == Some("None")
        || texts(spec(obj), "clusterIPs").next() == Some("None")
}
