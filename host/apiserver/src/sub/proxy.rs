//! `nodes|pods|services/proxy`: HTTP to whatever listens there, over TLS where the name says `https:`.

use std::{io, net::Ipv4Addr, sync::Arc};

use axum::extract::Request;
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::net::{TcpSocket, TcpStream};
use wasmk_api::{NODE_SOURCE, Object, Reason, Status};

use super::node;
use crate::{
    call::Call,
    http::Answer,
    read,
    remote::{Endpoint, Trust},
    server::Core,
    services::{self, Missing},
    table::Resource,
};

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
    let (scheme, name, port) = split(&call.info.name).ok_or_else(|| {
        let kind = resource.gvk.kind.to_lowercase();
        Status::bad_request(format!("invalid {kind} request {:?}", call.info.name))
    })?;
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
    if scheme == "https" {
        // As everywhere, nobody checks the certificate; nor is anybody told who asks.
        let authority = format!("{address}:{port}");
        let trust = Trust::Stranger;
        let endpoint =
            Endpoint { dial: (address.clone(), port), name: address, authority, path: "/".into(), trust };
        let stream = core.remote.connect(&endpoint).await;
        let stream = stream.map_err(|why| unreachable(&endpoint.name, &why))?;
        return node::over(TokioIo::new(stream), name, &target, request).await;
    }
    let connected = tokio::time::timeout(CONNECT, connect(&address, port)).await;
    let stream = match connected {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => return Err(unreachable(&address, &error.to_string())),
        Err(_) => return Err(unreachable(&address, "it does not answer")),
    };
    node::over(TokioIo::new(stream), name, &target, request).await
}

/// Connects as a node does for its own sake: whoever may use the proxy reaches pods that policies keep others from.
async fn connect(host: &str, port: u16) -> io::Result<TcpStream> {
    match host.parse::<Ipv4Addr>() {
        Ok(ip) if ip.is_loopback() => {
            let socket = TcpSocket::new_v4()?;
            socket.bind((NODE_SOURCE, 0).into())?;
            socket.connect((ip, port).into()).await
        }
        _ => TcpStream::connect((host, port)).await,
    }
}

fn unreachable(whom: &str, why: &str) -> Status {
    Status::new(Reason::ServiceUnavailable, format!("error trying to reach service: {whom}: {why}"))
}

/// `scheme:name:port`, where all but the name may be missing.
fn split(text: &str) -> Option<(&str, &str, &str)> {
    let (scheme, name, port) = match text.split(':').collect::<Vec<_>>().as_slice() {
        [scheme, name, port] => (*scheme, *name, *port),
        [name, port] => ("", *name, *port),
        [name] => ("", *name, ""),
        _ => return None,
    };
    (matches!(scheme, "" | "http" | "https") && !name.is_empty()).then_some((scheme, name, port))
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
    let name = service.name();
    services::address(core, service, port).map_err(|missing| {
        let why = match missing {
            Missing::Port => format!("no service port {port:?} found for service {name:?}"),
            Missing::Endpoint => format!("no endpoints available for service {name:?}"),
        };
        Status::new(Reason::ServiceUnavailable, why)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_may_have_a_scheme_and_a_port() {
        for (text, expect) in [
            ("a", Some(("", "a", ""))),
            ("a:80", Some(("", "a", "80"))),
            ("https:a:http", Some(("https", "a", "http"))),
            ("http:a:", Some(("http", "a", ""))),
            (":a:1", Some(("", "a", "1"))),
            ("ftp:a:1", None),
            ("https::1", None),
            ("a:b:c:d", None),
        ] {
            assert_eq!(split(text), expect, "{text}");
        }
    }
}
