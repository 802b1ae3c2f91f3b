//! Keeps the EndpointSlices of each Service that selects pods.
//!
//! Reads services, pods, nodes (for zones) and slices. Writes slices it manages. A slice
//! holds at most [`MAX_ENDPOINTS`]; what is in one stays there, so that a change of one pod
//! rewrites one slice.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use k8s_openapi::api::{
    core::v1::{Node, Pod, Service},
    discovery::v1::{
        Endpoint, EndpointConditions, EndpointHints, EndpointPort, EndpointSlice, ForNode, ForZone,
    },
};
use kube::api::ObjectMeta;
use wasmk_api::labels::SERVICE_NAME;

use crate::base::{
    Context, Informer, Key, Names, Next, Queue, Result, controller_ref, is_deleting, on_change, on_child, uid,
};

use super::{
    HEADLESS, addresses, hostname, is_candidate, is_headless, node_name, on_pod, publishes_unready, selector,
    serves, service_ports, target_port, target_ref,
};

const MANAGED_BY: (&str, &str) =
    ("endpointslice.kubernetes.io/managed-by", "endpointslice-controller.k8s.io");
const ZONE: &str = "topology.kubernetes.io/zone";
/// Endpoints per slice.
const MAX_ENDPOINTS: usize = 100;

/// Ports as slices are grouped by: name, number, protocol, application protocol.
type Ports = BTreeSet<(String, i32, String, Option<String>)>;

pub(crate) async fn run(cx: Context) {
    let queue = Arc::new(Queue::default());
    let (services, pods, nodes) = (cx.cache::<Service>(), cx.cache::<Pod>(), cx.cache::<Node>());
    let slices = cx.cache::<EndpointSlice>();
    on_change(&services, &queue);
    on_child::<Service, EndpointSlice>(&slices, &queue);
    services.ready().await;
    on_pod(&pods, &services, &queue);
    pods.ready().await;
    nodes.ready().await;
    slices.ready().await;
    let keeper = Keeper { cx: cx.clone(), services, pods, nodes, slices };
    cx.work("endpointslice-controller", &queue, cx.settings.workers, |key| keeper.reconcile(key)).await;
}

struct Keeper {
    cx: Context,
    services: Arc<Informer<Service>>,
    pods: Arc<Informer<Pod>>,
    nodes: Arc<Informer<Node>>,
    slices: Arc<Informer<EndpointSlice>>,
}

impl Keeper {
    async fn reconcile(&self, key: Key) -> Result<Next> {
        // Slices of a service that is gone go with it, by the garbage collector.
        let Some(service) = self.services.get(&key) else { return Ok(Next::Change) };
        let Some(selector) = selector(&service) else { return Ok(Next::Change) };
        if is_deleting(&*service) {
            return Ok(Next::Change);
        }
        let mut pods = self.pods.in_namespace(&key.namespace);
        pods.retain(|p| selector.matches(p.metadata.labels.as_ref()));
        let slices: Vec<_> =
            self.slices.controlled_by(uid(&*service)).into_iter().filter(|s| is_ours(s)).collect();
        let zone = |node: &str| {
            let node = self.nodes.get(&Key::new("", node))?;
            node.metadata.labels.as_ref()?.get(ZONE).cloned()
        };
        let plan = plan(&service, &pods, &slices, zone);
        for slice in &plan.write {
            let outcome = match slice.metadata.uid {
                Some(_) => self.cx.replace(slice).await,
                None => self.cx.create(slice).await,
            };
            match outcome {
                Err(error) if error.is_namespace_terminating() => {}
                Err(error) if error.is_already_exists() => {
                    self.cx.fetch::<EndpointSlice>(&Key::of(&slice.metadata)).await?;
                    return Err(error);
                }
                other => drop(other?),
            }
        }
        for slice in &plan.delete {
            self.cx.delete(&**slice, Default::default()).await?;
        }
        Ok(Next::Change)
    }
}

fn is_ours(slice: &EndpointSlice) -> bool {
    slice.metadata.labels.as_ref().and_then(|l| l.get(MANAGED_BY.0)).is_some_and(|v| v == MANAGED_BY.1)
}

#[derive(Debug, Default)]
struct Plan {
    /// Slices to create (without a uid) or to rewrite.
    write: Vec<EndpointSlice>,
    delete: Vec<Arc<EndpointSlice>>,
}

fn plan(
    service: &Service,
    pods: &[Arc<Pod>],
    slices: &[Arc<EndpointSlice>],
    zone: impl Fn(&str) -> Option<String>,
) -> Plan {
    let mut plan = Plan::default();
    let names = Names::new(service.metadata.name.as_deref().unwrap_or(""), uid(service));
    let mut slot = names.next(slices.iter().filter_map(|s| s.metadata.name.as_deref()));
    let mut kept = BTreeSet::new();
    for family in families(service) {
        for (ports, mut endpoints) in wanted(service, pods, &family, &zone) {
            let same = |s: &&Arc<EndpointSlice>| s.address_type == family && ports_of(s) == ports;
            let mut groups: Vec<(Option<&Arc<EndpointSlice>>, Vec<Endpoint>)> =
                slices.iter().filter(same).map(|s| (Some(s), keep(s, &mut endpoints))).collect();
            let mut rest: Vec<Endpoint> = endpoints.into_values().collect();
            for (_, group) in &mut groups {
                let room = MAX_ENDPOINTS.saturating_sub(group.len()).min(rest.len());
                group.extend(rest.drain(..room));
            }
            while !rest.is_empty() || groups.is_empty() {
                let size = MAX_ENDPOINTS.min(rest.len());
                groups.push((None, rest.drain(..size).collect()));
            }
            let some_full = groups.iter().any(|(_, g)| !g.is_empty());
            for (i, (old, group)) in groups.into_iter().enumerate() {
                // One empty slice says that there is nothing; more would say the same.
                if group.is_empty() && (some_full || i > 0) {
                    continue;
                }
                let new = slice(service, &family, &ports, group, old.map(|s| &**s), || {
                    slot += 1;
                    names.name(slot - 1)
                });
                kept.extend(old.map(|s| uid(&**s).to_owned()));
                if old.is_none_or(|old| **old != new) {
                    plan.write.push(new);
                }
            }
        }
    }
    plan.delete.extend(slices.iter().filter(|s| !kept.contains(uid(&***s)) && !is_deleting(&***s)).cloned());
    plan
}

fn families(service: &Service) -> Vec<String> {
    let listed = service.spec.as_ref().and_then(|s| s.ip_families.clone()).unwrap_or_default();
    if listed.is_empty() { vec!["IPv4".into()] } else { listed }
}

/// Endpoints by pod, grouped by ports. Without any pod: one empty group.
fn wanted(
    service: &Service,
    pods: &[Arc<Pod>],
    family: &str,
    zone: &impl Fn(&str) -> Option<String>,
) -> BTreeMap<Ports, BTreeMap<String, Endpoint>> {
    let mut groups: BTreeMap<Ports, BTreeMap<String, Endpoint>> = BTreeMap::new();
    for pod in pods.iter().filter(|p| is_candidate(p, true)) {
        let addresses = addresses(pod, family);
        if !addresses.is_empty() {
            let group = groups.entry(ports(service, pod)).or_default();
            group.insert(uid(&**pod).to_owned(), endpoint(service, pod, addresses, zone));
        }
    }
    if groups.is_empty() {
        groups.insert(Ports::new(), BTreeMap::new());
    }
    groups
}

fn endpoint(
    service: &Service,
    pod: &Pod,
    addresses: Vec<String>,
    zone: &impl Fn(&str) -> Option<String>,
) -> Endpoint {
    let (serving, terminating) = (serves(pod), is_deleting(pod));
    let ready = publishes_unready(service) || (serving && !terminating);
    let node_name = node_name(pod);
    let zone = node_name.as_deref().and_then(zone);
    Endpoint {
        addresses,
        conditions: Some(EndpointConditions {
            ready: Some(ready),
            serving: Some(serving),
            terminating: Some(terminating),
        }),
        hostname: hostname(pod, service),
        hints: hints(service, node_name.as_deref(), zone.as_deref()),
        zone,
        node_name,
        target_ref: Some(target_ref(pod)),
        ..Default::default()
    }
}

/// Who had better use an endpoint, when the service wants its traffic kept near.
fn hints(service: &Service, node: Option<&str>, zone: Option<&str>) -> Option<EndpointHints> {
    let wish = service.spec.as_ref()?.traffic_distribution.as_deref()?;
    let zones = || zone.map(|z| vec![ForZone { name: z.into() }]);
    match wish {
        "PreferClose" | "PreferSameZone" => {
            zones().map(|z| EndpointHints { for_zones: Some(z), for_nodes: None })
        }
        "PreferSameNode" => {
            let nodes = node.map(|n| vec![ForNode { name: n.into() }])?;
            Some(EndpointHints { for_nodes: Some(nodes), for_zones: zones() })
        }
        _ => None,
    }
}

fn ports(service: &Service, pod: &Pod) -> Ports {
    let offered = |port: &k8s_openapi::api::core::v1::ServicePort| {
        let number = target_port(pod, port)?;
        let protocol = super::protocol(port.protocol.as_deref()).to_owned();
        Some((port.name.clone().unwrap_or_default(), number, protocol, port.app_protocol.clone()))
    };
    service_ports(service).iter().filter_map(offered).collect()
}

fn ports_of(slice: &EndpointSlice) -> Ports {
    let key = |p: &EndpointPort| {
        let protocol = super::protocol(p.protocol.as_deref()).to_owned();
        (p.name.clone().unwrap_or_default(), p.port.unwrap_or(0), protocol, p.app_protocol.clone())
    };
    slice.ports.iter().flatten().map(key).collect()
}

/// The wanted endpoints that a slice has already, taken out of `wanted`.
fn keep(slice: &EndpointSlice, wanted: &mut BTreeMap<String, Endpoint>) -> Vec<Endpoint> {
    let pod = |e: &Endpoint| e.target_ref.as_ref().and_then(|r| r.uid.clone());
    slice.endpoints.iter().flatten().filter_map(|e| wanted.remove(&pod(e)?)).take(MAX_ENDPOINTS).collect()
}

fn slice(
    service: &Service,
    family: &str,
    ports: &Ports,
    endpoints: Vec<Endpoint>,
    old: Option<&EndpointSlice>,
    name: impl FnOnce() -> String,
) -> EndpointSlice {
    let mut labels = service.metadata.labels.clone().unwrap_or_default();
    labels.insert(SERVICE_NAME.into(), service.metadata.name.clone().unwrap_or_default());
    labels.insert(MANAGED_BY.0.into(), MANAGED_BY.1.into());
    labels.remove(HEADLESS);
    if is_headless(service) {
        labels.insert(HEADLESS.into(), String::new());
    }
    let mut metadata = old.map(|s| s.metadata.clone()).unwrap_or_else(|| ObjectMeta {
        namespace: service.metadata.namespace.clone(),
        name: Some(name()),
        generate_name: Some(format!("{}-", service.metadata.name.as_deref().unwrap_or(""))),
        owner_references: Some(vec![controller_ref(service)]),
        ..Default::default()
    });
    metadata.labels = Some(labels);
    let port = |(name, port, protocol, app): &(String, i32, String, Option<String>)| EndpointPort {
        name: Some(name.clone()),
        port: Some(*port),
        protocol: Some(protocol.clone()),
        app_protocol: app.clone(),
    };
    // Some servers give an empty list back as none.
    let none = endpoints.is_empty() && old.is_some_and(|o| o.endpoints.is_none());
    EndpointSlice {
        address_type: family.into(),
        endpoints: (!none).then_some(endpoints),
        ports: (!ports.is_empty()).then(|| ports.iter().map(port).collect()),
        metadata,
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use serde_json::json;

    /// `80:TARGET [unready-too]`, or `headless`.
    pub(in crate::endpoints) fn service(text: &str) -> Service {
        let mut spec = json!({"selector": {"app": "web"}, "clusterIP": "127.43.0.9"});
        for word in text.split_whitespace() {
            match word {
                "headless" => spec["clusterIP"] = json!("None"),
                "unready-too" => spec["publishNotReadyAddresses"] = json!(true),
                ports => {
                    let (port, target) = ports.split_once(':').unwrap();
                    let target = target.parse::<i32>().map_or(json!(target), |n| json!(n));
                    spec["ports"] =
                        json!([{"name": "http", "port": port.parse::<i32>().unwrap(), "targetPort": target}]);
                }
            }
        }
        let meta = json!({"name": "web", "namespace": "ns", "uid": "svc"});
        serde_json::from_value(json!({"metadata": meta, "spec": spec})).unwrap()
    }

    /// `name IP [ready] [going] [done] [PORTNAME=NUMBER]`; IP `-` for none.
    pub(in crate::endpoints) fn backend(text: &str) -> Arc<Pod> {
        let words: Vec<&str> = text.split_whitespace().collect();
        let has = |word| words.contains(&word);
        let ports: Vec<_> = words
            .iter()
            .filter_map(|w| w.split_once('='))
            .map(|(name, port)| json!({"name": name, "containerPort": port.parse::<i32>().unwrap()}))
            .collect();
        let mut status = json!({
            "phase": if has("done") { "Succeeded" } else { "Running" },
            "conditions": [{"type": "Ready", "status": if has("ready") { "True" } else { "False" }}],
        });
        if words[1] != "-" {
            status["podIP"] = json!(words[1]);
        }
        let mut meta =
            json!({"name": words[0], "namespace": "ns", "uid": words[0], "labels": {"app": "web"}});
        if has("going") {
            meta["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
        }
        let spec = json!({"nodeName": "n1", "containers": [{"name": "c", "ports": ports}]});
        Arc::new(serde_json::from_value(json!({"metadata": meta, "spec": spec, "status": status})).unwrap())
    }

    /// Applies a plan as the API would.
    fn settle(mut slices: Vec<Arc<EndpointSlice>>, plan: Plan) -> Vec<Arc<EndpointSlice>> {
        slices.retain(|s| !plan.delete.iter().any(|d| uid(&**d) == uid(&**s)));
        for mut slice in plan.write {
            slices.retain(|s| s.metadata.name != slice.metadata.name);
            slice.metadata.uid = slice.metadata.name.clone();
            slices.push(Arc::new(slice));
        }
        slices
    }

    fn show(slices: &[Arc<EndpointSlice>]) -> String {
        let endpoint = |e: &Endpoint| {
            let c = e.conditions.as_ref().unwrap();
            let mark = |on: Option<bool>, m: &'static str| if on == Some(true) { m } else { "" };
            format!(
                "{}{}{}{}",
                e.addresses[0],
                mark(c.ready, "+r"),
                mark(c.serving, "+s"),
                mark(c.terminating, "+t")
            )
        };
        let mut all: Vec<String> = slices
            .iter()
            .map(|s| {
                let ports: Vec<_> = s.ports.iter().flatten().map(|p| p.port.unwrap().to_string()).collect();
                let ends: Vec<_> = s.endpoints.iter().flatten().map(endpoint).collect();
                format!("[{}]:{}", ends.join(" "), ports.join(","))
            })
            .collect();
        all.sort();
        all.join(" ")
    }

    fn check(service_text: &str, pods: &[&str], expect: &str) {
        let service = service(service_text);
        let pods: Vec<_> = pods.iter().map(|p| backend(p)).collect();
        let slices = settle(Vec::new(), plan(&service, &pods, &[], |_| None));
        assert_eq!(show(&slices), expect, "{service_text}");
        let again = plan(&service, &pods, &slices, |_| None);
        assert!(again.write.is_empty() && again.delete.is_empty(), "a second pass changes nothing");
    }

    #[test]
    fn conditions_follow_the_pod() {
        check("80:8080", &["a 10.0.0.1 ready", "b 10.0.0.2"], "[10.0.0.1+r+s 10.0.0.2]:8080");
        check("80:8080", &["a 10.0.0.1 ready going"], "[10.0.0.1+s+t]:8080");
        check("80:8080", &["a 10.0.0.1 done"], "[]:");
        check("80:8080 unready-too", &["a 10.0.0.1"], "[10.0.0.1+r]:8080");
        check(
            "80:web",
            &["a 10.0.0.1 ready web=81", "b 10.0.0.2 ready web=82"],
            "[10.0.0.1+r+s]:81 [10.0.0.2+r+s]:82",
        );
        check("headless", &["a 10.0.0.1 ready"], "[10.0.0.1+r+s]:");
    }

    #[test]
    fn a_change_of_one_pod_rewrites_one_slice() {
        let service = service("80:8080");
        let texts: Vec<String> =
            (0..250).map(|i| format!("p{i:03} 10.0.{}.{} ready", i / 200, i % 200 + 1)).collect();
        let mut pods: Vec<_> = texts.iter().map(|t| backend(t)).collect();
        let slices = settle(Vec::new(), plan(&service, &pods, &[], |_| None));
        assert_eq!(slices.len(), 3);
        assert!(slices.iter().all(|s| s.endpoints.as_ref().unwrap().len() <= MAX_ENDPOINTS));
        pods.remove(120);
        let next = plan(&service, &pods, &slices, |_| None);
        assert_eq!((next.write.len(), next.delete.len()), (1, 0));
        let slices = settle(slices, next);
        assert_eq!(slices.iter().map(|s| s.endpoints.as_ref().unwrap().len()).sum::<usize>(), 249);
        let gone = plan(&service, &[], &slices, |_| None);
        let slices = settle(slices, gone);
        assert_eq!(show(&slices), "[]:");
    }

    #[test]
    fn endpoints_say_whom_they_are_for() {
        let hinted = |wish: &str| {
            let mut service = service("80:8080");
            service.spec.as_mut().unwrap().traffic_distribution = Some(wish.into());
            let plan = plan(&service, &[backend("a 10.0.0.1 ready")], &[], |_| Some("z1".into()));
            let hints = plan.write[0].endpoints.as_ref().unwrap()[0].hints.clone();
            serde_json::to_string(&hints).unwrap()
        };
        assert_eq!(hinted("PreferClose"), r#"{"forZones":[{"name":"z1"}]}"#);
        assert_eq!(hinted("PreferSameZone"), r#"{"forZones":[{"name":"z1"}]}"#);
        assert_eq!(hinted("PreferSameNode"), r#"{"forNodes":[{"name":"n1"}],"forZones":[{"name":"z1"}]}"#);
        assert_eq!(hinted(""), "null");
    }

    proptest::proptest! {
        /// However pods come and go: no endpoint is lost or listed twice, slices are not overfull, and a
        /// second pass changes nothing.
        #[test]
        fn every_pod_is_listed_once(rounds in proptest::collection::vec(proptest::collection::btree_set(0..400u32, 0..300), 1..4)) {
            let service = service("80:8080");
            let mut slices = Vec::new();
            for round in rounds {
                let pods: Vec<_> = round.iter()
                    .map(|i| backend(&format!("p{i} 10.0.{}.{} ready", i / 200, i % 200 + 1))).collect();
                let next = plan(&service, &pods, &slices, |_| None);
                slices = settle(slices, next);
                let again = plan(&service, &pods, &slices, |_| None);
                proptest::prop_assert!(again.write.is_empty() && again.delete.is_empty());
                let mut listed: Vec<String> = slices.iter().flat_map(|s| s.endpoints.iter().flatten())
                    .map(|e| e.target_ref.as_ref().unwrap().name.clone().unwrap()).collect();
                listed.sort();
                let mut wanted: Vec<String> = round.iter().map(|i| format!("p{i}")).collect();
                wanted.sort();
                proptest::prop_assert_eq!(listed, wanted);
                proptest::prop_assert!(slices.iter().all(|s| s.endpoints.iter().flatten().count() <= MAX_ENDPOINTS));
            }
        }
    }
}
