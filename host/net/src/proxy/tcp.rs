//! Passes TCP connections on.

use std::{io, net::SocketAddr, sync::Arc, time::Duration};

use tokio::{
    net::{TcpListener, TcpStream},
    sync::Semaphore,
    time::timeout,
};
use tokio_util::sync::CancellationToken;

use super::balance::Balancer;

/// Endpoints tried for one connection.
const TRIES: usize = 3;
/// Longest wait for an endpoint to take the connection.
const CONNECT: Duration = Duration::from_secs(5);
/// Rest after a failed accept (usually: no file descriptors left).
const ACCEPT_REST: Duration = Duration::from_millis(100);
/// Bytes under way per direction of a connection.
const BUFFER: usize = 16 * 1024;

/// Accepts until told to stop; connections under way go on.
pub(super) async fn serve(
    listener: TcpListener,
    balancer: Arc<Balancer>,
    permits: Arc<Semaphore>,
    stop: CancellationToken,
) {
    loop {
        let accepted = tokio::select! {
            () = stop.cancelled() => return,
            accepted = accept(&listener, &permits) => accepted,
        };
        match accepted {
            Ok((stream, client, permit)) => {
                let balancer = balancer.clone();
                tokio::spawn(async move {
                    pass(stream, client, &balancer).await;
                    drop(permit);
                });
            }
            Err(error) => {
                tracing::debug!(%error, service = balancer.service(), "cannot accept a connection");
                tokio::time::sleep(ACCEPT_REST).await;
            }
        }
    }
}

/// A permit first, so that at the bound connections wait in the system's queue.
async fn accept(
    listener: &TcpListener,
    permits: &Arc<Semaphore>,
) -> io::Result<(TcpStream, SocketAddr, tokio::sync::OwnedSemaphorePermit)> {
    let permit = permits.clone().acquire_owned().await.map_err(io::Error::other)?;
    let (stream, client) = listener.accept().await?;
    Ok((stream, client, permit))
}

async fn pass(mut stream: TcpStream, client: SocketAddr, balancer: &Balancer) {
    for endpoint in balancer.choose(client.ip()).into_iter().take(TRIES) {
        let Ok(Ok(mut backend)) = timeout(CONNECT, TcpStream::connect(endpoint)).await else { continue };
        balancer.connected(client.ip(), endpoint);
        // Small answers must not wait for more.
        let _ = (stream.set_nodelay(true), backend.set_nodelay(true));
        // Copies each direction to its own end, so that a half-closed connection works.
        let copied =
            tokio::io::copy_bidirectional_with_sizes(&mut stream, &mut backend, BUFFER, BUFFER).await;
        if let Err(error) = copied {
            tracing::trace!(%error, service = balancer.service(), "a connection broke off");
        }
        return;
    }
    // Nobody answers: a reset tells the client so at once.
    let _ = stream.set_zero_linger();
}
