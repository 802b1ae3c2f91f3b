//! Addresses and ports of services.
//!
//! Which are free is read from the cache of services; that two writers do not take the same one is the store's
//! matter: every address is an `IPAddress` object and every node port a claim that must be absent in the
//! transaction that writes the service.

use std::{collections::HashSet, net::Ipv4Addr, sync::Arc};

use rand::Rng;
use serde_json::{Value, json};
use wasmk_api::{Cause, Object, Status};

use crate::{
    cache::{Cache, Caches, Filter, ROOT},
    config::ServiceRange,
    write::{Claim, Work},
};

const SERVICES: &str = "core/services";
const ADDRESSES: &str = "networking.k8s.io/ipaddresses";
const PORTS: &str = "claims/nodeports";
/// Random tries before the range is searched from its start.
const TRIES: usize = 32;

/// Gives out addresses and ports.
pub(crate) struct Allocator {
    range: ServiceRange,
    ports: (u16, u16),
    addresses: Arc<Cache>,
    claims: Arc<Cache>,
}

impl Allocator {
    /// Over those ranges.
    pub(crate) fn new(caches: &Caches, range: ServiceRange, ports: (u16, u16)) -> Self {
        Self { range, ports, addresses: caches.of(ADDRESSES), claims: caches.of(PORTS) }
    }

    /// A free address. The first sixteenth of the range (at most 256) is left to those who ask for a certain one.
    fn free_address(&self) -> Option<Ipv4Addr> {
        let size = self.range.size();
        let reserved = (size / 16).clamp(if size >= 256 { 16 } else { 1 }, 256);
        let free = |offset: &u32| self.addresses.get(&self.range.at(*offset).to_string()).is_none();
        let mut rng = rand::rng();
        let upper = (0..TRIES).map(|_| rng.random_range(reserved..size - 1)).find(free);
        upper
            .or_else(|| (reserved..size - 1).find(free))
            .or_else(|| (1..reserved).find(free))
            .map(|o| self.range.at(o))
    }

    fn free_port(&self, taken: &HashSet<u16>) -> Option<u16> {
        let free = |port: &u16| !taken.contains(port) && self.claims.get(&port.to_string()).is_none();
        let mut rng = rand::rng();
        let (first, last) = self.ports;
        (0..TRIES).map(|_| rng.random_range(first..=last)).find(free).or_else(|| (first..=last).find(free))
    }
}

fn spec<'a>(object: &'a Object, key: &str) -> &'a str {
    object.at(&["spec", key]).and_then(Value::as_str).unwrap_or("")
}

fn addresses(service: Option<&Object>) -> Vec<String> {
    let Some(service) = service else { return Vec::new() };
    let many = service.at(&["spec", "clusterIPs"]).and_then(Value::as_array);
    let mut all: Vec<String> = many.into_iter().flatten().filter_map(Value::as_str).map(Into::into).collect();
    if all.is_empty() {
        all.push(spec(service, "clusterIP").into());
    }
    all.retain(|a| !a.is_empty() && a != "None");
    all
}

/// The node ports of a service, with the protocols that use each.
fn node_ports(service: Option<&Object>) -> HashSet<u16> {
    let Some(service) = service else { return HashSet::new() };
    let ports = service.at(&["spec", "ports"]).and_then(Value::as_array);
    let health = service.at(&["spec", "healthCheckNodePort"]);
    ports
        .into_iter()
        .flatten()
        .filter_map(|p| p.get("nodePort"))
        .chain(health)
        .filter_map(Value::as_u64)
        .filter_map(|p| u16::try_from(p).ok())
        .filter(|p| *p > 0)
        .collect()
}

/// Completes a service that is created or updated with the address and ports it needs; what must be claimed and
/// given back along with it. Nothing for other resources.
///
/// # Errors
/// When an address or port that is asked for is taken or outside of its range, or none is left.
pub(crate) fn claims(
    work: &Work<'_>,
    object: &mut Object,
    old: Option<&Object>,
) -> Result<Vec<Claim>, Status> {
    if work.resource.storage != SERVICES {
        return Ok(Vec::new());
    }
    let allocator = &work.core.allocator;
    let mut claims = Vec::new();
    let before = addresses(old);
    assign_address(work, object, &before)?;
    for address in addresses(Some(object)) {
        if !before.contains(&address) {
            check_address(work, object, &address)?;
            claims.push(Claim::Take(
                format!("{ROOT}{ADDRESSES}/{address}"),
                address_object(&address, object, work),
            ));
        }
    }
    let after = addresses(Some(object));
    claims.extend(
        before
            .iter()
            .filter(|a| !after.contains(a))
            .map(|a| Claim::Release(format!("{ROOT}{ADDRESSES}/{a}"))),
    );
    let ports_before = node_ports(old);
    assign_ports(work, object, &ports_before)?;
    let ports_after = node_ports(Some(object));
    for port in ports_after.difference(&ports_before) {
        if allocator.claims.get(&port.to_string()).is_some() {
            return Err(port_taken(work, object, *port));
        }
        claims.push(Claim::Take(format!("{ROOT}{PORTS}/{port}"), port_object(*port, object)));
    }
    claims
        .extend(ports_before.difference(&ports_after).map(|p| Claim::Release(format!("{ROOT}{PORTS}/{p}"))));
    Ok(claims)
}

/// What a service gives back when it goes.
pub(crate) fn releases(work: &Work<'_>, old: &Object) -> Vec<Claim> {
    if work.resource.storage != SERVICES {
        return Vec::new();
    }
    let addresses = addresses(Some(old)).into_iter().map(|a| format!("{ROOT}{ADDRESSES}/{a}"));
    let ports = node_ports(Some(old)).into_iter().map(|p| format!("{ROOT}{PORTS}/{p}"));
    addresses.chain(ports).map(Claim::Release).collect()
}

fn assign_address(work: &Work<'_>, object: &mut Object, before: &[String]) -> Result<(), Status> {
    let kind = spec(object, "type");
    if kind == "ExternalName" {
        return Ok(());
    }
    if spec(object, "clusterIP").is_empty() {
        let address = match before.first() {
            Some(kept) => kept.clone(),
            None => work.core.allocator.free_address().ok_or_else(|| full(work, object))?.to_string(),
        };
        set(object, "clusterIP", address.into());
    }
    if object.at(&["spec", "clusterIPs"]).and_then(Value::as_array).is_none_or(Vec::is_empty) {
        let address = spec(object, "clusterIP").to_owned();
        set(object, "clusterIPs", json!([address]));
    }
    Ok(())
}

fn set(object: &mut Object, key: &str, value: Value) {
    if let Some(spec) = object.0.get_mut("spec").and_then(Value::as_object_mut) {
        spec.insert(key.into(), value);
    }
}

fn check_address(work: &Work<'_>, object: &Object, address: &str) -> Result<(), Status> {
    let allocator = &work.core.allocator;
    let shown = json!(addresses(Some(object)));
    let refuse = |why: String| {
        let cause = Cause {
            reason: "FieldValueInvalid".into(),
            message: format!("Invalid value: {shown}: failed to allocate IP {address}: {why}"),
            field: "spec.clusterIPs".into(),
        };
        Err(Status::invalid(&work.resource.group_kind(), object.name(), &[cause]))
    };
    if allocator.addresses.get(address).is_some() {
        return refuse("provided IP is already allocated".into());
    }
    match address.parse::<Ipv4Addr>() {
        Ok(parsed) if allocator.range.contains(parsed) => Ok(()),
        _ => refuse("the provided network does not match the current range".into()),
    }
}

fn full(work: &Work<'_>, object: &Object) -> Status {
    Status::internal(format!(
        "failed to allocate a serviceIP for {}/{}: range {} is full",
        object.namespace(),
        object.name(),
        work.core.allocator.range
    ))
}

fn wants_ports(object: &Object) -> bool {
    match spec(object, "type") {
        "NodePort" => true,
        "LoadBalancer" => object.at(&["spec", "allocateLoadBalancerNodePorts"]) != Some(&Value::Bool(false)),
        _ => false,
    }
}

fn assign_ports(work: &Work<'_>, object: &mut Object, before: &HashSet<u16>) -> Result<(), Status> {
    let (first, last) = work.core.allocator.ports;
    let given = node_ports(Some(object));
    for port in given.difference(before) {
        if *port < first || *port > last {
            return Err(port_refused(
                work,
                object,
                *port,
                &format!(
                    "provided port is not in the valid range. The range of valid ports is {first}-{last}"
                ),
            ));
        }
    }
    if !wants_ports(object) {
        return Ok(());
    }
    let mut taken = given;
    let local = spec(object, "type") == "LoadBalancer" && spec(object, "externalTrafficPolicy") == "Local";
    let no_port = || Status::internal("failed to allocate a nodePort: no port is left in the range");
    let Some(spec) = object.0.get_mut("spec").and_then(Value::as_object_mut) else { return Ok(()) };
    // Ports of one number but several protocols share their node port.
    let mut shared: Vec<(u64, u16)> = Vec::new();
    for port in spec.get_mut("ports").and_then(Value::as_array_mut).into_iter().flatten() {
        let number = port.get("port").and_then(Value::as_u64).unwrap_or(0);
        let Some(port) = port.as_object_mut() else { continue };
        if port.get("nodePort").and_then(Value::as_u64).unwrap_or(0) > 0 {
            continue;
        }
        let chosen = match shared.iter().find(|(n, _)| *n == number) {
            Some((_, chosen)) => *chosen,
            None => work.core.allocator.free_port(&taken).ok_or_else(no_port)?,
        };
        taken.insert(chosen);
        shared.push((number, chosen));
        port.insert("nodePort".into(), chosen.into());
    }
    if local && spec.get("healthCheckNodePort").and_then(Value::as_u64).unwrap_or(0) == 0 {
        let chosen = work.core.allocator.free_port(&taken).ok_or_else(no_port)?;
        spec.insert("healthCheckNodePort".into(), chosen.into());
    }
    Ok(())
}

fn port_taken(work: &Work<'_>, object: &Object, port: u16) -> Status {
    port_refused(work, object, port, "provided port is already allocated")
}

fn port_refused(work: &Work<'_>, object: &Object, port: u16, why: &str) -> Status {
    let at = object
        .at(&["spec", "ports"])
        .and_then(Value::as_array)
        .and_then(|ports| {
            ports.iter().position(|p| p.get("nodePort").and_then(Value::as_u64) == Some(port.into()))
        })
        .unwrap_or(0);
    let cause = Cause {
        reason: "FieldValueInvalid".into(),
        message: format!("Invalid value: {port}: {why}"),
        field: format!("spec.ports[{at}].nodePort"),
    };
    Status::invalid(&work.resource.group_kind(), object.name(), &[cause])
}

fn address_object(address: &str, service: &Object, work: &Work<'_>) -> Vec<u8> {
    let object = json!({
        "kind": "IPAddress",
        "apiVersion": "networking.k8s.io/v1",
        "metadata": {
            "name": address,
            "uid": uuid::Uuid::new_v4().to_string(),
            "creationTimestamp": work.now.to_string(),
            "labels": {
                "ipaddress.kubernetes.io/ip-family": "IPv4",
                "ipaddress.kubernetes.io/managed-by": "ipallocator.k8s.io",
            },
        },
        "spec": {
            "parentRef": { "resource": "services", "namespace": service.namespace(), "name": service.name() },
        },
    });
    object.to_string().into_bytes()
}

fn port_object(port: u16, service: &Object) -> Vec<u8> {
    let object = json!({
        "kind": "NodePortClaim",
        "apiVersion": "claims/v1",
        "metadata": { "name": port.to_string() },
        "service": format!("{}/{}", service.namespace(), service.name()),
    });
    object.to_string().into_bytes()
}

/// Claims whose service is gone, for instance because a writer died between two versions of this program.
pub(crate) fn orphans(caches: &Caches) -> Vec<String> {
    let services = caches.of(SERVICES);
    let alive = |key: Option<String>| key.is_some_and(|key| services.get(&key).is_some());
    let parent = |object: &Object| {
        let part = |name: &str| object.at(&["spec", "parentRef", name]).and_then(Value::as_str);
        Some(format!("{}/{}", part("namespace")?, part("name")?))
    };
    let addresses = caches.of(ADDRESSES).list(&Filter::default());
    let managed = addresses.iter().filter(|e| e.label("ipaddress.kubernetes.io/managed-by").is_some());
    let dead =
        managed.filter(|e| !alive(parent(&e.object()))).map(|e| format!("{ROOT}{ADDRESSES}/{}", e.name));
    let ports = caches.of(PORTS).list(&Filter::default());
    let dead_ports = ports
        .iter()
        .filter(|e| !alive(e.object().at(&["service"]).and_then(Value::as_str).map(Into::into)))
        .map(|e| format!("{ROOT}{PORTS}/{}", e.name));
    dead.chain(dead_ports).collect()
}
