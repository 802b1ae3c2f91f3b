//! Decides which revisions each Route's traffic goes to.
//! Reads routes, configurations, revisions. Writes routes/status.
//! Keeps the last good split while a new one cannot be served.

use std::{collections::HashMap, sync::Arc};

use kube::{ResourceExt, runtime::controller::Action};
use wasmk_api::{
    Timestamp,
    knative::{Address, Configuration, Revision, Route, RouteStatus, TrafficTarget, VISIBILITY_LABEL, label},
};

use crate::{
    conditions::{State, assemble},
    context::{Context, Error},
    names, revision,
};

/// One pass.
pub(crate) async fn reconcile(route: Arc<Route>, cx: Arc<Context>) -> Result<Action, Error> {
    if route.metadata.deletion_timestamp.is_some() {
        return Ok(Action::await_change());
    }
    let namespace = route.namespace().unwrap_or_default();
    let mut known = Known::default();
    for target in &route.spec.traffic {
        if let Some(name) = &target.configuration_name {
            known.configurations.insert(name.clone(), cx.find::<Configuration>(&namespace, name).await?);
        }
        if let Some(name) = &target.revision_name {
            known.revisions.insert(name.clone(), cx.find::<Revision>(&namespace, name).await?);
        }
    }
    let status = status(&route, &known, &cx.domain, cx.now());
    cx.write_status(&*route, route.status.as_ref(), &status).await?;
    Ok(Action::await_change())
}

/// What a route's targets name, as far as it exists.
#[derive(Debug, Default)]
pub(crate) struct Known {
    /// Configurations by name.
    pub configurations: HashMap<String, Option<Configuration>>,
    /// Revisions by name.
    pub revisions: HashMap<String, Option<Revision>>,
}

/// What a Route has come to.
pub(crate) fn status(route: &Route, known: &Known, domain: &str, now: Timestamp) -> RouteStatus {
    let old = route.status.clone().unwrap_or_default();
    let (name, namespace) = (route.name_any(), route.namespace().unwrap_or_default());
    let local = label(&route.metadata, VISIBILITY_LABEL) == Some("cluster-local");
    let suffix = if local { names::CLUSTER_DOMAIN } else { domain };
    let url = |tag: &str| format!("http://{}", names::host(&name, tag, &namespace, suffix));
    let targets: Result<Vec<TrafficTarget>, State> =
        route.spec.traffic.iter().map(|target| resolved(target, known, &url)).collect();
    let (traffic, assigned) = match targets {
        Ok(targets) => (targets, State::True),
        Err(state) => (old.traffic, state),
    };
    let ingress = if traffic.is_empty() { State::waiting("NoTraffic", "") } else { State::True };
    let certificate = ("CertificateProvisioned", State::True);
    let counting = [("AllTrafficAssigned", assigned), certificate, ("IngressReady", ingress)];
    let inside = format!("http://{name}.{namespace}.{}", names::CLUSTER_DOMAIN);
    RouteStatus {
        observed_generation: route.metadata.generation,
        conditions: assemble(&old.conditions, &counting, &[], now),
        url: Some(url("")),
        address: Some(Address { url: inside }),
        traffic,
    }
}

/// A target with the revision it stands for.
fn resolved(
    target: &TrafficTarget,
    known: &Known,
    url: &impl Fn(&str) -> String,
) -> Result<TrafficTarget, State> {
    let name = match (&target.revision_name, &target.configuration_name) {
        (Some(name), _) => {
            let missing = || {
                State::failed(
                    "RevisionMissing",
                    format!("Revision \"{name}\" referenced in traffic not found."),
                )
            };
            let found = known.revisions.get(name).and_then(Option::as_ref).ok_or_else(missing)?;
            let ready = found.status.as_ref().is_some_and(|s| revision::ready(&s.conditions));
            if !ready {
                let why = format!("Revision \"{name}\" failed to become ready.");
                return Err(State::failed("RevisionMissing", why));
            }
            name.clone()
        }
        (None, Some(name)) => {
            let missing = || {
                State::failed(
                    "ConfigurationMissing",
                    format!("Configuration \"{name}\" referenced in traffic not found."),
                )
            };
            let found = known.configurations.get(name).and_then(Option::as_ref).ok_or_else(missing)?;
            let latest = found.status.as_ref().and_then(|s| s.latest_ready_revision_name.clone());
            latest.ok_or_else(|| {
                State::waiting(
                    "RevisionMissing",
                    format!("Configuration \"{name}\" is waiting for a Revision to become ready."),
                )
            })?
        }
        (None, None) => {
            return Err(State::failed(
                "ConfigurationMissing",
                "A traffic target names neither a revision nor a configuration.",
            ));
        }
    };
    Ok(TrafficTarget {
        tag: target.tag.clone(),
        revision_name: Some(name),
        configuration_name: None,
        latest_revision: Some(target.revision_name.is_none()),
        percent: target.percent,
        url: (!target.tag.is_empty()).then(|| url(&target.tag)),
    })
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn check(traffic: Value, want_traffic: Value, want_ready: &str) {
        let route: Route = serde_json::from_value(json!({
            "metadata": {"name": "hello", "namespace": "default"}, "spec": {"traffic": traffic}
        }))
        .unwrap();
        let mut known = Known::default();
        let configuration =
            json!({"metadata": {"name": "hello"}, "status": {"latestReadyRevisionName": "hello-00002"}});
        known.configurations.insert("hello".into(), serde_json::from_value(configuration).unwrap());
        known
            .configurations
            .insert("new".into(), serde_json::from_value(json!({"metadata": {"name": "new"}})).unwrap());
        let revision = json!({"metadata": {"name": "hello-00001"}, "spec": {"containers": []}, "status": {"conditions": [{"type": "Ready", "status": "True"}]}});
        known.revisions.insert("hello-00001".into(), serde_json::from_value(revision).unwrap());
        let status = status(&route, &known, "example.com", Timestamp::now());
        assert_eq!(serde_json::to_value(&status.traffic).unwrap(), want_traffic);
        assert_eq!(status.conditions.iter().find(|c| c.type_ == "Ready").unwrap().status, want_ready);
        assert_eq!(status.url.as_deref(), Some("http://hello.default.example.com"));
    }

    #[test]
    fn targets_become_revisions() {
        check(
            json!([{"configurationName": "hello", "percent": 90}, {"revisionName": "hello-00001", "percent": 10, "tag": "old"}]),
            json!([
                {"revisionName": "hello-00002", "latestRevision": true, "percent": 90},
                {"tag": "old", "revisionName": "hello-00001", "latestRevision": false, "percent": 10,
                    "url": "http://old-hello.default.example.com"},
            ]),
            "True",
        );
    }

    #[test]
    fn what_is_missing_is_said() {
        check(json!([{"configurationName": "nowhere", "percent": 100}]), json!([]), "False");
        check(json!([{"revisionName": "nowhere", "percent": 100}]), json!([]), "False");
        check(json!([{"configurationName": "new", "percent": 100}]), json!([]), "Unknown");
    }
}
