//! What the gateway needs from a node that can answer requests in place.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use async_trait::async_trait;
use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt, Full, combinators::UnsyncBoxBody};
use k8s_openapi::api::core::v1::PodSpec;
use thiserror::Error;

/// Any error of a body.
pub type BoxError = Box<dyn std::error::Error + Send + Sync>;
/// A request's or answer's body, streamed.
pub type Body = UnsyncBoxBody<Bytes, BoxError>;

/// A body of these bytes.
pub fn full(bytes: impl Into<Bytes>) -> Body {
    Full::new(bytes.into()).map_err(|never| match never {}).boxed_unsync()
}

/// What to run for a revision.
#[derive(Clone, Debug, PartialEq)]
pub struct Function {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub revision: String,
    /// Its labels, which its pods have as well.
    pub labels: BTreeMap<String, String>,
    /// Its annotations, which its pods have as well.
    pub annotations: BTreeMap<String, String>,
    /// Its containers, environment included.
    pub pod: PodSpec,
    /// Seconds a request may take.
    pub timeout_seconds: u32,
    /// Most requests an instance answers at a time; 0 for no limit.
    pub concurrency: u32,
}

/// Why a revision is not answered in place.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum Refused {
    /// It needs a pod: its image is no WebAssembly, or it has more than one container.
    #[error("{0}")]
    NeedsPod(String),
    /// It cannot run at all.
    #[error("{message}")]
    Failed {
        /// One word, for instance `ErrImagePull`.
        reason: String,
        /// What is wrong and with which image.
        message: String,
    },
}

/// Runs functions in this process.
#[async_trait]
pub trait Executor: Send + Sync + 'static {
    /// Fetches and compiles what the revision needs, so that a call has nothing left to do but
    /// make an instance. Called again with the same function it answers from what is there.
    async fn prepare(&self, function: &Function) -> Result<Prepared, Refused>;

    /// Forgets a revision that is gone.
    fn forget(&self, namespace: &str, revision: &str);
}

/// A revision that can be called.
#[derive(Clone)]
pub struct Prepared {
    /// Answers one request.
    pub handler: Arc<dyn Handler>,
    /// `repository@sha256:…` of the image.
    pub image: String,
}

impl std::fmt::Debug for Prepared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Prepared({})", self.image)
    }
}

/// Answers requests for one revision.
#[async_trait]
pub trait Handler: Send + Sync {
    /// Answers one request. A guest that traps or takes too long is an answer as well (500, 504).
    /// `routed` is how long finding the revision took, for whoever keeps figures.
    async fn call(&self, request: Request<Body>, routed: Duration) -> Response<Body>;
}
