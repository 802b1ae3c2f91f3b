//! `wasmk fn logs`: what a function's instances printed, also while it is at zero.

use anyhow::{Result, bail};
use futures::TryStreamExt;
use http_body_util::BodyExt;

use super::{
    super::{
        Context, Exit,
        api::{Api, is_not_found},
        selection::with_query,
    },
    path,
};

#[derive(Debug, clap::Args)]
pub(in super::super) struct Args {
    /// The function
    name: String,
    /// Of this revision [default: the latest that is ready]
    #[arg(long)]
    revision: Option<String>,
    /// Go on as lines are written
    #[arg(short, long)]
    follow: bool,
    /// Only so many lines from the end
    #[arg(long, value_name = "LINES")]
    tail: Option<u32>,
}

pub(in super::super) async fn run(args: Args, cx: &Context) -> Result<Exit> {
    let api = Api::new(cx.client().await?);
    let service = api.get(&path(api.default_namespace(), &args.name)).await?;
    let latest = service["status"]["latestReadyRevisionName"].as_str();
    let Some(revision) = args.revision.as_deref().or(latest) else {
        bail!(
            "no revision of {} has been ready yet; `kubectl describe ksvc {}` tells why",
            args.name,
            args.name
        )
    };
    let tail = args.tail.map(|n| n.to_string()).unwrap_or_default();
    let query = [("follow", if args.follow { "true" } else { "" }), ("tailLines", &tail)];
    let nodes = api.get("/api/v1/nodes").await?;
    for node in nodes["items"].as_array().into_iter().flatten() {
        let node = node["metadata"]["name"].as_str().unwrap_or("");
        let path = format!("/api/v1/nodes/{node}/proxy/functionLogs/{}/{revision}", api.default_namespace());
        match api.stream(&with_query(&path, &query), "*/*").await {
            Err(e) if is_not_found(&e) => continue,
            body => {
                let mut chunks = body?.into_data_stream();
                while let Some(chunk) = chunks.try_next().await? {
                    cx.out.bytes(&chunk);
                }
                return Ok(Exit::Done);
            }
        }
    }
    Ok(Exit::Done)
}
