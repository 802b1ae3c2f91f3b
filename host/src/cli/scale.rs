//! `wasmk scale`: set how many replicas there should be.

use anyhow::{Result, bail};
use http::Method;
use serde_json::json;

use super::{Context, Exit, api::Api, resources::Resources, selection};

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// TYPE NAME... or TYPE/NAME...
    #[arg(value_name = "TYPE", required = true)]
    words: Vec<String>,
    /// The wanted number
    #[arg(long)]
    replicas: u32,
    /// Only if there are that many now
    #[arg(long, value_name = "N")]
    current_replicas: Option<u32>,
}

pub(super) async fn run(args: Args, cx: &Context) -> Result<Exit> {
    let api = Api::new(cx.client().await?);
    let resources = Resources::discover(&api).await?;
    for selection in selection::read(&resources, &args.words)? {
        if selection.names.is_empty() {
            bail!("name the {} to scale", selection.resource.singular);
        }
        for name in &selection.names {
            let path = format!("{}/{name}/scale", selection.resource.path(Some(api.default_namespace())));
            let mut scale = api.get(&path).await?;
            let now = scale["spec"]["replicas"].as_u64().unwrap_or(0);
            if let Some(wanted) = args.current_replicas.filter(|n| u64::from(*n) != now) {
                bail!("Expected replicas to be {wanted}, was {now}");
            }
            scale["spec"]["replicas"] = json!(args.replicas);
            if args.current_replicas.is_none()
                && let Some(metadata) = scale["metadata"].as_object_mut()
            {
                // Whatever else has changed meanwhile, for instance by its controller, the number is wanted.
                metadata.shift_remove("resourceVersion");
            }
            api.send(Method::PUT, &path, &scale).await?;
            cx.out.line(format!("{} scaled", selection.resource.named(name)));
        }
    }
    Ok(Exit::Done)
}
