//! Tells apart the ways in which a guest's execution ends with an error.

use wasmtime::{Trap, WasmBacktrace};
use wasmtime_wasi::I32Exit;

/// Most bytes of a trap's message or backtrace that are kept.
const MAX_TEXT: usize = 16 << 10;

/// How a guest's execution ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Failure {
    /// It called exit with this status.
    Exit(i32),
    /// Its memory limit did not allow what it needed.
    OutOfMemory,
    /// It did something forbidden.
    Trapped { message: String, backtrace: String },
}

/// Reads `error`, which a guest ended with; `refused` says that its last wish for memory was refused.
pub(crate) fn read(error: &wasmtime::Error, refused: bool) -> Failure {
    let exit = error.downcast_ref::<I32Exit>().map(|exit| exit.0);
    match exit {
        Some(status) if !refused || status == 0 => Failure::Exit(status),
        _ if refused => Failure::OutOfMemory,
        _ => Failure::Trapped { message: message(error), backtrace: backtrace(error) },
    }
}

fn message(error: &wasmtime::Error) -> String {
    let text = match error.downcast_ref::<Trap>() {
        Some(trap) => trap.to_string(),
        None => error.root_cause().to_string(),
    };
    let line = text.lines().next().unwrap_or_default();
    shorten(line.strip_prefix("wasm trap: ").unwrap_or(line))
}

fn backtrace(error: &wasmtime::Error) -> String {
    error
        .downcast_ref::<WasmBacktrace>()
        .map(|trace| shorten(trace.to_string().trim_end()))
        .unwrap_or_default()
}

fn shorten(text: &str) -> String {
    text[..text.floor_char_boundary(MAX_TEXT)].to_owned()
}
