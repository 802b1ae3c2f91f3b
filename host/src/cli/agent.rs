//! `wasmk agent`: this machine as a node of a cluster elsewhere.

use std::path::PathBuf;

use anyhow::{Context as _, Result, bail};
use tokio::signal::unix::{SignalKind, signal};

use super::{Context, Exit, client::home, hint::WithHint, up::hostname};
use crate::{
    agent::{Agent, NodeOptions},
    data_dir::DataDir,
    join::{Identity, Token},
};

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The cluster's API
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
}

pub(super) async fn run(args: Args, cx: &Context) -> Result<Exit> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let name = args.node_name.clone().unwrap_or_else(hostname);
    let data = DataDir::new(&args.data_dir);
    let claim = data.claim()?;
    let identity = match Identity::load(data.path())? {
        Some(identity) => identity,
        None => join(&args, &name, &data).await?,
    };
    let agent = Agent::start(&name, &data, &identity, &args.node).await?;
    cx.out.line(format!("node {name} runs"));
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => cx.out.note("stopping; press Ctrl-C again to stop at once"),
    }
    tokio::select! {
        () = agent.shutdown() => {}
        _ = interrupt.recv() => bail!("stopped at once"),
    }
    drop(claim);
    Ok(Exit::Done)
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
