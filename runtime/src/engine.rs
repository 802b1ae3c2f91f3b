//! The engine: one for a process, with its instances in a pool.

use std::hash::{Hash, Hasher};

use sha2::{Digest, Sha256};
use wasmtime::{
    Config, Enabled, Engine, InstanceAllocationStrategy, OptLevel, PoolingAllocationConfig,
    WasmBacktraceDetails,
};

use crate::error::Error;
use crate::limits::MAX_TABLE_ELEMENTS;
use crate::settings::Settings;

/// Where instances come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Allocation {
    /// From a pool of this many prepared slots.
    Pool(u32),
    /// Mapped one by one, because the pool did not fit into the address space; at most this many.
    OnDemand(u32),
}

impl Allocation {
    /// Most instances at a time.
    pub fn instances(self) -> u32 {
        match self {
            Self::Pool(most) | Self::OnDemand(most) => most,
        }
    }
}

/// Memory of a freed slot that is cleaned in place instead of being given back, in bytes.
const KEEP_RESIDENT: usize = 1 << 20;
/// Freed slots whose memory is given back in one system call.
const DECOMMIT_BATCH: usize = 32;
/// Free slots that keep their program's memory image.
const WARM_SLOTS: u32 = 100;
/// Core instances and tables for each instance slot: a Python component has fourteen.
const PARTS_PER_INSTANCE: u32 = 20;
/// Tables for each instance slot.
pub(crate) const TABLES_PER_INSTANCE: u32 = 4;
/// Parts of the wanted pool that are tried in turn.
const POOL_DIVISORS: [u32; 4] = [1, 4, 16, 64];
/// Most stack a guest may use, in bytes.
const GUEST_STACK: usize = 512 << 10;
/// Frames of a trap's backtrace.
const BACKTRACE_FRAMES: usize = 32;

/// The engine with the largest pool that the address space takes, or without one.
pub(crate) fn build(settings: &Settings) -> Result<(Engine, Allocation), Error> {
    let wanted = settings.max_instances.max(1);
    for divisor in POOL_DIVISORS {
        let slots = (wanted / divisor).max(1);
        for scan in [Enabled::Yes, Enabled::No] {
            let mut config = base();
            config.allocation_strategy(InstanceAllocationStrategy::Pooling(pool(slots, scan)));
            match Engine::new(&config) {
                Ok(engine) => return Ok((engine, Allocation::Pool(slots))),
                Err(error) => tracing::debug!(slots, "no instance pool: {error:#}"),
            }
        }
    }
    tracing::warn!("instances are mapped one by one: the address space has no room for a pool");
    let engine = Engine::new(&base()).map_err(|error| Error::Engine(format!("{error:#}")))?;
    Ok((engine, Allocation::OnDemand(wanted)))
}

fn base() -> Config {
    let mut config = Config::new();
    config
        .epoch_interruption(true)
        .cranelift_opt_level(OptLevel::Speed)
        .max_wasm_stack(GUEST_STACK)
        .wasm_backtrace_max_frames(std::num::NonZeroUsize::new(BACKTRACE_FRAMES))
        .wasm_backtrace_details(WasmBacktraceDetails::Enable)
        .wasm_component_model(true)
        .concurrency_support(false)
        .wasm_threads(false);
    config
}

fn pool(slots: u32, scan: Enabled) -> PoolingAllocationConfig {
    let mut pool = PoolingAllocationConfig::new();
    pool.total_component_instances(slots)
        .total_core_instances(slots.saturating_mul(PARTS_PER_INSTANCE))
        .total_memories(slots)
        .total_tables(slots.saturating_mul(TABLES_PER_INSTANCE))
        .total_stacks(slots)
        .table_elements(MAX_TABLE_ELEMENTS)
        .max_memory_size(1 << 32)
        .max_core_instance_size(4 << 20)
        .max_component_instance_size(4 << 20)
        .max_unused_warm_slots(WARM_SLOTS.min(slots))
        .linear_memory_keep_resident(KEEP_RESIDENT)
        .table_keep_resident(KEEP_RESIDENT)
        .decommit_batch_size(DECOMMIT_BATCH)
        .pagemap_scan(scan);
    pool
}

/// What compiled code depends on besides the program: engine version, settings, processor.
pub(crate) fn fingerprint(engine: &Engine) -> [u8; 32] {
    struct Feed(Sha256);
    impl Hasher for Feed {
        fn write(&mut self, bytes: &[u8]) {
            self.0.update(bytes);
        }
        fn finish(&self) -> u64 {
            0
        }
    }
    let mut feed = Feed(Sha256::new());
    engine.precompile_compatibility_hash().hash(&mut feed);
    feed.0.finalize().into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pool_shrinks_until_it_fits() {
        let mut settings = Settings::new("unused");
        settings.max_instances = 10;
        assert_eq!(build(&settings).unwrap().1, Allocation::Pool(10));
        // 120,000 slots of 4 GiB are more than 47 bits of addresses.
        settings.max_instances = 120_000;
        let (_, allocation) = build(&settings).unwrap();
        assert!(matches!(allocation, Allocation::Pool(slots) if slots < 120_000), "{allocation:?}");
    }

    #[test]
    fn fingerprint_is_stable_and_knows_the_settings() {
        let plain = Engine::new(&base()).unwrap();
        assert_eq!(fingerprint(&plain), fingerprint(&Engine::new(&base()).unwrap()));
        let other = Engine::new(base().cranelift_opt_level(OptLevel::None)).unwrap();
        assert_ne!(fingerprint(&plain), fingerprint(&other));
    }
}
