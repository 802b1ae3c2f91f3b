//! A node whose cluster is elsewhere.

use std::{path::PathBuf, str::FromStr, time::Duration};

use anyhow::{Context, Result};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Identity as TlsIdentity};
use wasmk_net::tunnel;
use wasmk_node::{Node, wasm::WasmEngine};

use crate::{data_dir::DataDir, join::Identity};

/// Longest time for pods to end when the agent stops.
const STOP: Duration = Duration::from_secs(30);
/// Silence after which the connection to the cluster is tried with a ping.
const KEEP_ALIVE: Duration = Duration::from_secs(20);
/// Longest wait for a connection to the cluster.
const CONNECT: Duration = Duration::from_secs(10);

/// A running agent.
pub struct Agent {
    node: Node,
    stop: CancellationToken,
    tasks: TaskTracker,
}

impl Agent {
    /// Starts the node and keeps it connected. Does not wait for the cluster.
    ///
    /// # Errors
    /// When the runtime, the node's directories or its credentials cannot be used.
    pub async fn start(
        name: &str,
        data: &DataDir,
        identity: &Identity,
        options: &NodeOptions,
    ) -> Result<Self> {
        let node = node(name, data, identity.client().await?, options).await?;
        let (stop, tasks) = (CancellationToken::new(), TaskTracker::new());
        let router = node.router();
        let serve = move |stream| wasmk_node::serve_stream(router.clone(), stream);
        tasks.spawn(tunnel::run(channel(identity)?, name.to_string(), serve, stop.clone()));
        tasks.close();
        Ok(Self { node, stop, tasks })
    }

    /// Stops pods and tasks.
    pub async fn shutdown(self) {
        self.node.shutdown(STOP).await;
        self.stop.cancel();
        self.tasks.wait().await;
    }
}

/// A connection to the cluster by the node's certificate, made when it is needed.
fn channel(identity: &Identity) -> Result<Channel> {
    let (server, ca, pair) = identity.parts()?;
    let tls = ClientTlsConfig::new()
        .ca_certificate(Certificate::from_pem(ca))
        .identity(TlsIdentity::from_pem(pair.cert, pair.key));
    let endpoint = Channel::from_shared(server)?
        .tls_config(tls)?
        .connect_timeout(CONNECT)
        .http2_keep_alive_interval(KEEP_ALIVE)
        .keep_alive_while_idle(true);
    Ok(endpoint.connect_lazy())
}

/// Where a container runtime usually is.
const RUNTIME_SOCKETS: [&str; 2] = ["/run/containerd/containerd.sock", "/run/crio/crio.sock"];

/// What a node is told by flags.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct NodeOptions {
    /// Socket of the container runtime for OCI containers, `unix:///...`, or `none` [default: containerd's or
    /// CRI-O's, where this user may use it]
    #[arg(long, value_name = "URL")]
    pub container_runtime_endpoint: Option<Endpoint>,
    /// Directory of pod manifests that the node runs by itself (static pods)
    #[arg(long, value_name = "DIR")]
    pub pod_manifest_path: Option<PathBuf>,
    /// Pods on the node at a time
    #[arg(long, value_name = "N", default_value_t = wasmk_node::DEFAULT_MAX_PODS)]
    pub max_pods: u32,
}

/// A container runtime's socket, or that there is none.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Endpoint {
    /// No containers.
    None,
    /// At that path.
    Socket(PathBuf),
}

impl FromStr for Endpoint {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let path = text.strip_prefix("unix://").unwrap_or(text);
        match path {
            "none" => Ok(Self::None),
            path if path.starts_with('/') => Ok(Self::Socket(path.into())),
            _ => Err("`unix:///path/to/socket` or `none` was expected".into()),
        }
    }
}

impl NodeOptions {
    /// The socket that is named, or a usual one that answers.
    fn socket(&self) -> Option<PathBuf> {
        match &self.container_runtime_endpoint {
            Some(Endpoint::Socket(path)) => Some(path.clone()),
            Some(Endpoint::None) => None,
            None => {
                let usual = RUNTIME_SOCKETS.iter().map(PathBuf::from);
                usual.into_iter().find(|p| std::os::unix::net::UnixStream::connect(p).is_ok())
            }
        }
    }
}

/// Starts a node that keeps its things in `node/` of the data directory.
///
/// # Errors
/// When the runtime or the node's directories cannot be used.
pub async fn node(name: &str, data: &DataDir, client: kube::Client, options: &NodeOptions) -> Result<Node> {
    let dir = data.join("node");
    let settings = wasmk_runtime::Settings::new(dir.join("runtime"));
    let runtime = wasmk_runtime::Runtime::new(settings).context("the WebAssembly runtime cannot start")?;
    let mut settings = wasmk_node::Settings::new(name, &dir);
    settings.container_runtime = options.socket();
    settings.manifests = options.pod_manifest_path.clone();
    settings.max_pods = options.max_pods;
    let node = Node::start(settings, client, WasmEngine::new(runtime)).await;
    node.context("the node cannot start")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endpoints_are_paths() {
        for (text, expect) in [
            ("unix:///run/x.sock", Some(Endpoint::Socket("/run/x.sock".into()))),
            ("/run/x.sock", Some(Endpoint::Socket("/run/x.sock".into()))),
            ("none", Some(Endpoint::None)),
            ("tcp://127.0.0.1:1", None),
        ] {
            assert_eq!(text.parse().ok(), expect, "{text}");
        }
    }
}
