//! A guest's output on its way to the agent.

use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use parking_lot::Mutex;
use tokio::sync::mpsc::UnboundedSender;
use wasmk_runtime::{LogSink, MAX_WRITE};

use crate::message::{Channel, ToAgent, WINDOW, frame};

/// How much of a guest's output the agent takes now.
pub(super) struct Window(Mutex<State>);

struct State {
    /// Below nothing when several instances have printed at the same time.
    left: i64,
    waiting: Vec<Waker>,
}

impl Default for Window {
    fn default() -> Self {
        Self(Mutex::new(State { left: i64::try_from(WINDOW).unwrap_or(i64::MAX), waiting: Vec::new() }))
    }
}

impl Window {
    pub(super) fn credit(&self, bytes: u32) {
        let mut state = self.0.lock();
        state.left += i64::from(bytes);
        let waiting = if state.left > 0 { std::mem::take(&mut state.waiting) } else { Vec::new() };
        drop(state);
        waiting.into_iter().for_each(Waker::wake);
    }
}

/// One of a guest's streams.
pub(super) struct Output {
    pub(super) guest: u64,
    pub(super) channel: Channel,
    pub(super) window: Arc<Window>,
    pub(super) out: UnboundedSender<Vec<u8>>,
}

impl LogSink for Output {
    fn poll_room(&self, cx: &mut Context<'_>) -> Poll<usize> {
        let mut state = self.window.0.lock();
        match usize::try_from(state.left) {
            Ok(left) if left > 0 => Poll::Ready(left.min(MAX_WRITE)),
            _ => {
                if !state.waiting.iter().any(|waker| waker.will_wake(cx.waker())) {
                    state.waiting.push(cx.waker().clone());
                }
                Poll::Pending
            }
        }
    }

    fn write(&self, bytes: &[u8]) {
        self.window.0.lock().left -= i64::try_from(bytes.len()).unwrap_or(i64::MAX);
        let (guest, channel) = (self.guest, self.channel);
        let output = ToAgent::Output { guest, channel, bytes: bytes.to_vec() };
        // Without an agent the process ends.
        let _ = self.out.send(frame(&output, 0));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_guest_waits_until_its_output_is_taken() {
        let (out, mut sent) = tokio::sync::mpsc::unbounded_channel();
        let window = Arc::new(Window::default());
        let output = Output { guest: 1, channel: Channel::Stdout, window: window.clone(), out };
        let mut cx = Context::from_waker(Waker::noop());
        assert_eq!(output.poll_room(&mut cx), Poll::Ready(WINDOW));
        output.write(&vec![b'x'; WINDOW]);
        assert_eq!(output.poll_room(&mut cx), Poll::Pending);
        window.credit(10);
        assert_eq!(output.poll_room(&mut cx), Poll::Ready(10));
        assert!(sent.try_recv().is_ok());
    }
}
