//! The running server: what all requests share, and its life.

use std::{collections::HashSet, sync::Arc, time::Duration};

use arc_swap::ArcSwap;
use axum::{Router, extract::State, routing::any};
use thiserror::Error;
use tokio::{
    sync::{Semaphore, watch},
    task::JoinHandle,
};
use tokio_util::sync::CancellationToken;

use crate::{
    Config, KeyError,
    admission::{Hook, Kept, Mutation, Policy},
    aggregate::{self, Servers},
    alloc::Allocator,
    audit::{Audit, AuditError},
    auth::{Authenticator, PeerCertificate, Rbac, RemoteError, Sources, User, node, tokens::Signer},
    authorize::Authorizers,
    bootstrap,
    cache::Caches,
    client, crd, dispatch, expiry,
    flow::{self, Flow},
    metrics::Metrics,
    remote::Remote,
    table::{self, Table},
};

/// Watches, streams and proxied calls, at the same time.
pub(crate) const MAX_LONG_RUNNING: usize = 20_000;
/// How often old history is compacted; what is older than this is forgotten.
const COMPACT_EVERY: Duration = Duration::from_secs(300);

/// Why a server does not start.
#[derive(Debug, Error)]
pub enum StartError {
    /// The store cannot be read.
    #[error("cannot read the store")]
    Store(#[from] wasmk_store::Error),
    /// The service account key is unusable.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// Requests cannot be remembered.
    #[error(transparent)]
    Audit(#[from] AuditError),
    /// A remote authenticator or authorizer cannot be used.
    #[error(transparent)]
    Remote(#[from] RemoteError),
    /// An object every cluster has cannot be written.
    #[error("cannot write {object}: {why}")]
    Bootstrap {
        /// Which one.
        object: String,
        /// The refusal.
        why: String,
    },
}

/// What all requests share.
pub(crate) struct Core {
    pub(crate) config: Config,
    pub(crate) caches: Arc<Caches>,
    pub(crate) table: ArcSwap<Table>,
    pub(crate) authenticator: Authenticator,
    pub(crate) rbac: Arc<Rbac>,
    pub(crate) authorizers: Authorizers,
    pub(crate) audit: Option<Audit>,
    pub(crate) signer: Arc<Signer>,
    pub(crate) allocator: Allocator,
    pub(crate) metrics: Metrics,
    pub(crate) policies: Kept<Policy>,
    pub(crate) mutations: Kept<Mutation>,
    /// Mutating and validating webhooks.
    pub(crate) hooks: (Hooks, Hooks),
    pub(crate) remote: Remote,
    /// Groups and versions that other servers have.
    pub(crate) aggregated: ArcSwap<Servers>,
    /// What was read from custom resource definitions.
    pub(crate) definitions: crd::Definitions,
    /// How often the table was made; wakes those who look at it.
    pub(crate) defined: watch::Sender<u64>,
    /// Definitions that are served already and will be established next. Held while the table is made anew, so that
    /// no older one takes the place of a newer.
    pub(crate) establishing: parking_lot::Mutex<HashSet<String>>,
    pub(crate) shutdown: CancellationToken,
    pub(crate) flow: Flow,
    pub(crate) long_running: Arc<Semaphore>,
    /// Discovery and API descriptions, made anew when the table changes.
    pub(crate) documents: crate::discovery::Documents,
}

/// The webhooks of configurations.
type Hooks = Kept<Vec<Arc<Hook>>>;

/// Names the node behind a connection, from the extensions of a request on it.
pub type NodeIdentifier = Arc<dyn Fn(&axum::http::Extensions) -> Option<String> + Send + Sync>;

/// A running API server.
pub struct ApiServer {
    core: Arc<Core>,
    tasks: Vec<JoinHandle<()>>,
}

impl ApiServer {
    /// Loads the store, writes what every cluster has, and begins to serve.
    ///
    /// # Errors
    /// When the store cannot be read or written, or a key is unusable.
    pub async fn start(config: Config) -> Result<Self, StartError> {
        let accounts = &config.authentication.accounts;
        let signer = Arc::new(Signer::new(
            &config.service_account_key,
            &config.issuer,
            &accounts.more_keys,
            &accounts.more_issuers,
        )?);
        let caches = Caches::load(config.store.clone(), table::readers()).await?;
        let follower = tokio::spawn(caches.clone().follow());
        let rbac = Arc::new(Rbac::new(&caches));
        let trust = Sources {
            signer: signer.clone(),
            client_ca: &config.client_ca,
            static_tokens: &config.static_tokens,
            request_header: config.request_header.clone(),
            settings: config.authentication.clone(),
            clock: config.clock,
        };
        let shutdown = CancellationToken::new();
        let audit = match config.audit.clone() {
            Some(settings) => Some(Audit::start(settings, shutdown.clone()).await?),
            None => None,
        };
        let core = Arc::new(Core {
            table: ArcSwap::from_pointee(Table::new(&caches, Vec::new(), Vec::new())),
            authenticator: Authenticator::new(&caches, trust).await?,
            authorizers: Authorizers::new(&caches, &rbac, config.authorization.clone()).await?,
            audit,
            rbac,
            allocator: Allocator::new(&caches, config.service_range, config.node_ports),
            signer,
            caches,
            metrics: Metrics::default(),
            policies: Kept::default(),
            mutations: Kept::default(),
            hooks: (Kept::default(), Kept::default()),
            remote: Remote::new(&config.front_proxy),
            aggregated: ArcSwap::default(),
            definitions: crd::Definitions::default(),
            defined: watch::Sender::new(0),
            establishing: parking_lot::Mutex::default(),
            shutdown,
            flow: Flow::default(),
            long_running: Arc::new(Semaphore::new(MAX_LONG_RUNNING)),
            documents: crate::discovery::Documents::default(),
            config,
        });
        crd::refresh(&core);
        let mut server = Self { core, tasks: vec![follower] };
        bootstrap::write(&server.core).await?;
        flow::begin(&server.core);
        server.tasks.push(tokio::spawn(flow::follow(server.core.clone())));
        server.tasks.push(tokio::spawn(crd::follow(server.core.clone())));
        server.tasks.push(tokio::spawn(aggregate::follow(server.core.clone())));
        server.tasks.push(tokio::spawn(compact(server.core.clone())));
        let life = server.core.config.event_ttl;
        if !life.is_zero() {
            server.tasks.push(tokio::spawn(expiry::follow(server.core.clone(), life)));
        }
        Ok(server)
    }

    /// The whole API: authentication, limits, authorization, handlers.
    pub fn router(&self) -> Router {
        Router::new().fallback(any(entry)).with_state(self.core.clone())
    }

    /// A client inside this process: no socket, no credentials, the given identity.
    pub fn client(&self, user: &str, groups: &[&str]) -> kube::Client {
        client::in_process(self.core.clone(), User::new(user, groups.iter().copied()), "")
    }

    /// Clients inside this process that act as service accounts of `kube-system`, by name, under the name of one
    /// program.
    pub fn accounts(&self, agent: &str) -> impl Fn(&str) -> kube::Client + Send + Sync + 'static {
        let (core, agent) = (self.core.clone(), agent.to_owned());
        move |name| client::in_process(core.clone(), User::service_account("kube-system", name), &agent)
    }

    /// Tells which node a connection belongs to by its client certificate, for services that share the listener
    /// and bring their own routes.
    pub fn node_identifier(&self) -> NodeIdentifier {
        let core = self.core.clone();
        Arc::new(move |extensions| {
            let PeerCertificate(chain) = extensions.get()?;
            let user = core.authenticator.of_certificate(chain, &axum::http::HeaderMap::new())?;
            node::identity(&user).map(String::from)
        })
    }

    /// Whom it believes, to be changed while it runs.
    pub fn trust(&self) -> Trust {
        Trust(self.core.clone())
    }

    /// The revision of the store that reads show.
    pub fn revision(&self) -> u64 {
        self.core.caches.revision()
    }

    /// Ends watches and background tasks.
    pub async fn shutdown(self) {
        self.core.shutdown.cancel();
        for task in &self.tasks {
            task.abort();
        }
        for task in self.tasks {
            // An aborted task has nothing to say.
            let _ = task.await;
        }
    }
}

/// The authorities a server believes.
#[derive(Clone)]
pub struct Trust(Arc<Core>);

impl Trust {
    /// From now on believes client certificates of these authorities (PEM), and proxies whose certificates are of
    /// those.
    pub fn replace(&self, clients: &str, proxies: Option<&str>) {
        self.0.authenticator.trust(clients, proxies);
    }
}

async fn entry(State(core): State<Arc<Core>>, request: axum::extract::Request) -> crate::http::Answer {
    dispatch::serve(core, request).await
}

/// Compacts the store's history now and then.
async fn compact(core: Arc<Core>) {
    let (mut revision, mut done) = (core.caches.revision(), 0);
    loop {
        tokio::select! {
            () = core.shutdown.cancelled() => return,
            () = tokio::time::sleep(COMPACT_EVERY) => {}
        }
        // Where nothing changes nothing is written either.
        if revision > done {
            match core.config.store.compact(revision).await {
                Ok(()) => done = revision,
                Err(error) => tracing::debug!(%error, revision, "history was not compacted"),
            }
        }
        revision = core.caches.revision();
    }
}
