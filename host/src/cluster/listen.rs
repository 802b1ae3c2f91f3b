//! Where a cluster is reached: the API, the registry, Ingresses, names.

use std::{net::SocketAddr, sync::Arc};

use anyhow::{Context, Result, bail};
use rustls::sign::CertifiedKey;
use serde_json::Value;
use tokio::{net::TcpListener, sync::watch};
use wasmk_apiserver::Serving;
use wasmk_net::ingress::Listeners;
use wasmk_registry::Storage;

use super::{Cluster, Settings, keys::Keys};
use crate::{
    bootstrap,
    renewal::{Authority, Renewal},
};

/// Which address of the services' range the DNS server has, as everywhere.
const DNS_SERVICE: u32 = 10;
/// Where the system says who answers names outside the cluster.
const RESOLV_CONF: &str = "/etc/resolv.conf";

/// Where Ingresses are served.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IngressAddresses {
    /// Nowhere.
    LeftOut,
    /// Here, where that can be listened on.
    IfFree {
        /// HTTP.
        http: SocketAddr,
        /// The same over TLS.
        https: SocketAddr,
    },
    /// Here, and not otherwise.
    Published {
        /// HTTP.
        http: Option<SocketAddr>,
        /// The same over TLS.
        https: Option<SocketAddr>,
    },
}

impl IngressAddresses {
    /// Listens for HTTP and HTTPS.
    pub(super) async fn listen(self) -> Result<(Option<TcpListener>, Option<TcpListener>)> {
        match self {
            Self::LeftOut => Ok((None, None)),
            Self::IfFree { http, https } => {
                Ok((outside(http, "--ingress-addr").await, outside(https, "--ingress-tls-addr").await))
            }
            Self::Published { http, https } => Ok((published(http).await?, published(https).await?)),
        }
    }
}

async fn published(address: Option<SocketAddr>) -> Result<Option<TcpListener>> {
    let Some(address) = address else { return Ok(None) };
    bind(address, "the ingress", "--publish").await.map(Some)
}

impl Cluster {
    /// Serves the API and the registry.
    pub(super) fn listen(
        &self,
        settings: &Settings,
        (keys, authority): (Keys, watch::Sender<Authority>),
        apis: Vec<TcpListener>,
        registry: TcpListener,
        images: Storage,
    ) -> Result<()> {
        let Keys { pki, names, serving, .. } = keys;
        let serving = Serving::new(&serving.cert, &serving.key)?;
        let tls = serving.config(pki.ca_cert())?;
        let renewal = Renewal {
            data: settings.data.clone(),
            running: self.running.clone(),
            pki,
            names,
            serving,
            trust: self.api.trust(),
            more_clients: settings.access.client_ca.clone(),
            authority,
            client: self.client_of("system:masters"),
        };
        self.tasks.spawn(renewal.run(self.stop.clone()));
        let router = self.links.mounted_on(&self.api);
        for api in apis {
            let serve = wasmk_apiserver::serve_tls(api, tls.clone(), router.clone(), self.stop.clone());
            self.tasks.spawn(serve);
        }
        let (router, stop) = (wasmk_registry::router(images), self.stop.clone());
        self.tasks.spawn(async move {
            let served = axum::serve(registry, router).with_graceful_shutdown(stop.cancelled_owned());
            if let Err(e) = served.await {
                tracing::error!(error = %e, "the registry stopped");
            }
        });
        Ok(())
    }

    /// Leads HTTP and HTTPS from outside to pods as Ingresses say, if either is listened for.
    pub(super) fn start_ingress(
        &self,
        http: Option<TcpListener>,
        https: Option<(TcpListener, Arc<CertifiedKey>)>,
    ) {
        let listeners = Listeners { http, https };
        if listeners.http.is_none() && listeners.https.is_none() {
            return;
        }
        let client = self.client("system:serviceaccount:kube-system:ingress");
        let (view, keep) = wasmk_net::View::new(client.clone());
        let (policies, hold) = wasmk_net::policy::Policies::new(client.clone(), view.clone(), None);
        let (watching, holding, serving) = (self.stop.clone(), self.stop.clone(), self.stop.clone());
        self.tasks.spawn(async move { watching.run_until_cancelled(keep).await });
        self.tasks.spawn(async move { holding.run_until_cancelled(hold).await });
        self.tasks.spawn(wasmk_net::ingress::run(client, (view, policies), listeners, serving));
    }

    /// Answers names on the last address of the pods' range, behind the service `kube-dns` at its usual place, whose
    /// objects the caller is to write.
    pub(super) async fn start_dns(&self, settings: &Settings) -> Result<[Value; 2]> {
        let last = wasmk_net::last_address(&settings.pod_range).context("the pods' range is none")?;
        let udp = wasmk_net::bind::udp(SocketAddr::from((last, 0)), false)?;
        let server = udp.local_addr()?;
        let tcp = TcpListener::bind(server).await?;
        let user = "system:serviceaccount:kube-system:coredns";
        let (view, keep) = wasmk_net::View::new(self.client(user));
        let upstream = wasmk_net::dns::servers(&std::fs::read_to_string(RESOLV_CONF).unwrap_or_default());
        let (watching, answering) = (self.stop.clone(), self.stop.clone());
        self.tasks.spawn(async move { watching.run_until_cancelled(keep).await });
        self.tasks.spawn(wasmk_net::dns::serve(view, udp, tcp, upstream, answering));
        Ok(bootstrap::names(settings.service_range.at(DNS_SERVICE), server))
    }
}

/// The API once more, where pods find it when it only listens on loopback: an endpoint of a service cannot
/// be 127.0.0.1, so it gets the last address of the pods' range, which no pod has. `None` when it is not needed, or
/// not to be had; the service `kubernetes` then has no endpoints.
pub(super) async fn inside_listener(pod_range: &str, api: SocketAddr) -> Option<TcpListener> {
    if !api.ip().is_loopback() {
        return None;
    }
    let last = wasmk_net::last_address(pod_range)?;
    let address = SocketAddr::from((last, api.port()));
    match TcpListener::bind(address).await {
        Ok(listener) => Some(listener),
        Err(error) => {
            tracing::warn!(%address, %error, "pods cannot reach the API by its service");
            None
        }
    }
}

/// The functions' gateway once more, where pods find it.
pub(super) struct Door {
    /// What an endpoint of its service is to be.
    pub(super) address: SocketAddr,
    /// None where the gateway itself listens on all addresses.
    pub(super) listener: Option<TcpListener>,
}

/// The gateway's door inside: the last address of the pods' range, whatever address it has for others. `None` when it
/// is not to be had; functions then have no names in the cluster.
pub(super) async fn inside_door(pod_range: &str, gateway: SocketAddr) -> Option<Door> {
    let last = wasmk_net::last_address(pod_range)?;
    let address = SocketAddr::from((last, gateway.port()));
    match TcpListener::bind(address).await {
        Ok(listener) => Some(Door { address, listener: Some(listener) }),
        Err(error) if gateway.ip().is_unspecified() && error.kind() == std::io::ErrorKind::AddrInUse => {
            Some(Door { address, listener: None })
        }
        Err(error) => {
            tracing::warn!(%address, %error, "pods cannot reach functions by their names in the cluster");
            None
        }
    }
}

/// Listens, or says which flag names another address.
pub(super) async fn bind(address: SocketAddr, what: &str, flag: &str) -> Result<TcpListener> {
    match TcpListener::bind(address).await {
        Ok(listener) => Ok(listener),
        Err(e) if e.kind() == std::io::ErrorKind::AddrInUse => bail!(
            "{what} cannot listen on {address}: the port is in use; choose another with {flag} (port 0 picks a free one)"
        ),
        Err(e) => Err(e).with_context(|| format!("{what} cannot listen on {address} ({flag})")),
    }
}

/// Listens for ingresses, where that can be had: the cluster works without.
async fn outside(address: SocketAddr, flag: &str) -> Option<TcpListener> {
    let listener = TcpListener::bind(address).await;
    listener
        .inspect_err(|error| {
            tracing::warn!(%address, %error, "ingresses are not served there; choose another address with {flag}");
        })
        .ok()
}
