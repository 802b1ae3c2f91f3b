//! Everything in one process: store, API, controllers, scheduler, node, functions, registry.
//!
//! [`Cluster::start`] reads as the program's story: keys, store, API, listeners, then the parts that
//! are ordinary clients of the API. Each part gets a client of its own identity.

mod keys;
mod listen;

use std::{
    net::{IpAddr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use anyhow::{Context, Result};
use kube::Client;
use tokio::{
    net::TcpListener,
    sync::{mpsc, watch},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use wasmk_apiserver::{ApiServer, Component, Config, LogFile, RequestHeader, ServiceRange};
use wasmk_controllers::{Accounts, LoadBalancer, scheduler};
use wasmk_functions::{Admission, Executor, Functions, Live};
use wasmk_node::Node;
use wasmk_registry::Storage;
use wasmk_store::{Embedded, Store};

use crate::{
    access::Access,
    agent,
    agents::Agents,
    bootstrap::{self, Leading},
    control,
    controllers::Control,
    data_dir::{Claim, DataDir, Running},
    executor::{Elsewhere, InPlace},
    hook::Knative,
    imports::Imports,
    links::Links,
    metrics,
    renewal::Authority,
    store::{Opened, StoreSettings},
};
use keys::{Keys, api_names};
pub use listen::IngressAddresses;
use listen::{Door, bind, inside_door, inside_listener};

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
    /// Where Ingresses are served.
    pub ingress: IngressAddresses,
    /// More names for the API's certificate.
    pub names: Vec<String>,
    /// The name of the node in this process; none for no node.
    pub node: Option<String>,
    /// What the node is told.
    pub node_options: agent::NodeOptions,
    /// The names of nodes in processes of their own beside this one, told the same.
    pub agents: Vec<String>,
    /// Whether that node is left to the control plane.
    pub control_plane: bool,
    /// Controllers to run, as kube-controller-manager's flag says it.
    pub controllers: Vec<String>,
    /// How nodes are chosen for pods.
    pub scheduler: scheduler::Settings,
    /// Where objects are kept, and how.
    pub store: StoreSettings,
    /// How long events are kept after they were written last; zero for ever.
    pub event_ttl: Duration,
    /// Suffix of functions' host names.
    pub domain: String,
    /// Where pods get their addresses from.
    pub pod_range: String,
    /// Length of the prefix of a node's part of it.
    pub node_mask: u8,
    /// Where services get their addresses from.
    pub service_range: ServiceRange,
    /// The first and last port that services get on nodes.
    pub node_ports: (u16, u16),
    /// Who may use the API.
    pub access: Access,
}

impl Settings {
    /// Whether controllers run here at all, or only the API is served.
    fn controls(&self) -> bool {
        !self.controllers.iter().any(|c| c == "-*")
    }
}

/// A running cluster.
pub struct Cluster {
    running: Running,
    stop: CancellationToken,
    failures: tokio::sync::Mutex<mpsc::Receiver<String>>,
    tasks: TaskTracker,
    functions: Option<Functions>,
    node: Option<Node>,
    agents: Option<Agents>,
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
        let api_listener = bind(settings.api, "the API", "--api-addr").await?;
        let gateway_listener = bind(settings.gateway, "the gateway", "--gateway-addr").await?;
        let registry_listener = bind(settings.registry, "the registry", "--registry-addr").await?;
        let (http, https) = settings.ingress.listen().await?;
        let running = Running {
            pid: std::process::id(),
            api: api_listener.local_addr()?,
            gateway: gateway_listener.local_addr()?,
            registry: registry_listener.local_addr()?,
            ingress: http.as_ref().and_then(|l| l.local_addr().ok()),
            ingress_tls: https.as_ref().and_then(|l| l.local_addr().ok()),
            without_ingress: settings.ingress == IngressAddresses::LeftOut,
            node: settings.node.clone(),
            agents: settings.agents.clone(),
        };
        let inside = inside_listener(&settings.pod_range, running.api).await;
        let inside_address = inside.as_ref().and_then(|l| l.local_addr().ok());
        let apis: Vec<_> = [Some(api_listener), inside].into_iter().flatten().collect();

        // Each of these waits for the disk, and none for another.
        let store = settings.data.join("store");
        let (keys, Opened { store, kept, embedded }, images) = tokio::try_join!(
            Keys::open(settings.data.clone(), running.clone(), api_names(&settings, &apis)?),
            settings.store.open(&store),
            async {
                let images = Storage::open(settings.data.join("registry"), Default::default()).await;
                images.context("cannot open the registry's files")
            },
        )?;
        let (authority, signer) = watch::channel(Authority::of(&keys.pki)?);
        let links = Arc::new(Links::default());
        let mut config = Config::new(store, keys.pki.token_key()?, keys.pki.ca_cert().into());
        let live = Live::new(&settings.domain);
        config.hooks.push(Arc::new(Knative(Admission::new(live.clone()))));
        config.hooks.push(Arc::new(Imports::new(images.clone(), running.registry)));
        config.dialer = links.clone();
        let callers = keys.front_proxy.ca.clone();
        config.request_header = Some(RequestHeader::of(&callers));
        config.front_proxy = keys.front_proxy.clone();
        config.event_ttl = settings.event_ttl;
        config.service_range = settings.service_range;
        config.node_ports = settings.node_ports;
        config.advertise_address = inside_address.unwrap_or(running.api).ip();
        config.advertise_port = running.api.port();
        let (measures, local) = metrics::listen().await?;
        config.local_services.push(local);
        settings.access.apply(&mut config);
        let controlled = Arc::new(AtomicBool::new(false));
        config.components = components(&controlled);
        config.logs = logs(&settings, config.audit.as_ref());
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
            agents: None,
            links: links.clone(),
            api,
            embedded,
            _claim: claim,
        };
        cluster.serve_commands(&settings.data, kept);
        let writer = cluster.client_of("system:masters");
        let trusted = keys.pki.ca_cert().to_owned();
        let fallback = keys.ingress.clone();
        let metrics = metrics::Server {
            listener: measures,
            leaf: keys.metrics.clone(),
            callers,
            trusted: trusted.clone(),
        };
        cluster.listen(&settings, (keys, authority), apis, registry_listener, images)?;
        cluster.announce(metrics, &writer, &trusted).await?;
        let door = cluster.door(&settings).await;
        let (door_address, door) = door.map(|door| (door.address, door.listener)).unzip();
        let leading = cluster.leading(&settings, door_address).await;
        cluster.control(&settings, signer, leading, (controlled, failed));
        cluster.start_ingress(http, https.zip(Some(fallback)));
        if let Some(name) = &settings.node {
            if settings.control_plane {
                let reserved = bootstrap::reserve_node(&writer, name).await;
                reserved.context("cannot reserve the node for the control plane")?;
            }
            cluster.node = Some(start_node(&cluster.api, name, &settings, &links).await?);
        }
        let listeners = [Some(gateway_listener), door.flatten()].into_iter().flatten();
        let door = door_address.map(|address| address.ip());
        cluster.functions = cluster.start_functions(&settings, live, listeners, door)?;
        let agents = Agents::start(&settings.data, &cluster.running, &settings.node_options, writer).await;
        cluster.agents = Some(agents.context("the agents cannot start")?);
        cluster._claim.publish(&cluster.running)?;
        Ok(cluster)
    }

    /// Writes what every cluster has, and begins to serve the API group of metrics.
    async fn announce(&self, metrics: metrics::Server, writer: &Client, trusted: &str) -> Result<()> {
        let measuring = async {
            let started = metrics.start(writer.clone(), self.links.clone(), self.stop.clone()).await;
            started.context("cannot announce metrics.k8s.io")
        };
        let written = async {
            let written = bootstrap::write(writer, &self.running, trusted).await;
            written.context("cannot write what every cluster has")
        };
        let (measuring, ()) = tokio::try_join!(measuring, written)?;
        self.tasks.spawn(measuring);
        Ok(())
    }

    /// Listens where pods find functions, if the rest of the control plane runs here, and leads agents' pods there.
    async fn door(&self, settings: &Settings) -> Option<Door> {
        if !settings.controls() {
            return None;
        }
        let door = inside_door(&settings.pod_range, self.running.gateway).await?;
        self.links.lead(door.address);
        Some(door)
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

    /// Stops in the order of dependence: gateway, nodes, controllers with all else that uses the API, API, store.
    pub async fn shutdown(self) {
        if let Some(functions) = self.functions {
            functions.shutdown().await;
        }
        let node = async {
            if let Some(node) = self.node {
                node.shutdown(STOP).await;
            }
        };
        let agents = async {
            if let Some(agents) = self.agents {
                agents.shutdown().await;
            }
        };
        tokio::join!(node, agents);
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

    /// Answers names, and has the services of the DNS server and of the gateway's door lead here. Where several
    /// servers do that, they lead to the one that runs the controllers, which gets this back to say so; else they
    /// lead here at once.
    async fn leading(&self, settings: &Settings, door: Option<SocketAddr>) -> Leading {
        let mut objects = Vec::new();
        match self.start_dns(settings).await {
            Ok(names) => objects.extend(names),
            Err(error) => tracing::warn!(error = format!("{error:#}"), "the cluster has no DNS server"),
        }
        objects.extend(door.into_iter().flat_map(bootstrap::gateway));
        let leading = Leading { client: self.client_of("system:masters"), objects };
        if !(settings.store.is_shared() && settings.controls())
            && let Err(error) = leading.write().await
        {
            tracing::warn!(
                error = format!("{error:#}"),
                "cannot write the services of the DNS server and the gateway"
            );
        }
        leading
    }

    fn control(
        &self,
        settings: &Settings,
        signer: watch::Receiver<Authority>,
        leading: Leading,
        (running, failed): (Arc<AtomicBool>, mpsc::Sender<String>),
    ) {
        if !settings.controls() {
            return;
        }
        let wanted = wasmk_controllers::Settings {
            enabled: settings.controllers.clone(),
            volume_root: settings.data.join("volumes").display().to_string(),
            cluster_cidr: settings.pod_range.clone(),
            node_cidr_mask: settings.node_mask,
            load_balancer: LoadBalancer::ClusterIp,
            ..Default::default()
        };
        let client = self.client("system:kube-controller-manager");
        let scheduler = self.client("system:kube-scheduler");
        let accounts: Accounts = Arc::new(self.api.accounts("kube-controller-manager"));
        let profiles = settings.scheduler.clone();
        let control = Control { client, scheduler, accounts, settings: wanted, profiles, signer, leading };
        let shared = settings.store.is_shared();
        let controllers = control.run(shared, self.stop.clone());
        running.store(true, Ordering::Relaxed);
        let controllers = async move {
            let ended = controllers.await;
            running.store(false, Ordering::Relaxed);
            ended
        };
        self.must_run("the controllers and the scheduler", controllers, failed);
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

    fn start_functions(
        &self,
        settings: &Settings,
        live: Live,
        listeners: impl Iterator<Item = TcpListener>,
        door: Option<IpAddr>,
    ) -> std::io::Result<Option<Functions>> {
        if !settings.controls() {
            return Ok(None);
        }
        let executor: Arc<dyn Executor> = match &self.node {
            Some(node) => Arc::new(InPlace(node.functions())),
            None => Arc::new(Elsewhere),
        };
        let client = self.client("system:serviceaccount:knative-serving:controller");
        let wanted = wasmk_functions::Settings { live, executor, door };
        Functions::start(client, listeners, wanted).map(Some)
    }
}

/// What `componentstatuses` tells of beside the store: they run together, or not at all.
fn components(running: &Arc<AtomicBool>) -> Vec<Component> {
    let one = |name| {
        let running = running.clone();
        let problem =
            move || (!running.load(Ordering::Relaxed)).then(|| "does not run in this process".into());
        Component { name, problem: Arc::new(problem) }
    };
    ["controller-manager", "scheduler"].map(one).into()
}

/// What `/logs` serves, of it what is there: what a detached process and agents print, and what was asked of the API.
fn logs(settings: &Settings, audit: Option<&wasmk_apiserver::audit::Settings>) -> Vec<LogFile> {
    let data = &settings.data;
    let mut all = vec![LogFile { name: "wasmk.log".into(), path: data.join("wasmk.log") }];
    all.extend(
        (0..settings.agents.len())
            .map(|index| LogFile { name: format!("agent-{index}.log"), path: data.agent_log(index) }),
    );
    let file = audit.and_then(|settings| settings.file.as_ref()).map(|file| file.path.clone());
    all.extend(file.map(|path| LogFile { name: "audit.log".into(), path }));
    all
}

async fn start_node(api: &ApiServer, name: &str, settings: &Settings, links: &Arc<Links>) -> Result<Node> {
    let client = api.client(&format!("system:node:{name}"), &["system:nodes", "system:authenticated"]);
    let node = agent::node(name, &settings.data, client, &settings.node_options).await?;
    links.add_local(name, node.router());
    Ok(node)
}
