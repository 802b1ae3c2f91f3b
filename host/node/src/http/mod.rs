//! The node's HTTP API, with the kubelet's paths. The API server reaches it through a dialer
//! and passes users' requests on; it has authorized them.

mod exec;
mod forward;
mod logs;
mod observe;

use std::sync::Arc;

use axum::{
    Router,
    http::StatusCode,
    response::{IntoResponse, Response},
    routing::{any, get},
};

use crate::{context::Context, pods::Pods};

/// What the handlers need.
#[derive(Clone)]
pub(crate) struct Shared {
    pub(crate) cx: Arc<Context>,
    pub(crate) pods: Arc<Pods>,
}

/// The routes.
pub(crate) fn router(cx: Arc<Context>, pods: Arc<Pods>) -> Router {
    Router::new()
        .route("/healthz", get(|| async { "ok" }))
        .route("/pods", get(observe::pods))
        .route("/runningpods/", get(observe::pods))
        .route("/metrics", get(observe::metrics))
        .route("/stats/summary", get(observe::summary))
        .route("/containerLogs/{namespace}/{pod}/{container}", get(logs::container))
        .route("/functionLogs/{namespace}/{revision}", get(logs::function))
        .route("/exec/{namespace}/{pod}/{container}", any(exec::exec))
        .route("/attach/{namespace}/{pod}/{container}", any(exec::attach))
        .route("/portForward/{namespace}/{pod}", any(forward::forward))
        .with_state(Shared { cx, pods })
}

/// An answer for the user, in words.
pub(crate) struct Refusal(pub(crate) StatusCode, pub(crate) String);

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        (self.0, self.1).into_response()
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
