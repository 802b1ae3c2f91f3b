//! The gateway's door for the cluster: proxies that pass connections on to it begin by saying whose they are.

use std::{io, net::SocketAddr, time::Duration};

use tokio::{io::AsyncReadExt, net::TcpStream, time::sleep};
use wasmk_api::proxy_protocol::{LENGTH, begins, client};

/// Time between two looks for the rest of a header.
const PAUSE: Duration = Duration::from_millis(1);
/// As many bytes show that it is a header.
const CERTAIN: usize = 12;

/// Whose a connection is, if it begins by saying so; that is taken off it. Waits for its first bytes.
pub(super) async fn client_of(stream: &mut TcpStream) -> io::Result<Option<SocketAddr>> {
    let mut header = [0; LENGTH];
    loop {
        let seen = stream.peek(&mut header).await?;
        if seen == 0 || !begins(&header[..seen]) {
            return Ok(None);
        }
        if seen >= CERTAIN {
            break;
        }
        sleep(PAUSE).await;
    }
    stream.read_exact(&mut header).await?;
    let known = client(&header);
    known.map(Some).ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "the header names no client"))
}
