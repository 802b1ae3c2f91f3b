//! Passes datagrams on; each client keeps its endpoint while datagrams go either way.

use std::{collections::HashMap, io, net::SocketAddr, sync::Arc, time::Duration};

use tokio::{net::UdpSocket, sync::mpsc, time::timeout};
use tokio_util::sync::CancellationToken;

use super::balance::Balancer;

/// Clients of one service port at a time; datagrams of more are dropped.
const SESSIONS: usize = 1024;
/// A client without datagrams for so long is forgotten.
const IDLE: Duration = Duration::from_secs(60);
/// Datagrams that wait for one client's endpoint; more are dropped, as a network would.
const QUEUE: usize = 64;
/// Largest datagram.
const DATAGRAM: usize = 65_535;

/// Receives until told to stop.
pub(super) async fn serve(socket: UdpSocket, balancer: Arc<Balancer>, stop: CancellationToken) {
    let socket = Arc::new(socket);
    let mut sessions: HashMap<SocketAddr, mpsc::Sender<Vec<u8>>> = HashMap::new();
    let mut buffer = vec![0; DATAGRAM];
    loop {
        let received = tokio::select! {
            () = stop.cancelled() => return,
            received = socket.recv_from(&mut buffer) => received,
        };
        // An error belongs to an earlier datagram that nobody took.
        let Ok((length, client)) = received else { continue };
        let datagram = buffer[..length].to_vec();
        let open = sessions.get(&client).is_some_and(|s| !s.is_closed());
        if !open {
            sessions.retain(|_, s| !s.is_closed());
            if sessions.len() >= SESSIONS {
                continue;
            }
            let Some(endpoint) = balancer.choose(client.ip()).first().copied() else { continue };
            balancer.connected(client.ip(), endpoint);
            let (queue, datagrams) = mpsc::channel(QUEUE);
            tokio::spawn(session(socket.clone(), client, endpoint, datagrams, stop.clone()));
            sessions.insert(client, queue);
        }
        if let Some(queue) = sessions.get(&client) {
            let _ = queue.try_send(datagram);
        }
    }
}

async fn session(
    front: Arc<UdpSocket>,
    client: SocketAddr,
    endpoint: SocketAddr,
    mut datagrams: mpsc::Receiver<Vec<u8>>,
    stop: CancellationToken,
) {
    let work = async {
        let local: SocketAddr =
            if endpoint.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" }.parse().map_err(io::Error::other)?;
        let back = UdpSocket::bind(local).await?;
        back.connect(endpoint).await?;
        let mut buffer = vec![0; DATAGRAM];
        loop {
            let step = async {
                tokio::select! {
                    datagram = datagrams.recv() => match datagram {
                        Some(datagram) => back.send(&datagram).await.map(|_| true),
                        None => Ok(false),
                    },
                    received = back.recv(&mut buffer) => {
                        front.send_to(&buffer[..received?], client).await.map(|_| true)
                    }
                }
            };
            match timeout(IDLE, step).await {
                Ok(Ok(true)) => {}
                Ok(Ok(false)) | Err(_) => return Ok(()),
                Ok(Err(error)) => return Err(error),
            }
        }
    };
    let ended: io::Result<()> = tokio::select! {
        () = stop.cancelled() => return,
        ended = work => ended,
    };
    if let Err(error) = ended {
        tracing::trace!(%error, %client, %endpoint, "datagrams of a client broke off");
    }
}
