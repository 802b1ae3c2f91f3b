//! `wasmk delete`: objects by name, selector or file, waiting until they are gone.

use std::time::Duration;

use anyhow::{Result, bail};
use http::Method;
use serde_json::{Map, Value, json};
use tokio::time::{Instant, sleep};

use super::{
    Context, Exit,
    api::{Api, is_not_found},
    manifests,
    resources::{Resource, Resources},
    selection::{self, with_query},
};

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// TYPE NAME..., TYPE/NAME..., or TYPE with --all or -l
    #[arg(value_name = "TYPE", required_unless_present = "filename")]
    words: Vec<String>,
    /// The objects of a file, a directory of files, a URL, or `-`; may be repeated
    #[arg(short, long, value_name = "FILE")]
    filename: Vec<String>,
    /// Also directories below a directory
    #[arg(short = 'R', long)]
    recursive: bool,
    /// Only objects with these labels
    #[arg(short = 'l', long, value_name = "SELECTOR")]
    selector: Option<String>,
    /// All objects of the type in the namespace
    #[arg(long)]
    all: bool,
    /// Over all namespaces
    #[arg(short = 'A', long)]
    all_namespaces: bool,
    /// No error for an object that is not there
    #[arg(long)]
    ignore_not_found: bool,
    /// Seconds given to pods to end
    #[arg(long, value_name = "SECONDS")]
    grace_period: Option<i64>,
    /// As good as at once: a second for pods to end
    #[arg(long, conflicts_with = "grace_period")]
    now: bool,
    /// Do not wait for pods to end (with --grace-period=0)
    #[arg(long)]
    force: bool,
    /// What happens to dependents
    #[arg(long, value_name = "POLICY", num_args = 0..=1, default_value = "background", default_missing_value = "background", require_equals = true)]
    cascade: Cascade,
    /// Wait until the objects are gone
    #[arg(long, default_value_t = true, num_args = 0..=1, default_missing_value = "true", require_equals = true)]
    wait: bool,
    /// Give up waiting after that many seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 3600)]
    timeout: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, clap::ValueEnum)]
enum Cascade {
    #[value(alias = "true")]
    Background,
    Foreground,
    #[value(alias = "false")]
    Orphan,
}

/// One object to delete.
struct Target {
    resource: Resource,
    name: String,
    path: String,
}

pub(super) async fn run(args: Args, cx: &Context) -> Result<Exit> {
    let api = Api::new(cx.client().await?);
    let resources = Resources::discover(&api).await?;
    let targets = targets(&api, &resources, &args).await?;
    if targets.is_empty() {
        cx.out.line("No resources found");
        return Ok(Exit::Done);
    }
    let options = options(&args);
    let mut waiting = Vec::new();
    for target in targets {
        match api.send(Method::DELETE, &target.path, &options).await {
            Err(e) if args.ignore_not_found && is_not_found(&e) => continue,
            answer => waiting.push((target.path, uid(&answer?))),
        }
        let forced = if args.force { " force" } else { "" };
        let named = target.resource.named(&target.name);
        let (kind, name) = named.split_once('/').unwrap_or((&named, ""));
        cx.out.line(format!("{kind} \"{name}\"{forced} deleted"));
    }
    if args.wait && !args.force {
        let deadline = Instant::now() + Duration::from_secs(args.timeout);
        for (path, uid) in waiting {
            gone(&api, &path, &uid, deadline).await?;
        }
    }
    Ok(Exit::Done)
}

async fn targets(api: &Api, resources: &Resources, args: &Args) -> Result<Vec<Target>> {
    let mut targets = Vec::new();
    for manifest in manifests::read(&args.filename, args.recursive).await? {
        let resource = manifest.resource(resources)?.clone();
        let path = manifest.path(&resource, api.default_namespace())?;
        targets.push(Target { resource, name: manifest.name, path });
    }
    if args.words.is_empty() {
        return Ok(targets);
    }
    let namespace = (!args.all_namespaces).then(|| api.default_namespace());
    for selection in selection::read(resources, &args.words)? {
        let resource = selection.resource;
        let path = resource.path(namespace);
        if !selection.names.is_empty() {
            targets.extend(selection.names.into_iter().map(|name| Target {
                resource: resource.clone(),
                path: format!("{path}/{name}"),
                name,
            }));
            continue;
        }
        if !args.all && args.selector.is_none() {
            bail!("resource(s) were provided, but no name was specified");
        }
        let list =
            api.get(&with_query(&path, &[("labelSelector", args.selector.as_deref().unwrap_or(""))])).await?;
        for item in list["items"].as_array().into_iter().flatten() {
            let name = item["metadata"]["name"].as_str().unwrap_or("").to_string();
            let path = resource.path(item["metadata"]["namespace"].as_str());
            targets.push(Target { resource: resource.clone(), path: format!("{path}/{name}"), name });
        }
    }
    Ok(targets)
}

fn options(args: &Args) -> Value {
    let mut options = Map::new();
    options.insert("kind".into(), "DeleteOptions".into());
    options.insert("apiVersion".into(), "v1".into());
    let policy = match args.cascade {
        Cascade::Background => "Background",
        Cascade::Foreground => "Foreground",
        Cascade::Orphan => "Orphan",
    };
    options.insert("propagationPolicy".into(), policy.into());
    let grace = if args.force { Some(args.grace_period.unwrap_or(0)) } else { args.grace_period };
    let grace = if args.now { Some(1) } else { grace };
    if let Some(seconds) = grace.filter(|s| *s >= 0) {
        options.insert("gracePeriodSeconds".into(), json!(seconds));
    }
    Value::Object(options)
}

/// The uid of the deleted object: in the object itself, or in the details of a `Status`.
fn uid(answer: &Value) -> String {
    let uid = answer["metadata"]["uid"].as_str().or_else(|| answer["details"]["uid"].as_str());
    uid.unwrap_or("").into()
}

async fn gone(api: &Api, path: &str, uid: &str, deadline: Instant) -> Result<()> {
    let mut pause = Duration::from_millis(10);
    loop {
        match api.get(path).await {
            Err(e) if is_not_found(&e) => return Ok(()),
            object if object.as_ref().is_ok_and(|o| o["metadata"]["uid"] != uid) => return Ok(()),
            object => drop(object?),
        }
        if Instant::now() > deadline {
            bail!("timed out waiting for the condition on {path}");
        }
        sleep(pause).await;
        pause = (pause * 2).min(Duration::from_secs(1));
    }
}
