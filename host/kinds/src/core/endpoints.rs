//! `Endpoints` and `EndpointSlice`.

use serde_json::Value;
use wasmk_api::{Object, Timestamp};
use wasmk_machinery::names;

use crate::errors::{At, Errors};
use crate::fields::top;
use crate::meta::IMMUTABLE;
use crate::net;
use crate::ports;
use crate::table::age;
use crate::value::{entries, int, list, maps_mut, or_null, set_default, text, text_at, texts};
use crate::{Column, Kind, columns, meta};

/// How many endpoints a table names.
const SHOWN: usize = 3;

/// `Endpoints`.
pub(crate) struct Endpoints;

impl Kind for Endpoints {
    fn set_defaults(&self, obj: &mut Object) {
        for subset in maps_mut(&mut obj.0, "subsets") {
            maps_mut(subset, "ports").for_each(|port| set_default(port, "protocol", "TCP"));
        }
    }

    fn check(&self, obj: &Object, errors: &mut Errors) {
        let at = At::new("subsets");
        for (i, subset) in top(obj, "subsets").as_array().into_iter().flatten().enumerate() {
            check_subset(subset, &at.index(i), errors);
        }
    }

    fn columns(&self) -> &'static [Column] {
        columns::of("/Endpoints")
    }

    fn row(&self, obj: &Object, now: Timestamp) -> Vec<Value> {
        vec![obj.name().into(), shown(top(obj, "subsets")).into(), age(obj, now)]
    }

    fn creates_on_update(&self) -> bool {
        true
    }
}

fn shown(subsets: &Value) -> String {
    let mut all = Vec::new();
    for subset in subsets.as_array().into_iter().flatten() {
        let ports = list(subset, "ports");
        for ip in list(subset, "addresses").iter().map(|a| text(a, "ip")) {
            if ports.is_empty() {
                all.push(ip.to_owned());
            }
            let with_port = |port: &Value| {
                let number = int(port, "port").unwrap_or(0);
                if ip.contains(':') { format!("[{ip}]:{number}") } else { format!("{ip}:{number}") }
            };
            all.extend(ports.iter().map(with_port));
        }
    }
    match all.len() {
        0 => "<none>".into(),
        count if count > SHOWN => format!("{} + {} more...", all[..SHOWN].join(","), count - SHOWN),
        _ => all.join(","),
    }
}

fn check_subset(subset: &Value, at: &At<'_>, errors: &mut Errors) {
    let (ready, unready) = (list(subset, "addresses"), list(subset, "notReadyAddresses"));
    if ready.is_empty() && unready.is_empty() {
        errors.required(at, "must specify `addresses` or `notReadyAddresses`");
    }
    for (key, addresses) in [("addresses", ready), ("notReadyAddresses", unready)] {
        let at = at.field(key);
        for (i, address) in addresses.iter().enumerate() {
            check_address(address, &at.index(i), errors);
        }
    }
    let all = list(subset, "ports");
    let at = at.field("ports");
    for (i, port) in all.iter().enumerate() {
        let at = at.index(i);
        let name = text(port, "name");
        if name.is_empty() && all.len() > 1 {
            errors.required(&at.field("name"), "");
        }
        if !name.is_empty() {
            for why in names::dns1123_label(name) {
                errors.invalid_text(&at.field("name"), name, &why);
            }
        }
        ports::number(int(port, "port").unwrap_or(0), &at.field("port"), errors);
        ports::protocol(text(port, "protocol"), &at.field("protocol"), errors);
    }
}

fn check_address(address: &Value, at: &At<'_>, errors: &mut Errors) {
    let ip = text(address, "ip");
    net::ip(ip, &at.field("ip"), errors);
    let host = text(address, "hostname");
    if !host.is_empty() {
        for why in names::dns1123_label(host) {
            errors.invalid_text(&at.field("hostname"), host, &why);
        }
    }
    if let Some(node) = text_at(address, "nodeName") {
        for why in names::dns1123_subdomain(node) {
            errors.invalid_text(&at.field("nodeName"), node, &why);
        }
    }
    net::not_special(ip, &at.field("ip"), errors);
}

const ADDRESS_TYPES: [&str; 3] = ["FQDN", "IPv4", "IPv6"];
const MAX_ADDRESSES: usize = 100;
const MAX_ENDPOINTS: usize = 1000;
const MAX_PORTS: usize = 20_000;
const MAX_HINTS: usize = 8;

/// `EndpointSlice`.
pub(crate) struct EndpointSlice;

impl Kind for EndpointSlice {
    fn set_defaults(&self, obj: &mut Object) {
        for port in maps_mut(&mut obj.0, "ports") {
            set_default(port, "name", "");
            set_default(port, "protocol", "TCP");
        }
    }

    /// This version of the API has no topology but the node's name.
    fn prepare_create(&self, obj: &mut Object) {
        maps_mut(&mut obj.0, "endpoints").for_each(|endpoint| {
            endpoint.shift_remove("deprecatedTopology");
        });
    }

    fn check(&self, obj: &Object, errors: &mut Errors) {
        let kind = top(obj, "addressType").as_str().unwrap_or("");
        match kind {
            "" => errors.required(&At::new("addressType"), ""),
            kind if ADDRESS_TYPES.contains(&kind) => {}
            other => errors.unsupported(&At::new("addressType"), other, &ADDRESS_TYPES),
        }
        slice_endpoints(top(obj, "endpoints"), kind, errors);
        slice_ports(top(obj, "ports"), errors);
    }

    fn check_update(&self, new: &Object, old: &Object, errors: &mut Errors) {
        self.check(new, errors);
        if top(new, "addressType") != top(old, "addressType") {
            errors.invalid(&At::new("addressType"), top(new, "addressType"), IMMUTABLE);
        }
    }

    fn warnings(&self, obj: &Object, _old: Option<&Object>) -> Vec<String> {
        match top(obj, "addressType").as_str() {
            Some("FQDN") => vec!["spec.addressType: FQDN endpoints are deprecated".into()],
            _ => Vec::new(),
        }
    }

    fn columns(&self) -> &'static [Column] {
        columns::of("discovery.k8s.io/EndpointSlice")
    }

    fn row(&self, obj: &Object, now: Timestamp) -> Vec<Value> {
        let ports: Vec<String> = top(obj, "ports")
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(|port| match int(port, "port") {
                Some(number) => Some(number.to_string()),
                None => Some(text(port, "name").to_owned()).filter(|name| !name.is_empty()),
            })
            .collect();
        let endpoints: Vec<&str> = top(obj, "endpoints")
            .as_array()
            .into_iter()
            .flatten()
            .flat_map(|e| texts(e, "addresses"))
            .collect();
        vec![
            obj.name().into(),
            top(obj, "addressType").clone(),
            some_of(&ports).into(),
            some_of(&endpoints).into(),
            age(obj, now),
        ]
    }

    fn has_generation(&self) -> bool {
        true
    }

    fn spec_changed(&self, new: &Object, old: &Object) -> bool {
        ["addressType", "endpoints", "ports"].iter().any(|key| top(new, key) != top(old, key))
    }
}

fn some_of<S: AsRef<str>>(items: &[S]) -> String {
    if items.is_empty() {
        return "<unset>".into();
    }
    let shown: Vec<&str> = items.iter().take(SHOWN).map(AsRef::as_ref).collect();
    match items.len() > SHOWN {
        true => format!("{} + {} more...", shown.join(","), items.len() - SHOWN),
        false => shown.join(","),
    }
}

fn slice_endpoints(endpoints: &Value, kind: &str, errors: &mut Errors) {
    let endpoints = endpoints.as_array().map_or(&[][..], Vec::as_slice);
    let at = At::new("endpoints");
    if endpoints.len() > MAX_ENDPOINTS {
        errors.too_many(&at, endpoints.len(), MAX_ENDPOINTS);
        return;
    }
    for (i, endpoint) in endpoints.iter().enumerate() {
        slice_endpoint(endpoint, kind, &at.index(i), errors);
    }
}

fn slice_endpoint(endpoint: &Value, kind: &str, at: &At<'_>, errors: &mut Errors) {
    let addresses: Vec<&str> = texts(endpoint, "addresses").collect();
    let place = at.field("addresses");
    if addresses.is_empty() {
        errors.required(&place, "must contain at least 1 address");
    } else if addresses.len() > MAX_ADDRESSES {
        errors.too_many(&place, addresses.len(), MAX_ADDRESSES);
    }
    for (i, address) in addresses.iter().enumerate() {
        slice_address(address, kind, &place.index(i), errors);
    }
    if let Some(node) = text_at(endpoint, "nodeName") {
        for why in names::dns1123_subdomain(node) {
            errors.invalid_text(&at.field("nodeName"), node, &why);
        }
    }
    meta::label_map(entries(endpoint, "deprecatedTopology"), &at.field("deprecatedTopology"), errors);
    if let Some(host) = text_at(endpoint, "hostname") {
        for why in names::dns1123_label(host) {
            errors.invalid_text(&at.field("hostname"), host, &why);
        }
    }
    let hints = or_null(endpoint, "hints");
    let place = at.field("hints");
    for key in ["forZones", "forNodes"] {
        let all = list(hints, key);
        if all.len() > MAX_HINTS {
            errors.too_many(&place.field(key), all.len(), MAX_HINTS);
        }
    }
}

fn slice_address(address: &str, kind: &str, at: &At<'_>, errors: &mut Errors) {
    match kind {
        "FQDN" => {
            for why in names::dns1123_subdomain(address) {
                errors.invalid_text(at, address, &why);
            }
        }
        "IPv4" | "IPv6" => {
            let Some(ip) = net::ip(address, at, errors) else { return };
            if ip.is_ipv4() != (kind == "IPv4") {
                errors.invalid_text(at, address, &format!("must be an {kind} address"));
            }
            net::not_special(address, at, errors);
        }
        _ => {}
    }
}

fn slice_ports(ports: &Value, errors: &mut Errors) {
    let all = ports.as_array().map_or(&[][..], Vec::as_slice);
    let at = At::new("ports");
    if all.len() > MAX_PORTS {
        errors.too_many(&at, all.len(), MAX_PORTS);
        return;
    }
    for (i, port) in all.iter().enumerate() {
        let at = at.index(i);
        let name = text(port, "name");
        if !name.is_empty() {
            for why in names::dns1123_label(name) {
                errors.invalid_text(&at.field("name"), name, &why);
            }
        }
        if all[..i].iter().any(|other| text(other, "name") == name) {
            errors.duplicate_text(&at.field("name"), name);
        }
        ports::protocol(text(port, "protocol"), &at.field("protocol"), errors);
        if let Some(number) = int(port, "port") {
            ports::number(number, &at.field("port"), errors);
        }
        if let Some(protocol) = text_at(port, "appProtocol") {
            for why in names::qualified_name(protocol) {
                errors.invalid_text(&at.field("appProtocol"), protocol, &why);
            }
        }
    }
}
