//! A node whose cluster is elsewhere.

use std::time::Duration;

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
    pub async fn start(name: &str, data: &DataDir, identity: &Identity) -> Result<Self> {
        let node = node(name, data, identity.client().await?).await?;
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

/// Starts a node that keeps its things in `node/` of the data directory.
///
/// # Errors
/// When the runtime or the node's directories cannot be used.
pub async fn node(name: &str, data: &DataDir, client: kube::Client) -> Result<Node> {
    let dir = data.join("node");
    let settings = wasmk_runtime::Settings::new(dir.join("runtime"));
    let runtime = wasmk_runtime::Runtime::new(settings).context("the WebAssembly runtime cannot start")?;
    let node = Node::start(wasmk_node::Settings::new(name, &dir), client, WasmEngine::new(runtime)).await;
    node.context("the node cannot start")
}
