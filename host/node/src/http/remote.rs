//! The client's side of a command: streams of SPDY, or channels of a WebSocket.

use std::{collections::HashMap, io, pin::Pin, time::Duration};

use axum::{
    extract::Request,
    http::{HeaderMap, StatusCode},
    response::Response,
};
use bytes::Bytes;
use futures::{SinkExt, StreamExt, stream::SplitSink};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::{
    io::{AsyncRead, AsyncWrite, AsyncWriteExt, WriteHalf},
    sync::mpsc,
};
use tokio_tungstenite::{
    WebSocketStream,
    tungstenite::{
        Message,
        protocol::{CloseFrame, Role, frame::coding::CloseCode},
    },
};

use super::{
    command::{self, Remote, Wants},
    exec::status,
    spdy::{self, Event, Reader},
    upgrade::{self, SPDY, VERSION},
};
use crate::logs::Stream;

/// Protocols of WebSockets, the preferred one first.
const CHANNELS: [&str; 2] = ["v5.channel.k8s.io", "v4.channel.k8s.io"];
/// Protocol inside the streams of SPDY.
pub(super) const STREAMS: &str = "v4.channel.k8s.io";
/// Longest wait for a client to open its streams.
const OPENING: Duration = Duration::from_secs(30);
/// Rest before the first message to a client: kubectl before 1.33 reads before it knows its channels, and
/// throws away what comes by then.
const SETTLE: Duration = Duration::from_millis(50);
/// Longest wait for a client to leave after the end.
const LEAVING: Duration = Duration::from_secs(5);

/// Channels of a WebSocket.
const STDIN: u8 = 0;
const STDOUT: u8 = 1;
const STDERR: u8 = 2;
const STATUS: u8 = 3;
const RESIZE: u8 = 4;
const CLOSE: u8 = 255;

/// Answers a client's request for an upgrade, and runs `work` with the client as its remote. What it
/// returns is the command's status.
pub(super) fn serve<F>(
    request: Request,
    wants: Wants,
    work: impl FnOnce(Remote) -> F + Send + 'static,
) -> Response
where
    F: Future<Output = Value> + Send + 'static,
{
    let Some((answer, websocket)) = handshake(request.headers()) else {
        let text = format!("an upgrade to {SPDY}, or to websocket with {} is needed", CHANNELS[0]);
        return status(StatusCode::BAD_REQUEST, "BadRequest", &text);
    };
    tokio::spawn(async move {
        let Ok(upgraded) = hyper::upgrade::on(request).await else { return };
        let io = TokioIo::new(upgraded);
        let over = if websocket {
            let socket = WebSocketStream::from_raw_socket(io, Role::Server, None).await;
            channels(socket, &wants, work).await
        } else {
            streams(io, &wants, work).await
        };
        if let Err(error) = over {
            tracing::debug!(%error, "the client of a command broke off");
        }
    });
    answer
}

/// The answer to a request for an upgrade, and whether it is to a WebSocket.
fn handshake(headers: &HeaderMap) -> Option<(Response, bool)> {
    if upgrade::wants_spdy(headers) {
        return upgrade::offers(headers, &VERSION, STREAMS).then(|| (upgrade::to_spdy(STREAMS), false));
    }
    upgrade::to_websocket(headers, &CHANNELS).map(|(answer, _)| (answer, true))
}

async fn channels<S, F>(
    socket: WebSocketStream<S>,
    wants: &Wants,
    work: impl FnOnce(Remote) -> F,
) -> io::Result<()>
where
    S: AsyncRead + AsyncWrite + Unpin,
    F: Future<Output = Value>,
{
    let (mut sink, mut stream) = socket.split();
    let (mut local, remote) = command::pair(wants.stdin);
    let (stdin, sizes) = (local.stdin.take(), local.sizes.clone());
    let inward = async {
        let mut stdin = stdin;
        while let Some(Ok(message)) = stream.next().await {
            let Message::Binary(mut bytes) = message else { continue };
            if bytes.is_empty() {
                continue;
            }
            let channel = bytes.split_to(1)[0];
            match channel {
                STDIN => {
                    if let Some(to) = &stdin
                        && to.send(bytes).await.is_err()
                    {
                        stdin = None;
                    }
                }
                RESIZE => drop(sizes.try_send(bytes)),
                CLOSE if bytes.first() == Some(&STDIN) => stdin = None,
                _ => {}
            }
        }
    };
    let outward = async {
        let settled = tokio::time::sleep(SETTLE);
        let mut pump = Pump::new(local.out, work(remote));
        let first = pump.next().await;
        settled.await;
        let mut next = Some(first);
        let status = loop {
            let step = match next.take() {
                Some(step) => step,
                None => pump.next().await,
            };
            match step {
                Step::Output(Stream::Stdout, bytes) => send(&mut sink, STDOUT, &bytes).await?,
                Step::Output(Stream::Stderr, bytes) => send(&mut sink, STDERR, &bytes).await?,
                Step::Done(status) => break status,
            }
        };
        send(&mut sink, STATUS, status.to_string().as_bytes()).await?;
        // kubectl takes an end without a code for a failure.
        let end = CloseFrame { code: CloseCode::Normal, reason: Default::default() };
        sink.send(Message::Close(Some(end))).await.map_err(io::Error::other)
    };
    tokio::pin!(inward);
    tokio::select! {
        done = outward => {
            // A client that closes by itself has everything.
            let _ = tokio::time::timeout(LEAVING, inward).await;
            done
        }
        () = &mut inward => Err(io::ErrorKind::ConnectionReset.into()),
    }
}

async fn send<S>(
    sink: &mut SplitSink<WebSocketStream<S>, Message>,
    channel: u8,
    bytes: &[u8],
) -> io::Result<()>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let mut message = Vec::with_capacity(bytes.len() + 1);
    message.push(channel);
    message.extend_from_slice(bytes);
    sink.send(Message::Binary(message.into())).await.map_err(io::Error::other)
}

/// What a command's work brings next.
enum Step {
    Output(Stream, Bytes),
    Done(Value),
}

/// Does a command's work, piece by piece of its output.
struct Pump<F> {
    out: mpsc::Receiver<(Stream, Bytes)>,
    work: Pin<Box<F>>,
    status: Option<Value>,
}

impl<F: Future<Output = Value>> Pump<F> {
    fn new(out: mpsc::Receiver<(Stream, Bytes)>, work: F) -> Self {
        Self { out, work: Box::pin(work), status: None }
    }

    /// The next piece; the end comes after all of them.
    async fn next(&mut self) -> Step {
        loop {
            tokio::select! {
                piece = self.out.recv() => match (piece, self.status.take()) {
                    (Some((output, bytes)), status) => {
                        self.status = status;
                        return Step::Output(output, bytes);
                    }
                    // The work has let go of its end: it is done, and everything was passed on.
                    (None, Some(status)) => return Step::Done(status),
                    (None, None) => return Step::Done(self.work.as_mut().await),
                },
                done = self.work.as_mut(), if self.status.is_none() => self.status = Some(done),
            }
        }
    }
}

/// Streams of a client, by what they are for.
#[derive(Default)]
struct Opened {
    by_kind: HashMap<String, u32>,
}

impl Opened {
    fn kind(&self, id: u32) -> &str {
        self.by_kind.iter().find(|(_, i)| **i == id).map_or("", |(k, _)| k)
    }
}

async fn streams<S, F>(io: S, wants: &Wants, work: impl FnOnce(Remote) -> F) -> io::Result<()>
where
    S: AsyncRead + AsyncWrite + Unpin,
    F: Future<Output = Value>,
{
    let (reader, writer) = tokio::io::split(io);
    let mut reader = Reader::new(reader);
    let (frames, frames_out) = mpsc::channel(command::QUEUE);
    let writing = write_frames(writer, frames_out);
    // It owns the frames' sender, so that writing ends when it is done.
    let serving = async move {
        let opened = tokio::time::timeout(OPENING, open(&mut reader, wants, &frames)).await??;
        let (mut local, remote) = command::pair(wants.stdin);
        let inward = read_streams(&mut reader, &opened, local.stdin.take(), local.sizes.clone(), &frames);
        let outward = async {
            let mut pump = Pump::new(local.out, work(remote));
            let status = loop {
                match pump.next().await {
                    Step::Output(output, bytes) => {
                        if let Some(id) = opened.by_kind.get(output.name()) {
                            push(&frames, spdy::data(*id, &bytes, false)).await?;
                        }
                    }
                    Step::Done(status) => break status,
                }
            };
            for kind in ["stdout", "stderr"] {
                if let Some(id) = opened.by_kind.get(kind) {
                    push(&frames, spdy::data(*id, &[], true)).await?;
                }
            }
            match opened.by_kind.get("error") {
                Some(id) => push(&frames, spdy::data(*id, status.to_string().as_bytes(), true)).await,
                None => Ok(()),
            }
        };
        tokio::pin!(inward);
        tokio::select! {
            done = outward => {
                let _ = tokio::time::timeout(LEAVING, inward).await;
                done
            }
            done = &mut inward => done.and(Err(io::ErrorKind::ConnectionReset.into())),
        }
    };
    let (written, served) = tokio::join!(writing, serving);
    served.and(written)
}

async fn write_frames<S: AsyncWrite>(
    mut writer: WriteHalf<S>,
    mut frames: mpsc::Receiver<Vec<u8>>,
) -> io::Result<()> {
    while let Some(frame) = frames.recv().await {
        writer.write_all(&frame).await?;
        writer.flush().await?;
    }
    writer.shutdown().await
}

async fn push(frames: &mpsc::Sender<Vec<u8>>, frame: Vec<u8>) -> io::Result<()> {
    frames.send(frame).await.map_err(|_| io::ErrorKind::BrokenPipe.into())
}

/// Waits until all wanted streams are open.
async fn open<R: AsyncRead + Unpin>(
    reader: &mut Reader<R>,
    wants: &Wants,
    frames: &mpsc::Sender<Vec<u8>>,
) -> io::Result<Opened> {
    let wanted = 1
        + usize::from(wants.stdin)
        + usize::from(wants.stdout)
        + usize::from(wants.stderr)
        + usize::from(wants.tty);
    let mut opened = Opened::default();
    while opened.by_kind.len() < wanted {
        match reader.next().await? {
            Some(Event::Open(id, headers)) => {
                let kind = headers.get("streamtype").cloned().unwrap_or_default();
                let first = opened.by_kind.is_empty();
                push(frames, spdy::reply(id, first)).await?;
                opened.by_kind.insert(kind, id);
            }
            Some(Event::Ping(id)) => push(frames, spdy::pong(id)).await?,
            Some(_) => {}
            None => return Err(io::ErrorKind::UnexpectedEof.into()),
        }
    }
    Ok(opened)
}

async fn read_streams<R: AsyncRead + Unpin>(
    reader: &mut Reader<R>,
    opened: &Opened,
    mut stdin: Option<mpsc::Sender<Bytes>>,
    sizes: mpsc::Sender<Bytes>,
    frames: &mpsc::Sender<Vec<u8>>,
) -> io::Result<()> {
    while let Some(event) = reader.next().await? {
        match event {
            Event::Data(id, bytes, last) => match opened.kind(id) {
                "stdin" => {
                    if let Some(to) = stdin.as_ref().filter(|_| !bytes.is_empty())
                        && to.send(bytes.into()).await.is_err()
                    {
                        stdin = None;
                    }
                    if last {
                        stdin = None;
                    }
                }
                // Only the newest size matters: one that finds no room is followed by another.
                "resize" => drop(sizes.try_send(bytes.into())),
                _ => {}
            },
            Event::Reset(id) if opened.kind(id) == "stdin" => stdin = None,
            Event::Ping(id) => push(frames, spdy::pong(id)).await?,
            Event::Leave => return Ok(()),
            Event::Open(..) | Event::Reset(_) => {}
        }
    }
    Ok(())
}

#[cfg(test)]
#[path = "remote_tests.rs"]
mod tests;
