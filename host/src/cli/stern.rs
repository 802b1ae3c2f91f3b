//! `wasmk stern`: the logs of many pods as one, each line with where it comes from; new pods join by themselves.

use std::{
    collections::HashSet,
    hash::{DefaultHasher, Hash, Hasher},
    sync::Arc,
};

use anyhow::{Context as _, Result};
use futures::{StreamExt, TryStreamExt};
use regex::Regex;
use serde_json::Value;
use tokio::sync::Semaphore;

use super::{
    Context, Exit,
    api::{Api, Refusal},
    output::Output,
    pods::{self, text},
    selection::with_query,
    wait::duration,
};

/// Most containers followed at once; more wait for one to end.
const MAX_STREAMS: usize = 100;
/// Colours of pods' names, as terminals number them.
const COLOURS: [u8; 6] = [32, 33, 34, 35, 36, 91];

#[derive(Clone, Debug, clap::Args)]
pub(super) struct Args {
    /// A regular expression of pods' names
    #[arg(value_name = "POD-QUERY", required_unless_present = "selector")]
    query: Option<String>,
    /// A regular expression of containers' names
    #[arg(short, long, value_name = "REGEX", default_value = "")]
    container: String,
    /// Only pods with these labels
    #[arg(short = 'l', long, value_name = "SELECTOR")]
    selector: Option<String>,
    /// Over all namespaces
    #[arg(short = 'A', long)]
    all_namespaces: bool,
    /// So many lines of each container's past; -1 for all
    #[arg(long, value_name = "LINES", default_value_t = -1, allow_hyphen_values = true)]
    tail: i64,
    /// Only lines newer than a duration like 5s, 2m or 3h
    #[arg(long, value_name = "DURATION")]
    since: Option<String>,
    /// A time before each line
    #[arg(short, long)]
    timestamps: bool,
    /// End with what there is now
    #[arg(long)]
    no_follow: bool,
}

/// What all followers share.
struct Tail {
    api: Api,
    out: Output,
    args: Args,
    pods: Regex,
    containers: Regex,
    since: Option<u64>,
    colours: bool,
    permits: Semaphore,
}

pub(super) async fn run(args: Args, cx: &Context) -> Result<Exit> {
    let regex =
        |text: &str| Regex::new(text).with_context(|| format!("{text:?} is not a regular expression"));
    let since = args.since.as_deref().map(duration).transpose().context("--since")?;
    let tail = Arc::new(Tail {
        api: Api::new(cx.client().await?),
        out: Output::default(),
        pods: regex(args.query.as_deref().unwrap_or(""))?,
        containers: regex(&args.container)?,
        since: since.map(|s| s.as_secs().max(1)),
        colours: cx.out.is_terminal(),
        permits: Semaphore::new(MAX_STREAMS),
        args,
    });
    if tail.args.no_follow {
        for pod in pods::listed(&tail.api, &tail.path(), tail.args.selector.as_deref().unwrap_or("")).await? {
            for source in tail.sources(&pod) {
                tail.print(&source).await?;
            }
        }
        return Ok(Exit::Done);
    }
    follow(&tail).await
}

/// One run of one container.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Source {
    namespace: String,
    pod: String,
    uid: String,
    container: String,
    restarts: u64,
}

impl Tail {
    fn path(&self) -> String {
        match self.args.all_namespaces {
            true => "/api/v1/pods".into(),
            false => format!("/api/v1/namespaces/{}/pods", self.api.default_namespace()),
        }
    }

    /// The containers of a pod that have something to read, if the pod is one of those wanted.
    fn sources(&self, pod: &Value) -> Vec<Source> {
        let metadata = &pod["metadata"];
        if !self.pods.is_match(metadata["name"].as_str().unwrap_or("")) {
            return Vec::new();
        }
        let all = ["initContainerStatuses", "containerStatuses"];
        let statuses = all.iter().flat_map(|list| pod["status"][list].as_array().into_iter().flatten());
        let begun = statuses.filter(|s| s["state"].get("waiting").is_none() && s["state"].is_object());
        begun
            .filter(|s| self.containers.is_match(s["name"].as_str().unwrap_or("")))
            .map(|s| Source {
                namespace: text(&metadata["namespace"]),
                pod: text(&metadata["name"]),
                uid: text(&metadata["uid"]),
                container: text(&s["name"]),
                restarts: s["restartCount"].as_u64().unwrap_or(0),
            })
            .collect()
    }

    async fn print(&self, source: &Source) -> Result<()> {
        let _permit = self.permits.acquire().await?;
        let flag = |on: bool| if on { "true" } else { "" };
        let tail = if self.args.tail >= 0 { self.args.tail.to_string() } else { String::new() };
        let since = self.since.map(|s| s.to_string()).unwrap_or_default();
        let query = [
            ("container", source.container.as_str()),
            ("follow", flag(!self.args.no_follow)),
            ("timestamps", flag(self.args.timestamps)),
            ("tailLines", &tail),
            ("sinceSeconds", &since),
        ];
        let path = format!("/api/v1/namespaces/{}/pods/{}/log", source.namespace, source.pod);
        let mut lines = self.api.lines(&with_query(&path, &query)).await?;
        let prefix = self.prefix(source);
        while let Some(line) = lines.try_next().await? {
            self.out.line(format!("{prefix} {line}"));
        }
        Ok(())
    }

    fn prefix(&self, source: &Source) -> String {
        let namespace =
            if self.args.all_namespaces { format!("{} ", source.namespace) } else { String::new() };
        let plain = format!("{namespace}{} {}", source.pod, source.container);
        if !self.colours {
            return plain;
        }
        let mut hasher = DefaultHasher::new();
        source.pod.hash(&mut hasher);
        let colour = COLOURS[(hasher.finish() % COLOURS.len() as u64) as usize];
        format!("\x1b[{colour}m{plain}\x1b[0m")
    }
}

/// Watches pods, and reads each container that begins to run, until interrupted.
async fn follow(tail: &Arc<Tail>) -> Result<Exit> {
    let selector = tail.args.selector.clone().unwrap_or_default();
    let path = with_query(&tail.path(), &[("watch", "true"), ("labelSelector", &selector)]);
    let mut known: HashSet<Source> = HashSet::new();
    loop {
        let mut events = tail.api.events(&path, "application/json").await?;
        // A watch ends after a while and is begun again, with what is there by then.
        while let Some(event) = events.next().await {
            match event {
                Ok((kind, pod)) if kind == "DELETED" => gone(tail, &pod, &mut known),
                Ok((_, pod)) => {
                    tail.sources(&pod).into_iter().for_each(|source| join(tail, source, &mut known));
                }
                Err(error) if error.is::<Refusal>() => return Err(error),
                Err(_) => break,
            }
        }
    }
}

fn join(tail: &Arc<Tail>, source: Source, known: &mut HashSet<Source>) {
    if !known.insert(source.clone()) {
        return;
    }
    tail.out.note(format!("+ {} › {}", source.pod, source.container));
    let tail = tail.clone();
    tokio::spawn(async move {
        if let Err(error) = tail.print(&source).await {
            tail.out.note(format!("{} › {}: {error:#}", source.pod, source.container));
        }
    });
}

fn gone(tail: &Tail, pod: &Value, known: &mut HashSet<Source>) {
    let uid = text(&pod["metadata"]["uid"]);
    let before = known.len();
    known.retain(|source| source.uid != uid);
    if known.len() < before {
        tail.out.note(format!("- {}", text(&pod["metadata"]["name"])));
    }
}
