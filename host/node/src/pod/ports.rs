//! Ports of the node that lead to a pod (`hostPort`), whatever runs in it.

use std::net::{IpAddr, SocketAddr};

use wasmk_api::k8s_openapi::api::core::v1::{ContainerPort, Pod};
use wasmk_net::plan::{Backends, Listener, Protocol, Table};

/// What the node listens on for a pod at `ip`. A pod on the node's network has its ports there by itself.
pub(super) fn table(pod: &Pod, ip: IpAddr, node: IpAddr) -> Table {
    let Some(spec) = pod.spec.as_ref().filter(|s| s.host_network != Some(true)) else { return Table::new() };
    let part = |s: &Option<String>| s.clone().unwrap_or_default();
    let name = format!("{}/{}", part(&pod.metadata.namespace), part(&pod.metadata.name));
    let containers = spec.containers.iter().chain(spec.init_containers.iter().flatten());
    let ports = containers.flat_map(|c| c.ports.iter().flatten());
    ports.filter_map(|port| one(port, &name, ip, node)).collect()
}

fn one(port: &ContainerPort, name: &str, ip: IpAddr, node: IpAddr) -> Option<(Listener, Backends)> {
    let number = |n: i32| u16::try_from(n).ok().filter(|n| *n > 0);
    let (host, inside) = (number(port.host_port?)?, number(port.container_port)?);
    let protocol = match port.protocol.as_deref() {
        None | Some("TCP") => Protocol::Tcp,
        Some("UDP") => Protocol::Udp,
        Some(_) => return None,
    };
    let wanted = port.host_ip.as_ref().and_then(|ip| ip.parse::<IpAddr>().ok());
    // All of this machine's addresses would be those of other pods, too.
    let at = wanted.filter(|ip| !ip.is_unspecified()).unwrap_or(node);
    let backends = Backends {
        service: format!("{name}: hostPort {host}"),
        endpoints: vec![SocketAddr::new(ip, inside)],
        affinity: None,
        tells_client: false,
    };
    Some((Listener { address: SocketAddr::new(at, host), protocol }, backends))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn ports_of_the_node_lead_to_the_pod() {
        let check = |spec: serde_json::Value, expect: &[&str]| {
            let pod: Pod = serde_json::from_value(json!({"spec": spec})).unwrap();
            let table = table(&pod, "10.0.0.9".parse().unwrap(), "127.0.0.1".parse().unwrap());
            let rows =
                table.iter().map(|(l, b)| format!("{:?} {} {}", l.protocol, l.address, b.endpoints[0]));
            assert_eq!(rows.collect::<Vec<_>>(), expect, "{spec}");
        };
        let ports = json!([
            {"containerPort": 80, "hostPort": 8080},
            {"containerPort": 53, "hostPort": 5353, "protocol": "UDP", "hostIP": "127.9.9.9"},
            {"containerPort": 81},
            {"containerPort": 82, "hostPort": 82, "protocol": "SCTP"},
        ]);
        let containers = json!([{"name": "c", "ports": ports}]);
        check(
            json!({"containers": containers}),
            &["Tcp 127.0.0.1:8080 10.0.0.9:80", "Udp 127.9.9.9:5353 10.0.0.9:53"],
        );
        check(json!({"containers": containers, "hostNetwork": true}), &[]);
    }
}
