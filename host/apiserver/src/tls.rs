//! The TLS listener: proves client certificates and hands requests to the router.

use std::{pin::Pin, sync::Arc, time::Duration};

use arc_swap::ArcSwap;
use axum::{Router, body::Body};
use http::Request;
use hyper::body::Incoming;
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::conn::auto,
};
use rustls::{
    DigitallySignedStruct, DistinguishedName, SignatureScheme,
    client::danger::HandshakeSignatureValid,
    crypto::WebPkiSupportedAlgorithms,
    server::{
        ClientHello, ResolvesServerCert,
        danger::{ClientCertVerified, ClientCertVerifier},
    },
    sign::CertifiedKey,
};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, SubjectPublicKeyInfoDer, UnixTime, pem::PemObject};
use thiserror::Error;
use tokio::{
    net::TcpListener,
    sync::{Semaphore, watch},
    time::timeout,
};
use tokio_rustls::TlsAcceptor;
use tower::ServiceExt;

use crate::auth::PeerCertificate;

/// Connections at the same time.
const MAX_CONNECTIONS: usize = 16_384;
/// How often a silent HTTP/2 client is asked whether it is there, and how long it may take to say so.
const PING: (Duration, Duration) = (Duration::from_secs(30), Duration::from_secs(15));
/// Largest headers of an HTTP/2 request, in bytes.
const MAX_HEADER_BYTES: u32 = 64 << 10;
/// Largest headers of an HTTP/1 request, in bytes.
const MAX_HTTP1_BYTES: usize = 128 << 10;
/// Streams one HTTP/2 connection may have open.
const MAX_STREAMS: u32 = 1000;
/// Longest wait for open connections when stopping.
const DRAIN: Duration = Duration::from_secs(5);
/// Pause after a failed accept, for instance when descriptors ran out.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// How long clients may take.
#[derive(Clone, Copy, Debug)]
pub struct Patience {
    /// For the TLS handshake.
    pub handshake: Duration,
    /// For the headers of a request, on HTTP/1 also for the next request of a connection.
    pub headers: Duration,
    /// Between two requests of an HTTP/2 connection.
    pub idle: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        Self {
            handshake: Duration::from_secs(10),
            headers: Duration::from_secs(30),
            idle: Duration::from_secs(90),
        }
    }
}

/// Why TLS cannot be served.
#[derive(Debug, Error)]
pub enum TlsError {
    /// A PEM text does not hold what it should.
    #[error("the {what} is no usable PEM: {why}")]
    Pem {
        /// Which one.
        what: &'static str,
        /// What is wrong.
        why: String,
    },
    /// Certificate and key do not go together.
    #[error("the server certificate cannot be used")]
    Certificate(#[from] rustls::Error),
}

/// The settings of a TLS listener with that certificate chain and key (PEM). `client_ca` names the authorities (PEM)
/// that clients are told of; clients may come without a certificate.
///
/// # Errors
/// When one of the texts is not what it should be.
pub fn tls_config(cert: &str, key: &str, client_ca: &str) -> Result<Arc<rustls::ServerConfig>, TlsError> {
    Serving::new(cert, key)?.config(client_ca)
}

/// The settings of a listener that talks to nobody but clients with a certificate of that authority.
///
/// # Errors
/// As [`tls_config`].
pub fn tls_config_for(cert: &str, key: &str, client_ca: &str) -> Result<Arc<rustls::ServerConfig>, TlsError> {
    let mut roots = rustls::RootCertStore::empty();
    for authority in certificates("client authority", client_ca)? {
        roots.add(authority)?;
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let clients = rustls::server::WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider)
        .build()
        .map_err(|e| TlsError::Pem { what: "client authority", why: e.to_string() })?;
    Serving::new(cert, key)?.listen(clients)
}

/// A server's certificate, which can be replaced while connections are served.
#[derive(Clone)]
pub struct Serving(Arc<ArcSwap<CertifiedKey>>);

impl Serving {
    /// With that certificate chain and key (PEM).
    ///
    /// # Errors
    /// When one is not what it should be, or they do not go together.
    pub fn new(cert: &str, key: &str) -> Result<Self, TlsError> {
        Ok(Self(Arc::new(ArcSwap::from_pointee(certified(cert, key)?))))
    }

    /// Shows another from the next handshake on; open connections stay.
    ///
    /// # Errors
    /// As [`Serving::new`]; then the present one stays.
    pub fn replace(&self, cert: &str, key: &str) -> Result<(), TlsError> {
        self.0.store(Arc::new(certified(cert, key)?));
        Ok(())
    }

    /// The settings of a listener that shows it: TLS 1.2 and 1.3, suites with forward secrecy. `client_ca` names
    /// the authorities (PEM) clients are told of.
    ///
    /// # Errors
    /// When an authority is no certificate.
    pub fn config(&self, client_ca: &str) -> Result<Arc<rustls::ServerConfig>, TlsError> {
        let algorithms = rustls::crypto::ring::default_provider().signature_verification_algorithms;
        self.listen(Arc::new(Clients { hints: hints(client_ca)?, algorithms }))
    }

    fn listen(&self, clients: Arc<dyn ClientCertVerifier>) -> Result<Arc<rustls::ServerConfig>, TlsError> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut config = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_client_cert_verifier(clients)
            .with_cert_resolver(Arc::new(self.clone()));
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        Ok(Arc::new(config))
    }
}

impl std::fmt::Debug for Serving {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Serving")
    }
}

impl ResolvesServerCert for Serving {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.0.load_full())
    }
}

fn certificates(what: &'static str, text: &str) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let all = CertificateDer::pem_slice_iter(text.as_bytes());
    all.map(|c| c.map(CertificateDer::into_owned).map_err(|e| unusable(what, &e))).collect()
}

fn unusable(what: &'static str, error: &rustls_pki_types::pem::Error) -> TlsError {
    TlsError::Pem { what, why: error.to_string() }
}

fn certified(cert: &str, key: &str) -> Result<CertifiedKey, TlsError> {
    let chain = certificates("server certificate", cert)?;
    let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).map_err(|e| unusable("server key", &e))?;
    Ok(CertifiedKey::from_der(chain, key, &rustls::crypto::ring::default_provider())?)
}

fn hints(client_ca: &str) -> Result<Vec<DistinguishedName>, TlsError> {
    let name = |der: &CertificateDer<'_>| {
        let parsed = x509_parser::parse_x509_certificate(der)
            .map_err(|e| TlsError::Pem { what: "client authority", why: e.to_string() });
        parsed.map(|(_, c)| DistinguishedName::from(c.subject().as_raw().to_vec()))
    };
    certificates("client authority", client_ca)?.iter().map(name).collect()
}

/// Lets clients prove that they have the key of whatever certificate they show. Who is believed for it, and up to
/// when, is a question of authentication, which answers 401 instead of breaking the connection.
#[derive(Debug)]
struct Clients {
    hints: Vec<DistinguishedName>,
    algorithms: WebPkiSupportedAlgorithms,
}

impl ClientCertVerifier for Clients {
    fn client_auth_mandatory(&self) -> bool {
        false
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &self.hints
    }

    fn verify_client_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls12_signature(message, cert, dss, &self.algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        // By the bare key: certificates of old tools have no extensions, which the usual way insists on.
        let (_, parsed) = x509_parser::parse_x509_certificate(cert)
            .map_err(|_| rustls::Error::InvalidCertificate(rustls::CertificateError::BadEncoding))?;
        let key = SubjectPublicKeyInfoDer::from(parsed.public_key().raw);
        rustls::crypto::verify_tls13_signature_with_raw_key(message, &key, dss, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

/// Serves a router over TLS until `shutdown` is cancelled; then no new connection is accepted and open ones are given
/// a few seconds.
pub async fn serve_tls(
    listener: TcpListener,
    tls: Arc<rustls::ServerConfig>,
    router: Router,
    shutdown: tokio_util::sync::CancellationToken,
) {
    serve_tls_with(listener, tls, router, shutdown, Patience::default()).await;
}

/// The same with other bounds on how long clients may take.
pub async fn serve_tls_with(
    listener: TcpListener,
    tls: Arc<rustls::ServerConfig>,
    router: Router,
    shutdown: tokio_util::sync::CancellationToken,
    patience: Patience,
) {
    let acceptor = TlsAcceptor::from(tls);
    let permits = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let stop = tokio_util::sync::CancellationToken::new();
    loop {
        let permit = tokio::select! {
            () = shutdown.cancelled() => break,
            permit = permits.clone().acquire_owned() => permit,
        };
        let Ok(permit) = permit else { break };
        let stream = tokio::select! {
            () = shutdown.cancelled() => break,
            accepted = listener.accept() => accepted,
        };
        let (stream, peer) = match stream {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::debug!(%error, "a connection was not accepted");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        // Small answers should not wait for more to come; it does no harm where it cannot be set.
        let _ = stream.set_nodelay(true);
        let (acceptor, router, stop) = (acceptor.clone(), router.clone(), stop.clone());
        tokio::spawn(async move {
            let _permit = permit;
            if let Ok(Ok(stream)) = timeout(patience.handshake, acceptor.accept(stream)).await {
                connection(stream, Peer(peer.ip()), router, stop, patience).await;
            }
        });
    }
    stop.cancel();
    let all = u32::try_from(MAX_CONNECTIONS).unwrap_or(u32::MAX);
    // Connections that do not end in time are cut when the process or runtime ends.
    let _ = timeout(DRAIN, permits.acquire_many(all)).await;
}

/// Where a request came from, put into its extensions.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Peer(pub(crate) std::net::IpAddr);

/// A request whose answer is not sent yet.
struct Open(watch::Sender<usize>);

impl Open {
    fn new(count: watch::Sender<usize>) -> Self {
        count.send_modify(|open| *open += 1);
        Self(count)
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.0.send_modify(|open| *open -= 1);
    }
}

/// The body of an answer, which keeps its request open.
struct Held {
    body: Body,
    _open: Open,
}

impl http_body::Body for Held {
    type Data = bytes::Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<Result<http_body::Frame<Self::Data>, Self::Error>>> {
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> http_body::SizeHint {
        self.body.size_hint()
    }
}

/// Waits until a connection should end: everything stops, or it was without a request for so long.
async fn ended(stop: &tokio_util::sync::CancellationToken, open: &watch::Sender<usize>, idle: Duration) {
    let mut open = open.subscribe();
    loop {
        let quiet = async {
            // The sender is borrowed by the caller and stays.
            let _ = open.wait_for(|open| *open == 0).await;
            timeout(idle, open.changed()).await.is_err()
        };
        tokio::select! {
            () = stop.cancelled() => return,
            quiet = quiet => if quiet { return },
        }
    }
}

async fn connection(
    stream: tokio_rustls::server::TlsStream<tokio::net::TcpStream>,
    peer: Peer,
    router: Router,
    stop: tokio_util::sync::CancellationToken,
    patience: Patience,
) {
    let certificate = stream
        .get_ref()
        .1
        .peer_certificates()
        .map(|chain| PeerCertificate(Arc::new(chain.iter().map(|c| c.clone().into_owned()).collect())));
    let open = watch::Sender::new(0_usize);
    let requests = open.clone();
    let service = hyper::service::service_fn(move |request: Request<Incoming>| {
        let (router, certificate) = (router.clone(), certificate.clone());
        let held = Open::new(requests.clone());
        async move {
            let mut request = request.map(Body::new);
            request.extensions_mut().insert(peer);
            if let Some(certificate) = certificate {
                request.extensions_mut().insert(certificate);
            }
            let answer = router.oneshot(request).await?;
            // Open until its body is sent.
            Ok::<_, std::convert::Infallible>(answer.map(|body| Held { body, _open: held }))
        }
    });
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(patience.headers)
        .max_buf_size(MAX_HTTP1_BYTES);
    builder
        .http2()
        .timer(TokioTimer::new())
        .keep_alive_interval(PING.0)
        .keep_alive_timeout(PING.1)
        .max_header_list_size(MAX_HEADER_BYTES)
        .max_concurrent_streams(MAX_STREAMS);
    let served = builder.serve_connection_with_upgrades(TokioIo::new(stream), service);
    tokio::pin!(served);
    let outcome = tokio::select! {
        outcome = served.as_mut() => outcome,
        () = ended(&stop, &open, patience.idle) => {
            served.as_mut().graceful_shutdown();
            served.await
        }
    };
    if let Err(error) = outcome {
        tracing::debug!(%error, "a connection ended early");
    }
}
