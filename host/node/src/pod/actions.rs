//! What probes and lifecycle hooks do: ask a container by HTTP, TCP or gRPC, or run a command in it.

use std::{fmt::Display, io, net::IpAddr, sync::Arc, time::Duration};

use bytes::Bytes;
use http_body_util::{BodyExt, Empty, Limited};
use hyper_util::rt::TokioIo;
use rustls::{ClientConfig, pki_types::ServerName};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
};
use tokio_rustls::{TlsConnector, client::TlsStream};
use wasmk_api::k8s_openapi::{
    api::core::v1::{Container, GRPCAction, HTTPGetAction, LifecycleHandler, Probe, TCPSocketAction},
    apimachinery::pkg::util::intstr::IntOrString,
};

use wasmk_net::policy::Policies;

use crate::engine::Exec;

/// Bytes of an answer that are read at most.
const ANSWER_BYTES: usize = 10 * 1024;
/// Characters of a failed command's output that are shown.
const SHOWN: usize = 512;
/// Longest time for a hook's request.
const HOOK: Duration = Duration::from_secs(30);
/// `SERVING` of the health protocol.
const SERVING: i32 = 1;

/// How a container is reached.
pub(super) struct Reach<'a> {
    /// The pod's address.
    pub(super) address: IpAddr,
    /// Runs commands in it.
    pub(super) exec: &'a dyn Exec,
    /// What would hold up other clients.
    pub(super) policies: &'a Policies,
    /// For the names of its ports.
    pub(super) container: &'a Container,
}

impl Reach<'_> {
    /// One attempt of a probe, which may take as long as `limit`.
    pub(super) async fn probe(&self, probe: &Probe, limit: Duration) -> Result<(), String> {
        let attempt = async {
            if let Some(get) = &probe.http_get {
                return self.http_get(get).await;
            }
            if let Some(tcp) = &probe.tcp_socket {
                return self.tcp(tcp).await;
            }
            if let Some(grpc) = &probe.grpc {
                return self.grpc(grpc).await;
            }
            match probe.exec.as_ref().and_then(|e| e.command.as_ref()) {
                Some(command) => self.exec(command, limit).await,
                None => Err("the probe names nothing to ask".into()),
            }
        };
        let late = |_| Err(format!("no answer within {} s", limit.as_secs()));
        tokio::time::timeout(limit, attempt).await.unwrap_or_else(late)
    }

    /// A hook, to its end.
    pub(super) async fn hook(&self, hook: &LifecycleHandler, limit: Duration) -> Result<(), String> {
        let work = async {
            if let Some(sleep) = &hook.sleep {
                let seconds = u64::try_from(sleep.seconds).unwrap_or(0);
                tokio::time::sleep(Duration::from_secs(seconds)).await;
                return Ok(());
            }
            if let Some(get) = &hook.http_get {
                return tokio::time::timeout(HOOK, self.http_get(get))
                    .await
                    .unwrap_or_else(|_| Err(format!("no answer within {} s", HOOK.as_secs())));
            }
            if let Some(tcp) = &hook.tcp_socket {
                return self.tcp(tcp).await;
            }
            match hook.exec.as_ref().and_then(|e| e.command.as_ref()) {
                Some(command) => self.exec(command, limit).await,
                None => Ok(()),
            }
        };
        let late = |_| Err(format!("not over within {} s", limit.as_secs()));
        tokio::time::timeout(limit, work).await.unwrap_or_else(late)
    }

    async fn exec(&self, command: &[String], limit: Duration) -> Result<(), String> {
        let end = self.exec.exec(command, limit).await?;
        if end.code == 0 {
            return Ok(());
        }
        let output: String = end.output.chars().take(SHOWN).collect();
        Err(format!("command '{}' exited with {}: {output}", command.join(" "), end.code))
    }

    fn host(&self, named: Option<&String>) -> String {
        named.filter(|h| !h.is_empty()).cloned().unwrap_or_else(|| self.address.to_string())
    }

    /// To the first address of the host that answers.
    async fn connect(&self, host: &str, port: u16) -> io::Result<TcpStream> {
        let mut failed = io::Error::from(io::ErrorKind::AddrNotAvailable);
        for address in tokio::net::lookup_host((host, port)).await? {
            match self.policies.connect(address).await {
                Ok(stream) => return Ok(stream),
                Err(error) => failed = error,
            }
        }
        Err(failed)
    }

    async fn tcp(&self, tcp: &TCPSocketAction) -> Result<(), String> {
        let port = port(&tcp.port, self.container)?;
        let host = self.host(tcp.host.as_ref());
        self.connect(&host, port).await.map(drop).map_err(|e| e.to_string())
    }

    async fn http_get(&self, get: &HTTPGetAction) -> Result<(), String> {
        let port = port(&get.port, self.container)?;
        let secure = get.scheme.as_deref().is_some_and(|s| s.eq_ignore_ascii_case("https"));
        let host = self.host(get.host.as_ref());
        let (url, request) = request(get, &host, port, secure)?;
        let failed = |e: &dyn Display| format!("Get \"{url}\": {e}");
        let stream = self.connect(&host, port).await.map_err(|e| failed(&e))?;
        let answer = if secure {
            let stream = tls(&host, stream).await.map_err(|e| failed(&e))?;
            exchange(stream, request).await
        } else {
            exchange(stream, request).await
        };
        let status = answer.map_err(|e| failed(&e))?;
        if status.is_success() || status.is_redirection() {
            return Ok(());
        }
        Err(format!("HTTP probe failed with statuscode: {}", status.as_u16()))
    }

    /// The health protocol of gRPC.
    async fn grpc(&self, grpc: &GRPCAction) -> Result<(), String> {
        let address = format!("http://{}:{}", self.address, grpc.port);
        let failed = |e: &dyn Display| format!("service unhealthy: {address}: {e}");
        let endpoint = tonic::transport::Endpoint::from_shared(address.clone()).map_err(|e| failed(&e))?;
        let endpoint = endpoint.local_address(self.policies.source(self.address));
        let channel = endpoint.connect().await.map_err(|_| failed(&"cannot connect"))?;
        let mut client = tonic::client::Grpc::new(channel);
        client.ready().await.map_err(|e| failed(&e))?;
        let question = health::Question { service: grpc.service.clone().unwrap_or_default() };
        let codec = tonic_prost::ProstCodec::<health::Question, health::Answer>::default();
        let path = http::uri::PathAndQuery::from_static("/grpc.health.v1.Health/Check");
        let answer = client.unary(tonic::Request::new(question), path, codec).await;
        match answer.map_err(|e| failed(&e.message()))?.into_inner().status {
            SERVING => Ok(()),
            other => Err(failed(&format!("status {other}"))),
        }
    }
}

/// Messages of the health protocol of gRPC.
mod health {
    #[derive(Clone, PartialEq, prost::Message)]
    pub(super) struct Question {
        #[prost(string, tag = "1")]
        pub(super) service: String,
    }

    #[derive(Clone, PartialEq, prost::Message)]
    pub(super) struct Answer {
        #[prost(int32, tag = "1")]
        pub(super) status: i32,
    }
}

type Request = http::Request<Empty<Bytes>>;

fn request(get: &HTTPGetAction, host: &str, port: u16, secure: bool) -> Result<(String, Request), String> {
    let path = get.path.as_deref().filter(|p| !p.is_empty()).unwrap_or("/");
    let slash = if path.starts_with('/') { "" } else { "/" };
    let scheme = if secure { "https" } else { "http" };
    let url = format!("{scheme}://{host}:{port}{path}");
    let mut request = http::Request::get(format!("{slash}{path}"));
    let given = get.http_headers.iter().flatten();
    if !given.clone().any(|h| h.name.eq_ignore_ascii_case("host")) {
        request = request.header("host", format!("{host}:{port}"));
    }
    request = request.header("user-agent", "kube-probe/1.36").header("accept", "*/*");
    for header in given {
        request = request.header(&header.name, &header.value);
    }
    Ok((url, request.body(Empty::new()).map_err(|e| e.to_string())?))
}

async fn exchange<S>(stream: S, request: Request) -> hyper::Result<http::StatusCode>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    let exchange = async {
        let response = sender.send_request(request).await?;
        let status = response.status();
        // Read so that the guest is not cut off in the middle; how it ends does not matter.
        let _ = Limited::new(response.into_body(), ANSWER_BYTES).collect().await;
        Ok(status)
    };
    tokio::pin!(exchange);
    tokio::select! {
        outcome = &mut exchange => outcome,
        _ = connection => exchange.await,
    }
}

async fn tls(host: &str, stream: TcpStream) -> Result<TlsStream<TcpStream>, String> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    // A probe asks whether the pod answers, not who it is.
    let verifier = wasmk_tls::any_certificate(&provider);
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|e| e.to_string())?
        .dangerous()
        .with_custom_certificate_verifier(verifier)
        .with_no_client_auth();
    let name = ServerName::try_from(host.to_string()).map_err(|e| e.to_string())?;
    TlsConnector::from(Arc::new(config)).connect(name, stream).await.map_err(|e| e.to_string())
}

fn port(port: &IntOrString, container: &Container) -> Result<u16, String> {
    let number = match port {
        IntOrString::Int(n) => Some(*n),
        IntOrString::String(name) => container
            .ports
            .iter()
            .flatten()
            .find(|p| p.name.as_deref() == Some(name))
            .map(|p| p.container_port)
            .or_else(|| name.parse().ok()),
    };
    let valid = number.and_then(|n| u16::try_from(n).ok()).filter(|n| *n > 0);
    valid.ok_or_else(|| format!("port {port:?} is not one of the container's"))
}

#[cfg(test)]
#[path = "actions_tests.rs"]
mod tests;
