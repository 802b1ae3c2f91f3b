//! port-forward to a pod's address.

use axum::{
    extract::{Path, State},
    http::StatusCode,
    response::Response,
};

use super::Shared;

pub(super) async fn forward(
    State(shared): State<Shared>,
    Path((namespace, pod)): Path<(String, String)>,
) -> Response {
    if shared.pods.find(&namespace, &pod).is_none() {
        return super::exec::status(StatusCode::NOT_FOUND, "NotFound", &format!("pods \"{pod}\" not found"));
    }
    let text = "this node does not forward ports";
    super::exec::status(StatusCode::BAD_REQUEST, "BadRequest", text)
}
