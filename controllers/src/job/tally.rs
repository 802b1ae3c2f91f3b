//! The pods of a job, counted: each finished one once, however often a pass breaks off.
//!
//! A finished pod carries a finalizer until the job's status has taken it in: its uid goes into
//! `uncountedTerminatedPods`, then the finalizer goes, then the uid becomes a count. A pass may end anywhere between
//! these without losing a pod or counting one twice.

use std::{collections::BTreeSet, sync::Arc};

use k8s_openapi::api::{
    batch::v1::{Job, JobSpec, UncountedTerminatedPods},
    core::v1::Pod,
};
use wasmk_api::Timestamp;

use crate::base::{PodView, is_deleting, uid};

use super::{
    indexes,
    policy::{self, Failure},
};

pub(super) const FINALIZER: &str = "batch.kubernetes.io/job-tracking";
pub(super) const INDEX: &str = "batch.kubernetes.io/job-completion-index";
/// How often a pod's index has failed before it, when indexes are counted one by one.
pub(super) const INDEX_FAILURES: &str = "batch.kubernetes.io/job-index-failure-count";
/// Uids in the status at once.
const MAX_UNCOUNTED: usize = 500;

/// The job's pods, sorted by what they count for.
pub(super) struct Tally<'a> {
    pub(super) job: &'a Job,
    pub(super) spec: &'a JobSpec,
    pub(super) pods: &'a [Arc<Pod>],
    pub(super) now: Timestamp,
    pub(super) completions: Option<i32>,
    pub(super) succeeded: i32,
    pub(super) failed: i32,
    pub(super) uncounted: UncountedTerminatedPods,
    pub(super) done: BTreeSet<i32>,
    pub(super) failed_indexes: BTreeSet<i32>,
    pub(super) verdict: Option<(String, String)>,
    pub(super) release: Vec<Arc<Pod>>,
}

pub(super) fn is_indexed(job: &Job) -> bool {
    job.spec.as_ref().and_then(|s| s.completion_mode.as_deref()) == Some("Indexed")
}

/// Whether the job has ended.
pub(super) fn is_over(job: &Job) -> bool {
    let conditions = job.status.iter().flat_map(|s| s.conditions.iter().flatten());
    conditions.into_iter().any(|c| c.status == "True" && matches!(&*c.type_, "Complete" | "Failed"))
}

pub(super) fn index_of(pod: &Pod) -> Option<i32> {
    pod.metadata.annotations.as_ref()?.get(INDEX)?.parse().ok()
}

pub(super) fn is_tracked(pod: &Pod) -> bool {
    pod.metadata.finalizers.iter().flatten().any(|f| f == FINALIZER)
}

pub(super) fn phase(pod: &Pod) -> &str {
    PodView(pod).phase()
}

pub(super) fn failures_before(pod: &Pod) -> i32 {
    let noted = pod.metadata.annotations.as_ref().and_then(|a| a.get(INDEX_FAILURES));
    noted.and_then(|text| text.parse().ok()).unwrap_or(0)
}

impl<'a> Tally<'a> {
    pub(super) fn new(job: &'a Job, spec: &'a JobSpec, pods: &'a [Arc<Pod>], now: Timestamp) -> Self {
        let status = job.status.clone().unwrap_or_default();
        let bound = spec.completions.unwrap_or(i32::MAX);
        let set = |text: &Option<String>| indexes::parse(text.as_deref().unwrap_or(""), bound);
        Self {
            job,
            spec,
            pods,
            now,
            completions: spec.completions,
            succeeded: status.succeeded.unwrap_or(0),
            failed: status.failed.unwrap_or(0),
            done: set(&status.completed_indexes),
            failed_indexes: set(&status.failed_indexes),
            uncounted: status.uncounted_terminated_pods.unwrap_or_default(),
            verdict: None,
            release: Vec::new(),
        }
    }

    pub(super) fn indexed(&self) -> bool {
        is_indexed(self.job)
    }

    /// Turns uids whose pods have been released into counts.
    pub(super) fn flush(&mut self) {
        let tracked: BTreeSet<&str> = self.pods.iter().filter(|p| is_tracked(p)).map(|p| uid(&**p)).collect();
        let count = |list: &mut Option<Vec<String>>| {
            let all = list.take().unwrap_or_default();
            let (keep, gone): (Vec<_>, Vec<_>) = all.into_iter().partition(|u| tracked.contains(u.as_str()));
            *list = (!keep.is_empty()).then_some(keep);
            i32::try_from(gone.len()).unwrap_or(i32::MAX)
        };
        self.succeeded += count(&mut self.uncounted.succeeded);
        self.failed += count(&mut self.uncounted.failed);
    }

    /// Takes in pods that have finished since.
    pub(super) fn take_in(&mut self) {
        for pod in self.pods.iter().filter(|p| is_tracked(p)) {
            let id = uid(&**pod).to_owned();
            let known = |list: &Option<Vec<String>>| list.iter().flatten().any(|u| *u == id);
            if known(&self.uncounted.succeeded) || known(&self.uncounted.failed) {
                self.release.push(pod.clone());
            } else if self.release.len() >= MAX_UNCOUNTED {
                return;
            } else if phase(pod) == "Succeeded" {
                self.take_success(pod, id);
            } else if self.counts_as_failed(pod) {
                self.take_failure(pod, id);
            }
        }
    }

    pub(super) fn take_success(&mut self, pod: &Arc<Pod>, id: String) {
        match (self.indexed(), index_of(pod)) {
            (true, Some(index)) => {
                if index < self.completions.unwrap_or(0) {
                    self.done.insert(index);
                }
            }
            (true, None) => {}
            (false, _) => self.uncounted.succeeded.get_or_insert_default().push(id),
        }
        self.release.push(pod.clone());
    }

    /// Pods being deleted count as failed at once, unless the policy says to wait for their end.
    pub(super) fn counts_as_failed(&self, pod: &Pod) -> bool {
        let waits = self.spec.pod_replacement_policy.as_deref() == Some("Failed");
        phase(pod) == "Failed" || (is_deleting(pod) && !waits)
    }

    pub(super) fn take_failure(&mut self, pod: &Arc<Pod>, id: String) {
        self.release.push(pod.clone());
        match policy::of_failure(self.job, pod) {
            Failure::Ignore => return,
            Failure::Count => {}
            Failure::FailIndex => drop(index_of(pod).map(|i| self.failed_indexes.insert(i))),
            Failure::FailJob(message) => self.verdict = Some(("PodFailurePolicy".into(), message)),
        }
        self.uncounted.failed.get_or_insert_default().push(id);
        if let (Some(limit), Some(index)) = (self.spec.backoff_limit_per_index, index_of(pod))
            && failures_before(pod) + 1 > limit
        {
            self.failed_indexes.insert(index);
        }
    }

    pub(super) fn total_succeeded(&self) -> i32 {
        let waiting = self.uncounted.succeeded.as_ref().map_or(0, Vec::len);
        let count = if self.indexed() {
            self.done.len()
        } else {
            waiting + usize::try_from(self.succeeded).unwrap_or(0)
        };
        i32::try_from(count).unwrap_or(i32::MAX)
    }

    pub(super) fn total_failed(&self) -> i32 {
        self.failed + i32::try_from(self.uncounted.failed.as_ref().map_or(0, Vec::len)).unwrap_or(i32::MAX)
    }

    pub(super) fn active(&self) -> Vec<Arc<Pod>> {
        self.pods.iter().filter(|p| PodView(p).is_active()).cloned().collect()
    }
}
