//! The keys and certificates that a cluster starts with. At the first start they are made beside each other, for each
//! of them waits for the disk.

use std::{
    panic::resume_unwind,
    path::Path,
    sync::Arc,
    thread::{ScopedJoinHandle, scope},
};

use anyhow::{Context, Result};
use rustls::sign::CertifiedKey;
use tokio::{net::TcpListener, task::spawn_blocking};
use wasmk_apiserver::FrontProxy;

use super::Settings;
use crate::{
    data_dir::{DataDir, Running},
    metrics,
    pki::{Leaf, Pair, Pki, server_names},
    renewal,
};

/// The name the API has towards servers of aggregated APIs.
const FRONT_PROXY: &str = "front-proxy-client";

/// All of them.
pub(super) struct Keys {
    pub(super) pki: Pki,
    /// Who the API is towards servers of aggregated APIs.
    pub(super) front_proxy: FrontProxy,
    /// The names of the API's certificate.
    pub(super) names: Vec<String>,
    /// The API's.
    pub(super) serving: Pair,
    /// That of the server of metrics.
    pub(super) metrics: Pair,
    /// What clients of ingresses are shown that ask for a host without a certificate.
    pub(super) ingress: Arc<CertifiedKey>,
}

impl Keys {
    /// Reads what is there and makes the rest, the administrator's kubeconfig too; the API answers to `names`.
    ///
    /// # Errors
    /// When a file cannot be read or written, or a name is none.
    pub(super) async fn open(data: DataDir, running: Running, names: Vec<String>) -> Result<Self> {
        spawn_blocking(move || Self::open_here(&data, &running, names)).await?
    }

    fn open_here(data: &DataDir, running: &Running, names: Vec<String>) -> Result<Self> {
        let dir = data.join("pki");
        scope(|threads| {
            // An authority of its own: no certificate of a user can pass for the server's.
            let front_proxy = threads.spawn(|| front_proxy(&dir.join("front-proxy")));
            let pki = Pki::open(&dir)?;
            let (serving, metrics, ingress) = scope(|threads| {
                let serving = threads.spawn(|| renewal::serving_leaf(&pki, &names));
                let metrics = threads.spawn(|| metrics::leaf(&pki));
                let ingress = threads.spawn(|| ingress_certificate(&pki));
                renewal::write_kubeconfig(data, &pki, running)?;
                anyhow::Ok((ended(serving)?, ended(metrics)?, ended(ingress)?))
            })?;
            let front_proxy = ended(front_proxy)?;
            Ok(Self { pki, front_proxy, names, serving, metrics, ingress })
        })
    }
}

/// All names that the API is reached by.
///
/// # Errors
/// When the system does not tell its own name, or where a listener listens.
pub(super) fn api_names(settings: &Settings, apis: &[TcpListener]) -> Result<Vec<String>> {
    let mut names = settings.names.clone();
    for api in apis {
        names.push(api.local_addr()?.ip().to_string());
    }
    let host = nix::unistd::gethostname()?.to_string_lossy().into_owned();
    Ok(server_names(&host, settings.service_range.at(1).into(), &names))
}

fn ended<T>(thread: ScopedJoinHandle<'_, T>) -> T {
    thread.join().unwrap_or_else(|panic| resume_unwind(panic))
}

fn front_proxy(dir: &Path) -> Result<FrontProxy> {
    let pki = Pki::open(dir)?;
    let Pair { cert, key } = pki.leaf(FRONT_PROXY, &Leaf { user: FRONT_PROXY, group: "", names: &[] })?;
    Ok(FrontProxy { cert, key, name: FRONT_PROXY.into(), ca: pki.ca_cert().into() })
}

fn ingress_certificate(pki: &Pki) -> Result<Arc<CertifiedKey>> {
    let names = ["ingress.wasmk.invalid".to_string()];
    let leaf = pki.leaf("ingress", &Leaf { user: "wasmk-ingress", group: "", names: &names })?;
    wasmk_net::ingress::certs::certified(leaf.cert.as_bytes(), leaf.key.as_bytes())
        .context("the ingress's own certificate")
}
