//! Deletes Jobs that ended longer ago than their `ttlSecondsAfterFinished`.
//!
//! Reads and deletes jobs, nothing else.

use std::{sync::Arc, time::Duration};

use k8s_openapi::api::batch::v1::Job;
use kube::api::DeleteParams;
use wasmk_api::Timestamp;

use crate::{
    base::{Context, Informer, Key, Next, Queue, Result, is_deleting, on_change},
    job,
};

pub(crate) async fn run(cx: Context) {
    let queue = Arc::new(Queue::default());
    let jobs = cx.cache::<Job>();
    on_change(&jobs, &queue);
    jobs.ready().await;
    cx.work("ttl-after-finished-controller", &queue, cx.settings.workers, |key| reconcile(&cx, &jobs, key))
        .await;
}

async fn reconcile(cx: &Context, jobs: &Informer<Job>, key: Key) -> Result<Next> {
    let Some(job) = jobs.get(&key) else { return Ok(Next::Change) };
    match left(&job, cx.clock.now()) {
        None => Ok(Next::Change),
        Some(left) if !left.is_zero() => Ok(Next::After(left)),
        Some(_) => {
            // The cache may be behind a change of the limit.
            let live = cx.fetch::<Job>(&key).await?;
            if let Some(live) = live.filter(|j| left(j, cx.clock.now()).is_some_and(|l| l.is_zero())) {
                cx.delete(&*live, DeleteParams::foreground()).await?;
            }
            Ok(Next::Change)
        }
    }
}

/// How long the job stays; `None` for ever (or until it ends).
fn left(job: &Job, now: Timestamp) -> Option<Duration> {
    let seconds = job.spec.as_ref()?.ttl_seconds_after_finished?;
    let ended = job::finished(job).filter(|_| !is_deleting(job))?;
    Some(ended.after(Duration::from_secs(u64::try_from(seconds).unwrap_or(0))).since(now))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn the_limit_runs_from_the_end() {
        let job = |ttl: serde_json::Value, status: serde_json::Value| -> Job {
            serde_json::from_value(
                json!({"spec": {"ttlSecondsAfterFinished": ttl, "template": {}}, "status": status}),
            )
            .unwrap()
        };
        let ended = json!({"conditions": [{"type": "Failed", "status": "True", "lastTransitionTime": "2026-01-01T00:00:00Z"}]});
        let at = |text: &str| text.parse::<Timestamp>().unwrap();
        assert_eq!(
            left(&job(json!(60), ended.clone()), at("2026-01-01T00:00:20Z")),
            Some(Duration::from_secs(40))
        );
        assert_eq!(left(&job(json!(0), ended.clone()), at("2026-01-01T00:00:00Z")), Some(Duration::ZERO));
        assert_eq!(left(&job(json!(null), ended), at("2026-01-02T00:00:00Z")), None);
        assert_eq!(left(&job(json!(60), json!({})), at("2026-01-02T00:00:00Z")), None);
    }
}
