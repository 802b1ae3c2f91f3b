//! `wasmk fn`: functions from source to answer.

use anyhow::{Context as _, Result};
use clap::Subcommand;
use serde_json::Value;

use super::{Context, Exit, api::Api};

mod build;
mod cold;
mod delete;
mod deploy;
mod describe;
mod dev;
mod invoke;
mod list;
mod logs;
mod new;
pub(super) mod push;
mod toolchain;
mod traffic;
mod wait;

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Make a new function from a template
    New(new::Args),
    /// Build a function into a WebAssembly component
    Build(build::Args),
    /// Build, push and start a function, and wait until it can be called
    Deploy(Box<deploy::Args>),
    /// List functions
    #[command(visible_alias = "ls")]
    List(list::Args),
    /// List the revisions of functions
    #[command(visible_alias = "revision")]
    Revisions(list::Revisions),
    /// Print what a function logged, also while it is at zero
    Logs(logs::Args),
    /// Call a function
    Invoke(invoke::Args),
    /// Show a function with its traffic, revisions and conditions
    Describe(describe::Args),
    /// Show or change which revisions requests go to
    Traffic(traffic::Args),
    /// Send all requests to an earlier revision
    Rollback(traffic::Rollback),
    /// Build and deploy again whenever a file is saved
    Dev(Box<dev::Args>),
    /// Measure how long a function takes from nothing to its first byte, by phase
    Cold(cold::Args),
    /// Print a function as a manifest
    Export(describe::Export),
    /// Delete functions
    Delete(delete::Args),
}

pub(super) async fn run(command: Command, cx: &Context) -> Result<Exit> {
    match command {
        Command::New(args) => new::run(args, cx),
        Command::Build(args) => build::run(&args, cx),
        Command::Deploy(args) => deploy::run(*args, cx).await,
        Command::List(args) => list::run(args, cx).await,
        Command::Revisions(args) => list::revisions(args, cx).await,
        Command::Logs(args) => logs::run(args, cx).await,
        Command::Invoke(args) => invoke::run(args, cx).await,
        Command::Describe(args) => describe::run(args, cx).await,
        Command::Traffic(args) => traffic::run(args, cx).await,
        Command::Rollback(args) => traffic::rollback(args, cx).await,
        Command::Dev(args) => dev::run(*args, cx).await,
        Command::Cold(args) => cold::run(args, cx).await,
        Command::Export(args) => describe::export(args, cx).await,
        Command::Delete(args) => delete::run(args, cx).await,
    }
}

/// The path of a namespace's functions, or of one.
fn path(namespace: &str, name: &str) -> String {
    let all = format!("/apis/serving.knative.dev/v1/namespaces/{namespace}/services");
    if name.is_empty() { all } else { format!("{all}/{name}") }
}

/// What the cluster says about itself to its clients: `registry` and `gateway`, without scheme.
pub(super) async fn endpoint(api: &Api, which: &str) -> Result<String> {
    let map = api.get("/api/v1/namespaces/kube-public/configmaps/wasmk").await;
    let map = map.context(
        "this cluster does not say where its registry and gateway are (configmap kube-public/wasmk)",
    )?;
    let text = map["data"][which].as_str();
    text.map(String::from).with_context(|| format!("configmap kube-public/wasmk has no {which}"))
}

/// The condition `Ready` of an object that speaks of its present generation.
fn ready(object: &Value) -> Option<&Value> {
    if object["status"]["observedGeneration"] != object["metadata"]["generation"] {
        return None;
    }
    object["status"]["conditions"].as_array()?.iter().find(|c| c["type"] == "Ready")
}
