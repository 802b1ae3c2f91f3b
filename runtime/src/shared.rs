//! What every program and instance of one runtime shares.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use wasmtime::Engine;

use crate::engine::{self, Allocation};
use crate::error::Error;
use crate::guest::{Guest, ModuleGuest};
use crate::linker;
use crate::metrics::{Counters, Metrics, Phases};
use crate::settings::Settings;
use crate::ticker::Ticker;
use crate::usage::Usage;

/// Engine, linkers and bounds. Programs hold it; it holds no program.
pub(crate) struct Shared {
    pub(crate) engine: Engine,
    pub(crate) allocation: Allocation,
    pub(crate) ticker: Ticker,
    pub(crate) components: wasmtime::component::Linker<Guest>,
    pub(crate) modules: wasmtime::Linker<ModuleGuest>,
    pub(crate) counters: Counters,
    pub(crate) phases: Arc<Phases>,
    pub(crate) total: Arc<Usage>,
    pub(crate) memory_budget: u64,
    pub(crate) default_memory_limit: u64,
    pub(crate) instance_wait: Duration,
    slots: Arc<Semaphore>,
    most: u32,
    executor: Option<tokio::runtime::Runtime>,
}

impl Shared {
    pub(crate) fn new(settings: &Settings) -> Result<Self, Error> {
        let (engine, allocation) = engine::build(settings)?;
        Self::over(engine, allocation, settings)
    }

    /// Over an engine that is there already. Starts the threads.
    pub(crate) fn over(engine: Engine, allocation: Allocation, settings: &Settings) -> Result<Self, Error> {
        let most = allocation.instances();
        let fail = |error: wasmtime::Error| Error::Engine(format!("{error:#}"));
        let io = |error: std::io::Error| Error::Engine(error.to_string());
        Ok(Self {
            ticker: Ticker::start(&engine).map_err(io)?,
            components: linker::components(&engine).map_err(fail)?,
            modules: linker::modules(&engine).map_err(fail)?,
            counters: Counters::default(),
            phases: Arc::default(),
            total: Arc::default(),
            memory_budget: settings.memory_budget.unwrap_or(u64::MAX),
            default_memory_limit: settings.default_memory_limit,
            instance_wait: settings.instance_wait,
            slots: Arc::new(Semaphore::new(most as usize)),
            most,
            executor: Some(executor().map_err(io)?),
            engine,
            allocation,
        })
    }

    /// Where guests run that take longer than a moment. Their threads are not those of the caller,
    /// so the operating system shares the processor between them and the rest of the program, which comes first.
    pub(crate) fn executor(&self) -> &tokio::runtime::Handle {
        // Only dropping takes the executor out.
        self.executor.as_ref().expect("executor lives as long as its owner").handle()
    }

    /// Waits for `weight` instance slots, at most as long as the settings say.
    pub(crate) async fn slot(&self, weight: u32) -> Result<OwnedSemaphorePermit, Error> {
        let weight = weight.min(self.most);
        if let Ok(permit) = Arc::clone(&self.slots).try_acquire_many_owned(weight) {
            return Ok(permit);
        }
        self.counters.waits.add(1);
        let acquire = Arc::clone(&self.slots).acquire_many_owned(weight);
        match tokio::time::timeout(self.instance_wait, acquire).await {
            Ok(Ok(permit)) => Ok(permit),
            _ => {
                self.counters.refused.add(1);
                Err(Error::Busy { waited: self.instance_wait, most: self.most })
            }
        }
    }

    /// Instances that one guest may have at a time when nothing else is said.
    pub(crate) fn fair_share(&self) -> u32 {
        (self.most / 2).max(1)
    }

    /// Counters and gauges of this moment.
    pub(crate) fn metrics(&self, programs: u64) -> Metrics {
        let counters = &self.counters;
        Metrics {
            compiled: counters.compiled.get(),
            cache_hits: counters.cache_hits.get(),
            cache_rejected: counters.cache_rejected.get(),
            programs,
            instances: counters.instances.get(),
            slots_in_use: self.slots_in_use().into(),
            slots: self.allocation.instances().into(),
            waits: counters.waits.get(),
            refused: counters.refused.get(),
            requests: counters.requests.get(),
            traps: counters.traps.get(),
            out_of_memory: counters.out_of_memory.get(),
            timeouts: counters.timeouts.get(),
            over_cpu: counters.over_cpu.get(),
            memory: self.total.memory(),
        }
    }

    pub(crate) fn slots_in_use(&self) -> u32 {
        self.most.saturating_sub(self.slots.available_permits() as u32)
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        if let Some(executor) = self.executor.take() {
            executor.shutdown_background();
        }
    }
}

fn executor() -> std::io::Result<tokio::runtime::Runtime> {
    let mut builder = tokio::runtime::Builder::new_multi_thread();
    builder.thread_name("wasm-guest").on_thread_start(step_back).enable_all().build()
}

/// How much nicer threads of guests are than those that answer requests and serve the API. Those are then not kept
/// waiting for the end of a guest's turn, and guests still get a third of a processor that all want.
const NICER: i32 = 5;

/// Lowers this thread's priority, which everybody may do.
#[allow(unsafe_code)]
fn step_back() {
    // SAFETY: neither call has anything to do with memory; on Linux both are about the calling thread.
    let set = unsafe {
        let present = libc::getpriority(libc::PRIO_PROCESS, 0);
        libc::setpriority(libc::PRIO_PROCESS, 0, present + NICER)
    };
    if set != 0 {
        tracing::debug!(error = %std::io::Error::last_os_error(), "guests have the program's own priority");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[allow(unsafe_code)]
    fn priority() -> i32 {
        // SAFETY: the call has nothing to do with memory.
        unsafe { libc::getpriority(libc::PRIO_PROCESS, 0) }
    }

    #[test]
    fn guests_step_back_behind_who_answers() {
        let executor = executor().unwrap();
        let theirs = executor.block_on(executor.spawn(async { priority() })).unwrap();
        assert_eq!(theirs, (priority() + NICER).min(19));
    }
}
