//! SRV records of the Kubernetes DNS specification: the ports of a Service, and behind a headless one those of
//! each of its pods.

use std::{net::IpAddr, sync::Arc};

use wasmk_api::k8s_openapi::api::{
    core::v1::{Service, ServicePort},
    discovery::v1::{Endpoint, EndpointSlice},
};

use crate::{
    names::{DOMAIN, serves},
    plan::slice_port,
    view::View,
};

/// The sum of the weights of a name's records.
const WEIGHT: usize = 100;

/// One record; all have the same priority.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Srv {
    pub(crate) weight: u16,
    pub(crate) port: u16,
    /// A name of the cluster.
    pub(crate) target: String,
}

/// A name that has SRV records: a Service's, or that of one of its ports.
#[derive(Debug, PartialEq, Eq)]
struct Name<'a> {
    namespace: &'a str,
    service: &'a str,
    /// Name and protocol of the port.
    port: Option<(&'a str, &'a str)>,
}

impl<'a> Name<'a> {
    /// Reads a name of the cluster, in lower case.
    fn read(name: &'a str) -> Option<Self> {
        let bare = name.strip_suffix(DOMAIN)?.strip_suffix(".svc.")?;
        let parts: Vec<&str> = bare.split('.').collect();
        match parts[..] {
            [service, namespace] => Some(Self { namespace, service, port: None }),
            [port, protocol, service, namespace] => {
                let port = Some((port.strip_prefix('_')?, protocol.strip_prefix('_')?));
                Some(Self { namespace, service, port })
            }
            _ => None,
        }
    }

    fn means(&self, port: &ServicePort) -> bool {
        let (name, protocol) =
            (port.name.as_deref().unwrap_or(""), port.protocol.as_deref().unwrap_or("TCP"));
        self.port.is_none_or(|(n, p)| n == name && p.eq_ignore_ascii_case(protocol))
    }
}

/// The records of a name; none when nothing behind it is ready. `None` for a name that there is not.
pub(crate) fn resolve(view: &View, name: &str) -> Option<Vec<Srv>> {
    let name = Name::read(name)?;
    let service = view.service(name.namespace, name.service)?;
    let slices = view.slices();
    records(&service, slices.of(name.namespace, name.service), &name)
}

fn records(service: &Service, slices: &[Arc<EndpointSlice>], name: &Name) -> Option<Vec<Srv>> {
    let spec = service.spec.as_ref()?;
    let ports: Vec<&ServicePort> = spec.ports.iter().flatten().filter(|port| name.means(port)).collect();
    let base = format!("{}.{}.svc.{DOMAIN}", name.service, name.namespace);
    let number = |port: &ServicePort| u16::try_from(port.port).ok();
    let has_address = spec.cluster_ip.as_deref().is_some_and(|ip| ip.parse::<IpAddr>().is_ok());
    let mut found: Vec<(u16, String)> = match has_address {
        true => ports.iter().filter_map(|port| Some((number(port)?, base.clone()))).collect(),
        false => {
            let all = spec.publish_not_ready_addresses == Some(true);
            let of_slice = |slice: &Arc<EndpointSlice>| behind(slice, &ports, all, &base);
            slices.iter().flat_map(of_slice).collect()
        }
    };
    // A port that there is not has no name either.
    if name.port.is_some() && ports.is_empty() {
        return None;
    }
    found.sort();
    found.dedup();
    let weight = u16::try_from((WEIGHT / found.len().max(1)).max(1)).unwrap_or(1);
    Some(found.into_iter().map(|(port, target)| Srv { weight, port, target }).collect())
}

/// The ports of a slice's endpoints, each at the endpoint's own name.
fn behind(slice: &EndpointSlice, ports: &[&ServicePort], all: bool, base: &str) -> Vec<(u16, String)> {
    let endpoints = slice.endpoints.iter().flatten().filter(|e| serves(e, all));
    let names: Vec<String> = endpoints.flat_map(hosts).map(|host| format!("{host}.{base}")).collect();
    let numbers = ports.iter().filter_map(|port| slice_port(slice, port));
    numbers.flat_map(|number| names.iter().map(move |name| (number, name.clone()))).collect()
}

/// What an endpoint is called below its Service: its host name, or its addresses with dashes.
fn hosts(endpoint: &Endpoint) -> Vec<String> {
    match &endpoint.hostname {
        Some(host) => vec![host.clone()],
        None => endpoint.addresses.iter().map(|address| dashed(address)).collect(),
    }
}

/// An address as a label of a name.
pub(crate) fn dashed(address: &str) -> String {
    address.replace(['.', ':'], "-")
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};
    use wasmk_api::labels::SERVICE_NAME;

    use super::*;

    #[test]
    fn names_are_read() {
        let read = |name| Name::read(name).map(|n| (n.namespace, n.service, n.port));
        assert_eq!(read("web.shop.svc.cluster.local"), Some(("shop", "web", None)));
        let port = Some(("http", "tcp"));
        assert_eq!(read("_http._tcp.web.shop.svc.cluster.local"), Some(("shop", "web", port)));
        for other in ["http.tcp.web.shop.svc.cluster.local", "shop.svc.cluster.local", "web.shop.example.com"]
        {
            assert_eq!(read(other), None, "{other}");
        }
    }

    #[test]
    fn ports_of_services_and_of_their_pods() {
        let slice: EndpointSlice = serde_json::from_value(json!({
            "metadata": {"namespace": "shop", "labels": {SERVICE_NAME: "web"}}, "addressType": "IPv4",
            "ports": [{"name": "http", "port": 8080}],
            "endpoints": [
                {"addresses": ["127.42.0.3"], "hostname": "web-0"},
                {"addresses": ["127.42.0.4"]},
                {"addresses": ["127.42.0.5"], "conditions": {"ready": false}},
            ],
        }))
        .unwrap();
        let slices = [Arc::new(slice)];
        let check = |ip: &str, name: &str, expect: Option<&[&str]>| {
            let ports: Value =
                json!([{"name": "http", "port": 80}, {"name": "dns", "port": 53, "protocol": "UDP"}]);
            let service = json!({"metadata": {}, "spec": {"clusterIP": ip, "ports": ports}});
            let service: Service = serde_json::from_value(service).unwrap();
            let name = format!("{name}web.shop.svc.cluster.local");
            let found = records(&service, &slices, &Name::read(&name).unwrap());
            let show = |r: &Srv| {
                format!(
                    "{} {} {}",
                    r.weight,
                    r.port,
                    r.target.strip_suffix(".shop.svc.cluster.local").unwrap()
                )
            };
            let shown: Option<Vec<String>> = found.map(|all| all.iter().map(show).collect());
            assert_eq!(shown, expect.map(|e| e.iter().map(ToString::to_string).collect()), "{ip} {name}");
        };
        check("127.43.0.9", "_http._tcp.", Some(&["100 80 web"]));
        check("127.43.0.9", "_dns._udp.", Some(&["100 53 web"]));
        check("127.43.0.9", "_dns._tcp.", None);
        check("127.43.0.9", "_none._tcp.", None);
        check("127.43.0.9", "", Some(&["50 53 web", "50 80 web"]));
        check("None", "_http._tcp.", Some(&["50 8080 127-42-0-4.web", "50 8080 web-0.web"]));
        check("None", "_dns._udp.", Some(&[]));
    }
}
