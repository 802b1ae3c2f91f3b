//! The `wasmk` program: reads flags, environment and signals, and does nothing else.

use std::process::ExitCode;

fn main() -> ExitCode {
    wasmk::cli::main(std::env::args_os())
}
