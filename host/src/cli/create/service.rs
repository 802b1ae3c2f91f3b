//! Services without a workload to take them from.

use anyhow::{Context as _, Result, bail};
use serde_json::{Value, json};

use super::{super::Context, object};
use crate::cli::make::{self, Flags};

#[derive(Clone, Debug, clap::Subcommand)]
pub(super) enum Command {
    /// Reached inside the cluster
    Clusterip(ClusterIp),
    /// Reached at a port of every node
    Nodeport(NodePort),
    /// Reached at an address of its own from outside
    Loadbalancer(Ports),
    /// Another name for a host outside
    Externalname(ExternalName),
}

#[derive(Clone, Debug, clap::Args)]
pub(super) struct Ports {
    name: String,
    /// `PORT` or `PORT:TARGET`; may be repeated
    #[arg(long, value_name = "PORT[:TARGET]", value_delimiter = ',')]
    tcp: Vec<String>,
    #[command(flatten)]
    flags: Flags,
}

#[derive(Clone, Debug, clap::Args)]
pub(super) struct ClusterIp {
    #[command(flatten)]
    ports: Ports,
    /// An address of one's choice, or `None`
    #[arg(long)]
    clusterip: Option<String>,
}

#[derive(Clone, Debug, clap::Args)]
pub(super) struct NodePort {
    #[command(flatten)]
    ports: Ports,
    /// The port of the nodes
    #[arg(long)]
    node_port: Option<u16>,
}

#[derive(Clone, Debug, clap::Args)]
pub(super) struct ExternalName {
    #[command(flatten)]
    ports: Ports,
    /// The host's name
    #[arg(long)]
    external_name: String,
}

impl Command {
    pub(super) async fn run(self, cx: &Context) -> Result<()> {
        let (kind, ports) = match &self {
            Self::Clusterip(args) => ("ClusterIP", &args.ports),
            Self::Nodeport(args) => ("NodePort", &args.ports),
            Self::Loadbalancer(ports) => ("LoadBalancer", ports),
            Self::Externalname(args) => ("ExternalName", &args.ports),
        };
        let labels = json!({"app": ports.name});
        let mut service = object("v1", "Service", &ports.name);
        service["metadata"]["labels"] = labels.clone();
        service["spec"] = json!({"type": kind, "selector": labels});
        let list = ports.tcp.iter().map(|text| port(text)).collect::<Result<Vec<_>>>()?;
        if !list.is_empty() {
            service["spec"]["ports"] = list.into();
        }
        if let Self::Nodeport(NodePort { node_port: Some(_), .. }) = &self
            && ports.tcp.is_empty()
        {
            bail!("--node-port needs a port to lead to: give --tcp");
        }
        match &self {
            Self::Clusterip(ClusterIp { clusterip: Some(ip), .. }) => {
                service["spec"]["clusterIP"] = json!(ip)
            }
            Self::Nodeport(NodePort { node_port: Some(port), .. }) => {
                service["spec"]["ports"][0]["nodePort"] = json!(port);
            }
            Self::Externalname(args) => service["spec"]["externalName"] = json!(args.external_name),
            _ => {}
        }
        make::make(cx, &ports.flags, service).await
    }
}

/// `80`, `80:8080` or `80:http`.
fn port(text: &str) -> Result<Value> {
    let (port, target) = text.split_once(':').unwrap_or((text, text));
    let number: u16 = port.parse().with_context(|| format!("--tcp: {text} is not PORT or PORT:TARGET"))?;
    let target = target.parse::<u16>().map_or_else(|_| json!(target), |n| json!(n));
    Ok(json!({"name": text.replace(':', "-"), "port": number, "protocol": "TCP", "targetPort": target}))
}
