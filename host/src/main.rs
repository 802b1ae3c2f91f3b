//! The `wasmk` program: reads flags, environment and signals, and does nothing else.

use std::process::ExitCode;

/// Requests allocate and free on several threads; the C library's allocator spends a tenth of their time.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    wasmk::cli::main(std::env::args_os())
}
