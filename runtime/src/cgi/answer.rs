//! What a command prints, as an answer: first its head, then its body while it is printed.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use bytes::Bytes;
use http::Response;
use http_body::{Body as HttpBody, Frame};
use parking_lot::Mutex;
use tokio_util::task::AbortOnDropHandle;

use super::head;
use crate::body::BodyError;
use crate::error::CallError;
use crate::spec::{HttpLimits, LogSink, MAX_WRITE};

/// Bytes of a body that are printed before the client has taken them; then the command waits.
const MAX_HELD: usize = 256 << 10;

/// A command's standard output. Clones are the same.
#[derive(Clone)]
pub(super) struct Output(Arc<Mutex<State>>);

struct State {
    max_head: usize,
    max_body: u64,
    /// Until the head is whole.
    head: Vec<u8>,
    answer: Option<Response<()>>,
    in_body: bool,
    pieces: VecDeque<Bytes>,
    held: usize,
    printed: u64,
    ended: Option<Result<(), CallError>>,
    /// Waits for what is printed.
    reader: Option<Waker>,
    /// Waits for room.
    writer: Option<Waker>,
}

impl Output {
    pub(super) fn new(limits: &HttpLimits) -> Self {
        Self(Arc::new(Mutex::new(State {
            max_head: limits.max_header_bytes,
            max_body: limits.max_response_body,
            head: Vec::new(),
            answer: None,
            in_body: false,
            pieces: VecDeque::new(),
            held: 0,
            printed: 0,
            ended: None,
            reader: None,
            writer: None,
        })))
    }

    /// Says how the command has ended; only the first to say so counts.
    pub(super) fn end(&self, outcome: Result<(), CallError>) {
        let mut state = self.0.lock();
        state.ended.get_or_insert(outcome);
        State::wake(&mut state.reader);
    }

    /// The answer's head, when it has been printed.
    pub(super) async fn head(&self) -> Result<Response<()>, CallError> {
        std::future::poll_fn(|cx| {
            let mut state = self.0.lock();
            if let Some(answer) = state.answer.take() {
                return Poll::Ready(Ok(answer));
            }
            match &state.ended {
                Some(Err(error)) => Poll::Ready(Err(error.clone())),
                Some(Ok(())) if state.head.is_empty() => Poll::Ready(Err(CallError::NoResponse)),
                Some(Ok(())) => {
                    Poll::Ready(Err(CallError::Guest("of a head without an empty line at its end".into())))
                }
                None => {
                    state.reader = Some(cx.waker().clone());
                    Poll::Pending
                }
            }
        })
        .await
    }
}

impl State {
    fn wake(waker: &mut Option<Waker>) {
        if let Some(waker) = waker.take() {
            waker.wake();
        }
    }

    fn head(&mut self, bytes: &[u8]) {
        // The empty line may have begun with what came before.
        let from = self.head.len().saturating_sub(3);
        self.head.extend_from_slice(bytes);
        let end = head::end(&self.head, from);
        if end.unwrap_or(self.head.len()) > self.max_head {
            let why = format!("of a head longer than {} bytes", self.max_head);
            self.ended.get_or_insert(Err(CallError::Guest(why)));
            return;
        }
        let Some(end) = end else { return };
        let head = std::mem::take(&mut self.head);
        match head::answer(&head[..end]) {
            Ok(answer) => self.answer = Some(answer),
            Err(why) => {
                self.ended.get_or_insert(Err(CallError::Guest(format!("of {why}"))));
                return;
            }
        }
        self.in_body = true;
        self.body(&head[end..]);
    }

    fn body(&mut self, bytes: &[u8]) {
        if bytes.is_empty() {
            return;
        }
        self.printed += bytes.len() as u64;
        if self.printed > self.max_body {
            self.ended.get_or_insert(Err(CallError::ResponseTooLong(self.max_body)));
            return;
        }
        self.held += bytes.len();
        self.pieces.push_back(Bytes::copy_from_slice(bytes));
    }
}

impl LogSink for Output {
    fn poll_room(&self, cx: &mut Context<'_>) -> Poll<usize> {
        let mut state = self.0.lock();
        // What nobody will read any more needs no room.
        if state.ended.is_some() || state.held < MAX_HELD {
            return Poll::Ready(MAX_WRITE);
        }
        // Who only asks leaves the one that waits in its place.
        if !cx.waker().will_wake(Waker::noop()) {
            state.writer = Some(cx.waker().clone());
        }
        Poll::Pending
    }

    fn write(&self, bytes: &[u8]) {
        let mut state = self.0.lock();
        if state.ended.is_some() {
            return;
        }
        if state.in_body {
            state.body(bytes)
        } else {
            state.head(bytes)
        }
        State::wake(&mut state.reader);
    }
}

/// The body of an answer; dropping it ends the command.
pub(super) struct Answer {
    output: Output,
    _command: AbortOnDropHandle<()>,
}

impl Answer {
    pub(super) fn new(output: Output, command: AbortOnDropHandle<()>) -> Self {
        Self { output, _command: command }
    }
}

impl HttpBody for Answer {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let mut state = self.output.0.lock();
        if let Some(piece) = state.pieces.pop_front() {
            state.held -= piece.len();
            State::wake(&mut state.writer);
            return Poll::Ready(Some(Ok(Frame::data(piece))));
        }
        match &mut state.ended {
            Some(outcome) => {
                // Said once; then the body is at its end.
                let outcome = std::mem::replace(outcome, Ok(()));
                Poll::Ready(outcome.err().map(|error| Err(error.into())))
            }
            None => {
                state.reader = Some(cx.waker().clone());
                Poll::Pending
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;

    use super::*;

    fn output(max_head: usize, max_body: u64) -> Output {
        let limits =
            HttpLimits { max_header_bytes: max_head, max_response_body: max_body, ..HttpLimits::default() };
        Output::new(&limits)
    }

    fn status(output: &Output) -> Option<Result<u16, String>> {
        let head = output.head().now_or_never()?;
        Some(head.map(|r| r.status().as_u16()).map_err(|e| e.to_string()))
    }

    #[test]
    fn a_head_may_come_in_any_pieces() {
        let text = b"Status: 202 Accepted\r\nA: b\r\n\r\nbody";
        for size in 1..text.len() {
            let output = output(100, 100);
            assert!(status(&output).is_none());
            text.chunks(size).for_each(|piece| output.write(piece));
            assert_eq!(status(&output), Some(Ok(202)), "pieces of {size}");
            let body: Vec<u8> = output.0.lock().pieces.iter().flatten().copied().collect();
            assert_eq!(body, b"body");
        }
    }

    #[test]
    fn what_is_no_answer_says_why() {
        let check = |printed: &str, ended: Option<Result<(), CallError>>, expect: &str| {
            let output = output(20, 100);
            output.write(printed.as_bytes());
            ended.into_iter().for_each(|ended| output.end(ended));
            let found = status(&output).expect("an end").expect_err("no answer");
            assert!(found.contains(expect), "{printed:?}: {found}");
        };
        check("", Some(Ok(())), "without a response");
        check("a: b\n", Some(Ok(())), "without an empty line");
        check("a: b\n", Some(Err(CallError::OutOfMemory)), "memory limit");
        check("hello\n\n", None, "hello");
        check("a: bbbbbbbbbbbbbbbbbbbbbbbb\n\n", None, "longer than 20 bytes");
        check("aaaaaaaaaaaaaaaaaaaaaaaaaaa", None, "longer than 20 bytes");
    }

    #[test]
    fn a_body_is_bounded_and_its_command_waits_for_the_client() {
        let room = |output: &Output| output.poll_room(&mut Context::from_waker(Waker::noop())).is_ready();
        let full = output(100, u64::MAX);
        full.write(b"a: b\n\n");
        full.write(&[0; MAX_HELD]);
        assert!(!room(&full), "nobody has taken anything");
        full.end(Err(CallError::Stopped));
        assert!(room(&full), "nobody will");
        let long = output(100, 3);
        long.write(b"a: b\n\n1234");
        assert_eq!(status(&long), Some(Ok(200)));
        assert!(matches!(long.0.lock().ended, Some(Err(CallError::ResponseTooLong(3)))));
    }
}
