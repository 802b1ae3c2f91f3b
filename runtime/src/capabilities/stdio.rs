//! Standard input from a reader, standard output and error to a [`LogSink`].
//!
//! Output of a guest whose sink is full waits in the guest, nowhere else.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker, ready};

use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use wasmtime_wasi::async_trait;
use wasmtime_wasi::cli::{IsTerminal, StdinStream, StdoutStream};
use wasmtime_wasi::p2::{InputStream, OutputStream, Pollable, StreamError, StreamResult};

use crate::spec::{LogSink, MAX_WRITE, Stdin};

/// Most bytes read ahead of the guest.
const READ_AHEAD: usize = 16 << 10;

/// A guest's standard output or error.
#[derive(Clone)]
pub(crate) struct Output(pub(crate) Arc<dyn LogSink>);

impl Output {
    fn poll_room(&self, cx: &mut Context<'_>) -> Poll<usize> {
        match self.0.poll_room(cx) {
            // No room at all means to wait; the sink has the waker in both cases.
            Poll::Ready(0) | Poll::Pending => Poll::Pending,
            Poll::Ready(room) => Poll::Ready(room.min(MAX_WRITE)),
        }
    }
}

impl IsTerminal for Output {
    fn is_terminal(&self) -> bool {
        false
    }
}

impl StdoutStream for Output {
    fn async_stream(&self) -> Box<dyn AsyncWrite + Send + Sync> {
        Box::new(self.clone())
    }

    fn p2_stream(&self) -> Box<dyn OutputStream> {
        Box::new(self.clone())
    }
}

#[async_trait]
impl Pollable for Output {
    async fn ready(&mut self) {
        std::future::poll_fn(|cx| self.poll_room(cx).map(drop)).await;
    }
}

impl OutputStream for Output {
    fn write(&mut self, bytes: Bytes) -> StreamResult<()> {
        if !bytes.is_empty() {
            self.0.write(&bytes);
        }
        Ok(())
    }

    fn flush(&mut self) -> StreamResult<()> {
        Ok(())
    }

    fn check_write(&mut self) -> StreamResult<usize> {
        match self.poll_room(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(room) => Ok(room),
            Poll::Pending => Ok(0),
        }
    }
}

impl AsyncWrite for Output {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let room = ready!(self.poll_room(cx)).min(bytes.len());
        self.0.write(&bytes[..room]);
        Poll::Ready(Ok(room))
    }

    fn poll_flush(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

/// A guest's standard input.
#[derive(Clone)]
pub(crate) struct Input(pub(crate) Stdin);

impl IsTerminal for Input {
    fn is_terminal(&self) -> bool {
        false
    }
}

impl StdinStream for Input {
    fn async_stream(&self) -> Box<dyn AsyncRead + Send + Sync> {
        Box::new(Reader { stdin: self.0.clone(), ahead: Bytes::new() })
    }

    fn p2_stream(&self) -> Box<dyn InputStream> {
        Box::new(Reader { stdin: self.0.clone(), ahead: Bytes::new() })
    }
}

struct Reader {
    stdin: Stdin,
    ahead: Bytes,
}

impl Reader {
    /// Reads ahead if nothing is; `false` at the end of the input.
    fn poll_fill(&mut self, cx: &mut Context<'_>) -> Poll<bool> {
        if !self.ahead.is_empty() {
            return Poll::Ready(true);
        }
        let mut state = self.stdin.0.state.lock();
        let Some(reader) = &mut state.reader else {
            return Poll::Ready(false);
        };
        let mut space = [0; READ_AHEAD];
        let mut buffer = ReadBuf::new(&mut space);
        match Pin::new(reader).poll_read(cx, &mut buffer) {
            Poll::Pending => {
                state.waker = Some(cx.waker().clone());
                Poll::Pending
            }
            Poll::Ready(Ok(())) if !buffer.filled().is_empty() => {
                self.ahead = Bytes::copy_from_slice(buffer.filled());
                Poll::Ready(true)
            }
            // An error of the reader ends the input as well: the guest can do nothing about it.
            Poll::Ready(_) => {
                state.reader = None;
                Poll::Ready(false)
            }
        }
    }
}

#[async_trait]
impl Pollable for Reader {
    async fn ready(&mut self) {
        std::future::poll_fn(|cx| self.poll_fill(cx).map(drop)).await;
    }
}

impl InputStream for Reader {
    fn read(&mut self, size: usize) -> StreamResult<Bytes> {
        match self.poll_fill(&mut Context::from_waker(Waker::noop())) {
            Poll::Pending => Ok(Bytes::new()),
            Poll::Ready(false) => Err(StreamError::Closed),
            Poll::Ready(true) => Ok(self.ahead.split_to(size.min(self.ahead.len()))),
        }
    }
}

impl AsyncRead for Reader {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if ready!(self.poll_fill(cx)) {
            let length = self.ahead.len().min(buffer.remaining());
            buffer.put_slice(&self.ahead.split_to(length));
        }
        Poll::Ready(Ok(()))
    }
}
