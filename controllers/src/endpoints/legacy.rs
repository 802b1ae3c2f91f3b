//! Keeps the Endpoints object of each Service that selects pods.
//!
//! Reads services, pods and Endpoints. Writes Endpoints of the service's name; those of a
//! service without selector belong to whoever made them.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use k8s_openapi::api::core::v1::{EndpointAddress, EndpointPort, EndpointSubset, Endpoints, Pod, Service};
use kube::api::ObjectMeta;

use crate::base::{Context, Informer, Key, Next, Queue, Result, on_change};

use super::{
    HEADLESS, addresses, hostname, is_candidate, is_headless, node_name, on_pod, publishes_unready, selector,
    serves, service_ports, target_port, target_ref,
};

const MANAGED_BY: (&str, &str) = ("endpoints.kubernetes.io/managed-by", "endpoint-controller");
/// Says that addresses were left out.
const OVER_CAPACITY: (&str, &str) = ("endpoints.kubernetes.io/over-capacity", "truncated");
/// Addresses one Endpoints object holds at most.
const MAX_ADDRESSES: usize = 1000;

pub(crate) async fn run(cx: Context) {
    let queue = Arc::new(Queue::default());
    let (services, pods, all) = (cx.cache::<Service>(), cx.cache::<Pod>(), cx.cache::<Endpoints>());
    on_change(&services, &queue);
    on_change(&all, &queue);
    services.ready().await;
    on_pod(&pods, &services, &queue);
    pods.ready().await;
    all.ready().await;
    cx.work("endpoints-controller", &queue, cx.settings.workers, |key| {
        reconcile(&cx, &services, &pods, &all, key)
    })
    .await;
}

async fn reconcile(
    cx: &Context,
    services: &Informer<Service>,
    pods: &Informer<Pod>,
    all: &Informer<Endpoints>,
    key: Key,
) -> Result<Next> {
    let there = all.get(&key);
    let Some(service) = services.get(&key) else {
        if let Some(stale) = there.filter(|e| is_ours(e)) {
            cx.delete(&*stale, Default::default()).await?;
        }
        return Ok(Next::Change);
    };
    let Some(selector) = selector(&service) else { return Ok(Next::Change) };
    let mut behind = pods.in_namespace(&key.namespace);
    behind.retain(|p| selector.matches(p.metadata.labels.as_ref()));
    let Some(wanted) = plan(&service, &behind, there.as_deref()) else { return Ok(Next::Change) };
    let outcome = match there {
        Some(_) => cx.replace(&wanted).await,
        None => cx.create(&wanted).await,
    };
    match outcome {
        Err(error) if error.is_namespace_terminating() => Ok(Next::Change),
        other => other.map(|_| Next::Change),
    }
}

fn is_ours(endpoints: &Endpoints) -> bool {
    endpoints.metadata.labels.as_ref().and_then(|l| l.get(MANAGED_BY.0)).is_some_and(|v| v == MANAGED_BY.1)
}

/// The object as it has to be, unless it is so already.
fn plan(service: &Service, pods: &[Arc<Pod>], there: Option<&Endpoints>) -> Option<Endpoints> {
    let (subsets, cut) = subsets(service, pods);
    let mut wanted = there.cloned().unwrap_or_else(|| Endpoints {
        metadata: ObjectMeta {
            namespace: service.metadata.namespace.clone(),
            name: service.metadata.name.clone(),
            ..Default::default()
        },
        subsets: None,
    });
    let mut labels = service.metadata.labels.clone().unwrap_or_default();
    labels.insert(MANAGED_BY.0.into(), MANAGED_BY.1.into());
    labels.remove(HEADLESS);
    if is_headless(service) {
        labels.insert(HEADLESS.into(), String::new());
    }
    wanted.metadata.labels = Some(labels);
    let notes = wanted.metadata.annotations.get_or_insert_default();
    match cut {
        true => notes.insert(OVER_CAPACITY.0.into(), OVER_CAPACITY.1.into()),
        false => notes.remove(OVER_CAPACITY.0),
    };
    if notes.is_empty() {
        wanted.metadata.annotations = None;
    }
    wanted.subsets = (!subsets.is_empty()).then_some(subsets);
    (there != Some(&wanted)).then_some(wanted)
}

type Addresses = (Vec<EndpointAddress>, Vec<EndpointAddress>);

/// Addresses, grouped by the ports they offer; whether some were left out.
fn subsets(service: &Service, pods: &[Arc<Pod>]) -> (Vec<EndpointSubset>, bool) {
    let unready_too = publishes_unready(service);
    let family = service.spec.as_ref().and_then(|s| s.ip_families.as_ref()?.first().cloned());
    let family = family.unwrap_or_else(|| "IPv4".into());
    let mut groups: BTreeMap<BTreeSet<(String, i32, String, String)>, Addresses> = BTreeMap::new();
    let mut seen = BTreeSet::new();
    let mut cut = false;
    // Ready ones first, so that the bound leaves out the others.
    let mut order: Vec<&Arc<Pod>> = pods.iter().filter(|p| is_candidate(p, unready_too)).collect();
    order.sort_by_key(|p| (!serves(p), p.metadata.name.clone()));
    for pod in order {
        let Some(ip) = addresses(pod, &family).pop() else { continue };
        if seen.len() >= MAX_ADDRESSES {
            cut = true;
            break;
        }
        seen.insert(ip.clone());
        let address = EndpointAddress {
            ip,
            hostname: hostname(pod, service),
            node_name: node_name(pod),
            target_ref: Some(target_ref(pod)),
        };
        let (ready, unready) = groups.entry(ports(service, pod)).or_default();
        if unready_too || serves(pod) { ready.push(address) } else { unready.push(address) }
    }
    if !service_ports(service).is_empty() {
        groups.retain(|ports, _| !ports.is_empty());
    }
    let subset = |(ports, (mut ready, mut unready)): (BTreeSet<_>, Addresses)| {
        ready.sort_by(|a, b| a.ip.cmp(&b.ip));
        unready.sort_by(|a, b| a.ip.cmp(&b.ip));
        let ports: Vec<EndpointPort> = ports.into_iter().map(endpoint_port).collect();
        EndpointSubset {
            addresses: (!ready.is_empty()).then_some(ready),
            not_ready_addresses: (!unready.is_empty()).then_some(unready),
            ports: (!ports.is_empty()).then_some(ports),
        }
    };
    (groups.into_iter().map(subset).collect(), cut)
}

fn ports(service: &Service, pod: &Pod) -> BTreeSet<(String, i32, String, String)> {
    let offered = |port| {
        let port: &k8s_openapi::api::core::v1::ServicePort = port;
        let number = target_port(pod, port)?;
        let text = |t: &Option<String>| t.clone().unwrap_or_default();
        let protocol = super::protocol(port.protocol.as_deref()).to_owned();
        Some((text(&port.name), number, protocol, text(&port.app_protocol)))
    };
    service_ports(service).iter().filter_map(offered).collect()
}

fn endpoint_port((name, port, protocol, app): (String, i32, String, String)) -> EndpointPort {
    EndpointPort {
        name: (!name.is_empty()).then_some(name),
        port,
        protocol: Some(protocol),
        app_protocol: (!app.is_empty()).then_some(app),
    }
}

#[cfg(test)]
mod tests {
    use super::{super::slices::tests::*, *};

    fn check(service_text: &str, pods: &[&str], expect: &str) {
        let service = service(service_text);
        let pods: Vec<_> = pods.iter().map(|p| backend(p)).collect();
        let made = plan(&service, &pods, None).unwrap();
        let show = |list: &Option<Vec<EndpointAddress>>| {
            list.iter().flatten().map(|a| a.ip.clone()).collect::<Vec<_>>().join(" ")
        };
        let subset = |s: &EndpointSubset| {
            let ports = s.ports.iter().flatten().map(|p| p.port.to_string()).collect::<Vec<_>>().join(",");
            format!("[{}/{}]:{ports}", show(&s.addresses), show(&s.not_ready_addresses))
        };
        let shown = made.subsets.iter().flatten().map(subset).collect::<Vec<_>>().join(" ");
        assert_eq!(shown, expect, "{service_text} {pods:?}");
        assert!(plan(&service, &pods, Some(&made)).is_none(), "a second pass changes nothing");
    }

    #[test]
    fn ready_and_unready_stand_apart() {
        check("80:8080", &["a 10.0.0.1 ready", "b 10.0.0.2"], "[10.0.0.1/10.0.0.2]:8080");
        check("80:8080", &["a 10.0.0.1 ready going", "b 10.0.0.2 done"], "");
        check(
            "80:web",
            &["a 10.0.0.1 ready web=81", "b 10.0.0.2 ready web=82", "c 10.0.0.3 ready"],
            "[10.0.0.1/]:81 [10.0.0.2/]:82",
        );
        check("80:8080 unready-too", &["a 10.0.0.1", "b 10.0.0.2 going"], "[10.0.0.1 10.0.0.2/]:8080");
        check("headless", &["a 10.0.0.1 ready"], "[10.0.0.1/]:");
        check("80:8080", &["a - ready"], "");
    }
}
