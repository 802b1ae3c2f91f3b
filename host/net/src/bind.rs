//! Opens listening sockets.

use std::{io, net::SocketAddr};

use tokio::net::{TcpListener, TcpSocket, UdpSocket};

/// Connections the system queues for a listener.
const BACKLOG: u32 = 1024;

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
