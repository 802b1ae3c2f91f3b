//! One pass over a job: who has finished, whether the job is over, which pods to add.
//!
//! A finished pod carries a finalizer until the job's status has taken it in: its uid goes
//! into `uncountedTerminatedPods`, then the finalizer goes, then the uid becomes a count. A
//! pass may end anywhere between these without losing a pod or counting one twice.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use k8s_openapi::api::{
    batch::v1::{Job, JobCondition, JobSpec, JobStatus, UncountedTerminatedPods},
    core::v1::Pod,
};
use wasmk_api::Timestamp;

use crate::base::{PodView, is_deleting, is_ready, time, time_of, total_restarts, uid};

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
/// Pods created in a pass.
const BURST: usize = 500;
/// Wait after the first failure; doubles up to [`MAX_BACKOFF`].
const FIRST_BACKOFF: Duration = Duration::from_secs(10);
const MAX_BACKOFF: Duration = Duration::from_secs(600);

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

/// The job's pods, sorted by what they count for.
struct Tally<'a> {
    job: &'a Job,
    spec: &'a JobSpec,
    pods: &'a [Arc<Pod>],
    now: Timestamp,
    completions: Option<i32>,
    succeeded: i32,
    failed: i32,
    uncounted: UncountedTerminatedPods,
    done: BTreeSet<i32>,
    failed_indexes: BTreeSet<i32>,
    verdict: Option<(String, String)>,
    release: Vec<Arc<Pod>>,
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

fn is_tracked(pod: &Pod) -> bool {
    pod.metadata.finalizers.iter().flatten().any(|f| f == FINALIZER)
}

fn phase(pod: &Pod) -> &str {
    PodView(pod).phase()
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

impl<'a> Tally<'a> {
    fn new(job: &'a Job, spec: &'a JobSpec, pods: &'a [Arc<Pod>], now: Timestamp) -> Self {
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

    fn indexed(&self) -> bool {
        is_indexed(self.job)
    }

    /// Turns uids whose pods have been released into counts.
    fn flush(&mut self) {
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
    fn take_in(&mut self) {
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

    fn take_success(&mut self, pod: &Arc<Pod>, id: String) {
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
    fn counts_as_failed(&self, pod: &Pod) -> bool {
        let waits = self.spec.pod_replacement_policy.as_deref() == Some("Failed");
        phase(pod) == "Failed" || (is_deleting(pod) && !waits)
    }

    fn take_failure(&mut self, pod: &Arc<Pod>, id: String) {
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

    fn total_succeeded(&self) -> i32 {
        let waiting = self.uncounted.succeeded.as_ref().map_or(0, Vec::len);
        let count = if self.indexed() {
            self.done.len()
        } else {
            waiting + usize::try_from(self.succeeded).unwrap_or(0)
        };
        i32::try_from(count).unwrap_or(i32::MAX)
    }

    fn total_failed(&self) -> i32 {
        self.failed + i32::try_from(self.uncounted.failed.as_ref().map_or(0, Vec::len)).unwrap_or(i32::MAX)
    }

    fn active(&self) -> Vec<Arc<Pod>> {
        self.pods.iter().filter(|p| PodView(p).is_active()).cloned().collect()
    }

    /// Why the job has failed, if it has.
    fn failure(&self) -> Option<(String, String)> {
        let why = |reason: &str, message: &str| Some((reason.to_owned(), message.to_owned()));
        if let Some(verdict) = &self.verdict {
            return Some(verdict.clone());
        }
        let limit = self.spec.backoff_limit.unwrap_or(if self.spec.backoff_limit_per_index.is_some() {
            i32::MAX
        } else {
            6
        });
        if self.total_failed() > limit || self.restarted_too_often(limit) {
            return why("BackoffLimitExceeded", "Job has reached the specified backoff limit");
        }
        if self.deadline_left().is_some_and(|left| left.is_zero()) {
            return why("DeadlineExceeded", "Job was active longer than specified deadline");
        }
        let failed = i32::try_from(self.failed_indexes.len()).unwrap_or(i32::MAX);
        if self.spec.max_failed_indexes.is_some_and(|max| failed > max) {
            return why(
                "MaxFailedIndexesExceeded",
                "Job has exceeded the specified maximal number of failed indexes",
            );
        }
        let all = self.indexed() && self.total_succeeded() + failed >= self.completions.unwrap_or(i32::MAX);
        if all && failed > 0 && self.active().is_empty() {
            why("FailedIndexes", "Job has failed indexes")
        } else {
            None
        }
    }

    /// Containers that the node restarts in place count by their restarts.
    fn restarted_too_often(&self, limit: i32) -> bool {
        let policy = self.spec.template.spec.as_ref().and_then(|s| s.restart_policy.as_deref());
        if policy != Some("OnFailure") {
            return false;
        }
        let running = self.pods.iter().filter(|p| matches!(phase(p), "Running" | "Pending"));
        let restarts: i32 = running.map(|p| total_restarts(p)).fold(0, i32::saturating_add);
        if limit == 0 { restarts > 0 } else { restarts >= limit }
    }

    fn deadline_left(&self) -> Option<Duration> {
        let limit = u64::try_from(self.spec.active_deadline_seconds?).unwrap_or(0);
        let start = time_of(self.job.status.as_ref()?.start_time.as_ref())?;
        if self.spec.suspend == Some(true) {
            return None;
        }
        Some(start.after(Duration::from_secs(limit)).since(self.now))
    }

    /// Why the job has succeeded, if it has.
    fn success(&self) -> Option<(String, String)> {
        if let Some(message) = policy::of_success(self.job, &self.done, self.completions.unwrap_or(0)) {
            return Some(("SuccessPolicy".into(), message));
        }
        let enough = match self.completions {
            Some(completions) => {
                self.total_succeeded() >= completions && (self.failed_indexes.is_empty() || completions == 0)
            }
            // A work queue is done when one pod has found it empty and all have ended.
            None => self.total_succeeded() > 0 && self.active().is_empty(),
        };
        enough.then(|| ("CompletionsReached".into(), "Reached expected number of succeeded pods".into()))
    }

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

    /// Keeps as many pods running as are wanted now.
    fn manage(&self, plan: &mut Plan) {
        let mut active = self.active();
        if self.spec.suspend == Some(true) {
            plan.withdraw = active;
            return;
        }
        let parallelism = self.spec.parallelism.unwrap_or(1).max(0);
        let wanted = match self.completions {
            Some(completions) => (completions - self.total_succeeded()).clamp(0, parallelism),
            None if self.total_succeeded() > 0 => parallelism.min(i32::try_from(active.len()).unwrap_or(0)),
            None => parallelism,
        };
        let wanted = usize::try_from(wanted).unwrap_or(0);
        if active.len() > wanted {
            active.sort_by_key(|p| {
                (phase(p) == "Running", is_ready(p), std::cmp::Reverse(index_of(p)), uid(&**p).to_owned())
            });
            let surplus = active.len() - wanted;
            plan.withdraw = active.into_iter().take(surplus).collect();
            return;
        }
        let waits = self.spec.pod_replacement_policy.as_deref() == Some("Failed");
        let going = self.pods.iter().filter(|p| waits && is_deleting(&***p) && !crate::base::is_finished(p));
        let missing = wanted.saturating_sub(active.len() + going.count()).min(BURST);
        if missing == 0 {
            return;
        }
        if self.indexed() {
            self.add_indexes(plan, missing);
        } else if let Some(wait) = self.backoff(|_| true) {
            plan.again = Some(wait);
        } else {
            plan.create = vec![(None, 0); missing];
        }
    }

    /// The lowest indexes that nobody works on; those that failed lately wait.
    fn add_indexes(&self, plan: &mut Plan, missing: usize) {
        let busy: BTreeSet<i32> =
            self.pods.iter().filter(|p| PodView(p).is_active()).filter_map(|p| index_of(p)).collect();
        let free = (0..self.completions.unwrap_or(0))
            .filter(|i| !busy.contains(i) && !self.done.contains(i) && !self.failed_indexes.contains(i));
        let alone = self.spec.backoff_limit_per_index.is_some();
        let shared = if alone { None } else { self.backoff(|_| true) };
        let mut failures: BTreeMap<i32, i32> = BTreeMap::new();
        for pod in self.pods.iter().filter(|p| phase(p) == "Failed") {
            if let Some(index) = index_of(pod) {
                let count = failures.entry(index).or_insert(0);
                *count = (*count).max(failures_before(pod) + 1);
            }
        }
        for index in free.take(missing) {
            let own = if alone { self.backoff(|p| index_of(p) == Some(index)) } else { shared };
            match own {
                Some(wait) => plan.again = Some(plan.again.map_or(wait, |a| a.min(wait))),
                None => plan.create.push((Some(index), failures.get(&index).copied().unwrap_or(0))),
            }
        }
    }

    /// How long to wait because the latest pods have failed.
    fn backoff(&self, of: impl Fn(&Pod) -> bool) -> Option<Duration> {
        let ended =
            self.pods.iter().filter(|p| of(p)).filter_map(|p| Some((finished_at(p)?, phase(p) == "Failed")));
        let mut ended: Vec<(Timestamp, bool)> = ended.collect();
        ended.sort_unstable();
        let failures = ended.iter().rev().take_while(|(_, failed)| *failed).count();
        let last = ended.last().filter(|_| failures > 0)?.0;
        let exponent = u32::try_from(failures - 1).unwrap_or(u32::MAX).min(16);
        let wait = FIRST_BACKOFF.saturating_mul(1 << exponent).min(MAX_BACKOFF);
        let until = last.after(wait);
        (until > self.now).then(|| until.since(self.now))
    }
}

fn failures_before(pod: &Pod) -> i32 {
    let noted = pod.metadata.annotations.as_ref().and_then(|a| a.get(INDEX_FAILURES));
    noted.and_then(|text| text.parse().ok()).unwrap_or(0)
}

/// When a finished pod's last container ended.
fn finished_at(pod: &Pod) -> Option<Timestamp> {
    if !crate::base::is_finished(pod) {
        return None;
    }
    let containers = pod.status.iter().flat_map(|s| s.container_statuses.iter().flatten());
    let ends =
        containers.filter_map(|c| time_of(c.state.as_ref()?.terminated.as_ref()?.finished_at.as_ref()));
    let changed = crate::base::condition(pod, "Ready").and_then(|c| time_of(c.last_transition_time.as_ref()));
    ends.max().or(changed).or(time_of(pod.metadata.creation_timestamp.as_ref()))
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
mod tests {
    use super::*;
    use serde_json::{Value, json};

    const NOW: &str = "2026-01-01T12:00:00Z";

    fn job(spec: Value) -> Job {
        let mut whole = json!({"metadata": {"name": "j", "namespace": "ns", "uid": "j"},
            "spec": {"parallelism": 1, "completions": 1, "backoffLimit": 6,
                "template": {"spec": {"restartPolicy": "Never", "containers": []}}},
            "status": {"startTime": "2026-01-01T11:00:00Z"}});
        for (key, value) in spec.as_object().unwrap() {
            whole["spec"][key] = value.clone();
        }
        serde_json::from_value(whole).unwrap()
    }

    /// `name running|ok|failed[@secondsAgo[:exit]] [released] [going] [#index]`.
    fn pod(text: &str) -> Arc<Pod> {
        let words: Vec<&str> = text.split_whitespace().collect();
        let now: Timestamp = NOW.parse().unwrap();
        let mut meta =
            json!({"name": words[0], "uid": words[0], "namespace": "ns", "finalizers": [FINALIZER]});
        let mut status = json!({"phase": "Running"});
        for word in &words[1..] {
            let (state, ended) = word.split_once('@').unwrap_or((word, "60"));
            let (ago, code) = ended.split_once(':').unwrap_or((ended, "1"));
            match state {
                "ok" | "failed" => {
                    let at = Timestamp(now.0 - Duration::from_secs(ago.parse().unwrap()));
                    status["phase"] = json!(if state == "ok" { "Succeeded" } else { "Failed" });
                    let code: i32 = if state == "ok" { 0 } else { code.parse().unwrap() };
                    status["containerStatuses"] = json!([{"name": "c", "ready": false, "restartCount": 0, "image": "",
                        "imageID": "", "state": {"terminated": {"exitCode": code, "finishedAt": at.to_string()}}}]);
                }
                "released" => meta["finalizers"] = json!([]),
                "going" => meta["deletionTimestamp"] = json!(NOW),
                "running" => {}
                index => meta["annotations"] = json!({INDEX: index.strip_prefix('#').unwrap()}),
            }
        }
        Arc::new(serde_json::from_value(json!({"metadata": meta, "status": status})).unwrap())
    }

    fn show(plan: &Plan) -> String {
        let mut parts = Vec::new();
        match &*plan.create {
            [] => {}
            [(None, _), ..] => parts.push(format!("create {}", plan.create.len())),
            all => parts.extend(all.iter().map(|(i, _)| format!("create #{}", i.unwrap()))),
        }
        let name = |p: &Arc<Pod>| p.metadata.name.clone().unwrap();
        parts.extend(plan.delete.iter().map(|p| format!("delete {}", name(p))));
        parts.extend(plan.withdraw.iter().map(|p| format!("withdraw {}", name(p))));
        parts.extend(plan.release.iter().map(|p| format!("release {}", name(p))));
        for c in plan.status.conditions.iter().flatten().filter(|c| c.status == "True") {
            parts.push(format!("{}({})", c.type_, c.reason.as_deref().unwrap()));
        }
        parts.join(", ")
    }

    fn check(spec: Value, pods: &[&str], expect: &str) -> Plan {
        let pods: Vec<_> = pods.iter().map(|p| pod(p)).collect();
        let plan = plan(&job(spec.clone()), &pods, NOW.parse().unwrap()).unwrap();
        assert_eq!(show(&plan), expect, "{spec} {pods:?}");
        plan
    }

    #[test]
    fn runs_as_many_as_are_wanted() {
        check(json!({}), &[], "create 1");
        check(json!({"completions": 10, "parallelism": 5}), &["a running"], "create 4");
        check(json!({"completions": 10, "parallelism": 5}), &["a running", "b ok"], "create 4, release b");
        check(json!({"completions": 2, "parallelism": 5}), &["a running", "b ok"], "release b");
        check(json!({"parallelism": 1, "completions": 9}), &["a running", "b running"], "withdraw a");
        check(json!({"suspend": true}), &["a running"], "withdraw a, Suspended(JobSuspended)");
        check(json!({"completions": null, "parallelism": 3}), &["a running", "b running"], "create 1");
        check(json!({"completions": null, "parallelism": 3}), &["a running", "b ok"], "release b");
    }

    #[test]
    fn failures_wait_and_then_end_the_job() {
        let plan = check(json!({}), &["a failed@3 released"], "");
        assert_eq!(plan.again, Some(Duration::from_secs(7)));
        check(json!({}), &["a failed@11 released"], "create 1");
        let plan = check(json!({}), &["a failed@30 released", "b failed@11 released"], "");
        assert_eq!(plan.again, Some(Duration::from_secs(9)));
        check(
            json!({"backoffLimit": 0, "completions": 2, "parallelism": 2}),
            &["a failed", "b running"],
            "delete b, release a, FailureTarget(BackoffLimitExceeded)",
        );
        check(
            json!({"activeDeadlineSeconds": 60}),
            &["a running"],
            "delete a, FailureTarget(DeadlineExceeded)",
        );
        let plan = check(json!({"activeDeadlineSeconds": 7200}), &["a running"], "");
        assert_eq!(plan.again, Some(Duration::from_secs(3600)));
    }

    #[test]
    fn a_pod_is_counted_once_then_released_then_forgotten() {
        let mut j = job(json!({}));
        let now = NOW.parse().unwrap();
        let first = plan(&j, &[pod("a ok")], now).unwrap();
        assert_eq!(show(&first), "release a, SuccessCriteriaMet(CompletionsReached)");
        assert_eq!(first.status.succeeded, None);
        j.status = Some(first.status);
        // Status written, but stopped before the release: the same again.
        let again = plan(&j, &[pod("a ok")], now).unwrap();
        assert_eq!(show(&again), "release a, SuccessCriteriaMet(CompletionsReached)");
        // Released: counted, even if the pod is gone.
        for pods in [vec![pod("a ok released")], vec![]] {
            let last = plan(&j, &pods, now).unwrap();
            assert_eq!(show(&last), "SuccessCriteriaMet(CompletionsReached), Complete(CompletionsReached)");
            assert_eq!(last.status.succeeded, Some(1));
            assert!(last.status.completion_time.is_some());
        }
    }

    #[test]
    fn indexes_are_each_done_once() {
        let spec = |more: Value| {
            let mut s = json!({"completionMode": "Indexed", "completions": 3, "parallelism": 2});
            s.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            s
        };
        check(spec(json!({})), &[], "create #0, create #1");
        let p = check(spec(json!({})), &["a ok #0", "b running #1"], "create #2, release a");
        assert_eq!(p.status.completed_indexes.as_deref(), Some("0"));
        assert_eq!(p.status.succeeded, Some(1));
        check(
            spec(json!({"backoffLimitPerIndex": 0})),
            &["a failed@99 #0", "b running #1"],
            "create #2, release a",
        );
        check(
            spec(json!({"backoffLimitPerIndex": 0, "maxFailedIndexes": 0})),
            &["a failed #0", "b running #1"],
            "delete b, release a, FailureTarget(MaxFailedIndexesExceeded)",
        );
        check(
            spec(json!({"successPolicy": {"rules": [{"succeededIndexes": "0"}]}})),
            &["a ok #0", "b running #1"],
            "delete b, release a, SuccessCriteriaMet(SuccessPolicy)",
        );
    }

    #[test]
    fn policies_judge_failed_pods() {
        let rule = |action: &str| {
            json!({"podFailurePolicy": {"rules": [{"action": action,
            "onExitCodes": {"operator": "In", "values": [42]}}]}})
        };
        check(rule("FailJob"), &["a failed@60:42"], "release a, FailureTarget(PodFailurePolicy)");
        let plan = check(rule("Ignore"), &["a failed@60:42"], "create 1, release a");
        assert_eq!(plan.status.uncounted_terminated_pods, Some(Default::default()));
        check(rule("FailJob"), &["a failed@60:1"], "create 1, release a");
    }

    #[test]
    fn pods_being_deleted_are_replaced_as_the_policy_says() {
        check(json!({}), &["a running going"], "create 1, release a");
        check(json!({"podReplacementPolicy": "Failed"}), &["a running going"], "");
    }

    /// A job that is played: its pods by number, and what the world has seen of them.
    #[derive(Clone, Debug)]
    struct World {
        job: Job,
        /// Number, state (`running`, `ok`, `failed`), whether tracked, whether being deleted.
        pods: BTreeMap<usize, (&'static str, bool, bool)>,
        made: usize,
        ok: usize,
    }

    impl World {
        fn plan(&self) -> Plan {
            let pods: Vec<_> = self
                .pods
                .iter()
                .map(|(n, (state, tracked, going))| {
                    let mark = |on: bool, text: &'static str| if on { text } else { "" };
                    let state =
                        if *state == "running" { "running".to_owned() } else { format!("{state}@9999") };
                    pod(&format!("p{n} {state} {} {}", mark(!tracked, "released"), mark(*going, "going")))
                })
                .collect();
            plan(&self.job, &pods, NOW.parse().unwrap()).unwrap()
        }

        /// Does the first `steps` things of a plan, as a controller that is stopped then would have.
        fn apply(&mut self, plan: &Plan, first_new: usize, mut steps: usize) {
            let number = |p: &Arc<Pod>| p.metadata.name.as_ref().unwrap()[1..].parse::<usize>().unwrap();
            let mut step = || {
                steps = steps.saturating_sub(1);
                steps > 0
            };
            for p in &plan.withdraw {
                if !step() {
                    return;
                }
                self.pods.remove(&number(p));
            }
            for p in &plan.delete {
                if !step() {
                    return;
                }
                let gone = self.pods.get_mut(&number(p)).map(|p| {
                    p.2 = true;
                    !p.1
                });
                if gone == Some(true) {
                    self.pods.remove(&number(p));
                }
            }
            for i in 0..plan.create.len() {
                if !step() {
                    return;
                }
                self.pods.entry(first_new + i).or_insert(("running", true, false));
                self.made = self.made.max(first_new + i + 1);
            }
            if !step() {
                return;
            }
            self.job.status = Some(plan.status.clone());
            for p in &plan.release {
                if !step() {
                    return;
                }
                let n = number(p);
                if let Some(pod) = self.pods.get_mut(&n) {
                    pod.1 = false;
                    if pod.2 {
                        self.pods.remove(&n);
                    }
                }
            }
        }
    }

    use proptest::prelude::*;
    proptest! {
        /// Whatever happens to pods, wherever passes are cut short, and if two do the same pass: each
        /// success counts once, there are never more pods than wanted, and the job ends.
        #[test]
        fn no_pod_is_lost_or_counted_twice(
            completions in 1..8i32, parallelism in 1..5i32,
            acts in prop::collection::vec((0..4u8, 0..20usize, 1..12usize, any::<bool>()), 0..40),
        ) {
            let spec = json!({"completions": completions, "parallelism": parallelism, "backoffLimit": 100_000});
            let mut world = World { job: job(spec), pods: BTreeMap::new(), made: 0, ok: 0 };
            let quiet = std::iter::repeat_n((0, 0, 10_000, false), 40);
            for (act, which, steps, twice) in acts.into_iter().chain(quiet) {
                let running: Vec<usize> =
                    world.pods.iter().filter(|(_, p)| p.0 == "running" && !p.2).map(|(n, _)| *n).collect();
                if !running.is_empty() {
                    let chosen = running[which % running.len()];
                    let pod = world.pods.get_mut(&chosen).unwrap();
                    match act {
                        0 => (pod.0, world.ok) = ("ok", world.ok + 1),
                        1 => pod.0 = "failed",
                        2 => pod.2 = true,
                        _ => {}
                    }
                }
                let (plan, first_new) = (world.plan(), world.made);
                world.apply(&plan, first_new, steps + 1);
                if twice {
                    world.apply(&plan, first_new, steps + 1);
                }
                let active = world.pods.values().filter(|p| p.0 == "running" && !p.2).count();
                prop_assert!(active <= usize::try_from(parallelism).unwrap(), "{:?}", world);
                let status = world.job.status.clone().unwrap_or_default();
                prop_assert!(usize::try_from(status.succeeded.unwrap_or(0)).unwrap() <= world.ok, "{:?}", world);
            }
            prop_assert!(is_over(&world.job), "{:?}", world);
            let counted = world.job.status.as_ref().unwrap().succeeded.unwrap_or(0);
            prop_assert_eq!(usize::try_from(counted).unwrap(), world.ok, "{:?}", world);
        }
    }
}
