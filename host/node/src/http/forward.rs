//! port-forward to a pod's address: a client opens, for each of its connections, a stream for
//! data and one for errors. The streams are SPDY's, bare or inside a WebSocket; or they are the
//! [`channels`] of a WebSocket.

use std::{
    collections::HashMap,
    io,
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use axum::{
    extract::{Path, Request, State},
    http::{HeaderMap, StatusCode},
    response::Response,
};
use futures::{SinkExt, StreamExt};
use hyper_util::rt::TokioIo;
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::TcpStream,
    sync::mpsc,
    task::JoinSet,
};
use tokio_tungstenite::{
    WebSocketStream,
    tungstenite::{Message, protocol::Role},
};

mod channels;

use super::{
    Shared,
    exec::status,
    spdy::{self, Event, Reader},
    upgrade::{self, SPDY},
};
use wasmk_net::policy::Policies;

use crate::netns::Netns;

/// Protocol inside the streams.
const PROTOCOL: &str = "portforward.k8s.io";
/// The streams' protocol when it is inside a WebSocket.
const TUNNELLED: &str = "SPDY/3.1+portforward.k8s.io";
/// Streams of one client at a time.
const STREAMS: usize = 512;
/// Bytes read from a port at a time.
const CHUNK: usize = 16 * 1024;
/// Pieces that wait for a slow side.
const QUEUE: usize = 16;
/// Bytes under way inside a WebSocket.
const PIPE: usize = 64 * 1024;
/// Longest wait for a port to take the connection.
const CONNECT: Duration = Duration::from_secs(5);

pub(super) async fn forward(
    State(shared): State<Shared>,
    Path((namespace, pod)): Path<(String, String)>,
    request: Request,
) -> Response {
    let Some(known) = shared.pods.find(&namespace, &pod) else {
        return status(StatusCode::NOT_FOUND, "NotFound", &format!("pods \"{pod}\" not found"));
    };
    let address = known.status.as_ref().and_then(|s| s.pod_ip.as_ref()).and_then(|ip| ip.parse().ok());
    let Some(address) = address else {
        let text = format!("unable to forward port because pod {pod} is not running");
        return status(StatusCode::BAD_REQUEST, "BadRequest", &text);
    };
    let target = Target {
        address,
        policies: shared.cx.policies.clone(),
        namespace: shared.cx.running.namespace(known.metadata.uid.as_deref().unwrap_or_default()),
    };
    let Some((answer, over)) = handshake(request.headers()) else {
        let text = format!(
            "port forwarding needs an upgrade to {SPDY}, or to websocket with {TUNNELLED} or {}",
            channels::PROTOCOL
        );
        return status(StatusCode::BAD_REQUEST, "BadRequest", &text);
    };
    let ports = match over {
        Over::Channels => channels::ports(request.uri().query().unwrap_or_default()),
        Over::Spdy | Over::Tunnel => Ok(Vec::new()),
    };
    let ports = match ports {
        Ok(ports) => ports,
        Err(text) => return status(StatusCode::BAD_REQUEST, "BadRequest", &text),
    };
    tokio::spawn(async move {
        let Ok(upgraded) = hyper::upgrade::on(request).await else { return };
        let io = TokioIo::new(upgraded);
        let ended = match over {
            Over::Spdy => session(io, target).await,
            Over::Tunnel => unwrap(io, target).await,
            Over::Channels => channels::serve(io, target, ports).await,
        };
        if let Err(error) = ended {
            tracing::debug!(%error, "a port-forward broke off");
        }
    });
    answer
}

/// What carries the streams.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Over {
    Spdy,
    Tunnel,
    Channels,
}

/// The answer to a request for an upgrade, and what it is to.
fn handshake(headers: &HeaderMap) -> Option<(Response, Over)> {
    if upgrade::wants_spdy(headers) {
        return Some((upgrade::to_spdy(PROTOCOL), Over::Spdy));
    }
    let (answer, place) = upgrade::to_websocket(headers, &[TUNNELLED, channels::PROTOCOL])?;
    Some((answer, [Over::Tunnel, Over::Channels][place]))
}

/// A session whose bytes are the binary messages of a WebSocket.
async fn unwrap<S: AsyncRead + AsyncWrite + Unpin>(io: S, target: Target) -> io::Result<()> {
    let socket = WebSocketStream::from_raw_socket(io, Role::Server, None).await;
    let (mut sink, mut stream) = socket.split();
    let (near, far) = tokio::io::duplex(PIPE);
    let (mut reader, mut writer) = tokio::io::split(near);
    // Each owns what it works on: what has failed is closed at once, and the others learn of it.
    let inward = async move {
        while let Some(Ok(message)) = stream.next().await {
            if let Message::Binary(bytes) = message {
                writer.write_all(&bytes).await?;
            }
        }
        writer.shutdown().await
    };
    let outward = async move {
        let mut buffer = vec![0; CHUNK];
        loop {
            let length = reader.read(&mut buffer).await?;
            if length == 0 {
                return sink.close().await.map_err(io::Error::other);
            }
            let message = Message::Binary(buffer[..length].to_vec().into());
            sink.send(message).await.map_err(io::Error::other)?;
        }
    };
    let work = session(far, target);
    let (inward, outward, work) = tokio::join!(inward, outward, work);
    inward.and(outward).and(work)
}

/// Where a pod's ports are.
#[derive(Clone)]
struct Target {
    address: IpAddr,
    policies: Policies,
    /// A pod with a network namespace of its own may listen on its loopback only.
    namespace: Option<Netns>,
}

impl Target {
    async fn connect(&self, port: u16) -> io::Result<TcpStream> {
        let address = SocketAddr::new(self.address, port);
        match &self.namespace {
            Some(namespace) => namespace.connect(address, CONNECT).await,
            None => tokio::time::timeout(CONNECT, self.policies.connect(address)).await?,
        }
    }
}

/// One half of a client's connection.
#[derive(Clone, Copy, PartialEq)]
enum Part {
    Data,
    Error,
}

/// The streams of a session.
#[derive(Default)]
struct Streams {
    /// What a stream is, and to which request it belongs.
    by_id: HashMap<u32, (Part, String)>,
    /// Requests of which one stream is here.
    half: HashMap<String, (Part, u32)>,
    /// Where the bytes of a data stream go; dropped at the stream's end.
    inbox: HashMap<u32, mpsc::Sender<Vec<u8>>>,
}

/// Serves a client until it leaves.
async fn session<S: AsyncRead + AsyncWrite + Unpin>(io: S, target: Target) -> io::Result<()> {
    let (reader, mut writer) = tokio::io::split(io);
    let (out, mut frames) = mpsc::channel::<Vec<u8>>(QUEUE);
    // Owns the queue: when the client is gone, whoever has something for it fails instead of waiting.
    let write = async move {
        while let Some(frame) = frames.recv().await {
            writer.write_all(&frame).await?;
            writer.flush().await?;
        }
        writer.shutdown().await
    };
    let read = async move {
        let (mut reader, mut streams, mut tasks) = (Reader::new(reader), Streams::default(), JoinSet::new());
        let mut first = true;
        while let Some(event) = reader.next().await? {
            match event {
                Event::Open(id, headers) => {
                    let accepted = streams.by_id.len() < STREAMS
                        && open(&mut streams, id, &headers, &target, &out, &mut tasks);
                    let frame =
                        if accepted { spdy::reply(id, std::mem::take(&mut first)) } else { spdy::reset(id) };
                    send(&out, frame).await?;
                }
                Event::Data(id, bytes, last) => {
                    if let Some(inbox) = streams.inbox.get(&id).filter(|_| !bytes.is_empty()) {
                        // A port whose connection is over takes no more.
                        let _ = inbox.send(bytes).await;
                    }
                    // Clients end the error stream's direction at once and keep the stream.
                    if last {
                        streams.inbox.remove(&id);
                    }
                }
                Event::Reset(id) => streams.close(id),
                Event::Ping(id) => send(&out, spdy::pong(id)).await?,
                Event::Leave => break,
            }
            while let Some(over) = tasks.try_join_next() {
                over.into_iter().flatten().for_each(|id| streams.close(id));
            }
        }
        // Answers under way are still sent; the client closes when it has them.
        streams.inbox.clear();
        while tasks.join_next().await.is_some() {}
        Ok::<_, io::Error>(())
    };
    let (written, read) = tokio::join!(write, read);
    written.and(read)
}

async fn send(out: &mpsc::Sender<Vec<u8>>, frame: Vec<u8>) -> io::Result<()> {
    out.send(frame).await.map_err(|_| io::ErrorKind::BrokenPipe.into())
}

impl Streams {
    fn close(&mut self, id: u32) {
        self.inbox.remove(&id);
        if let Some((_, request)) = self.by_id.remove(&id) {
            self.half.remove(&request);
        }
    }
}

/// Takes a new stream; starts the connection when both of its streams are here.
fn open(
    streams: &mut Streams,
    id: u32,
    headers: &HashMap<String, String>,
    target: &Target,
    out: &mpsc::Sender<Vec<u8>>,
    tasks: &mut JoinSet<[u32; 2]>,
) -> bool {
    let part = match headers.get("streamtype").map(String::as_str) {
        Some("data") => Part::Data,
        Some("error") => Part::Error,
        _ => return false,
    };
    let Some(port) = headers.get("port").and_then(|p| p.parse::<u16>().ok()).filter(|p| *p > 0) else {
        return false;
    };
    // Old clients number no requests; the port tells them apart then.
    let request = headers.get("requestid").cloned().unwrap_or_else(|| format!("port {port}"));
    streams.by_id.insert(id, (part, request.clone()));
    let (data, error) = match (part, streams.half.remove(&request)) {
        (Part::Data, Some((Part::Error, error))) => (id, error),
        (Part::Error, Some((Part::Data, data))) => (data, id),
        _ => {
            streams.half.insert(request, (part, id));
            return true;
        }
    };
    let (inbox, bytes) = mpsc::channel(QUEUE);
    streams.inbox.insert(data, inbox);
    let connection = connection(target.clone(), port, data, error, bytes, out.clone());
    tasks.spawn(async move {
        connection.await;
        [data, error]
    });
    true
}

/// One connection to a port of the pod, from the streams' opening to their end.
async fn connection(
    target: Target,
    port: u16,
    data: u32,
    error: u32,
    bytes: mpsc::Receiver<Vec<u8>>,
    out: mpsc::Sender<Vec<u8>>,
) {
    let stream = match target.connect(port).await {
        Ok(stream) => stream,
        Err(why) => {
            let text = format!("failed to connect to port {port} of the pod: {why}");
            let _ = out.send(spdy::data(error, text.as_bytes(), true)).await;
            let _ = out.send(spdy::data(data, &[], true)).await;
            return;
        }
    };
    pump(stream, bytes, &out, |bytes| spdy::data(data, bytes, false)).await;
    let _ = out.send(spdy::data(data, &[], true)).await;
    let _ = out.send(spdy::data(error, &[], true)).await;
}

/// Carries bytes between a port and a client until the port ends or the client is gone; `frame` makes
/// of what the port says what the client gets.
async fn pump<B: AsRef<[u8]> + Send + 'static, F>(
    stream: TcpStream,
    mut bytes: mpsc::Receiver<B>,
    out: &mpsc::Sender<F>,
    frame: impl Fn(&[u8]) -> F,
) {
    let (mut reader, mut writer) = stream.into_split();
    let inward = tokio::spawn(async move {
        while let Some(bytes) = bytes.recv().await {
            writer.write_all(bytes.as_ref()).await?;
        }
        writer.shutdown().await
    });
    let mut buffer = vec![0; CHUNK];
    while let Ok(length @ 1..) = reader.read(&mut buffer).await {
        if out.send(frame(&buffer[..length])).await.is_err() {
            break;
        }
    }
    inward.abort();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn upgrades_are_told_apart() {
        let check = |fields: &[(&str, &str)], expect: Option<Over>| {
            let mut headers = HeaderMap::new();
            for (name, value) in fields {
                headers.insert(
                    axum::http::HeaderName::from_bytes(name.as_bytes()).unwrap(),
                    value.parse().unwrap(),
                );
            }
            assert_eq!(handshake(&headers).map(|(_, over)| over), expect, "{fields:?}");
        };
        let key = ("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ==");
        check(&[("upgrade", "SPDY/3.1")], Some(Over::Spdy));
        check(&[("upgrade", "websocket"), ("sec-websocket-protocol", TUNNELLED), key], Some(Over::Tunnel));
        let library = "v5.channel.k8s.io, v4.channel.k8s.io";
        check(&[("upgrade", "websocket"), ("sec-websocket-protocol", library), key], Some(Over::Channels));
        check(&[("upgrade", "websocket"), ("sec-websocket-protocol", "other"), key], None);
        check(&[], None);
    }

    fn headers(kind: &str, port: u16) -> HashMap<String, String> {
        [("streamtype", kind.to_string()), ("port", port.to_string()), ("requestid", "0".into())]
            .map(|(k, v)| (k.to_string(), v))
            .into()
    }

    async fn exchange(port: u16) -> Vec<Vec<u8>> {
        let (out, mut frames) = mpsc::channel(QUEUE);
        let (mut streams, mut tasks) = (Streams::default(), JoinSet::new());
        let target = Target {
            address: "127.0.0.1".parse().unwrap(),
            policies: wasmk_net::policy::Policies::none(),
            namespace: None,
        };
        assert!(open(&mut streams, 1, &headers("error", port), &target, &out, &mut tasks));
        assert!(open(&mut streams, 3, &headers("data", port), &target, &out, &mut tasks));
        let _ = streams.inbox[&3].send(b"ping".to_vec()).await;
        drop(out);
        let mut got = Vec::new();
        while let Some(frame) = frames.recv().await {
            got.push(frame);
        }
        got
    }

    #[tokio::test]
    async fn bytes_go_both_ways() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut buffer = [0; 4];
            stream.read_exact(&mut buffer).await.unwrap();
            stream.write_all(b"pong").await.unwrap();
        });
        let expect = [spdy::data(3, b"pong", false), spdy::data(3, &[], true), spdy::data(1, &[], true)];
        assert_eq!(exchange(port).await, expect);
    }

    #[tokio::test]
    async fn an_error_stream_that_is_ended_at_once_still_belongs_to_its_connection() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port().to_string();
        let target = Target {
            address: "127.0.0.1".parse().unwrap(),
            policies: wasmk_net::policy::Policies::none(),
            namespace: None,
        };
        let (mut near, far) = tokio::io::duplex(PIPE);
        let session = tokio::spawn(session(far, target));
        let headers = |kind| [("streamtype", kind), ("port", &*port), ("requestid", "0")];
        let mut wire = spdy::open(1, &headers("error"), true);
        wire.extend(spdy::data(1, &[], true));
        wire.extend(spdy::open(3, &headers("data"), false));
        wire.extend(spdy::data(3, b"ping", true));
        near.write_all(&wire).await.unwrap();
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).await.unwrap();
        assert_eq!(text, "ping");
        drop((stream, near));
        let _ = session.await.unwrap();
    }

    /// A port that talks for as long as it is listened to; ends when its connection is closed.
    async fn talker() -> (u16, tokio::task::JoinHandle<()>) {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let talk = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            while stream.write_all(&[7; CHUNK]).await.is_ok() {}
        });
        (port, talk)
    }

    #[tokio::test]
    async fn a_port_that_goes_on_talking_is_let_go_with_its_client() {
        let limit = Duration::from_secs(20);
        for over in [Over::Spdy, Over::Tunnel] {
            let (port, talk) = talker().await;
            let target = Target {
                address: "127.0.0.1".parse().unwrap(),
                policies: wasmk_net::policy::Policies::none(),
                namespace: None,
            };
            let (near, far) = tokio::io::duplex(PIPE);
            let wire = ["error", "data"].into_iter().zip([1, 3]).flat_map(|(kind, id)| {
                let port = port.to_string();
                spdy::open(id, &[("streamtype", kind), ("port", &*port), ("requestid", "0")], id == 1)
            });
            let wire: Vec<u8> = wire.collect();
            let serving = match over {
                Over::Tunnel => tokio::spawn(unwrap(far, target)),
                _ => tokio::spawn(session(far, target)),
            };
            // The client hears the port, and is gone.
            if over == Over::Tunnel {
                let mut socket = WebSocketStream::from_raw_socket(near, Role::Client, None).await;
                socket.send(Message::Binary(wire.into())).await.unwrap();
                for _ in 0..4 {
                    socket.next().await.unwrap().unwrap();
                }
            } else {
                let mut near = near;
                near.write_all(&wire).await.unwrap();
                near.read_exact(&mut vec![0; 2 * CHUNK]).await.unwrap();
            }
            let _ = tokio::time::timeout(limit, serving).await.expect("the session ends").unwrap();
            tokio::time::timeout(limit, talk).await.expect("the port is let go").unwrap();
        }
    }

    #[tokio::test]
    async fn a_closed_port_is_named_on_the_error_stream() {
        let unused = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = unused.local_addr().unwrap().port();
        drop(unused);
        let frames = exchange(port).await;
        let text = format!("failed to connect to port {port} of the pod: ");
        assert!(frames[0].windows(text.len()).any(|w| w == text.as_bytes()));
    }
}
