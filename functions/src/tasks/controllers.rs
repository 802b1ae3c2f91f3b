//! The controllers over the objects they share: one watch of each kind, and who is woken by what.

use std::{collections::BTreeSet, sync::Arc};

use k8s_openapi::{
    api::{apps::v1::Deployment, core::v1::Service as Placeholder},
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};
use kube::{Api, Client, ResourceExt, runtime::watcher};
use wasmk_api::knative::{
    CONFIGURATION_LABEL, Configuration, REVISION_UID_LABEL, ROUTE_LABEL, Revision, Route, SERVICE_LABEL,
    Service, label,
};

use super::{Settings, hosts::Hosts};
use crate::{
    cache::{Cache, Change, follow, key_of},
    config::Live,
    configuration,
    context::{Context, There},
    domain_mapping,
    fleet::{Fleet, Key},
    gateway::Gateway,
    passes::{self, Queue},
    placeholders,
    references::{References, What},
    revision, route, service, spin,
    workloads::Workloads,
};

/// Objects of a kind that are looked at at a time.
const AT_A_TIME: usize = 16;
/// The same of revisions, which may have to wait for their images.
const REVISIONS: usize = 64;

/// All controllers.
pub(super) struct Controllers {
    cx: Arc<Context>,
    queues: Queues,
    hosts: Arc<Hosts>,
}

/// What each controller is to look at.
#[derive(Default)]
struct Queues {
    services: Queue,
    configurations: Queue,
    revisions: Queue,
    routes: Queue,
    mappings: Queue,
    apps: Queue,
}

impl Controllers {
    pub(super) fn new(client: &Client, settings: Settings, fleet: Arc<Fleet>) -> Self {
        let there = There {
            services: Cache::new(),
            configurations: Cache::new(),
            revisions: Cache::indexed(|revision| {
                let configuration = label(&revision.metadata, CONFIGURATION_LABEL);
                let namespace = revision.namespace().unwrap_or_default();
                configuration.map(|name| Key::new(namespace, name)).into_iter().collect()
            }),
            routes: Cache::new(),
            mappings: Cache::indexed(domain_mapping::found_under),
            placeholders: Cache::indexed(placeholders::found_under),
            deployments: Cache::new(),
            apps: Cache::new(),
        };
        let live = settings.live;
        let workloads = Workloads::new(client.clone(), live.clone(), there.revisions.clone());
        let hosts = Hosts::new(there.routes.clone(), there.mappings.clone());
        let references = References::new(there.routes.clone());
        let (client, executor, workloads) = (client.clone(), settings.executor, Arc::new(workloads));
        let cx = Context { client, live, there, references, executor, fleet, workloads };
        Self { cx: Arc::new(cx), queues: Queues::default(), hosts: Arc::new(hosts) }
    }

    /// What makes and scales deployments.
    pub(super) fn workloads(&self) -> Arc<Workloads> {
        self.cx.workloads.clone()
    }

    /// Runs all of them for ever, and keeps the gateway's hosts.
    pub(super) async fn run(self, client: Client, gateway: Arc<Gateway>) {
        let hosts = self.hosts.clone().follow(self.cx.live.clone(), gateway);
        tokio::join!(self.watch(client), self.work(), hosts, self.settings(self.cx.live.clone()));
    }

    /// Follows the objects, and wakes whom a change is about.
    async fn watch(&self, client: Client) {
        let (there, any) = (&self.cx.there, watcher::Config::default);
        let revisions_only = any().labels(REVISION_UID_LABEL);
        let routes_only = any().labels(ROUTE_LABEL);
        tokio::join!(
            follow(there.services.clone(), Api::all(client.clone()), any(), |s, _| self.service(s)),
            follow(there.configurations.clone(), Api::all(client.clone()), any(), |c, _| self
                .configuration(c)),
            follow(there.revisions.clone(), Api::all(client.clone()), any(), |r, change| self
                .revision(r, change)),
            follow(there.routes.clone(), Api::all(client.clone()), any(), |r, _| self.route(r)),
            follow(there.mappings.clone(), Api::all(client.clone()), any(), |m, _| {
                // Another may have the host now.
                self.queues.mappings.extend(keys(&there.mappings.under(&domain_mapping::host(m))));
                self.queues.mappings.add(key_of(&**m));
                self.hosts.mapping(m);
            }),
            follow(there.placeholders.clone(), Api::all(client.clone()), routes_only, |s, _| self
                .placeholder(s)),
            follow(there.deployments.clone(), Api::all(client.clone()), revisions_only, |d, change| self
                .deployment(d, change)),
            follow(there.apps.clone(), Api::all_with(client, &spin::resource()), any(), |a, _| {
                self.queues.apps.add(key_of(&**a));
            }),
        );
    }

    fn service(&self, service: &Arc<Service>) {
        self.queues.services.add(key_of(&**service));
        self.queues.apps.extend(controller(&service.metadata, "SpinApp"));
    }

    fn configuration(&self, configuration: &Arc<Configuration>) {
        self.queues.configurations.add(key_of(&**configuration));
        self.queues.services.extend(controller(&configuration.metadata, "Service"));
        self.wake_routes(What::Configuration, &key_of(&**configuration));
    }

    fn revision(&self, revision: &Arc<Revision>, change: Change) {
        let key = key_of(&**revision);
        if change == Change::Gone {
            self.cx.forget(&key);
        }
        self.queues.configurations.extend(controller(&revision.metadata, "Configuration"));
        self.wake_routes(What::Revision, &key);
        self.queues.revisions.add(key);
    }

    fn route(&self, route: &Arc<Route>) {
        let key = key_of(&**route);
        self.queues.services.extend(controller(&route.metadata, "Service"));
        self.queues.configurations.extend(self.configurations_of(route));
        self.queues.mappings.extend(keys(&self.cx.there.mappings.under(&key)));
        self.queues.routes.add(key);
        self.hosts.route(route);
    }

    fn placeholder(&self, service: &Placeholder) {
        self.queues.routes.extend(placeholders::found_under(service));
    }

    fn deployment(&self, deployment: &Deployment, change: Change) {
        let Some(revision) = controller(&deployment.metadata, "Revision") else { return };
        if change == Change::Gone
            && let Some(member) = self.cx.fleet.get(&revision)
        {
            self.cx.fleet.set_replicas(&member, 0);
        }
        self.queues.revisions.add(revision);
    }

    /// Wakes the routes that name an object.
    fn wake_routes(&self, what: What, named: &Key) {
        self.queues.routes.extend(keys(&self.cx.references.of(what, named)));
    }

    /// The configurations whose revisions a route leads to.
    fn configurations_of(&self, route: &Route) -> Vec<Key> {
        let namespace = route.namespace().unwrap_or_default();
        let status = route.status.iter().flat_map(|s| &s.traffic);
        let mut names: BTreeSet<String> =
            label(&route.metadata, SERVICE_LABEL).map(String::from).into_iter().collect();
        for target in route.spec.traffic.iter().chain(status) {
            names.extend(target.configuration_name.clone());
            let revision = target.revision_name.as_ref().map(|name| Key::new(&*namespace, name));
            let revision = revision.and_then(|key| self.cx.there.revisions.get(&key));
            names.extend(revision.and_then(|r| label(&r.metadata, CONFIGURATION_LABEL).map(String::from)));
        }
        names.into_iter().map(|name| Key::new(&*namespace, name)).collect()
    }

    /// Has everything looked at that follows the settings, when they change.
    async fn settings(&self, live: Live) {
        let (mut changes, there, queues) = (live.subscribe(), &self.cx.there, &self.queues);
        while changes.changed().await.is_ok() {
            queues.configurations.extend(there.configurations.keys());
            queues.revisions.extend(there.revisions.keys());
            queues.routes.extend(there.routes.keys());
        }
    }

    /// Looks at what is to be looked at, once all that a controller reads is known.
    async fn work(&self) {
        let (queues, there) = (&self.queues, &self.cx.there);
        let functions = async {
            there.services.listed().await;
            there.configurations.listed().await;
            there.revisions.listed().await;
            there.routes.listed().await;
            there.placeholders.listed().await;
            there.deployments.listed().await;
            let cx = || self.cx.clone();
            tokio::join!(
                passes::run("service", &queues.services, AT_A_TIME, |key| service::reconcile(key, cx())),
                passes::run("configuration", &queues.configurations, AT_A_TIME, |key| {
                    configuration::reconcile(key, cx())
                }),
                passes::run("revision", &queues.revisions, REVISIONS, |key| revision::reconcile(key, cx())),
                passes::run("route", &queues.routes, AT_A_TIME, |key| route::reconcile(key, cx())),
            )
        };
        let mappings = async {
            there.mappings.listed().await;
            there.routes.listed().await;
            let pass = |key| domain_mapping::reconcile(key, self.cx.clone());
            passes::run("domainmapping", &queues.mappings, AT_A_TIME, pass).await
        };
        let apps = async {
            there.services.listed().await;
            passes::run("spinapp", &queues.apps, AT_A_TIME, |key| spin::reconcile(key, self.cx.clone())).await
        };
        tokio::join!(functions, mappings, apps);
    }
}

/// The object of a kind that controls another.
fn controller(metadata: &ObjectMeta, kind: &str) -> Option<Key> {
    let references = metadata.owner_references.iter().flatten();
    let owner = references.into_iter().find(|r| r.controller == Some(true) && r.kind == kind)?;
    Some(Key::new(metadata.namespace.as_deref().unwrap_or_default(), &*owner.name))
}

fn keys<K: ResourceExt>(objects: &[Arc<K>]) -> Vec<Key> {
    objects.iter().map(|object| key_of(&**object)).collect()
}
