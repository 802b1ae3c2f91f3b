//! Runs each Job's pods until enough of them have succeeded.
//!
//! Reads jobs and their pods. Writes pods (create, delete, the tracking finalizer) and the
//! job's status. A job with `managedBy` someone else is left alone.

use std::sync::Arc;

use futures::future::join_all;
use k8s_openapi::api::{
    batch::v1::Job,
    core::v1::{EnvVar, EnvVarSource, ObjectFieldSelector, Pod},
};
use serde_json::json;
use wasmk_api::LabelSelector;

use crate::base::{
    Claim, Context, Error, EventKind, Informer, Key, Names, Next, Queue, Result, controller_ref, is_deleting,
    on_change, on_child, owner_key, pod_from_template, uid,
};

mod indexes;
mod plan;
mod policy;
mod replace;
mod tally;
mod verdict;

use plan::Plan;
use tally::{FINALIZER, INDEX, INDEX_FAILURES};

const NAME: &str = "job-controller";
const ENV: &str = "JOB_COMPLETION_INDEX";

struct Runner {
    cx: Context,
    jobs: Arc<Informer<Job>>,
    pods: Arc<Informer<Pod>>,
}

pub(crate) async fn run(cx: Context) {
    let queue = Arc::new(Queue::default());
    let (jobs, pods) = (cx.cache::<Job>(), cx.cache::<Pod>());
    on_change(&jobs, &queue);
    on_child::<Job, Pod>(&pods, &queue);
    jobs.ready().await;
    pods.ready().await;
    let runner = Runner { cx: cx.clone(), jobs, pods };
    cx.work(NAME, &queue, cx.settings.workers, |key| runner.reconcile(key)).await;
}

/// Whether a job has ended, and when.
pub(crate) fn finished(job: &Job) -> Option<wasmk_api::Timestamp> {
    let conditions = job.status.iter().flat_map(|s| s.conditions.iter().flatten());
    let mut ends = conditions.filter(|c| c.status == "True" && matches!(&*c.type_, "Complete" | "Failed"));
    ends.next().and_then(|c| crate::base::time_of(c.last_transition_time.as_ref()))
}

/// Whether a job has ended well.
pub(crate) fn succeeded(job: &Job) -> bool {
    let conditions = job.status.iter().flat_map(|s| s.conditions.iter().flatten());
    conditions.into_iter().any(|c| c.status == "True" && c.type_ == "Complete")
}

fn selector(job: &Job) -> Result<LabelSelector> {
    match job.spec.as_ref().and_then(|s| s.selector.as_ref()) {
        Some(selector) => LabelSelector::from_api(selector).map_err(|e| Error::Invalid(e.to_string())),
        None => Ok(LabelSelector::equals([("batch.kubernetes.io/controller-uid", uid(job))])),
    }
}

impl Runner {
    async fn reconcile(&self, key: Key) -> Result<Next> {
        let Some(job) = self.jobs.get(&key) else {
            self.release_orphans(&key).await?;
            return Ok(Next::Change);
        };
        let manager = job.spec.as_ref().and_then(|s| s.managed_by.as_deref());
        if manager.is_some_and(|m| m != "kubernetes.io/job-controller") {
            return Ok(Next::Change);
        }
        let pods = Claim::apply(&self.cx, &*job, &selector(&job)?, &self.pods).await?;
        let Some(plan) = plan::plan(&job, &pods, self.cx.clock.now()) else { return Ok(Next::Change) };
        self.apply(&job, &pods, plan).await
    }

    async fn apply(&self, job: &Arc<Job>, pods: &[Arc<Pod>], plan: Plan) -> Result<Next> {
        let withdrawn = join_all(plan.withdraw.iter().map(|pod| self.withdraw(job, pod))).await;
        withdrawn.into_iter().collect::<Result<()>>()?;
        let deleted = join_all(plan.delete.iter().map(|pod| self.delete(job, pod))).await;
        let created = self.create(job, pods, &plan.create).await;
        // A refused create or delete leaves the status for the next pass.
        deleted.into_iter().collect::<Result<()>>()?;
        created?;
        if job.status.clone().unwrap_or_default() != plan.status {
            let mut next = (**job).clone();
            next.status = Some(plan.status);
            match self.cx.replace_status(&next).await {
                Err(error) if error.is_not_found() => return Ok(Next::Change),
                other => drop(other?),
            }
            if let Some((reason, message)) = plan.event {
                let good = matches!(&*reason, "Completed" | "Suspended" | "Resumed");
                let kind = if good { EventKind::Normal } else { EventKind::Warning };
                self.cx.events.record(NAME, &**job, kind, &reason, message);
            }
        }
        let released = join_all(plan.release.iter().map(|pod| self.release(pod))).await;
        released.into_iter().collect::<Result<()>>()?;
        Ok(Next::after(plan.again))
    }

    /// Creates in growing batches, so that a refusal costs few requests.
    async fn create(&self, job: &Arc<Job>, pods: &[Arc<Pod>], wanted: &[(Option<i32>, i32)]) -> Result<()> {
        let taken: Vec<&str> = pods.iter().filter_map(|p| p.metadata.name.as_deref()).collect();
        let base = job.metadata.name.as_deref().unwrap_or("");
        let shared = Names::new(base, uid(&**job));
        let first = shared.next(taken.iter().copied());
        let named: Vec<(String, (Option<i32>, i32))> = wanted
            .iter()
            .enumerate()
            .map(|(place, wanted)| match wanted.0 {
                None => (shared.name(first + place as u64), *wanted),
                Some(index) => {
                    let own = Names::new(&format!("{base}-{index}"), uid(&**job));
                    (own.name(own.next(taken.iter().copied())), *wanted)
                }
            })
            .collect();
        let (mut made, mut batch) = (0, 1);
        while made < named.len() {
            let size = batch.min(named.len() - made);
            let some = named[made..made + size].iter().map(|(name, w)| self.create_one(job, name, *w));
            join_all(some).await.into_iter().collect::<Result<()>>()?;
            made += size;
            batch *= 2;
        }
        Ok(())
    }

    async fn create_one(
        &self,
        job: &Arc<Job>,
        name: &str,
        (index, failures): (Option<i32>, i32),
    ) -> Result<()> {
        let Some(pod) = pod(job, name, index, failures) else { return Ok(()) };
        match self.cx.create(&pod).await {
            Ok(_) => {
                let message = format!("Created pod: {name}");
                self.cx.events.record(NAME, &**job, EventKind::Normal, "SuccessfulCreate", message);
                Ok(())
            }
            Err(error) if error.is_namespace_terminating() => Ok(()),
            Err(error) if error.is_already_exists() => {
                self.cx.fetch::<Pod>(&Key::of(&pod.metadata)).await?;
                Err(error)
            }
            Err(error) => {
                let message = format!("Error creating: {}", error.message());
                self.cx.events.record(NAME, &**job, EventKind::Warning, "FailedCreate", message);
                Err(error)
            }
        }
    }

    async fn delete(&self, job: &Arc<Job>, pod: &Arc<Pod>) -> Result<()> {
        self.cx.delete(&**pod, Default::default()).await?;
        let message = format!("Deleted pod: {}", pod.metadata.name.as_deref().unwrap_or(""));
        self.cx.events.record(NAME, &**job, EventKind::Normal, "SuccessfulDelete", message);
        Ok(())
    }

    /// Deletes a pod that is not to count: nobody waits for its end.
    async fn withdraw(&self, job: &Arc<Job>, pod: &Arc<Pod>) -> Result<()> {
        self.release(pod).await?;
        self.delete(job, pod).await
    }

    /// Removes the tracking finalizer.
    async fn release(&self, pod: &Arc<Pod>) -> Result<()> {
        let mut finalizers = pod.metadata.finalizers.clone().unwrap_or_default();
        finalizers.retain(|f| f != FINALIZER);
        let version = &pod.metadata.resource_version;
        let patch = json!({"metadata": {"resourceVersion": version, "finalizers": finalizers}});
        match self.cx.patch(&**pod, patch).await {
            Err(error) if error.is_not_found() => Ok(()),
            Ok(left)
                if is_deleting(&*left) && left.metadata.finalizers.as_ref().is_none_or(Vec::is_empty) =>
            {
                Ok(())
            }
            other => other.map(drop),
        }
    }

    /// Pods of a job that is gone must not wait for it.
    async fn release_orphans(&self, key: &Key) -> Result<()> {
        for pod in self.pods.in_namespace(&key.namespace) {
            let held = pod.metadata.finalizers.iter().flatten().any(|f| f == FINALIZER);
            if held && owner_key::<Job, Pod>(&pod).as_ref() == Some(key) {
                self.release(&pod).await?;
            }
        }
        Ok(())
    }
}

/// A pod of the job; with an index it learns it from a label, a variable and its hostname.
fn pod(job: &Job, name: &str, index: Option<i32>, failures: i32) -> Option<Pod> {
    let spec = job.spec.as_ref()?;
    let namespace = job.metadata.namespace.as_deref().unwrap_or("");
    let mut pod = pod_from_template(&spec.template, namespace, name.into(), controller_ref(job));
    pod.metadata.finalizers.get_or_insert_default().push(FINALIZER.into());
    let job_name = job.metadata.name.clone().unwrap_or_default();
    let labels = pod.metadata.labels.get_or_insert_default();
    for (key, value) in [
        ("batch.kubernetes.io/job-name", &*job_name),
        ("job-name", &*job_name),
        ("batch.kubernetes.io/controller-uid", uid(job)),
        ("controller-uid", uid(job)),
    ] {
        labels.insert(key.into(), value.into());
    }
    let Some(index) = index else { return Some(pod) };
    labels.insert(INDEX.into(), index.to_string());
    let notes = pod.metadata.annotations.get_or_insert_default();
    notes.insert(INDEX.into(), index.to_string());
    if spec.backoff_limit_per_index.is_some() {
        notes.insert(INDEX_FAILURES.into(), failures.to_string());
    }
    if let Some(spec) = &mut pod.spec {
        spec.hostname = Some(format!("{job_name}-{index}"));
        let containers = spec.containers.iter_mut().chain(spec.init_containers.iter_mut().flatten());
        for container in containers {
            let env = container.env.get_or_insert_default();
            if !env.iter().any(|e| e.name == ENV) {
                env.push(index_variable());
            }
        }
    }
    Some(pod)
}

fn index_variable() -> EnvVar {
    let field = ObjectFieldSelector { api_version: None, field_path: format!("metadata.labels['{INDEX}']") };
    let value_from = Some(EnvVarSource { field_ref: Some(field), ..Default::default() });
    EnvVar { name: ENV.into(), value_from, ..Default::default() }
}
