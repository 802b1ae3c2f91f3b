//! exec and attach. A Wasm container has no shell and no other programs, so the answer is a
//! clear refusal in the form that kubectl shows.

use axum::{
    extract::{Path, State},
    http::{StatusCode, header},
    response::{IntoResponse, Response},
};
use serde_json::json;

use super::Shared;

pub(super) async fn exec(state: State<Shared>, path: Path<(String, String, String)>) -> Response {
    refuse(&state, &path, "exec", "it has no shell and no other programs")
}

pub(super) async fn attach(state: State<Shared>, path: Path<(String, String, String)>) -> Response {
    refuse(&state, &path, "attach", "its standard input is closed")
}

fn refuse(
    State(shared): &State<Shared>,
    Path((namespace, pod, container)): &Path<(String, String, String)>,
    verb: &str,
    why: &str,
) -> Response {
    let known = shared.pods.find(namespace, pod);
    let has = known.as_ref().is_some_and(|p| super::logs::has_container(p, container));
    match (known, has) {
        (None, _) => status(StatusCode::NOT_FOUND, "NotFound", &format!("pods \"{pod}\" not found")),
        (Some(_), false) => {
            let text = format!("container {container} is not valid for pod {pod}");
            status(StatusCode::BAD_REQUEST, "BadRequest", &text)
        }
        (Some(_), true) => {
            let text = format!(
                "cannot {verb}: container {container} of pod {pod} is WebAssembly, {why}; use kubectl logs, \
                 kubectl port-forward, or run the program with other arguments in a pod of its own"
            );
            status(StatusCode::BAD_REQUEST, "BadRequest", &text)
        }
    }
}

/// A `Status`, which kubectl shows as an error from the server.
pub(super) fn status(code: StatusCode, reason: &str, message: &str) -> Response {
    let body = json!({
        "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
        "message": message, "reason": reason, "code": code.as_u16(),
    });
    (code, [(header::CONTENT_TYPE, "application/json")], body.to_string()).into_response()
}
