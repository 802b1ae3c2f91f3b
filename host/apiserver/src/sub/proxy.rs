//! `nodes|pods|services/proxy`: plain HTTP to whatever listens there.

use std::sync::Arc;

use axum::extract::Request;
use hyper_util::rt::TokioIo;
use serde_json::Value;
use wasmk_api::{Object, Reason, Status};

use super::node;
use crate::{call::Call, http::Answer, read, server::Core, table::Resource};

/// Longest wait for a connection to a pod.
const CONNECT: std::time::Duration = std::time::Duration::from_secs(10);

/// Answers a request for a proxy.
///
/// # Errors
/// When what is asked for does not exist or cannot be reached.
pub(crate) async fn serve(
    core: &Arc<Core>,
    call: &Arc<Call>,
    resource: &Arc<Resource>,
    request: Request,
) -> Result<Answer, Status> {
    let (_, name, port) = split(&call.info.name);
    let path = if call.info.rest.is_empty() { "/" } else { &call.info.rest };
    let target = match request.uri().query() {
        Some(query) => format!("{path}?{query}"),
        None => path.to_owned(),
    };
    core.caches.catch_up().await?;
    let namespace = read::namespace_of(call, resource);
    let entry = resource.cache.get(&crate::cache::key(namespace, name));
    let object = entry.ok_or_else(|| Status::not_found(&resource.group_resource(), name))?.object();
    let (address, port) = match &*resource.plural {
        "nodes" => return node::forward(core, name, &target, request).await,
        "pods" => pod_address(&object, port)?,
        _ => service_address(core, &object, port)?,
    };
    let connected =
        tokio::time::timeout(CONNECT, tokio::net::TcpStream::connect((address.as_str(), port))).await;
    let stream = match connected {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => return Err(unreachable(&address, &error.to_string())),
        Err(_) => return Err(unreachable(&address, "it does not answer")),
    };
    node::over(TokioIo::new(stream), name, &target, request).await
}

fn unreachable(whom: &str, why: &str) -> Status {
    Status::new(Reason::ServiceUnavailable, format!("error trying to reach service: {whom}: {why}"))
}

/// `scheme:name:port`, where all but the name may be missing.
fn split(text: &str) -> (&str, &str, &str) {
    match text.split(':').collect::<Vec<_>>().as_slice() {
        [scheme, name, port] => (scheme, name, port),
        [name, port] => ("", name, port),
        _ => ("", text, ""),
    }
}

fn pod_address(pod: &Object, port: &str) -> Result<(String, u16), Status> {
    let address = pod.at(&["status", "podIP"]).and_then(Value::as_str).unwrap_or("");
    if address.is_empty() {
        return Err(Status::bad_request("address not allowed"));
    }
    let first = pod
        .at(&["spec", "containers"])
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
        .filter_map(|c| c.get("ports")?.as_array())
        .flatten()
        .find_map(|p| p.get("containerPort")?.as_u64())
        .and_then(|p| u16::try_from(p).ok());
    let port =
        if port.is_empty() { first.unwrap_or(80) } else { port.parse().map_err(|_| bad_port(port))? };
    Ok((address.into(), port))
}

fn bad_port(port: &str) -> Status {
    Status::bad_request(format!("{port:?} is no port"))
}

/// A ready endpoint of a service.
fn service_address(core: &Core, service: &Object, port: &str) -> Result<(String, u16), Status> {
    let ports: Vec<&Value> =
        service.at(&["spec", "ports"]).and_then(Value::as_array).into_iter().flatten().collect();
    let number = |p: &Value| p.get("port").and_then(Value::as_u64).unwrap_or(0).to_string();
    let name = |p: &Value| p.get("name").and_then(Value::as_str).unwrap_or("").to_owned();
    let chosen = match port {
        "" => ports.first(),
        port => ports.iter().find(|p| name(p) == port || number(p) == port),
    };
    let wanted = chosen.map(|p| name(p)).ok_or_else(|| {
        Status::new(
            Reason::ServiceUnavailable,
            format!("no service port {port:?} found for service {:?}", service.name()),
        )
    })?;
    let filter = crate::cache::Filter { namespace: service.namespace().into(), ..Default::default() };
    for entry in core.caches.of("discovery.k8s.io/endpointslices").list(&filter) {
        if entry.label("kubernetes.io/service-name") != Some(service.name()) {
            continue;
        }
        let slice = entry.object();
        let target =
            slice.at(&["ports"]).and_then(Value::as_array).into_iter().flatten().find(|p| name(p) == wanted);
        let Some(target) = target.and_then(|p| p.get("port")?.as_u64()).and_then(|p| u16::try_from(p).ok())
        else {
            continue;
        };
        let ready = |e: &&Value| e.pointer("/conditions/ready") != Some(&Value::Bool(false));
        let endpoint = slice.at(&["endpoints"]).and_then(Value::as_array).into_iter().flatten().find(ready);
        if let Some(address) = endpoint.and_then(|e| e.pointer("/addresses/0")?.as_str()) {
            return Ok((address.into(), target));
        }
    }
    Err(Status::new(
        Reason::ServiceUnavailable,
        format!("no endpoints available for service {:?}", service.name()),
    ))
}
