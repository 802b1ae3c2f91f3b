//! Keeps each ReplicaSet at its wanted number of pods. The work is in [`crate::replicas`].

use k8s_openapi::api::{
    apps::v1::{ReplicaSet, ReplicaSetCondition, ReplicaSetStatus},
    core::v1::PodTemplateSpec,
};
use wasmk_api::LabelSelector;

use crate::{
    base::{Context, Error, Result},
    replicas::{self, Counts, Replicated},
};

pub(crate) async fn run(cx: Context) {
    replicas::run::<ReplicaSet>(cx).await;
}

impl Replicated for ReplicaSet {
    const COMPONENT: &'static str = "replicaset-controller";
    const COUNTS_TERMINATING: bool = true;

    fn selector(&self) -> Result<LabelSelector> {
        let Some(spec) = &self.spec else { return Ok(LabelSelector::default()) };
        LabelSelector::from_api(&spec.selector).map_err(|e| Error::Invalid(e.to_string()))
    }

    fn template(&self) -> Option<&PodTemplateSpec> {
        self.spec.as_ref()?.template.as_ref()
    }

    fn wanted(&self) -> i32 {
        self.spec.as_ref().map_or(0, |s| s.replicas.unwrap_or(1))
    }

    fn min_ready_seconds(&self) -> i32 {
        self.spec.as_ref().and_then(|s| s.min_ready_seconds).unwrap_or(0)
    }

    fn counts(&self) -> Counts {
        let Some(status) = &self.status else { return Counts::default() };
        let failure = status.conditions.iter().flatten().find(|c| c.type_ == "ReplicaFailure");
        Counts {
            replicas: status.replicas,
            fully_labeled: status.fully_labeled_replicas.unwrap_or(0),
            ready: status.ready_replicas.unwrap_or(0),
            available: status.available_replicas.unwrap_or(0),
            terminating: status.terminating_replicas,
            observed_generation: status.observed_generation,
            failure: failure.map(|c| {
                let text = |t: &Option<String>| t.clone().unwrap_or_default();
                (c.last_transition_time.clone(), text(&c.reason), text(&c.message))
            }),
        }
    }

    fn set_counts(&mut self, counts: Counts) {
        let old = self.status.take().unwrap_or_default();
        let mut conditions: Vec<_> = old.conditions.unwrap_or_default();
        conditions.retain(|c| c.type_ != "ReplicaFailure");
        conditions.extend(counts.failure.map(|(since, reason, message)| ReplicaSetCondition {
            type_: "ReplicaFailure".into(),
            status: "True".into(),
            last_transition_time: since,
            reason: Some(reason),
            message: Some(message),
        }));
        let some = |n: i32| (n != 0).then_some(n);
        self.status = Some(ReplicaSetStatus {
            replicas: counts.replicas,
            fully_labeled_replicas: some(counts.fully_labeled),
            ready_replicas: some(counts.ready),
            available_replicas: some(counts.available),
            terminating_replicas: counts.terminating,
            observed_generation: counts.observed_generation,
            conditions: (!conditions.is_empty()).then_some(conditions),
        });
    }
}
