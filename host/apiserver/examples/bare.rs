//! The API alone, on a store in memory: no controllers, no node, nothing kept. For trying clients against it.
//!
//! `cargo run -p wasmk-apiserver --example bare -- <folder>` writes a kubeconfig into the folder and serves until
//! it is stopped.

use std::{path::Path, sync::Arc};

use rcgen::{BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair};
use wasmk_apiserver::{ApiServer, Config, User, serve_tls, tls_config};
use wasmk_store::Memory;

const TOKEN: &str = "administrator";

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let folder = std::env::args().nth(1).unwrap_or_else(|| ".".into());
    let folder = Path::new(&folder);
    std::fs::create_dir_all(folder)?;
    let ca_key = KeyPair::generate()?;
    let mut ca = CertificateParams::new(Vec::new())?;
    ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    ca.distinguished_name.push(DnType::CommonName, "bare");
    let ca_cert = ca.self_signed(&ca_key)?;
    let issuer = Issuer::new(ca, &ca_key);
    let key = KeyPair::generate()?;
    let mut leaf = CertificateParams::new(vec!["localhost".into(), "127.0.0.1".into()])?;
    leaf.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    let cert = leaf.signed_by(&key, &issuer)?;

    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    let signing = KeyPair::generate()?.serialize_pem();
    let mut config = Config::new(Arc::new(Memory::new()), signing, ca_cert.pem());
    config.advertise_port = address.port();
    config.static_tokens = vec![(TOKEN.into(), User::new("admin", ["system:masters"]))];
    if let Some(range) = std::env::args().nth(2).and_then(|r| wasmk_apiserver::ServiceRange::parse(&r)) {
        config.service_range = range;
    }
    let api = ApiServer::start(config).await?;
    let tls = tls_config(&cert.pem(), &key.serialize_pem(), &ca_cert.pem())?;
    std::fs::write(folder.join("ca.crt"), ca_cert.pem())?;
    let kubeconfig = format!(
        "apiVersion: v1\nkind: Config\ncurrent-context: bare\nclusters:\n- name: bare\n  cluster:\n    server: https://{address}\n    \
         certificate-authority: {ca}\nusers:\n- name: admin\n  user:\n    token: {TOKEN}\ncontexts:\n- name: bare\n  context:\n    \
         cluster: bare\n    user: admin\n",
        ca = std::fs::canonicalize(folder.join("ca.crt"))?.display(),
    );
    std::fs::write(folder.join("kubeconfig"), kubeconfig)?;
    let stop = tokio_util::sync::CancellationToken::new();
    let ended = stop.clone();
    tokio::spawn(async move {
        // Without a signal handler the process just ends.
        if tokio::signal::ctrl_c().await.is_ok() {
            ended.cancel();
        }
    });
    serve_tls(listener, tls, api.router(), stop).await;
    api.shutdown().await;
    Ok(())
}
