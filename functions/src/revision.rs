//! Makes each Revision callable: in place where its image is WebAssembly, by pods otherwise.
//! Reads revisions, deployments, pods. Writes deployments, horizontalpodautoscalers, revisions/status.
//! Never changes a Deployment's number of pods: that is the autoscaler's.

use std::{
    pin::pin,
    sync::{Arc, atomic::Ordering::Relaxed},
    time::{Duration, Instant},
};

use k8s_openapi::{
    api::{
        apps::v1::Deployment,
        autoscaling::v2::HorizontalPodAutoscaler,
        core::v1::{ContainerPort, EnvVar, Pod, PodSpec, Probe, TCPSocketAction},
    },
    apimachinery::pkg::util::intstr::IntOrString,
};
use kube::{ResourceExt, api::ListParams};
use tokio::time::timeout;
use wasmk_api::{
    Timestamp,
    knative::{
        CONFIGURATION_LABEL, Condition, ContainerStatus, REVISION_LABEL, Revision, RevisionStatus,
        SERVICE_LABEL, condition, label,
    },
};

use crate::{
    autoscaler::{Bounds, Class, horizontal},
    conditions::{State, assemble},
    config::Config,
    context::{Context, Error, failed},
    defaults,
    executor::{Function, Refused},
    fleet::{Key, Limits, Member},
    names,
    passes::Again,
    workloads::Workloads,
};

/// Until a revision that could not be prepared is tried again.
const RETRY: Duration = Duration::from_secs(10);
/// Until one is looked at again whose deployment is known to nobody but the API.
const SOON: Duration = Duration::from_secs(1);
/// What takes longer to prepare says so meanwhile.
const SLOW: Duration = Duration::from_secs(1);
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
pub(crate) async fn reconcile(key: Key, cx: Arc<Context>) -> Result<Again, Error> {
    let Some(revision) = cx.there.revisions.get(&key) else { return Ok(Again::OnChange) };
    if revision.metadata.deletion_timestamp.is_some() {
        return Ok(Again::OnChange);
    }
    let limits = limits(&revision, &cx.live.get());
    let member = cx.fleet.member(&key, limits.clone());
    let way = prepare(&revision, &limits, &member, &cx).await?;
    if !cx.there.revisions.has(&key) {
        // It went meanwhile, and whoever was told of it did not know this member yet.
        cx.forget(&key);
        return Ok(Again::OnChange);
    }
    let found = cx.there.deployments.get(&Key::new(&*key.namespace, names::deployment(&key.name)));
    let deployment = match found {
        Some(deployment) => deployment,
        None if matches!(way, Way::Broken(..)) || !Workloads::needed_at_rest(&way, &limits) => Arc::default(),
        None => match cx.workloads.make(&revision, &way, &limits).await {
            // The cache has not got that far; the change brings the next pass.
            Err(kube::Error::Api(status)) if status.is_already_exists() => return Ok(Again::In(SOON)),
            made => Arc::new(made.map_err(|e| failed(format!("make the deployment of {key}"), e))?),
        },
    };
    match deployment.spec.as_ref().and_then(|s| s.replicas) {
        Some(replicas) => cx.fleet.set_replicas(&member, replicas),
        None if member.replicas.load(Relaxed) < 0 && matches!(way, Way::InPlace(_)) => {
            cx.fleet.set_replicas(&member, 0);
        }
        None => {}
    }
    if limits.bounds.class == Class::Hpa && !matches!(way, Way::Broken(..)) {
        let found = cx.find::<HorizontalPodAutoscaler>(&key.namespace, &key.name).await?.map(Arc::new);
        cx.ensure(found, &revision.metadata, &horizontal(&revision, &limits.bounds)).await?;
    }
    let pods = match way {
        Way::Pods if !is_available(&deployment) => pods(&cx, &key.namespace, &key.name).await?,
        _ => Vec::new(),
    };
    let status = status(&revision, &way, &deployment, &pods, member.has_run(), cx.now());
    let settled = condition(&status.conditions, "Ready") == Some(true);
    cx.write_status(&*revision, revision.status.as_ref(), &status).await?;
    Ok(if settled { Again::OnChange } else { Again::In(RETRY) })
}

/// Makes a revision ready to be answered in place, if that is how it is answered.
async fn prepare(revision: &Revision, limits: &Limits, member: &Member, cx: &Context) -> Result<Way, Error> {
    let (begun, function) = (Instant::now(), function(revision, limits));
    let mut preparing = pin!(cx.executor.prepare(&function));
    let prepared = match timeout(SLOW, &mut preparing).await {
        Ok(prepared) => prepared,
        Err(_) => {
            if revision.status.is_none() {
                let waiting = status(revision, &Way::Pods, &Deployment::default(), &[], false, cx.now());
                cx.write_status(revision, None, &waiting).await?;
            }
            preparing.await
        }
    };
    if member.in_place().is_none() {
        member.prepared_micros.store(u64::try_from(begun.elapsed().as_micros()).unwrap_or(u64::MAX), Relaxed);
    }
    let way = match &prepared {
        Ok(prepared) => Way::InPlace(prepared.image.clone()),
        Err(Refused::NeedsPod(_)) => Way::Pods,
        Err(Refused::Failed { reason, message }) => Way::Broken(reason.clone(), message.clone()),
    };
    member.set_in_place(prepared.ok());
    Ok(way)
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

async fn pods(cx: &Context, namespace: &str, revision: &str) -> Result<Vec<Pod>, Error> {
    let selected = ListParams::default().labels(&format!("{REVISION_LABEL}={revision}"));
    let listed = cx.api::<Pod>(namespace).list(&selected).await;
    Ok(listed.map_err(|e| failed(format!("list the pods of {namespace}/{revision}"), e))?.items)
}

/// What the gateway and the autoscaler have to keep to.
fn limits(revision: &Revision, config: &Config) -> Limits {
    let spec = &revision.spec;
    let concurrency = spec.container_concurrency.unwrap_or(0);
    let mut ports = spec.pod.containers.iter().flat_map(|c| c.ports.iter().flatten());
    Limits {
        timeout: defaults::timeout(spec),
        response_start: defaults::span(spec.response_start_timeout_seconds),
        idle: defaults::span(spec.idle_timeout_seconds),
        concurrency: u32::try_from(concurrency).unwrap_or(0),
        h2c: ports.any(|p| p.name.as_deref() == Some("h2c")),
        bounds: Bounds::read(&revision.metadata, concurrency, &config.autoscaler),
    }
}

fn function(revision: &Revision, limits: &Limits) -> Function {
    let mut spec = defaults::named(&revision.spec);
    if let [only] = &mut spec.pod.containers[..] {
        only.env = Some(environment(revision, only.env.take(), Some(defaults::port(&revision.spec))));
    }
    Function {
        namespace: revision.namespace().unwrap_or_default(),
        revision: revision.name_any(),
        labels: revision.metadata.labels.clone().unwrap_or_default(),
        annotations: revision.metadata.annotations.clone().unwrap_or_default(),
        pod: spec.pod,
        timeout_seconds: u32::try_from(limits.timeout.as_secs()).unwrap_or(u32::MAX),
        concurrency: limits.concurrency,
    }
}

/// The container's own variables and those of Knative's runtime contract.
/// Only the container that gets the requests is told the port.
fn environment(revision: &Revision, own: Option<Vec<EnvVar>>, port: Option<i32>) -> Vec<EnvVar> {
    let labelled = |key| label(&revision.metadata, key).unwrap_or("").to_string();
    let contract = [
        ("PORT", port.map(|p| p.to_string()).unwrap_or_default()),
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

/// The pod that runs a revision: its template with names, variables, the port and real ports in its probes.
pub(crate) fn pod_spec(revision: &Revision, way: &Way) -> PodSpec {
    let port = defaults::port(&revision.spec);
    let mut spec = defaults::named(&revision.spec);
    let serving = defaults::serving(&spec);
    for (i, container) in spec.pod.containers.iter_mut().enumerate() {
        let told = (i == serving).then_some(port);
        container.env = Some(environment(revision, container.env.take(), told));
        if i != serving {
            continue;
        }
        let h2c = container.ports.iter().flatten().any(|p| p.name.as_deref() == Some("h2c"));
        container.ports = Some(vec![ContainerPort {
            name: Some(if h2c { "h2c" } else { "user-port" }.into()),
            container_port: port,
            protocol: Some("TCP".into()),
            ..Default::default()
        }]);
        // What is answered in place is ready when it is prepared; only a probe of the user's own says more.
        if matches!(way, Way::InPlace(_)) && container.readiness_probe.as_ref().is_some_and(is_default) {
            container.readiness_probe = None;
        }
        let probes =
            [&mut container.readiness_probe, &mut container.liveness_probe, &mut container.startup_probe];
        probes.into_iter().flatten().for_each(|probe| aim(probe, port));
    }
    spec.pod
}

fn is_default(probe: &Probe) -> bool {
    let default = Probe {
        success_threshold: Some(1),
        tcp_socket: Some(TCPSocketAction { port: IntOrString::Int(0), host: None }),
        ..Probe::default()
    };
    *probe == default
}

/// Port 0 of a probe means the port that requests go to; no period means as often as can be.
fn aim(probe: &mut Probe, port: i32) {
    if let Some(get) = &mut probe.http_get
        && get.port == IntOrString::Int(0)
    {
        get.port = IntOrString::Int(port);
    }
    if let Some(socket) = &mut probe.tcp_socket
        && socket.port == IntOrString::Int(0)
    {
        socket.port = IntOrString::Int(port);
    }
    if let Some(grpc) = &mut probe.grpc
        && grpc.port == 0
    {
        grpc.port = port;
    }
    if probe.period_seconds.unwrap_or(0) == 0 {
        probe.period_seconds = Some(1);
    }
}

/// What a Revision has come to. `has_run`: a pod of it was ready, even if its deployment never came to say so.
pub(crate) fn status(
    revision: &Revision,
    way: &Way,
    deployment: &Deployment,
    pods: &[Pod],
    has_run: bool,
    now: Timestamp,
) -> RevisionStatus {
    let old = revision.status.clone().unwrap_or_default();
    let had = |type_| condition(&old.conditions, type_) == Some(true);
    let there = deployment.status.clone().unwrap_or_default();
    let available = is_available(deployment);
    let (resources, healthy) = match way {
        Way::InPlace(_) => (State::True, State::True),
        Way::Broken(reason, message) => (State::True, State::failed(reason, &**message)),
        Way::Pods if available => (State::True, State::True),
        Way::Pods => match failure(pods) {
            Some((reason, message)) => (State::True, State::False(reason, message)),
            // Its last pod may be on the way out, or the first one on the way in: a request gets an answer.
            None if had("Ready") || has_run => (State::True, State::True),
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

fn is_available(deployment: &Deployment) -> bool {
    deployment.status.as_ref().and_then(|s| s.available_replicas).unwrap_or(0) > 0
}

fn images(revision: &Revision, image: &str) -> Vec<ContainerStatus> {
    let spec = defaults::named(&revision.spec);
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
    use serde_json::{Value, json};

    use super::*;

    fn revision() -> Revision {
        serde_json::from_value(json!({
            "metadata": {"name": "hello-00001", "namespace": "default", "uid": "u", "labels": {
                "serving.knative.dev/service": "hello", "serving.knative.dev/configuration": "hello"},
                "annotations": {"autoscaling.knative.dev/min-scale": "0"}},
            "spec": {"containers": [{"name": "", "image": "hello:1", "env": [{"name": "TARGET", "value": "x"}],
                "readinessProbe": {"successThreshold": 1, "tcpSocket": {"port": 0}}}]},
        }))
        .unwrap()
    }

    fn check(way: &Way, available: i32, pods: Value, want: (&str, &str)) {
        let deployment: Deployment =
            serde_json::from_value(json!({"spec": {"replicas": available, "selector": {}, "template": {}},
                "status": {"availableReplicas": available}}))
            .unwrap();
        let pods: Vec<Pod> = serde_json::from_value(pods).unwrap();
        let status = status(&revision(), way, &deployment, &pods, false, Timestamp::now());
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

    #[test]
    fn what_has_been_ready_is_so_without_pods() {
        let mut was = revision();
        let ready = json!({"conditions": [{"type": "Ready", "status": "True"}]});
        was.status = serde_json::from_value(ready).unwrap();
        let leaving = json!([{"metadata": {"deletionTimestamp": "2026-01-01T00:00:00Z"}, "status": {"phase": "Running"}}]);
        let waits = |reason: &str| {
            json!([{"status": {"containerStatuses": [{"name": "c", "ready": false, "restartCount": 0, "image": "", "imageID": "",
                "state": {"waiting": {"reason": reason}}}]}}])
        };
        for (pods, ready) in [
            (json!([]), "True"),
            (leaving, "True"),
            (waits("ContainerCreating"), "True"),
            (waits("CrashLoopBackOff"), "False"),
        ] {
            let pods: Vec<Pod> = serde_json::from_value(pods).unwrap();
            let status = status(&was, &Way::Pods, &Deployment::default(), &pods, false, Timestamp::now());
            let is = status.conditions.iter().find(|c| c.type_ == "Ready").unwrap();
            assert_eq!(is.status, ready, "{pods:?}");
        }
        // Its pod came and went before its deployment said that it was there.
        let new = status(&revision(), &Way::Pods, &Deployment::default(), &[], true, Timestamp::now());
        assert!(super::ready(&new.conditions));
    }
}
