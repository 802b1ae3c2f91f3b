//! Makes a Revision of each new template of a Configuration.
//! Reads configurations, revisions, routes. Writes revisions, configurations/status.
//! Never changes a Revision's spec; deletes those that nobody needs any more.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::{Resource, ResourceExt, api::DeleteParams};
use serde_json::{Value, json};
use wasmk_api::{
    Timestamp,
    knative::{
        CONFIGURATION_LABEL, Configuration, ConfigurationStatus, GENERATION_LABEL, ROUTING_STATE_LABEL,
        Revision, SERVICE_LABEL, condition, label,
    },
};

use crate::{
    conditions::{State, only},
    context::{Context, Error, SILENCE, controlled_by, failed, is_silent, owner},
    defaults,
    fleet::Key,
    gc, names,
    passes::Again,
    references::What,
};

/// Until revisions that nobody needs are looked at again.
const AGAIN: Duration = Duration::from_secs(600);

/// One pass.
pub(crate) async fn reconcile(key: Key, cx: Arc<Context>) -> Result<Again, Error> {
    let Some(configuration) = cx.there.configurations.get(&key) else { return Ok(Again::OnChange) };
    if configuration.metadata.deletion_timestamp.is_some() {
        return Ok(Again::OnChange);
    }
    let namespace = &key.namespace;
    let mut revisions = cx.there.revisions.under(&key);
    revisions.retain(|r| controlled_by(&r.metadata, &configuration.metadata));

    let wanted = latest_name(&configuration);
    let mut taken = false;
    if !revisions.iter().any(|r| is_of_generation(r, &configuration)) {
        let found = match cx.create::<Revision>(namespace, &revision(&configuration)).await? {
            Some(made) => Some(made),
            // Another's, or one that the cache does not hold yet.
            None => cx.find::<Revision>(namespace, &wanted).await?,
        };
        let own = found.filter(|r| {
            controlled_by(&r.metadata, &configuration.metadata) && is_of_generation(r, &configuration)
        });
        taken = own.is_none();
        revisions.extend(own.map(Arc::new));
    }
    let now = cx.now();
    let spoken = revisions.iter().any(|r| is_of_generation(r, &configuration) && r.status.is_some());
    if !taken && !spoken && is_silent(&configuration.metadata, configuration.status.as_ref(), now) {
        return Ok(Again::In(SILENCE));
    }
    let status = status(&configuration, &revisions, taken, now);
    cx.write_status(&*configuration, configuration.status.as_ref(), &status).await?;
    mark(&cx, namespace, &revisions, &wanted).await?;
    let (rules, latest) = (cx.live.get().gc.clone(), status.latest_ready_revision_name.as_deref());
    for name in gc::surplus(&revisions, latest, &rules, now) {
        match cx.api::<Revision>(namespace).delete(&name, &DeleteParams::default()).await {
            // The cache has not seen it go.
            Err(kube::Error::Api(status)) if status.is_not_found() => {}
            gone => drop(gone.map_err(|e| failed(format!("delete the revision {namespace}/{name}"), e))?),
        }
    }
    // Age alone makes a revision go, when there are enough of them.
    Ok(if revisions.len() > rules.min { Again::In(AGAIN) } else { Again::OnChange })
}

/// Whether it has said what came of its present template.
pub(crate) fn has_spoken(configuration: &Configuration) -> bool {
    let observed = configuration.status.as_ref().and_then(|s| s.observed_generation);
    observed.is_some() && observed == configuration.metadata.generation
}

/// Notes in each revision which routes lead to it.
async fn mark(cx: &Context, namespace: &str, revisions: &[Arc<Revision>], latest: &str) -> Result<(), Error> {
    // A revision that routes lead to must not be taken for one that none does.
    cx.references.primed().await;
    for revision in revisions {
        let name = revision.name_any();
        let routes = cx.references.of(What::Revision, &Key::new(namespace, &*name));
        let routing = gc::routing(revision, name == latest, routes.iter().map(|r| &**r));
        if let Some(metadata) = routing.patch(revision, cx.now()) {
            cx.annotate(&**revision, metadata).await?;
        }
    }
    Ok(())
}

/// The name of the revision that the present template makes.
fn latest_name(configuration: &Configuration) -> String {
    let given = configuration.spec.template.metadata.name.clone().filter(|n| !n.is_empty());
    given.unwrap_or_else(|| names::revision(&configuration.name_any(), generation(configuration)))
}

fn generation(configuration: &Configuration) -> i64 {
    configuration.metadata.generation.unwrap_or(1)
}

fn generation_of(revision: &Revision) -> i64 {
    label(&revision.metadata, GENERATION_LABEL).and_then(|g| g.parse().ok()).unwrap_or(0)
}

fn is_of_generation(revision: &Revision, configuration: &Configuration) -> bool {
    generation_of(revision) == generation(configuration)
}

/// The revision of the present template.
pub(crate) fn revision(configuration: &Configuration) -> Value {
    let template = &configuration.spec.template;
    let mut labels: BTreeMap<String, String> = template.metadata.labels.clone().unwrap_or_default();
    let name = configuration.name_any();
    labels.insert(CONFIGURATION_LABEL.into(), name.clone());
    labels.insert(GENERATION_LABEL.into(), generation(configuration).to_string());
    labels.insert("serving.knative.dev/configurationUID".into(), configuration.uid().unwrap_or_default());
    labels.insert(SERVICE_LABEL.into(), label(&configuration.metadata, SERVICE_LABEL).unwrap_or("").into());
    labels.insert(ROUTING_STATE_LABEL.into(), "pending".into());
    labels.retain(|_, value| !value.is_empty());
    let metadata = ObjectMeta {
        name: Some(latest_name(configuration)),
        namespace: configuration.metadata.namespace.clone(),
        labels: Some(labels),
        annotations: template.metadata.annotations.clone(),
        owner_references: Some(vec![owner(configuration)]),
        ..Default::default()
    };
    json!({
        "apiVersion": Revision::api_version(&()),
        "kind": Revision::kind(&()),
        "metadata": metadata,
        "spec": defaults::named(&template.spec),
    })
}

/// What a Configuration has come to, given its revisions. `taken`: its revision's name is another's.
pub(crate) fn status(
    configuration: &Configuration,
    revisions: &[Arc<Revision>],
    taken: bool,
    now: Timestamp,
) -> ConfigurationStatus {
    let old = configuration.status.clone().unwrap_or_default();
    let current = revisions.iter().find(|r| is_of_generation(r, configuration));
    let name = current.map_or_else(|| latest_name(configuration), |r| r.name_any());
    let state = match current {
        _ if taken => State::failed(
            "RevisionFailed",
            format!("revisions.serving.knative.dev \"{name}\" already exists"),
        ),
        None => State::waiting("", ""),
        Some(revision) => readiness(revision, &name),
    };
    let newest_ready = revisions.iter().filter(|r| is_ready(r)).max_by_key(|r| generation_of(r));
    let ready = newest_ready.map(|r| r.name_any()).or(old.latest_ready_revision_name);
    ConfigurationStatus {
        observed_generation: configuration.metadata.generation,
        conditions: only(&old.conditions, "Ready", &state, now),
        latest_created_revision_name: current.map(|_| name).or(old.latest_created_revision_name),
        latest_ready_revision_name: ready,
    }
}

fn is_ready(revision: &Revision) -> bool {
    revision.status.as_ref().is_some_and(|s| condition(&s.conditions, "Ready") == Some(true))
}

fn readiness(revision: &Revision, name: &str) -> State {
    let conditions = revision.status.as_ref().map(|s| s.conditions.as_slice()).unwrap_or_default();
    match conditions.iter().find(|c| c.type_ == "Ready") {
        Some(c) if c.status == "True" => State::True,
        Some(c) if c.status == "False" => State::failed(
            "RevisionFailed",
            format!("Revision \"{name}\" failed with message: {}.", c.message.trim_end_matches('.')),
        ),
        Some(c) => State::waiting(&c.reason, &*c.message),
        None => State::waiting("", ""),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn configuration(generation: i64) -> Configuration {
        serde_json::from_value(json!({
            "metadata": {"name": "hello", "namespace": "default", "uid": "u", "generation": generation,
                "labels": {"serving.knative.dev/service": "hello"}},
            "spec": {"template": {"metadata": {"annotations": {"a": "b"}}, "spec": {"containers": [{"image": "i", "name": ""}]}}},
        }))
        .unwrap()
    }

    fn made(generation: i64, ready: &str) -> Revision {
        let mut revision: Revision = serde_json::from_value(revision(&configuration(generation))).unwrap();
        let state =
            json!({"conditions": [{"type": "Ready", "status": ready, "reason": "R", "message": "m"}]});
        revision.status = Some(serde_json::from_value(state).unwrap());
        revision
    }

    fn check(generation: i64, revisions: &[(i64, &str)], want: (&str, &str, &str)) {
        let revisions: Vec<_> = revisions.iter().map(|(g, ready)| Arc::new(made(*g, ready))).collect();
        let status = status(&configuration(generation), &revisions, false, Timestamp::now());
        let got = (
            status.latest_created_revision_name.as_deref().unwrap_or(""),
            status.latest_ready_revision_name.as_deref().unwrap_or(""),
            status.conditions[0].status.as_str(),
        );
        assert_eq!(got, want);
    }

    #[test]
    fn the_latest_ready_revision_stays_while_a_newer_one_is_not() {
        check(1, &[(1, "True")], ("hello-00001", "hello-00001", "True"));
        check(2, &[(1, "True"), (2, "Unknown")], ("hello-00002", "hello-00001", "Unknown"));
        check(2, &[(1, "True"), (2, "False")], ("hello-00002", "hello-00001", "False"));
        check(2, &[(1, "True"), (2, "True")], ("hello-00002", "hello-00002", "True"));
    }

    #[test]
    fn a_revision_says_where_it_comes_from() {
        let revision = revision(&configuration(3));
        assert_eq!(revision["metadata"]["name"], "hello-00003");
        assert_eq!(revision["metadata"]["labels"]["serving.knative.dev/service"], "hello");
        assert_eq!(revision["metadata"]["annotations"], json!({"a": "b"}));
    }
}
