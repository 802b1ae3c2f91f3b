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
        (Format::Json, None) => cx.out.line(json!({"ready": false}).to_string()),
        (Format::Json, Some(running)) => cx.out.line(as_json(&data, &running, ready)?.to_string()),
        (Format::Text, None) => cx.out.line(format!("nothing is running in {}", data.path().display())),
        (Format::Text, Some(running)) => {
            cx.out.columns(&rows(&data, &running, ready)?);
            cx.out.line(format!("kubeconfig   {}", data.kubeconfig().display()));
        }
    }
    Ok(if ready { Exit::Done } else { Exit::No })
}

/// The process of each agent, while it has one, with the agent's name and log.
fn agents(data: &DataDir, running: &Running) -> Result<Vec<(String, Option<u32>, PathBuf)>> {
    let all = running.agents.iter().enumerate();
    all.map(|(index, name)| {
        let process = data.agent(index).running_agent()?.map(|agent| agent.pid);
        Ok((name.clone(), process, data.agent_log(index)))
    })
    .collect()
}

fn as_json(data: &DataDir, running: &Running, ready: bool) -> Result<serde_json::Value> {
    let agents: Vec<_> = agents(data, running)?
        .into_iter()
        .map(|(node, pid, log)| json!({"node": node, "pid": pid, "log": log}))
        .collect();
    Ok(json!({
        "ready": ready,
        "pid": running.pid,
        "api": format!("https://{}", running.api),
        "gateway": format!("http://{}", running.gateway),
        "registry": format!("http://{}", running.registry),
        "ingress": running.ingress.map(|address| format!("http://{address}")),
        "ingressTls": running.ingress_tls.map(|address| format!("https://{address}")),
        "node": running.node,
        "agents": agents,
    }))
}

fn ingress(running: &Running) -> String {
    let plain = running.ingress.map(|address| format!("http://{address}"));
    let secure = running.ingress_tls.map(|address| format!("https://{address}"));
    match [plain, secure].into_iter().flatten().collect::<Vec<_>>().join(", ") {
        none if none.is_empty() && running.without_ingress => "off".into(),
        none if none.is_empty() => "off: its port was not to be had".into(),
        some => some,
    }
}

/// The addresses as lines of a table, and the agents; `up` prints the same.
pub(super) fn rows(data: &DataDir, running: &Running, ready: bool) -> Result<Vec<Vec<String>>> {
    let state = if ready { "ready" } else { "starting" };
    let agents = agents(data, running)?.into_iter().map(|(node, process, log)| {
        let doing = process.map_or_else(
            || format!("{node} (starts; its output is in {})", log.display()),
            |process| format!("{node} (process {process})"),
        );
        ("agent", doing)
    });
    let addresses = [
        ("status", format!("{state} (process {})", running.pid)),
        ("api", format!("https://{}", running.api)),
        ("gateway", format!("http://{}", running.gateway)),
        ("registry", format!("http://{}", running.registry)),
        ("ingress", ingress(running)),
    ];
    let all = addresses.into_iter().chain(agents);
    Ok(all.map(|(name, value)| vec![format!("{name:10}"), value]).collect())
}

/// Whether the API answers and the nodes on this machine, if there are any, take pods.
pub(super) async fn is_ready(data: &DataDir, running: &Running) -> bool {
    let check = async {
        let config = Kubeconfig::read_from(data.kubeconfig()).ok()?;
        let config = Config::from_custom_kubeconfig(config, &Default::default()).await.ok()?;
        let client = Client::try_from(config).ok()?;
        let request = http::Request::get("/readyz").body(Vec::new()).ok()?;
        client.request_text(request).await.ok()?;
        let nodes = Api::<Node>::all(client);
        for name in running.node.iter().chain(&running.agents) {
            if !node_is_ready(&nodes.get(name).await.ok()?) {
                return Some(false);
            }
        }
        Some(agents(data, running).ok()?.iter().all(|(_, process, _)| process.is_some()))
    };
    tokio::time::timeout(PATIENCE, check).await.ok().flatten().unwrap_or(false)
}

fn node_is_ready(node: &Node) -> bool {
    let conditions = node.status.iter().flat_map(|s| s.conditions.iter().flatten());
    conditions.into_iter().any(|c| c.type_ == "Ready" && c.status == "True")
}
