//! One pass over a job: who has finished, whether the job is over, which pods to add.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use k8s_openapi::api::{
    batch::v1::{Job, JobCondition, JobStatus, UncountedTerminatedPods},
    core::v1::Pod,
};
use wasmk_api::Timestamp;

use crate::base::{PodView, is_deleting, is_ready, time};

use super::{
    indexes,
    tally::{Tally, is_over, is_tracked},
};

/// What a pass does: create and delete pods, write the status, then release pods.
#[derive(Debug, Default)]
pub(super) struct Plan {
    /// New pods: their index, if the job has indexes, and how often that failed before.
    pub(super) create: Vec<(Option<i32>, i32)>,
    pub(super) delete: Vec<Arc<Pod>>,
    /// Pods that are not wanted any more: let go first, so that they do not count as failed, then deleted.
    pub(super) withdraw: Vec<Arc<Pod>>,
    pub(super) status: JobStatus,
    /// Finished pods that the status has taken in.
    pub(super) release: Vec<Arc<Pod>>,
    /// When to look again though nothing changes.
    pub(super) again: Option<Duration>,
    /// Reason and message of an event: the job has ended, stopped or gone on.
    pub(super) event: Option<(String, String)>,
}

/// Decides on one pass.
pub(super) fn plan(job: &Job, pods: &[Arc<Pod>], now: Timestamp) -> Option<Plan> {
    let spec = job.spec.as_ref()?;
    if is_over(job) {
        let release = pods.iter().filter(|p| is_tracked(p)).cloned().collect();
        return Some(Plan { release, status: job.status.clone().unwrap_or_default(), ..Plan::default() });
    }
    let mut tally = Tally::new(job, spec, pods, now);
    tally.flush();
    tally.take_in();
    Some(tally.decide())
}

impl Tally<'_> {
    fn decide(self) -> Plan {
        let old = self.job.status.clone().unwrap_or_default();
        let mut conditions = old.conditions.clone().unwrap_or_default();
        let mut plan = Plan { release: self.release.clone(), ..Plan::default() };
        let pending = |kind: &str| {
            let found = conditions.iter().find(|c| c.type_ == kind && c.status == "True");
            found.map(|c| (c.reason.clone().unwrap_or_default(), c.message.clone().unwrap_or_default()))
        };
        let failing = pending("FailureTarget")
            .or_else(|| if pending("SuccessCriteriaMet").is_some() { None } else { self.failure() });
        let succeeding =
            if failing.is_some() { None } else { pending("SuccessCriteriaMet").or_else(|| self.success()) };
        let going = is_deleting(self.job);
        let ended = failing.is_some() || succeeding.is_some();
        if ended {
            plan.delete = self.active();
        } else if !going {
            self.manage(&mut plan);
        }
        let mut status = self.status(&old, &plan);
        if let Some((target, last, (reason, message))) = failing
            .map(|w| ("FailureTarget", "Failed", w))
            .or(succeeding.map(|w| ("SuccessCriteriaMet", "Complete", w)))
        {
            set(&mut conditions, target, "True", &reason, &message, self.now);
            let nothing_left = plan.delete.is_empty()
                && status.terminating.unwrap_or(0) == 0
                && self.release.is_empty()
                && self.uncounted == UncountedTerminatedPods::default();
            if nothing_left {
                set(&mut conditions, last, "True", &reason, &message, self.now);
                if last == "Complete" {
                    status.completion_time = Some(time(self.now));
                }
                plan.event = Some(match last {
                    "Complete" => ("Completed".into(), "Job completed".into()),
                    _ => (reason, message),
                });
            }
        } else if !going {
            plan.event = self.note_suspension(&mut conditions, &mut status);
        }
        status.conditions = (!conditions.is_empty()).then_some(conditions);
        plan.status = status;
        if let Some(left) = self.deadline_left().filter(|_| !ended) {
            plan.again = Some(plan.again.map_or(left, |a| a.min(left)));
        }
        plan
    }

    fn note_suspension(
        &self,
        conditions: &mut Vec<JobCondition>,
        status: &mut JobStatus,
    ) -> Option<(String, String)> {
        let was = conditions.iter().find(|c| c.type_ == "Suspended").map(|c| c.status == "True");
        if self.spec.suspend == Some(true) {
            if was == Some(true) {
                return None;
            }
            set(conditions, "Suspended", "True", "JobSuspended", "Job suspended", self.now);
            status.start_time = None;
            return Some(("Suspended".into(), "Job suspended".into()));
        }
        if status.start_time.is_none() {
            status.start_time = Some(time(self.now));
        }
        if was != Some(true) {
            return None;
        }
        set(conditions, "Suspended", "False", "JobResumed", "Job resumed", self.now);
        status.start_time = Some(time(self.now));
        Some(("Resumed".into(), "Job resumed".into()))
    }

    fn status(&self, old: &JobStatus, plan: &Plan) -> JobStatus {
        let some = |n: usize| i32::try_from(n).ok().filter(|n| *n > 0);
        let gone = plan.delete.len() + plan.withdraw.len();
        let active = self.active().len() + plan.create.len() - gone;
        let ready = self.pods.iter().filter(|p| PodView(p).is_active() && is_ready(p)).count();
        let going = self.pods.iter().filter(|p| is_deleting(&***p) && !crate::base::is_finished(p)).count();
        let text = |set: &BTreeSet<i32>| (!set.is_empty()).then(|| indexes::print(set));
        let succeeded = if self.indexed() { self.total_succeeded() } else { self.succeeded };
        JobStatus {
            active: some(active),
            ready: Some(i32::try_from(ready).unwrap_or(i32::MAX)),
            terminating: Some(i32::try_from(going + gone).unwrap_or(i32::MAX)),
            succeeded: (succeeded > 0).then_some(succeeded),
            failed: (self.failed > 0).then_some(self.failed),
            completed_indexes: text(&self.done),
            failed_indexes: if self.spec.backoff_limit_per_index.is_some() {
                Some(indexes::print(&self.failed_indexes))
            } else {
                None
            },
            uncounted_terminated_pods: Some(self.uncounted.clone()),
            ..old.clone()
        }
    }
}

/// Sets a condition unless it says the same already.
fn set(all: &mut Vec<JobCondition>, kind: &str, status: &str, reason: &str, message: &str, now: Timestamp) {
    if all.iter().any(|c| c.type_ == kind && c.status == status) {
        return;
    }
    all.retain(|c| c.type_ != kind);
    all.push(JobCondition {
        type_: kind.into(),
        status: status.into(),
        reason: Some(reason.into()),
        message: Some(message.into()),
        last_probe_time: Some(time(now)),
        last_transition_time: Some(time(now)),
    });
}

#[cfg(test)]
#[path = "plan_tests.rs"]
mod tests;
