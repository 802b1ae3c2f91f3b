//! Gives Services of type LoadBalancer an address where there is no cloud to do so: the one
//! at which this cluster's service ports answer.
//!
//! Reads services. Writes `status.loadBalancer` of those without a class of their own, and
//! clears what it wrote when the type changes.

use std::sync::Arc;

use k8s_openapi::api::core::v1::{LoadBalancerIngress, LoadBalancerStatus, Service};

use crate::base::{
    Context, EventKind, Informer, Key, LoadBalancer, Next, Queue, Result, is_deleting, on_change,
};

const NAME: &str = "service-lb-controller";

pub(crate) async fn run(cx: Context) {
    if cx.settings.load_balancer == LoadBalancer::Nobody {
        return;
    }
    let queue = Arc::new(Queue::default());
    let services = cx.cache::<Service>();
    on_change(&services, &queue);
    services.ready().await;
    cx.work(NAME, &queue, cx.settings.workers, |key| reconcile(&cx, &services, key)).await;
}

async fn reconcile(cx: &Context, services: &Informer<Service>, key: Key) -> Result<Next> {
    let Some(service) = services.get(&key) else { return Ok(Next::Change) };
    if let Some(next) = plan(&service, &cx.settings.load_balancer) {
        cx.replace_status(&next).await?;
        cx.events.record(NAME, &*service, EventKind::Normal, "EnsuredLoadBalancer", "Ensured load balancer");
    }
    Ok(Next::Change)
}

/// The service with its status as it has to be, unless it is so already.
fn plan(service: &Service, balancer: &LoadBalancer) -> Option<Service> {
    let spec = service.spec.as_ref()?;
    if is_deleting(service) || spec.load_balancer_class.is_some() {
        return None;
    }
    let there =
        service.status.as_ref().and_then(|s| s.load_balancer.as_ref()?.ingress.clone()).unwrap_or_default();
    let wanted = match spec.type_.as_deref() {
        Some("LoadBalancer") => address(service, balancer)?,
        _ => Vec::new(),
    };
    if there == wanted {
        return None;
    }
    let mut next = service.clone();
    let ingress = (!wanted.is_empty()).then_some(wanted);
    next.status.get_or_insert_default().load_balancer = Some(LoadBalancerStatus { ingress });
    Some(next)
}

/// What the service is to be reached at; `None` as long as that is not known.
fn address(service: &Service, balancer: &LoadBalancer) -> Option<Vec<LoadBalancerIngress>> {
    match balancer {
        LoadBalancer::Nobody => None,
        LoadBalancer::At(address) => Some(vec![ingress(address)]),
        LoadBalancer::ClusterIp => {
            let spec = service.spec.as_ref()?;
            spec.cluster_ips.as_ref()?.iter().map(|ip| Some(ingress(ip))).collect()
        }
    }
}

/// An IP address, or a name.
fn ingress(address: &str) -> LoadBalancerIngress {
    let is_ip = address.parse::<std::net::IpAddr>().is_ok();
    LoadBalancerIngress {
        ip: is_ip.then(|| address.to_owned()),
        ip_mode: is_ip.then(|| "Proxy".to_owned()),
        hostname: (!is_ip).then(|| address.to_owned()),
        ports: None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn the_address_comes_and_goes_with_the_type() {
        let service =
            |spec: serde_json::Value| -> Service { serde_json::from_value(json!({"spec": spec})).unwrap() };
        let given_to =
            |s: &Service| s.status.as_ref()?.load_balancer.as_ref()?.ingress.as_ref()?[0].ip.clone();
        let at = LoadBalancer::At("10.1.2.3".into());
        let mut given = plan(&service(json!({"type": "LoadBalancer"})), &at).unwrap();
        assert_eq!(given_to(&given).as_deref(), Some("10.1.2.3"));
        assert!(plan(&given, &at).is_none(), "a second pass changes nothing");
        given.spec.as_mut().unwrap().type_ = Some("ClusterIP".into());
        assert_eq!(given_to(&plan(&given, &at).unwrap()), None);
        assert!(plan(&service(json!({"type": "ClusterIP"})), &at).is_none());
        let own = service(json!({"type": "LoadBalancer", "clusterIPs": ["127.43.0.9"]}));
        assert_eq!(given_to(&plan(&own, &LoadBalancer::ClusterIp).unwrap()).as_deref(), Some("127.43.0.9"));
        assert!(plan(&service(json!({"type": "LoadBalancer", "loadBalancerClass": "other"})), &at).is_none());
    }
}
