//! `wasmk logs`: what a pod's containers printed.

use anyhow::{Context as _, Result, bail};
use futures::{StreamExt, TryStreamExt, stream};
use http_body_util::BodyExt;
use serde_json::Value;
use tokio_util::{codec, io::StreamReader};

use super::{
    Context, Exit,
    api::Api,
    output::Output,
    pods::{self, text},
    selection::with_query,
    wait::duration,
};

/// Most pods whose logs are followed at once.
const MAX_PODS: usize = 50;
/// Longest line, in bytes.
const MAX_LINE: usize = 1 << 20;

#[derive(Clone, Debug, clap::Args)]
pub(super) struct Args {
    /// POD, or TYPE/NAME of something that has pods
    #[arg(value_name = "POD", required_unless_present = "selector")]
    pod: Option<String>,
    /// The container [default: the first]
    #[arg(short, long, value_name = "NAME")]
    container: Option<String>,
    /// All containers
    #[arg(long)]
    all_containers: bool,
    /// Go on as lines are written
    #[arg(short, long)]
    follow: bool,
    /// Of the container's previous run
    #[arg(short, long)]
    previous: bool,
    /// Of all pods with these labels
    #[arg(short = 'l', long, value_name = "SELECTOR")]
    selector: Option<String>,
    /// Only so many lines from the end
    #[arg(long, value_name = "LINES")]
    tail: Option<i64>,
    /// Only lines newer than a duration like 5s, 2m or 3h
    #[arg(long, value_name = "DURATION")]
    since: Option<String>,
    /// A time before each line
    #[arg(long)]
    timestamps: bool,
    /// `[pod/NAME/CONTAINER]` before each line
    #[arg(long)]
    prefix: bool,
    /// Only so many bytes
    #[arg(long, value_name = "BYTES")]
    limit_bytes: Option<i64>,
}

pub(super) async fn run(args: Args, cx: &Context) -> Result<Exit> {
    let api = Api::new(cx.client().await?);
    let pods = pods(&api, &args).await?;
    let mut sources = Vec::new();
    for pod in &pods {
        for container in containers(pod, &args)? {
            sources.push((text(&pod["metadata"]["name"]), container));
        }
    }
    if sources.len() > MAX_PODS {
        bail!(
            "{} containers match, at most {MAX_PODS} can be read at once; choose fewer with -l",
            sources.len()
        );
    }
    let several = sources.len() > 1;
    let concurrency = if args.follow { sources.len().max(1) } else { 1 };
    stream::iter(sources.into_iter().map(Ok))
        .try_for_each_concurrent(concurrency, |(pod, container)| {
            let prefix =
                if args.prefix && several { format!("[pod/{pod}/{container}] ") } else { String::new() };
            print(&api, &cx.out, &args, pod, container, prefix)
        })
        .await?;
    Ok(Exit::Done)
}

async fn pods(api: &Api, args: &Args) -> Result<Vec<Value>> {
    if let Some(word) = &args.pod {
        return Ok(vec![pods::one(api, word).await?]);
    }
    let path = format!("/api/v1/namespaces/{}/pods", api.default_namespace());
    pods::listed(api, &path, args.selector.as_deref().unwrap_or("")).await
}

fn containers(pod: &Value, args: &Args) -> Result<Vec<String>> {
    let of = |list: &str| -> Vec<String> {
        pod["spec"][list].as_array().into_iter().flatten().map(|c| text(&c["name"])).collect()
    };
    let all: Vec<String> = of("initContainers").into_iter().chain(of("containers")).collect();
    if args.all_containers {
        return Ok(all);
    }
    match &args.container {
        Some(name) if all.contains(name) => Ok(vec![name.clone()]),
        Some(name) => {
            bail!(
                "container {name} is not valid for pod {}; choose one of {}",
                text(&pod["metadata"]["name"]),
                all.join(", ")
            )
        }
        None => Ok(of("containers").into_iter().take(1).collect()),
    }
}

async fn print(
    api: &Api,
    out: &Output,
    args: &Args,
    pod: String,
    container: String,
    prefix: String,
) -> Result<()> {
    let number = |n: Option<i64>| n.filter(|n| *n >= 0).map(|n| n.to_string()).unwrap_or_default();
    let flag = |on: bool| if on { "true" } else { "" };
    let tail = number(args.tail.or(args.selector.as_ref().map(|_| if args.follow { 10 } else { -1 })));
    let since = args.since.as_deref().map(duration).transpose().context("--since")?;
    let since = since.map(|s| s.as_secs().max(1).to_string()).unwrap_or_default();
    let limit = number(args.limit_bytes);
    let query = [
        ("container", &*container),
        ("follow", flag(args.follow)),
        ("previous", flag(args.previous)),
        ("timestamps", flag(args.timestamps)),
        ("tailLines", &tail),
        ("sinceSeconds", &since),
        ("limitBytes", &limit),
    ];
    let path = format!("/api/v1/namespaces/{}/pods/{pod}/log", api.default_namespace());
    let body = api.stream(&with_query(&path, &query), "*/*").await?;
    let mut chunks = body.into_data_stream();
    if prefix.is_empty() {
        while let Some(chunk) = chunks.try_next().await? {
            out.text(&String::from_utf8_lossy(&chunk));
        }
        return Ok(());
    }
    let reader = StreamReader::new(chunks.map_err(std::io::Error::other));
    let mut lines = codec::FramedRead::new(reader, codec::LinesCodec::new_with_max_length(MAX_LINE));
    while let Some(line) = lines.next().await {
        out.line(format!("{prefix}{}", line?));
    }
    Ok(())
}
