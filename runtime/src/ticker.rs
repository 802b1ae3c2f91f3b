//! The clock that makes running guests yield.
//!
//! One thread advances the engine's epoch every [`TICK`]; compiled code checks it at loop heads and
//! function entries and yields to the executor. The thread sleeps for good while no guest runs, so an
//! idle process is idle.

use std::sync::Arc;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::thread::{self, Thread};
use std::time::Duration;

use wasmtime::{Engine, EngineWeak};

/// Longest time a guest computes before others get their turn is twice this.
pub(crate) const TICK: Duration = Duration::from_millis(1);

/// Ticks without a running guest before the thread parks: waking it costs more than some ticks.
const LINGER: u32 = 100;

/// Stops its thread when dropped.
pub(crate) struct Ticker(Arc<State>);

struct State {
    engine: EngineWeak,
    running: AtomicUsize,
    parked: AtomicBool,
    stopped: AtomicBool,
    thread: OnceLock<Thread>,
}

impl Ticker {
    pub(crate) fn start(engine: &Engine) -> std::io::Result<Self> {
        let state = Arc::new(State {
            engine: engine.weak(),
            running: AtomicUsize::new(0),
            parked: AtomicBool::new(false),
            stopped: AtomicBool::new(false),
            thread: OnceLock::new(),
        });
        let shared = Arc::clone(&state);
        let handle = thread::Builder::new().name("wasm-ticker".into()).spawn(move || tick(&shared))?;
        // Nothing else sets the cell.
        let _ = state.thread.set(handle.thread().clone());
        Ok(Self(state))
    }

    /// Says that a guest runs on this thread until the answer is dropped.
    pub(crate) fn enter(&self) -> Running<'_> {
        self.0.running.fetch_add(1, SeqCst);
        if self.0.parked.load(SeqCst) {
            self.0.wake();
        }
        Running(&self.0)
    }
}

impl Drop for Ticker {
    fn drop(&mut self) {
        self.0.stopped.store(true, SeqCst);
        self.0.wake();
    }
}

impl State {
    fn wake(&self) {
        if let Some(thread) = self.thread.get() {
            thread.unpark();
        }
    }
}

/// A guest is running; see [`Ticker::enter`].
pub(crate) struct Running<'a>(&'a State);

impl Drop for Running<'_> {
    fn drop(&mut self) {
        self.0.running.fetch_sub(1, SeqCst);
    }
}

fn tick(state: &State) {
    let mut idle = 0;
    while !state.stopped.load(SeqCst) {
        idle = if state.running.load(SeqCst) == 0 { idle + 1 } else { 0 };
        if idle > LINGER {
            idle = 0;
            // Either this sees a guest that has just entered, or that guest sees the flag.
            state.parked.store(true, SeqCst);
            if state.running.load(SeqCst) == 0 && !state.stopped.load(SeqCst) && state.thread.get().is_some()
            {
                thread::park();
            }
            state.parked.store(false, SeqCst);
        }
        thread::sleep(TICK);
        match state.engine.upgrade() {
            Some(engine) => engine.increment_epoch(),
            None => return,
        }
    }
}
