//! `wasmk proxy`: the API over plain HTTP on this machine, with the user's credentials.

use std::{net::SocketAddr, sync::Arc};

use anyhow::{Context as _, Result};
use axum::{
    Router,
    body::Body,
    extract::{Request, State},
    http::{HeaderMap, StatusCode, header},
    response::{IntoResponse, Response},
};
use kube::Client;
use regex::Regex;
use tokio::net::TcpListener;

use super::{Context, Exit};

/// Largest body of a request, in bytes; the server takes no more either.
const MAX_BODY: usize = 8 << 20;
/// Headers that speak of one connection only.
const HOP_BY_HOP: [header::HeaderName; 4] =
    [header::CONNECTION, header::TRANSFER_ENCODING, header::HOST, header::AUTHORIZATION];

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Where to listen; 0 picks a free port
    #[arg(short, long, default_value_t = 8001)]
    port: u16,
    /// The address to listen on
    #[arg(long, default_value = "127.0.0.1")]
    address: std::net::IpAddr,
    /// Which hosts requests may be for, as regular expressions
    #[arg(
        long,
        value_name = "REGEX",
        value_delimiter = ',',
        default_value = r"^localhost$,^127\.0\.0\.1$,^\[::1\]$"
    )]
    accept_hosts: Vec<String>,
}

struct Proxy {
    client: Client,
    hosts: Vec<Regex>,
}

pub(super) async fn run(args: Args, cx: &Context) -> Result<Exit> {
    let hosts = args.accept_hosts.iter().map(|text| Regex::new(text)).collect::<Result<_, _>>();
    let hosts = hosts.context("--accept-hosts")?;
    let proxy = Arc::new(Proxy { client: cx.client().await?, hosts });
    let address = SocketAddr::new(args.address, args.port);
    let listener = TcpListener::bind(address).await.with_context(|| format!("cannot listen on {address}"))?;
    cx.out.line(format!("Starting to serve on {}", listener.local_addr()?));
    let app = Router::new().fallback(forward).with_state(proxy);
    axum::serve(listener, app)
        .with_graceful_shutdown(async {
            let _ = tokio::signal::ctrl_c().await;
        })
        .await?;
    Ok(Exit::Done)
}

/// Whether a request is for this machine, whatever its port.
fn is_accepted(hosts: &[Regex], headers: &HeaderMap) -> bool {
    let host = headers.get(header::HOST).and_then(|h| h.to_str().ok()).unwrap_or("");
    let bare = match host.rsplit_once(':') {
        Some((bare, port)) if port.bytes().all(|b| b.is_ascii_digit()) => bare,
        _ => host,
    };
    hosts.iter().any(|regex| regex.is_match(bare))
}

async fn forward(State(proxy): State<Arc<Proxy>>, request: Request) -> Response {
    if !is_accepted(&proxy.hosts, request.headers()) {
        return (StatusCode::FORBIDDEN, "Forbidden: this host is not accepted\n").into_response();
    }
    let (mut head, body) = request.into_parts();
    for name in HOP_BY_HOP {
        head.headers.remove(name);
    }
    let mut onward = http::Request::builder().method(head.method).uri(head.uri);
    if let Some(headers) = onward.headers_mut() {
        *headers = head.headers;
    }
    let Ok(body) = axum::body::to_bytes(body, MAX_BODY).await else {
        return (StatusCode::PAYLOAD_TOO_LARGE, "the request's body is too large\n").into_response();
    };
    let sent = match onward.body(kube::client::Body::from(body)) {
        Ok(request) => proxy.client.send(request).await,
        Err(error) => return (StatusCode::BAD_REQUEST, format!("{error}\n")).into_response(),
    };
    match sent {
        Ok(answer) => {
            let (mut head, body) = answer.into_parts();
            head.headers.remove(header::CONNECTION);
            head.headers.remove(header::TRANSFER_ENCODING);
            Response::from_parts(head, Body::new(body))
        }
        Err(error) => (StatusCode::BAD_GATEWAY, format!("{error}\n")).into_response(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_are_checked() {
        let hosts: Vec<Regex> =
            [r"^localhost$", r"^127\.0\.0\.1$"].iter().map(|t| Regex::new(t).unwrap()).collect();
        for (host, expected) in
            [("localhost:8001", true), ("127.0.0.1", true), ("evil.example:8001", false), ("", false)]
        {
            let mut headers = HeaderMap::new();
            headers.insert(header::HOST, host.parse().unwrap());
            assert_eq!(is_accepted(&hosts, &headers), expected, "{host}");
        }
    }
}
