//! Makes a Job at each time of a CronJob's schedule.
//!
//! Reads cron jobs and the jobs they control. Creates and deletes those jobs (a job's name
//! is a function of its time, so none is made twice), writes the cron job's status.

use std::{sync::Arc, time::Duration};

use jiff::tz::TimeZone;
use k8s_openapi::api::{
    batch::v1::{CronJob, CronJobSpec, CronJobStatus, Job},
    core::v1::ObjectReference,
};
use kube::api::ObjectMeta;
use wasmk_api::{Schedule, Timestamp};

use crate::{
    base::{
        Context, EventKind, Informer, Key, Next, Queue, Result, controller_ref, is_deleting, on_change,
        on_child, reference, time, time_of, uid,
    },
    job,
};

const NAME: &str = "cronjob-controller";
const SCHEDULED_AT: &str = "batch.kubernetes.io/cronjob-scheduled-timestamp";
/// Missed times beyond this number are worth a warning.
const MANY_MISSED: usize = 100;

struct Keeper {
    cx: Context,
    crons: Arc<Informer<CronJob>>,
    jobs: Arc<Informer<Job>>,
}

pub(crate) async fn run(cx: Context) {
    let queue = Arc::new(Queue::default());
    let (crons, jobs) = (cx.cache::<CronJob>(), cx.cache::<Job>());
    on_change(&crons, &queue);
    on_child::<CronJob, Job>(&jobs, &queue);
    crons.ready().await;
    jobs.ready().await;
    let keeper = Keeper { cx: cx.clone(), crons, jobs };
    cx.work(NAME, &queue, cx.settings.workers, |key| keeper.reconcile(key)).await;
}

/// What a pass does.
#[derive(Debug, Default)]
struct Plan {
    /// The time whose job is to be made.
    create: Option<Timestamp>,
    /// Running jobs that make way for it.
    replace: Vec<Arc<Job>>,
    /// Old finished jobs.
    delete: Vec<Arc<Job>>,
    status: CronJobStatus,
    again: Option<Duration>,
    /// Whether it is a warning, reason and message.
    events: Vec<(EventKind, &'static str, String)>,
}

impl Keeper {
    async fn reconcile(&self, key: Key) -> Result<Next> {
        let Some(cron) = self.crons.get(&key) else { return Ok(Next::Change) };
        if is_deleting(&*cron) {
            return Ok(Next::Change);
        }
        let jobs = self.jobs.controlled_by(uid(&*cron));
        let mut plan = plan(&cron, &jobs, self.cx.clock.now());
        for (kind, reason, message) in plan.events.drain(..) {
            self.cx.events.record(NAME, &*cron, kind, reason, message);
        }
        self.delete(&cron, &plan.replace).await?;
        if let Some(at) = plan.create {
            self.create(&cron, at, &mut plan.status).await?;
        }
        if cron.status.clone().unwrap_or_default() != plan.status {
            let mut next = (*cron).clone();
            next.status = Some(plan.status);
            self.cx.replace_status(&next).await?;
        }
        // Not before it is written down that their time has had its job.
        self.delete(&cron, &plan.delete).await?;
        Ok(Next::after(plan.again))
    }

    async fn delete(&self, cron: &Arc<CronJob>, jobs: &[Arc<Job>]) -> Result<()> {
        for job in jobs {
            self.cx.delete_background(&**job).await?;
            let message = format!("Deleted job {}", job.metadata.name.as_deref().unwrap_or(""));
            self.cx.events.record(NAME, &**cron, EventKind::Normal, "SuccessfulDelete", message);
        }
        Ok(())
    }

    async fn create(&self, cron: &Arc<CronJob>, at: Timestamp, status: &mut CronJobStatus) -> Result<()> {
        let job = job_at(cron, at);
        let made = match self.cx.create(&job).await {
            Ok(made) => {
                let message = format!("Created job {}", made.metadata.name.as_deref().unwrap_or(""));
                self.cx.events.record(NAME, &**cron, EventKind::Normal, "SuccessfulCreate", message);
                Some(made)
            }
            // Made by an earlier pass that did not get to the status.
            Err(error) if error.is_already_exists() => self.cx.fetch::<Job>(&Key::of(&job.metadata)).await?,
            Err(error) if error.is_namespace_terminating() => return Ok(()),
            Err(error) => {
                let message = format!("Error creating job: {}", error.message());
                self.cx.events.record(NAME, &**cron, EventKind::Warning, "FailedCreate", message);
                return Err(error);
            }
        };
        if let Some(job) = made.filter(|j| job::finished(j).is_none()) {
            let active = status.active.get_or_insert_default();
            if !active.iter().any(|r| r.uid == job.metadata.uid) {
                active.push(reference(&*job));
            }
        }
        status.last_schedule_time = Some(time(at));
        Ok(())
    }
}

/// Decides on one pass.
fn plan(cron: &CronJob, jobs: &[Arc<Job>], now: Timestamp) -> Plan {
    let spec = &cron.spec;
    let (finished, running): (Vec<_>, Vec<_>) =
        jobs.iter().cloned().partition(|j| job::finished(j).is_some());
    let mut plan = Plan { status: status(cron, &finished, &running), ..Plan::default() };
    plan.events.extend(completed(cron, &finished));
    plan.delete = surplus(spec, &finished);
    if spec.suspend == Some(true) {
        return plan;
    }
    let zone = spec.time_zone.as_deref().unwrap_or("UTC");
    let zone = match TimeZone::get(zone) {
        Ok(zone) => zone,
        Err(_) => {
            plan.events.push((EventKind::Warning, "UnknownTimeZone", format!("invalid timeZone: {zone:?}")));
            return plan;
        }
    };
    let schedule = match Schedule::parse(&spec.schedule) {
        Ok(schedule) => schedule,
        Err(error) => {
            let message = format!("unparseable schedule: {:?} : {error}", spec.schedule);
            plan.events.push((EventKind::Warning, "UnparseableSchedule", message));
            return plan;
        }
    };
    plan.again = schedule.next(now, &zone).map(|at| at.since(now) + Duration::from_millis(100));
    decide(&mut plan, cron, (jobs, &running), &schedule, &zone, now);
    plan
}

/// Whether a time has come that has no job yet, and whether it may have one.
fn decide(
    plan: &mut Plan,
    cron: &CronJob,
    (jobs, running): (&[Arc<Job>], &[Arc<Job>]),
    schedule: &Schedule,
    zone: &TimeZone,
    now: Timestamp,
) {
    let spec = &cron.spec;
    let deadline = spec.starting_deadline_seconds.map(|s| Duration::from_secs(u64::try_from(s).unwrap_or(0)));
    let created = time_of(cron.metadata.creation_timestamp.as_ref()).unwrap_or(now);
    let last = cron.status.as_ref().and_then(|s| time_of(s.last_schedule_time.as_ref()));
    let oldest = deadline.and_then(|d| now.0.checked_sub(d).ok()).map(Timestamp);
    let from = last.unwrap_or(created).max(oldest.unwrap_or(Timestamp(jiff::Timestamp::MIN)));
    let (due, many) = schedule.latest(from, now, zone, MANY_MISSED);
    if many {
        let message =
            "too many missed start times. Set or decrease .spec.startingDeadlineSeconds or check clock skew";
        plan.events.push((EventKind::Warning, "TooManyMissedTimes", message.into()));
    }
    let Some(due) = due else { return };
    let name = job_name(cron, due);
    // Made by an earlier pass that did not get to the status; it may have ended meanwhile.
    if jobs.iter().any(|job| job.metadata.name.as_deref() == Some(&*name)) {
        plan.status.last_schedule_time = Some(time(due));
        return;
    }
    match spec.concurrency_policy.as_deref() {
        Some("Forbid") if !running.is_empty() => {
            let message =
                "Not starting job because prior execution is running and concurrency policy is Forbid";
            plan.events.push((EventKind::Normal, "JobAlreadyActive", message.into()));
        }
        Some("Replace") => {
            plan.replace = running.to_vec();
            plan.status.active = None;
            plan.create = Some(due);
        }
        _ => plan.create = Some(due),
    }
}

fn status(cron: &CronJob, finished: &[Arc<Job>], running: &[Arc<Job>]) -> CronJobStatus {
    let old = cron.status.clone().unwrap_or_default();
    let refs = old.active.iter().flatten();
    // References stay as they were written: only the set of jobs matters.
    let known = |job: &Arc<Job>| refs.clone().find(|r| r.uid == job.metadata.uid).cloned();
    let active: Vec<ObjectReference> =
        running.iter().map(|j| known(j).unwrap_or_else(|| reference(&**j))).collect();
    let ends = finished.iter().filter(|j| job::succeeded(j));
    let last = ends.filter_map(|j| time_of(j.status.as_ref()?.completion_time.as_ref())).max();
    let before = time_of(old.last_successful_time.as_ref());
    CronJobStatus {
        active: (!active.is_empty()).then_some(active),
        last_schedule_time: old.last_schedule_time,
        last_successful_time: last.max(before).map(time),
    }
}

fn completed(cron: &CronJob, finished: &[Arc<Job>]) -> Vec<(EventKind, &'static str, String)> {
    let was_active = cron.status.iter().flat_map(|s| s.active.iter().flatten());
    let ended = was_active.filter_map(|r| finished.iter().find(|j| j.metadata.uid == r.uid));
    let message = |job: &Arc<Job>| {
        let how = if job::succeeded(job) { "Complete" } else { "Failed" };
        let name = job.metadata.name.as_deref().unwrap_or("");
        (EventKind::Normal, "SawCompletedJob", format!("Saw completed job: {name}, condition: {how}"))
    };
    ended.map(message).collect()
}

/// Finished jobs beyond the history limits, oldest first.
fn surplus(spec: &CronJobSpec, finished: &[Arc<Job>]) -> Vec<Arc<Job>> {
    let (good, bad): (Vec<_>, Vec<_>) = finished.iter().cloned().partition(|j| job::succeeded(j));
    let limits = [
        (good, spec.successful_jobs_history_limit.unwrap_or(3)),
        (bad, spec.failed_jobs_history_limit.unwrap_or(1)),
    ];
    let mut all = Vec::new();
    for (mut jobs, limit) in limits {
        jobs.sort_by_key(|j| {
            (j.status.as_ref().and_then(|s| s.start_time.as_ref().map(|t| t.0)), j.metadata.name.clone())
        });
        let extra = jobs.len().saturating_sub(usize::try_from(limit).unwrap_or(0));
        all.extend(jobs.into_iter().take(extra).filter(|j| !is_deleting(&**j)));
    }
    all
}

fn job_name(cron: &CronJob, at: Timestamp) -> String {
    format!("{}-{}", cron.metadata.name.as_deref().unwrap_or(""), at.0.as_second() / 60)
}

fn job_at(cron: &CronJob, at: Timestamp) -> Job {
    let template = &cron.spec.job_template;
    let meta = template.metadata.clone().unwrap_or_default();
    let mut annotations = meta.annotations.unwrap_or_default();
    annotations.insert(SCHEDULED_AT.into(), at.to_string());
    Job {
        metadata: ObjectMeta {
            namespace: cron.metadata.namespace.clone(),
            name: Some(job_name(cron, at)),
            labels: meta.labels,
            annotations: Some(annotations),
            owner_references: Some(vec![controller_ref(cron)]),
            ..Default::default()
        },
        spec: template.spec.clone(),
        status: None,
    }
}

#[cfg(test)]
mod properties;

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    /// `name running|ok|failed`, one minute of the hour being its name.
    fn job(text: &str) -> Arc<Job> {
        let (name, state) = text.split_once(' ').unwrap();
        let at = "2026-01-01T00:00:00Z";
        let status = match state {
            "running" => json!({}),
            state => {
                let kind = if state == "ok" { "Complete" } else { "Failed" };
                json!({"startTime": at, "completionTime": at,
                    "conditions": [{"type": kind, "status": "True", "lastTransitionTime": at}]})
            }
        };
        Arc::new(
            serde_json::from_value(json!({"metadata": {"name": name, "uid": name}, "status": status}))
                .unwrap(),
        )
    }

    fn check(spec: Value, jobs: &[&str], now: &str, expect: &str) {
        let mut whole = json!({"metadata": {"name": "c", "namespace": "ns", "uid": "c", "creationTimestamp": "2026-01-01T10:00:00Z"},
            "spec": {"schedule": "*/10 * * * *", "jobTemplate": {}}});
        for (key, value) in spec.as_object().unwrap() {
            whole["spec"][key] = value.clone();
        }
        if let Some(last) = whole["spec"].as_object_mut().unwrap().remove("last") {
            whole["status"] = json!({"lastScheduleTime": last});
        }
        let cron: CronJob = serde_json::from_value(whole).unwrap();
        let jobs: Vec<_> = jobs.iter().map(|j| job(j)).collect();
        let plan = plan(&cron, &jobs, now.parse().unwrap());
        let name = |j: &Arc<Job>| j.metadata.name.clone().unwrap();
        let mut shown: Vec<String> = plan.create.iter().map(|at| format!("create {at}")).collect();
        shown.extend(plan.replace.iter().map(|j| format!("replace {}", name(j))));
        shown.extend(plan.delete.iter().map(|j| format!("delete {}", name(j))));
        shown.extend(plan.events.iter().map(|e| e.1.to_owned()));
        assert_eq!(shown.join(", "), expect, "{spec} {now}");
    }

    #[test]
    fn a_job_at_each_time() {
        let none = || json!({});
        check(none(), &[], "2026-01-01T10:09:59Z", "");
        check(none(), &[], "2026-01-01T10:10:01Z", "create 2026-01-01T10:10:00Z");
        check(json!({"last": "2026-01-01T10:10:00Z"}), &[], "2026-01-01T10:15:00Z", "");
        check(
            json!({"last": "2026-01-01T10:10:00Z"}),
            &[],
            "2026-01-01T10:45:00Z",
            "create 2026-01-01T10:40:00Z",
        );
        check(json!({"suspend": true}), &[], "2026-01-01T10:45:00Z", "");
        check(json!({"startingDeadlineSeconds": 60}), &[], "2026-01-01T10:45:00Z", "");
        check(json!({"schedule": "nonsense"}), &[], "2026-01-01T10:45:00Z", "UnparseableSchedule");
        check(json!({"timeZone": "Nowhere/Land"}), &[], "2026-01-01T10:45:00Z", "UnknownTimeZone");
        check(none(), &[], "2026-01-03T10:45:00Z", "create 2026-01-03T10:40:00Z, TooManyMissedTimes");
    }

    #[test]
    fn concurrency_and_history() {
        let policy = |p: &str| json!({"concurrencyPolicy": p});
        let now = "2026-01-01T10:10:01Z";
        check(policy("Allow"), &["a running"], now, "create 2026-01-01T10:10:00Z");
        check(policy("Forbid"), &["a running"], now, "JobAlreadyActive");
        check(policy("Forbid"), &["a ok"], now, "create 2026-01-01T10:10:00Z");
        check(policy("Replace"), &["a running"], now, "create 2026-01-01T10:10:00Z, replace a");
        check(
            json!({"suspend": true}),
            &["a ok", "b ok", "c ok", "d ok", "e failed", "f failed"],
            now,
            "delete a, delete e",
        );
    }
}
