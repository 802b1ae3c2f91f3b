//! The tasks that make functions work, started together and stopped together.

use std::{collections::HashMap, net::SocketAddr, sync::Arc, time::Duration};

use futures::{Stream, StreamExt, TryStreamExt};
use k8s_openapi::api::{apps::v1::Deployment, core::v1::Pod};
use kube::{
    Api, Client, ResourceExt,
    runtime::{
        Controller, WatchStreamExt,
        controller::Action,
        reflector::{self, ObjectRef, Store},
        watcher,
    },
};
use tokio::{net::TcpListener, time::sleep};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::warn;
use wasmk_api::knative::{Configuration, REVISION_LABEL, Revision, Route, Service, label};

use crate::{
    autoscaler, configuration,
    context::{Context, Error},
    defaults,
    executor::Executor,
    fleet::{Fleet, Key},
    gateway::{Gateway, Table},
    revision, route, service,
};

/// Pause before a failed pass is tried again.
const RETRY: Duration = Duration::from_secs(1);
/// Changes of routes this close together make one table.
const SETTLE: Duration = Duration::from_millis(2);

/// What functions need to know.
pub struct Settings {
    /// Suffix of host names, for instance `example.com`.
    pub domain: String,
    /// Runs functions in this process.
    pub executor: Arc<dyn Executor>,
}

/// Running controllers, autoscaler and gateway.
pub struct Functions {
    stop: CancellationToken,
    tasks: TaskTracker,
    /// The revisions that can be called.
    pub fleet: Arc<Fleet>,
    /// Routes requests to them.
    pub gateway: Arc<Gateway>,
}

impl Functions {
    /// Starts everything; the gateway takes connections of `listener`.
    pub fn start(client: Client, listener: TcpListener, settings: Settings) -> Self {
        let fleet = Arc::new(Fleet::default());
        let gateway = Arc::new(Gateway::new(fleet.clone()));
        let cx = Arc::new(Context {
            client: client.clone(),
            domain: settings.domain,
            executor: settings.executor,
            fleet: fleet.clone(),
        });
        let all = Self { stop: CancellationToken::new(), tasks: TaskTracker::new(), fleet, gateway };
        all.controllers(&cx);
        let (stop, fleet) = (all.stop.clone(), all.fleet.clone());
        all.tasks.spawn(autoscaler::run(client.clone(), fleet, stop));
        all.until_stopped(routes(client.clone(), cx.domain.clone(), all.gateway.clone()));
        all.until_stopped(backends(client.clone(), all.fleet.clone()));
        all.until_stopped(departures(client, cx));
        all.tasks.spawn(all.gateway.clone().serve(listener, all.stop.clone()));
        all.tasks.close();
        all
    }

    /// Stops taking requests, lets running ones finish, and ends every task.
    pub async fn shutdown(self) {
        self.stop.cancel();
        self.tasks.wait().await;
    }

    fn until_stopped(&self, task: impl Future<Output = ()> + Send + 'static) {
        let stop = self.stop.clone();
        self.tasks.spawn(async move { stop.run_until_cancelled_owned(task).await });
    }

    fn controllers(&self, cx: &Arc<Context>) {
        let config = watcher::Config::default;
        let client = &cx.client;
        let services = Controller::new(Api::<Service>::all(client.clone()), config())
            .owns(Api::<Configuration>::all(client.clone()), config())
            .owns(Api::<Route>::all(client.clone()), config())
            .run(service::reconcile, retry, cx.clone());
        self.drive("service", services);
        let configurations = Controller::new(Api::<Configuration>::all(client.clone()), config())
            .owns(Api::<Revision>::all(client.clone()), config())
            .run(configuration::reconcile, retry, cx.clone());
        self.drive("configuration", configurations);
        let revisions = Controller::new(Api::<Revision>::all(client.clone()), config())
            .owns(Api::<Deployment>::all(client.clone()), config())
            .run(revision::reconcile, retry, cx.clone());
        self.drive("revision", revisions);
        let routes = Controller::new(Api::<Route>::all(client.clone()), config());
        let (by_configuration, by_revision) = (routes.store(), routes.store());
        let routes = routes
            .watches(Api::<Configuration>::all(client.clone()), config(), move |changed| {
                naming(
                    &by_configuration,
                    &changed.namespace(),
                    |t| t.configuration_name.as_deref(),
                    &changed.name_any(),
                )
            })
            .watches(Api::<Revision>::all(client.clone()), config(), move |changed| {
                naming(
                    &by_revision,
                    &changed.namespace(),
                    |t| t.revision_name.as_deref(),
                    &changed.name_any(),
                )
            })
            .run(route::reconcile, retry, cx.clone());
        self.drive("route", routes);
    }

    /// Runs a controller, logging passes that failed.
    fn drive<K, E>(
        &self,
        name: &'static str,
        passes: impl Stream<Item = Result<(ObjectRef<K>, Action), E>> + Send + 'static,
    ) where
        K: reflector::Lookup + 'static,
        K::DynamicType: Clone + std::hash::Hash + Eq + Send,
        E: std::error::Error + Send + 'static,
    {
        self.until_stopped(passes.for_each(move |pass| async move {
            if let Err(e) = pass {
                let why = std::iter::successors(e.source(), |e| e.source())
                    .map(|e| format!(": {e}"))
                    .collect::<String>();
                warn!(controller = name, "{e}{why}");
            }
        }));
    }
}

fn retry<K>(_: Arc<K>, _: &Error, _: Arc<Context>) -> Action {
    Action::requeue(RETRY)
}

/// The routes of a namespace with a target that names `name`.
fn naming(
    routes: &Store<Route>,
    namespace: &Option<String>,
    target: impl Fn(&wasmk_api::knative::TrafficTarget) -> Option<&str>,
    name: &str,
) -> Vec<ObjectRef<Route>> {
    let all = routes.state();
    let fits = |r: &&Arc<Route>| {
        r.namespace() == *namespace && r.spec.traffic.iter().any(|t| target(t) == Some(name))
    };
    all.iter().filter(fits).map(|r| ObjectRef::from_obj(&**r)).collect()
}

/// Keeps the gateway's table equal to the routes there are.
async fn routes(client: Client, domain: String, gateway: Arc<Gateway>) {
    let (store, writer) = reflector::store::<Route>();
    let changes =
        watcher(Api::<Route>::all(client), watcher::Config::default()).default_backoff().reflect(writer);
    let mut changes = std::pin::pin!(changes.filter_map(|e| async move { e.ok() }));
    while changes.next().await.is_some() {
        sleep(SETTLE).await;
        while futures::FutureExt::now_or_never(changes.next()).flatten().is_some() {}
        let routes = store.state();
        gateway.set_table(Table::of(routes.iter().map(|r| &**r), &domain));
    }
}

/// Keeps each member's pods equal to the ready pods there are.
async fn backends(client: Client, fleet: Arc<Fleet>) {
    let (store, writer) = reflector::store::<Pod>();
    let of_functions = watcher::Config::default().labels(REVISION_LABEL);
    let changes = watcher(Api::<Pod>::all(client), of_functions).default_backoff().reflect(writer);
    let mut changes = std::pin::pin!(changes.filter_map(|e| async move { e.ok() }));
    let mut known = fleet.changed.subscribe();
    loop {
        tokio::select! {
            change = changes.next() => if change.is_none() { return },
            _ = known.changed() => {}
        }
        let mut ready: HashMap<Key, Vec<SocketAddr>> = HashMap::new();
        for pod in store.state() {
            if let Some((key, address)) = backend(&pod) {
                ready.entry(key).or_default().push(address);
            }
        }
        for member in fleet.all() {
            let mut pods = ready.remove(&member.key).unwrap_or_default();
            pods.sort();
            member.backends.send_if_modified(|old| {
                let changed = **old != *pods;
                if changed {
                    *old = pods.into();
                }
                changed
            });
        }
    }
}

/// Where a ready pod of a revision takes requests.
fn backend(pod: &Pod) -> Option<(Key, SocketAddr)> {
    let revision = label(&pod.metadata, REVISION_LABEL)?;
    let status = pod.status.as_ref()?;
    let ready = status.conditions.iter().flatten().any(|c| c.type_ == "Ready" && c.status == "True");
    if !ready || pod.metadata.deletion_timestamp.is_some() {
        return None;
    }
    let ip = status.pod_ip.as_ref()?.parse().ok()?;
    let ports = pod.spec.iter().flat_map(|s| &s.containers).flat_map(|c| c.ports.iter().flatten());
    let port = ports.map(|p| p.container_port).next().unwrap_or(defaults::PORT);
    let address = SocketAddr::new(ip, u16::try_from(port).ok()?);
    Some((Key::new(pod.namespace()?, revision), address))
}

/// Forgets members whose revision is gone.
async fn departures(client: Client, cx: Arc<Context>) {
    let (store, writer) = reflector::store::<Revision>();
    let events =
        watcher(Api::<Revision>::all(client), watcher::Config::default()).default_backoff().reflect(writer);
    let gone = events.try_filter(|event| {
        futures::future::ready(matches!(event, watcher::Event::Delete(_) | watcher::Event::InitDone))
    });
    let mut gone = std::pin::pin!(gone);
    while let Some(event) = gone.next().await {
        if event.is_err() {
            continue;
        }
        let there = |key: &Key| store.get(&ObjectRef::new(&key.name).within(&key.namespace)).is_some();
        for member in cx.fleet.retain(there) {
            cx.executor.forget(&member.key.namespace, &member.key.name);
        }
    }
}
