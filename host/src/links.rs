//! How the API server reaches nodes: the one in this process directly, others through the tunnel
//! that their agent opened; and how these agents' pods reach functions.

use std::{collections::HashMap, io, net::SocketAddr};

use async_trait::async_trait;
use axum::Router;
use parking_lot::RwLock;
use tokio::{io::copy_bidirectional, net::TcpStream};
use wasmk_apiserver::{ApiServer, NodeDialer, NodeStream};
use wasmk_net::tunnel;

/// Bytes in flight in each direction of a stream to the node in this process.
const BUFFER: usize = 64 << 10;
/// The tunnel's path among the API's.
const TUNNEL: &str = "/wasmk.tunnel.v1.Tunnel/Link";

/// Every node that can be reached.
#[derive(Default)]
pub(crate) struct Links {
    local: RwLock<HashMap<String, Router>>,
    tunnel: tunnel::Server,
}

impl Links {
    /// A node of this process, by its HTTP API.
    pub(crate) fn add_local(&self, node: &str, router: Router) {
        self.local.write().insert(node.into(), router);
    }

    /// The API's router with the tunnel's route beside it; only a node's certificate opens a tunnel.
    pub(crate) fn mounted_on(&self, api: &ApiServer) -> Router {
        let tunnel = self.tunnel.service(api.node_identifier());
        api.router().route_service(TUNNEL, tunnel)
    }

    /// Leads the connections that agents pass on through their tunnels to the gateway.
    pub(crate) fn lead(&self, gateway: SocketAddr) {
        self.tunnel.on_stream(move |mut stream| {
            tokio::spawn(async move {
                let passed = async {
                    let mut there = TcpStream::connect(gateway).await?;
                    there.set_nodelay(true)?;
                    copy_bidirectional(&mut stream, &mut there).await
                };
                if let Err(error) = passed.await {
                    tracing::debug!(%error, "a connection from an agent to the gateway broke off");
                }
            });
        });
    }

    /// Ends all tunnels.
    pub(crate) fn close(&self) {
        self.tunnel.close();
    }
}

#[async_trait]
impl NodeDialer for Links {
    async fn dial(&self, node: &str) -> io::Result<Box<dyn NodeStream>> {
        let local = self.local.read().get(node).cloned();
        let Some(router) = local else { return Ok(Box::new(self.tunnel.dial(node).await?)) };
        let (ours, theirs) = tokio::io::duplex(BUFFER);
        tokio::spawn(wasmk_node::serve_stream(router, theirs));
        Ok(Box::new(ours))
    }
}
