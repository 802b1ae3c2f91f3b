//! What becomes of a choice: the binding is written, or it is said why there was none.

use std::sync::Arc;

use k8s_openapi::api::core::v1::{Binding, ObjectReference, Pod, PodCondition};
use kube::api::ObjectMeta;
use serde_json::json;

use crate::base::{Error, EventKind, Result, condition, is_deleting, time};

use super::{
    Done, Scheduler,
    explain::{Plugin, Plugins},
    pod::{DEFAULT_SCHEDULER, PodInfo, scheduler_of},
    preempt::Victims,
    volumes,
};

impl Scheduler {
    pub(super) async fn bind(
        self: Arc<Self>,
        pod: Arc<PodInfo>,
        node: String,
        volumes: volumes::Volumes,
    ) -> Done {
        let waits_for_volume = volumes.pending || !volumes.to_select.is_empty();
        for claim in &volumes.to_select {
            let patch = json!({
                "metadata": {
                    "resourceVersion": claim.metadata.resource_version,
                    "annotations": {volumes::SELECTED_NODE: node},
                },
            });
            if let Err(error) = self.cx.patch(&**claim, patch).await {
                tracing::debug!(error = &error as &dyn std::error::Error, "claim not given its node");
                return Done::Undo(pod, Plugins::default());
            }
        }
        if waits_for_volume {
            return Done::Undo(pod, Plugins::of(&[Plugin::VolumeBinding]));
        }
        let target =
            ObjectReference { kind: Some("Node".into()), name: Some(node.clone()), ..Default::default() };
        let metadata = ObjectMeta {
            name: Some(pod.key.name.clone()),
            namespace: Some(pod.key.namespace.clone()),
            uid: Some(pod.uid.clone()),
            ..Default::default()
        };
        let outcome = self
            .cx
            .post_sub::<Pod, _, serde_json::Value>(&pod.key, "binding", &Binding { metadata, target })
            .await;
        match outcome {
            Ok(_) => {
                let message = format!("Successfully assigned {} to {node}", pod.key);
                self.tell(&pod.pod, EventKind::Normal, "Scheduled", message);
                Done::Bound(pod)
            }
            Err(error) => {
                if !error.is_not_found() && !error.is_conflict() {
                    self.tell(&pod.pod, EventKind::Warning, "FailedScheduling", binding_error(&error));
                }
                Done::Undo(pod, Plugins::default())
            }
        }
    }

    fn tell(&self, pod: &Pod, kind: EventKind, reason: &str, message: String) {
        self.cx.events.record(DEFAULT_SCHEDULER, pod, kind, reason, message);
    }

    /// Says why the pod got no node, and removes those that are in its way.
    pub(super) async fn report(
        self: Arc<Self>,
        pod: Arc<PodInfo>,
        message: String,
        victims: Option<Victims>,
    ) -> Done {
        self.tell(&pod.pod, EventKind::Warning, "FailedScheduling", message.clone());
        let nominated = victims.as_ref().map(|v| v.node.clone());
        for victim in victims.iter().flat_map(|v| &v.pods) {
            let node = nominated.as_deref().unwrap_or("");
            if let Err(error) = self.preempt(&pod, victim, node).await {
                tracing::debug!(error = &error as &dyn std::error::Error, "a pod was not preempted");
            }
        }
        if let Err(error) = self.write_unscheduled(&pod, &message, nominated.as_deref()).await {
            tracing::debug!(error = &error as &dyn std::error::Error, "condition not written");
        }
        Done::Reported
    }

    async fn write_unscheduled(&self, pod: &PodInfo, message: &str, nominated: Option<&str>) -> Result<()> {
        let Some(current) = self.pods.get(&pod.key).filter(|p| crate::base::uid(&**p) == pod.uid) else {
            return Ok(());
        };
        let says = |c: &PodCondition| c.status == "False" && c.message.as_deref() == Some(message);
        if condition(&current, "PodScheduled").is_some_and(says) && nominated.is_none() {
            return Ok(());
        }
        let new = PodCondition {
            type_: "PodScheduled".into(),
            status: "False".into(),
            reason: Some("Unschedulable".into()),
            message: Some(message.into()),
            last_transition_time: Some(time(self.cx.clock.now())),
            ..Default::default()
        };
        let mut status = json!({"conditions": with_condition(&current, new)});
        if let Some(node) = nominated {
            status["nominatedNodeName"] = json!(node);
        }
        let version = &current.metadata.resource_version;
        let patch = json!({"metadata": {"resourceVersion": version}, "status": status});
        self.cx.patch_sub(&*current, "status", patch).await.map(drop)
    }

    async fn preempt(&self, pod: &PodInfo, victim: &PodInfo, node: &str) -> Result<()> {
        let Some(current) = self.pods.get(&victim.key).filter(|p| crate::base::uid(&**p) == victim.uid)
        else {
            return Ok(());
        };
        if is_deleting(&*current) {
            return Ok(());
        }
        let reason = PodCondition {
            type_: "DisruptionTarget".into(),
            status: "True".into(),
            reason: Some("PreemptionByScheduler".into()),
            message: Some(format!(
                "{}: preempting to accommodate a higher priority pod",
                scheduler_of(&pod.pod)
            )),
            last_transition_time: Some(time(self.cx.clock.now())),
            ..Default::default()
        };
        let version = &current.metadata.resource_version;
        let status = json!({"conditions": with_condition(&current, reason)});
        let patch = json!({"metadata": {"resourceVersion": version}, "status": status});
        self.cx.patch_sub(&*current, "status", patch).await?;
        self.cx.delete(&*current, Default::default()).await?;
        let message = format!("Preempted by pod {} on node {node}", pod.uid);
        self.tell(&current, EventKind::Normal, "Preempted", message);
        Ok(())
    }
}

fn binding_error(error: &Error) -> String {
    format!("binding rejected: {}", error.message())
}

fn with_condition(pod: &Pod, new: PodCondition) -> Vec<PodCondition> {
    let mut all = pod.status.as_ref().and_then(|s| s.conditions.clone()).unwrap_or_default();
    all.retain(|c| c.type_ != new.type_);
    all.push(new);
    all
}
