//! Passes TCP connections on.

use std::{
    net::{IpAddr, SocketAddr, SocketAddrV4},
    sync::Arc,
    time::Duration,
};

use tokio::{io::AsyncWriteExt, net::TcpStream, time::timeout};
use tokio_util::sync::CancellationToken;
use wasmk_api::proxy_protocol;

use super::balance::Balancer;
use crate::{bind::Acceptor, plan::Protocol, policy::Gate};

/// Endpoints tried for one connection.
const TRIES: usize = 3;
/// Longest wait for an endpoint to take the connection.
const CONNECT: Duration = Duration::from_secs(5);
/// Bytes under way per direction of a connection.
const BUFFER: usize = 16 * 1024;

/// Accepts until told to stop; connections under way go on.
pub(super) async fn serve(acceptor: Acceptor, balancer: Arc<Balancer>, gate: Gate, stop: CancellationToken) {
    loop {
        let (stream, client, permit) = tokio::select! {
            () = stop.cancelled() => return,
            accepted = acceptor.next() => accepted,
        };
        let (balancer, gate) = (balancer.clone(), gate.clone());
        tokio::spawn(async move {
            pass(stream, client, &balancer, &gate).await;
            drop(permit);
        });
    }
}

async fn pass(mut stream: TcpStream, client: SocketAddr, balancer: &Balancer, gate: &Gate) {
    for endpoint in balancer.choose(client.ip()).into_iter().take(TRIES) {
        // Whom the choice falls on decides: a network that forbids it would not choose another either.
        if !gate.allows(client.ip(), endpoint, Protocol::Tcp) {
            return gate.policies().hold(stream);
        }
        let connected = timeout(CONNECT, gate.policies().connect(endpoint)).await;
        let Ok(Ok(mut backend)) = connected else { continue };
        balancer.connected(client.ip(), endpoint);
        // Small requests must not wait for more.
        let _ = backend.set_nodelay(true);
        if balancer.tells_client()
            && let (IpAddr::V4(ip), SocketAddr::V4(to)) = (gate.client(client.ip()), endpoint)
        {
            let header = proxy_protocol::header(SocketAddrV4::new(ip, client.port()), to);
            // Where that fails the connection is over, and what follows says so.
            let _ = backend.write_all(&header).await;
        }
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
