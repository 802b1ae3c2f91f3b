//! The TLS settings of the API's listener.

use std::sync::Arc;

use anyhow::{Context, Result};
use rustls::{RootCertStore, ServerConfig, crypto::ring, server::WebPkiClientVerifier};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject};

use crate::pki::Pair;

/// TLS 1.2 and 1.3 with that serving certificate. A client certificate is asked for, not required; one
/// that the authority did not sign ends the handshake.
///
/// # Errors
/// When a certificate or key is not PEM, or they do not belong together.
pub fn server(leaf: &Pair, client_ca: &str) -> Result<Arc<ServerConfig>> {
    let provider = Arc::new(ring::default_provider());
    let mut roots = RootCertStore::empty();
    for cert in certificates(client_ca)? {
        roots.add(cert).context("the client CA")?;
    }
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider.clone())
        .allow_unauthenticated()
        .build()
        .context("the client CA")?;
    let key = PrivateKeyDer::from_pem_slice(leaf.key.as_bytes()).context("the serving key")?;
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_client_cert_verifier(verifier)
        .with_single_cert(certificates(&leaf.cert)?, key)
        .context("the serving certificate")?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}

fn certificates(pem: &str) -> Result<Vec<CertificateDer<'static>>> {
    let all: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem.as_bytes()).collect();
    all.context("not a PEM certificate")
}
