//! The command line: one file per command, declared in one list.
//!
//! A command gets its arguments and a [`Context`]; it prints through [`output::Output`] and
//! returns an [`Exit`]. Adding one is a file here and a line in [`Command`].

use std::{ffi::OsString, process::ExitCode};

use anyhow::Result;
use clap::{Parser, Subcommand};

mod client;
mod down;
mod hint;
mod output;
mod status;
mod up;

pub use client::Context;

/// What a command's end means to a script.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// 0: done.
    Done,
    /// 1: done, and the answer is "no" (not running, not ready, differs).
    No,
}

/// Kubernetes-compatible orchestrator for WebAssembly, functions and containers.
#[derive(Debug, Parser)]
#[command(name = "wasmk", version, propagate_version = true, arg_required_else_help = true)]
struct Cli {
    #[command(flatten)]
    global: client::Global,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Start a control plane with a node and a function gateway on this machine
    Up(up::Args),
    /// Stop what `wasmk up` started
    Down(down::Args),
    /// Show whether it runs and where it listens
    Status(status::Args),
}

/// Runs the command line and returns the process's exit code: 0 done, 1 failed or "no", 2 wrong usage.
pub fn main(args: impl IntoIterator<Item = OsString>) -> ExitCode {
    let cli = match Cli::try_parse_from(args) {
        Ok(cli) => cli,
        Err(e) => {
            let _ = e.print();
            return ExitCode::from(if e.use_stderr() { 2 } else { 0 });
        }
    };
    // Guests and the API share the process; both want the same provider.
    let _ = rustls::crypto::ring::default_provider().install_default();
    match run(cli) {
        Ok(Exit::Done) => ExitCode::SUCCESS,
        Ok(Exit::No) => ExitCode::from(1),
        Err(e) => {
            output::report(&e);
            ExitCode::from(1)
        }
    }
}

fn run(cli: Cli) -> Result<Exit> {
    let cx = Context::new(cli.global);
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let result = runtime.block_on(async {
        match cli.command {
            Command::Up(args) => up::run(args, &cx).await,
            Command::Down(args) => down::run(args, &cx).await,
            Command::Status(args) => status::run(args, &cx).await,
        }
    });
    runtime.shutdown_background();
    result
}
