//! Counters of the runtime as a whole.

use std::sync::atomic::{AtomicU64, Ordering};

use serde::{Deserialize, Serialize};

use crate::histogram::{Histogram, Times};

/// A counter that only rises.
#[derive(Debug, Default)]
pub(crate) struct Counter(AtomicU64);

impl Counter {
    pub(crate) fn add(&self, count: u64) {
        self.0.fetch_add(count, Ordering::Relaxed);
    }

    pub(crate) fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

#[derive(Debug, Default)]
pub(crate) struct Counters {
    pub(crate) compiled: Counter,
    pub(crate) cache_hits: Counter,
    pub(crate) cache_rejected: Counter,
    pub(crate) instances: Counter,
    pub(crate) waits: Counter,
    pub(crate) refused: Counter,
    pub(crate) requests: Counter,
    pub(crate) traps: Counter,
    pub(crate) out_of_memory: Counter,
    pub(crate) timeouts: Counter,
    pub(crate) over_cpu: Counter,
}

/// How long the steps from an image's name to an instance take.
#[derive(Debug, Default)]
pub struct Phases {
    /// Fetching images that were not here.
    pub pull: Histogram,
    /// Compiling programs.
    pub compile: Histogram,
    /// Mapping code that was compiled before, and linking it.
    pub load: Histogram,
    /// Making instances that answer HTTP.
    pub instantiate: Histogram,
}

/// Counters of another process's runtime, or how much they have risen.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tally {
    /// Instances made.
    pub instances: u64,
    /// Waits for an instance.
    pub waits: u64,
    /// Waits that were in vain.
    pub refused: u64,
    /// HTTP requests handed to guests.
    pub requests: u64,
    /// Guests that trapped.
    pub traps: u64,
    /// Guests that ran out of memory.
    pub out_of_memory: u64,
    /// Guests that ran out of time.
    pub timeouts: u64,
    /// Requests that used too much processor time.
    pub over_cpu: u64,
    /// How long it took to make instances that answer HTTP.
    pub instantiate: Times,
}

impl Tally {
    /// How much it has risen since `before`; a counter that has fallen counts as unchanged.
    pub fn since(&self, before: &Self) -> Self {
        Self {
            instances: self.instances.saturating_sub(before.instances),
            waits: self.waits.saturating_sub(before.waits),
            refused: self.refused.saturating_sub(before.refused),
            requests: self.requests.saturating_sub(before.requests),
            traps: self.traps.saturating_sub(before.traps),
            out_of_memory: self.out_of_memory.saturating_sub(before.out_of_memory),
            timeouts: self.timeouts.saturating_sub(before.timeouts),
            over_cpu: self.over_cpu.saturating_sub(before.over_cpu),
            instantiate: self.instantiate.since(&before.instantiate),
        }
    }
}

/// The state of a runtime at one moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Metrics {
    /// Programs compiled.
    pub compiled: u64,
    /// Programs loaded from compiled code on disk.
    pub cache_hits: u64,
    /// Compiled code on disk that was damaged or of another engine, and was made again.
    pub cache_rejected: u64,
    /// Programs loaded now.
    pub programs: u64,
    /// Instances made so far.
    pub instances: u64,
    /// Instance slots in use now.
    pub slots_in_use: u64,
    /// Instance slots in all.
    pub slots: u64,
    /// Times a start had to wait for an instance slot.
    pub waits: u64,
    /// Times it waited in vain.
    pub refused: u64,
    /// HTTP requests handed to guests.
    pub requests: u64,
    /// Guests that trapped.
    pub traps: u64,
    /// Guests that ran out of memory.
    pub out_of_memory: u64,
    /// Guests that ran out of time.
    pub timeouts: u64,
    /// Guests that used more processor time than one request may.
    pub over_cpu: u64,
    /// Linear memory of all guests now, in bytes.
    pub memory: u64,
}
