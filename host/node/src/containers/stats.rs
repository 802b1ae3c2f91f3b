//! What containers use.

use wasmk_cri::v1::{ContainerStats, ListContainerStatsRequest};

use super::{Containers, labels};
use crate::engine::Usage;

/// What one container uses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ContainerUsage {
    /// Uid of its pod.
    pub(crate) uid: String,
    /// Its name in the pod.
    pub(crate) container: String,
    /// Processor and memory.
    pub(crate) usage: Usage,
    /// Bytes of its own files.
    pub(crate) disk: u64,
}

impl Containers {
    /// What all containers of this agent use; none while the runtime does not answer.
    pub(crate) async fn usage(&self) -> Vec<ContainerUsage> {
        if self.info.borrow().is_none() {
            return Vec::new();
        }
        let all = self.client.list_container_stats(ListContainerStatsRequest { filter: None }).await;
        let stats = all.map(|a| a.stats).unwrap_or_default();
        stats.into_iter().filter_map(|s| self.one(s)).collect()
    }

    fn one(&self, stats: ContainerStats) -> Option<ContainerUsage> {
        let mut labels = stats.attributes?.labels;
        if labels.get(labels::OWNER) != Some(&self.owner) {
            return None;
        }
        let cpu_nanos = stats.cpu.and_then(|c| c.usage_core_nano_seconds).map_or(0, |v| v.value);
        let memory = stats.memory.and_then(|m| m.working_set_bytes).map_or(0, |v| v.value);
        Some(ContainerUsage {
            uid: labels.remove(labels::UID)?,
            container: labels.remove(labels::CONTAINER)?,
            usage: Usage { cpu_nanos, memory },
            disk: stats.writable_layer.and_then(|w| w.used_bytes).map_or(0, |v| v.value),
        })
    }
}
