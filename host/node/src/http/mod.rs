//! The node's HTTP API, with the kubelet's paths. The API server reaches it through a dialer
//! and passes users' requests on; it has authorized them.

mod attach;
mod command;
mod exec;
mod forward;
mod logs;
mod observe;
mod remote;
mod spdy;
mod upgrade;
mod upstream;

use std::sync::Arc;

use axum::{
    Router,
    http::StatusCode,
    response::{IntoResponse, Response},
    routing::{any, get},
};

use crate::{context::Context, pods::Pods, volume_stats::VolumeStats};

/// What the handlers need.
#[derive(Clone)]
pub(crate) struct Shared {
    pub(crate) cx: Arc<Context>,
    pub(crate) pods: Arc<Pods>,
    /// What of volumes is in use.
    pub(crate) volumes: Arc<VolumeStats>,
}

/// The routes.
pub(crate) fn router(cx: Arc<Context>, pods: Arc<Pods>) -> Router {
    Router::new()
        .route("/healthz", get(|| async { "ok" }))
        .route("/pods", get(observe::pods))
        .route("/runningpods/", get(observe::pods))
        .route("/metrics", get(observe::metrics))
        .route("/metrics/resource", get(observe::resource))
        .route("/metrics/cadvisor", get(observe::cadvisor))
        .route("/stats/summary", get(observe::summary))
        .route("/containerLogs/{namespace}/{pod}/{container}", get(logs::container))
        .route("/functionLogs/{namespace}/{revision}", get(logs::function))
        .route("/exec/{namespace}/{pod}/{container}", any(exec::exec))
        .route("/attach/{namespace}/{pod}/{container}", any(attach::attach))
        .route("/portForward/{namespace}/{pod}", any(forward::forward))
        .with_state(Shared { cx, pods, volumes: Arc::default() })
}

/// Serves a node's API on one stream (a pipe in this process, or one out of the agent's tunnel)
/// until the other side closes it.
pub async fn serve_stream<S>(router: Router, stream: S)
where
    S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send + 'static,
{
    let service = hyper_util::service::TowerToHyperService::new(router);
    let connection = hyper::server::conn::http1::Builder::new()
        .serve_connection(hyper_util::rt::TokioIo::new(stream), service)
        .with_upgrades();
    if let Err(error) = connection.await {
        tracing::debug!(%error, "a connection to the node's API broke off");
    }
}

/// An answer for the user, in words.
pub(crate) struct Refusal(pub(crate) StatusCode, pub(crate) String);

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let reason = match self.0 {
            StatusCode::NOT_FOUND => "NotFound",
            StatusCode::BAD_REQUEST => "BadRequest",
            _ => "InternalError",
        };
        exec::status(self.0, reason, &self.1)
    }
}

impl Refusal {
    pub(crate) fn not_found(text: impl Into<String>) -> Self {
        Self(StatusCode::NOT_FOUND, text.into())
    }

    pub(crate) fn bad(text: impl Into<String>) -> Self {
        Self(StatusCode::BAD_REQUEST, text.into())
    }
}
