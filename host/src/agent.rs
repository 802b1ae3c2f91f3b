//! A node whose cluster is elsewhere.

use std::time::Duration;

use anyhow::{Context, Result};
use wasmk_node::{Node, wasm::WasmEngine};

use crate::{data_dir::DataDir, join::Identity};

/// Longest time for pods to end when the agent stops.
const STOP: Duration = Duration::from_secs(30);

/// A running agent.
pub struct Agent {
    node: Node,
}

impl Agent {
    /// Starts the node and keeps it connected. Does not wait for the cluster.
    ///
    /// # Errors
    /// When the runtime or the node's directories cannot be used.
    pub async fn start(name: &str, data: &DataDir, identity: &Identity) -> Result<Self> {
        let client = identity.client().await?;
        let node = node(name, data, client).await?;
        Ok(Self { node })
    }

    /// Stops pods and tasks.
    pub async fn shutdown(self) {
        self.node.shutdown(STOP).await;
    }
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
