//! Decides what to do next for one pod. Pure: a pod, what is known of it and the time go
//! in, a few actions and the time of the next look come out.

use std::time::Duration;

use wasmk_api::{
    Timestamp,
    k8s_openapi::api::core::v1::{Container, Pod, PodSpec},
};

use super::state::{ContainerState, Phase, PodState, Setup};

/// Grace given when a pod does not say.
pub const DEFAULT_GRACE: Duration = Duration::from_secs(30);

/// One thing to do.
#[derive(Clone, Debug, PartialEq)]
pub enum Action {
    /// Give the pod its address and volumes.
    Setup,
    /// Fetch the image if need be, then run or serve the container.
    Start(String),
    /// Attend to a container that ran before this agent was started.
    Adopt(String),
    /// Ask the container to stop; it is killed after `grace`.
    Stop {
        /// Container name.
        container: String,
        /// How long it may take.
        grace: Duration,
        /// Why, for the event.
        why: String,
    },
    /// End the container now.
    Kill(String),
    /// End the whole pod for a reason of the agent's own.
    Fail {
        /// `DeadlineExceeded`, …
        reason: String,
        /// For the user.
        message: String,
    },
    /// Everything is stopped and the pod is to go: free what it holds, delete it in the API.
    Remove,
}

/// What to do now, and when to look again without any news.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Plan {
    /// In order.
    pub actions: Vec<Action>,
    /// The next moment at which time alone changes something.
    pub wake: Option<Timestamp>,
}

impl Plan {
    fn wake_at(&mut self, when: Timestamp) {
        self.wake = Some(self.wake.map_or(when, |w| w.min(when)));
    }

    fn push(&mut self, action: Action) {
        self.actions.push(action);
    }
}

/// The next steps for `pod`.
pub fn plan(pod: &Pod, state: &PodState, now: Timestamp) -> Plan {
    let mut out = Plan::default();
    let Some(spec) = &pod.spec else { return out };
    if pod.metadata.deletion_timestamp.is_some() {
        stop_everything(pod, spec, state, now, &mut out);
        if out.actions.is_empty() && !any_busy(state) {
            out.push(Action::Remove);
        }
        return out;
    }
    if state.settled {
        return out;
    }
    if state.verdict.is_some() || is_over(spec, state) {
        stop_everything(pod, spec, state, now, &mut out);
        return out;
    }
    if let Some(deadline) = deadline(spec, state) {
        if now >= deadline {
            out.push(Action::Fail {
                reason: "DeadlineExceeded".into(),
                message: "Pod was active on the node longer than the specified deadline".into(),
            });
            return out;
        }
        out.wake_at(deadline);
    }
    match &state.setup {
        Setup::None => out.push(Action::Setup),
        Setup::Underway => {}
        Setup::Failed { until, .. } if now >= *until => out.push(Action::Setup),
        Setup::Failed { until, .. } => out.wake_at(*until),
        Setup::Done => run(pod, spec, state, now, &mut out),
    }
    out
}

/// Init containers in order, then all the others.
fn run(pod: &Pod, spec: &PodSpec, state: &PodState, now: Timestamp, out: &mut Plan) {
    let unknown = ContainerState::default();
    let main_begun = spec.containers.iter().any(|c| state.containers.get(&c.name).is_some_and(has_begun));
    for init in spec.init_containers.iter().flatten() {
        let known = state.containers.get(&init.name).unwrap_or(&unknown);
        let sidecar = is_sidecar(init);
        if !sidecar && (main_begun || known.ended().is_some_and(|e| e.code == 0)) {
            continue;
        }
        step(pod, spec, init, known, now, out);
        if sidecar && (main_begun || (known.is_live() && known.started)) {
            continue;
        }
        return;
    }
    for container in &spec.containers {
        let known = state.containers.get(&container.name).unwrap_or(&unknown);
        step(pod, spec, container, known, now, out);
    }
}

fn has_begun(container: &ContainerState) -> bool {
    container.is_live() || container.ended().is_some() || container.last.is_some()
}

/// One container that should run.
fn step(pod: &Pod, spec: &PodSpec, c: &Container, known: &ContainerState, now: Timestamp, out: &mut Plan) {
    let start = || Action::Start(c.name.clone());
    match &known.phase {
        Phase::Waiting => out.push(start()),
        Phase::Starting => {}
        Phase::Blocked { until, .. } if now >= *until => out.push(start()),
        Phase::Blocked { until, since, .. } => {
            // A failed pull is shown as such first and as a wait afterwards.
            let shown = since.after(super::status::FIRST_SHOWN);
            out.wake_at(if now < shown { shown.min(*until) } else { *until });
        }
        Phase::Running { .. } if known.orphan => out.push(Action::Adopt(c.name.clone())),
        Phase::Running { .. } => {
            if let Some(why) = &known.unhealthy {
                let grace = probe_grace(c).unwrap_or_else(|| grace(pod));
                out.push(Action::Stop { container: c.name.clone(), grace, why: why.clone() });
            }
        }
        Phase::Stopping { deadline, killed, .. } => stopping(&c.name, *deadline, *killed, now, out),
        Phase::Ended(ended) if restarts(spec, c, ended.code) => {
            let next = ended.finished.after(Duration::from_secs(known.delay));
            if now >= next { out.push(start()) } else { out.wake_at(next) }
        }
        Phase::Ended(_) => {}
    }
}

fn stopping(name: &str, deadline: Timestamp, killed: bool, now: Timestamp, out: &mut Plan) {
    if killed {
        return;
    }
    if now >= deadline { out.push(Action::Kill(name.into())) } else { out.wake_at(deadline) }
}

/// Stops what runs: the main containers first, the sidecars after them, last one first.
fn stop_everything(pod: &Pod, spec: &PodSpec, state: &PodState, now: Timestamp, out: &mut Plan) {
    let mut live_main = false;
    for c in &spec.containers {
        live_main |= stop_one(pod, &c.name, state, now, out);
    }
    if live_main {
        return;
    }
    for c in spec.init_containers.iter().flatten().rev() {
        if stop_one(pod, &c.name, state, now, out) && is_sidecar(c) {
            return;
        }
    }
}

/// Whether it still lives.
fn stop_one(pod: &Pod, name: &str, state: &PodState, now: Timestamp, out: &mut Plan) -> bool {
    let Some(known) = state.containers.get(name) else { return false };
    match &known.phase {
        Phase::Running { .. } => {
            let why = format!("Stopping container {name}");
            out.push(Action::Stop { container: name.into(), grace: grace(pod), why });
            true
        }
        Phase::Stopping { deadline, killed, .. } => {
            // A shorter grace given later counts from the moment it was given.
            let asked = pod.metadata.deletion_timestamp.as_ref().map(|t| Timestamp(t.0));
            stopping(name, asked.map_or(*deadline, |a| a.min(*deadline)), *killed, now, out);
            true
        }
        _ => false,
    }
}

fn any_busy(state: &PodState) -> bool {
    state.containers.values().any(ContainerState::is_live)
}

/// Whether no container of the pod will ever run again.
pub fn is_over(spec: &PodSpec, state: &PodState) -> bool {
    let failed_init = spec.init_containers.iter().flatten().filter(|c| !is_sidecar(c)).any(|c| {
        let ended = state.containers.get(&c.name).and_then(ContainerState::ended);
        ended.is_some_and(|e| e.code != 0 && !restarts(spec, c, e.code))
    });
    let done = |c: &Container| {
        let ended = state.containers.get(&c.name).and_then(ContainerState::ended);
        ended.is_some_and(|e| !restarts(spec, c, e.code))
    };
    failed_init || (!spec.containers.is_empty() && spec.containers.iter().all(done))
}

/// Whether a container that ended so is started again.
pub fn restarts(spec: &PodSpec, container: &Container, code: i32) -> bool {
    let is_init = spec.init_containers.iter().flatten().any(|c| c.name == container.name);
    let pod_policy = spec.restart_policy.as_deref().unwrap_or("Always");
    match container.restart_policy.as_deref().unwrap_or(pod_policy) {
        "Never" => false,
        "OnFailure" => code != 0,
        // An init container that did its work is done, whatever the pod's policy.
        _ => !(is_init && !is_sidecar(container) && code == 0),
    }
}

/// An init container that goes on beside the others.
pub fn is_sidecar(container: &Container) -> bool {
    container.restart_policy.as_deref() == Some("Always")
}

fn deadline(spec: &PodSpec, state: &PodState) -> Option<Timestamp> {
    let seconds = u64::try_from(spec.active_deadline_seconds?).ok()?;
    Some(state.seen?.after(Duration::from_secs(seconds)))
}

/// How long the pod's containers may take to stop.
pub fn grace(pod: &Pod) -> Duration {
    let spec = pod.spec.as_ref().and_then(|s| s.termination_grace_period_seconds);
    let seconds = pod.metadata.deletion_grace_period_seconds.or(spec);
    seconds.map_or(DEFAULT_GRACE, |s| Duration::from_secs(u64::try_from(s).unwrap_or(0)))
}

fn probe_grace(container: &Container) -> Option<Duration> {
    let probe = container.liveness_probe.as_ref()?;
    let seconds = probe.termination_grace_period_seconds?;
    Some(Duration::from_secs(u64::try_from(seconds).unwrap_or(0)))
}

#[cfg(test)]
#[path = "plan_tests.rs"]
mod tests;
