//! How the API server reaches nodes: the one in this process directly, others through the tunnel
//! that their agent opened.

use std::{collections::HashMap, io};

use async_trait::async_trait;
use axum::Router;
use hyper_util::{rt::TokioIo, service::TowerToHyperService};
use parking_lot::RwLock;
use wasmk_apiserver::{NodeDialer, NodeStream};

/// Bytes in flight in each direction of a stream to the node in this process.
const BUFFER: usize = 64 << 10;

/// Every node that can be reached.
#[derive(Default)]
pub struct Links {
    local: RwLock<HashMap<String, Router>>,
}

impl Links {
    /// A node of this process, by its HTTP API.
    pub fn add_local(&self, node: &str, router: Router) {
        self.local.write().insert(node.into(), router);
    }
}

#[async_trait]
impl NodeDialer for Links {
    async fn dial(&self, node: &str) -> io::Result<Box<dyn NodeStream>> {
        let local = self.local.read().get(node).cloned();
        let Some(router) = local else {
            return Err(io::Error::new(io::ErrorKind::NotConnected, format!("node {node} is not connected")));
        };
        let (ours, theirs) = tokio::io::duplex(BUFFER);
        tokio::spawn(async move {
            let service = TowerToHyperService::new(router);
            let connection =
                hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(theirs), service);
            if let Err(e) = connection.with_upgrades().await {
                tracing::debug!(error = %e, "a stream to this node ended early");
            }
        });
        Ok(Box::new(ours))
    }
}
