//! Everything in one process: store, API, controllers, scheduler, node, functions, registry.
//!
//! [`Cluster::start`] reads as the program's story: keys, store, API, listeners, then the parts that
//! are ordinary clients of the API. Each part gets a client of its own identity.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use anyhow::{Context, Result, bail};
use kube::Client;
use tokio::{net::TcpListener, sync::mpsc};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use wasmk_apiserver::{ApiServer, Config, FrontProxy};
use wasmk_controllers::{Clock, Context as Controllers, scheduler};
use wasmk_functions::{Executor, Functions};
use wasmk_node::Node;
use wasmk_registry::Storage;
use wasmk_store::{Embedded, Store};

use crate::{
    agent, bootstrap, control,
    data_dir::{Claim, DataDir, Running},
    executor::{Elsewhere, InPlace},
    kubeconfig,
    links::Links,
    metrics,
    pki::{Leaf, Pki, server_names},
    store::{Opened, StoreSettings},
};

/// The name the API has towards servers of aggregated APIs.
const FRONT_PROXY: &str = "front-proxy-client";
/// The first address of the range that services get theirs from: the API's own.
const API_SERVICE: &str = "127.43.0.1";

/// Shortest prefix of a node's range of pod addresses.
const NODE_MASK: u8 = 18;
/// Longest time for pods to end when everything stops.
const STOP: Duration = Duration::from_secs(30);

/// What `wasmk up` is asked for.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Where everything is kept.
    pub data: DataDir,
    /// Where the API listens.
    pub api: SocketAddr,
    /// Where functions are answered.
    pub gateway: SocketAddr,
    /// Where the registry listens.
    pub registry: SocketAddr,
    /// More names for the API's certificate.
    pub names: Vec<String>,
    /// The name of the node in this process; none for no node.
    pub node: Option<String>,
    /// What the node is told.
    pub node_options: agent::NodeOptions,
    /// Controllers to run, as kube-controller-manager's flag says it.
    pub controllers: Vec<String>,
    /// Where objects are kept, and how.
    pub store: StoreSettings,
    /// Suffix of functions' host names.
    pub domain: String,
    /// Where pods get their addresses from.
    pub pod_range: String,
}

/// A running cluster.
pub struct Cluster {
    running: Running,
    stop: CancellationToken,
    failures: tokio::sync::Mutex<mpsc::Receiver<String>>,
    tasks: TaskTracker,
    functions: Option<Functions>,
    node: Option<Node>,
    links: Arc<Links>,
    api: ApiServer,
    embedded: Option<Arc<Embedded>>,
    _claim: Claim,
}

impl Cluster {
    /// Starts everything and returns once the API, the node and the gateway can be used.
    ///
    /// # Errors
    /// When the data directory is in use, a port is taken, or what is stored cannot be read.
    pub async fn start(settings: Settings) -> Result<Self> {
        let claim = settings.data.claim()?;
        let pki = Pki::open(&settings.data.join("pki"))?;
        let api_listener = bind(settings.api, "the API", "--api-addr").await?;
        let gateway_listener = bind(settings.gateway, "the gateway", "--gateway-addr").await?;
        let registry_listener = bind(settings.registry, "the registry", "--registry-addr").await?;
        let running = Running {
            pid: std::process::id(),
            api: api_listener.local_addr()?,
            gateway: gateway_listener.local_addr()?,
            registry: registry_listener.local_addr()?,
            node: settings.node.clone(),
        };
        write_kubeconfig(&settings.data, &pki, running.api)?;

        let Opened { store, kept, embedded } = settings.store.open(&settings.data.join("store")).await?;
        let images = Storage::open(settings.data.join("registry"), Default::default()).await;
        let images = images.context("cannot open the registry's files")?;
        let links = Arc::new(Links::default());
        let mut config = Config::new(store, pki.token_key()?, pki.ca_cert().into());
        config.dialer = links.clone();
        // An authority of its own: no certificate of a user can pass for the server's.
        let proxies = Pki::open(&settings.data.join("pki").join("front-proxy"))?;
        let proxy = proxies.leaf(FRONT_PROXY, &Leaf { user: FRONT_PROXY, group: "", names: &[] })?;
        let callers = proxies.ca_cert().to_string();
        config.front_proxy = FrontProxy {
            cert: proxy.cert,
            key: proxy.key,
            name: FRONT_PROXY.into(),
            ca: proxies.ca_cert().into(),
        };
        config.advertise_address = running.api.ip();
        config.advertise_port = running.api.port();
        let api = ApiServer::start(config).await.context("the API cannot start")?;

        let stop = CancellationToken::new();
        let tasks = TaskTracker::new();
        let (failed, failures) = mpsc::channel(16);
        let mut cluster = Self {
            running,
            stop,
            failures: failures.into(),
            tasks,
            functions: None,
            node: None,
            links: links.clone(),
            api,
            embedded,
            _claim: claim,
        };
        cluster.serve_commands(&settings.data, kept);
        cluster.listen(&settings, &pki, api_listener, registry_listener, images)?;
        bootstrap::write(&cluster.client_of("system:masters"), &cluster.running, pki.ca_cert())
            .await
            .context("cannot write what every cluster has")?;
        let measuring = metrics::start(
            cluster.client_of("system:masters"),
            cluster.links.clone(),
            &pki,
            &callers,
            cluster.stop.clone(),
        );
        let measuring = measuring.await.context("cannot announce metrics.k8s.io")?;
        cluster.tasks.spawn(measuring);
        cluster.control(&settings, &pki, failed);
        if let Some(name) = &settings.node {
            cluster.node = Some(start_node(&cluster.api, name, &settings, &links).await?);
        }
        cluster.functions = cluster.start_functions(&settings, gateway_listener);
        cluster._claim.publish(&cluster.running)?;
        Ok(cluster)
    }

    /// Where it listens.
    pub fn running(&self) -> &Running {
        &self.running
    }

    /// Waits until a part that must not stop has stopped, and says why it did.
    pub async fn failed(&self) -> String {
        let mut failures = self.failures.lock().await;
        match failures.recv().await {
            Some(why) => why,
            // Nothing is left that could fail.
            None => std::future::pending().await,
        }
    }

    /// Stops in the order of dependence: gateway, controllers, node, API, store.
    pub async fn shutdown(self) {
        if let Some(functions) = self.functions {
            functions.shutdown().await;
        }
        if let Some(node) = self.node {
            node.shutdown(STOP).await;
        }
        self.links.close();
        self.stop.cancel();
        self.tasks.close();
        self.tasks.wait().await;
        self.api.shutdown().await;
        if let Some(store) = self.embedded
            && let Err(e) = store.close().await
        {
            tracing::error!(error = %e, "the store did not close well");
        }
    }

    /// What commands on this machine ask a running process for; without it the cluster works as well.
    fn serve_commands(&self, data: &DataDir, kept: Arc<dyn Store>) {
        match control::serve(data.path(), kept, self.stop.clone()) {
            Ok(served) => drop(self.tasks.spawn(served)),
            Err(e) => tracing::warn!("`wasmk store snapshot` will not reach this process: {e:#}"),
        }
    }

    fn listen(
        &self,
        settings: &Settings,
        pki: &Pki,
        api: TcpListener,
        registry: TcpListener,
        images: Storage,
    ) -> Result<()> {
        let mut names = settings.names.clone();
        names.push(self.running.api.ip().to_string());
        let host = nix::unistd::gethostname()?.to_string_lossy().into_owned();
        let names = server_names(&host, API_SERVICE.parse()?, &names);
        let leaf = pki.leaf("apiserver", &Leaf { user: "kube-apiserver", group: "", names: &names })?;
        let tls = wasmk_apiserver::tls_config(&leaf.cert, &leaf.key, pki.ca_cert())?;
        let router = self.links.mounted_on(&self.api);
        self.tasks.spawn(wasmk_apiserver::serve_tls(api, tls, router, self.stop.clone()));
        let (router, stop) = (wasmk_registry::router(images), self.stop.clone());
        self.tasks.spawn(async move {
            let served = axum::serve(registry, router).with_graceful_shutdown(stop.cancelled_owned());
            if let Err(e) = served.await {
                tracing::error!(error = %e, "the registry stopped");
            }
        });
        Ok(())
    }

    fn control(&self, settings: &Settings, pki: &Pki, failed: mpsc::Sender<String>) {
        if settings.controllers.iter().any(|c| c == "-*") {
            return;
        }
        let wanted = wasmk_controllers::Settings {
            enabled: settings.controllers.clone(),
            ca_pem: pki.ca_cert().into(),
            ca_key_pem: pki.ca().key.clone(),
            volume_root: settings.data.join("volumes").display().to_string(),
            cluster_cidr: settings.pod_range.clone(),
            node_cidr_mask: node_mask(&settings.pod_range),
            ..Default::default()
        };
        let client = self.client("system:kube-controller-manager");
        let cx = Controllers::new(client, wanted, Clock::System, self.stop.clone());
        // The scheduler sees through the same caches and writes under a name of its own.
        let scheduling = Controllers { client: self.client("system:kube-scheduler"), ..cx.clone() };
        self.must_run("the controllers", wasmk_controllers::run_in(cx), failed.clone());
        self.must_run("the scheduler", scheduler::run_in(scheduling, Default::default()), failed);
    }

    fn must_run<E: std::fmt::Display + Send>(
        &self,
        name: &'static str,
        part: impl Future<Output = Result<(), E>> + Send + 'static,
        failed: mpsc::Sender<String>,
    ) {
        self.tasks.spawn(async move {
            if let Err(why) = part.await.map_err(|e| format!("{name}: {e}")) {
                let _ = failed.send(why).await;
            }
        });
    }

    /// A client of this program's own, with the rights of a group.
    fn client_of(&self, group: &str) -> Client {
        self.api.client("system:apiserver", &[group])
    }

    fn client(&self, user: &str) -> Client {
        self.api.client(user, &["system:authenticated"])
    }

    fn start_functions(&self, settings: &Settings, listener: TcpListener) -> Option<Functions> {
        if settings.controllers.iter().any(|c| c == "-*") {
            return None;
        }
        let executor: Arc<dyn Executor> = match &self.node {
            Some(node) => Arc::new(InPlace(node.functions())),
            None => Arc::new(Elsewhere),
        };
        let client = self.client("system:serviceaccount:knative-serving:controller");
        let wanted = wasmk_functions::Settings { domain: settings.domain.clone(), executor };
        Some(Functions::start(client, listener, wanted))
    }
}

/// Length of the prefix of a node's part of the pods' range: room for 16,382 pods, or else a quarter.
fn node_mask(range: &str) -> u8 {
    let length = range.split_once('/').and_then(|(_, length)| length.parse::<u8>().ok()).unwrap_or(NODE_MASK);
    NODE_MASK.max(length.saturating_add(2))
}

async fn bind(address: SocketAddr, what: &str, flag: &str) -> Result<TcpListener> {
    match TcpListener::bind(address).await {
        Ok(listener) => Ok(listener),
        Err(e) if e.kind() == std::io::ErrorKind::AddrInUse => bail!(
            "{what} cannot listen on {address}: the port is in use; choose another with {flag} (port 0 picks a free one)"
        ),
        Err(e) => Err(e).with_context(|| format!("{what} cannot listen on {address} ({flag})")),
    }
}

fn write_kubeconfig(data: &DataDir, pki: &Pki, api: SocketAddr) -> Result<()> {
    let admin = pki.leaf("admin", &Leaf { user: "kubernetes-admin", group: "system:masters", names: &[] })?;
    let reached =
        if api.ip().is_unspecified() { SocketAddr::new([127, 0, 0, 1].into(), api.port()) } else { api };
    kubeconfig::write(
        &data.kubeconfig(),
        &kubeconfig::admin(&format!("https://{reached}"), pki.ca_cert(), &admin),
    )
}

async fn start_node(api: &ApiServer, name: &str, settings: &Settings, links: &Arc<Links>) -> Result<Node> {
    let client = api.client(&format!("system:node:{name}"), &["system:nodes", "system:authenticated"]);
    let node = agent::node(name, &settings.data, client, &settings.node_options).await?;
    links.add_local(name, node.router());
    Ok(node)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_has_room_for_its_pods() {
        for (range, expect) in [("127.64.0.0/10", 18), ("127.42.0.0/16", 18), ("127.42.4.0/22", 24)] {
            assert_eq!(node_mask(range), expect, "{range}");
        }
    }
}
