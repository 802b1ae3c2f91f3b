//! The server's end: takes agents' links and opens streams in them.

use std::{
    collections::HashMap,
    io,
    sync::{Arc, OnceLock},
    time::Duration,
};

use futures::StreamExt;
use parking_lot::Mutex;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use super::{
    TunnelStream,
    mux::{Mux, OF_SERVER, QUEUE},
    proto::{
        Frame, Hello,
        frame::Kind,
        tunnel_server::{Tunnel, TunnelServer},
    },
};

/// An agent says hello within this time.
const HELLO: Duration = Duration::from_secs(10);
/// A stream is opened within this time, or the link is stuck.
const OPEN: Duration = Duration::from_secs(10);

/// Says which node a connection belongs to, from what authentication left in the request's
/// extensions; `None` refuses it.
pub type Identify = Arc<dyn Fn(&http::Extensions) -> Option<String> + Send + Sync>;

/// Takes a stream that an agent opened.
type Take = Box<dyn Fn(TunnelStream) + Send + Sync>;

/// The live links by node. Clones are the same registry.
#[derive(Clone, Default)]
pub struct Server {
    links: Arc<Mutex<HashMap<String, Mux>>>,
    take: Arc<OnceLock<Take>>,
}

impl Server {
    /// No links at first.
    pub fn new() -> Self {
        Self::default()
    }

    /// The gRPC service to mount on the listener that agents reach.
    pub fn service(&self, identify: Identify) -> TunnelServer<Service> {
        TunnelServer::new(Service { server: self.clone(), identify })
    }

    /// Says what becomes of streams that agents open; only the first counts. Until then they are closed.
    pub fn on_stream(&self, take: impl Fn(TunnelStream) + Send + Sync + 'static) {
        let _ = self.take.set(Box::new(take));
    }

    /// Opens a stream to a node's agent.
    ///
    /// # Errors
    /// `NotConnected` when the agent has no link now, `TimedOut` when its link is stuck,
    /// `QuotaExceeded` when it carries all the streams it may.
    pub async fn dial(&self, node: &str) -> io::Result<TunnelStream> {
        let link = self.links.lock().get(node).cloned();
        let link = link.ok_or_else(|| {
            io::Error::new(io::ErrorKind::NotConnected, format!("node {node} has no tunnel to this server"))
        })?;
        let opened = tokio::time::timeout(OPEN, link.open()).await;
        opened.unwrap_or_else(|_| {
            Err(io::Error::new(io::ErrorKind::TimedOut, format!("tunnel of node {node}")))
        })
    }

    /// Nodes with a live link.
    pub fn nodes(&self) -> Vec<String> {
        let mut nodes: Vec<String> = self.links.lock().keys().cloned().collect();
        nodes.sort();
        nodes
    }

    /// Ends all links.
    pub fn close(&self) {
        self.links.lock().drain().for_each(|(_, link)| link.close());
    }

    /// Keeps a link until it is over. A newer link of the same node takes its place.
    fn keep(&self, node: String, link: Mux, frames: Streaming<Frame>) {
        if let Some(old) = self.links.lock().insert(node.clone(), link.clone()) {
            old.close();
        }
        let server = self.clone();
        tokio::spawn(async move {
            let opened = |stream| match server.take.get() {
                Some(take) => take(stream),
                None => drop(stream),
            };
            link.receive(frames, opened).await;
            let mut links = server.links.lock();
            if links.get(&node).is_some_and(Mux::is_closed) {
                links.remove(&node);
            }
        });
    }
}

/// The gRPC service of a [`Server`].
pub struct Service {
    server: Server,
    identify: Identify,
}

#[tonic::async_trait]
impl Tunnel for Service {
    type LinkStream = std::pin::Pin<Box<dyn futures::Stream<Item = Result<Frame, Status>> + Send>>;

    async fn link(&self, request: Request<Streaming<Frame>>) -> Result<Response<Self::LinkStream>, Status> {
        let who = (self.identify)(request.extensions());
        let node = who.ok_or_else(|| Status::unauthenticated("the connection belongs to no node"))?;
        let mut frames = request.into_inner();
        let first = tokio::time::timeout(HELLO, frames.message()).await;
        let first = first.map_err(|_| Status::deadline_exceeded("no hello"))??;
        match first.and_then(|f| f.kind) {
            Some(Kind::Hello(Hello { node: said })) if said == node => {}
            Some(Kind::Hello(Hello { node: said })) => {
                let text = format!("the connection belongs to node {node}, not to {said}");
                return Err(Status::permission_denied(text));
            }
            _ => return Err(Status::invalid_argument("the first frame must be hello")),
        }
        let (out, outgoing) = mpsc::channel(QUEUE);
        let link = Mux::new(out, OF_SERVER);
        self.server.keep(node, link.clone(), frames);
        let until = async move { link.closed().await };
        let outgoing = ReceiverStream::new(outgoing).map(Ok).take_until(Box::pin(until));
        Ok(Response::new(Box::pin(outgoing)))
    }
}
