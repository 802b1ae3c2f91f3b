//! port-forward over the channels of a WebSocket, as client libraries ask for it: the query names the ports, and each
//! has a channel for its data and one for its errors, 2 n and 2 n + 1. What a side sends begins with the channel's
//! number; the first that the server sends on a channel is the port's number, low byte first.

use std::io;

use bytes::Bytes;
use futures::{SinkExt, StreamExt};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    sync::mpsc,
    task::JoinSet,
};
use tokio_tungstenite::{
    WebSocketStream,
    tungstenite::{Message, protocol::Role},
};

use super::{QUEUE, Target, pump};

/// The only version there is of it.
pub(super) const PROTOCOL: &str = "v4.channel.k8s.io";
/// Most ports of one client: a channel's number is a byte.
const MAX_PORTS: usize = 128;

/// The ports that `ports` or `port` of a query name.
///
/// # Errors
/// In the words for the client, when there are none, too many, or one that is no port.
pub(super) fn ports(query: &str) -> Result<Vec<u16>, String> {
    let mut ports = Vec::new();
    for pair in query.split('&') {
        let Some((_, values)) = pair.split_once('=').filter(|(key, _)| matches!(*key, "ports" | "port"))
        else {
            continue;
        };
        for text in values.split(',').flat_map(|part| part.split("%2C")) {
            let port = text.parse().ok().filter(|port| *port > 0);
            ports.push(port.ok_or_else(|| format!("ports: {text:?} is not a number from 1 to 65535"))?);
        }
    }
    match ports.len() {
        0 => Err("ports: at least one is required".into()),
        1..=MAX_PORTS => Ok(ports),
        more => Err(format!("ports: {more} of them, at most {MAX_PORTS} are allowed")),
    }
}

/// Serves a client until it leaves, or the connections to all ports have ended.
pub(super) async fn serve<S: AsyncRead + AsyncWrite + Unpin>(
    io: S,
    target: Target,
    ports: Vec<u16>,
) -> io::Result<()> {
    let socket = WebSocketStream::from_raw_socket(io, Role::Server, None).await;
    let (mut sink, mut stream) = socket.split();
    let (out, mut messages) = mpsc::channel::<Message>(QUEUE);
    let (mut inboxes, mut tasks) = (Vec::new(), JoinSet::new());
    for (port, channel) in ports.into_iter().zip((0u8..).step_by(2)) {
        let (inbox, bytes) = mpsc::channel(QUEUE);
        inboxes.push(inbox);
        tasks.spawn(connection(target.clone(), port, channel, bytes, out.clone()));
    }
    drop(out);
    let inward = async {
        while let Some(Ok(message)) = stream.next().await {
            match message {
                Message::Binary(mut bytes) if !bytes.is_empty() => {
                    let channel = bytes.split_to(1)[0];
                    let inbox = inboxes.get(usize::from(channel / 2)).filter(|_| channel % 2 == 0);
                    if let Some(inbox) = inbox {
                        // A port whose connection is over takes no more.
                        let _ = inbox.send(bytes).await;
                    }
                }
                Message::Close(_) => break,
                _ => {}
            }
        }
    };
    let outward = async {
        while let Some(message) = messages.recv().await {
            sink.send(message).await.map_err(io::Error::other)?;
        }
        sink.close().await.map_err(io::Error::other)
    };
    // Whoever leaves first, what is left of the other is of no use.
    tokio::select! {
        () = inward => Ok(()),
        over = outward => over,
    }
}

/// One connection to a port of the pod, until either end closes it.
async fn connection(
    target: Target,
    port: u16,
    channel: u8,
    bytes: mpsc::Receiver<Bytes>,
    out: mpsc::Sender<Message>,
) {
    let on = |channel: u8, bytes: &[u8]| {
        let mut message = Vec::with_capacity(1 + bytes.len());
        message.push(channel);
        message.extend_from_slice(bytes);
        Message::Binary(message.into())
    };
    for channel in [channel, channel + 1] {
        let _ = out.send(on(channel, &port.to_le_bytes())).await;
    }
    let stream = match target.connect(port).await {
        Ok(stream) => stream,
        Err(why) => {
            let text = format!("failed to connect to port {port} of the pod: {why}");
            let _ = out.send(on(channel + 1, text.as_bytes())).await;
            return;
        }
    };
    pump(stream, bytes, &out, |bytes| on(channel, bytes)).await;
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::{super::CHUNK, *};

    #[test]
    fn ports_come_from_the_query() {
        let check = |query: &str, expect: Result<&[u16], &str>| {
            assert_eq!(ports(query).as_deref().map_err(String::as_str), expect, "{query}");
        };
        check("ports=80", Ok(&[80]));
        check("ports=80%2C81&x=1&ports=82", Ok(&[80, 81, 82]));
        check("port=80,81", Ok(&[80, 81]));
        check("", Err("ports: at least one is required"));
        check("ports=0", Err("ports: \"0\" is not a number from 1 to 65535"));
        check("ports=", Err("ports: \"\" is not a number from 1 to 65535"));
        let many = vec!["1"; 129].join(",");
        check(&format!("ports={many}"), Err("ports: 129 of them, at most 128 are allowed"));
    }

    #[tokio::test]
    async fn bytes_and_errors_have_channels_of_their_own() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let open = listener.local_addr().unwrap().port();
        let unused = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let closed = unused.local_addr().unwrap().port();
        drop(unused);
        let target = Target {
            address: "127.0.0.1".parse().unwrap(),
            policies: wasmk_net::policy::Policies::none(),
            namespace: None,
        };
        let (near, far) = tokio::io::duplex(CHUNK);
        let session = tokio::spawn(serve(far, target, vec![open, closed]));
        let mut client = WebSocketStream::from_raw_socket(near, Role::Client, None).await;
        client.send(Message::Binary(b"\0ping".to_vec().into())).await.unwrap();
        // Nobody listens on channels that were not asked for.
        client.send(Message::Binary(b"\x09stray".to_vec().into())).await.unwrap();
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut buffer = [0; 4];
        stream.read_exact(&mut buffer).await.unwrap();
        assert_eq!(&buffer, b"ping");
        stream.write_all(b"pong").await.unwrap();
        drop(stream);
        let mut heard: Vec<Vec<u8>> = vec![Vec::new(); 4];
        while let Some(Ok(message)) = client.next().await {
            if let Message::Binary(bytes) = message {
                heard[usize::from(bytes[0])].extend_from_slice(&bytes[1..]);
            }
        }
        let [data, error, no_data, told] = &heard[..] else { unreachable!("four channels") };
        assert_eq!(data[..], [&open.to_le_bytes()[..], b"pong"].concat());
        assert_eq!(error[..], open.to_le_bytes());
        assert_eq!(no_data[..], closed.to_le_bytes());
        let told = String::from_utf8_lossy(&told[2..]);
        assert!(told.starts_with(&format!("failed to connect to port {closed} of the pod: ")), "{told}");
        session.await.unwrap().unwrap();
    }
}
