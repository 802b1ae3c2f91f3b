//! `wasmk logs`: what a pod's containers printed.

use anyhow::{Context as _, Result, bail};
use futures::{TryStreamExt, stream};
use http_body_util::BodyExt;
use serde_json::Value;

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
/// Lines of each pod of a selector, unless `--tail` says otherwise.
const SELECTED_LINES: i64 = 10;

#[derive(Clone, Debug, clap::Args)]
pub(super) struct Args {
    /// POD, or TYPE/NAME of something that has pods
    #[arg(value_name = "POD", required_unless_present = "selector")]
    pod: Option<String>,
    /// The container [default: as the pod's annotation says, or the first]
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
    /// Only lines after a time like 2030-01-31T15:00:00Z
    #[arg(long, value_name = "TIME", conflicts_with = "since")]
    since_time: Option<String>,
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
    let all: Vec<String> = ["initContainers", "containers", "ephemeralContainers"].map(of).concat();
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
        None => Ok(pods::default_container(pod).into_iter().collect()),
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
    let tail = number(args.tail.or(args.selector.as_ref().map(|_| SELECTED_LINES)));
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
        ("sinceTime", args.since_time.as_deref().unwrap_or("")),
        ("limitBytes", &limit),
    ];
    let path = format!("/api/v1/namespaces/{}/pods/{pod}/log", api.default_namespace());
    let path = with_query(&path, &query);
    if prefix.is_empty() {
        let mut chunks = api.stream(&path, "*/*").await?.into_data_stream();
        while let Some(chunk) = chunks.try_next().await? {
            // Whole characters need not come at once.
            out.bytes(&chunk);
        }
        return Ok(());
    }
    let mut lines = api.lines(&path).await?;
    while let Some(line) = lines.try_next().await? {
        out.line(format!("{prefix}{line}"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use clap::Parser;
    use serde_json::json;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        args: Args,
    }

    #[test]
    fn every_kind_of_container_can_be_read() {
        let one = |name: &str| json!([{"name": name}]);
        let pod = json!({"metadata": {"name": "p"}, "spec": {
            "containers": one("main"), "initContainers": one("init"), "ephemeralContainers": one("debug"),
        }});
        let chosen = |flags: &[&str]| {
            let words = ["logs", "p"].iter().chain(flags);
            containers(&pod, &Line::parse_from(words).args).map_err(|e| e.to_string())
        };
        for (flags, expect) in [
            (&[][..], &["main"][..]),
            (&["-c", "init"], &["init"]),
            (&["-c", "debug"], &["debug"]),
            (&["--all-containers"], &["init", "main", "debug"]),
        ] {
            assert_eq!(chosen(flags).unwrap(), expect, "{flags:?}");
        }
        assert!(chosen(&["-c", "none"]).unwrap_err().contains("choose one of init, main, debug"));
    }
}
