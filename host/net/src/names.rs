//! Names of the cluster: `web`, `web.shop`, `web.shop.svc`, `web.shop.svc.cluster.local` and
//! the pods of headless services.

use std::{net::IpAddr, sync::Arc};

use wasmk_api::k8s_openapi::api::{
    core::v1::Service,
    discovery::v1::{Endpoint, EndpointSlice},
};

use crate::{slices::Slices, srv::dashed, view::View};

/// Domain of the cluster.
pub const DOMAIN: &str = "cluster.local";

/// Names that stand for other names are followed so often.
pub const MAX_ALIASES: usize = 4;

/// What a cluster name stands for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// These addresses; none when the name exists and nothing is ready.
    Addresses(Vec<IpAddr>),
    /// Another name, of the cluster or not (`ExternalName`).
    Alias(String),
}

/// Looks a name up as a pod of `namespace` would; `None` when it is not one of the cluster's.
pub fn resolve(view: &View, namespace: &str, name: &str) -> Option<Answer> {
    candidates(namespace, name).into_iter().find_map(|(ns, service, host)| {
        let alias = || view.alias(&ns, &service).map(|target| Answer::Alias(target.to_string()));
        // Below another name there is nothing.
        if let Some(alias) = host.is_none().then(alias).flatten() {
            return Some(alias);
        }
        let service = view.service(&ns, &service)?;
        answer(&service, host.as_deref(), || view.slices())
    })
}

/// Namespace, service and pod host name that a name may mean, the likeliest first.
fn candidates(namespace: &str, name: &str) -> Vec<(String, String, Option<String>)> {
    let name = name.trim_end_matches('.').to_ascii_lowercase();
    let bare = name.strip_suffix(DOMAIN).and_then(|n| n.strip_suffix('.')).unwrap_or(&name);
    let (bare, full) = match bare.strip_suffix(".svc") {
        Some(bare) => (bare, true),
        None => (bare, false),
    };
    let parts: Vec<&str> = bare.split('.').collect();
    let own = |s: &str| s.to_string();
    match (parts.as_slice(), full) {
        ([service], false) => vec![(own(namespace), own(service), None)],
        ([service, ns], _) => {
            let mut list = vec![(own(ns), own(service), None)];
            if !full {
                list.push((own(namespace), own(ns), Some(own(service))));
            }
            list
        }
        ([host, service, ns], _) => vec![(own(ns), own(service), Some(own(host)))],
        _ => Vec::new(),
    }
}

fn answer(service: &Service, host: Option<&str>, slices: impl Fn() -> Arc<Slices>) -> Option<Answer> {
    let spec = service.spec.as_ref()?;
    let ip = spec.cluster_ip.as_deref().and_then(|ip| ip.parse::<IpAddr>().ok());
    if let (Some(ip), None) = (ip, host) {
        return Some(Answer::Addresses(vec![ip]));
    }
    let all_ready = spec.publish_not_ready_addresses == Some(true);
    let part = |s: &Option<String>| s.clone().unwrap_or_default();
    let (namespace, name) = (part(&service.metadata.namespace), part(&service.metadata.name));
    let found = endpoints(slices().of(&namespace, &name), host, all_ready);
    (host.is_none() || !found.is_empty()).then_some(Answer::Addresses(found))
}

fn endpoints(slices: &[Arc<EndpointSlice>], host: Option<&str>, all: bool) -> Vec<IpAddr> {
    let mut out: Vec<IpAddr> = slices
        .iter()
        .flat_map(|s| s.endpoints.iter().flatten())
        .filter(|e| serves(e, all) && host.is_none_or(|host| is_called(e, host)))
        .flat_map(|e| e.addresses.iter().filter_map(|a| a.parse().ok()))
        .collect();
    out.sort_unstable();
    out.dedup();
    out
}

/// Whether an endpoint has a name: it is ready, or `all` have.
pub(crate) fn serves(endpoint: &Endpoint, all: bool) -> bool {
    all || endpoint.conditions.as_ref().and_then(|c| c.ready).unwrap_or(true)
}

/// Whether an endpoint has that name below its Service.
fn is_called(endpoint: &Endpoint, host: &str) -> bool {
    match &endpoint.hostname {
        Some(name) => name == host,
        None => endpoint.addresses.iter().any(|address| dashed(address) == host),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};
    use wasmk_api::{k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta, labels::SERVICE_NAME};

    use super::*;

    #[test]
    fn names_are_taken_apart() {
        let check = |name: &str, expect: &[&str]| {
            let list = candidates("shop", name);
            let show = |(ns, s, h): &(String, String, Option<String>)| match h {
                Some(h) => format!("{h}@{s}/{ns}"),
                None => format!("{s}/{ns}"),
            };
            assert_eq!(list.iter().map(show).collect::<Vec<_>>(), expect, "{name}");
        };
        check("web", &["web/shop"]);
        check("Web.other", &["web/other", "web@other/shop"]);
        check("web.other.svc", &["web/other"]);
        check("web.other.svc.cluster.local.", &["web/other"]);
        check("db-0.db.other.svc.cluster.local", &["db-0@db/other"]);
        check("www.example.com.org", &[]);
    }

    #[test]
    fn services_answer_by_their_kind() {
        let slice: EndpointSlice = serde_json::from_value(json!({
            "metadata": {"namespace": "shop", "labels": {SERVICE_NAME: "db"}}, "addressType": "IPv4",
            "endpoints": [
                {"addresses": ["127.42.0.3"], "hostname": "db-0"},
                {"addresses": ["127.42.0.2"], "conditions": {"ready": false}},
                {"addresses": ["127.42.0.4"]},
            ],
        }))
        .unwrap();
        let other = EndpointSlice {
            metadata: ObjectMeta { namespace: Some("other".into()), ..slice.metadata.clone() },
            ..slice.clone()
        };
        let slices = || -> Arc<Slices> {
            Arc::new([slice.clone(), other.clone()].map(Arc::new).into_iter().collect())
        };
        let check = |spec: Value, host: Option<&str>, expect: Option<Answer>| {
            let service = json!({"metadata": {"namespace": "shop", "name": "db"}, "spec": spec});
            let service: Service = serde_json::from_value(service).unwrap();
            assert_eq!(answer(&service, host, slices), expect, "{spec} {host:?}");
        };
        let ips = |list: &[&str]| Some(Answer::Addresses(list.iter().map(|i| i.parse().unwrap()).collect()));
        check(json!({"clusterIP": "127.43.0.7"}), None, ips(&["127.43.0.7"]));
        check(json!({"clusterIP": "None"}), None, ips(&["127.42.0.3", "127.42.0.4"]));
        check(json!({"clusterIP": "None"}), Some("127-42-0-4"), ips(&["127.42.0.4"]));
        check(json!({"clusterIP": "None"}), Some("127-42-0-3"), None);
        check(json!({"clusterIP": "None"}), Some("db-0"), ips(&["127.42.0.3"]));
        check(json!({"clusterIP": "None"}), Some("db-7"), None);
        let all = json!({"clusterIP": "None", "publishNotReadyAddresses": true});
        check(all, None, ips(&["127.42.0.2", "127.42.0.3", "127.42.0.4"]));
    }
}
