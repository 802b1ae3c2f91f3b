//! `wasmk fn deploy`: build, push, apply, and wait until the function can be called.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};
use http::Method;
use serde_json::{Map, Value, json};
use wasmk_api::per_request;

use super::{
    super::{Context, Exit, api::Api, selection::with_query},
    build, endpoint,
    new::check_name,
    path, push, traffic, wait,
};

/// How a core module begins; a component has another number.
const CORE_MODULE: &[u8] = b"\0asm\x01\0\0\0";

#[derive(Clone, Debug, clap::Args)]
pub(in super::super) struct Args {
    /// A function's directory, or a .wasm file
    #[arg(default_value = ".")]
    path: PathBuf,
    /// The function's name [default: the directory's or file's]
    #[arg(long)]
    name: Option<String>,
    /// An image that is in a registry already, instead of a path
    #[arg(long, value_name = "REFERENCE", conflicts_with = "path")]
    image: Option<String>,
    /// A variable of its environment; may be repeated
    #[arg(short, long, value_name = "NAME=VALUE")]
    env: Vec<String>,
    /// All of a Secret's or ConfigMap's keys as variables, for instance secret:keys; may be repeated
    #[arg(long, value_name = "secret:NAME|config-map:NAME")]
    env_from: Vec<String>,
    /// Most memory it may use, for instance 64Mi
    #[arg(long, value_name = "AMOUNT")]
    memory: Option<String>,
    /// Most CPU it may use, for instance 500m
    #[arg(long, value_name = "AMOUNT")]
    cpu: Option<String>,
    /// Most processor time of one request, in milliseconds
    #[arg(long, value_name = "MILLIS")]
    max_cpu_millis: Option<u32>,
    /// Most memory of one instance, for instance 16Mi; --memory is for all of them together
    #[arg(long, value_name = "AMOUNT")]
    max_memory: Option<String>,
    /// Most bytes that one request sends out by HTTP, for instance 1Mi
    #[arg(long, value_name = "AMOUNT")]
    max_egress: Option<String>,
    /// Most bytes of an answer, for instance 1Mi
    #[arg(long, value_name = "AMOUNT")]
    max_response: Option<String>,
    /// A store of keys and values that it may open; may be repeated
    #[arg(long, value_name = "NAME")]
    keyvalue: Vec<String>,
    /// A container of objects that it may use; may be repeated
    #[arg(long, value_name = "NAME")]
    blobstore: Vec<String>,
    /// Start the program for each request, as CGI says: for commands, and what a core module is deployed with
    #[arg(long)]
    wagi: bool,
    /// Use instances again, as far as the component declares that they can be
    #[arg(long)]
    reuse: bool,
    /// The port its container listens on [default: 8080]; no matter to WebAssembly
    #[arg(long, value_name = "PORT")]
    port: Option<u16>,
    /// Seconds a request may take
    #[arg(long, value_name = "SECONDS")]
    timeout: Option<u32>,
    /// Most requests an instance of a container answers at a time; 0 for no limit
    #[arg(long, value_name = "N", alias = "concurrency-limit")]
    concurrency: Option<u32>,
    /// Fewest instances accounted for
    #[arg(long, value_name = "N", alias = "scale-min")]
    min_scale: Option<u32>,
    /// Most instances
    #[arg(long, value_name = "N", alias = "scale-max")]
    max_scale: Option<u32>,
    /// Requests at a time (or per second, with --metric rps) that one instance is loaded with
    #[arg(long, value_name = "N", alias = "scale-target", alias = "concurrency-target")]
    target: Option<f64>,
    /// What instances are scaled by: concurrency or rps
    #[arg(long, value_name = "METRIC", alias = "scale-metric")]
    metric: Option<String>,
    /// How long it counts as active after a request, for instance 30s
    #[arg(long, value_name = "DURATION", alias = "scale-window", alias = "autoscale-window")]
    window: Option<String>,
    /// Another annotation of its revisions; may be repeated
    #[arg(long, value_name = "KEY=VALUE")]
    annotation: Vec<String>,
    /// Keep it away from the outside
    #[arg(long)]
    cluster_local: bool,
    /// Name the revision NAME-SUFFIX
    #[arg(long, value_name = "SUFFIX", alias = "revision-name")]
    revision: Option<String>,
    /// Give the new revision a host name of its own, TAG-NAME.…
    #[arg(long, value_name = "TAG")]
    tag: Option<String>,
    /// Send the new revision only this share of requests; the rest stays where it is
    #[arg(long, value_name = "PERCENT", value_parser = clap::value_parser!(u32).range(0..=100))]
    set_traffic: Option<u32>,
    /// Return without waiting until it is ready
    #[arg(long)]
    no_wait: bool,
    /// How to print
    #[arg(short, long, value_enum)]
    output: Option<Format>,
}

#[derive(Clone, Copy, Debug, clap::ValueEnum)]
enum Format {
    Json,
}

impl Args {
    /// The directory it is built from, if it is.
    pub(super) fn directory(&self) -> Option<&Path> {
        (self.image.is_none() && self.path.is_dir()).then_some(self.path.as_path())
    }
}

pub(in super::super) async fn run(mut args: Args, cx: &Context) -> Result<Exit> {
    let name = name(&args)?;
    check_name(&name)?;
    let api = Api::new(cx.client().await?);
    let place = path(api.default_namespace(), &name);
    let image = match &args.image {
        Some(image) => image.clone(),
        None => {
            let (image, is_module) = pushed(&args.path, &name, &api, cx).await?;
            args.wagi |= is_module;
            image
        }
    };
    let service = service(&name, &image, &args)?;
    hold(&args, &name, &api).await?;
    let query = [("fieldManager", "wasmk"), ("force", "true")];
    api.send_as(Method::PATCH, &with_query(&place, &query), "application/apply-patch+yaml", &service).await?;
    if args.no_wait {
        cx.out.line(format!("service.serving.knative.dev/{name} applied"));
        return Ok(Exit::Done);
    }
    let spinner = build::spinner(cx, &format!("starting {name}"));
    let ready = wait::until_ready(&api, &name).await;
    spinner.finish_and_clear();
    let mut url = ready?;
    if args.tag.is_some() || args.set_traffic.is_some() {
        url = share(&args, &name, &api).await?;
    }
    if args.output.is_some() {
        cx.out.line(serde_json::to_string_pretty(&api.get(&place).await?)?);
        return Ok(Exit::Done);
    }
    cx.out.line(&url);
    let host = url.split_once("://").map_or(url.as_str(), |(_, host)| host);
    if let Ok(gateway) = endpoint(&api, "gateway").await {
        cx.out.note(format!("call it: curl -H 'Host: {host}' http://{gateway}"));
    }
    Ok(Exit::Done)
}

/// Keeps requests where they go now while a revision is made that is to get only a part of them.
async fn hold(args: &Args, name: &str, api: &Api) -> Result<()> {
    if args.set_traffic.is_none() && args.tag.is_none() {
        return Ok(());
    }
    let Ok(service) = api.get(&path(api.default_namespace(), name)).await else { return Ok(()) };
    let shares: Vec<(String, u32)> = shares(&service["status"]["traffic"]).collect();
    if shares.is_empty() || args.set_traffic.is_none() {
        return Ok(());
    }
    traffic::set(api, name, traffic::targets(&service["spec"]["traffic"], &shares, &[], &[])?).await
}

/// Gives the newest revision its share and its tag; returns the tag's URL, or the function's.
async fn share(args: &Args, name: &str, api: &Api) -> Result<String> {
    let place = path(api.default_namespace(), name);
    let service = api.get(&place).await?;
    let newest = service["status"]["latestReadyRevisionName"].as_str().unwrap_or("").to_string();
    let now = &service["spec"]["traffic"];
    let shares = args.set_traffic.map(|percent| split(&service["status"]["traffic"], &newest, percent));
    let tags: Vec<(String, String)> = args.tag.iter().map(|tag| (newest.clone(), tag.clone())).collect();
    traffic::set(api, name, traffic::targets(now, &shares.unwrap_or_default(), &tags, &[])?).await?;
    let url = wait::until_ready(api, name).await?;
    let service = api.get(&place).await?;
    let mut targets = service["status"]["traffic"].as_array().into_iter().flatten();
    let tagged = targets.find(|t| args.tag.is_some() && t["tag"].as_str() == args.tag.as_deref());
    Ok(tagged.and_then(|t| t["url"].as_str()).map_or(url, String::from))
}

/// What each revision gets at present, of those that get something.
fn shares(traffic: &Value) -> impl Iterator<Item = (String, u32)> {
    let all = traffic.as_array().into_iter().flatten().filter_map(|target| {
        let percent = u32::try_from(target["percent"].as_u64()?).ok()?;
        Some((target["revisionName"].as_str()?.to_string(), percent))
    });
    all.filter(|(_, percent)| *percent > 0)
}

/// The shares when the newest revision gets so many percent and the others the rest, as they had it.
fn split(now: &Value, newest: &str, percent: u32) -> Vec<(String, u32)> {
    let others: Vec<(String, u32)> = shares(now).filter(|(name, _)| name != newest).collect();
    let whole: u32 = others.iter().map(|(_, share)| share).sum();
    if whole == 0 {
        return vec![(newest.into(), 100)];
    }
    let rest = 100 - percent;
    let mut all: Vec<(String, u32)> =
        others.into_iter().map(|(name, share)| (name, rest * share / whole)).collect();
    // What rounding left over.
    let given: u32 = all.iter().map(|(_, share)| share).sum();
    all[0].1 += rest - given;
    all.insert(0, (newest.into(), percent));
    all
}

fn name(args: &Args) -> Result<String> {
    if let Some(name) = &args.name {
        return Ok(name.clone());
    }
    if args.image.is_some() {
        bail!("--image needs --name");
    }
    let path = args.path.canonicalize().with_context(|| format!("there is no {}", args.path.display()))?;
    let stem = if path.is_dir() { path.file_name() } else { path.file_stem() };
    Ok(stem.map(|s| s.to_string_lossy().to_lowercase().replace(['_', '.'], "-")).unwrap_or_default())
}

fn pair<'a>(flag: &str, text: &'a str) -> Result<(&'a str, &'a str)> {
    match text.split_once('=') {
        Some((name, value)) if !name.is_empty() => Ok((name, value)),
        _ => bail!("--{flag} {text}: NAME=VALUE was expected"),
    }
}

fn source(text: &str) -> Result<Value> {
    match text.split_once(':') {
        Some(("secret", name)) if !name.is_empty() => Ok(json!({"secretRef": {"name": name}})),
        Some(("config-map" | "cm", name)) if !name.is_empty() => Ok(json!({"configMapRef": {"name": name}})),
        _ => bail!("--env-from {text}: secret:NAME or config-map:NAME was expected"),
    }
}

/// The image that a path's program has become, and whether that is a core module: only by CGI can it be asked.
async fn pushed(source: &Path, name: &str, api: &Api, cx: &Context) -> Result<(String, bool)> {
    let file = if source.is_dir() { build::build(source, None, cx)? } else { source.to_path_buf() };
    let bytes = std::fs::read(&file).with_context(|| format!("cannot read {}", file.display()))?;
    let is_module = bytes.starts_with(CORE_MODULE);
    let registry = endpoint(api, "registry").await?;
    let repository = format!("{registry}/{}/{name}", api.default_namespace());
    let image = push::push(&repository, bytes).await;
    Ok((image.with_context(|| format!("cannot push {} to {repository}", file.display()))?, is_module))
}

/// The Service of these arguments. What is not asked for is left out, and so to others or to defaults.
fn service(name: &str, image: &str, args: &Args) -> Result<Value> {
    let mut spec = json!({"containers": [container(image, args)?]});
    if let Some(seconds) = args.timeout {
        spec["timeoutSeconds"] = seconds.into();
    }
    if let Some(most) = args.concurrency {
        spec["containerConcurrency"] = most.into();
    }
    let mut template = json!({"spec": spec});
    let annotations = annotations(args)?;
    if !annotations.is_empty() {
        template["metadata"] = json!({"annotations": annotations});
    }
    if let Some(suffix) = &args.revision {
        template["metadata"]["name"] = format!("{name}-{suffix}").into();
    }
    let mut metadata = json!({"name": name});
    if args.cluster_local {
        metadata["labels"] = json!({"networking.knative.dev/visibility": "cluster-local"});
    }
    Ok(json!({
        "apiVersion": "serving.knative.dev/v1",
        "kind": "Service",
        "metadata": metadata,
        "spec": {"template": template},
    }))
}

fn container(image: &str, args: &Args) -> Result<Value> {
    let mut container = json!({"image": image, "name": "user-container"});
    if !args.env.is_empty() {
        let variable =
            |text: &String| pair("env", text).map(|(name, value)| json!({"name": name, "value": value}));
        container["env"] = args.env.iter().map(variable).collect::<Result<Vec<_>>>()?.into();
    }
    if !args.env_from.is_empty() {
        container["envFrom"] = args.env_from.iter().map(|s| source(s)).collect::<Result<Vec<_>>>()?.into();
    }
    for (resource, amount) in [("memory", &args.memory), ("cpu", &args.cpu)] {
        if let Some(amount) = amount {
            container["resources"]["limits"][resource] = amount.clone().into();
        }
    }
    if let Some(port) = args.port {
        container["ports"] = json!([{"containerPort": port}]);
    }
    Ok(container)
}

fn annotations(args: &Args) -> Result<Map<String, Value>> {
    let scale = [
        ("min-scale", args.min_scale.map(|n| n.to_string())),
        ("max-scale", args.max_scale.map(|n| n.to_string())),
        ("target", args.target.map(|n| n.to_string())),
        ("metric", args.metric.clone()),
        ("window", args.window.clone()),
    ];
    let mut all: Map<String, Value> = scale
        .into_iter()
        .filter_map(|(key, value)| Some((format!("autoscaling.knative.dev/{key}"), value?.into())))
        .collect();
    let limits = [
        (per_request::MAX_CPU, args.max_cpu_millis.map(|n| n.to_string())),
        (per_request::MAX_MEMORY, args.max_memory.clone()),
        (per_request::MAX_EGRESS, args.max_egress.clone()),
        (per_request::MAX_RESPONSE, args.max_response.clone()),
        (per_request::INSTANCE_REUSE, args.reuse.then(|| "enabled".into())),
        (per_request::EXECUTOR, args.wagi.then(|| "wagi".into())),
        (per_request::KEYVALUE, (!args.keyvalue.is_empty()).then(|| args.keyvalue.join(","))),
        (per_request::BLOBSTORE, (!args.blobstore.is_empty()).then(|| args.blobstore.join(","))),
    ];
    all.extend(limits.into_iter().filter_map(|(key, value)| Some((key.into(), value?.into()))));
    for text in &args.annotation {
        let (key, value) = pair("annotation", text)?;
        all.insert(key.into(), value.into());
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_gets_its_share_and_the_others_the_rest() {
        let now = json!([{"revisionName": "a", "percent": 70}, {"revisionName": "b", "percent": 30}]);
        let share = |newest: &str, percent| split(&now, newest, percent);
        assert_eq!(share("c", 10), [("c".into(), 10), ("a".into(), 63), ("b".into(), 27)]);
        assert_eq!(share("c", 0), [("c".into(), 0), ("a".into(), 70), ("b".into(), 30)]);
        assert_eq!(share("c", 33).iter().map(|(_, p)| p).sum::<u32>(), 100);
        assert_eq!(split(&json!([]), "a", 10), [("a".into(), 100)]);
    }

    #[test]
    fn sources_of_variables() {
        assert_eq!(source("secret:keys").unwrap(), json!({"secretRef": {"name": "keys"}}));
        assert_eq!(source("config-map:x").unwrap(), json!({"configMapRef": {"name": "x"}}));
        assert!(source("keys").is_err() && source("secret:").is_err());
    }
}
