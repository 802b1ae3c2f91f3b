//! What a deployment says about itself.

use std::{sync::Arc, time::Duration};

use k8s_openapi::api::apps::v1::{Deployment, DeploymentCondition, DeploymentStatus, ReplicaSet};
use wasmk_api::Timestamp;

use crate::base::{time, time_of};

use super::{rollout::Bounds, until};

/// Deadlines of this many seconds mean none.
const NO_DEADLINE: i32 = i32::MAX;

/// Whether this pass judges the rollout's progress.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Progress {
    /// Yes.
    Watched,
    /// No: the deployment is paused, was just scaled or is going.
    Ignored,
}

/// What the status follows from.
pub(super) struct Input<'a> {
    pub(super) deployment: &'a Deployment,
    pub(super) sets: &'a [Arc<ReplicaSet>],
    /// The set of the current template, unless this pass creates it.
    pub(super) new: Option<&'a Arc<ReplicaSet>>,
    /// Its name, known even if this pass creates it.
    pub(super) new_name: &'a str,
    /// The name of the set this pass creates.
    pub(super) created: Option<&'a str>,
    pub(super) bounds: Bounds,
    pub(super) progress: Progress,
}

/// The status, and when to look again though nothing changes.
pub(super) fn calculate(input: &Input, now: Timestamp) -> (DeploymentStatus, Option<Duration>) {
    let mut status = count(input);
    let old = input.deployment.status.clone().unwrap_or_default();
    let mut conditions = Conditions(old.conditions.clone().unwrap_or_default());
    let enough = status.available_replicas.unwrap_or(0) >= input.bounds.replicas - input.bounds.unavailable;
    let (value, reason, message) = match enough {
        true => ("True", "MinimumReplicasAvailable", "Deployment has minimum availability."),
        false => ("False", "MinimumReplicasUnavailable", "Deployment does not have minimum availability."),
    };
    conditions.set(fresh("Available", value, reason, message, now));
    conditions.note_pause(input.deployment, now);
    let mut again = None;
    match input.progress {
        Progress::Ignored => {}
        Progress::Watched => {
            copy_failure(&mut conditions, input);
            again = judge(&mut conditions, input, &old, &status, now);
        }
    }
    status.conditions = Some(conditions.0);
    (status, again)
}

fn count(input: &Input) -> DeploymentStatus {
    let some = |n: i32| (n != 0).then_some(n);
    let sum = |pick: fn(&ReplicaSet) -> i32| input.sets.iter().map(|s| pick(s)).sum::<i32>();
    let stat = |set: &ReplicaSet, pick: fn(&k8s_openapi::api::apps::v1::ReplicaSetStatus) -> Option<i32>| {
        set.status.as_ref().and_then(pick).unwrap_or(0)
    };
    let available: i32 = input.sets.iter().map(|s| stat(s, |x| x.available_replicas)).sum();
    let wanted = sum(|s| s.spec.as_ref().map_or(0, |s| s.replicas.unwrap_or(1)));
    let terminating = input.sets.iter().map(|s| s.status.as_ref().and_then(|x| x.terminating_replicas));
    DeploymentStatus {
        observed_generation: input.deployment.metadata.generation,
        replicas: some(sum(|s| s.status.as_ref().map_or(0, |x| x.replicas))),
        updated_replicas: some(input.new.map_or(0, |s| stat(s, |x| Some(x.replicas)))),
        ready_replicas: some(input.sets.iter().map(|s| stat(s, |x| x.ready_replicas)).sum()),
        available_replicas: some(available),
        unavailable_replicas: some((wanted - available).max(0)),
        terminating_replicas: terminating.sum::<Option<i32>>(),
        collision_count: input.deployment.status.as_ref().and_then(|s| s.collision_count),
        conditions: None,
    }
}

/// Whether every pod is of the current template and available.
pub(super) fn is_complete(deployment: &Deployment, status: Option<&DeploymentStatus>) -> bool {
    let Some(status) = status else { return false };
    let wanted = deployment.spec.as_ref().map_or(0, |s| s.replicas.unwrap_or(1));
    let is = |n: Option<i32>| n.unwrap_or(0) == wanted;
    is(status.updated_replicas)
        && is(status.replicas)
        && is(status.available_replicas)
        && status.observed_generation >= deployment.metadata.generation
}

/// The status of a deployment whose new ReplicaSet was refused.
pub(super) fn with_create_failure(
    status: &DeploymentStatus,
    message: &str,
    now: Timestamp,
) -> DeploymentStatus {
    let mut status = status.clone();
    let mut conditions = Conditions(status.conditions.take().unwrap_or_default());
    conditions.set(fresh("Progressing", "False", "ReplicaSetCreateError", message, now));
    status.conditions = Some(conditions.0);
    status
}

fn deadline(deployment: &Deployment) -> Option<Duration> {
    let seconds = deployment.spec.as_ref()?.progress_deadline_seconds?;
    if seconds == NO_DEADLINE { None } else { Some(Duration::from_secs(u64::try_from(seconds).ok()?)) }
}

/// Sets the condition Progressing; returns when the deadline is to be checked.
fn judge(
    conditions: &mut Conditions,
    input: &Input,
    old: &DeploymentStatus,
    new: &DeploymentStatus,
    now: Timestamp,
) -> Option<Duration> {
    let Some(deadline) = deadline(input.deployment) else {
        conditions.remove("Progressing");
        return None;
    };
    let current = conditions.get("Progressing").cloned();
    let reason = current.as_ref().and_then(|c| c.reason.as_deref()).unwrap_or("");
    let subject = match input.new_name {
        "" => format!("Deployment {:?}", input.deployment.metadata.name.as_deref().unwrap_or("")),
        name => format!("ReplicaSet {name:?}"),
    };
    if new.replicas == new.updated_replicas && reason == "NewReplicaSetAvailable" && input.created.is_none() {
        return None;
    }
    if let Some(name) = input.created {
        let message = format!("Created new replica set {name:?}");
        conditions.set(fresh("Progressing", "True", "NewReplicaSetCreated", &message, now));
    } else if is_complete(input.deployment, Some(new)) {
        let message = format!("{subject} has successfully progressed.");
        conditions.set(fresh("Progressing", "True", "NewReplicaSetAvailable", &message, now));
    } else if current.is_none() && input.new.is_some() {
        let message = format!("Found new replica set {:?}", input.new_name);
        conditions.set(fresh("Progressing", "True", "FoundNewReplicaSet", &message, now));
    } else if has_progressed(old, new) {
        let message = format!("{subject} is progressing.");
        conditions.refresh(fresh("Progressing", "True", "ReplicaSetUpdated", &message, now));
    } else if timed_out(current.as_ref(), deadline, now) {
        let message = format!("{subject} has timed out progressing.");
        conditions.set(fresh("Progressing", "False", "ProgressDeadlineExceeded", &message, now));
    }
    let current = conditions.get("Progressing")?;
    if matches!(current.reason.as_deref(), Some("NewReplicaSetAvailable" | "ProgressDeadlineExceeded")) {
        return None;
    }
    let since = time_of(current.last_update_time.as_ref())?;
    Some(until(since.after(deadline), now))
}

fn has_progressed(old: &DeploymentStatus, new: &DeploymentStatus) -> bool {
    let n = |v: Option<i32>| v.unwrap_or(0);
    let rest = |s: &DeploymentStatus| n(s.replicas) - n(s.updated_replicas);
    n(new.updated_replicas) > n(old.updated_replicas)
        || rest(new) < rest(old)
        || n(new.ready_replicas) > n(old.ready_replicas)
        || n(new.available_replicas) > n(old.available_replicas)
}

fn timed_out(current: Option<&DeploymentCondition>, deadline: Duration, now: Timestamp) -> bool {
    let Some(current) = current else { return false };
    match current.reason.as_deref() {
        Some("NewReplicaSetAvailable") => false,
        Some("ProgressDeadlineExceeded") => true,
        _ => time_of(current.last_update_time.as_ref()).is_some_and(|t| t.after(deadline) < now),
    }
}

/// A set that cannot make its pods says so on the deployment as well.
fn copy_failure(conditions: &mut Conditions, input: &Input) {
    let failure = |set: &ReplicaSet| {
        let all = set.status.as_ref()?.conditions.as_ref()?;
        all.iter().find(|c| c.type_ == "ReplicaFailure").cloned()
    };
    let newest = input.new.and_then(|set| failure(set));
    match newest.or_else(|| input.sets.iter().find_map(|set| failure(set))) {
        None => conditions.remove("ReplicaFailure"),
        Some(c) => conditions.set(DeploymentCondition {
            type_: "ReplicaFailure".into(),
            status: c.status,
            last_update_time: c.last_transition_time.clone(),
            last_transition_time: c.last_transition_time,
            reason: c.reason,
            message: c.message,
        }),
    }
}

fn fresh(kind: &str, status: &str, reason: &str, message: &str, now: Timestamp) -> DeploymentCondition {
    DeploymentCondition {
        type_: kind.into(),
        status: status.into(),
        reason: Some(reason.into()),
        message: Some(message.into()),
        last_update_time: Some(time(now)),
        last_transition_time: Some(time(now)),
    }
}

struct Conditions(Vec<DeploymentCondition>);

impl Conditions {
    fn get(&self, kind: &str) -> Option<&DeploymentCondition> {
        self.0.iter().find(|c| c.type_ == kind)
    }

    fn remove(&mut self, kind: &str) {
        self.0.retain(|c| c.type_ != kind);
    }

    /// Sets a condition unless it says the same already.
    fn set(&mut self, condition: DeploymentCondition) {
        let same = |c: &DeploymentCondition| c.status == condition.status && c.reason == condition.reason;
        if !self.get(&condition.type_).is_some_and(same) {
            self.refresh(condition);
        }
    }

    /// Sets a condition; its transition time stays while its status does.
    fn refresh(&mut self, mut condition: DeploymentCondition) {
        if let Some(old) = self.get(&condition.type_)
            && old.status == condition.status
        {
            condition.last_transition_time.clone_from(&old.last_transition_time);
        }
        self.remove(&condition.type_.clone());
        self.0.push(condition);
    }

    /// The progress clock stands still while the deployment is paused.
    fn note_pause(&mut self, deployment: &Deployment, now: Timestamp) {
        let reason = self.get("Progressing").and_then(|c| c.reason.as_deref()).unwrap_or("");
        if deadline(deployment).is_none() || reason == "ProgressDeadlineExceeded" {
            return;
        }
        let paused = deployment.spec.as_ref().and_then(|s| s.paused).unwrap_or(false);
        match (paused, reason == "DeploymentPaused") {
            (true, false) => {
                self.set(fresh("Progressing", "Unknown", "DeploymentPaused", "Deployment is paused", now));
            }
            (false, true) => {
                self.set(fresh("Progressing", "Unknown", "DeploymentResumed", "Deployment is resumed", now));
            }
            _ => {}
        }
    }
}
