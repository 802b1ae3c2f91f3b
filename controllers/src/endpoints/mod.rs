//! Which pods stand behind a Service: what EndpointSlices and Endpoints have in common.
//!
//! Pure functions from a service and its pods to addresses and ports.

use std::{collections::BTreeMap, sync::Arc};

use k8s_openapi::{
    api::core::v1::{ContainerPort, ObjectReference, Pod, Service, ServicePort},
    apimachinery::pkg::util::intstr::IntOrString,
};
use wasmk_api::LabelSelector;

use crate::base::{Informer, Key, Queue, is_deleting, is_finished, is_ready, selecting, selects};

pub(crate) mod legacy;
pub(crate) mod mirror;
pub(crate) mod slices;

/// A headless service's label on what is made for it.
const HEADLESS: &str = "service.kubernetes.io/headless";

/// The pods a service selects; none when it has no selector.
fn selector(service: &Service) -> Option<LabelSelector> {
    let selector = service.spec.as_ref()?.selector.as_ref()?;
    selects(service).then(|| LabelSelector::equals(selector))
}

fn is_headless(service: &Service) -> bool {
    service.spec.as_ref().and_then(|s| s.cluster_ip.as_deref()) == Some("None")
}

fn publishes_unready(service: &Service) -> bool {
    service.spec.as_ref().and_then(|s| s.publish_not_ready_addresses).unwrap_or(false)
}

fn service_ports(service: &Service) -> &[ServicePort] {
    service.spec.as_ref().and_then(|s| s.ports.as_deref()).unwrap_or(&[])
}

fn protocol(text: Option<&str>) -> &str {
    text.unwrap_or("TCP")
}

/// The port of a pod that a service's port leads to.
fn target_port(pod: &Pod, port: &ServicePort) -> Option<i32> {
    match &port.target_port {
        None => Some(port.port),
        Some(IntOrString::Int(number)) => Some(if *number == 0 { port.port } else { *number }),
        Some(IntOrString::String(name)) => {
            let wanted = protocol(port.protocol.as_deref());
            let named = |p: &&ContainerPort| {
                p.name.as_deref() == Some(name) && protocol(p.protocol.as_deref()) == wanted
            };
            container_ports(pod).find(named).map(|p| p.container_port)
        }
    }
}

/// Ports of containers, and of init containers that keep running.
fn container_ports(pod: &Pod) -> impl Iterator<Item = &ContainerPort> {
    let spec = pod.spec.iter();
    let sidecars = spec.clone().flat_map(|s| s.init_containers.iter().flatten());
    let sidecars = sidecars.filter(|c| c.restart_policy.as_deref() == Some("Always"));
    spec.flat_map(|s| s.containers.iter()).chain(sidecars).flat_map(|c| c.ports.iter().flatten())
}

/// A pod's addresses of a family.
fn addresses(pod: &Pod, family: &str) -> Vec<String> {
    let Some(status) = &pod.status else { return Vec::new() };
    let listed = status.pod_ips.iter().flatten().map(|ip| &ip.ip).chain(&status.pod_ip);
    let is_v6 = |ip: &str| ip.contains(':');
    let mut all: Vec<String> =
        listed.filter(|ip| !ip.is_empty() && is_v6(ip) == (family == "IPv6")).cloned().collect();
    all.dedup();
    all.truncate(1);
    all
}

/// Whether a pod may receive anything at all.
fn is_candidate(pod: &Pod, terminating_too: bool) -> bool {
    !is_finished(pod) && (terminating_too || !is_deleting(pod))
}

/// Whether a pod receives connections now.
fn serves(pod: &Pod) -> bool {
    is_ready(pod)
}

/// The pod's own name below the service's, if it asked for one.
fn hostname(pod: &Pod, service: &Service) -> Option<String> {
    let spec = pod.spec.as_ref()?;
    let hostname = spec.hostname.as_ref().filter(|h| !h.is_empty())?;
    let same = spec.subdomain.is_some() && spec.subdomain == service.metadata.name;
    let same_space = pod.metadata.namespace == service.metadata.namespace;
    (same && same_space).then(|| hostname.clone())
}

fn target_ref(pod: &Pod) -> ObjectReference {
    ObjectReference {
        kind: Some("Pod".into()),
        namespace: pod.metadata.namespace.clone(),
        name: pod.metadata.name.clone(),
        uid: pod.metadata.uid.clone(),
        ..Default::default()
    }
}

fn node_name(pod: &Pod) -> Option<String> {
    pod.spec.as_ref()?.node_name.clone().filter(|n| !n.is_empty())
}

/// Every change of a pod that matters to its services wakes them.
fn on_pod(pods: &Informer<Pod>, services: &Arc<Informer<Service>>, queue: &Arc<Queue<Key>>) {
    let (services, queue) = (services.clone(), queue.clone());
    pods.subscribe(move |old, new| {
        if let (Some(old), Some(new)) = (old, new)
            && face(old) == face(new)
        {
            return;
        }
        let Some(namespace) = old.or(new).and_then(|p| p.metadata.namespace.clone()) else { return };
        for service in services.indexed(&selecting(&namespace)) {
            let Some(selector) = selector(&service) else { continue };
            if [old, new].into_iter().flatten().any(|p| selector.matches(p.metadata.labels.as_ref())) {
                queue.add(Key::of(&service.metadata));
            }
        }
    });
}

type Face<'a> = (
    Option<&'a BTreeMap<String, String>>,
    bool,
    bool,
    bool,
    Option<&'a str>,
    Option<&'a str>,
    Option<&'a str>,
    Option<&'a str>,
);

/// What of a pod its services show.
fn face(pod: &Pod) -> Face<'_> {
    let (spec, status) = (pod.spec.as_ref(), pod.status.as_ref());
    (
        pod.metadata.labels.as_ref(),
        is_deleting(pod),
        is_finished(pod),
        is_ready(pod),
        status.and_then(|s| s.pod_ip.as_deref()),
        spec.and_then(|s| s.node_name.as_deref()),
        spec.and_then(|s| s.hostname.as_deref()),
        spec.and_then(|s| s.subdomain.as_deref()),
    )
}
