//! Keeps each ReplicationController at its wanted number of pods. The work is in
//! [`crate::replicas`].

use k8s_openapi::api::core::v1::{
    PodTemplateSpec, ReplicationController, ReplicationControllerCondition, ReplicationControllerStatus,
};
use wasmk_api::LabelSelector;

use crate::{
    base::{Context, Result},
    replicas::{self, Counts, Replicated},
};

pub(crate) async fn run(cx: Context) {
    replicas::run::<ReplicationController>(cx).await;
}

impl Replicated for ReplicationController {
    const COMPONENT: &'static str = "replication-controller";
    const COUNTS_TERMINATING: bool = false;

    fn selector(&self) -> Result<LabelSelector> {
        let selector = self.spec.iter().flat_map(|s| s.selector.iter().flatten());
        Ok(LabelSelector::equals(selector))
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
            terminating: None,
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
        conditions.extend(counts.failure.map(|(since, reason, message)| ReplicationControllerCondition {
            type_: "ReplicaFailure".into(),
            status: "True".into(),
            last_transition_time: since,
            reason: Some(reason),
            message: Some(message),
        }));
        let some = |n: i32| (n != 0).then_some(n);
        self.status = Some(ReplicationControllerStatus {
            replicas: counts.replicas,
            fully_labeled_replicas: some(counts.fully_labeled),
            ready_replicas: some(counts.ready),
            available_replicas: some(counts.available),
            observed_generation: counts.observed_generation,
            conditions: (!conditions.is_empty()).then_some(conditions),
        });
    }
}
