//! Functions answered in place: a revision that is scaled to zero is a prepared program here,
//! and a request starts an instance of it without any Pod.
//!
//! When a Pod of the revision starts on this node later, its container adopts the same
//! [`Function`]: same handler, same log. Lines outlive Pods in a bounded ring.

use std::{
    collections::HashMap,
    net::Ipv4Addr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use parking_lot::RwLock;
use tokio::sync::OnceCell;
use wasmk_api::k8s_openapi::{
    api::core::v1::{Container, Pod, PodSpec},
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};
use wasmk_net::{
    plan::Protocol,
    policy::{End, Member},
};
use wasmk_runtime::Histogram;

use crate::{
    containers::Containers,
    engine::{Body, Engine, Failure, Handler, Kind, Launch, PullPolicy, Wanted},
    logs::LogRing,
    network::{Neighbours, PodNetwork},
    pod::{
        Choice,
        env::{self, Place, Sources},
    },
};

/// The family of figures about the way from an image's name to an answer's first byte.
pub(crate) const PHASES: &str = "wasmk_function_phase_seconds";
/// Where a function is served that names no port.
const HTTP_PORT: u16 = 8080;
/// Functions known to one node at most.
pub const MAX_FUNCTIONS: usize = 20_000;

/// A revision to answer for.
#[derive(Clone, Debug)]
pub struct FunctionSpec {
    /// Namespace of the revision.
    pub namespace: String,
    /// Name of the revision.
    pub revision: String,
    /// Labels its pods would have (`serving.knative.dev/…`), for downward fields.
    pub labels: std::collections::BTreeMap<String, String>,
    /// Annotations its pods would have; those of [`wasmk_api::per_request`] count here.
    pub annotations: std::collections::BTreeMap<String, String>,
    /// The revision's pod: image, environment, arguments and memory limit of its first container,
    /// service account and pull secrets.
    pub pod: PodSpec,
    /// Longest time for one request; `None` is the runtime's limit.
    pub timeout: Option<Duration>,
    /// Requests answered at a time; `None` is the runtime's limit.
    pub concurrency: Option<usize>,
}

impl FunctionSpec {
    /// A function of one image with plain variables.
    pub fn new(namespace: &str, revision: &str, image: &str, env: &[(&str, &str)]) -> Self {
        let var = |(name, value): &(&str, &str)| wasmk_api::k8s_openapi::api::core::v1::EnvVar {
            name: (*name).into(),
            value: Some((*value).into()),
            value_from: None,
        };
        let container = Container {
            name: "user-container".into(),
            image: Some(image.into()),
            env: Some(env.iter().map(var).collect()),
            ..Container::default()
        };
        Self {
            namespace: namespace.into(),
            revision: revision.into(),
            labels: Default::default(),
            annotations: Default::default(),
            pod: PodSpec { containers: vec![container], ..PodSpec::default() },
            timeout: None,
            concurrency: None,
        }
    }
}

/// Why a function cannot be answered here.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FunctionError {
    /// The image or the configuration is not usable.
    #[error("{reason}: {message}")]
    Failed {
        /// `ErrImagePull`, `CreateContainerConfigError`, …
        reason: &'static str,
        /// For the user.
        message: String,
    },
    /// The image is no HTTP component.
    #[error("image {0} is a command, not an HTTP component; run it as a Job or with a port of its own")]
    NotHttp(String),
    /// The image is for the node's container runtime.
    #[error("image {0} runs in the container runtime")]
    Container(String),
    /// Too many functions on this node.
    #[error("this node already answers for {MAX_FUNCTIONS} functions")]
    Full,
}

impl From<Failure> for FunctionError {
    fn from(failure: Failure) -> Self {
        Self::Failed { reason: failure.reason, message: failure.message }
    }
}

/// The functions of a node. Clones are the same set.
#[derive(Clone)]
pub struct Functions {
    inner: Arc<Inner>,
}

struct Inner {
    engine: Arc<dyn Engine>,
    containers: Option<Arc<Containers>>,
    sources: Arc<dyn Sources>,
    neighbours: Neighbours,
    place: Place,
    known: RwLock<HashMap<String, HashMap<String, Slot>>>,
    times: Arc<Times>,
}

#[derive(Clone)]
struct Slot {
    log: Arc<LogRing>,
    /// Filled by the first who asks; the others wait for it.
    cell: Arc<OnceCell<Arc<Function>>>,
}

/// A function ready to answer.
pub struct Function {
    /// As its pods name it.
    image: String,
    /// Where its pods listen.
    port: u16,
    image_id: String,
    handler: Arc<dyn Handler>,
    log: Arc<LogRing>,
    in_flight: AtomicUsize,
    times: Arc<Times>,
    /// As what policies know it.
    member: Arc<Member>,
    neighbours: Neighbours,
}

/// How long the steps of requests took, of all functions together.
#[derive(Default)]
struct Times {
    route: Histogram,
    first_byte: Histogram,
}

impl Functions {
    /// None at first.
    pub(crate) fn new(
        engine: Arc<dyn Engine>,
        containers: Option<Arc<Containers>>,
        sources: Arc<dyn Sources>,
        neighbours: Neighbours,
        place: Place,
    ) -> Self {
        let (known, times) = (RwLock::default(), Arc::default());
        let inner = Inner { engine, containers, sources, neighbours, place, known, times };
        Self { inner: Arc::new(inner) }
    }

    /// The function of a revision, made ready when it is not yet: image fetched and compiled,
    /// configuration worked out. Callers at the same time share one preparation.
    ///
    /// # Errors
    /// [`FunctionError`]; nothing of a failed attempt is kept but the log.
    pub async fn prepare(&self, spec: FunctionSpec) -> Result<Arc<Function>, FunctionError> {
        let slot = self.slot(&spec.namespace, &spec.revision)?;
        let made = slot.cell.get_or_try_init(|| self.make(spec, slot.log.clone()));
        made.await.cloned()
    }

    /// The function of a revision, if it is ready. Cheap: for every request.
    pub fn get(&self, namespace: &str, revision: &str) -> Option<Arc<Function>> {
        self.inner.known.read().get(namespace)?.get(revision)?.cell.get().cloned()
    }

    /// The log of a revision, also while no function is ready.
    pub fn log(&self, namespace: &str, revision: &str) -> Option<Arc<LogRing>> {
        Some(self.inner.known.read().get(namespace)?.get(revision)?.log.clone())
    }

    /// Forgets a revision with its log; requests under way are finished.
    pub fn remove(&self, namespace: &str, revision: &str) {
        let mut known = self.inner.known.write();
        if let Some(revisions) = known.get_mut(namespace) {
            revisions.remove(revision);
            if revisions.is_empty() {
                known.remove(namespace);
            }
        }
    }

    /// Images of the functions that are ready.
    pub(crate) fn images(&self) -> Vec<String> {
        let known = self.inner.known.read();
        let ready = known.values().flat_map(HashMap::values).filter_map(|slot| slot.cell.get());
        ready.map(|function| function.image.clone()).filter(|image| !image.is_empty()).collect()
    }

    /// Number of functions known.
    pub fn len(&self) -> usize {
        self.inner.known.read().values().map(HashMap::len).sum()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.inner.known.read().is_empty()
    }

    /// How long routing took, and all until an answer's first byte: lines of the family
    /// `wasmk_function_phase_seconds`.
    pub(crate) fn metrics(&self, out: &mut String) {
        let times = &self.inner.times;
        for (phase, histogram) in [("route", &times.route), ("first-byte", &times.first_byte)] {
            histogram.write(PHASES, &format!("phase=\"{phase}\""), out);
        }
    }

    fn slot(&self, namespace: &str, revision: &str) -> Result<Slot, FunctionError> {
        if let Some(slot) = self.inner.known.read().get(namespace).and_then(|m| m.get(revision)) {
            return Ok(slot.clone());
        }
        let mut known = self.inner.known.write();
        if known.values().map(HashMap::len).sum::<usize>() >= MAX_FUNCTIONS {
            return Err(FunctionError::Full);
        }
        let revisions = known.entry(namespace.into()).or_default();
        let slot = revisions
            .entry(revision.into())
            .or_insert_with(|| Slot { log: Arc::default(), cell: Arc::default() });
        Ok(slot.clone())
    }

    async fn make(&self, spec: FunctionSpec, log: Arc<LogRing>) -> Result<Arc<Function>, FunctionError> {
        let pod = stand_in(&spec);
        let bad = || Failure::new(env::CONFIG_ERROR, "the revision has no container");
        let container = spec.pod.containers.first().ok_or_else(bad)?;
        let image = container.image.clone().unwrap_or_default();
        let sources = &*self.inner.sources;
        let logins = crate::pod::logins(sources, &pod).await?;
        let wanted = Wanted { image: image.clone(), policy: PullPolicy::IfNotPresent, logins };
        let (engine, containers) = (&*self.inner.engine, self.inner.containers.as_deref());
        if matches!(crate::pod::choose(engine, containers, &wanted).await, Choice::Container(_)) {
            return Err(FunctionError::Container(image));
        }
        let prepared = engine.prepare(&wanted).await?;
        let per_request = crate::pod::per_request(&pod)?;
        if prepared.kind != Kind::Http && !per_request.wagi {
            return Err(FunctionError::NotHttp(image));
        }
        let env = env::environment(&pod, container, &self.inner.place, sources).await?;
        let neighbours = self.inner.neighbours.clone();
        let member = Arc::new(Member::of(&pod).unwrap_or_default());
        let launch = Launch {
            name: format!("{}/{}", spec.namespace, spec.revision),
            command: env::words(container.command.as_ref(), &env),
            args: env::words(container.args.as_ref(), &env),
            working_dir: container.working_dir.clone(),
            env,
            mounts: Vec::new(),
            // A function has no address of its own and listens on nothing.
            network: PodNetwork::of_function(neighbours.clone(), member.clone()),
            memory: crate::pod::memory_limit(container),
            cpu_millis: crate::pod::cpu_limit(container),
            timeout: spec.timeout,
            concurrency: spec.concurrency,
            per_request,
            keyvalue: crate::keyvalue::given(&pod, sources).await?,
            blobs: crate::keyvalue::containers(&pod, sources).await?,
            log: log.clone(),
            stdin: None,
            isolated: crate::pod::isolated(&pod, sources).await?,
        };
        let handler = prepared.program.handler(launch)?;
        let image_id = prepared.image_id;
        let times = self.inner.times.clone();
        let in_flight = AtomicUsize::new(0);
        // The specification itself is not kept: it takes more memory than all the rest of a function.
        let port = port(container);
        Ok(Arc::new(Function { image, port, image_id, handler, log, in_flight, times, member, neighbours }))
    }
}

fn port(container: &Container) -> u16 {
    let ports = container.ports.as_ref().and_then(|ports| ports.first());
    ports.and_then(|p| u16::try_from(p.container_port).ok()).unwrap_or(HTTP_PORT)
}

/// The pod the revision would have, for working out its configuration.
fn stand_in(spec: &FunctionSpec) -> Pod {
    Pod {
        metadata: ObjectMeta {
            name: Some(spec.revision.clone()),
            namespace: Some(spec.namespace.clone()),
            labels: Some(spec.labels.clone()),
            annotations: Some(spec.annotations.clone()),
            ..ObjectMeta::default()
        },
        spec: Some(spec.pod.clone()),
        status: None,
    }
}

impl Function {
    /// Answers one request in an instance of its own. A guest's fault becomes a 5xx response, and so does what
    /// network policies do not let through to the revision's pods.
    /// `routed` is the time that went by before, for the figures.
    pub async fn call(&self, request: http::Request<Body>, routed: Duration) -> http::Response<Body> {
        if !self.admits() {
            let text = "a network policy lets no request through to this function\n";
            let mut response = http::Response::new(wasmk_runtime::full(text));
            *response.status_mut() = http::StatusCode::GATEWAY_TIMEOUT;
            return response;
        }
        self.answer(request, routed).await
    }

    /// Whether a pod of the revision would take connections of the gateway, which is a program of this machine.
    fn admits(&self) -> bool {
        let policies = &self.neighbours.policies;
        if !policies.is_active() {
            return true;
        }
        let table = policies.table();
        let gateway = table.end(Ipv4Addr::LOCALHOST.into());
        table.allows_between(gateway, End::nameless(&self.member), self.port, Protocol::Tcp)
    }

    async fn answer(&self, request: http::Request<Body>, routed: Duration) -> http::Response<Body> {
        self.in_flight.fetch_add(1, Ordering::Relaxed);
        let _guard = Leave(&self.in_flight);
        let began = std::time::Instant::now();
        let response = self.handler.handle(request).await;
        self.times.route.record(routed);
        self.times.first_byte.record(routed + began.elapsed());
        response
    }

    /// Requests being answered (up to the head of the response).
    pub fn in_flight(&self) -> usize {
        self.in_flight.load(Ordering::Relaxed)
    }

    /// Digest reference of its image.
    pub fn image_id(&self) -> &str {
        &self.image_id
    }

    /// Its last lines.
    pub fn log(&self) -> &Arc<LogRing> {
        &self.log
    }

    pub(crate) fn handler(self: &Arc<Self>) -> Arc<dyn Handler> {
        Arc::new(Adopted(self.clone()))
    }
}

struct Leave<'a>(&'a AtomicUsize);

impl Drop for Leave<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A function behind a pod's address.
struct Adopted(Arc<Function>);

#[async_trait]
impl Handler for Adopted {
    async fn handle(&self, request: http::Request<Body>) -> http::Response<Body> {
        // The pod's listener has asked the policies.
        self.0.answer(request, Duration::ZERO).await
    }
}
