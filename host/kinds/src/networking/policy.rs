//! Network policies: who may talk to pods, and whom pods may talk to.

use serde_json::Value;
use wasmk_api::{Object, Timestamp};
use wasmk_machinery::names;

use crate::errors::{At, Errors};
use crate::fields::{in_spec, spec};
use crate::table::age;
use crate::value::{get, int, list, maps_mut, or_null, set_default, some_map, text, text_at, texts};
use crate::{Column, Kind, columns, net, ports, selector};

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

    fn warnings(&self, obj: &Object, _old: Option<&Object>) -> Vec<String> {
        without_effect(spec(obj))
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

/// What is accepted as elsewhere and changes nothing here.
fn without_effect(spec: &Value) -> Vec<String> {
    let mut all = Vec::new();
    for (direction, peers) in [("ingress", "from"), ("egress", "to")] {
        for (i, rule) in list(spec, direction).iter().enumerate() {
            let at = format!("spec.{direction}[{i}]");
            for (j, port) in list(rule, "ports").iter().enumerate() {
                if text(port, "protocol") == "SCTP" {
                    let why = "Wasm pods have no SCTP, so this opens nothing for them";
                    all.push(format!("{at}.ports[{j}].protocol: {why}"));
                }
            }
            for (j, peer) in list(rule, peers).iter().enumerate() {
                if get(peer, "ipBlock").is_some_and(|block| text(block, "cidr").contains(':')) {
                    let why = "pods here have IPv4 addresses only, so this means nobody";
                    all.push(format!("{at}.{peers}[{j}].ipBlock.cidr: {why}"));
                }
            }
        }
    }
    all
}
