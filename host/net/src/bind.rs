//! Opens listening sockets, and takes connections from them.

use std::{io, net::SocketAddr, sync::Arc, time::Duration};

use tokio::{
    net::{TcpListener, TcpSocket, TcpStream, UdpSocket},
    sync::{OwnedSemaphorePermit, Semaphore},
};

/// Connections the system queues for a listener.
const BACKLOG: u32 = 1024;
/// Rest after a failed accept (usually: no file descriptors left).
const ACCEPT_REST: Duration = Duration::from_millis(100);

/// Takes connections from a listener, no more at a time than there are permits.
pub struct Acceptor {
    listener: TcpListener,
    permits: Arc<Semaphore>,
}

impl Acceptor {
    /// From `listener`, which may share the permits with others.
    pub fn new(listener: TcpListener, permits: Arc<Semaphore>) -> Self {
        Self { listener, permits }
    }

    /// The next connection, with the permit to be held as long as it lasts. At the bound connections wait
    /// in the system's queue. May be dropped at any time.
    pub async fn next(&self) -> (TcpStream, SocketAddr, OwnedSemaphorePermit) {
        loop {
            let Ok(permit) = self.permits.clone().acquire_owned().await else {
                // Nobody closes it; if somebody did, there would be no more connections.
                return std::future::pending().await;
            };
            match self.listener.accept().await {
                Ok((stream, client)) => {
                    // Small answers must not wait for more; a connection that has gone says so soon.
                    let _ = stream.set_nodelay(true);
                    return (stream, client, permit);
                }
                Err(error) => {
                    tracing::debug!(%error, "cannot accept a connection");
                    drop(permit);
                    tokio::time::sleep(ACCEPT_REST).await;
                }
            }
        }
    }
}

/// Listens for TCP. With `shared`, other processes that also share may listen on the same
/// address; the system spreads connections over them.
///
/// # Errors
/// What the system says.
pub fn tcp(address: SocketAddr, shared: bool) -> io::Result<TcpListener> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    socket.set_reuseaddr(true)?;
    if shared {
        socket.set_reuseport(true)?;
    }
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

/// Receives UDP, shared as [`tcp`] is.
///
/// # Errors
/// What the system says.
pub fn udp(address: SocketAddr, shared: bool) -> io::Result<UdpSocket> {
    use nix::sys::socket::{
        AddressFamily, SockFlag, SockType, SockaddrStorage, bind, setsockopt, socket, sockopt,
    };
    use std::os::fd::AsRawFd;

    let family = if address.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let fd = socket(family, SockType::Datagram, flags, None)?;
    if shared {
        setsockopt(&fd, sockopt::ReusePort, &true)?;
    }
    bind(fd.as_raw_fd(), &SockaddrStorage::from(address))?;
    UdpSocket::from_std(std::net::UdpSocket::from(fd))
}
