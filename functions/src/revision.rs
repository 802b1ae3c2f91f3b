//! Makes each Revision callable: in place where its image is WebAssembly, by pods otherwise.
//! Reads revisions, deployments, pods. Writes deployments, revisions/status.
//! Never changes a Deployment's number of pods: that is the autoscaler's.

use std::{
    collections::BTreeMap,
    sync::{Arc, atomic::Ordering::Relaxed},
    time::Duration,
};

use k8s_openapi::{
    api::{
        apps::v1::Deployment,
        core::v1::{ContainerPort, EnvVar, Pod},
    },
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};
use kube::{ResourceExt, api::ListParams, runtime::controller::Action};
use serde_json::{Value, json};
use wasmk_api::{
    Timestamp,
    knative::{
        CONFIGURATION_LABEL, Condition, ContainerStatus, REVISION_LABEL, REVISION_UID_LABEL, Revision,
        RevisionStatus, SERVICE_LABEL, condition, label,
    },
};

use crate::{
    autoscaler::Bounds,
    conditions::{State, assemble},
    context::{Context, Error, failed, owner},
    defaults,
    executor::{Function, Refused},
    fleet::{Key, Limits, Member},
    names,
};

/// Until a revision that could not be prepared is tried again.
const RETRY: Duration = Duration::from_secs(10);
/// Reasons of a waiting container that a new revision will not get over by itself soon.
const FAILURES: [&str; 6] = [
    "ErrImagePull",
    "ImagePullBackOff",
    "InvalidImageName",
    "CrashLoopBackOff",
    "CreateContainerConfigError",
    "CreateContainerError",
];

/// One pass.
pub(crate) async fn reconcile(revision: Arc<Revision>, cx: Arc<Context>) -> Result<Action, Error> {
    if revision.metadata.deletion_timestamp.is_some() {
        return Ok(Action::await_change());
    }
    let namespace = revision.namespace().unwrap_or_default();
    let name = revision.name_any();
    let member = cx.fleet.member(&Key::new(&*namespace, &*name), || limits(&revision));
    let prepared = cx.executor.prepare(&function(&revision)).await;
    let way = match &prepared {
        Ok(prepared) => Way::InPlace(prepared.image.clone()),
        Err(Refused::NeedsPod(_)) => Way::Pods,
        Err(Refused::Failed { reason, message }) => Way::Broken(reason.clone(), message.clone()),
    };
    member.in_place.store(prepared.ok().map(Arc::new));

    let deployment = match cx.find::<Deployment>(&namespace, &names::deployment(&name)).await? {
        Some(deployment) => deployment,
        None if matches!(way, Way::Broken(..)) => Deployment::default(),
        None => cx.create(&namespace, &deployment(&revision, &way)).await?,
    };
    adopt_scale(&member, &deployment);
    let pods = match way {
        Way::Pods => pods(&cx, &namespace, &name).await?,
        _ => Vec::new(),
    };
    let status = status(&revision, &way, &deployment, &pods, cx.now());
    let settled = condition(&status.conditions, "Ready") == Some(true);
    cx.write_status(&*revision, revision.status.as_ref(), &status).await?;
    Ok(if settled { Action::await_change() } else { Action::requeue(RETRY) })
}

/// How a revision is answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Way {
    /// In place, from the image of that digest.
    InPlace(String),
    /// By pods.
    Pods,
    /// Not at all: reason and message.
    Broken(String, String),
}

/// The first look at a deployment tells the autoscaler where it stands.
fn adopt_scale(member: &Member, deployment: &Deployment) {
    let Some(replicas) = deployment.spec.as_ref().and_then(|s| s.replicas) else { return };
    member.replicas.store(replicas, Relaxed);
}

async fn pods(cx: &Context, namespace: &str, revision: &str) -> Result<Vec<Pod>, Error> {
    let selected = ListParams::default().labels(&format!("{REVISION_LABEL}={revision}"));
    let listed = cx.api::<Pod>(namespace).list(&selected).await;
    Ok(listed.map_err(|e| failed(format!("list the pods of {namespace}/{revision}"), e))?.items)
}

fn limits(revision: &Revision) -> Limits {
    let concurrency = revision.spec.container_concurrency.unwrap_or(0);
    let seconds = revision.spec.timeout_seconds.unwrap_or(defaults::TIMEOUT_SECONDS);
    Limits {
        timeout: Duration::from_secs(u64::try_from(seconds).unwrap_or(0).max(1)),
        concurrency: u32::try_from(concurrency).unwrap_or(0),
        bounds: Bounds::read(&revision.metadata, concurrency),
    }
}

fn function(revision: &Revision) -> Function {
    let limits = limits(revision);
    let mut spec = defaults::revision_spec(&revision.spec);
    if let [only] = &mut spec.pod.containers[..] {
        only.env = Some(environment(revision, only.env.take(), defaults::port(&revision.spec)));
    }
    Function {
        namespace: revision.namespace().unwrap_or_default(),
        revision: revision.name_any(),
        pod: spec.pod,
        timeout_seconds: u32::try_from(limits.timeout.as_secs()).unwrap_or(u32::MAX),
        concurrency: limits.concurrency,
    }
}

/// The container's own variables and those of Knative's runtime contract.
fn environment(revision: &Revision, own: Option<Vec<EnvVar>>, port: i32) -> Vec<EnvVar> {
    let labelled = |key| label(&revision.metadata, key).unwrap_or("").to_string();
    let contract = [
        ("PORT", port.to_string()),
        ("K_REVISION", revision.name_any()),
        ("K_CONFIGURATION", labelled(CONFIGURATION_LABEL)),
        ("K_SERVICE", labelled(SERVICE_LABEL)),
    ];
    let mut all = own.unwrap_or_default();
    for (name, value) in contract {
        if !value.is_empty() {
            all.push(EnvVar { name: name.into(), value: Some(value), value_from: None });
        }
    }
    all
}

/// The Deployment of a revision's pods.
pub(crate) fn deployment(revision: &Revision, way: &Way) -> Value {
    let name = revision.name_any();
    let mut labels: BTreeMap<String, String> = revision.metadata.labels.clone().unwrap_or_default();
    labels.insert("app".into(), name.clone());
    labels.insert(REVISION_LABEL.into(), name.clone());
    labels.insert(REVISION_UID_LABEL.into(), revision.uid().unwrap_or_default());
    let port = defaults::port(&revision.spec);
    let mut spec = defaults::revision_spec(&revision.spec);
    for container in &mut spec.pod.containers {
        container.env = Some(environment(revision, container.env.take(), port));
    }
    if let [only] = &mut spec.pod.containers[..] {
        only.ports = Some(vec![ContainerPort {
            name: Some("user-port".into()),
            container_port: port,
            protocol: Some("TCP".into()),
            ..Default::default()
        }]);
    }
    let bounds = limits(revision).bounds;
    let replicas = match way {
        Way::Pods => bounds.initial.max(bounds.min),
        _ => bounds.min,
    };
    let metadata = ObjectMeta {
        name: Some(names::deployment(&name)),
        namespace: revision.metadata.namespace.clone(),
        labels: Some(labels.clone()),
        annotations: revision.metadata.annotations.clone(),
        owner_references: Some(vec![owner(revision)]),
        ..Default::default()
    };
    json!({
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": metadata,
        "spec": {
            "replicas": replicas,
            "selector": {"matchLabels": {REVISION_UID_LABEL: labels[REVISION_UID_LABEL]}},
            "progressDeadlineSeconds": 600,
            "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": 0}},
            "template": {
                "metadata": {"labels": labels, "annotations": revision.metadata.annotations},
                "spec": spec.pod,
            },
        },
    })
}

/// What a Revision has come to.
pub(crate) fn status(
    revision: &Revision,
    way: &Way,
    deployment: &Deployment,
    pods: &[Pod],
    now: Timestamp,
) -> RevisionStatus {
    let old = revision.status.clone().unwrap_or_default();
    let had = |type_| condition(&old.conditions, type_) == Some(true);
    let there = deployment.status.clone().unwrap_or_default();
    let available = there.available_replicas.unwrap_or(0) > 0;
    let (resources, healthy) = match way {
        Way::InPlace(_) => (State::True, State::True),
        Way::Broken(reason, message) => (State::True, State::failed(reason, &**message)),
        Way::Pods if available || (had("Ready") && pods.is_empty()) => (State::True, State::True),
        Way::Pods => match failure(pods) {
            Some((reason, message)) => (State::True, State::False(reason, message)),
            None => (State::waiting("Deploying", ""), State::waiting("Deploying", "")),
        },
    };
    let wanted = deployment.spec.as_ref().and_then(|s| s.replicas).unwrap_or(0);
    let active = if wanted > 0 {
        State::True
    } else {
        State::failed("NoTraffic", "The target is not receiving traffic.")
    };
    let counting = [("ContainerHealthy", healthy), ("ResourcesAvailable", resources)];
    RevisionStatus {
        observed_generation: revision.metadata.generation,
        conditions: assemble(&old.conditions, &counting, &[("Active", active)], now),
        container_statuses: match way {
            Way::InPlace(image) => images(revision, image),
            _ => old.container_statuses,
        },
        actual_replicas: Some(there.ready_replicas.unwrap_or(0)),
        desired_replicas: Some(wanted),
    }
}

fn images(revision: &Revision, image: &str) -> Vec<ContainerStatus> {
    let spec = defaults::revision_spec(&revision.spec);
    let first = spec.pod.containers.into_iter().next();
    first.map(|c| ContainerStatus { name: c.name, image_digest: image.into() }).into_iter().collect()
}

/// Why pods do not come up, if one says so.
fn failure(pods: &[Pod]) -> Option<(String, String)> {
    let statuses =
        pods.iter().filter_map(|p| p.status.as_ref()).flat_map(|s| s.container_statuses.iter().flatten());
    statuses.into_iter().find_map(|s| {
        let waiting = s.state.as_ref()?.waiting.as_ref()?;
        let reason = waiting.reason.clone().filter(|r| FAILURES.contains(&r.as_str()))?;
        Some((reason, waiting.message.clone().unwrap_or_default()))
    })
}

/// The condition `Ready` of a revision's status, for those who only want that.
pub(crate) fn ready(conditions: &[Condition]) -> bool {
    condition(conditions, "Ready") == Some(true)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn revision() -> Revision {
        serde_json::from_value(json!({
            "metadata": {"name": "hello-00001", "namespace": "default", "uid": "u", "labels": {
                "serving.knative.dev/service": "hello", "serving.knative.dev/configuration": "hello"},
                "annotations": {"autoscaling.knative.dev/min-scale": "0"}},
            "spec": {"containers": [{"name": "", "image": "hello:1", "env": [{"name": "TARGET", "value": "x"}]}]},
        }))
        .unwrap()
    }

    #[test]
    fn the_deployment_follows_the_runtime_contract() {
        let deployment = deployment(&revision(), &Way::Pods);
        let container = &deployment["spec"]["template"]["spec"]["containers"][0];
        assert_eq!(container["name"], "user-container");
        assert_eq!(container["ports"][0]["containerPort"], 8080);
        let env: Vec<_> =
            container["env"].as_array().unwrap().iter().map(|e| e["name"].as_str().unwrap()).collect();
        assert_eq!(env, ["TARGET", "PORT", "K_REVISION", "K_CONFIGURATION", "K_SERVICE"]);
        assert_eq!(deployment["spec"]["replicas"], 1);
        assert_eq!(super::deployment(&revision(), &Way::InPlace(String::new()))["spec"]["replicas"], 0);
    }

    fn check(way: &Way, available: i32, pods: Value, want: (&str, &str)) {
        let deployment: Deployment =
            serde_json::from_value(json!({"spec": {"replicas": available, "selector": {}, "template": {}},
                "status": {"availableReplicas": available}}))
            .unwrap();
        let pods: Vec<Pod> = serde_json::from_value(pods).unwrap();
        let status = status(&revision(), way, &deployment, &pods, Timestamp::now());
        let ready = status.conditions.iter().find(|c| c.type_ == "Ready").unwrap();
        assert_eq!((ready.status.as_str(), ready.reason.as_str()), want);
    }

    #[test]
    fn readiness() {
        let stuck = json!([{"status": {"containerStatuses": [{"name": "c", "ready": false, "restartCount": 0, "image": "", "imageID": "",
            "state": {"waiting": {"reason": "ImagePullBackOff", "message": "no"}}}]}}]);
        check(&Way::InPlace("d".into()), 0, json!([]), ("True", ""));
        check(&Way::Broken("ErrImagePull".into(), "m".into()), 0, json!([]), ("False", "ErrImagePull"));
        check(&Way::Pods, 1, json!([]), ("True", ""));
        check(&Way::Pods, 0, json!([]), ("Unknown", "Deploying"));
        check(&Way::Pods, 0, stuck, ("False", "ImagePullBackOff"));
    }
}
