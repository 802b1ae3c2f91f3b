//! Turns what is known of a pod into its `status`. Pure; nothing here remembers, so a
//! status that failed to be written is simply computed again.

use std::{
    net::{IpAddr, Ipv4Addr},
    time::Duration,
};

use serde_json::{Value, json};
use wasmk_api::{
    Quantity, Timestamp,
    k8s_openapi::{
        api::core::v1::{
            Container, ContainerState as ApiState, ContainerStateRunning, ContainerStateTerminated,
            ContainerStateWaiting, ContainerStatus, HostIP, Pod, PodCondition, PodIP, PodSpec, PodStatus,
        },
        apimachinery::pkg::apis::meta::v1::Time,
    },
};

use super::{
    plan::{is_over, is_sidecar, restarts},
    state::{ContainerState, Ended, Phase, PodState, Setup},
};

/// How long a failed pull is shown as `ErrImagePull` before it is shown as `ImagePullBackOff`.
pub const FIRST_SHOWN: Duration = Duration::from_secs(2);

/// The status to write. `previous` is the one last known; it gives the transition times.
pub fn build(pod: &Pod, state: &PodState, host: IpAddr, previous: &PodStatus, now: Timestamp) -> PodStatus {
    let default = PodSpec::default();
    let spec = pod.spec.as_ref().unwrap_or(&default);
    let init = spec.init_containers.as_deref().unwrap_or_default();
    let describe = |c: &Container| container_status(pod, spec, c, state, now);
    let phase = phase(spec, state, pod.metadata.deletion_timestamp.is_some());
    let mut status = PodStatus {
        phase: Some(phase.into()),
        observed_generation: pod.metadata.generation,
        start_time: state.seen.map(|t| Time(t.0)),
        host_ip: Some(host.to_string()),
        host_ips: Some(vec![HostIP { ip: host.to_string() }]),
        qos_class: Some(qos_class(spec).into()),
        container_statuses: Some(spec.containers.iter().map(describe).collect()),
        init_container_statuses: (!init.is_empty()).then(|| init.iter().map(describe).collect()),
        ..PodStatus::default()
    };
    if let Some(ip) = pod_ip(spec, state.ip, host) {
        status.pod_ip = Some(ip.to_string());
        status.pod_ips = Some(vec![PodIP { ip: ip.to_string() }]);
    }
    if let Some(verdict) = &state.verdict {
        status.reason = Some(verdict.reason.clone());
        status.message = Some(verdict.message.clone());
    }
    status.conditions = Some(conditions(pod, spec, state, phase, &status, previous, now));
    status
}

/// The status as a strategic merge patch: what is merged into what the API has, and may have been said
/// before, is taken back by name.
pub fn patch(status: &PodStatus) -> Value {
    let mut patch = json!(status);
    let absent = |of: &mut Value| {
        for field in ["reason", "message"] {
            if of.get(field).is_none() {
                of[field] = Value::Null;
            }
        }
    };
    absent(&mut patch);
    patch["conditions"].as_array_mut().into_iter().flatten().for_each(absent);
    patch
}

/// The pod's address: the node's own for `hostNetwork`.
pub fn pod_ip(spec: &PodSpec, own: Option<Ipv4Addr>, host: IpAddr) -> Option<IpAddr> {
    if spec.host_network == Some(true) { Some(host) } else { own.map(IpAddr::V4) }
}

fn container_status(
    pod: &Pod,
    spec: &PodSpec,
    c: &Container,
    state: &PodState,
    now: Timestamp,
) -> ContainerStatus {
    let unknown = ContainerState::default();
    let known = state.containers.get(&c.name).unwrap_or(&unknown);
    let waits = known.ended().filter(|e| known.delay > 0 && will_restart(pod, spec, c, state, e));
    let last = waits.or(known.last.as_ref());
    let over = known.ended().is_some_and(|e| e.code == 0) && spec.containers.iter().all(|m| m.name != c.name);
    ContainerStatus {
        name: c.name.clone(),
        image: c.image.clone().unwrap_or_default(),
        image_id: known.image_id.clone(),
        container_id: (!known.id.is_empty()).then(|| known.id.clone()),
        ready: (known.is_live() && known.ready) || (over && !is_sidecar(c)),
        started: Some(known.is_live() && known.started),
        restart_count: i32::try_from(known.restarts).unwrap_or(i32::MAX),
        last_state: Some(last.map_or_else(ApiState::default, terminated)),
        state: Some(container_state(pod, spec, c, known, waits, state, now)),
        ..ContainerStatus::default()
    }
}

fn will_restart(pod: &Pod, spec: &PodSpec, c: &Container, state: &PodState, ended: &Ended) -> bool {
    pod.metadata.deletion_timestamp.is_none() && state.verdict.is_none() && restarts(spec, c, ended.code)
}

fn container_state(
    pod: &Pod,
    spec: &PodSpec,
    c: &Container,
    known: &ContainerState,
    waits: Option<&Ended>,
    state: &PodState,
    now: Timestamp,
) -> ApiState {
    if waits.is_some() {
        let pod_name = format!(
            "{}_{}({})",
            pod.metadata.name.as_deref().unwrap_or_default(),
            pod.metadata.namespace.as_deref().unwrap_or_default(),
            pod.metadata.uid.as_deref().unwrap_or_default()
        );
        let span = match known.delay {
            s if s >= 60 => format!("{}m{}s", s / 60, s % 60),
            s => format!("{s}s"),
        };
        let text = format!("back-off {span} restarting failed container={} pod={pod_name}", c.name);
        return waiting("CrashLoopBackOff", &text);
    }
    match &known.phase {
        Phase::Running { since } | Phase::Stopping { since, .. } => ApiState {
            running: Some(ContainerStateRunning { started_at: Some(Time(since.0)) }),
            ..ApiState::default()
        },
        Phase::Ended(ended) => terminated(ended),
        Phase::Blocked { reason, message, since, .. } => {
            blocked(c, reason, message, now >= since.after(FIRST_SHOWN))
        }
        // While it is tried again the user still sees what was wrong the last time.
        Phase::Starting => match (&known.trouble, &known.last) {
            (Some((reason, message)), _) => blocked(c, reason, message, true),
            (None, Some(last)) => terminated(last),
            (None, None) => waiting("ContainerCreating", ""),
        },
        Phase::Waiting if is_over(spec, state) || state.verdict.is_some() => waiting("PodInitializing", ""),
        Phase::Waiting if init_pending(spec, state) => waiting("PodInitializing", ""),
        Phase::Waiting => match &state.setup {
            Setup::Failed { message, .. } => waiting("ContainerCreating", message),
            _ => waiting("ContainerCreating", ""),
        },
    }
}

/// A failed preparation; a failed pull is called back-off after a while.
fn blocked(c: &Container, reason: &str, message: &str, later: bool) -> ApiState {
    if reason == "ErrImagePull" && later {
        let image = c.image.as_deref().unwrap_or_default();
        let text = format!("Back-off pulling image \"{image}\": {reason}: {message}");
        return waiting("ImagePullBackOff", &text);
    }
    waiting(reason, message)
}

fn waiting(reason: &str, message: &str) -> ApiState {
    let waiting = ContainerStateWaiting {
        reason: Some(reason.into()),
        message: (!message.is_empty()).then(|| message.into()),
    };
    ApiState { waiting: Some(waiting), ..ApiState::default() }
}

fn terminated(ended: &Ended) -> ApiState {
    let terminated = ContainerStateTerminated {
        exit_code: ended.code,
        reason: Some(ended.reason.clone()),
        message: (!ended.message.is_empty()).then(|| ended.message.clone()),
        started_at: Some(Time(ended.started.0)),
        finished_at: Some(Time(ended.finished.0)),
        container_id: (!ended.id.is_empty()).then(|| ended.id.clone()),
        ..ContainerStateTerminated::default()
    };
    ApiState { terminated: Some(terminated), ..ApiState::default() }
}

/// Whether an init container still has to do its work.
fn init_pending(spec: &PodSpec, state: &PodState) -> bool {
    spec.init_containers.iter().flatten().any(|c| match state.containers.get(&c.name) {
        None => true,
        Some(known) if is_sidecar(c) => !known.started && known.last.is_none(),
        Some(known) => known.ended().is_none_or(|e| e.code != 0),
    })
}

fn phase(spec: &PodSpec, state: &PodState, deleted: bool) -> &'static str {
    if state.verdict.is_some() {
        return "Failed";
    }
    if is_over(spec, state) || (deleted && nothing_lives(state)) {
        let main = |c: &Container| state.containers.get(&c.name).and_then(|k| k.ended().or(k.last.as_ref()));
        let all_good = spec.containers.iter().all(|c| main(c).is_some_and(|e| e.code == 0));
        return if all_good { "Succeeded" } else { "Failed" };
    }
    let begun = |c: &Container| {
        state.containers.get(&c.name).is_some_and(|k| k.is_live() || k.ended().is_some() || k.last.is_some())
    };
    if spec.containers.iter().all(begun) { "Running" } else { "Pending" }
}

fn nothing_lives(state: &PodState) -> bool {
    !state.containers.values().any(ContainerState::is_live)
}

fn conditions(
    pod: &Pod,
    spec: &PodSpec,
    state: &PodState,
    phase: &str,
    status: &PodStatus,
    previous: &PodStatus,
    now: Timestamp,
) -> Vec<PodCondition> {
    let ready_list = |list: &Option<Vec<ContainerStatus>>, all: bool| -> Vec<String> {
        let unready = |s: &&ContainerStatus| !s.ready && (all || sidecar_named(spec, &s.name));
        list.iter().flatten().filter(unready).map(|s| s.name.clone()).collect()
    };
    let mut unready = ready_list(&status.init_container_statuses, false);
    unready.extend(ready_list(&status.container_statuses, true));
    let pending_init: Vec<String> = ready_list(&status.init_container_statuses, true);
    let initialized = !init_pending(spec, state) || phase == "Succeeded";
    let finished = matches!(phase, "Succeeded" | "Failed");
    let over_reason = if phase == "Succeeded" { "PodCompleted" } else { "PodFailed" };
    let mut containers_ready = if finished {
        (false, over_reason, String::new())
    } else {
        let text = format!("containers with unready status: [{}]", unready.join(" "));
        (unready.is_empty(), "ContainersNotReady", text)
    };
    let gate = spec.readiness_gates.iter().flatten().find(|g| {
        let known = pod.status.as_ref().and_then(|s| s.conditions.as_ref());
        !known.into_iter().flatten().any(|c| c.type_ == g.condition_type && c.status == "True")
    });
    let contain = containers_ready.clone();
    if let (Some(gate), true) = (gate, containers_ready.0) {
        let text = format!(
            "corresponding condition of pod readiness gate \"{}\" does not exist.",
            gate.condition_type
        );
        containers_ready = (false, "ReadinessGatesNotReady", text);
    }
    let init_text = format!("containers with incomplete status: [{}]", pending_init.join(" "));
    let sandbox = state.setup == Setup::Done && !finished;
    let rows = [
        ("PodReadyToStartContainers", (sandbox, "", String::new())),
        (
            "Initialized",
            if phase == "Succeeded" {
                (true, "PodCompleted", String::new())
            } else {
                (initialized, "ContainersNotInitialized", init_text)
            },
        ),
        ("Ready", containers_ready),
        ("ContainersReady", contain),
        ("PodScheduled", (true, "", String::new())),
    ];
    rows.into_iter()
        .map(|(kind, (ok, reason, message))| {
            let keep_reason = !ok || reason == "PodCompleted";
            condition(
                kind,
                ok,
                if keep_reason { reason } else { "" },
                if ok { "" } else { &message },
                pod,
                previous,
                now,
            )
        })
        .collect()
}

fn sidecar_named(spec: &PodSpec, name: &str) -> bool {
    spec.init_containers.iter().flatten().any(|c| c.name == name && is_sidecar(c))
}

fn condition(
    kind: &str,
    ok: bool,
    reason: &str,
    message: &str,
    pod: &Pod,
    previous: &PodStatus,
    now: Timestamp,
) -> PodCondition {
    let status = if ok { "True" } else { "False" };
    let before = previous.conditions.iter().flatten().find(|c| c.type_ == kind && c.status == status);
    let since = before.and_then(|c| c.last_transition_time.clone()).unwrap_or(Time(now.0));
    PodCondition {
        type_: kind.into(),
        status: status.into(),
        reason: (!reason.is_empty()).then(|| reason.into()),
        message: (!message.is_empty()).then(|| message.into()),
        last_transition_time: Some(since),
        observed_generation: pod.metadata.generation,
        ..PodCondition::default()
    }
}

/// `Guaranteed`, `Burstable` or `BestEffort`, by the containers' requests and limits.
pub fn qos_class(spec: &PodSpec) -> &'static str {
    let amount = |map: Option<&std::collections::BTreeMap<String, _>>, key: &str| {
        let text: Option<&wasmk_api::k8s_openapi::apimachinery::pkg::api::resource::Quantity> =
            map.and_then(|m| m.get(key));
        text.and_then(|q| q.0.parse::<Quantity>().ok()).filter(|q| *q > Quantity::default())
    };
    let (mut any, mut all) = (false, true);
    for c in spec.init_containers.iter().flatten().chain(&spec.containers) {
        let resources = c.resources.as_ref();
        for key in ["cpu", "memory"] {
            let limit = amount(resources.and_then(|r| r.limits.as_ref()), key);
            let request = amount(resources.and_then(|r| r.requests.as_ref()), key).or(limit);
            any |= limit.is_some() || request.is_some();
            all &= limit.is_some() && request == limit;
        }
    }
    match (any, all) {
        (true, true) => "Guaranteed",
        (true, false) => "Burstable",
        (false, _) => "BestEffort",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reasons_that_no_longer_hold_are_taken_back() {
        let ready = PodCondition { type_: "Ready".into(), status: "True".into(), ..PodCondition::default() };
        let gone = PodCondition { reason: Some("Why".into()), ..ready.clone() };
        let status = PodStatus { conditions: Some(vec![ready, gone]), ..PodStatus::default() };
        let patch = patch(&status);
        assert_eq!((patch.get("reason"), patch.get("message")), (Some(&Value::Null), Some(&Value::Null)));
        assert_eq!(patch["conditions"][0].get("reason"), Some(&Value::Null));
        assert_eq!(patch["conditions"][1]["reason"], "Why");
        assert_eq!(patch["conditions"][1].get("message"), Some(&Value::Null));
    }
}
