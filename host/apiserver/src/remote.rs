//! Outgoing HTTPS: to webhooks and to the servers of aggregated APIs.
//!
//! An [`Endpoint`] says where one is and how it proves to be it; [`Remote`] keeps connections to those that are
//! asked often. Errors are worded as Kubernetes words them, since they end in front of users.

use std::{collections::HashMap, sync::Arc, time::Duration};

use base64::{Engine, engine::general_purpose::STANDARD};
use bytes::Bytes;
use http::{HeaderValue, Request, StatusCode, header};
use http_body_util::{BodyExt, Full, Limited};
use hyper::client::conn::http1::SendRequest;
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject};
use serde_json::Value;
use sha2::{Digest, Sha256};
use tokio::{net::TcpStream, time::timeout};
use tokio_rustls::{TlsConnector, client::TlsStream};
use wasmk_kinds::value::text;

use crate::{
    config::FrontProxy,
    server::Core,
    services::{self, Missing},
};

/// Longest wait for a connection.
const CONNECT: Duration = Duration::from_secs(10);
/// The largest answer that is read, in bytes.
const MAX_ANSWER: usize = 16 << 20;
/// Most idle connections to one place, and to all.
const MAX_IDLE: usize = 8;
const MAX_IDLE_ALL: usize = 256;
/// Most TLS settings that are kept.
const MAX_SETTINGS: usize = 256;

/// Whom a server must have its certificate from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Trust {
    /// One of the authorities the machine trusts.
    System,
    /// One of these, in PEM.
    Bundle(Vec<u8>),
    /// Anybody: the certificate is not looked at.
    Anyone,
    /// Anybody, and it learns nothing of who asks either.
    Stranger,
}

/// Where to send a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Endpoint {
    /// The host (name or address) and port that are dialled.
    pub(crate) dial: (String, u16),
    /// The name in its certificate.
    pub(crate) name: String,
    /// Host and port as they stand in its URL.
    pub(crate) authority: String,
    /// Path, with the query if its URL has one.
    pub(crate) path: String,
    /// How it proves to be it.
    pub(crate) trust: Trust,
}

/// The authorities in a `caBundle`; those of the system without one.
fn trust(config: &Value) -> Result<Trust, String> {
    match text(config, "caBundle") {
        "" => Ok(Trust::System),
        bundle => STANDARD.decode(bundle).map(Trust::Bundle).map_err(|e| format!("caBundle: {e}")),
    }
}

impl Endpoint {
    /// Of a webhook's `clientConfig`.
    ///
    /// # Errors
    /// When it is no usable URL, or the service has no such port or nothing behind it.
    pub(crate) fn of_client_config(core: &Core, config: &Value) -> Result<Self, String> {
        let trust = trust(config)?;
        if let Some(service) = config.get("service").filter(|s| s.is_object()) {
            return Self::of_service(core, service, trust);
        }
        let url = text(config, "url");
        let uri: http::Uri = url.parse().map_err(|e| format!("parse {url:?}: {e}"))?;
        let host = uri.host().unwrap_or("").trim_matches(['[', ']']).to_owned();
        if uri.scheme_str() != Some("https") || host.is_empty() {
            return Err(format!("{url:?} is no https URL"));
        }
        Ok(Self {
            dial: (host.clone(), uri.port_u16().unwrap_or(443)),
            name: host,
            authority: uri.authority().map(ToString::to_string).unwrap_or_default(),
            path: uri.path_and_query().map_or("/", |p| p.as_str()).to_owned(),
            trust,
        })
    }

    /// Of a reference to a service: `namespace`, `name`, `port` and `path`.
    ///
    /// # Errors
    /// When the service has no such port or nothing behind it.
    pub(crate) fn of_service(core: &Core, service: &Value, trust: Trust) -> Result<Self, String> {
        let (namespace, name) = (text(service, "namespace"), text(service, "name"));
        let port = service.get("port").and_then(Value::as_u64).unwrap_or(443);
        let host = format!("{name}.{namespace}.svc");
        let path = text(service, "path");
        let slash = if path.starts_with('/') { "" } else { "/" };
        Ok(Self {
            dial: behind(core, namespace, name, port)?,
            authority: format!("{host}:{port}"),
            name: host,
            path: format!("{slash}{path}"),
            trust,
        })
    }

    fn url(&self, query: &str) -> String {
        format!("https://{}{}", self.authority, self.target(query))
    }

    fn target(&self, query: &str) -> String {
        match (query.is_empty(), self.path.contains('?')) {
            (true, _) => self.path.clone(),
            (false, true) => format!("{}&{query}", self.path),
            (false, false) => format!("{}?{query}", self.path),
        }
    }
}

/// An address behind a port of a service.
///
/// # Errors
/// When there is no such service or port, or no ready endpoint.
fn behind(core: &Core, namespace: &str, name: &str, port: u64) -> Result<(String, u16), String> {
    let service = core.caches.of("core/services").get(&crate::cache::key(namespace, name));
    let service = service.ok_or_else(|| format!("service {name:?} not found"))?.object();
    let spec = service.0.get("spec").unwrap_or(&Value::Null);
    if text(spec, "type") == "ExternalName" {
        let mut local = core.config.local_services.iter();
        return Ok(match local.find(|local| local.namespace == namespace && local.name == name) {
            Some(local) => (local.address.ip().to_string(), local.address.port()),
            None => (text(spec, "externalName").to_owned(), u16::try_from(port).unwrap_or(443)),
        });
    }
    services::address(core, &service, &port.to_string()).map_err(|missing| match missing {
        Missing::Port => format!("no service port {port} found for service {name:?}"),
        Missing::Endpoint => format!("no endpoints available for service {name:?}"),
    })
}

type Sender = SendRequest<Full<Bytes>>;
/// What connections are kept under: where they lead, the name proven there, and how.
type Place = (String, u16, String, [u8; 32]);

/// Makes requests to endpoints.
pub(crate) struct Remote {
    identity: Option<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>)>,
    settings: Mutex<HashMap<[u8; 32], Arc<ClientConfig>>>,
    idle: Mutex<HashMap<Place, Vec<Sender>>>,
}

impl Remote {
    /// One that shows that certificate to servers that ask.
    pub(crate) fn new(identity: &FrontProxy) -> Self {
        let chain: Vec<_> =
            CertificateDer::pem_slice_iter(identity.cert.as_bytes()).filter_map(Result::ok).collect();
        let key = PrivateKeyDer::from_pem_slice(identity.key.as_bytes()).ok();
        let identity = key.filter(|_| !chain.is_empty()).map(|key| (chain, key));
        Self { identity, settings: Mutex::default(), idle: Mutex::default() }
    }

    fn settings(&self, trust: &Trust) -> Result<Arc<ClientConfig>, String> {
        let key = digest(trust);
        if let Some(known) = self.settings.lock().get(&key) {
            return Ok(known.clone());
        }
        let made = Arc::new(self.make_settings(trust)?);
        let mut all = self.settings.lock();
        if all.len() >= MAX_SETTINGS {
            all.clear();
        }
        all.insert(key, made.clone());
        Ok(made)
    }

    fn make_settings(&self, trust: &Trust) -> Result<ClientConfig, String> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = ClientConfig::builder_with_provider(provider.clone())
            .with_safe_default_protocol_versions()
            .map_err(|e| e.to_string())?;
        let mut roots = RootCertStore::empty();
        match trust {
            Trust::System => {
                roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
            }
            Trust::Bundle(pem) => {
                let all = CertificateDer::pem_slice_iter(pem).filter_map(Result::ok);
                if roots.add_parsable_certificates(all).0 == 0 {
                    return Err("unable to load root certificates: unable to parse bytes as PEM block".into());
                }
            }
            Trust::Anyone | Trust::Stranger => {}
        }
        let builder = match trust {
            Trust::Anyone | Trust::Stranger => {
                let verifier = wasmk_tls::any_certificate(&provider);
                builder.dangerous().with_custom_certificate_verifier(verifier)
            }
            _ => builder.with_root_certificates(roots),
        };
        match &self.identity {
            Some((chain, key)) if *trust != Trust::Stranger => {
                builder.with_client_auth_cert(chain.clone(), key.clone_key()).map_err(|e| e.to_string())
            }
            _ => Ok(builder.with_no_client_auth()),
        }
    }

    /// Connects to an endpoint, which proves to be it.
    ///
    /// # Errors
    /// When it cannot be reached or does not prove it.
    pub(crate) async fn connect(&self, endpoint: &Endpoint) -> Result<TlsStream<TcpStream>, String> {
        let settings = self.settings(&endpoint.trust)?;
        let (host, port) = &endpoint.dial;
        let refused = |why: String| format!("dial tcp {host}:{port}: connect: {why}");
        let stream = match timeout(CONNECT, TcpStream::connect((host.as_str(), *port))).await {
            Ok(Ok(stream)) => stream,
            Ok(Err(error)) => return Err(refused(plain(&error))),
            Err(_) => return Err(refused("i/o timeout".into())),
        };
        // Small requests should not wait for more to come; it does no harm where it cannot be set.
        let _ = stream.set_nodelay(true);
        let name = ServerName::try_from(endpoint.name.clone()).map_err(|e| e.to_string())?;
        let shaken = timeout(CONNECT, TlsConnector::from(settings).connect(name, stream)).await;
        match shaken {
            Ok(Ok(stream)) => Ok(stream),
            Ok(Err(error)) => Err(format!("tls: failed to verify certificate: {error}")),
            Err(_) => Err("net/http: TLS handshake timeout".into()),
        }
    }

    async fn sender(&self, endpoint: &Endpoint, place: &Place, kept: bool) -> Result<(Sender, bool), String> {
        while let Some(mut sender) = kept.then(|| self.idle.lock().get_mut(place)?.pop()).flatten() {
            if !sender.is_closed() && sender.ready().await.is_ok() {
                return Ok((sender, true));
            }
        }
        let stream = self.connect(endpoint).await?;
        let (sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(|e| e.to_string())?;
        tokio::spawn(async move {
            if let Err(error) = connection.await {
                tracing::debug!(%error, "an outgoing connection ended early");
            }
        });
        Ok((sender, false))
    }

    fn keep(&self, place: Place, sender: Sender) {
        if sender.is_closed() {
            return;
        }
        let mut idle = self.idle.lock();
        if idle.len() >= MAX_IDLE_ALL {
            idle.clear();
        }
        let here = idle.entry(place).or_default();
        if here.len() < MAX_IDLE {
            here.push(sender);
        }
    }

    /// Sends a request with a JSON body (none: a GET) and reads the answer, within a time.
    ///
    /// # Errors
    /// What went wrong, in the words of Kubernetes.
    pub(crate) async fn send(
        &self,
        endpoint: &Endpoint,
        query: &str,
        headers: &[(&'static str, String)],
        body: Option<Vec<u8>>,
        within: Duration,
    ) -> Result<(StatusCode, Bytes), String> {
        let verb = if body.is_some() { "Post" } else { "Get" };
        let body = body.map(Bytes::from);
        let sent = timeout(within, self.attempt(endpoint, query, headers, body)).await;
        let outcome = sent.unwrap_or_else(|_| Err("context deadline exceeded".into()));
        outcome.map_err(|why| format!("{verb} {:?}: {why}", endpoint.url(query)))
    }

    async fn attempt(
        &self,
        endpoint: &Endpoint,
        query: &str,
        headers: &[(&'static str, String)],
        body: Option<Bytes>,
    ) -> Result<(StatusCode, Bytes), String> {
        let place =
            (endpoint.dial.0.clone(), endpoint.dial.1, endpoint.name.clone(), digest(&endpoint.trust));
        let (mut sender, reused) = self.sender(endpoint, &place, true).await?;
        let mut answer = sender.send_request(request(endpoint, query, headers, body.clone())?).await;
        if answer.is_err() && reused {
            // The other side closed the kept connection meanwhile.
            (sender, _) = self.sender(endpoint, &place, false).await?;
            answer = sender.send_request(request(endpoint, query, headers, body)?).await;
        }
        let answer =
            answer.map_err(|e| if e.is_incomplete_message() { "EOF".into() } else { e.to_string() })?;
        let code = answer.status();
        let read = Limited::new(answer.into_body(), MAX_ANSWER).collect().await;
        let bytes = read.map_err(|e| format!("the answer cannot be read: {e}"))?.to_bytes();
        self.keep(place, sender);
        Ok((code, bytes))
    }
}

fn request(
    endpoint: &Endpoint,
    query: &str,
    headers: &[(&'static str, String)],
    body: Option<Bytes>,
) -> Result<Request<Full<Bytes>>, String> {
    let method = if body.is_some() { http::Method::POST } else { http::Method::GET };
    let mut builder = Request::builder()
        .method(method)
        .uri(endpoint.target(query))
        .header(header::HOST, &endpoint.authority)
        .header(header::ACCEPT, "application/json")
        .header(header::USER_AGENT, HeaderValue::from_static("kube-apiserver-admission"));
    if body.is_some() {
        builder = builder.header(header::CONTENT_TYPE, "application/json");
    }
    for (name, value) in headers {
        builder = builder.header(*name, value);
    }
    builder.body(Full::new(body.unwrap_or_default())).map_err(|e| e.to_string())
}

fn digest(trust: &Trust) -> [u8; 32] {
    match trust {
        Trust::System => [0; 32],
        Trust::Anyone => [1; 32],
        Trust::Stranger => [2; 32],
        Trust::Bundle(pem) => Sha256::digest(pem).into(),
    }
}

/// An error without its number.
fn plain(error: &std::io::Error) -> String {
    match error.kind() {
        std::io::ErrorKind::ConnectionRefused => "connection refused".into(),
        _ => error.to_string(),
    }
}
