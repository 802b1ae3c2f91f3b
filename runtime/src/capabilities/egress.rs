//! Counts what one request to a guest sends out by HTTP.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http::Request;
use http_body::{Body as HttpBody, Frame, SizeHint};
use http_body_util::BodyExt;
use wasmtime_wasi_http::{Error, WasiBody};

/// Bytes that may still be sent. Clones count together.
#[derive(Debug, Clone)]
pub(crate) struct Egress {
    pub(crate) most: u64,
    left: Arc<AtomicU64>,
}

impl Egress {
    pub(crate) fn new(most: u64) -> Self {
        Self { most, left: Arc::new(AtomicU64::new(most)) }
    }

    /// The request, if its head may be sent, with a body that breaks off where the limit is.
    pub(crate) fn counted(&self, request: Request<WasiBody>) -> Result<Request<WasiBody>, Error> {
        let field =
            |(name, value): (&http::HeaderName, &http::HeaderValue)| name.as_str().len() + value.len();
        let path = request.uri().path_and_query().map_or(1, |path| path.as_str().len());
        let head =
            request.method().as_str().len() + path + request.headers().iter().map(field).sum::<usize>();
        self.take(head)?;
        let egress = self.clone();
        Ok(request.map(|body| Counted { body, egress }.boxed_unsync()))
    }

    fn take(&self, bytes: usize) -> Result<(), Error> {
        let taken = self
            .left
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(bytes as u64));
        let refused = |_| Error::InternalError(Some(format!("more than {} bytes to send out", self.most)));
        taken.map(|_| ()).map_err(refused)
    }
}

struct Counted {
    body: WasiBody,
    egress: Egress,
}

impl HttpBody for Counted {
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        let Some(frame) = ready!(Pin::new(&mut self.body).poll_frame(cx)) else {
            return Poll::Ready(None);
        };
        let counted = frame.and_then(|frame| {
            self.egress.take(frame.data_ref().map_or(0, Bytes::len))?;
            Ok(frame)
        });
        Poll::Ready(Some(counted))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use http_body_util::Full;

    use super::*;

    fn request(body: &'static str) -> Request<WasiBody> {
        let body = Full::new(Bytes::from(body)).map_err(|never| match never {}).boxed_unsync();
        // GET, the path and one field: 3 + 2 + 3.
        Request::get("http://a/b").header("c", "de").body(body).unwrap()
    }

    #[tokio::test]
    async fn all_requests_count_together_and_the_limit_is_exact() {
        let send = async |egress: &Egress, body| match egress.counted(request(body)) {
            Ok(request) => request.into_body().collect().await.is_ok(),
            Err(_) => false,
        };
        let egress = Egress::new(8 + 4 + 8);
        assert!(send(&egress, "1234").await);
        assert!(send(&egress, "").await);
        assert!(!send(&egress, "").await, "no byte is left for a head");
        assert!(!send(&Egress::new(8 + 3), "1234").await, "the body is cut");
        assert!(send(&Egress::new(8 + 4), "1234").await);
    }
}
