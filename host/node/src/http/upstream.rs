//! The container runtime's side of a command: it is talked to by streams of SPDY at an address that
//! the runtime gives for one use.

use std::{io, time::Duration};

use axum::http::{Request, StatusCode, Uri, header};
use bytes::Bytes;
use http_body_util::Empty;
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::{
    io::{AsyncRead, AsyncWrite, AsyncWriteExt},
    net::TcpStream,
    sync::mpsc,
};

use super::{
    command::{Remote, Wants, broken},
    remote::STREAMS,
    spdy::{self, Event, Reader},
    upgrade::{SPDY, VERSION},
};
use crate::logs::Stream;

/// Longest wait for the runtime to begin.
const BEGIN: Duration = Duration::from_secs(10);
/// Longest wait for the rest of the output after the status.
const REST: Duration = Duration::from_secs(1);
/// Frames that wait to be sent.
const QUEUE: usize = 16;

/// Streams, numbered as a client of SPDY does.
const ERROR: u32 = 1;
const STDIN: u32 = 3;
const STDOUT: u32 = 5;
const STDERR: u32 = 7;
const RESIZE: u32 = 9;

/// Joins a client with what is at a runtime's address, to its end; the status for the client.
pub(super) async fn join(url: &str, wants: &Wants, remote: Remote) -> Value {
    let talk = async {
        let io = tokio::time::timeout(BEGIN, connect(url)).await??;
        talk(io, wants, remote).await
    };
    match talk.await {
        Ok(status) => status,
        Err(error) => broken(&format!("the container runtime broke off: {error}")),
    }
}

async fn connect(url: &str) -> io::Result<TokioIo<hyper::upgrade::Upgraded>> {
    let uri: Uri = url.parse().map_err(io::Error::other)?;
    let authority = uri.authority().ok_or_else(|| io::Error::other("the runtime's address names no host"))?;
    let port = authority.port_u16().unwrap_or(80);
    let stream = TcpStream::connect((authority.host(), port)).await?;
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(io::Error::other)?;
    tokio::spawn(connection.with_upgrades());
    let path = uri.path_and_query().map_or("/", |p| p.as_str());
    let request = Request::post(path)
        .header(header::HOST, authority.as_str())
        .header(header::CONNECTION, "Upgrade")
        .header(header::UPGRADE, SPDY)
        .header(VERSION, STREAMS)
        .body(Empty::<Bytes>::new())
        .map_err(io::Error::other)?;
    let answer = sender.send_request(request).await.map_err(io::Error::other)?;
    if answer.status() != StatusCode::SWITCHING_PROTOCOLS {
        return Err(io::Error::other(format!("it answered {}", answer.status())));
    }
    hyper::upgrade::on(answer).await.map(TokioIo::new).map_err(io::Error::other)
}

async fn talk<S: AsyncRead + AsyncWrite + Unpin>(io: S, wants: &Wants, remote: Remote) -> io::Result<Value> {
    let (reader, mut writer) = tokio::io::split(io);
    let mut first = true;
    let streams = [
        (ERROR, "error", true),
        (STDIN, "stdin", wants.stdin),
        (STDOUT, "stdout", wants.stdout),
        (STDERR, "stderr", wants.stderr),
        (RESIZE, "resize", wants.tty),
    ];
    for (id, kind, _) in streams.iter().filter(|(_, _, wanted)| *wanted) {
        writer.write_all(&spdy::open(*id, &[("streamtype", kind)], std::mem::take(&mut first))).await?;
    }
    let (pongs, pongs_out) = mpsc::channel(QUEUE);
    let Remote { stdin, sizes, out } = remote;
    let outward = send(&mut writer, wants, stdin, sizes, pongs_out);
    let inward = receive(Reader::new(reader), out, pongs);
    tokio::select! {
        status = inward => status,
        error = outward => Err(error),
    }
}

/// Passes input and sizes on; returns only when that fails.
async fn send<W: AsyncWrite + Unpin>(
    writer: &mut W,
    wants: &Wants,
    mut stdin: mpsc::Receiver<Bytes>,
    mut sizes: mpsc::Receiver<Bytes>,
    mut pongs: mpsc::Receiver<u32>,
) -> io::Error {
    let mut open = wants.stdin;
    loop {
        let frame = tokio::select! {
            bytes = stdin.recv(), if open => match bytes {
                Some(bytes) => spdy::data(STDIN, &bytes, false),
                None => {
                    open = false;
                    spdy::data(STDIN, &[], true)
                }
            },
            Some(size) = sizes.recv(), if wants.tty => spdy::data(RESIZE, &size, false),
            Some(id) = pongs.recv() => spdy::pong(id),
            else => std::future::pending().await,
        };
        let sent = async {
            writer.write_all(&frame).await?;
            writer.flush().await
        };
        if let Err(error) = sent.await {
            return error;
        }
    }
}

/// Passes output on until it has ended and the status is here.
async fn receive<R: AsyncRead + Unpin>(
    mut reader: Reader<R>,
    out: mpsc::Sender<(Stream, Bytes)>,
    pongs: mpsc::Sender<u32>,
) -> io::Result<Value> {
    let mut status = Vec::new();
    let mut ended = false;
    loop {
        // Streams are apart from each other: output may come after the status, and the runtime then leaves.
        let event = match ended {
            false => reader.next().await?,
            true => tokio::time::timeout(REST, reader.next()).await.unwrap_or(Ok(None)).unwrap_or(None),
        };
        let Some(event) = event else { break };
        match event {
            Event::Data(ERROR, bytes, last) => {
                status.extend_from_slice(&bytes);
                ended |= last;
            }
            Event::Data(id @ (STDOUT | STDERR), bytes, _) if !bytes.is_empty() => {
                let stream = if id == STDOUT { Stream::Stdout } else { Stream::Stderr };
                if out.send((stream, bytes.into())).await.is_err() {
                    return Err(io::ErrorKind::BrokenPipe.into());
                }
            }
            Event::Ping(id) => drop(pongs.try_send(id)),
            Event::Leave => break,
            _ => {}
        }
    }
    if status.is_empty() {
        return Ok(super::command::ended(0));
    }
    Ok(serde_json::from_slice(&status).unwrap_or_else(|_| broken(&String::from_utf8_lossy(&status))))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::command;

    /// A runtime that answers `hello` with `HELLO` and the status 3 at the end of the input.
    async fn runtime<S: AsyncRead + AsyncWrite + Unpin>(io: S) {
        let (reader, mut writer) = tokio::io::split(io);
        let mut reader = Reader::new(reader);
        let mut kinds = Vec::new();
        while let Some(event) = reader.next().await.unwrap() {
            match event {
                Event::Open(_, headers) => kinds.push(headers["streamtype"].clone()),
                Event::Data(STDIN, bytes, last) => {
                    if !bytes.is_empty() {
                        let upper = bytes.to_ascii_uppercase();
                        writer.write_all(&spdy::data(STDOUT, &upper, false)).await.unwrap();
                    }
                    if last {
                        break;
                    }
                }
                other => panic!("{other:?}"),
            }
        }
        assert_eq!(kinds, ["error", "stdin", "stdout"]);
        let status = command::ended(3).to_string();
        writer.write_all(&spdy::data(ERROR, status.as_bytes(), true)).await.unwrap();
    }

    #[tokio::test]
    async fn input_goes_in_and_output_and_status_come_out() {
        let (near, far) = tokio::io::duplex(4096);
        let (mut local, remote) = command::pair(true);
        let wants = Wants { stdin: true, stdout: true, ..Wants::default() };
        let runtime = tokio::spawn(runtime(far));
        let talk = tokio::spawn(async move { talk(near, &wants, remote).await });
        let stdin = local.stdin.take().unwrap();
        stdin.send(Bytes::from_static(b"hello")).await.unwrap();
        drop(stdin);
        assert_eq!(local.out.recv().await.unwrap(), (Stream::Stdout, Bytes::from_static(b"HELLO")));
        assert_eq!(talk.await.unwrap().unwrap()["reason"], "NonZeroExitCode");
        runtime.await.unwrap();
    }
}
