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
mod attach;
mod auth;
mod change;
mod client;
mod config;
mod copy;
mod create;
mod delete;
mod describe;
mod down;
mod exec;
mod explain;
mod expose;
mod format;
mod function;
mod get;
mod hint;
mod jsonpath;
mod logs;
mod make;
mod manifests;
mod nodes;
mod output;
mod pods;
mod port_forward;
mod proxy;
mod publish;
mod push;
mod resources;
mod rollout;
mod run;
mod scale;
mod selection;
mod set;
mod status;
mod stern;
mod store;
mod table;
mod token;
mod top;
mod up;
mod version;
mod wait;
mod warnings;
mod web;

pub use client::Context;

/// What a command's end means to a script.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// 0: done.
    Done,
    /// 1: done, and the answer is "no" (not running, not ready, differs).
    No,
    /// Done, with the exit code of a program that ran elsewhere.
    Code(u8),
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

#[allow(clippy::large_enum_variant, reason = "there is one, and it lives as long as the program")]
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
    /// Make objects from files, or of a common kind from flags
    Create(create::Args),
    /// Run an image in a pod
    Run(run::Args),
    /// Make a service over the pods of a workload
    Expose(expose::Args),
    /// Scale a workload with its load
    Autoscale(expose::Autoscale),
    /// Make objects be as files say
    Apply(apply::Args),
    /// Put objects in place of those that are there
    Replace(change::Replace),
    /// Change fields of objects
    Patch(change::Patch),
    /// Change an object in an editor
    Edit(change::Edit),
    /// Change labels of objects
    Label(change::Tags),
    /// Change annotations of objects
    Annotate(change::Tags),
    /// Change images, variables or selectors
    #[command(subcommand)]
    Set(set::Command),
    /// Follow, list, undo, pause or restart changes of workloads
    #[command(subcommand)]
    Rollout(rollout::Command),
    /// Wait until objects are as they should be
    Wait(wait::Args),
    /// Print objects with their details and events
    Describe(describe::Args),
    /// Delete objects
    Delete(delete::Args),
    /// Print what containers logged
    Logs(logs::Args),
    /// Print the logs of many pods as one, and go on as pods come and go
    Stern(stern::Args),
    /// Run a command in a container
    Exec(exec::Args),
    /// See and feed the process of a container that runs
    Attach(attach::Args),
    /// Copy files into a container or out of it
    Cp(copy::Args),
    /// Listen here for ports of a pod
    PortForward(port_forward::Args),
    /// Print what nodes or pods use
    #[command(subcommand)]
    Top(top::Command),
    /// Serve the API on this machine with one's credentials
    Proxy(proxy::Args),
    /// Close nodes for new pods
    Cordon(nodes::Args),
    /// Open nodes again
    Uncordon(nodes::Args),
    /// Close nodes and move their pods away
    Drain(nodes::Drain),
    /// Change taints of nodes
    Taint(nodes::Taint),
    /// Ask who one is and what one may do
    #[command(subcommand)]
    Auth(auth::Command),
    /// Approve or deny requests for certificates
    #[command(subcommand)]
    Certificate(auth::Certificate),
    /// Show or change the kubeconfig
    #[command(subcommand)]
    Config(config::Command),
    /// Switch the context
    Ctx(config::Switch),
    /// Switch the context's namespace
    Ns(config::Switch),
    /// Print where the control plane is
    ClusterInfo,
    /// Print the API's groups and versions
    ApiVersions,
    /// Set a number of replicas
    Scale(scale::Args),
    /// Print the fields of a kind
    Explain(explain::Args),
    /// Print the kinds the server has
    ApiResources(api_resources::Args),
    /// Print the versions of client and server
    Version(version::Args),
}

/// Runs the command line and returns the process's exit code: 0 done, 1 failed, "no" or wrong usage, as
/// kubectl has it.
pub fn main(args: impl IntoIterator<Item = OsString>) -> ExitCode {
    let args: Vec<OsString> = args.into_iter().collect();
    // Before anything else: its walls are put up while there is one thread only.
    if args.get(1).is_some_and(|command| command == crate::agent::WORKER) {
        return wasmk_wall::worker();
    }
    let cli = match Cli::try_parse_from(args) {
        Ok(cli) => cli,
        Err(e) => {
            let _ = e.print();
            return ExitCode::from(u8::from(e.use_stderr()));
        }
    };
    take_descriptors();
    // Guests and the API share the process; both want the same provider.
    let _ = rustls::crypto::ring::default_provider().install_default();
    match dispatch(cli) {
        Ok(Exit::Done) => ExitCode::SUCCESS,
        Ok(Exit::No) => ExitCode::from(1),
        Ok(Exit::Code(code)) => ExitCode::from(code),
        Err(e) => {
            output::report(&e);
            ExitCode::from(1)
        }
    }
}

/// File descriptors that are asked for at most.
const DESCRIPTORS: u64 = 1 << 20;

/// As many file descriptors as the system lets this process have, within reason: each pod listens at an address of its own, and
/// what shells usually give is enough for a few hundred.
fn take_descriptors() {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    if let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_NOFILE)
        && soft < hard.min(DESCRIPTORS)
    {
        // Without it everything works, for fewer pods.
        let _ = setrlimit(Resource::RLIMIT_NOFILE, hard.min(DESCRIPTORS), hard);
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

fn dispatch(cli: Cli) -> Result<Exit> {
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
            Command::Create(args) => create::run(args, &cx).await,
            Command::Run(args) => run::run(args, &cx).await,
            Command::Expose(args) => expose::run(args, &cx).await,
            Command::Autoscale(args) => expose::autoscale(args, &cx).await,
            Command::Replace(args) => change::replace(args, &cx).await,
            Command::Patch(args) => change::patch(args, &cx).await,
            Command::Edit(args) => change::edit(args, &cx).await,
            Command::Label(args) => change::tag(args, change::LABELS, &cx).await,
            Command::Annotate(args) => change::tag(args, change::ANNOTATIONS, &cx).await,
            Command::Set(command) => set::run(command, &cx).await,
            Command::Rollout(command) => rollout::run(command, &cx).await,
            Command::Wait(args) => wait::run(args, &cx).await,
            Command::Stern(args) => stern::run(args, &cx).await,
            Command::Exec(args) => exec::run(args, &cx).await,
            Command::Attach(args) => attach::run(args, &cx).await,
            Command::Cp(args) => copy::run(args, &cx).await,
            Command::PortForward(args) => port_forward::run(args, &cx).await,
            Command::Top(command) => top::run(command, &cx).await,
            Command::Proxy(args) => proxy::run(args, &cx).await,
            Command::Cordon(args) => nodes::cordon(args, true, &cx).await,
            Command::Uncordon(args) => nodes::cordon(args, false, &cx).await,
            Command::Drain(args) => nodes::drain(args, &cx).await,
            Command::Taint(args) => nodes::taint(args, &cx).await,
            Command::Auth(command) => auth::run(command, &cx).await,
            Command::Certificate(command) => auth::certificate(command, &cx).await,
            Command::Config(command) => config::run(command, &cx).await,
            Command::Ctx(args) => config::switch_context(&args, &cx),
            Command::Ns(args) => config::switch_namespace(&args, &cx).await,
            Command::ClusterInfo => auth::cluster_info(&cx).await.map(|()| Exit::Done),
            Command::ApiVersions => auth::api_versions(&cx).await.map(|()| Exit::Done),
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
