//! `wasmk version`: of this program, and of the server it talks to.

use anyhow::Result;
use serde_json::{Value, json};
use wasmk_machinery::yaml;

use super::{Context, Exit, api::Api};

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Ask no server
    #[arg(long)]
    client: bool,
    /// How to print
    #[arg(short, long, value_enum)]
    output: Option<Format>,
}

#[derive(Clone, Copy, Debug, PartialEq, clap::ValueEnum)]
enum Format {
    Json,
    Yaml,
}

pub(super) async fn run(args: Args, cx: &Context) -> Result<Exit> {
    let own = env!("CARGO_PKG_VERSION");
    let server: Option<Value> = match args.client {
        true => None,
        false => Some(Api::new(cx.client().await?).get("/version").await?),
    };
    match args.output {
        None => {
            cx.out.line(format!("Client Version: wasmk v{own}"));
            if let Some(server) = server {
                cx.out
                    .line(format!("Server Version: {}", server["gitVersion"].as_str().unwrap_or("unknown")));
            }
        }
        Some(format) => {
            let mut all = json!({"clientVersion": {"gitVersion": format!("v{own}")}});
            if let Some(server) = server {
                all["serverVersion"] = server;
            }
            cx.out.text(&match format {
                Format::Json => format!("{}\n", serde_json::to_string_pretty(&all)?),
                Format::Yaml => yaml::write(&all),
            });
        }
    }
    Ok(Exit::Done)
}
