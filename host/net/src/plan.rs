//! What the service proxy should listen on and where it should send connections. Pure:
//! Services and EndpointSlices in, a table out.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use wasmk_api::{
    k8s_openapi::{
        api::{
            core::v1::{Service, ServicePort},
            discovery::v1::{Endpoint, EndpointSlice},
        },
        apimachinery::pkg::util::intstr::IntOrString,
    },
    proxy_protocol,
};

use crate::slices::Slices;

/// Affinity when the Service does not say how long.
const AFFINITY: Duration = Duration::from_secs(10_800);

/// Transport of a service port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Protocol {
    /// Streams.
    Tcp,
    /// Datagrams.
    Udp,
}

/// An address to listen on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Listener {
    /// Address and port.
    pub address: SocketAddr,
    /// Transport.
    pub protocol: Protocol,
}

/// Where a listener's connections go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Backends {
    /// `namespace/name:port`, for messages.
    pub service: String,
    /// In a stable order.
    pub endpoints: Vec<SocketAddr>,
    /// Keeps a client at its endpoint for so long; `None` spreads all connections.
    pub affinity: Option<Duration>,
    /// Endpoints are told who their clients are, by the PROXY protocol.
    pub tells_client: bool,
}

/// All listeners of a node.
pub type Table = BTreeMap<Listener, Backends>;

/// The table for `node`, which has NodePorts on loopback. Services without a ClusterIP and
/// ports of other protocols have no listener; of two that want one address the first by name has it.
pub fn plan(services: &[Arc<Service>], slices: &Slices, node: &str) -> Table {
    let mut sorted: Vec<&Arc<Service>> = services.iter().collect();
    sorted.sort_by_key(|s| (&s.metadata.namespace, &s.metadata.name));
    let mut table = Table::new();
    for service in sorted {
        let namespace = service.metadata.namespace.as_deref().unwrap_or("");
        let name = service.metadata.name.as_deref().unwrap_or("");
        let slices = slices.of(namespace, name);
        add_service(service, slices, node, &format!("{namespace}/{name}"), &mut table);
    }
    table
}

fn add_service(service: &Service, slices: &[Arc<EndpointSlice>], node: &str, name: &str, table: &mut Table) {
    let Some(spec) = &service.spec else { return };
    if spec.type_.as_deref() == Some("ExternalName") {
        return;
    }
    let Some(ip) = spec.cluster_ip.as_deref().and_then(|ip| ip.parse::<IpAddr>().ok()) else { return };
    let affinity = (spec.session_affinity.as_deref() == Some("ClientIP")).then(|| {
        let config = spec.session_affinity_config.as_ref().and_then(|c| c.client_ip.as_ref());
        let seconds = config.and_then(|c| c.timeout_seconds).and_then(|s| u64::try_from(s).ok());
        seconds.map_or(AFFINITY, Duration::from_secs)
    });
    let annotation =
        service.metadata.annotations.as_ref().and_then(|all| all.get(proxy_protocol::ANNOTATION));
    let tells_client = annotation.is_some_and(|value| value == proxy_protocol::V2);
    let local_only = spec.internal_traffic_policy.as_deref() == Some("Local");
    for port in spec.ports.iter().flatten() {
        let protocol = match port.protocol.as_deref().unwrap_or("TCP") {
            "TCP" => Protocol::Tcp,
            "UDP" => Protocol::Udp,
            _ => continue,
        };
        let Ok(number) = u16::try_from(port.port) else { continue };
        let mut add = |address: SocketAddr, local: bool| {
            let endpoints = endpoints(slices, port, local.then_some(node));
            let service = format!("{name}:{number}");
            let backends = Backends { service, endpoints, affinity, tells_client };
            table.entry(Listener { address, protocol }).or_insert(backends);
        };
        add((ip, number).into(), local_only);
        for external in spec.external_ips.iter().flatten().filter_map(|ip| ip.parse::<IpAddr>().ok()) {
            if external.is_loopback() {
                add((external, number).into(), false);
            }
        }
        let node_port = port.node_port.and_then(|p| u16::try_from(p).ok()).filter(|p| *p > 0);
        if let Some(node_port) = node_port {
            add((Ipv4Addr::LOCALHOST, node_port).into(), false);
        }
    }
}

/// The endpoints of a service port: those that are ready, else those that still serve while
/// they end.
pub(crate) fn endpoints(
    slices: &[Arc<EndpointSlice>],
    port: &ServicePort,
    node: Option<&str>,
) -> Vec<SocketAddr> {
    let (mut ready, mut ending) = (Vec::new(), Vec::new());
    for slice in slices {
        let Some(number) = slice_port(slice, port) else { continue };
        for endpoint in slice.endpoints.iter().flatten() {
            if node.is_some_and(|n| endpoint.node_name.as_deref() != Some(n)) {
                continue;
            }
            let addresses = endpoint.addresses.iter().filter_map(|a| a.parse::<IpAddr>().ok());
            let addresses = addresses.map(|ip| SocketAddr::from((ip, number)));
            match state(endpoint) {
                State::Ready => ready.extend(addresses),
                State::Ending => ending.extend(addresses),
                State::Unready => {}
            }
        }
    }
    let mut chosen = if ready.is_empty() { ending } else { ready };
    chosen.sort_unstable();
    chosen.dedup();
    chosen
}

enum State {
    Ready,
    Ending,
    Unready,
}

fn state(endpoint: &Endpoint) -> State {
    let Some(conditions) = &endpoint.conditions else { return State::Ready };
    // An unknown condition counts as ready.
    let ready = conditions.ready.unwrap_or(true);
    let ending = conditions.terminating == Some(true) && conditions.serving.unwrap_or(false);
    match (ready, ending) {
        (true, _) => State::Ready,
        (false, true) => State::Ending,
        (false, false) => State::Unready,
    }
}

/// The endpoints' port for a service port: the one of the same name.
pub(crate) fn slice_port(slice: &EndpointSlice, port: &ServicePort) -> Option<u16> {
    let name = port.name.as_deref().unwrap_or("");
    let protocol = port.protocol.as_deref().unwrap_or("TCP");
    let found = slice.ports.iter().flatten().find(|p| {
        p.name.as_deref().unwrap_or("") == name && p.protocol.as_deref().unwrap_or("TCP") == protocol
    })?;
    let fallback = || match &port.target_port {
        Some(IntOrString::Int(number)) => Some(*number),
        _ => Some(port.port),
    };
    found.port.or_else(fallback).and_then(|p| u16::try_from(p).ok())
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};
    use wasmk_api::labels::SERVICE_NAME;

    use super::*;

    fn slice(service: &str, port: Value, endpoints: Value) -> Arc<EndpointSlice> {
        let slice = json!({
            "metadata": {"namespace": "default", "labels": {SERVICE_NAME: service}},
            "addressType": "IPv4", "ports": [port], "endpoints": endpoints,
        });
        Arc::new(serde_json::from_value(slice).unwrap())
    }

    fn service(spec: Value) -> Arc<Service> {
        let service = json!({"metadata": {"namespace": "default", "name": "web"}, "spec": spec});
        Arc::new(serde_json::from_value(service).unwrap())
    }

    fn check(spec: Value, endpoints: Value, expect: &[&str]) {
        let slices =
            [slice("web", json!({"name": "", "port": 8080}), endpoints.clone())].into_iter().collect();
        let table = plan(&[service(spec.clone())], &slices, "n1");
        let show = |(l, b): (&Listener, &Backends)| {
            let list: Vec<String> = b.endpoints.iter().map(ToString::to_string).collect();
            let sticky = b.affinity.map(|a| format!(" sticky {}", a.as_secs())).unwrap_or_default();
            format!("{:?} {} -> {}{sticky}", l.protocol, l.address, list.join(","))
        };
        let shown: Vec<String> = table.iter().map(show).collect();
        assert_eq!(shown, expect, "{spec} {endpoints}");
    }

    #[test]
    fn services_become_listeners() {
        let two = json!([{"addresses": ["127.42.0.3"]}, {"addresses": ["127.42.0.2"], "nodeName": "n1"}]);
        let port = json!([{"port": 80}]);
        check(
            json!({"clusterIP": "127.43.0.9", "ports": port}),
            two.clone(),
            &["Tcp 127.43.0.9:80 -> 127.42.0.2:8080,127.42.0.3:8080"],
        );
        check(
            json!({"clusterIP": "127.43.0.9", "ports": [{"port": 80, "nodePort": 30001}]}),
            two.clone(),
            &[
                "Tcp 127.0.0.1:30001 -> 127.42.0.2:8080,127.42.0.3:8080",
                "Tcp 127.43.0.9:80 -> 127.42.0.2:8080,127.42.0.3:8080",
            ],
        );
        check(
            json!({"clusterIP": "127.43.0.9", "ports": port, "internalTrafficPolicy": "Local"}),
            two.clone(),
            &["Tcp 127.43.0.9:80 -> 127.42.0.2:8080"],
        );
        check(
            json!({"clusterIP": "127.43.0.9", "ports": port, "sessionAffinity": "ClientIP"}),
            json!([]),
            &["Tcp 127.43.0.9:80 ->  sticky 10800"],
        );
        check(json!({"clusterIP": "None", "ports": port}), two.clone(), &[]);
        check(json!({"type": "ExternalName", "externalName": "x.example"}), two.clone(), &[]);
        check(json!({"clusterIP": "127.43.0.9", "ports": [{"port": 80, "protocol": "SCTP"}]}), two, &[]);
    }

    #[test]
    fn only_ready_endpoints_unless_none_is_left() {
        let spec = json!({"clusterIP": "127.43.0.9", "ports": [{"port": 80}]});
        let endpoint = |last: u8, conditions: Value| json!({"addresses": [format!("127.42.0.{last}")], "conditions": conditions});
        let good = endpoint(1, json!({"ready": true}));
        let bad = endpoint(2, json!({"ready": false, "serving": false}));
        let ending = endpoint(3, json!({"ready": false, "serving": true, "terminating": true}));
        check(spec.clone(), json!([good, bad, ending]), &["Tcp 127.43.0.9:80 -> 127.42.0.1:8080"]);
        check(spec.clone(), json!([bad, ending]), &["Tcp 127.43.0.9:80 -> 127.42.0.3:8080"]);
        check(spec, json!([bad]), &["Tcp 127.43.0.9:80 -> "]);
    }

    #[test]
    fn ports_are_matched_by_name() {
        let spec = json!({"clusterIP": "127.43.0.9", "ports": [
            {"name": "dns", "port": 53, "protocol": "UDP"}, {"name": "web", "port": 80},
        ]});
        let endpoints = json!([{"addresses": ["127.42.0.1"]}]);
        let slices = [
            slice("web", json!({"name": "web", "port": 8080}), endpoints.clone()),
            slice("web", json!({"name": "dns", "port": 5353, "protocol": "UDP"}), endpoints),
        ];
        let slices = slices.into_iter().collect();
        let table = plan(&[service(spec)], &slices, "n1");
        let ports: Vec<u16> = table.values().map(|b| b.endpoints[0].port()).collect();
        let kinds: Vec<Protocol> = table.keys().map(|l| l.protocol).collect();
        assert_eq!((ports, kinds), (vec![5353, 8080], vec![Protocol::Udp, Protocol::Tcp]));
    }
}
