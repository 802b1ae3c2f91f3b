//! `wasmk token`: tokens that let machines join as nodes.

use std::time::Duration;

use anyhow::Result;
use clap::Subcommand;
use serde_json::Value;

use super::{Context, Exit, api::Api};
use crate::join;

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Make a token and print the command that joins a node
    Create(Create),
}

#[derive(Debug, clap::Args)]
pub(super) struct Create {
    /// Hours until it ends
    #[arg(long, default_value_t = 24, value_parser = clap::value_parser!(u64).range(1..=8760))]
    hours: u64,
    /// Only the token
    #[arg(short, long)]
    quiet: bool,
}

pub(super) async fn run(command: Command, cx: &Context) -> Result<Exit> {
    let Command::Create(args) = command;
    let client = cx.client().await?;
    let info = Api::new(client.clone()).get("/api/v1/namespaces/kube-public/configmaps/cluster-info").await?;
    let info: Value = serde_yaml::from_str(info["data"]["kubeconfig"].as_str().unwrap_or(""))?;
    let cluster = &info["clusters"][0]["cluster"];
    let ca = join::published_ca(&client).await?;
    let token = join::create_token(&client, &ca, Duration::from_secs(args.hours * 3600)).await?;
    if args.quiet {
        cx.out.line(token);
    } else {
        let server = cluster["server"].as_str().unwrap_or("");
        cx.out.line(format!("wasmk agent --server {server} --token {token}"));
    }
    Ok(Exit::Done)
}
