//! TLS of outgoing HTTP requests, with the roots that the machine trusts.

use std::sync::{Arc, OnceLock};

use rustls::pki_types::ServerName;
use rustls::{ClientConfig, RootCertStore};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use wasmtime_wasi_http::Error;

/// Reading the machine's roots takes milliseconds and most guests never need them.
static CONFIG: OnceLock<Result<Arc<ClientConfig>, String>> = OnceLock::new();

pub(super) async fn connect(host: &str, stream: TcpStream) -> Result<TlsStream<TcpStream>, Error> {
    let config = CONFIG.get_or_init(config).clone().map_err(|error| Error::InternalError(Some(error)))?;
    let name = ServerName::try_from(host.to_owned()).map_err(|_| Error::HttpRequestUriInvalid)?;
    TlsConnector::from(config).connect(name, stream).await.map_err(Error::Tls)
}

fn config() -> Result<Arc<ClientConfig>, String> {
    let mut roots = RootCertStore::empty();
    let found = rustls_native_certs::load_native_certs();
    roots.add_parsable_certificates(found.certs);
    if roots.is_empty() {
        return Err("this machine has no trusted root certificates".into());
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| error.to_string())?
        .with_root_certificates(roots)
        .with_no_client_auth();
    Ok(Arc::new(config))
}
