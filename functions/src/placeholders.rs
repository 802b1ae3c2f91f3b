//! The names of functions inside the cluster: for each route and each of its tags a Kubernetes Service of that name,
//! which is another name for the gateway.
//! Reads and writes Services that a route controls, and never touches another's.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use k8s_openapi::api::core::v1::Service;
use kube::{ResourceExt, api::DeleteParams};
use serde_json::{Value, json};
use wasmk_api::knative::{ROLLOUT_ANNOTATION, ROUTE_LABEL, Route, TrafficTarget, VISIBILITY_LABEL, label};

use crate::{
    cache::key_of,
    conditions::State,
    context::{Context, Error, controlled_by, failed, owner},
    fleet::Key,
    names::GATEWAY,
    route::Hosts,
};

/// A name that somebody else has is tried again after that: nobody tells when it is free.
pub(crate) const TAKEN: Duration = Duration::from_secs(5);
/// Where functions are served.
const PORT: u16 = 80;
/// Annotations that say something of the route alone.
const NOT_INHERITED: [&str; 2] = ["kubectl.kubernetes.io/last-applied-configuration", ROLLOUT_ANNOTATION];

/// Under what these Services are found: their route.
pub(crate) fn found_under(service: &Service) -> Vec<Key> {
    let route = label(&service.metadata, ROUTE_LABEL);
    route.map(|name| Key::new(service.namespace().unwrap_or_default(), name)).into_iter().collect()
}

/// Makes the Services that a route's traffic needs, and deletes those that it needs no more. `Some` says that it
/// cannot be, as the name of one is another's.
pub(crate) async fn keep(
    cx: &Context,
    route: &Route,
    hosts: &Hosts<'_>,
    traffic: &[TrafficTarget],
) -> Result<Option<State>, Error> {
    let key = key_of(route);
    let tags = traffic.iter().map(|target| target.tag.as_str());
    let names: BTreeSet<String> = std::iter::once("").chain(tags).map(|tag| hosts.name(tag)).collect();
    for name in &names {
        let there = cx.there.placeholders.get(&Key::new(&*key.namespace, &**name));
        let wanted = service(route, name, there.is_none());
        if cx.ensure::<Service>(there, &route.metadata, &wanted).await?.is_none() {
            let message = format!("There is an existing placeholder Service \"{name}\" that we do not own.");
            return Ok(Some(State::failed("NotOwned", message)));
        }
    }
    for service in cx.there.placeholders.under(&key) {
        if !names.contains(&service.name_any()) && controlled_by(&service.metadata, &route.metadata) {
            delete(cx, &service).await?;
        }
    }
    Ok(None)
}

async fn delete(cx: &Context, service: &Arc<Service>) -> Result<(), Error> {
    let key = key_of(&**service);
    match cx.api::<Service>(&key.namespace).delete(&key.name, &DeleteParams::default()).await {
        // The cache has not seen it go.
        Err(kube::Error::Api(status)) if status.is_not_found() => Ok(()),
        gone => gone.map(drop).map_err(|e| failed(format!("delete the service {key}"), e)),
    }
}

/// The Service of a route by that name. What the route's annotations say, it says as long as nobody says otherwise:
/// only a `new` one takes them.
fn service(route: &Route, name: &str, new: bool) -> Value {
    // Who may reach a tag is said of its own Service.
    let mut labels: BTreeMap<&str, &str> = BTreeMap::new();
    labels.extend(route.labels().iter().map(|(k, v)| (k.as_str(), v.as_str())));
    labels.remove(VISIBILITY_LABEL);
    let route_name = route.name_any();
    labels.insert(ROUTE_LABEL, &route_name);
    let mut metadata = json!({
        "name": name, "namespace": route.namespace(), "labels": labels, "ownerReferences": [owner(route)],
    });
    if new {
        let inherited = route.annotations().iter().filter(|(key, _)| !NOT_INHERITED.contains(&key.as_str()));
        metadata["annotations"] = json!(inherited.collect::<BTreeMap<_, _>>());
    }
    json!({
        "apiVersion": "v1", "kind": "Service", "metadata": metadata,
        "spec": {
            "type": "ExternalName", "externalName": GATEWAY, "sessionAffinity": "None",
            "ports": [{"name": "http2", "port": PORT, "protocol": "TCP", "targetPort": PORT}],
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_service_says_what_its_route_says() {
        let route: Route = serde_json::from_value(json!({
            "metadata": {
                "name": "hello", "namespace": "shop", "uid": "1",
                "labels": {VISIBILITY_LABEL: "cluster-local", "team": "a", "serving.knative.dev/service": "hello"},
                "annotations": {"serving.knative.dev/creator": "alice", ROLLOUT_ANNOTATION: "{}"},
            },
            "spec": {},
        }))
        .unwrap();
        let made = service(&route, "old-hello", true);
        assert_eq!(
            made["metadata"],
            json!({
                "name": "old-hello", "namespace": "shop",
                "labels": {"team": "a", "serving.knative.dev/service": "hello", ROUTE_LABEL: "hello"},
                "annotations": {"serving.knative.dev/creator": "alice"},
                "ownerReferences": [{
                    "apiVersion": "serving.knative.dev/v1", "kind": "Route", "name": "hello", "uid": "1",
                    "controller": true, "blockOwnerDeletion": true,
                }],
            })
        );
        assert!(service(&route, "old-hello", false)["metadata"].get("annotations").is_none());
        let made: Service = serde_json::from_value(made).unwrap();
        assert_eq!(found_under(&made), [Key::new("shop", "hello")]);
    }
}
