//! The command line: one file per command, declared in one list.
//!
//! A command gets its arguments and a [`Context`]; it prints through [`output::Output`] and
//! returns an [`Exit`]. Adding one is a file here and a line in [`Command`].

use std::{ffi::OsString, process::ExitCode};

use anyhow::Result;
use clap::{Parser, Subcommand};

mod access;
mod agent;
mod api;
mod api_resources;
mod apply;
mod client;
mod delete;
mod describe;
mod down;
mod explain;
mod function;
mod get;
mod hint;
mod logs;
mod manifests;
mod output;
mod push;
mod resources;
mod scale;
mod selection;
mod status;
mod store;
mod table;
mod token;
mod up;
mod version;

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
#[command(name = "wasmk", version, arg_required_else_help = true)]
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
    /// Make this machine a node of a cluster elsewhere
    Agent(agent::Args),
    /// Let machines join as nodes
    #[command(subcommand)]
    Token(token::Command),
    /// Back up, restore, check and repair what objects are kept in
    #[command(subcommand)]
    Store(store::Command),
    /// Make, build, deploy and call functions
    #[command(subcommand)]
    Fn(function::Command),
    /// Put a WebAssembly file into the cluster's registry
    Push(push::Args),
    /// Print objects
    Get(get::Args),
    /// Make objects be as files say
    Apply(apply::Args),
    /// Print objects with their details and events
    Describe(describe::Args),
    /// Delete objects
    Delete(delete::Args),
    /// Print what containers logged
    Logs(logs::Args),
    /// Set a number of replicas
    Scale(scale::Args),
    /// Print the fields of a kind
    Explain(explain::Args),
    /// Print the kinds the server has
    ApiResources(api_resources::Args),
    /// Print the versions of client and server
    Version(version::Args),
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

/// Logs of the servers: to standard error, at `info` unless `WASMK_LOG` says otherwise.
fn start_logging(default: &str) {
    let filter = tracing_subscriber::EnvFilter::try_from_env("WASMK_LOG").unwrap_or_else(|_| default.into());
    let is_terminal = std::io::IsTerminal::is_terminal(&std::io::stderr());
    let _ = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(is_terminal)
        .try_init();
}

fn run(cli: Cli) -> Result<Exit> {
    let serves = matches!(cli.command, Command::Up(_) | Command::Agent(_));
    start_logging(if serves { "info,kube_client::client::tls=error" } else { "error" });
    let cx = Context::new(cli.global);
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let result = runtime.block_on(async {
        match cli.command {
            Command::Up(args) => up::run(args, &cx).await,
            Command::Down(args) => down::run(args, &cx).await,
            Command::Status(args) => status::run(args, &cx).await,
            Command::Agent(args) => agent::run(args, &cx).await,
            Command::Token(command) => token::run(command, &cx).await,
            Command::Store(command) => store::run(command, &cx).await,
            Command::Fn(command) => function::run(command, &cx).await,
            Command::Push(args) => push::run(args, &cx).await,
            Command::Get(args) => get::run(args, &cx).await,
            Command::Apply(args) => apply::run(args, &cx).await,
            Command::Describe(args) => describe::run(args, &cx).await,
            Command::Delete(args) => delete::run(args, &cx).await,
            Command::Logs(args) => logs::run(args, &cx).await,
            Command::Scale(args) => scale::run(args, &cx).await,
            Command::Explain(args) => explain::run(args, &cx).await,
            Command::ApiResources(args) => api_resources::run(args, &cx).await,
            Command::Version(args) => version::run(args, &cx).await,
        }
    });
    runtime.shutdown_background();
    result
}
