//! Logs, exec, attach, port forwarding and proxies: requests that are answered by a node, a pod or a service.
//!
//! HTTP/1.1 is spoken over the stream a dialer opens; upgraded connections are joined byte by byte.

use std::sync::Arc;

use axum::{body::Body, extract::Request};
use http::{HeaderValue, StatusCode, header};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use wasmk_api::{Cause, GroupKind, Object, Reason, Status};

use crate::{
    call::Call,
    http::{Answer, query::Query},
    read,
    server::Core,
    table::Resource,
};

/// Buffer of each direction of a joined connection, in bytes.
const COPY_BUFFER: usize = 64 << 10;

/// Answers such a request.
///
/// # Errors
/// 400 when the pod or container cannot be asked, 503 when its node cannot be reached.
pub(crate) async fn serve(
    core: &Arc<Core>,
    call: &Arc<Call>,
    resource: &Arc<Resource>,
    request: Request,
) -> Result<Answer, Status> {
    let entry = if resource.plural == "services" || call.info.subresource == "proxy" {
        None
    } else {
        Some(read::current(core, call, resource).await?)
    };
    let pod = entry.map(|e| e.object()).unwrap_or_default();
    let info = &call.info;
    match &*info.subresource {
        "log" => {
            let target = log_target(call, &pod)?;
            to_node(core, &pod, &target, request).await
        }
        "exec" | "attach" => {
            let container = container(&pod, call.query.text("container"), "a")?;
            let raw = request.uri().query().unwrap_or("").to_owned();
            let target = format!("/{}/{}/{}/{container}?{raw}", info.subresource, info.namespace, info.name);
            to_node(core, &pod, &target, request).await
        }
        "portforward" => {
            let raw = request.uri().query().unwrap_or("").to_owned();
            let target = format!("/portForward/{}/{}?{raw}", info.namespace, info.name);
            to_node(core, &pod, &target, request).await
        }
        _ => super::proxy::serve(core, call, resource, request).await,
    }
}

fn log_target(call: &Call, pod: &Object) -> Result<String, Status> {
    let query = &call.query;
    check_log(query, &call.info.name)?;
    let container = container(pod, query.text("container"), "a")?;
    let mut pairs = Vec::new();
    for name in ["follow", "previous", "timestamps"] {
        if query.flag(name) {
            pairs.push(format!("{name}=true"));
        }
    }
    for name in ["tailLines", "sinceSeconds", "limitBytes", "sinceTime", "stream"] {
        if let Some(value) = query.get(name).filter(|v| !v.is_empty()) {
            pairs.push(format!("{name}={}", value.replace('+', "%2B").replace(':', "%3A")));
        }
    }
    Ok(format!("/containerLogs/{}/{}/{container}?{}", call.info.namespace, call.info.name, pairs.join("&")))
}

fn check_log(query: &Query, name: &str) -> Result<(), Status> {
    let mut causes = Vec::new();
    for (field, least, why) in [
        ("tailLines", 0, "must be greater than or equal to 0"),
        ("sinceSeconds", 1, "must be greater than 0"),
        ("limitBytes", 1, "must be greater than 0"),
    ] {
        if let Some(value) = query.number(field)?
            && value < least
        {
            causes.push(Cause {
                reason: "FieldValueInvalid".into(),
                message: format!("Invalid value: {value}: {why}"),
                field: field.into(),
            });
        }
    }
    if query.get("sinceTime").is_some() && query.get("sinceSeconds").is_some() {
        causes.push(Cause {
            reason: "FieldValueForbidden".into(),
            message: "Forbidden: at most one of `sinceTime` or `sinceSeconds` may be specified".into(),
            field: String::new(),
        });
    }
    if causes.is_empty() {
        return Ok(());
    }
    Err(Status::invalid(&GroupKind { group: String::new(), kind: "PodLogOptions".into() }, name, &causes))
}

/// The container a request is about: the one it names, or the only one.
fn container(pod: &Object, wanted: &str, article: &str) -> Result<String, Status> {
    let names = |list: &str| -> Vec<String> {
        let containers = pod.at(&["spec", list]).and_then(Value::as_array);
        let name = |c: &Value| c.get("name").and_then(Value::as_str).map(Into::into);
        containers.into_iter().flatten().filter_map(name).collect()
    };
    let (main, init, ephemeral) =
        (names("containers"), names("initContainers"), names("ephemeralContainers"));
    if !wanted.is_empty() {
        let known = main.iter().chain(&init).chain(&ephemeral).any(|n| n == wanted);
        return if known {
            Ok(wanted.into())
        } else {
            Err(Status::bad_request(format!("container {wanted} is not valid for pod {}", pod.name())))
        };
    }
    let preferred =
        pod.annotation("kubectl.kubernetes.io/default-container").filter(|n| main.iter().any(|m| m == n));
    match (preferred, main.as_slice()) {
        (Some(name), _) => Ok(name.into()),
        (None, [only]) => Ok(only.clone()),
        _ => {
            let mut message = format!(
                "{article} container name must be specified for pod {}, choose one of: [{}]",
                pod.name(),
                main.join(" ")
            );
            if !init.is_empty() {
                message += &format!(" or one of the init containers: [{}]", init.join(" "));
            }
            Err(Status::bad_request(message))
        }
    }
}

async fn to_node(core: &Arc<Core>, pod: &Object, target: &str, request: Request) -> Result<Answer, Status> {
    let node = pod.at(&["spec", "nodeName"]).and_then(Value::as_str).unwrap_or("");
    if node.is_empty() {
        if target.starts_with("/containerLogs") {
            return Ok(crate::http::respond::bytes(StatusCode::OK, "text/plain", Vec::<u8>::new()));
        }
        return Err(Status::bad_request(format!("pod {} does not have a host assigned", pod.name())));
    }
    forward(core, node, target, request).await
}

/// Sends a request to a node's API and gives back its answer, upgraded if it asked for that.
///
/// # Errors
/// 503 when the node cannot be reached, 500 when it breaks off.
pub(super) async fn forward(
    core: &Arc<Core>,
    node: &str,
    target: &str,
    request: Request,
) -> Result<Answer, Status> {
    let stream = core.config.dialer.dial(node).await.map_err(|error| unreachable(node, &error))?;
    over(TokioIo::new(stream), node, target, request).await
}

fn unreachable(whom: &str, error: &dyn std::fmt::Display) -> Status {
    Status::new(Reason::ServiceUnavailable, format!("error trying to reach {whom}: {error}"))
}

/// Speaks HTTP/1.1 over a stream.
pub(crate) async fn over<S>(
    stream: S,
    whom: &str,
    target: &str,
    mut request: Request,
) -> Result<Answer, Status>
where
    S: hyper::rt::Read + hyper::rt::Write + Send + Unpin + 'static,
{
    let broken = |error: hyper::Error| unreachable(whom, &error);
    let (mut sender, connection) = hyper::client::conn::http1::handshake(stream).await.map_err(broken)?;
    tokio::spawn(async move {
        if let Err(error) = connection.with_upgrades().await {
            tracing::debug!(%error, "a proxied connection ended early");
        }
    });
    let upgrade = request.headers().get(header::UPGRADE).cloned();
    let client = upgrade.is_some().then(|| hyper::upgrade::on(&mut request));
    let (parts, body) = request.into_parts();
    let mut builder = Request::builder().method(parts.method).uri(target);
    if let Some(headers) = builder.headers_mut() {
        *headers = parts.headers;
        strip(headers, upgrade.is_some());
        if !headers.contains_key(header::HOST) {
            headers.insert(header::HOST, HeaderValue::from_static("localhost"));
        }
    }
    let outgoing = builder.body(body).map_err(Status::internal)?;
    let mut answer = sender.send_request(outgoing).await.map_err(broken)?;
    if answer.status() == StatusCode::SWITCHING_PROTOCOLS
        && let Some(client) = client
    {
        let far = hyper::upgrade::on(&mut answer);
        tokio::spawn(join(client, far));
        let (parts, _) = answer.into_parts();
        return Ok(Answer::from_parts(parts, Body::empty()));
    }
    let (mut parts, body) = answer.into_parts();
    strip(&mut parts.headers, false);
    Ok(Answer::from_parts(parts, Body::new(body)))
}

/// Headers that are between two neighbours only, and credentials that are for this server only.
fn strip(headers: &mut http::HeaderMap, upgrading: bool) {
    for name in ["keep-alive", "proxy-connection", "te", "trailer", "transfer-encoding", "authorization"] {
        headers.remove(name);
    }
    if !upgrading {
        headers.remove(header::CONNECTION);
        headers.remove(header::UPGRADE);
    }
}

async fn join(near: hyper::upgrade::OnUpgrade, far: hyper::upgrade::OnUpgrade) {
    let (Ok(near), Ok(far)) = tokio::join!(near, far) else { return };
    let (mut near, mut far) = (TokioIo::new(near), TokioIo::new(far));
    // However the connection ends, both sides see it end.
    let _ = tokio::io::copy_bidirectional_with_sizes(&mut near, &mut far, COPY_BUFFER, COPY_BUFFER).await;
}
