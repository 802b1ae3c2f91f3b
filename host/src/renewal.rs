//! Certificates that are renewed while everything runs: the API's, the administrator's, and the authority itself.
//!
//! Now and then the directory of keys is looked at. What is in its last third of life is made anew and shown from
//! the next handshake on; open connections stay as they are.

use std::time::Duration;

use anyhow::{Context, Result};
use k8s_openapi::api::core::v1::ConfigMap;
use kube::{
    Api, Client,
    api::{Patch, PatchParams},
};
use serde_json::json;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use wasmk_apiserver::{Serving, Trust};

use crate::{
    access::joined,
    bootstrap,
    data_dir::{DataDir, Running},
    kubeconfig,
    pki::{Leaf, Pair, Pki},
};

/// How often is looked.
const PERIOD: Duration = Duration::from_secs(60);

/// What is renewed.
pub(crate) struct Renewal {
    pub(crate) data: DataDir,
    pub(crate) running: Running,
    pub(crate) pki: Pki,
    /// Names of the API's certificate.
    pub(crate) names: Vec<String>,
    pub(crate) serving: Serving,
    pub(crate) trust: Trust,
    /// Authorities (PEM) of client certificates besides the cluster's own.
    pub(crate) more_clients: Option<String>,
    /// Tells who signs by the authority of another.
    pub(crate) authority: watch::Sender<Authority>,
    pub(crate) client: Client,
}

/// The authority: what signs, and all that is trusted (PEM).
#[derive(Clone, Debug)]
pub(crate) struct Authority {
    pub(crate) signing: Pair,
    pub(crate) trusted: String,
    /// The key of tokens in Secrets.
    pub(crate) tokens: String,
}

impl Authority {
    pub(crate) fn of(pki: &Pki) -> Result<Self> {
        Ok(Self { signing: pki.ca().clone(), trusted: pki.ca_cert().into(), tokens: pki.token_key()? })
    }
}

/// The API's own leaf.
pub(crate) fn serving_leaf(pki: &Pki, names: &[String]) -> Result<Pair> {
    pki.leaf("apiserver", &Leaf { user: "kube-apiserver", group: "", names })
}

/// Writes the administrator's kubeconfig, when it is not as it should be.
///
/// # Errors
/// When a file cannot be read or written.
pub(crate) fn write_kubeconfig(data: &DataDir, pki: &Pki, running: &Running) -> Result<()> {
    let admin = pki.leaf("admin", &Leaf { user: "kubernetes-admin", group: "system:masters", names: &[] })?;
    let server = format!("https://{}", running.api_from_here());
    let config = kubeconfig::admin(&server, pki.ca_cert(), &admin);
    kubeconfig::write_if_changed(&data.kubeconfig(), &config)
}

impl Renewal {
    /// Renews until `stop`. What fails is tried again at the next look.
    pub(crate) async fn run(mut self, stop: CancellationToken) {
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(PERIOD) => {}
            }
            if let Err(error) = self.once().await {
                tracing::error!(error = format!("{error:#}"), "certificates could not be renewed");
            }
        }
    }

    /// Renews what is due.
    ///
    /// # Errors
    /// When a file cannot be written, or the API refuses what it must publish.
    pub(crate) async fn once(&mut self) -> Result<()> {
        let signed_before = self.pki.ca().cert.clone();
        let changed = self.pki.advance()?;
        if changed || self.pki.ca().cert != signed_before {
            tracing::info!("the cluster's authority changes");
            let trusted = self.pki.ca_cert();
            let clients = self.more_clients.as_ref().map(|more| joined(trusted, more));
            self.trust.replace(clients.as_deref().unwrap_or(trusted), None);
            self.authority.send_replace(Authority::of(&self.pki)?);
            self.publish().await?;
        }
        let leaf = serving_leaf(&self.pki, &self.names)?;
        self.serving.replace(&leaf.cert, &leaf.key)?;
        write_kubeconfig(&self.data, &self.pki, &self.running)
    }

    /// Tells clients whom to trust.
    async fn publish(&self) -> Result<()> {
        bootstrap::write(&self.client, &self.running, self.pki.ca_cert()).await?;
        let maps: Api<ConfigMap> = Api::namespaced(self.client.clone(), "kube-system");
        let patch = Patch::Merge(json!({"data": {"client-ca-file": self.pki.ca_cert()}}));
        let parameters = PatchParams::default();
        let patched = maps.patch("extension-apiserver-authentication", &parameters, &patch).await;
        patched.context("ConfigMap extension-apiserver-authentication")?;
        Ok(())
    }
}

#[cfg(test)]
mod tests;
