//! What the tests talk to: authorities that sign, services that answer, and the server over TLS.

use std::sync::{Arc, Mutex};

use axum::{Json, Router, extract::State, routing::any};
use http::Request;
use kube::config::Kubeconfig;
use rcgen::{BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair};
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;
use wasmk_apiserver::{Config, Serving, serve_tls};

use crate::support::{self, Server};

/// An authority of certificates.
pub(crate) struct Authority {
    params: CertificateParams,
    key: KeyPair,
    pub(crate) pem: String,
}

/// A certificate and its key, PEM.
#[derive(Clone)]
pub(crate) struct Pair {
    pub(crate) cert: String,
    pub(crate) key: String,
}

impl Authority {
    pub(crate) fn new(name: &str) -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, name);
        let key = KeyPair::generate().unwrap();
        let pem = params.self_signed(&key).unwrap().pem();
        Self { params, key, pem }
    }

    fn sign(&self, mut params: CertificateParams, usage: ExtendedKeyUsagePurpose) -> Pair {
        params.extended_key_usages = vec![usage];
        let key = KeyPair::generate().unwrap();
        let cert = params.signed_by(&key, &Issuer::from_params(&self.params, &self.key)).unwrap();
        Pair { cert: cert.pem(), key: key.serialize_pem() }
    }

    pub(crate) fn client(&self, user: &str, groups: &[&str]) -> Pair {
        let mut params = CertificateParams::default();
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, user);
        for group in groups {
            params.distinguished_name.push(DnType::OrganizationName, *group);
        }
        self.sign(params, ExtendedKeyUsagePurpose::ClientAuth)
    }

    pub(crate) fn server(&self) -> Pair {
        let names = vec!["localhost".to_owned(), "127.0.0.1".to_owned()];
        self.sign(CertificateParams::new(names).unwrap(), ExtendedKeyUsagePurpose::ServerAuth)
    }
}

/// The server over TLS.
pub(crate) struct Listening {
    pub(crate) server: Server,
    pub(crate) ca: Authority,
    pub(crate) serving: Serving,
    pub(crate) url: String,
    stop: CancellationToken,
}

impl Drop for Listening {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

/// Starts one whose authority signs client and server certificates.
pub(crate) async fn listen(change: impl FnOnce(&mut Config)) -> Listening {
    let ca = Authority::new("cluster");
    let server = support::start_with(|config| {
        config.client_ca.clone_from(&ca.pem);
        change(config);
    })
    .await;
    let own = ca.server();
    let serving = Serving::new(&own.cert, &own.key).unwrap();
    let tls = serving.config(&ca.pem).unwrap();
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("https://{}", listener.local_addr().unwrap());
    let stop = CancellationToken::new();
    tokio::spawn(serve_tls(listener, tls, server.api.router(), stop.clone()));
    Listening { server, ca, serving, url, stop }
}

impl Listening {
    /// A client with a certificate, or without.
    pub(crate) fn client(&self, pair: Option<&Pair>) -> kube::Client {
        use base64::{Engine, engine::general_purpose::STANDARD};
        let mut config = kube::Config::new(self.url.parse().unwrap());
        let (_, ca) = x509_parser::pem::parse_x509_pem(self.ca.pem.as_bytes()).unwrap();
        config.root_cert = Some(vec![ca.contents]);
        if let Some(pair) = pair {
            config.auth_info.client_certificate_data = Some(STANDARD.encode(&pair.cert));
            config.auth_info.client_key_data = Some(STANDARD.encode(&pair.key).into());
        }
        kube::Client::try_from(config).unwrap()
    }

    /// Who the server believes a client with those headers to be: its code and its answer.
    pub(crate) async fn who(&self, pair: Option<&Pair>, headers: &[(&str, &str)]) -> (u16, Value) {
        ask(
            &self.client(pair),
            "POST",
            REVIEW,
            headers,
            json!({"kind": "SelfSubjectReview", "apiVersion": "authentication.k8s.io/v1"}),
        )
        .await
    }
}

/// Where one asks who one is.
pub(crate) const REVIEW: &str = "/apis/authentication.k8s.io/v1/selfsubjectreviews";

/// A request's code and answer.
pub(crate) async fn ask(
    client: &kube::Client,
    method: &str,
    path: &str,
    headers: &[(&str, &str)],
    body: Value,
) -> (u16, Value) {
    let mut request = Request::builder().method(method).uri(path).header("content-type", "application/json");
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let body = if body.is_null() { Vec::new() } else { body.to_string().into_bytes() };
    let answer = client.send(request.body(body.into()).unwrap()).await.unwrap();
    let code = answer.status().as_u16();
    let bytes = http_body_util::BodyExt::collect(answer.into_body()).await.unwrap().to_bytes();
    (code, serde_json::from_slice(&bytes).unwrap_or(Value::Null))
}

type Handler = Arc<dyn Fn(&Value) -> Value + Send + Sync>;

/// A service that answers JSON, and remembers what it was asked.
pub(crate) struct Service {
    pub(crate) config: Kubeconfig,
    pub(crate) asked: Arc<Mutex<Vec<Value>>>,
}

/// Starts one.
pub(crate) async fn service(answer: impl Fn(&Value) -> Value + Send + Sync + 'static) -> Service {
    let asked = Arc::new(Mutex::new(Vec::new()));
    let state: (Arc<Mutex<Vec<Value>>>, Handler) = (asked.clone(), Arc::new(answer));
    let handle = async |State((asked, answer)): State<(Arc<Mutex<Vec<Value>>>, Handler)>,
                        Json(body): Json<Value>| {
        let reply = answer(&body);
        asked.lock().unwrap().push(body);
        Json(reply)
    };
    let router = Router::new().route("/hook", any(handle)).with_state(state);
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/hook?timeout=5s", listener.local_addr().unwrap());
    tokio::spawn(async move { axum::serve(listener, router).await });
    let config = json!({
        "apiVersion": "v1", "kind": "Config", "current-context": "c",
        "clusters": [{"name": "c", "cluster": {"server": url}}],
        "users": [{"name": "c", "user": {}}],
        "contexts": [{"name": "c", "context": {"cluster": "c", "user": "c"}}],
    });
    Service { config: serde_json::from_value(config).unwrap(), asked }
}

/// The user name in an answer to a review.
pub(crate) fn name(review: &Value) -> &str {
    review["status"]["userInfo"]["username"].as_str().unwrap_or("")
}
