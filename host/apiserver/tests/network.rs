//! Over real sockets: TLS, client certificates, and streams that reach through to a node.

mod support;

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use hyper_util::rt::TokioIo;
use rcgen::{
    BasicConstraints, Certificate, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
};
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio_util::sync::CancellationToken;
use wasmk_apiserver::{NodeDialer, NodeStream, Patience, serve_tls_with, tls_config};

struct Authority {
    params: CertificateParams,
    key: KeyPair,
    cert: Certificate,
}

impl Authority {
    fn new() -> Self {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, "authority");
        let key = KeyPair::generate().unwrap();
        let cert = params.self_signed(&key).unwrap();
        Self { params, key, cert }
    }

    /// A certificate and its key, both PEM.
    fn issue(&self, user: &str, group: &str, usage: ExtendedKeyUsagePurpose) -> (String, String) {
        let mut params = CertificateParams::new(vec!["localhost".into()]).unwrap();
        params.distinguished_name.push(DnType::CommonName, user);
        params.distinguished_name.push(DnType::OrganizationName, group);
        params.extended_key_usages = vec![usage];
        let key = KeyPair::generate().unwrap();
        let cert = params.signed_by(&key, &Issuer::from_params(&self.params, &self.key)).unwrap();
        (cert.pem(), key.serialize_pem())
    }
}

/// A node that answers with the target it was asked for, and echoes whatever is upgraded.
struct EchoNode;

#[async_trait]
impl NodeDialer for EchoNode {
    async fn dial(&self, node: &str) -> std::io::Result<Box<dyn NodeStream>> {
        if node != "n" {
            return Err(std::io::Error::other("no such node"));
        }
        let (near, far) = tokio::io::duplex(4096);
        tokio::spawn(async move {
            let service =
                hyper::service::service_fn(|mut request: http::Request<hyper::body::Incoming>| async move {
                    let mut response = http::Response::new(request.uri().to_string());
                    if request.headers().contains_key("upgrade") {
                        *response.status_mut() = http::StatusCode::SWITCHING_PROTOCOLS;
                        response.headers_mut().insert("connection", "Upgrade".parse().unwrap());
                        response.headers_mut().insert("upgrade", "echo".parse().unwrap());
                        tokio::spawn(async move {
                            let Ok(stream) = hyper::upgrade::on(&mut request).await else { return };
                            let (mut read, mut write) = tokio::io::split(TokioIo::new(stream));
                            let _ = tokio::io::copy(&mut read, &mut write).await;
                        });
                    }
                    Ok::<_, std::convert::Infallible>(response)
                });
            let served =
                hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(far), service);
            let _ = served.with_upgrades().await;
        });
        Ok(Box::new(near))
    }
}

struct Listening {
    server: support::Server,
    authority: Authority,
    address: std::net::SocketAddr,
    stop: CancellationToken,
    task: tokio::task::JoinHandle<()>,
}

async fn listen() -> Listening {
    listen_with(Patience::default()).await
}

async fn listen_with(patience: Patience) -> Listening {
    let authority = Authority::new();
    let ca = authority.cert.pem();
    let server = support::start_with(|config| {
        config.client_ca = ca.clone();
        config.dialer = Arc::new(EchoNode);
    })
    .await;
    let (cert, key) = authority.issue("server", "none", ExtendedKeyUsagePurpose::ServerAuth);
    let tls = tls_config(&cert, &key, &ca).unwrap();
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let stop = CancellationToken::new();
    let task = tokio::spawn(serve_tls_with(listener, tls, server.api.router(), stop.clone(), patience));
    Listening { server, authority, address, stop, task }
}

impl Listening {
    async fn connect(
        &self,
        identity: Option<(&str, &str)>,
    ) -> tokio_rustls::client::TlsStream<tokio::net::TcpStream> {
        use rustls_pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject};
        let mut roots = rustls::RootCertStore::empty();
        roots.add(self.authority.cert.der().clone()).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots);
        let config = match identity {
            Some((user, group)) => {
                let (cert, key) = self.authority.issue(user, group, ExtendedKeyUsagePurpose::ClientAuth);
                let chain = vec![CertificateDer::from_pem_slice(cert.as_bytes()).unwrap()];
                builder
                    .with_client_auth_cert(chain, PrivateKeyDer::from_pem_slice(key.as_bytes()).unwrap())
                    .unwrap()
            }
            None => builder.with_no_client_auth(),
        };
        let stream = tokio::net::TcpStream::connect(self.address).await.unwrap();
        tokio_rustls::TlsConnector::from(Arc::new(config))
            .connect("localhost".try_into().unwrap(), stream)
            .await
            .unwrap()
    }

    /// The answer to one request, as text.
    async fn ask(&self, identity: Option<(&str, &str)>, request: &str) -> String {
        let mut stream = self.connect(identity).await;
        let head = format!("{request}\r\nhost: localhost\r\nconnection: close\r\n\r\n");
        stream.write_all(head.as_bytes()).await.unwrap();
        let mut answer = Vec::new();
        // Some peers end without a closing alert; what came before counts.
        let _ = stream.read_to_end(&mut answer).await;
        String::from_utf8(answer).unwrap()
    }

    async fn bound_pod(&self) {
        self.server
            .post("/api/v1/namespaces/default/serviceaccounts", json!({"metadata": {"name": "default"}}))
            .await;
        let spec = json!({"nodeName": "n", "containers": [{"name": "c", "image": "i"}]});
        let pod = json!({"metadata": {"name": "p"}, "spec": spec});
        assert_eq!(self.server.post("/api/v1/namespaces/default/pods", pod).await.code, 201);
    }
}

#[tokio::test]
async fn certificates_are_identities() {
    let listening = listen().await;
    let path = "GET /api/v1/namespaces HTTP/1.1";
    assert!(listening.ask(None, path).await.starts_with("HTTP/1.1 403"));
    assert!(listening.ask(Some(("jane", "people")), path).await.contains(r#"User \"jane\" cannot list"#));
    assert!(listening.ask(Some(("root", "system:masters")), path).await.starts_with("HTTP/1.1 200"));
    listening.stop.cancel();
    listening.task.await.unwrap();
}

#[tokio::test]
async fn logs_come_from_the_node_of_the_pod() {
    let listening = listen().await;
    listening.bound_pod().await;
    let masters = Some(("root", "system:masters"));
    let path = "GET /api/v1/namespaces/default/pods/p/log?tailLines=5&follow=true HTTP/1.1";
    let answer = listening.ask(masters, path).await;
    assert!(answer.contains("/containerLogs/default/p/c?follow=true&tailLines=5"), "{answer}");
    let path = "GET /api/v1/namespaces/default/pods/p/log?container=none HTTP/1.1";
    assert!(listening.ask(masters, path).await.starts_with("HTTP/1.1 400"));
    let path = "GET /api/v1/nodes/n/proxy/metrics HTTP/1.1";
    assert!(listening.ask(masters, path).await.starts_with("HTTP/1.1 404"), "there is no such node object");
}

#[tokio::test]
async fn upgraded_connections_reach_through_to_the_node() {
    let listening = listen().await;
    listening.bound_pod().await;
    let mut stream = listening.connect(Some(("root", "system:masters"))).await;
    let request = "POST /api/v1/namespaces/default/pods/p/exec?command=sh&stdin=true HTTP/1.1\r\nhost: localhost\r\n\
                   connection: Upgrade\r\nupgrade: echo\r\ncontent-length: 0\r\n\r\n";
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.unwrap());
    }
    let head = String::from_utf8(head).unwrap();
    assert!(head.starts_with("HTTP/1.1 101"), "{head}");
    stream.write_all(b"through and back").await.unwrap();
    let mut back = [0; 16];
    stream.read_exact(&mut back).await.unwrap();
    assert_eq!(&back, b"through and back");
}

/// Waits until the other side ends the connection; fails after a while.
async fn until_closed(stream: &mut (impl tokio::io::AsyncRead + Unpin)) -> Vec<u8> {
    let mut rest = Vec::new();
    let read = tokio::time::timeout(Duration::from_secs(20), stream.read_to_end(&mut rest)).await;
    // Some peers end without a closing alert.
    let _ = read.expect("the connection ends in time");
    rest
}

#[tokio::test]
async fn slow_clients_are_let_go() {
    let short = Duration::from_millis(300);
    let listening = listen_with(Patience { handshake: short, headers: short, idle: short }).await;
    let mut silent = tokio::net::TcpStream::connect(listening.address).await.unwrap();
    assert_eq!(until_closed(&mut silent).await, b"", "a handshake that is never begun");
    let mut half = listening.connect(None).await;
    half.write_all(b"GET /healthz HTTP/1.1\r\nhost: ").await.unwrap();
    let said = String::from_utf8(until_closed(&mut half).await).unwrap();
    assert!(!said.contains("200 OK"), "{said}");
    let mut lingering = listening.connect(None).await;
    lingering.write_all(b"GET /version HTTP/1.1\r\nhost: localhost\r\n\r\n").await.unwrap();
    let said = String::from_utf8(until_closed(&mut lingering).await).unwrap();
    assert!(said.starts_with("HTTP/1.1 200"), "{said}");
}

#[tokio::test]
async fn a_watch_outlives_an_idle_connections_end() {
    let short = Duration::from_millis(300);
    let listening =
        listen_with(Patience { handshake: Duration::from_secs(10), headers: short, idle: short }).await;
    let masters = Some(("root", "system:masters"));
    let path = "/api/v1/namespaces/default/configmaps?watch=true&timeoutSeconds=3";
    let mut stream = listening.connect(masters).await;
    let request = format!("GET {path} HTTP/1.1\r\nhost: localhost\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    tokio::time::sleep(short * 3).await;
    let made = json!({"metadata": {"name": "late"}});
    assert_eq!(listening.server.post("/api/v1/namespaces/default/configmaps", made).await.code, 201);
    let said = String::from_utf8(until_closed(&mut stream).await).unwrap();
    assert!(said.contains("\"name\":\"late\""), "{said}");
}
