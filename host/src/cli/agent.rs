//! `wasmk agent`: this machine as a node of a cluster elsewhere.

use std::path::PathBuf;

use anyhow::{Context as _, Result, bail};
use tokio::signal::unix::{SignalKind, signal};

use super::{Context, Exit, client::home, hint::WithHint, up::hostname};
use crate::{
    agent::{Agent, NodeOptions},
    data_dir::{DataDir, RunningAgent},
    join::{Identity, Token},
};

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The cluster's API; where a node that has joined once is to look for it from now on
    #[arg(long, value_name = "URL")]
    server: Option<String>,
    /// The join token; needed only until the node has joined once
    #[arg(long, env = "WASMK_TOKEN", hide_env_values = true)]
    token: Option<String>,
    /// Where the node keeps its things
    #[arg(long, value_name = "DIR", default_value_os_t = home().join(".wasmk-agent"))]
    data_dir: PathBuf,
    /// Name of the node [default: the host's name]
    #[arg(long, value_name = "NAME")]
    node_name: Option<String>,
    #[command(flatten)]
    node: NodeOptions,
    /// End when standard input does, as it is for the process that keeps this one
    #[arg(long, hide = true)]
    until_input_ends: bool,
}

pub(super) async fn run(args: Args, cx: &Context) -> Result<Exit> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let name = args.node_name.clone().unwrap_or_else(hostname);
    let data = DataDir::new(&args.data_dir);
    let claim = data.claim()?;
    claim.publish_agent(&RunningAgent { pid: std::process::id(), node: name.clone() })?;
    let agent = {
        let mut told = std::pin::pin!(async {
            tokio::select! {
                _ = terminate.recv() => {}
                () = input_ends(), if args.until_input_ends => {}
                _ = interrupt.recv() => cx.out.note("stopping; press Ctrl-C again to stop at once"),
            }
        });
        let agent = tokio::select! {
            agent = start(&args, &name, &data) => agent?,
            () = &mut told => return Ok(Exit::Done),
        };
        cx.out.line(format!("node {name} runs"));
        tokio::spawn(crate::footprint::keep_small());
        told.await;
        agent
    };
    tokio::select! {
        () = agent.shutdown() => {}
        _ = interrupt.recv() => bail!("stopped at once"),
    }
    drop(claim);
    Ok(Exit::Done)
}

async fn start(args: &Args, name: &str, data: &DataDir) -> Result<Agent> {
    let identity = match (Identity::load(data.path())?, &args.server) {
        (Some(identity), None) => identity,
        (Some(identity), Some(server)) => identity.moved_to(server, data.path())?,
        (None, _) => join(args, name, data).await?,
    };
    Agent::start(name, data, &identity, &args.node).await
}

/// Waits until nobody can write to this process any more.
async fn input_ends() {
    // An input that cannot be read is at its end, too.
    let _ = tokio::io::copy(&mut tokio::io::stdin(), &mut tokio::io::sink()).await;
}

async fn join(args: &Args, name: &str, data: &DataDir) -> Result<Identity> {
    let hint = || "`wasmk token create` on the cluster prints the whole command".to_string();
    let server = args
        .server
        .as_deref()
        .context("this machine has not joined a cluster yet: --server is needed")
        .hint(hint)?;
    let token = args
        .token
        .as_deref()
        .context("this machine has not joined a cluster yet: --token is needed")
        .hint(hint)?;
    let token = Token::parse(token).hint(hint)?;
    Identity::join(server, &token, name, data.path()).await.with_context(|| format!("cannot join {server}"))
}
