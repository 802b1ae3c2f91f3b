//! Promise: with 1,000 roles and 5,000 bindings a decision costs less than 50 µs at the 99th percentile and no more
//! than with none; a token that was seen before costs less than 20 µs beyond an administrator's; one core makes more
//! than 500 full mutual TLS handshakes a second, both sides counted.
//!
//! In process and without a store on disk: requests go through the whole chain of the router (reviews of access, so
//! that a decision is all that differs between them), handshakes over loopback. `cargo bench -p wasmk-apiserver --bench
//! access`
#![allow(clippy::print_stdout, reason = "a bench prints its figures")]

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use axum::body::Body;
use http::{Request, StatusCode};
use http_body_util::BodyExt;
use rcgen::{BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tower::ServiceExt;
use wasmk_apiserver::{ApiServer, Config, User, serve_tls, tls_config};
use wasmk_store::Memory;

/// Roles, each in a namespace of its own, and bindings of them.
const ROLES: usize = 1000;
const BINDINGS: usize = 5000;
/// Requests measured of each sort.
const REQUESTS: usize = 10_000;
/// Tokens verified for the first time.
const TOKENS: usize = 500;
/// Handshakes measured of each sort.
const HANDSHAKES: usize = 1000;
const ADMIN: &str = "administrator";
const RBAC: &str = "/apis/rbac.authorization.k8s.io/v1";

struct Server {
    api: ApiServer,
    ca: String,
    issuer: Issuer<'static, KeyPair>,
}

impl Server {
    async fn start() -> Self {
        let key = KeyPair::generate().expect("a key");
        let mut params = CertificateParams::new(Vec::new()).expect("no names");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, "bench");
        let ca = params.self_signed(&key).expect("an authority").pem();
        let signing = KeyPair::generate().expect("a key").serialize_pem();
        let mut config = Config::new(Arc::new(Memory::new()), signing, ca.clone());
        config.static_tokens = vec![(ADMIN.into(), User::new("admin", ["system:masters"]))];
        let api = ApiServer::start(config).await.expect("a server");
        Self { api, ca, issuer: Issuer::new(params, key) }
    }

    fn leaf(&self, name: &str, usage: ExtendedKeyUsagePurpose) -> (String, String) {
        let key = KeyPair::generate().expect("a key");
        let mut params = CertificateParams::new(vec!["localhost".into()]).expect("names");
        params.distinguished_name.push(DnType::CommonName, name);
        params.extended_key_usages = vec![usage];
        let cert = params.signed_by(&key, &self.issuer).expect("a certificate");
        (cert.pem(), key.serialize_pem())
    }

    async fn send(&self, token: &str, path: &str, body: &Value) -> (Duration, Value) {
        let request = Request::builder()
            .method(if body.is_null() { "GET" } else { "POST" })
            .uri(path)
            .header("authorization", format!("Bearer {token}"))
            .header("content-type", "application/json")
            .body(if body.is_null() { Body::empty() } else { Body::from(body.to_string()) })
            .expect("a request");
        let begun = Instant::now();
        let answer = self.api.router().oneshot(request).await.expect("an answer");
        let (code, body) = (answer.status(), answer.into_body().collect().await.expect("a body").to_bytes());
        let took = begun.elapsed();
        assert!(code == StatusCode::OK || code == StatusCode::CREATED, "{path}: {code}");
        (took, serde_json::from_slice(&body).unwrap_or(Value::Null))
    }

    async fn make(&self, path: &str, body: Value) {
        self.send(ADMIN, path, &body).await;
    }

    /// Asks whether users may do something: whom and where follows from the number of the question.
    async fn decisions(&self, what: &str, user: impl Fn(usize) -> String, groups: &[&str], allowed: bool) {
        let path = "/apis/authorization.k8s.io/v1/subjectaccessreviews";
        let mut times = Vec::with_capacity(REQUESTS);
        for i in 0..REQUESTS {
            let namespace = format!("n{}", i % ROLES);
            let asked =
                json!({"verb": "get", "group": "apps", "resource": "deployments", "namespace": namespace});
            let spec = json!({"user": user(i), "groups": groups, "resourceAttributes": asked});
            let (took, review) = self.send(ADMIN, path, &json!({"spec": spec})).await;
            assert_eq!(review["status"]["allowed"].as_bool().unwrap_or(false), allowed, "{what}: {review}");
            times.push(took);
        }
        print(what, times);
    }
}

fn print(what: &str, mut times: Vec<Duration>) {
    times.sort_unstable();
    let micros = |percent: usize| times[(times.len() - 1) * percent / 100].as_secs_f64() * 1e6;
    let total: f64 = times.iter().map(Duration::as_secs_f64).sum();
    let rate = times.len() as f64 / total;
    println!("{what:46} {rate:9.0} /s   p50 {:7.1} µs   p99 {:7.1} µs", micros(50), micros(99));
}

async fn fill(server: &Server) {
    for i in 0..ROLES {
        server.make("/api/v1/namespaces", json!({"metadata": {"name": format!("n{i}")}})).await;
        let rule = json!({"apiGroups": ["apps"], "resources": ["deployments"], "verbs": ["get", "list"]});
        let role = json!({"metadata": {"name": "reader"}, "rules": [rule]});
        server.make(&format!("{RBAC}/namespaces/n{i}/roles"), role).await;
    }
    for i in 0..BINDINGS {
        // One group is bound everywhere, users in one namespace each.
        let subject = match i < ROLES {
            true => json!({"kind": "Group", "name": "crew", "apiGroup": "rbac.authorization.k8s.io"}),
            false => {
                json!({"kind": "User", "name": format!("u{i}"), "apiGroup": "rbac.authorization.k8s.io"})
            }
        };
        let role = json!({"kind": "Role", "name": "reader", "apiGroup": "rbac.authorization.k8s.io"});
        let binding = json!({"metadata": {"name": format!("b{i}")}, "subjects": [subject], "roleRef": role});
        server.make(&format!("{RBAC}/namespaces/n{}/rolebindings", i % ROLES), binding).await;
    }
}

/// A change of any binding has them all read again by the next decision.
async fn after_changes(server: &Server) {
    let path = "/apis/authorization.k8s.io/v1/subjectaccessreviews";
    let mut times = Vec::new();
    for i in 0..50 {
        let role = json!({"kind": "Role", "name": "reader", "apiGroup": "rbac.authorization.k8s.io"});
        let binding = json!({"metadata": {"name": format!("late{i}")}, "subjects": [], "roleRef": role});
        server.make(&format!("{RBAC}/namespaces/n0/rolebindings"), binding).await;
        let spec = json!({"user": "nobody", "resourceAttributes": {"verb": "get", "resource": "pods"}});
        times.push(server.send(ADMIN, path, &json!({"spec": spec})).await.0);
    }
    print("the first decision after a change of a binding", times);
}

async fn tokens(server: &Server) {
    let accounts = "/api/v1/namespaces/default/serviceaccounts";
    server.make(accounts, json!({"metadata": {"name": "bench"}})).await;
    let mut all = Vec::new();
    for _ in 0..TOKENS {
        let request = json!({"spec": {"expirationSeconds": 3600}});
        let answer = server.send(ADMIN, &format!("{accounts}/bench/token"), &request).await.1;
        all.push(answer["status"]["token"].as_str().expect("a token").to_owned());
    }
    for (what, token) in
        [("a request with a static token", None), ("with an account's token, first", Some(1))]
    {
        let mut times = Vec::new();
        for one in &all {
            times.push(server.send(token.map_or(ADMIN, |_| one), "/api", &Value::Null).await.0);
        }
        print(what, times);
    }
    let mut times = Vec::new();
    for _ in 0..REQUESTS / TOKENS {
        for one in &all {
            times.push(server.send(one, "/api", &Value::Null).await.0);
        }
    }
    print("with an account's token, repeated", times);
}

fn certificates(pem: &str) -> Vec<CertificateDer<'static>> {
    CertificateDer::pem_slice_iter(pem.as_bytes()).collect::<Result<_, _>>().expect("certificates")
}

async fn handshakes(server: &Server) {
    let (cert, key) = server.leaf("localhost", ExtendedKeyUsagePurpose::ServerAuth);
    let serving = tls_config(&cert, &key, &server.ca).expect("a configuration");
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("an address");
    let stop = tokio_util::sync::CancellationToken::new();
    tokio::spawn(serve_tls(listener, serving, server.api.router(), stop.clone()));
    let (cert, key) = server.leaf("somebody", ExtendedKeyUsagePurpose::ClientAuth);
    let mut roots = rustls::RootCertStore::empty();
    roots.add_parsable_certificates(certificates(&server.ca));
    let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).expect("a key");
    let mut client =
        rustls::ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .with_safe_default_protocol_versions()
            .expect("versions")
            .with_root_certificates(roots)
            .with_client_auth_cert(certificates(&cert), key)
            .expect("a pair");
    for (what, resumption) in [
        ("mutual TLS 1.3 handshakes and a request, full", rustls::client::Resumption::disabled()),
        ("the same, resumed", rustls::client::Resumption::default()),
    ] {
        client.resumption = resumption;
        let connector = tokio_rustls::TlsConnector::from(Arc::new(client.clone()));
        let mut times = Vec::new();
        for _ in 0..HANDSHAKES {
            let begun = Instant::now();
            let stream = tokio::net::TcpStream::connect(address).await.expect("the server accepts");
            let mut stream =
                connector.connect("localhost".try_into().expect("a name"), stream).await.expect("TLS");
            // What is sent makes sure that the server is through with its half.
            stream
                .write_all(b"GET /healthz HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
                .await
                .expect("sent");
            let mut answer = Vec::new();
            stream.read_to_end(&mut answer).await.expect("an answer");
            times.push(begun.elapsed());
            assert!(answer.starts_with(b"HTTP/1.1 200"), "{}", String::from_utf8_lossy(&answer));
        }
        print(what, times);
    }
    stop.cancel();
}

#[tokio::main(flavor = "current_thread")]
async fn main() {
    let server = Server::start().await;
    let crew = ["crew"];
    server
        .decisions("reviews of access, an administrator's", |_| "x".into(), &["system:masters"], true)
        .await;
    server.decisions("few bindings, refused", |i| format!("u{i}"), &crew, false).await;
    fill(&server).await;
    println!("now with {ROLES} roles and {BINDINGS} bindings");
    let member = |i: usize| format!("u{}", ROLES + i % ROLES);
    server.decisions("many bindings, allowed by one's name", member, &[], true).await;
    server.decisions("many bindings, allowed by a group's", |_| "x".into(), &crew, true).await;
    server.decisions("many bindings, refused", |i| format!("x{i}"), &[], false).await;
    after_changes(&server).await;
    tokens(&server).await;
    handshakes(&server).await;
    server.api.shutdown().await;
}
