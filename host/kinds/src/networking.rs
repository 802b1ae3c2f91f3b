//! Kinds of the group `networking.k8s.io`.

use serde_json::Value;
use wasmk_api::{Object, Timestamp};
use wasmk_machinery::names;

use crate::core::service::balancer_addresses;
use crate::core::service_validate::load_balancer;
use crate::errors::{At, Errors};
use crate::fields::{in_spec, spec, status};
use crate::meta::IMMUTABLE;
use crate::table::{age, or};
use crate::value::{entries, get, int, list, maps_mut, or_null, set_default, some_map, text, text_at, texts};
use crate::{Column, Kind, columns, domain_path, net, ports, selector};

/// The annotation that named an ingress class before the field did.
const CLASS_ANNOTATION: &str = "kubernetes.io/ingress.class";

/// `Ingress`.
pub(crate) struct Ingress;

impl Kind for Ingress {
    fn check(&self, obj: &Object, errors: &mut Errors) {
        if let (Some(annotated), Some(class)) =
            (obj.annotation(CLASS_ANNOTATION), text_at(spec(obj), "ingressClassName"))
            && annotated != class
        {
            let at = At::new("annotations");
            let why = "must match `ingressClassName` when both are specified";
            errors.invalid_text(&at.field(CLASS_ANNOTATION), annotated, why);
        }
        ingress_spec(spec(obj), errors);
    }

    fn check_update(&self, new: &Object, _old: &Object, errors: &mut Errors) {
        ingress_spec(spec(new), errors);
    }

    fn check_status(&self, new: &Object, _old: &Object, errors: &mut Errors) {
        let at = At::new("status");
        load_balancer(or_null(status(new), "loadBalancer"), &at.field("loadBalancer"), errors);
    }

    fn warnings(&self, obj: &Object, old: Option<&Object>) -> Vec<String> {
        let mut warnings = Vec::new();
        if old.is_none() && obj.annotation(CLASS_ANNOTATION).is_some() {
            warnings.push(format!(
                "annotation \"{CLASS_ANNOTATION}\" is deprecated, please use 'spec.ingressClassName' instead"
            ));
        }
        warnings
    }

    fn columns(&self) -> &'static [Column] {
        columns::of("networking.k8s.io/Ingress")
    }

    fn row(&self, obj: &Object, now: Timestamp) -> Vec<Value> {
        let class = text_at(spec(obj), "ingressClassName").unwrap_or("<none>");
        let ports = if list(spec(obj), "tls").is_empty() { "80" } else { "80, 443" };
        vec![
            obj.name().into(),
            class.into(),
            hosts(list(spec(obj), "rules")).into(),
            balancer_addresses(or_null(status(obj), "loadBalancer")).into(),
            ports.into(),
            age(obj, now),
        ]
    }

    fn has_generation(&self) -> bool {
        true
    }
}

fn hosts(rules: &[Value]) -> String {
    const SHOWN: usize = 3;
    let hosts: Vec<&str> = rules.iter().map(|rule| text(rule, "host")).filter(|h| !h.is_empty()).collect();
    match hosts.len() {
        0 => "*".into(),
        count if count > SHOWN => format!("{} + {} more...", hosts[..SHOWN].join(","), count - SHOWN),
        _ => hosts.join(","),
    }
}

fn ingress_spec(spec: &Value, errors: &mut Errors) {
    let at = At::new("spec");
    let (rules, default) = (list(spec, "rules"), or_null(spec, "defaultBackend"));
    if rules.is_empty() && default.is_null() {
        let why = "either `defaultBackend` or `rules` must be specified";
        errors.invalid(&at, &Value::Null, why);
    }
    if !default.is_null() {
        backend(default, &at.field("defaultBackend"), errors);
    }
    let place = at.field("rules");
    for (i, rule) in rules.iter().enumerate() {
        ingress_rule(rule, &place.index(i), errors);
    }
    let place = at.field("tls");
    for (i, tls) in list(spec, "tls").iter().enumerate() {
        let at = place.index(i);
        let hosts_at = at.field("hosts");
        for (j, host) in texts(tls, "hosts").enumerate() {
            host_name(host, &hosts_at.index(j), errors);
        }
        let secret = text(tls, "secretName");
        if !secret.is_empty() {
            for why in names::dns1123_subdomain(secret) {
                errors.invalid_text(&at.field("secretName"), secret, &why);
            }
        }
    }
    if let Some(class) = text_at(spec, "ingressClassName") {
        for why in names::dns1123_subdomain(class) {
            errors.invalid_text(&at.field("ingressClassName"), class, &why);
        }
    }
}

fn host_name(host: &str, at: &At<'_>, errors: &mut Errors) {
    let wrong = if host.contains('*') {
        names::wildcard_dns1123_subdomain(host)
    } else {
        names::dns1123_subdomain(host)
    };
    for why in wrong {
        errors.invalid_text(at, host, &why);
    }
}

fn ingress_rule(rule: &Value, at: &At<'_>, errors: &mut Errors) {
    let host = text(rule, "host");
    if !host.is_empty() {
        if host.parse::<std::net::IpAddr>().is_ok() {
            errors.invalid_text(&at.field("host"), host, "must be a DNS name, not an IP address");
        }
        host_name(host, &at.field("host"), errors);
    }
    let Some(http) = get(rule, "http") else { return };
    let http_at = at.field("http");
    let at = http_at.field("paths");
    if list(http, "paths").is_empty() {
        errors.required(&at, "");
    }
    for (i, path) in list(http, "paths").iter().enumerate() {
        ingress_path(path, &at.index(i), errors);
    }
}

const BAD_SEQUENCES: [&str; 5] = ["//", "/./", "/../", "%2f", "%2F"];
const BAD_ENDINGS: [&str; 2] = ["/..", "/."];

fn ingress_path(path: &Value, at: &At<'_>, errors: &mut Errors) {
    let (text_of, place) = (text(path, "path"), at.field("path"));
    match text_at(path, "pathType") {
        None => errors.required(&at.field("pathType"), "pathType must be specified"),
        Some("Exact" | "Prefix") => {
            if !text_of.starts_with('/') {
                errors.invalid_text(&place, text_of, "must be an absolute path");
            }
            for part in BAD_SEQUENCES.iter().filter(|part| text_of.contains(**part)) {
                errors.invalid_text(&place, text_of, &format!("must not contain '{part}'"));
            }
            for part in BAD_ENDINGS.iter().filter(|part| text_of.ends_with(**part)) {
                errors.invalid_text(&place, text_of, &format!("cannot end with '{part}'"));
            }
        }
        Some("ImplementationSpecific") => {
            if !text_of.is_empty() && !text_of.starts_with('/') {
                errors.invalid_text(&place, text_of, "must be an absolute path");
            }
        }
        Some(other) => {
            errors.unsupported(&at.field("pathType"), other, &["Exact", "ImplementationSpecific", "Prefix"]);
        }
    }
    backend(or_null(path, "backend"), &at.field("backend"), errors);
}

fn backend(backend: &Value, at: &At<'_>, errors: &mut Errors) {
    let (service, resource) = (get(backend, "service"), get(backend, "resource"));
    match (service, resource) {
        (Some(_), Some(_)) => {
            errors.invalid_text(at, "", "cannot set both resource and service backends");
        }
        (None, Some(resource)) => local_reference(resource, &at.field("resource"), errors),
        (service, _) => {
            let service = service.unwrap_or(&crate::value::NULL);
            service_backend(service, at, errors);
        }
    }
}

fn service_backend(service: &Value, at: &At<'_>, errors: &mut Errors) {
    let place = at.field("service");
    let name = text(service, "name");
    if name.is_empty() {
        errors.required(&place.field("name"), "");
    } else {
        for why in names::dns1123_label(name) {
            errors.invalid_text(&place.field("name"), name, &why);
        }
    }
    let port = or_null(service, "port");
    let (number, name) = (int(port, "number").unwrap_or(0), text(port, "name"));
    let place = place.field("port");
    match (number, name) {
        (0, "") => errors.required(at, "port name or number is required"),
        (0, name) => {
            for why in names::port_name(name) {
                errors.invalid_text(&place.field("name"), name, &why);
            }
        }
        (number, "") => ports::number(number, &place.field("number"), errors),
        _ => errors.invalid_text(at, "", "cannot set both port name & port number"),
    }
}

/// Checks a reference to an object of any kind in the same namespace.
fn local_reference(reference: &Value, at: &At<'_>, errors: &mut Errors) {
    for (key, why) in [("kind", ""), ("name", "")] {
        if text(reference, key).is_empty() {
            errors.required(&at.field(key), why);
        }
    }
    let group = text(reference, "apiGroup");
    if !group.is_empty() {
        for why in names::dns1123_subdomain(group) {
            errors.invalid_text(&at.field("apiGroup"), group, &why);
        }
    }
    for key in ["kind", "name"] {
        for why in names::path_segment(text(reference, key)) {
            errors.invalid_text(&at.field(key), text(reference, key), &why);
        }
    }
}

/// `IngressClass`.
pub(crate) struct IngressClass;

impl Kind for IngressClass {
    fn set_defaults(&self, obj: &mut Object) {
        let parameters = some_map(&mut obj.0, "spec").and_then(|spec| some_map(spec, "parameters"));
        if let Some(parameters) = parameters {
            set_default(parameters, "scope", "Cluster");
        }
    }

    fn check(&self, obj: &Object, errors: &mut Errors) {
        let at = At::new("spec");
        let controller = text(spec(obj), "controller");
        let place = at.field("controller");
        if controller.len() > 250 {
            errors.too_long(&place, 250);
        }
        domain_path::check(controller, &place, errors);
        if let Some(parameters) = get(spec(obj), "parameters") {
            class_parameters(parameters, &at.field("parameters"), errors);
        }
    }

    fn check_update(&self, new: &Object, old: &Object, errors: &mut Errors) {
        let at = At::new("spec");
        let controller = in_spec(new, &["controller"]);
        if controller != in_spec(old, &["controller"]) {
            errors.invalid(&at.field("controller"), controller, IMMUTABLE);
        }
        if let Some(parameters) = get(spec(new), "parameters") {
            class_parameters(parameters, &at.field("parameters"), errors);
        }
    }

    fn columns(&self) -> &'static [Column] {
        columns::of("networking.k8s.io/IngressClass")
    }

    fn row(&self, obj: &Object, now: Timestamp) -> Vec<Value> {
        let parameters = match get(spec(obj), "parameters") {
            None => "<none>".to_owned(),
            Some(p) => {
                let group = text(p, "apiGroup");
                let dot = if group.is_empty() { "" } else { "." };
                format!("{}{dot}{group}/{}", text(p, "kind"), text(p, "name"))
            }
        };
        vec![obj.name().into(), text(spec(obj), "controller").into(), parameters.into(), age(obj, now)]
    }

    fn has_generation(&self) -> bool {
        true
    }
}

fn class_parameters(parameters: &Value, at: &At<'_>, errors: &mut Errors) {
    local_reference(parameters, at, errors);
    let namespace = text_at(parameters, "namespace");
    match text(parameters, "scope") {
        "" => errors.required(&at.field("scope"), ""),
        "Namespace" => match namespace {
            None | Some("") => {
                errors.required(&at.field("namespace"), "`parameters.scope` is set to 'Namespace'");
            }
            Some(namespace) => {
                for why in names::dns1123_label(namespace) {
                    errors.invalid_text(&at.field("namespace"), namespace, &why);
                }
            }
        },
        "Cluster" if namespace.is_some() => {
            errors.forbidden(&at.field("namespace"), "`parameters.scope` is set to 'Cluster'");
        }
        "Cluster" => {}
        other => errors.unsupported(&at.field("scope"), other, &["Cluster", "Namespace"]),
    }
}

/// `NetworkPolicy`.
pub(crate) struct NetworkPolicy;

impl Kind for NetworkPolicy {
    fn set_defaults(&self, obj: &mut Object) {
        let Some(spec) = some_map(&mut obj.0, "spec") else { return };
        for direction in ["ingress", "egress"] {
            for rule in maps_mut(spec, direction) {
                maps_mut(rule, "ports").for_each(|port| set_default(port, "protocol", "TCP"));
            }
        }
        if spec.get("policyTypes").and_then(Value::as_array).is_none_or(Vec::is_empty) {
            let mut types = vec!["Ingress"];
            if spec.get("egress").and_then(Value::as_array).is_some_and(|rules| !rules.is_empty()) {
                types.push("Egress");
            }
            spec.insert("policyTypes".into(), types.into());
        }
    }

    fn check(&self, obj: &Object, errors: &mut Errors) {
        policy_spec(spec(obj), errors);
    }

    fn columns(&self) -> &'static [Column] {
        columns::of("networking.k8s.io/NetworkPolicy")
    }

    fn row(&self, obj: &Object, now: Timestamp) -> Vec<Value> {
        let pods = selector::shown(in_spec(obj, &["podSelector"]));
        vec![obj.name().into(), pods.into(), age(obj, now)]
    }

    fn has_generation(&self) -> bool {
        true
    }
}

fn policy_spec(spec: &Value, errors: &mut Errors) {
    let at = At::new("spec");
    selector::check(or_null(spec, "podSelector"), &at.field("podSelector"), errors);
    for (direction, peers) in [("ingress", "from"), ("egress", "to")] {
        let at = at.field(direction);
        for (i, rule) in list(spec, direction).iter().enumerate() {
            let at = at.index(i);
            let place = at.field("ports");
            for (j, port) in list(rule, "ports").iter().enumerate() {
                policy_port(port, &place.index(j), errors);
            }
            let place = at.field(peers);
            for (j, peer) in list(rule, peers).iter().enumerate() {
                policy_peer(peer, &place.index(j), errors);
            }
        }
    }
    let types: Vec<&str> = texts(spec, "policyTypes").collect();
    let place = at.field("policyTypes");
    if types.len() > 2 {
        errors.invalid(&place, or_null(spec, "policyTypes"), "may not specify more than two policyTypes");
        return;
    }
    for (i, kind) in types.iter().enumerate().filter(|(_, t)| !matches!(**t, "Ingress" | "Egress")) {
        errors.unsupported(&place.index(i), kind, &["Egress", "Ingress"]);
    }
}

fn policy_port(port: &Value, at: &At<'_>, errors: &mut Errors) {
    if let Some(protocol) = text_at(port, "protocol").filter(|p| !ports::PROTOCOLS.contains(p)) {
        errors.unsupported(&at.field("protocol"), protocol, &["TCP", "UDP", "SCTP"]);
    }
    let number = or_null(port, "port");
    let end = int(port, "endPort");
    let place = at.field("endPort");
    match (number, end) {
        (Value::Null, Some(_)) => {
            errors.required(&at.field("port"), "must be specified when `endPort` is set")
        }
        (Value::Null, None) => {}
        (Value::String(name), end) => {
            if let Some(end) = end {
                errors.invalid_int(&place, end, "may not be specified when `port` is non-numeric");
            }
            for why in names::port_name(name) {
                errors.invalid_text(&at.field("port"), name, &why);
            }
        }
        (number, end) => {
            let start = number.as_i64().unwrap_or(0);
            ports::number(start, &at.field("port"), errors);
            if let Some(end) = end {
                if end < start {
                    errors.invalid_int(&place, start, "must be greater than or equal to `port`");
                }
                ports::number(end, &place, errors);
            }
        }
    }
}

fn policy_peer(peer: &Value, at: &At<'_>, errors: &mut Errors) {
    let mut count = 0;
    for key in ["podSelector", "namespaceSelector"] {
        if let Some(found) = get(peer, key) {
            count += 1;
            selector::check(found, &at.field(key), errors);
        }
    }
    if let Some(block) = get(peer, "ipBlock") {
        ip_block(block, &at.field("ipBlock"), errors);
        if count > 0 {
            errors.forbidden(at, "may not specify both ipBlock and another peer");
        }
        count += 1;
    }
    if count == 0 {
        errors.required(at, "must specify a peer");
    }
}

fn ip_block(block: &Value, at: &At<'_>, errors: &mut Errors) {
    let range = text(block, "cidr");
    if range.is_empty() {
        errors.required(&at.field("cidr"), "");
        return;
    }
    let Some(range) = net::cidr(range, &at.field("cidr"), errors) else { return };
    let place = at.field("except");
    for (i, except) in texts(block, "except").enumerate() {
        if let Some(inner) = net::cidr(except, &place.index(i), errors)
            && !range.strictly_contains(inner)
        {
            errors.invalid_text(&place.index(i), except, "must be a strict subset of `cidr`");
        }
    }
}

/// `ServiceCIDR`.
pub(crate) struct ServiceCidr;

impl Kind for ServiceCidr {
    fn check(&self, obj: &Object, errors: &mut Errors) {
        let ranges: Vec<&str> = texts(spec(obj), "cidrs").collect();
        let spec_at = At::new("spec");
        let at = spec_at.field("cidrs");
        if ranges.is_empty() {
            errors.required(&at, "at least one CIDR required");
            return;
        }
        if ranges.len() > 2 {
            let why = "only one CIDR allowed or two if of different families";
            errors.invalid(&at, or_null(spec(obj), "cidrs"), why);
        }
        for (i, range) in ranges.iter().enumerate() {
            net::strict_cidr(range, &at.index(i), errors);
        }
        let family = |range: &str| net::Cidr::parse(range).map(|c| c.address.is_ipv4());
        if let [a, b] = ranges[..]
            && family(a).is_some()
            && family(a) == family(b)
        {
            let why = "only one CIDR allowed or two if of different families";
            errors.invalid(&at, or_null(spec(obj), "cidrs"), why);
        }
    }

    fn check_update(&self, new: &Object, old: &Object, errors: &mut Errors) {
        let at = At::new("spec");
        let (ranges, before) = (in_spec(new, &["cidrs"]), in_spec(old, &["cidrs"]));
        let count = |v: &Value| v.as_array().map_or(0, Vec::len);
        let grows = count(before) == 1 && count(ranges) == 2 && ranges.get(0) == before.get(0);
        if ranges != before && !grows {
            errors.invalid(&at.field("cidrs"), ranges, IMMUTABLE);
        }
        if grows {
            self.check(new, errors);
        }
    }

    fn columns(&self) -> &'static [Column] {
        columns::of("networking.k8s.io/ServiceCIDR")
    }

    fn row(&self, obj: &Object, now: Timestamp) -> Vec<Value> {
        let ranges = texts(spec(obj), "cidrs").collect::<Vec<_>>().join(",");
        vec![obj.name().into(), ranges.into(), age(obj, now)]
    }
}

/// `IPAddress`.
pub(crate) struct IpAddress;

impl Kind for IpAddress {
    fn check(&self, obj: &Object, errors: &mut Errors) {
        let metadata = At::new("metadata");
        let canonical = obj.name().parse::<std::net::IpAddr>().map(|ip| ip.to_string());
        match canonical {
            Err(_) => errors.invalid_text(&metadata.field("name"), obj.name(), net::NOT_AN_IP),
            Ok(text) if text != obj.name() => {
                errors.invalid_text(&metadata.field("name"), obj.name(), "must be in canonical form");
            }
            Ok(_) => {}
        }
        let spec_at = At::new("spec");
        let at = spec_at.field("parentRef");
        let Some(parent) = get(spec(obj), "parentRef") else {
            errors.required(&at, "");
            return;
        };
        for key in ["resource", "name"] {
            if text(parent, key).is_empty() {
                errors.required(&at.field(key), "");
            }
        }
    }

    fn check_update(&self, new: &Object, old: &Object, errors: &mut Errors) {
        let (parent, before) = (in_spec(new, &["parentRef"]), in_spec(old, &["parentRef"]));
        if parent != before {
            let at = At::new("spec");
            errors.invalid(&at.field("parentRef"), parent, IMMUTABLE);
        }
    }

    fn name_rule(&self) -> crate::NameRule {
        crate::NameRule::PathSegment
    }

    fn columns(&self) -> &'static [Column] {
        columns::of("networking.k8s.io/IPAddress")
    }

    fn row(&self, obj: &Object, now: Timestamp) -> Vec<Value> {
        let parent = or_null(spec(obj), "parentRef");
        let mut parts = vec![text(parent, "resource")];
        parts.extend([text(parent, "namespace"), text(parent, "name")].into_iter().filter(|p| !p.is_empty()));
        let group = text(parent, "group");
        let mut shown = parts.join("/");
        if !group.is_empty() {
            shown = shown.replacen(parts[0], &format!("{}.{group}", parts[0]), 1);
        }
        vec![obj.name().into(), or(&shown, "<none>").into(), age(obj, now)]
    }
}

/// Checks the labels of a selector that is a plain map.
pub(crate) fn plain_selector(holder: &Value, key: &str, at: &At<'_>, errors: &mut Errors) {
    crate::meta::label_map(entries(holder, key), &at.field(key), errors);
}
