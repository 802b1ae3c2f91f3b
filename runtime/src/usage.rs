//! Counters of what one guest uses, and the limit on its memory.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// What all instances of one guest use together. Read by metrics while the guest runs.
#[derive(Debug, Default)]
pub struct Usage {
    cpu_nanos: AtomicU64,
    memory: AtomicU64,
    memory_peak: AtomicU64,
    instances: AtomicU64,
    requests: AtomicU64,
}

impl Usage {
    /// Time the guest was executing.
    pub fn cpu(&self) -> Duration {
        Duration::from_nanos(self.cpu_nanos.load(Ordering::Relaxed))
    }

    /// Bytes of linear memory in live instances.
    pub fn memory(&self) -> u64 {
        self.memory.load(Ordering::Relaxed)
    }

    /// The most [`memory`](Self::memory) ever was.
    pub fn memory_peak(&self) -> u64 {
        self.memory_peak.load(Ordering::Relaxed)
    }

    /// Live instances.
    pub fn instances(&self) -> u64 {
        self.instances.load(Ordering::Relaxed)
    }

    /// HTTP requests handed to the guest so far.
    pub fn requests(&self) -> u64 {
        self.requests.load(Ordering::Relaxed)
    }

    /// Takes over what was counted elsewhere: the totals, of a guest that runs in another process.
    pub fn report(&self, cpu: Duration, memory: u64, instances: u64, requests: u64) {
        let nanos = u64::try_from(cpu.as_nanos()).unwrap_or(u64::MAX);
        self.cpu_nanos.store(nanos, Ordering::Relaxed);
        self.memory.store(memory, Ordering::Relaxed);
        self.memory_peak.fetch_max(memory, Ordering::Relaxed);
        self.instances.store(instances, Ordering::Relaxed);
        self.requests.store(requests, Ordering::Relaxed);
    }

    pub(crate) fn add_cpu(&self, time: Duration) {
        self.cpu_nanos.fetch_add(time.as_nanos() as u64, Ordering::Relaxed);
    }

    pub(crate) fn add_request(&self) {
        self.requests.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn add_instance(&self) {
        self.instances.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn remove_instance(&self, memory: u64) {
        self.instances.fetch_sub(1, Ordering::Relaxed);
        self.memory.fetch_sub(memory, Ordering::Relaxed);
    }

    /// Takes `bytes` more unless the total would pass `limit`.
    pub(crate) fn try_add_memory(&self, bytes: u64, limit: u64) -> bool {
        let grown = self.memory.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |used| {
            used.checked_add(bytes).filter(|total| *total <= limit)
        });
        if let Ok(before) = grown {
            self.memory_peak.fetch_max(before + bytes, Ordering::Relaxed);
        }
        grown.is_ok()
    }

    pub(crate) fn remove_memory(&self, bytes: u64) {
        self.memory.fetch_sub(bytes, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_never_passes_the_limit() {
        let usage = Usage::default();
        assert!(usage.try_add_memory(60, 100));
        assert!(!usage.try_add_memory(41, 100));
        assert!(usage.try_add_memory(40, 100));
        assert!(!usage.try_add_memory(u64::MAX, 100));
        assert_eq!((usage.memory(), usage.memory_peak()), (100, 100));
        usage.remove_memory(60);
        assert_eq!((usage.memory(), usage.memory_peak()), (40, 100));
    }
}
