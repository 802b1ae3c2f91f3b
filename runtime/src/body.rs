//! HTTP bodies between the host and its guests.

use std::error::Error as StdError;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body::{Body as HttpBody, Frame, SizeHint};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Empty, Full};

/// Why a body broke off.
pub type BodyError = Box<dyn StdError + Send + Sync>;

/// A streaming body of unknown origin.
pub type Body = UnsyncBoxBody<Bytes, BodyError>;

/// Boxes any body.
pub fn boxed<B>(body: B) -> Body
where
    B: HttpBody<Data = Bytes> + Send + 'static,
    B::Error: Into<BodyError>,
{
    body.map_err(Into::into).boxed_unsync()
}

/// A body of one piece.
pub fn full(bytes: impl Into<Bytes>) -> Body {
    boxed(Full::new(bytes.into()))
}

/// A body without bytes.
pub fn empty() -> Body {
    boxed(Empty::new())
}

/// A body longer than allowed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("body is longer than {limit} bytes")]
pub struct TooLong {
    /// The limit passed, in bytes.
    pub limit: u64,
}

/// Passes on at most `limit` bytes and then fails with [`TooLong`].
pub(crate) struct Limited<B> {
    inner: B,
    limit: u64,
    left: u64,
}

impl<B> Limited<B> {
    pub(crate) fn new(inner: B, limit: u64) -> Self {
        Self { inner, limit, left: limit }
    }
}

impl<B> HttpBody for Limited<B>
where
    B: HttpBody<Data = Bytes> + Unpin,
    B::Error: Into<BodyError>,
{
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let this = &mut *self;
        let frame = match std::task::ready!(Pin::new(&mut this.inner).poll_frame(cx)) {
            None => return Poll::Ready(None),
            Some(Err(error)) => return Poll::Ready(Some(Err(error.into()))),
            Some(Ok(frame)) => frame,
        };
        let length = frame.data_ref().map_or(0, |data| data.len() as u64);
        let Some(left) = this.left.checked_sub(length) else {
            return Poll::Ready(Some(Err(TooLong { limit: this.limit }.into())));
        };
        this.left = left;
        Poll::Ready(Some(Ok(frame)))
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn limit_is_exact() {
        let read = |limit| Limited::new(full("12345"), limit).collect();
        assert_eq!(read(5).await.unwrap().to_bytes(), "12345");
        let error = read(4).await.unwrap_err();
        assert_eq!(error.downcast_ref::<TooLong>(), Some(&TooLong { limit: 4 }));
    }
}
