//! `wasmk fn invoke`: one request through the gateway.

use std::{io::Read, time::Duration};

use anyhow::{Context as _, Result, bail};
use http::{Method, Request, header};
use http_body_util::{BodyExt, Full};
use hyper_util::{client::legacy::Client, rt::TokioExecutor};

use super::{
    super::{Context, Exit, api::Api},
    endpoint, path,
};

/// Longest wait for the answer.
const PATIENCE: Duration = Duration::from_secs(600);
/// Largest body read from standard input, in bytes.
const MAX_BODY: u64 = 64 << 20;

#[derive(Debug, clap::Args)]
pub(in super::super) struct Args {
    /// The function
    name: String,
    /// The path and query
    #[arg(long, default_value = "/")]
    path: String,
    /// The method [default: GET, or POST with --data]
    #[arg(short = 'X', long)]
    method: Option<Method>,
    /// The body; `-` reads standard input
    #[arg(short, long)]
    data: Option<String>,
    /// A header; may be repeated
    #[arg(short = 'H', long, value_name = "NAME: VALUE")]
    header: Vec<String>,
}

pub(in super::super) async fn run(args: Args, cx: &Context) -> Result<Exit> {
    let api = Api::new(cx.client().await?);
    let gateway = endpoint(&api, "gateway").await?;
    let service = api.get(&path(api.default_namespace(), &args.name)).await?;
    let url = service["status"]["url"].as_str().with_context(|| format!("{} has no URL yet", args.name))?;
    let host = url.split_once("://").map_or(url, |(_, host)| host);
    let method = args.method.clone().unwrap_or(if args.data.is_some() { Method::POST } else { Method::GET });
    let mut request = Request::builder()
        .method(method)
        .uri(format!("http://{gateway}{}", args.path))
        .header(header::HOST, host);
    for line in &args.header {
        let (name, value) =
            line.split_once(':').with_context(|| format!("--header {line}: NAME: VALUE was expected"))?;
        request = request.header(name.trim(), value.trim());
    }
    let request = request.body(Full::<bytes::Bytes>::from(body(args.data.as_deref())?))?;
    let client = Client::builder(TokioExecutor::new()).build_http();
    let answer = tokio::time::timeout(PATIENCE, client.request(request))
        .await
        .context("the function did not answer")?;
    let answer = answer.with_context(|| format!("cannot reach the gateway at {gateway}"))?;
    let status = answer.status();
    let mut body = answer.into_body();
    while let Some(frame) = body.frame().await {
        if let Ok(data) = frame?.into_data() {
            cx.out.bytes(&data);
        }
    }
    if status.is_client_error() || status.is_server_error() {
        bail!("{} answered {status}", args.name);
    }
    Ok(Exit::Done)
}

fn body(data: Option<&str>) -> Result<Vec<u8>> {
    match data {
        Some("-") => {
            let mut bytes = Vec::new();
            std::io::stdin()
                .lock()
                .take(MAX_BODY)
                .read_to_end(&mut bytes)
                .context("cannot read standard input")?;
            Ok(bytes)
        }
        text => Ok(text.unwrap_or("").as_bytes().to_vec()),
    }
}
