//! The TLS listener: proves client certificates and hands requests to the router.

use std::{sync::Arc, time::Duration};

use axum::{Router, body::Body};
use http::Request;
use hyper::body::Incoming;
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::conn::auto,
};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject};
use thiserror::Error;
use tokio::{net::TcpListener, sync::Semaphore, time::timeout};
use tokio_rustls::TlsAcceptor;
use tower::ServiceExt;

use crate::auth::PeerCertificate;

/// Connections at the same time.
const MAX_CONNECTIONS: usize = 16_384;
/// Longest TLS handshake.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// Longest wait for a request's headers.
const HEADERS: Duration = Duration::from_secs(30);
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
    /// The authority of client certificates cannot be used.
    #[error("client certificates cannot be verified")]
    Clients(#[from] rustls::server::VerifierBuilderError),
}

/// The settings of a TLS listener: its certificate chain and key (PEM), and the authority whose client certificates
/// are accepted. Clients may come without one.
///
/// # Errors
/// When one of the texts is not what it should be.
pub fn tls_config(cert: &str, key: &str, client_ca: &str) -> Result<Arc<rustls::ServerConfig>, TlsError> {
    settings(cert, key, client_ca, false)
}

/// Settings of a server that talks to nobody but clients with a certificate of that authority.
///
/// # Errors
/// As [`tls_config`].
pub fn tls_config_for(cert: &str, key: &str, client_ca: &str) -> Result<Arc<rustls::ServerConfig>, TlsError> {
    settings(cert, key, client_ca, true)
}

fn settings(
    cert: &str,
    key: &str,
    client_ca: &str,
    only_clients: bool,
) -> Result<Arc<rustls::ServerConfig>, TlsError> {
    let pem = |what, error: rustls_pki_types::pem::Error| TlsError::Pem { what, why: error.to_string() };
    let certificates = |what: &'static str, text: &str| {
        CertificateDer::pem_slice_iter(text.as_bytes())
            .map(|c| c.map(CertificateDer::into_owned).map_err(|e| pem(what, e)))
            .collect::<Result<Vec<_>, _>>()
    };
    let chain = certificates("server certificate", cert)?;
    let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).map_err(|e| pem("server key", e))?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut roots = rustls::RootCertStore::empty();
    for certificate in certificates("client authority", client_ca)? {
        roots.add(certificate)?;
    }
    let clients =
        rustls::server::WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider.clone());
    let clients = if only_clients { clients } else { clients.allow_unauthenticated() }.build()?;
    let mut config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_client_cert_verifier(clients)
        .with_single_cert(chain, key)?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}

/// Serves a router over TLS until `shutdown` is cancelled; then no new connection is accepted and open ones are given
/// a few seconds.
pub async fn serve_tls(
    listener: TcpListener,
    tls: Arc<rustls::ServerConfig>,
    router: Router,
    shutdown: tokio_util::sync::CancellationToken,
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
        let stream = match stream {
            Ok((stream, _)) => stream,
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
            if let Ok(Ok(stream)) = timeout(HANDSHAKE, acceptor.accept(stream)).await {
                connection(stream, router, stop).await;
            }
        });
    }
    stop.cancel();
    let all = u32::try_from(MAX_CONNECTIONS).unwrap_or(u32::MAX);
    // Connections that do not end in time are cut when the process or runtime ends.
    let _ = timeout(DRAIN, permits.acquire_many(all)).await;
}

async fn connection(
    stream: tokio_rustls::server::TlsStream<tokio::net::TcpStream>,
    router: Router,
    stop: tokio_util::sync::CancellationToken,
) {
    let certificate = stream
        .get_ref()
        .1
        .peer_certificates()
        .and_then(|c| c.first())
        .map(|c| PeerCertificate(c.clone().into_owned()));
    let service = hyper::service::service_fn(move |request: Request<Incoming>| {
        let (router, certificate) = (router.clone(), certificate.clone());
        async move {
            let mut request = request.map(Body::new);
            if let Some(certificate) = certificate {
                request.extensions_mut().insert(certificate);
            }
            router.oneshot(request).await
        }
    });
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder.http1().timer(TokioTimer::new()).header_read_timeout(HEADERS).max_buf_size(MAX_HTTP1_BYTES);
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_header_list_size(MAX_HEADER_BYTES)
        .max_concurrent_streams(MAX_STREAMS);
    let served = builder.serve_connection_with_upgrades(TokioIo::new(stream), service);
    tokio::pin!(served);
    let outcome = tokio::select! {
        outcome = served.as_mut() => outcome,
        () = stop.cancelled() => {
            served.as_mut().graceful_shutdown();
            served.await
        }
    };
    if let Err(error) = outcome {
        tracing::debug!(%error, "a connection ended early");
    }
}
