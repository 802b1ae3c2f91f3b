//! Runs commands: WASI 0.1 modules and wasi:cli components, each to its end.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinHandle;
use wasmtime::Store;

use crate::capabilities::environment::Words;
use crate::error::Error;
use crate::exit::{ABORTED, Exit, ExitReason, StopSignal};
use crate::guest::{Guest, HasLimits, ModuleGuest, environment};
use crate::program::{Linked, Program};
use crate::quota::{Metered, Quota, Rationed};
use crate::shared::Shared;
use crate::spec::Spec;
use crate::trap::{self, Failure};

impl Program {
    /// Runs the program to its end, or until `stop` is given and its grace is over.
    ///
    /// Dropping the future ends the guest.
    ///
    /// # Errors
    /// If it cannot be started. Everything after that is an [`Exit`].
    pub async fn run(&self, spec: Spec, stop: StopSignal) -> Result<Exit, Error> {
        self.run_for(spec, stop, None).await
    }

    /// Runs it as [`run`](Self::run) does, with at most that much processor time.
    pub(crate) async fn run_for(
        &self,
        mut spec: Spec,
        stop: StopSignal,
        most: Option<Duration>,
    ) -> Result<Exit, Error> {
        let shared = &self.shared;
        if let Linked::Http(_) = self.linked {
            return Err(Error::Kind { wanted: "run", found: self.kind().as_str() });
        }
        let slot = shared.slot(self.weight).await?;
        spec.env = environment(spec.env);
        let usage = Arc::clone(&spec.usage);
        let quota = spec.cpu_millis.map(|millis| Arc::new(Quota::new(millis)));
        let timeout = spec.run_timeout;
        let stdin = spec.stdin.clone();
        let mut task = match &self.linked {
            Linked::Module(linked) => {
                let store = ModuleGuest::store(shared, &spec)?;
                let guest = module(store, linked.clone(), slot);
                spawn(shared, Metered::new(shared, &usage, quota, guest), most)
            }
            Linked::Command(linked) => {
                let words = Words::take(&mut spec);
                let store = Guest::store(shared, &spec, &words)?;
                let guest = command(store, linked.clone(), slot);
                spawn(shared, Metered::new(shared, &usage, quota, guest), most)
            }
            Linked::Http(_) => return Err(Error::Kind { wanted: "run", found: self.kind().as_str() }),
        };
        let stopped = async {
            stop.requested().await;
            if let Some(stdin) = &stdin {
                stdin.close();
            }
            stop.expired().await;
        };
        let reason = tokio::select! {
            biased;
            ended = &mut task.0 => return count(shared, ended.unwrap_or_else(|error| Err(Error::Instantiate(error.to_string())))),
            () = stopped => ExitReason::Stopped,
            () = after(timeout) => ExitReason::TimedOut,
        };
        task.0.abort();
        // It yields within two ticks; then its memory is free.
        let _ = (&mut task.0).await;
        count(shared, Ok(Exit::killed(reason)))
    }
}

async fn after(timeout: Option<Duration>) {
    match timeout {
        Some(timeout) => tokio::time::sleep(timeout).await,
        None => std::future::pending().await,
    }
}

/// A task that ends with its owner.
struct Task(JoinHandle<Result<Exit, Error>>);

impl Drop for Task {
    fn drop(&mut self) {
        self.0.abort();
    }
}

fn spawn<F>(shared: &Shared, guest: Metered<F>, most: Option<Duration>) -> Task
where
    F: Future<Output = Result<Exit, Error>> + Send + 'static,
{
    let over = |most| Err(Error::OverCpu(most));
    Task(shared.executor().spawn(Rationed::new(guest, most, over)))
}

async fn module<S>(
    mut store: Store<ModuleGuest>,
    linked: wasmtime::InstancePre<ModuleGuest>,
    _slot: S,
) -> Result<Exit, Error> {
    let instance = match linked.instantiate_async(&mut store).await {
        Ok(instance) => instance,
        Err(error) => return not_started(&mut store, &error),
    };
    let start = instance
        .get_typed_func::<(), ()>(&mut store, "_start")
        .map_err(|error| Error::Instantiate(format!("{error:#}")))?;
    match start.call_async(&mut store, ()).await {
        Ok(()) => Ok(Exit::completed(0)),
        Err(error) => Ok(failed(&mut store, &error)),
    }
}

async fn command<S>(
    mut store: Store<Guest>,
    linked: wasmtime_wasi::p2::bindings::CommandPre<Guest>,
    _slot: S,
) -> Result<Exit, Error> {
    let command = match linked.instantiate_async(&mut store).await {
        Ok(command) => command,
        Err(error) => return not_started(&mut store, &error),
    };
    match command.wasi_cli_run().call_run(&mut store).await {
        Ok(Ok(())) => Ok(Exit::completed(0)),
        Ok(Err(())) => Ok(Exit::completed(1)),
        Err(error) => Ok(failed(&mut store, &error)),
    }
}

/// An instance that could not be made: the guest's fault if its own start function trapped.
fn not_started<T: HasLimits>(store: &mut Store<T>, error: &wasmtime::Error) -> Result<Exit, Error> {
    if store.data_mut().limits().refused() {
        return Ok(Exit::killed(ExitReason::OutOfMemory));
    }
    if error.is::<wasmtime::WasmBacktrace>() || error.is::<wasmtime_wasi::I32Exit>() {
        return Ok(failed(store, error));
    }
    Err(Error::Instantiate(format!("{error:#}")))
}

fn failed<T: HasLimits>(store: &mut Store<T>, error: &wasmtime::Error) -> Exit {
    match trap::read(error, store.data_mut().limits().refused()) {
        Failure::Exit(code) => Exit::completed(code),
        Failure::OutOfMemory => Exit::killed(ExitReason::OutOfMemory),
        Failure::Trapped { message, backtrace } => {
            Exit { code: ABORTED, reason: ExitReason::Trapped { message, backtrace } }
        }
    }
}

fn count(shared: &Shared, result: Result<Exit, Error>) -> Result<Exit, Error> {
    match result.as_ref().map(|exit| &exit.reason) {
        Ok(ExitReason::Trapped { .. }) => shared.counters.traps.add(1),
        Ok(ExitReason::OutOfMemory) => shared.counters.out_of_memory.add(1),
        Ok(ExitReason::TimedOut) => shared.counters.timeouts.add(1),
        Err(Error::OverCpu(_)) => shared.counters.over_cpu.add(1),
        _ => {}
    }
    result
}
