//! exec: commands in containers. In a Wasm container a command is a `.wasm` file that its volumes
//! carry; for anything else the answer is a clear refusal in the form that kubectl shows.

use std::sync::Arc;

use axum::{
    extract::{Path, Request, State},
    http::{StatusCode, header},
    response::{IntoResponse, Response},
};
use bytes::Bytes;
use serde_json::{Value, json};
use wasmk_cri::v1::ExecRequest;
use wasmk_runtime::{Stdin, StopSignal};

use super::{
    Shared,
    command::{Outlet, Remote, Wants, ended},
    remote, upstream,
};
use crate::{
    engine::{Launch, Program},
    running::Running,
};

/// Bytes of input on their way to a guest.
const INPUT: usize = 64 * 1024;

/// Names of the pod's namespace, the pod and the container.
pub(super) type Whose = (String, String, String);

pub(super) async fn exec(
    State(shared): State<Shared>,
    Path(whose): Path<Whose>,
    request: Request,
) -> Response {
    let wants = Wants::of(request.uri());
    let running = match running(&shared, &whose) {
        Ok(running) => running,
        Err(response) => return *response,
    };
    if wants.command.is_empty() {
        return status(StatusCode::BAD_REQUEST, "BadRequest", "you must specify at least one command");
    }
    match running {
        Running::Wasm(launch) => in_guest(&shared, &whose, &launch, wants, request).await,
        Running::Container(id) => in_container(&shared, id, wants, request).await,
    }
}

/// The container, if it runs.
pub(super) fn running(
    shared: &Shared,
    (namespace, pod, container): &Whose,
) -> Result<Running, Box<Response>> {
    let refuse = |code, reason: &str, text: String| Err(Box::new(status(code, reason, &text)));
    let Some(known) = shared.pods.find(namespace, pod) else {
        return refuse(StatusCode::NOT_FOUND, "NotFound", format!("pods \"{pod}\" not found"));
    };
    if !super::logs::has_container(&known, container) {
        let text = format!("container {container} is not valid for pod {pod}");
        return refuse(StatusCode::BAD_REQUEST, "BadRequest", text);
    }
    match shared.cx.running.find(known.metadata.uid.as_deref().unwrap_or_default(), container) {
        Some(running) => Ok(running),
        None => {
            let text = format!("container {container} of pod {pod} is not running");
            refuse(StatusCode::INTERNAL_SERVER_ERROR, "InternalError", text)
        }
    }
}

async fn in_guest(
    shared: &Shared,
    (_, pod, container): &Whose,
    launch: &Arc<Launch>,
    wants: Wants,
    request: Request,
) -> Response {
    match crate::exec::prepare(&*shared.cx.engine, launch, &wants.command).await {
        Ok((program, launch)) => remote::serve(request, wants, move |remote| run(program, launch, remote)),
        Err(why) => {
            let text = format!(
                "cannot exec: container {container} of pod {pod} is WebAssembly: {why}; run a .wasm file of its \
                 volumes, or use kubectl logs, kubectl port-forward, or a pod of its own"
            );
            status(StatusCode::BAD_REQUEST, "BadRequest", &text)
        }
    }
}

/// Runs a program with a client as its terminal; it is ended when the client leaves.
async fn run(program: Arc<dyn Program>, mut launch: Launch, remote: Remote) -> Value {
    let Remote { mut stdin, out, .. } = remote;
    let outlet = Arc::new(Outlet::default());
    launch.log = outlet.clone();
    let (mut near, far) = tokio::io::duplex(INPUT);
    launch.stdin = Some(Stdin::new(far));
    let input = async move {
        while let Some(bytes) = stdin.recv().await {
            if tokio::io::AsyncWriteExt::write_all(&mut near, &bytes).await.is_err() {
                break;
            }
        }
        drop(near);
        std::future::pending::<()>().await;
    };
    let end = tokio::select! {
        end = program.run(launch, StopSignal::new()) => end,
        () = outlet.pump(&out) => return ended(137),
        () = input => return ended(137),
    };
    outlet.drain(&out).await;
    if !end.message.is_empty() {
        let _ = out.send((crate::logs::Stream::Stderr, Bytes::from(format!("{}\n", end.message)))).await;
    }
    ended(end.code)
}

async fn in_container(shared: &Shared, id: String, wants: Wants, request: Request) -> Response {
    let Some(containers) = &shared.cx.containers else {
        return status(StatusCode::INTERNAL_SERVER_ERROR, "InternalError", "no container runtime is there");
    };
    let asked = ExecRequest {
        container_id: id,
        cmd: wants.command.clone(),
        tty: wants.tty,
        stdin: wants.stdin,
        stdout: wants.stdout,
        stderr: wants.stderr,
    };
    match containers.client.exec(asked).await {
        Ok(answer) => join(answer.url, wants, request),
        Err(error) => status(StatusCode::INTERNAL_SERVER_ERROR, "InternalError", &error.to_string()),
    }
}

/// Joins a client with an address of the runtime's.
pub(super) fn join(url: String, wants: Wants, request: Request) -> Response {
    let same = wants.clone();
    remote::serve(request, wants, move |remote| async move { upstream::join(&url, &same, remote).await })
}

/// A `Status`, which kubectl shows as an error from the server.
pub(super) fn status(code: StatusCode, reason: &str, message: &str) -> Response {
    let body = json!({
        "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
        "message": message, "reason": reason, "code": code.as_u16(),
    });
    (code, [(header::CONTENT_TYPE, "application/json")], body.to_string()).into_response()
}
