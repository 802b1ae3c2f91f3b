//! `wasmk fn deploy`: build, push, apply, and wait until the function can be called.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};
use http::Method;
use serde_json::{Map, Value, json};

use super::{
    super::{Context, Exit, api::Api, selection::with_query},
    build, endpoint,
    new::check_name,
    path, push, wait,
};

#[derive(Debug, clap::Args)]
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
    /// Most memory an instance may use, for instance 64Mi
    #[arg(long, value_name = "AMOUNT")]
    memory: Option<String>,
    /// Seconds a request may take
    #[arg(long, value_name = "SECONDS")]
    timeout: Option<u32>,
    /// Fewest instances accounted for
    #[arg(long, value_name = "N")]
    min_scale: Option<u32>,
    /// Most instances
    #[arg(long, value_name = "N")]
    max_scale: Option<u32>,
    /// How long it counts as active after a request, for instance 30s
    #[arg(long, value_name = "DURATION")]
    window: Option<String>,
    /// Return without waiting until it is ready
    #[arg(long)]
    no_wait: bool,
}

pub(in super::super) async fn run(args: Args, cx: &Context) -> Result<Exit> {
    let name = name(&args)?;
    check_name(&name)?;
    let variables = args.env.iter().map(|pair| variable(pair)).collect::<Result<Vec<_>>>()?;
    let api = Api::new(cx.client().await?);
    let image = match &args.image {
        Some(image) => image.clone(),
        None => pushed(&args.path, &name, &api, cx).await?,
    };
    let service = service(&name, &image, variables, &args);
    let query = [("fieldManager", "wasmk"), ("force", "true")];
    let target = with_query(&path(api.default_namespace(), &name), &query);
    api.send_as(Method::PATCH, &target, "application/apply-patch+yaml", &service).await?;
    if args.no_wait {
        cx.out.line(format!("service.serving.knative.dev/{name} applied"));
        return Ok(Exit::Done);
    }
    let spinner = build::spinner(cx, &format!("starting {name}"));
    let ready = wait::until_ready(&api, &name).await;
    spinner.finish_and_clear();
    let url = ready?;
    cx.out.line(&url);
    let host = url.split_once("://").map_or(url.as_str(), |(_, host)| host);
    if let Ok(gateway) = endpoint(&api, "gateway").await {
        cx.out.note(format!("call it: curl -H 'Host: {host}' http://{gateway}"));
    }
    Ok(Exit::Done)
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

fn variable(pair: &str) -> Result<Value> {
    match pair.split_once('=') {
        Some((name, value)) if !name.is_empty() => Ok(json!({"name": name, "value": value})),
        _ => bail!("--env {pair}: NAME=VALUE was expected"),
    }
}

async fn pushed(source: &Path, name: &str, api: &Api, cx: &Context) -> Result<String> {
    let file = if source.is_dir() { build::build(source, None, cx)? } else { source.to_path_buf() };
    let bytes = std::fs::read(&file).with_context(|| format!("cannot read {}", file.display()))?;
    let registry = endpoint(api, "registry").await?;
    let repository = format!("{registry}/{}/{name}", api.default_namespace());
    push::push(&repository, bytes)
        .await
        .with_context(|| format!("cannot push {} to {repository}", file.display()))
}

/// The Service of these arguments. What is not asked for is left out, and so to others or to defaults.
fn service(name: &str, image: &str, env: Vec<Value>, args: &Args) -> Value {
    let mut container = json!({"image": image, "name": "user-container"});
    if !env.is_empty() {
        container["env"] = env.into();
    }
    if let Some(memory) = &args.memory {
        container["resources"] = json!({"limits": {"memory": memory}});
    }
    let mut spec = json!({"containers": [container]});
    if let Some(seconds) = args.timeout {
        spec["timeoutSeconds"] = seconds.into();
    }
    let scale = [
        ("min-scale", args.min_scale.map(|n| n.to_string())),
        ("max-scale", args.max_scale.map(|n| n.to_string())),
        ("window", args.window.clone()),
    ];
    let annotations: Map<String, Value> = scale
        .into_iter()
        .filter_map(|(key, value)| Some((format!("autoscaling.knative.dev/{key}"), value?.into())))
        .collect();
    let mut template = json!({"spec": spec});
    if !annotations.is_empty() {
        template["metadata"] = json!({"annotations": annotations});
    }
    json!({
        "apiVersion": "serving.knative.dev/v1",
        "kind": "Service",
        "metadata": {"name": name},
        "spec": {"template": template},
    })
}
