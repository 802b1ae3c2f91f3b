//! Bodies on their way: answers that keep their request counted and within its time, and requests that can be
//! sent again as long as nothing of them has been read.

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use http_body::{Body as HttpBody, Frame, SizeHint};
use parking_lot::Mutex;
use tokio::time::{Instant, Sleep, sleep_until};

use super::turns::Turn;
use crate::{
    executor::{Body, BoxError, full},
    fleet::InFlight,
};

/// An answer's body. Its request counts as under way until it is gone.
pub struct Answer {
    body: Body,
    limits: Option<Box<Clock>>,
    held: Held,
}

/// What a request holds until its answer has been sent.
#[derive(Default)]
pub(super) struct Held {
    _in_flight: Option<InFlight>,
    pub(super) turn: Option<Turn>,
    pub(super) slot: Option<super::pods::Slot>,
    _under_way: Option<super::UnderWay>,
}

impl Held {
    pub(super) fn new(in_flight: InFlight) -> Self {
        Self { _in_flight: Some(in_flight), ..Self::default() }
    }
}

/// Times that an answer that streams has to keep.
struct Clock {
    deadline: Pin<Box<Sleep>>,
    idle: Option<(Duration, Pin<Box<Sleep>>)>,
}

impl Answer {
    pub(super) fn new(body: Body, held: Held, deadline: Instant, idle: Option<Duration>) -> Self {
        // What is there in full is sent at once and needs no clock.
        let streams = body.size_hint().exact().is_none();
        let limits = streams.then(|| {
            let idle = idle.map(|span| (span, Box::pin(sleep_until(Instant::now() + span))));
            Box::new(Clock { deadline: Box::pin(sleep_until(deadline)), idle })
        });
        Self { body, limits, held }
    }

    /// The same body; its connection waits for no other request until it is gone.
    pub(super) fn until_gone(mut self, under_way: super::UnderWay) -> Self {
        self.held._under_way = Some(under_way);
        self
    }

    /// A body of another's making that belongs to no revision.
    pub(super) fn whole(body: Body) -> Self {
        Self { body, limits: None, held: Held::default() }
    }

    /// A body that belongs to no revision.
    pub(super) fn plain(bytes: impl Into<Bytes>) -> Self {
        Self { body: full(bytes), limits: None, held: Held::default() }
    }
}

impl Clock {
    /// What has run out, if anything has.
    fn poll(&mut self, cx: &mut Context<'_>) -> Option<&'static str> {
        if self.deadline.as_mut().poll(cx).is_ready() {
            return Some("the answer took longer than timeoutSeconds");
        }
        let (_, idle) = self.idle.as_mut()?;
        idle.as_mut().poll(cx).is_ready().then_some("the answer paused for longer than idleTimeoutSeconds")
    }

    fn moved(&mut self) {
        if let Some((span, idle)) = &mut self.idle {
            idle.as_mut().reset(Instant::now() + *span);
        }
    }
}

impl HttpBody for Answer {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let polled = Pin::new(&mut self.body).poll_frame(cx);
        let Some(clock) = &mut self.limits else { return polled };
        if polled.is_ready() {
            clock.moved();
            return polled;
        }
        match clock.poll(cx) {
            Some(why) => Poll::Ready(Some(Err(why.into()))),
            None => Poll::Pending,
        }
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// A request's body that its owner gets back when the one it was lent to did not read any of it.
pub(super) struct Lent {
    owner: Arc<Mutex<Option<Body>>>,
    taken: Option<Body>,
    hint: SizeHint,
    ended: bool,
}

impl Lent {
    /// The body to send, and where it is found again.
    pub(super) fn new(body: Body) -> (Self, Arc<Mutex<Option<Body>>>) {
        let (hint, ended) = (body.size_hint(), body.is_end_stream());
        let owner = Arc::new(Mutex::new(Some(body)));
        (Self { owner: owner.clone(), taken: None, hint, ended }, owner)
    }
}

impl HttpBody for Lent {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        if self.taken.is_none() {
            let body = self.owner.lock().take();
            self.taken = body;
        }
        match &mut self.taken {
            Some(body) => Pin::new(body).poll_frame(cx),
            None => Poll::Ready(None),
        }
    }

    fn is_end_stream(&self) -> bool {
        self.taken.as_ref().map_or(self.ended, HttpBody::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        self.taken.as_ref().map_or_else(|| self.hint, HttpBody::size_hint)
    }
}

#[cfg(test)]
mod tests {
    use http_body_util::{BodyExt, StreamBody};

    use super::*;

    #[tokio::test]
    async fn a_body_comes_back_unless_it_was_read() {
        let (lent, owner) = Lent::new(full("x"));
        drop(lent);
        let back = owner.lock().take().unwrap();
        assert_eq!(back.collect().await.unwrap().to_bytes(), "x");
        let (lent, owner) = Lent::new(full("x"));
        assert_eq!(lent.collect().await.unwrap().to_bytes(), "x");
        assert!(owner.lock().is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn a_stream_that_stops_is_ended_in_time() {
        for (deadline, idle, words) in
            [(5, None, "timeoutSeconds"), (60, Some(Duration::from_secs(3)), "idleTimeoutSeconds")]
        {
            let first = futures::stream::iter([Ok::<_, BoxError>(Frame::data(Bytes::from_static(b"x")))]);
            let endless = futures::StreamExt::chain(first, futures::stream::pending());
            let body = StreamBody::new(endless).boxed_unsync();
            let deadline = Instant::now() + Duration::from_secs(deadline);
            let error = Answer::new(body, Held::default(), deadline, idle).collect().await.unwrap_err();
            assert!(error.to_string().contains(words), "{error}");
        }
    }
}
