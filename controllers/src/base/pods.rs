//! Questions about pods that many controllers ask, and pods made from templates.

use std::{sync::Arc, time::Duration};

use k8s_openapi::{
    api::core::v1::{Pod, PodCondition, PodTemplateSpec},
    apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference},
};
use wasmk_api::Timestamp;

use super::meta::{is_deleting, time_of};

/// A condition of a pod.
pub fn condition<'a>(pod: &'a Pod, kind: &str) -> Option<&'a PodCondition> {
    pod.status.as_ref()?.conditions.iter().flatten().find(|c| c.type_ == kind)
}

/// Whether the pod passes its readiness probes.
pub fn is_ready(pod: &Pod) -> bool {
    condition(pod, "Ready").is_some_and(|c| c.status == "True")
}

/// Since when it has been ready, if it is.
pub fn ready_since(pod: &Pod) -> Option<Timestamp> {
    let ready = condition(pod, "Ready").filter(|c| c.status == "True")?;
    time_of(ready.last_transition_time.as_ref())
}

/// Whether it has been ready for that many seconds.
pub fn is_available(pod: &Pod, min_ready_seconds: i32, now: Timestamp) -> bool {
    let wait = Duration::from_secs(u64::try_from(min_ready_seconds).unwrap_or(0));
    is_ready(pod) && (wait.is_zero() || ready_since(pod).is_some_and(|since| since.after(wait) <= now))
}

/// Whether all its containers have ended for good.
pub fn is_finished(pod: &Pod) -> bool {
    matches!(phase(pod), "Succeeded" | "Failed")
}

fn phase(pod: &Pod) -> &str {
    pod.status.as_ref().and_then(|s| s.phase.as_deref()).unwrap_or("")
}

/// The highest restart count of its containers.
pub fn container_restarts(pod: &Pod) -> i32 {
    let statuses = pod.status.iter().flat_map(|s| s.container_statuses.iter().flatten());
    statuses.map(|c| c.restart_count).max().unwrap_or(0)
}

/// All restarts of its containers, those that prepare it included.
pub fn total_restarts(pod: &Pod) -> i32 {
    let status = pod.status.iter();
    let all = status.clone().flat_map(|s| s.init_container_statuses.iter().flatten());
    let all = all.chain(status.flat_map(|s| s.container_statuses.iter().flatten()));
    all.fold(0, |sum, c| sum.saturating_add(c.restart_count))
}

/// The parts of a pod that decide about keeping it.
#[derive(Clone, Copy)]
pub struct PodView<'a>(pub &'a Pod);

impl<'a> PodView<'a> {
    /// `status.phase`.
    pub fn phase(&self) -> &'a str {
        phase(self.0)
    }

    /// Counts as a replica: neither finished nor being deleted.
    pub fn is_active(&self) -> bool {
        !is_finished(self.0) && !is_deleting(self.0)
    }

    /// The node it is on, or empty.
    pub fn node(&self) -> &'a str {
        self.0.spec.as_ref().and_then(|s| s.node_name.as_deref()).unwrap_or("")
    }

    /// `controller.kubernetes.io/pod-deletion-cost`, 0 when absent or unreadable.
    pub fn deletion_cost(&self) -> i32 {
        let annotations = self.0.metadata.annotations.as_ref();
        let text = annotations.and_then(|a| a.get("controller.kubernetes.io/pod-deletion-cost"));
        text.and_then(|t| t.parse().ok()).unwrap_or(0)
    }
}

/// A pod of a template, owned by `owner`.
pub fn pod_from_template(
    template: &PodTemplateSpec,
    namespace: &str,
    name: String,
    owner: OwnerReference,
) -> Pod {
    let meta = template.metadata.clone().unwrap_or_default();
    Pod {
        metadata: ObjectMeta {
            namespace: Some(namespace.into()),
            name: Some(name),
            labels: meta.labels,
            annotations: meta.annotations,
            finalizers: meta.finalizers,
            owner_references: Some(vec![owner]),
            ..Default::default()
        },
        spec: template.spec.clone(),
        status: None,
    }
}

/// Pods that are active.
pub fn active(pods: &[Arc<Pod>]) -> impl Iterator<Item = &Arc<Pod>> {
    pods.iter().filter(|p| PodView(p).is_active())
}
