//! Decides which revisions each Route's traffic goes to.
//! Reads routes, configurations, revisions. Writes routes/status, how far rollouts are in an annotation, and the
//! Services by which the cluster knows a route.
//! Keeps the last good split while a new one cannot be served.

use std::{collections::HashMap, sync::Arc, time::Duration};

use serde_json::json;
use wasmk_api::{
    Timestamp,
    knative::{
        Address, Configuration, ROLLOUT_ANNOTATION, Revision, Route, RouteStatus, TrafficTarget,
        VISIBILITY_LABEL, annotation, condition, label,
    },
};

use crate::{
    admission::ROLLOUT,
    conditions::{State, assemble},
    config::{Config, Named, duration},
    configuration::has_spoken,
    context::{Context, Error, SILENCE, is_silent},
    fleet::Key,
    names,
    passes::Again,
    placeholders, revision,
    rollout::{self, Rollouts},
};

/// One pass.
pub(crate) async fn reconcile(key: Key, cx: Arc<Context>) -> Result<Again, Error> {
    let Some(route) = cx.there.routes.get(&key) else { return Ok(Again::OnChange) };
    if route.metadata.deletion_timestamp.is_some() {
        return Ok(Again::OnChange);
    }
    cx.references.note(&route, &[], []);
    let known = known(&route, &key.namespace, &cx).await?;
    let waits = known.configurations.values().flatten().any(|c| !has_spoken(c));
    if waits && is_silent(&route.metadata, route.status.as_ref(), cx.now()) {
        return Ok(Again::In(SILENCE));
    }
    let config = cx.live.get();
    let old = Rollouts::of(&route);
    let mut status = status(&route, &known, &config, cx.now());
    let span = rollout_span(&route, &config);
    let before = route.status.as_ref().map(|s| s.traffic.as_slice()).unwrap_or_default();
    let rollouts = rollout::plan(&old, before, &status.traffic, span, cx.now());
    cx.references.note(&route, &status.traffic, rollouts.revisions());
    if !rollouts.is_empty() {
        let why = "A gradual rollout of the latest revision(s) is in progress.";
        held_up(&route, &mut status, State::waiting("RolloutInProgress", why), cx.now());
    }
    let mut again = if rollouts.is_empty() { Again::OnChange } else { Again::In(rollout::step(span)) };
    if is_assigned(&status) {
        match placeholders::keep(&cx, &route, &Hosts::of(&route, &config), &status.traffic).await {
            Ok(None) => {}
            Ok(Some(state)) => {
                held_up(&route, &mut status, state, cx.now());
                again = again.but_within(placeholders::TAKEN);
            }
            Err(error) => {
                held_up(
                    &route,
                    &mut status,
                    State::waiting("IngressNotConfigured", error.to_string()),
                    cx.now(),
                );
                cx.write_status(&*route, route.status.as_ref(), &status).await?;
                return Err(error);
            }
        }
    }
    if rollouts == old {
        cx.write_status(&*route, route.status.as_ref(), &status).await?;
        return Ok(again);
    }
    // Before the status, so that no moment sends everything to the new revision.
    cx.annotate(&*route, json!({"annotations": {ROLLOUT_ANNOTATION: rollouts.text()}})).await?;
    // The change of the annotation brings another pass, which writes the status.
    if status.traffic == before {
        return Ok(again);
    }
    let Some(fresh) = cx.find::<Route>(&key.namespace, &key.name).await? else { return Ok(Again::OnChange) };
    cx.write_status(&fresh, fresh.status.as_ref(), &status).await?;
    Ok(again)
}

/// What a route's targets name.
async fn known(route: &Route, namespace: &str, cx: &Context) -> Result<Known, Error> {
    let mut known = Known::default();
    for target in &route.spec.traffic {
        if let Some(name) = &target.configuration_name {
            let found = cx.known(&cx.there.configurations, &Key::new(namespace, name)).await?;
            known.configurations.insert(name.clone(), found);
        }
        if let Some(name) = &target.revision_name {
            let found = cx.known(&cx.there.revisions, &Key::new(namespace, name)).await?;
            known.revisions.insert(name.clone(), found);
        }
    }
    Ok(known)
}

/// How long a new revision takes to get all of its traffic.
fn rollout_span(route: &Route, config: &Config) -> Duration {
    let given = ROLLOUT.iter().find_map(|key| annotation(&route.metadata, key)).and_then(duration);
    given.unwrap_or(config.network.rollout)
}

/// Whether it is known which revisions all of the traffic goes to.
fn is_assigned(status: &RouteStatus) -> bool {
    condition(&status.conditions, "AllTrafficAssigned") == Some(true)
}

/// A route whose revisions are known is not ready yet: while traffic still moves, or while it has not its names.
fn held_up(route: &Route, status: &mut RouteStatus, why: State, now: Timestamp) {
    if is_assigned(status) {
        let old = route.status.clone().unwrap_or_default().conditions;
        let counting = [
            ("AllTrafficAssigned", State::True),
            ("CertificateProvisioned", State::True),
            ("IngressReady", why),
        ];
        status.conditions = assemble(&old, &counting, &[], now);
    }
}

/// The hosts that a route has.
pub(crate) struct Hosts<'a> {
    config: &'a Config,
    named: Named<'a>,
    outside: Option<&'a str>,
}

impl<'a> Hosts<'a> {
    /// Those of this route: outside ones only if it is not kept inside.
    pub(crate) fn of(route: &'a Route, config: &'a Config) -> Self {
        let labels = route.metadata.labels.as_ref();
        let domain = config.domains.of(labels);
        let local = label(&route.metadata, VISIBILITY_LABEL) == Some("cluster-local");
        let outside = (!local && domain != names::CLUSTER_DOMAIN).then_some(domain);
        let named = Named {
            name: route.metadata.name.as_deref().unwrap_or(""),
            namespace: route.metadata.namespace.as_deref().unwrap_or(""),
            labels,
            annotations: route.metadata.annotations.as_ref(),
        };
        Self { config, named, outside }
    }

    /// The host reached from outside, of the route (empty) or of a tag.
    pub(crate) fn outside(&self, tag: &str) -> Option<String> {
        Some(self.config.network.host(&self.named, tag, self.outside?))
    }

    /// What the route (empty) or a tag is called in its namespace.
    pub(crate) fn name(&self, tag: &str) -> String {
        self.config.network.name(&self.named, tag)
    }

    /// The host reached from inside the cluster.
    pub(crate) fn inside(&self, tag: &str) -> String {
        format!("{}.{}.{}", self.name(tag), self.named.namespace, names::CLUSTER_DOMAIN)
    }

    fn url(&self, tag: &str) -> String {
        match self.outside(tag) {
            Some(host) => format!("{}://{host}", self.config.network.scheme),
            None => format!("http://{}", self.inside(tag)),
        }
    }
}

/// What a route's targets name, as far as it exists.
#[derive(Debug, Default)]
pub(crate) struct Known {
    /// Configurations by name.
    pub configurations: HashMap<String, Option<Arc<Configuration>>>,
    /// Revisions by name.
    pub revisions: HashMap<String, Option<Arc<Revision>>>,
}

/// What a Route has come to.
pub(crate) fn status(route: &Route, known: &Known, config: &Config, now: Timestamp) -> RouteStatus {
    let old = route.status.clone().unwrap_or_default();
    let hosts = Hosts::of(route, config);
    let url = |tag: &str| hosts.url(tag);
    let targets: Result<Vec<TrafficTarget>, State> =
        route.spec.traffic.iter().map(|target| resolved(target, known, &url)).collect();
    let (traffic, assigned) = match targets {
        Ok(targets) => (targets, State::True),
        Err(state) => (old.traffic, state),
    };
    let ingress = if traffic.is_empty() { State::waiting("NoTraffic", "") } else { State::True };
    let certificate = ("CertificateProvisioned", State::True);
    let counting = [("AllTrafficAssigned", assigned), certificate, ("IngressReady", ingress)];
    let inside = format!("http://{}", hosts.inside(""));
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
            let found = known.revisions.get(name).and_then(Option::as_deref).ok_or_else(missing)?;
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
            let found = known.configurations.get(name).and_then(Option::as_deref).ok_or_else(missing)?;
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
    use serde_json::Value;

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
        let status = status(&route, &known, &Config::new("example.com"), Timestamp::now());
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
