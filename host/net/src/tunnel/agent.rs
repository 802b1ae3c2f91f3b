//! The agent's end: dials out, keeps the link, answers the streams that the server opens, and opens some itself.

use std::{io, sync::Arc, time::Duration};

use futures::StreamExt;
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::{Status, transport::Channel};

use super::{
    TunnelStream,
    mux::{Mux, OF_AGENT, QUEUE},
    proto::{Frame, Hello, frame::Kind, tunnel_client::TunnelClient},
};

/// First wait before dialling again.
const BACKOFF_FIRST: Duration = Duration::from_millis(250);
/// Longest wait before dialling again.
const BACKOFF_LAST: Duration = Duration::from_secs(30);
/// A link that held so long makes the next failure count as a first one.
const STEADY: Duration = Duration::from_secs(30);

/// The agent's way to the server, as long as there is a link. Clones are the same way.
#[derive(Clone)]
pub struct Uplink(Arc<watch::Sender<Option<Mux>>>);

impl Default for Uplink {
    fn default() -> Self {
        Self(Arc::new(watch::Sender::new(None)))
    }
}

impl Uplink {
    /// Opens a stream to the server.
    ///
    /// # Errors
    /// `NotConnected` when there is no link now, `QuotaExceeded` when it carries all the streams it may.
    pub async fn open(&self) -> io::Result<TunnelStream> {
        let link = self.0.borrow().clone();
        let none = || io::Error::new(io::ErrorKind::NotConnected, "there is no tunnel to the server");
        link.ok_or_else(none)?.open().await
    }

    /// Waits until there is a link.
    pub async fn up(&self) {
        self.until(true).await;
    }

    /// Waits until there is none.
    pub async fn down(&self) {
        self.until(false).await;
    }

    async fn until(&self, up: bool) {
        // The sender is here: the wait cannot fail.
        let _ = self.0.subscribe().wait_for(|link| link.is_some() == up).await;
    }
}

/// Keeps a link of `node` over `channel` until told to stop, dialling again whenever it breaks.
/// Each stream the server opens goes to `handler`, in a task of its own; `uplink` opens others. The channel should
/// have HTTP/2 keep-alive on, so that a dead connection is noticed.
pub async fn run<F, H>(channel: Channel, node: String, handler: H, uplink: Uplink, stop: CancellationToken)
where
    F: Future<Output = ()> + Send + 'static,
    H: Fn(TunnelStream) -> F + Send + Sync + 'static,
{
    let handler = Arc::new(handler);
    let mut wait = BACKOFF_FIRST;
    loop {
        let began = tokio::time::Instant::now();
        let outcome = tokio::select! {
            () = stop.cancelled() => return,
            outcome = link(channel.clone(), &node, &*handler, &uplink) => outcome,
        };
        if began.elapsed() >= STEADY {
            wait = BACKOFF_FIRST;
        }
        match outcome {
            Ok(()) => tracing::info!(%node, "the tunnel to the server was closed"),
            Err(error) => tracing::info!(%node, %error, "no tunnel to the server"),
        }
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(wait) => {}
        }
        wait = (wait * 2).min(BACKOFF_LAST);
    }
}

/// One link, from hello to its end.
async fn link<F, H>(channel: Channel, node: &str, handler: &H, uplink: &Uplink) -> Result<(), Status>
where
    F: Future<Output = ()> + Send + 'static,
    H: Fn(TunnelStream) -> F,
{
    let (out, outgoing) = mpsc::channel(QUEUE);
    let hello = Frame { stream: 0, kind: Some(Kind::Hello(Hello { node: node.into() })) };
    out.send(hello).await.map_err(|_| Status::internal("the queue of the tunnel is closed"))?;
    let mux = Mux::new(out, OF_AGENT);
    // Dropping this future (the agent stops) must end the streams too.
    let _guard = CloseOnDrop(mux.clone(), uplink);
    let over = mux.clone();
    let outgoing = ReceiverStream::new(outgoing).take_until(Box::pin(async move { over.closed().await }));
    let frames = TunnelClient::new(channel).link(outgoing).await?.into_inner();
    uplink.0.send_replace(Some(mux.clone()));
    mux.receive(frames, |stream| {
        tokio::spawn(handler(stream));
    })
    .await;
    Ok(())
}

struct CloseOnDrop<'a>(Mux, &'a Uplink);

impl Drop for CloseOnDrop<'_> {
    fn drop(&mut self) {
        self.1.0.send_replace(None);
        self.0.close();
    }
}
