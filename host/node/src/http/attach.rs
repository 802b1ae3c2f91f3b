//! attach: a client joins what a container prints from now on. A Wasm container's standard input is
//! closed, so only its output can be joined.

use axum::{
    extract::{Path, Request, State},
    http::StatusCode,
    response::Response,
};
use futures::StreamExt;
use serde_json::Value;
use wasmk_cri::v1::AttachRequest;

use super::{
    Shared,
    command::{Remote, Wants, ended},
    exec::{self, Whose, status},
    remote,
};
use crate::{
    logs::{LogOptions, LogStream, Stream},
    running::Running,
};

pub(super) async fn attach(
    State(shared): State<Shared>,
    Path(whose): Path<Whose>,
    request: Request,
) -> Response {
    let wants = Wants::of(request.uri());
    match exec::running(&shared, &whose) {
        Err(response) => *response,
        Ok(Running::Wasm(_)) => to_guest(&shared, &whose, wants, request),
        Ok(Running::Container(id)) => to_container(&shared, id, wants, request).await,
    }
}

fn to_guest(shared: &Shared, whose: &Whose, wants: Wants, request: Request) -> Response {
    let (namespace, pod, container) = whose;
    if wants.stdin {
        let text = format!(
            "cannot attach: container {container} of pod {pod} is WebAssembly, its standard input is closed; \
             attach without -i"
        );
        return status(StatusCode::BAD_REQUEST, "BadRequest", &text);
    }
    let options = LogOptions { follow: true, tail: Some(0), ..LogOptions::default() };
    match super::logs::latest(shared, namespace, pod, container, options) {
        Ok(log) => remote::serve(request, wants, move |remote| follow(log, remote)),
        Err(refusal) => status(refusal.0, "BadRequest", &refusal.1),
    }
}

async fn follow(mut log: LogStream, remote: Remote) -> Value {
    while let Some(Ok(bytes)) = log.next().await {
        if remote.out.send((Stream::Stdout, bytes)).await.is_err() {
            break;
        }
    }
    ended(0)
}

async fn to_container(shared: &Shared, id: String, wants: Wants, request: Request) -> Response {
    let Some(containers) = &shared.cx.containers else {
        return status(StatusCode::INTERNAL_SERVER_ERROR, "InternalError", "no container runtime is there");
    };
    let asked = AttachRequest {
        container_id: id,
        stdin: wants.stdin,
        tty: wants.tty,
        stdout: wants.stdout,
        stderr: wants.stderr,
    };
    match containers.client.attach(asked).await {
        Ok(answer) => exec::join(answer.url, wants, request),
        Err(error) => status(StatusCode::INTERNAL_SERVER_ERROR, "InternalError", &error.to_string()),
    }
}
