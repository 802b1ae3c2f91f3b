//! Ingresses, and the classes of what serves them.

use serde_json::Value;
use wasmk_api::{Object, Timestamp};
use wasmk_machinery::names;

use crate::core::service::balancer_addresses;
use crate::core::service_validate::load_balancer;
use crate::errors::{At, Errors};
use crate::fields::{in_spec, spec, status};
use crate::meta::IMMUTABLE;
use crate::table::age;
use crate::value::{get, int, list, or_null, set_default, some_map, text, text_at, texts};
use crate::{Column, Kind, columns, domain_path, ports};

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
