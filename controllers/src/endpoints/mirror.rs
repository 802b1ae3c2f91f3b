//! Copies Endpoints that somebody else keeps into EndpointSlices, which is all that proxies
//! look at.
//!
//! Reads services without selector and the Endpoints of the same name. Writes the slices it
//! manages; they are owned by the Endpoints and go with them.

use std::sync::Arc;

use k8s_openapi::api::{
    core::v1::{EndpointAddress, EndpointSubset, Endpoints, Service},
    discovery::v1::{Endpoint, EndpointConditions, EndpointPort, EndpointSlice},
};
use kube::api::ObjectMeta;
use wasmk_api::labels::SERVICE_NAME;

use crate::base::{
    Context, Informer, Key, Names, Next, Queue, Result, controller_ref, is_deleting, on_change, on_child, uid,
};

use super::{HEADLESS, selector};

const MANAGED_BY: (&str, &str) =
    ("endpointslice.kubernetes.io/managed-by", "endpointslicemirroring-controller.k8s.io");
/// Says that an Endpoints object is nobody's service.
const SKIP: &str = "endpointslice.kubernetes.io/skip-mirror";
const LEADER: &str = "control-plane.alpha.kubernetes.io/leader";
/// Addresses of one subset that are copied.
const MAX_ADDRESSES: usize = 1000;

struct Mirror {
    cx: Context,
    services: Arc<Informer<Service>>,
    sources: Arc<Informer<Endpoints>>,
    slices: Arc<Informer<EndpointSlice>>,
}

pub(crate) async fn run(cx: Context) {
    let queue = Arc::new(Queue::default());
    let mirror = Mirror { services: cx.cache(), sources: cx.cache(), slices: cx.cache(), cx: cx.clone() };
    on_change(&mirror.sources, &queue);
    on_change(&mirror.services, &queue);
    on_child::<Endpoints, EndpointSlice>(&mirror.slices, &queue);
    mirror.services.ready().await;
    mirror.sources.ready().await;
    mirror.slices.ready().await;
    cx.work("endpointslice-mirroring-controller", &queue, cx.settings.workers, |key| mirror.reconcile(key))
        .await;
}

impl Mirror {
    async fn reconcile(&self, key: Key) -> Result<Next> {
        let Some(source) = self.sources.get(&key).filter(|e| !is_deleting(&**e)) else {
            return Ok(Next::Change);
        };
        let service = self.services.get(&key).filter(|s| selector(s).is_none());
        let wanted = match service {
            Some(service) if is_mirrored(&source) => wanted(&service, &source),
            _ => Vec::new(),
        };
        let there = self.slices.controlled_by(uid(&*source));
        for stale in there.iter().filter(|s| !wanted.iter().any(|w| w.metadata.name == s.metadata.name)) {
            self.cx.delete(&**stale, Default::default()).await?;
        }
        for mut slice in wanted {
            match there.iter().find(|s| s.metadata.name == slice.metadata.name) {
                None => match self.cx.create(&slice).await {
                    Err(error) if error.is_namespace_terminating() => {}
                    other => drop(other?),
                },
                Some(old) => {
                    let labels = slice.metadata.labels.take();
                    slice.metadata = old.metadata.clone();
                    slice.metadata.labels = labels;
                    if slice != **old {
                        self.cx.replace(&slice).await?;
                    }
                }
            }
        }
        Ok(Next::Change)
    }
}

fn is_mirrored(source: &Endpoints) -> bool {
    let labels = source.metadata.labels.as_ref();
    let skipped = labels.and_then(|l| l.get(SKIP)).is_some_and(|v| v == "true");
    let leader = source.metadata.annotations.as_ref().is_some_and(|a| a.contains_key(LEADER));
    !skipped && !leader
}

/// The slices of an Endpoints object: one per subset and address family.
fn wanted(service: &Service, source: &Endpoints) -> Vec<EndpointSlice> {
    let mut all = Vec::new();
    for (place, subset) in source.subsets.iter().flatten().enumerate() {
        for family in ["IPv4", "IPv6"] {
            let endpoints = endpoints(subset, family);
            if !endpoints.is_empty() {
                all.push(slice(service, source, subset, place, family, endpoints));
            }
        }
    }
    all
}

fn endpoints(subset: &EndpointSubset, family: &str) -> Vec<Endpoint> {
    let of = |list: &Option<Vec<EndpointAddress>>, ready: bool| -> Vec<Endpoint> {
        let right = list.iter().flatten().filter(|a| a.ip.contains(':') == (family == "IPv6"));
        let copy = |a: &EndpointAddress| Endpoint {
            addresses: vec![a.ip.clone()],
            conditions: Some(EndpointConditions { ready: Some(ready), ..Default::default() }),
            hostname: a.hostname.clone(),
            node_name: a.node_name.clone(),
            target_ref: a.target_ref.clone(),
            ..Default::default()
        };
        right.map(copy).collect()
    };
    let mut all = of(&subset.addresses, true);
    all.extend(of(&subset.not_ready_addresses, false));
    all.truncate(MAX_ADDRESSES);
    all
}

fn slice(
    service: &Service,
    source: &Endpoints,
    subset: &EndpointSubset,
    place: usize,
    family: &str,
    endpoints: Vec<Endpoint>,
) -> EndpointSlice {
    let name = source.metadata.name.clone().unwrap_or_default();
    let names = Names::new(&name, &format!("{}/{place}/{family}", uid(source)));
    let mut labels = source.metadata.labels.clone().unwrap_or_default();
    labels.insert(SERVICE_NAME.into(), name);
    labels.insert(MANAGED_BY.0.into(), MANAGED_BY.1.into());
    if super::is_headless(service) {
        labels.insert(HEADLESS.into(), String::new());
    }
    let port = |p: &k8s_openapi::api::core::v1::EndpointPort| EndpointPort {
        name: Some(p.name.clone().unwrap_or_default()),
        port: Some(p.port),
        protocol: Some(super::protocol(p.protocol.as_deref()).to_owned()),
        app_protocol: p.app_protocol.clone(),
    };
    EndpointSlice {
        metadata: ObjectMeta {
            namespace: source.metadata.namespace.clone(),
            name: Some(names.name(0)),
            labels: Some(labels),
            owner_references: Some(vec![controller_ref(source)]),
            ..Default::default()
        },
        address_type: family.into(),
        endpoints: Some(endpoints),
        ports: subset.ports.as_ref().map(|ports| ports.iter().map(port).collect()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn each_subset_and_family_is_a_slice() {
        let service =
            serde_json::from_value(json!({"metadata": {"name": "db"}, "spec": {"clusterIP": "127.43.0.7"}}))
                .unwrap();
        let source: Endpoints = serde_json::from_value(json!({
            "metadata": {"name": "db", "namespace": "ns", "uid": "e"},
            "subsets": [
                {"addresses": [{"ip": "10.0.0.1"}, {"ip": "fd00::1"}], "notReadyAddresses": [{"ip": "10.0.0.2"}], "ports": [{"port": 80}]},
                {"addresses": [{"ip": "10.0.0.3"}], "ports": [{"name": "x", "port": 81}]},
            ],
        }))
        .unwrap();
        let show = |s: &EndpointSlice| {
            let ready = |e: &Endpoint| e.conditions.as_ref().unwrap().ready.unwrap();
            let ends: Vec<_> =
                s.endpoints.iter().flatten().map(|e| format!("{}:{}", e.addresses[0], ready(e))).collect();
            format!("{} {} {}", s.address_type, ends.join(" "), s.ports.as_ref().unwrap()[0].port.unwrap())
        };
        let all = wanted(&service, &source);
        assert_eq!(
            all.iter().map(show).collect::<Vec<_>>(),
            ["IPv4 10.0.0.1:true 10.0.0.2:false 80", "IPv6 fd00::1:true 80", "IPv4 10.0.0.3:true 81"]
        );
        let mut names: Vec<_> = all.iter().map(|s| s.metadata.name.clone()).collect();
        names.dedup();
        assert_eq!(names.len(), 3);
        let mut skipped = source;
        skipped.metadata.labels = Some([(SKIP.to_owned(), "true".to_owned())].into());
        assert!(!is_mirrored(&skipped));
    }
}
