//! The agent's end: dials out, keeps the link, answers the streams that the server opens.

use std::{sync::Arc, time::Duration};

use futures::StreamExt;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::{Status, transport::Channel};

use super::{
    TunnelStream,
    mux::{Mux, QUEUE},
    proto::{Frame, Hello, frame::Kind, tunnel_client::TunnelClient},
};

/// First wait before dialling again.
const BACKOFF_FIRST: Duration = Duration::from_millis(250);
/// Longest wait before dialling again.
const BACKOFF_LAST: Duration = Duration::from_secs(30);
/// A link that held so long makes the next failure count as a first one.
const STEADY: Duration = Duration::from_secs(30);

/// Keeps a link of `node` over `channel` until told to stop, dialling again whenever it breaks.
/// Each stream the server opens goes to `handler`, in a task of its own. The channel should have
/// HTTP/2 keep-alive on, so that a dead connection is noticed.
pub async fn run<F, H>(channel: Channel, node: String, handler: H, stop: CancellationToken)
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
            outcome = link(channel.clone(), &node, &*handler) => outcome,
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
async fn link<F, H>(channel: Channel, node: &str, handler: &H) -> Result<(), Status>
where
    F: Future<Output = ()> + Send + 'static,
    H: Fn(TunnelStream) -> F,
{
    let (out, outgoing) = mpsc::channel(QUEUE);
    let hello = Frame { stream: 0, kind: Some(Kind::Hello(Hello { node: node.into() })) };
    out.send(hello).await.map_err(|_| Status::internal("the queue of the tunnel is closed"))?;
    let mux = Mux::new(out);
    // Dropping this future (the agent stops) must end the streams too.
    let _guard = CloseOnDrop(mux.clone());
    let over = mux.clone();
    let outgoing = ReceiverStream::new(outgoing).take_until(Box::pin(async move { over.closed().await }));
    let frames = TunnelClient::new(channel).link(outgoing).await?.into_inner();
    mux.receive(frames, |stream| {
        tokio::spawn(handler(stream));
    })
    .await;
    Ok(())
}

struct CloseOnDrop(Mux);

impl Drop for CloseOnDrop {
    fn drop(&mut self) {
        self.0.close();
    }
}
