//! Keeps each Service's Configuration and Route as its spec says.
//! Reads services, configurations, routes. Writes configurations, routes, services/status.
//! Never touches a Configuration or Route that another object controls.

use std::{collections::BTreeMap, sync::Arc};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::{Resource, ResourceExt};
use serde_json::{Value, json};
use wasmk_api::{
    Timestamp,
    knative::{Condition, Configuration, Route, SERVICE_LABEL, Service, ServiceStatus, TrafficTarget},
};

use crate::{
    conditions::{State, assemble},
    configuration::has_spoken,
    context::{Context, Error, SILENCE, is_silent, owner},
    fleet::Key,
    passes::Again,
};

/// Annotations that belong to the Service's own file and not to what it owns.
const NOT_INHERITED: [&str; 1] = ["kubectl.kubernetes.io/last-applied-configuration"];

/// One pass.
pub(crate) async fn reconcile(key: Key, cx: Arc<Context>) -> Result<Again, Error> {
    let Some(service) = cx.there.services.get(&key) else { return Ok(Again::OnChange) };
    if service.metadata.deletion_timestamp.is_some() {
        return Ok(Again::OnChange);
    }
    let (owner, found) = (&service.metadata, cx.there.configurations.get(&key));
    let Some(configuration) = cx.ensure(found, owner, &configuration(&service)).await? else {
        return not_owned(&cx, &service, "Configuration").await;
    };
    let found = cx.there.routes.get(&key);
    let Some(route) = cx.ensure(found, owner, &route(&service)).await? else {
        return not_owned(&cx, &service, "Route").await;
    };
    let now = cx.now();
    if !(has_spoken(&configuration) && route.status.is_some())
        && is_silent(owner, service.status.as_ref(), now)
    {
        return Ok(Again::In(SILENCE));
    }
    let status = status(&service, &configuration, &route, now);
    cx.write_status(&*service, service.status.as_ref(), &status).await?;
    Ok(Again::OnChange)
}

async fn not_owned(cx: &Context, service: &Service, kind: &str) -> Result<Again, Error> {
    let name = service.name_any();
    let message = format!("There is an existing {kind} \"{name}\" that we do not own.");
    let state = State::failed("NotOwned", message);
    let old = service.status.clone().unwrap_or_default();
    let counting = [("ConfigurationsReady", state.clone()), ("RoutesReady", state)];
    let conditions = assemble(&old.conditions, &counting, &[], cx.now());
    let status = ServiceStatus { conditions, observed_generation: service.metadata.generation, ..old };
    cx.write_status(service, service.status.as_ref(), &status).await?;
    Ok(Again::OnChange)
}

/// The Configuration a Service wants.
pub(crate) fn configuration(service: &Service) -> Value {
    json!({
        "apiVersion": Configuration::api_version(&()),
        "kind": Configuration::kind(&()),
        "metadata": owned_metadata(service),
        "spec": {"template": service.spec.template},
    })
}

/// The Route a Service wants: its traffic, with "latest" meaning its own Configuration's.
pub(crate) fn route(service: &Service) -> Value {
    let all = [TrafficTarget { percent: Some(100), latest_revision: Some(true), ..Default::default() }];
    let targets = if service.spec.traffic.is_empty() { &all[..] } else { &service.spec.traffic };
    let traffic: Vec<TrafficTarget> = targets
        .iter()
        .map(|target| match &target.revision_name {
            Some(_) => TrafficTarget { latest_revision: Some(false), ..target.clone() },
            None => TrafficTarget {
                configuration_name: Some(service.name_any()),
                latest_revision: Some(true),
                ..target.clone()
            },
        })
        .collect();
    json!({
        "apiVersion": Route::api_version(&()),
        "kind": Route::kind(&()),
        "metadata": owned_metadata(service),
        "spec": {"traffic": traffic},
    })
}

fn owned_metadata(service: &Service) -> ObjectMeta {
    let mut labels = service.metadata.labels.clone().unwrap_or_default();
    labels.insert(SERVICE_LABEL.into(), service.name_any());
    let annotations: BTreeMap<String, String> = service
        .annotations()
        .iter()
        .filter(|(key, _)| !NOT_INHERITED.contains(&key.as_str()))
        .map(|(k, v)| (k.clone(), v.clone()))
        .collect();
    ObjectMeta {
        name: service.metadata.name.clone(),
        namespace: service.metadata.namespace.clone(),
        labels: Some(labels),
        annotations: (!annotations.is_empty()).then_some(annotations),
        owner_references: Some(vec![owner(service)]),
        ..Default::default()
    }
}

/// What a Service has come to, given what it owns.
pub(crate) fn status(
    service: &Service,
    configuration: &Configuration,
    route: &Route,
    now: Timestamp,
) -> ServiceStatus {
    let old = service.status.clone().unwrap_or_default();
    let made = configuration.status.clone().unwrap_or_default();
    let routed = route.status.clone().unwrap_or_default();
    let configurations_ready =
        mirrored(&made.conditions, made.observed_generation == configuration.metadata.generation);
    let mut routes_ready =
        mirrored(&routed.conditions, routed.observed_generation == route.metadata.generation);
    if routes_ready == State::True
        && !follows(&routed.traffic, route, made.latest_ready_revision_name.as_deref())
    {
        routes_ready =
            State::waiting("TrafficNotMigrated", "Traffic is not yet migrated to the latest revision.");
    }
    let counting = [("ConfigurationsReady", configurations_ready), ("RoutesReady", routes_ready)];
    ServiceStatus {
        observed_generation: service.metadata.generation,
        conditions: assemble(&old.conditions, &counting, &[], now),
        latest_created_revision_name: made.latest_created_revision_name,
        latest_ready_revision_name: made.latest_ready_revision_name,
        url: routed.url,
        address: routed.address,
        traffic: routed.traffic,
    }
}

/// Whether targets that follow the latest revision have arrived at it.
fn follows(actual: &[TrafficTarget], route: &Route, latest: Option<&str>) -> bool {
    let wanted = route.spec.traffic.iter().zip(actual);
    wanted.into_iter().all(|(want, is)| want.revision_name.is_some() || is.revision_name.as_deref() == latest)
}

/// The `Ready` condition of an owned object, as a condition of its owner.
fn mirrored(conditions: &[Condition], up_to_date: bool) -> State {
    let Some(ready) = conditions.iter().find(|c| c.type_ == "Ready").filter(|_| up_to_date) else {
        return State::waiting("", "");
    };
    match ready.status.as_str() {
        "True" => State::True,
        "False" => State::failed(&ready.reason, &*ready.message),
        _ => State::waiting(&ready.reason, &*ready.message),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn service(traffic: Value) -> Service {
        serde_json::from_value(json!({
            "metadata": {"name": "hello", "namespace": "default", "uid": "u", "labels": {"a": "b"},
                "annotations": {"kubectl.kubernetes.io/last-applied-configuration": "{}", "note": "n"}},
            "spec": {"template": {"spec": {"containers": [{"image": "hello:1", "name": ""}]}}, "traffic": traffic},
        }))
        .unwrap()
    }

    #[test]
    fn all_traffic_goes_to_the_latest_revision_unless_said_otherwise() {
        let traffic = |given| route(&service(given))["spec"]["traffic"].clone();
        assert_eq!(
            traffic(json!([])),
            json!([{"configurationName": "hello", "latestRevision": true, "percent": 100}])
        );
        assert_eq!(
            traffic(
                json!([{"revisionName": "hello-00001", "percent": 90, "tag": "old"}, {"latestRevision": true, "percent": 10}])
            ),
            json!([
                {"tag": "old", "revisionName": "hello-00001", "latestRevision": false, "percent": 90},
                {"configurationName": "hello", "latestRevision": true, "percent": 10},
            ])
        );
    }

    #[test]
    fn labels_and_annotations_are_handed_on() {
        let configuration = configuration(&service(json!([])));
        let metadata = &configuration["metadata"];
        assert_eq!(metadata["labels"], json!({"a": "b", "serving.knative.dev/service": "hello"}));
        assert_eq!(metadata["annotations"], json!({"note": "n"}));
        assert_eq!(metadata["ownerReferences"][0]["controller"], true);
    }
}
