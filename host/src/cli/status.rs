//! `wasmk status`: whether it runs, and where it listens.

use std::{path::PathBuf, time::Duration};

use anyhow::Result;
use k8s_openapi::api::core::v1::Node;
use kube::{Api, Client, Config, config::Kubeconfig};
use serde_json::json;

use super::{Context, Exit, client::default_data_dir};
use crate::data_dir::{DataDir, Running};

/// Longest wait for an answer of the API.
const PATIENCE: Duration = Duration::from_secs(5);

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Its data directory
    #[arg(long, value_name = "DIR", default_value_os_t = default_data_dir())]
    data_dir: PathBuf,
    /// How to print
    #[arg(short, long, value_enum, default_value_t)]
    output: Format,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, clap::ValueEnum)]
enum Format {
    #[default]
    Text,
    Json,
}

pub(super) async fn run(args: Args, cx: &Context) -> Result<Exit> {
    let data = DataDir::new(args.data_dir);
    let running = data.running()?;
    let ready = match &running {
        Some(running) => is_ready(&data, running).await,
        None => false,
    };
    match (args.output, running) {
        (Format::Json, running) => cx.out.line(as_json(running.as_ref(), ready).to_string()),
        (Format::Text, None) => cx.out.line(format!("nothing is running in {}", data.path().display())),
        (Format::Text, Some(running)) => {
            cx.out.columns(&rows(&running, ready));
            cx.out.line(format!("kubeconfig   {}", data.kubeconfig().display()));
        }
    }
    Ok(if ready { Exit::Done } else { Exit::No })
}

fn as_json(running: Option<&Running>, ready: bool) -> serde_json::Value {
    let Some(running) = running else { return json!({"ready": false}) };
    json!({
        "ready": ready,
        "pid": running.pid,
        "api": format!("https://{}", running.api),
        "gateway": format!("http://{}", running.gateway),
        "registry": format!("http://{}", running.registry),
        "ingress": running.ingress.map(|address| format!("http://{address}")),
        "ingressTls": running.ingress_tls.map(|address| format!("https://{address}")),
    })
}

/// The addresses as lines of a table; `up` prints the same.
pub(super) fn rows(running: &Running, ready: bool) -> Vec<Vec<String>> {
    let state = if ready { "ready" } else { "starting" };
    let ingress =
        running.ingress.map_or_else(|| "off: its port was not to be had".into(), |a| format!("http://{a}"));
    let ingress =
        running.ingress_tls.map_or_else(|| ingress.clone(), |secure| format!("{ingress}, https://{secure}"));
    [
        ("status", format!("{state} (process {})", running.pid)),
        ("api", format!("https://{}", running.api)),
        ("gateway", format!("http://{}", running.gateway)),
        ("registry", format!("http://{}", running.registry)),
        ("ingress", ingress),
    ]
    .map(|(name, value)| vec![format!("{name:10}"), value])
    .into()
}

/// Whether the API answers and the process's own node, if it runs one, takes pods.
pub(super) async fn is_ready(data: &DataDir, running: &Running) -> bool {
    let check = async {
        let config = Kubeconfig::read_from(data.kubeconfig()).ok()?;
        let config = Config::from_custom_kubeconfig(config, &Default::default()).await.ok()?;
        let client = Client::try_from(config).ok()?;
        let request = http::Request::get("/readyz").body(Vec::new()).ok()?;
        client.request_text(request).await.ok()?;
        let Some(name) = &running.node else { return Some(true) };
        Some(node_is_ready(&Api::<Node>::all(client).get(name).await.ok()?))
    };
    tokio::time::timeout(PATIENCE, check).await.ok().flatten().unwrap_or(false)
}

fn node_is_ready(node: &Node) -> bool {
    let conditions = node.status.iter().flat_map(|s| s.conditions.iter().flatten());
    conditions.into_iter().any(|c| c.type_ == "Ready" && c.status == "True")
}
