//! `wasmk fn delete`: functions with their revisions and pods.

use anyhow::Result;
use http::Method;
use serde_json::json;

use super::{
    super::{Context, Exit, api::Api},
    path,
};

#[derive(Debug, clap::Args)]
pub(in super::super) struct Args {
    /// The functions
    #[arg(required = true)]
    names: Vec<String>,
}

pub(in super::super) async fn run(args: Args, cx: &Context) -> Result<Exit> {
    let api = Api::new(cx.client().await?);
    let options = json!({"kind": "DeleteOptions", "apiVersion": "v1", "propagationPolicy": "Background"});
    for name in &args.names {
        api.send(Method::DELETE, &path(api.default_namespace(), name), &options).await?;
        cx.out.line(format!("function \"{name}\" deleted"));
    }
    Ok(Exit::Done)
}
