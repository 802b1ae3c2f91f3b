//! A command and its client: input, output and window sizes as messages, whatever carries them.

use std::{
    collections::VecDeque,
    task::{Context, Poll, Waker},
};

use axum::http::Uri;
use bytes::Bytes;
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::sync::{Notify, mpsc};

use crate::logs::{LogSink, Stream};

/// Messages that wait for a slow side.
pub(super) const QUEUE: usize = 16;
/// Bytes of a guest's output that wait for a slow client; then the guest waits.
const OUTPUT_BYTES: usize = 256 * 1024;

/// What a client asks for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Wants {
    pub(super) command: Vec<String>,
    pub(super) stdin: bool,
    pub(super) stdout: bool,
    pub(super) stderr: bool,
    pub(super) tty: bool,
}

impl Wants {
    /// Out of a request's query.
    pub(super) fn of(uri: &Uri) -> Self {
        let mut wants = Self::default();
        let pairs: Vec<(String, String)> =
            axum::extract::Query::try_from_uri(uri).map(|q| q.0).unwrap_or_default();
        for (name, value) in pairs {
            let on = matches!(value.as_str(), "1" | "true");
            match name.as_str() {
                "command" => wants.command.push(value),
                "stdin" => wants.stdin = on,
                "stdout" => wants.stdout = on,
                "stderr" => wants.stderr = on,
                "tty" => wants.tty = on,
                _ => {}
            }
        }
        // A terminal has one output.
        wants.stderr &= !wants.tty;
        wants
    }
}

/// The size of a terminal, in the words of the protocol: `{"Width": 80, "Height": 24}`.
pub(super) type Size = Bytes;

/// The command's end of the connection to its client.
pub(super) struct Remote {
    /// Ends when the client's input ends.
    pub(super) stdin: mpsc::Receiver<Bytes>,
    /// Sizes of the client's terminal, as they change.
    pub(super) sizes: mpsc::Receiver<Size>,
    /// To the client.
    pub(super) out: mpsc::Sender<(Stream, Bytes)>,
}

/// The client's end.
pub(super) struct Local {
    /// `None` once the client's input has ended.
    pub(super) stdin: Option<mpsc::Sender<Bytes>>,
    pub(super) sizes: mpsc::Sender<Size>,
    pub(super) out: mpsc::Receiver<(Stream, Bytes)>,
}

/// Both ends; without `stdin` the input is at its end from the beginning.
pub(super) fn pair(stdin: bool) -> (Local, Remote) {
    let (stdin_in, stdin_out) = mpsc::channel(QUEUE);
    let (sizes_in, sizes_out) = mpsc::channel(QUEUE);
    let (out_in, out_out) = mpsc::channel(QUEUE);
    let local = Local { stdin: stdin.then_some(stdin_in), sizes: sizes_in, out: out_out };
    (local, Remote { stdin: stdin_out, sizes: sizes_out, out: out_in })
}

/// What a client is told at a command's end.
pub(super) fn ended(code: i32) -> Value {
    if code == 0 {
        return json!({"metadata": {}, "status": "Success"});
    }
    let text = format!("command terminated with non-zero exit code: exit status {code}");
    json!({
        "metadata": {}, "status": "Failure", "reason": "NonZeroExitCode", "message": text,
        "details": {"causes": [{"reason": "ExitCode", "message": code.to_string()}]},
    })
}

/// What a client is told when a command cannot be run.
pub(super) fn broken(text: &str) -> Value {
    json!({"metadata": {}, "status": "Failure", "reason": "InternalError", "message": text, "code": 500})
}

/// Takes a guest's output and hands it to a client; the guest waits for a client that is slow.
#[derive(Default)]
pub(super) struct Outlet {
    inner: Mutex<Waiting>,
    news: Notify,
}

#[derive(Default)]
struct Waiting {
    pieces: VecDeque<(Stream, Bytes)>,
    bytes: usize,
    wakers: Vec<Waker>,
}

impl LogSink for Outlet {
    fn write(&self, stream: Stream, bytes: &[u8]) {
        let mut inner = self.inner.lock();
        inner.bytes += bytes.len();
        inner.pieces.push_back((stream, Bytes::copy_from_slice(bytes)));
        drop(inner);
        self.news.notify_one();
    }

    fn poll_room(&self, cx: &mut Context<'_>) -> Poll<usize> {
        let mut inner = self.inner.lock();
        let room = OUTPUT_BYTES.saturating_sub(inner.bytes);
        if room > 0 {
            return Poll::Ready(room.min(wasmk_runtime::MAX_WRITE));
        }
        inner.wakers.push(cx.waker().clone());
        Poll::Pending
    }
}

impl Outlet {
    fn take(&self) -> Option<(Stream, Bytes)> {
        let mut inner = self.inner.lock();
        let piece = inner.pieces.pop_front()?;
        inner.bytes -= piece.1.len();
        inner.wakers.drain(..).for_each(Waker::wake);
        Some(piece)
    }

    /// Hands on what comes until the client is gone; never ends otherwise.
    pub(super) async fn pump(&self, out: &mpsc::Sender<(Stream, Bytes)>) {
        loop {
            self.drain(out).await;
            if out.is_closed() {
                return;
            }
            self.news.notified().await;
        }
    }

    /// Hands on what is there. Nothing is lost when it is given up half way.
    pub(super) async fn drain(&self, out: &mpsc::Sender<(Stream, Bytes)>) {
        while !self.inner.lock().pieces.is_empty() {
            let Ok(place) = out.reserve().await else { return };
            if let Some(piece) = self.take() {
                place.send(piece);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_query_says_what_is_wanted() {
        let check = |query: &str, expect: &str| {
            let wants = Wants::of(&format!("/exec/n/p/c?{query}").parse().unwrap());
            let mut shown = wants.command.join(" ");
            for (on, name) in [
                (wants.stdin, "<stdin"),
                (wants.stdout, ">stdout"),
                (wants.stderr, ">stderr"),
                (wants.tty, "tty"),
            ] {
                if on {
                    shown = format!("{shown} {name}");
                }
            }
            assert_eq!(shown.trim(), expect, "{query}");
        };
        check("command=ls&command=-l&stdout=true&stderr=1", "ls -l >stdout >stderr");
        check("command=sh&stdin=true&stdout=true&stderr=true&tty=true", "sh <stdin >stdout tty");
        check("command=a%20b&stdin=false&container=x", "a b");
        check("", "");
    }

    #[tokio::test]
    async fn a_guest_waits_for_a_slow_client() {
        let outlet = Outlet::default();
        let mut cx = Context::from_waker(Waker::noop());
        outlet.write(Stream::Stdout, &vec![b'x'; OUTPUT_BYTES]);
        assert!(outlet.poll_room(&mut cx).is_pending());
        let (out, mut client) = mpsc::channel(1);
        outlet.drain(&out).await;
        assert_eq!(client.recv().await.unwrap().1.len(), OUTPUT_BYTES);
        assert!(outlet.poll_room(&mut cx).is_ready());
    }

    #[tokio::test]
    async fn a_piece_that_waits_for_the_client_outlives_the_pump() {
        let outlet = Outlet::default();
        let (out, mut client) = mpsc::channel(1);
        outlet.write(Stream::Stdout, b"first");
        outlet.write(Stream::Stdout, b"second");
        tokio::select! {
            biased;
            () = outlet.pump(&out) => unreachable!("the client is there"),
            () = tokio::task::yield_now() => {}
        }
        assert_eq!(client.recv().await.unwrap().1, "first");
        outlet.drain(&out).await;
        assert_eq!(client.recv().await.unwrap().1, "second");
    }

    #[test]
    fn ends_are_told_as_clients_read_them() {
        assert_eq!(ended(0)["status"], "Success");
        assert_eq!(ended(3)["details"]["causes"][0]["message"], "3");
    }
}
