//! The tasks that make functions work, started together and stopped together.

mod hosts;
mod pods;
mod threads;

use std::{collections::BTreeSet, io, sync::Arc, time::Duration};

use futures::{Stream, StreamExt};
use k8s_openapi::api::{apps::v1::Deployment, core::v1::ConfigMap};
use kube::{
    Api, Client, ResourceExt,
    api::DynamicObject,
    runtime::{
        Controller, WatchStreamExt,
        controller::Action,
        reflector::{self, ObjectRef},
        watcher,
    },
};
use threads::Threads;
use tokio::net::TcpListener;
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::warn;
use wasmk_api::knative::{
    CONFIGURATION_LABEL, Configuration, DomainMapping, Revision, Route, SERVICE_LABEL, Service, label,
};

use crate::{
    autoscaler,
    config::{Live, NAMESPACE},
    configuration,
    context::{Context, Error},
    domain_mapping,
    eventing::{self, Brokers, Eventing},
    executor::Executor,
    fleet::{Fleet, Key},
    gateway::Gateway,
    references::{References, What},
    revision, route, service, spin,
};

/// Pause before a failed pass is tried again.
const RETRY: Duration = Duration::from_secs(1);

/// What functions need to know.
pub struct Settings {
    /// The settings, shared with [`Admission`](crate::Admission).
    pub live: Live,
    /// Runs functions in this process.
    pub executor: Arc<dyn Executor>,
}

/// Running controllers, autoscaler and gateway.
pub struct Functions {
    stop: CancellationToken,
    tasks: TaskTracker,
    /// Where the gateway works.
    threads: Threads,
    /// The revisions that can be called.
    pub fleet: Arc<Fleet>,
    /// Routes requests to them.
    pub gateway: Arc<Gateway>,
}

impl Functions {
    /// Starts everything; the gateway takes connections of `listener`, on threads of its own.
    ///
    /// # Errors
    /// When these threads cannot be started.
    pub fn start(client: Client, listener: TcpListener, settings: Settings) -> io::Result<Self> {
        let fleet = Arc::new(Fleet::default());
        let live = settings.live.clone();
        let gateway = Arc::new(Gateway::new(fleet.clone(), live.clone()));
        let (stop, tasks, threads) = (CancellationToken::new(), TaskTracker::new(), Threads::start()?);
        let all = Self { stop, tasks, threads, fleet, gateway };
        let cx = all.controllers(&client, settings);
        let (stop, fleet) = (all.stop.clone(), all.fleet.clone());
        all.tasks.spawn(autoscaler::run(client.clone(), fleet, stop));
        all.until_stopped(hosts::follow(client.clone(), live.clone(), all.gateway.clone()));
        all.until_stopped(pods::follow(client.clone(), all.fleet.clone()));
        all.until_stopped(maps(client.clone(), live));
        all.until_stopped(departures(client.clone(), cx));
        all.gateway.set_inside(client.clone());
        let sender = eventing::Sender::new(all.gateway.clone(), client.clone());
        let (events, tasks) = Eventing::start(client, sender);
        all.gateway.set_ingress(Arc::new(Brokers(Arc::downgrade(&events))));
        all.until_stopped(async move {
            tasks.await;
            drop(events);
        });
        let serve = all.gateway.clone().serve(listener, all.stop.clone());
        all.tasks.spawn_on(serve, all.threads.handle());
        all.tasks.close();
        Ok(all)
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

    fn controllers(&self, client: &Client, settings: Settings) -> Arc<Context> {
        let config = watcher::Config::default;
        let services = Controller::new(Api::<Service>::all(client.clone()), config())
            .owns(Api::<Configuration>::all(client.clone()), config())
            .owns(Api::<Route>::all(client.clone()), config());
        let configurations = Controller::new(Api::<Configuration>::all(client.clone()), config())
            .owns(Api::<Revision>::all(client.clone()), config());
        let revisions = Controller::new(Api::<Revision>::all(client.clone()), config())
            .owns(Api::<Deployment>::all(client.clone()), config());
        let routes = Controller::new(Api::<Route>::all(client.clone()), config());
        let mappings = Controller::new(Api::<DomainMapping>::all(client.clone()), config());
        let live = settings.live;
        let cx = Arc::new(Context {
            client: client.clone(),
            live: live.clone(),
            references: References::new(routes.store()),
            revisions: revisions.store(),
            mappings: mappings.store(),
            executor: settings.executor,
            fleet: self.fleet.clone(),
        });
        self.drive("service", services.run(service::reconcile, retry, cx.clone()));
        let known = cx.clone();
        let configurations = configurations
            .watches(Api::<Route>::all(client.clone()), config(), move |route| {
                configurations_of(&route, &known)
            })
            .reconcile_all_on(changes(&live))
            .run(configuration::reconcile, retry, cx.clone());
        self.drive("configuration", configurations);
        let revisions =
            revisions.reconcile_all_on(changes(&live)).run(revision::reconcile, retry, cx.clone());
        self.drive("revision", revisions);
        let (by_configuration, by_revision) = (cx.clone(), cx.clone());
        let routes = routes
            .watches(Api::<Configuration>::all(client.clone()), config(), move |changed| {
                naming(&by_configuration, What::Configuration, &changed)
            })
            .watches(Api::<Revision>::all(client.clone()), config(), move |changed| {
                naming(&by_revision, What::Revision, &changed)
            })
            .reconcile_all_on(changes(&live))
            .run(route::reconcile, retry, cx.clone());
        self.drive("route", routes);
        let store = mappings.store();
        let mappings = mappings
            .watches(Api::<Route>::all(client.clone()), config(), move |route| {
                let leads = |m: &&Arc<DomainMapping>| {
                    m.metadata.namespace == route.metadata.namespace
                        && Some(&m.spec.reference.name) == route.metadata.name.as_ref()
                };
                store.state().iter().filter(leads).map(|m| ObjectRef::from_obj(&**m)).collect::<Vec<_>>()
            })
            .run(domain_mapping::reconcile, retry, cx.clone());
        self.drive("domainmapping", mappings);
        let apps = Api::<DynamicObject>::all_with(client.clone(), &spin::resource());
        let apps = Controller::new_with(apps, config(), spin::resource())
            .owns(Api::<Service>::all(client.clone()), config())
            .run(spin::reconcile, retry, cx.clone());
        self.drive("spinapp", apps);
        cx
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

/// An item whenever the settings have changed.
fn changes(live: &Live) -> impl Stream<Item = ()> + Send + Sync + 'static + use<> {
    futures::stream::unfold(live.subscribe(), |mut turns| async move {
        turns.changed().await.ok()?;
        Some(((), turns))
    })
}

/// The configurations whose revisions a route leads to, or led to.
fn configurations_of(route: &Route, cx: &Context) -> Vec<ObjectRef<Configuration>> {
    let namespace = route.namespace().unwrap_or_default();
    let status = route.status.iter().flat_map(|s| &s.traffic);
    let mut names: BTreeSet<String> =
        label(&route.metadata, SERVICE_LABEL).map(String::from).into_iter().collect();
    for target in route.spec.traffic.iter().chain(status) {
        names.extend(target.configuration_name.clone());
        let revision = target.revision_name.as_ref().map(|name| ObjectRef::new(name).within(&namespace));
        let revision = revision.and_then(|r| cx.revisions.get(&r));
        names.extend(revision.and_then(|r| label(&r.metadata, CONFIGURATION_LABEL).map(String::from)));
    }
    names.iter().map(|name| ObjectRef::new(name).within(&namespace)).collect()
}

/// The routes that name an object.
fn naming(cx: &Context, what: What, changed: &impl ResourceExt) -> Vec<ObjectRef<Route>> {
    let key = Key::new(changed.namespace().unwrap_or_default(), changed.name_any());
    cx.references.of(what, &key).iter().map(|r| ObjectRef::from_obj(&**r)).collect()
}

/// Takes the settings from their ConfigMaps.
async fn maps(client: Client, live: Live) {
    let api = Api::<ConfigMap>::namespaced(client, NAMESPACE);
    let events = watcher(api, watcher::Config::default()).default_backoff();
    let mut events = std::pin::pin!(events.filter_map(|e| async move { e.ok() }));
    while let Some(event) = events.next().await {
        let (map, data) = match event {
            watcher::Event::Apply(map) | watcher::Event::InitApply(map) => {
                let data = map.data.clone().unwrap_or_default();
                (map, data)
            }
            watcher::Event::Delete(map) => (map, Default::default()),
            watcher::Event::Init | watcher::Event::InitDone => continue,
        };
        if let Err(wrong) = live.take(&map.name_any(), &data) {
            warn!(configmap = map.name_any(), "the settings stay as they were: {wrong}");
        }
    }
}

/// Forgets members whose revision is gone.
async fn departures(client: Client, cx: Arc<Context>) {
    let (store, writer) = reflector::store::<Revision>();
    let events =
        watcher(Api::<Revision>::all(client), watcher::Config::default()).default_backoff().reflect(writer);
    let mut events = std::pin::pin!(events.filter_map(|e| async move { e.ok() }));
    while let Some(event) = events.next().await {
        let there = |key: &Key| store.get(&ObjectRef::new(&key.name).within(&key.namespace)).is_some();
        let gone = match event {
            watcher::Event::Delete(revision) => {
                let key = Key::new(revision.namespace().unwrap_or_default(), revision.name_any());
                cx.fleet.remove(&key).into_iter().collect()
            }
            // Of those that went while nobody watched, only a whole list tells.
            watcher::Event::InitDone => cx.fleet.retain(there),
            _ => Vec::new(),
        };
        for member in gone {
            cx.executor.forget(&member.key.namespace, &member.key.name);
        }
    }
}
