//! Keeps the gateway's table equal to the routes and domain mappings there are.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
    time::Duration,
};

use futures::{FutureExt, StreamExt};
use kube::{
    Api, Client, ResourceExt,
    runtime::{WatchStreamExt, watcher},
};
use tokio::time::sleep;
use wasmk_api::knative::{DomainMapping, Route};

use crate::{
    config::{Config, Live},
    gateway::{Claim, Gateway, Source, of_mapping, of_route},
};

/// Changes this close together are taken together.
const SETTLE: Duration = Duration::from_millis(2);

/// Objects of a kind, as a watch tells of them.
struct Known<K> {
    all: HashMap<Source, Arc<K>>,
    /// While a watch lists anew: those it has named so far.
    listed: Option<HashSet<Source>>,
}

impl<K> Known<K> {
    fn new() -> Self {
        Self { all: HashMap::new(), listed: None }
    }

    /// Takes one event; returns the objects it changes.
    fn take(&mut self, event: watcher::Event<K>, source: fn(&K) -> Source) -> Vec<Source> {
        match event {
            watcher::Event::Init => {
                self.listed = Some(HashSet::new());
                Vec::new()
            }
            watcher::Event::InitApply(object) | watcher::Event::Apply(object) => {
                let source = source(&object);
                if let Some(listed) = &mut self.listed {
                    listed.insert(source.clone());
                }
                self.all.insert(source.clone(), Arc::new(object));
                vec![source]
            }
            watcher::Event::Delete(object) => {
                let source = source(&object);
                self.all.remove(&source);
                vec![source]
            }
            watcher::Event::InitDone => {
                let Some(listed) = self.listed.take() else { return Vec::new() };
                let gone: Vec<Source> = self.all.keys().filter(|s| !listed.contains(s)).cloned().collect();
                gone.iter().for_each(|source| {
                    self.all.remove(source);
                });
                gone
            }
        }
    }
}

struct Hosts {
    routes: Known<Route>,
    mappings: Known<DomainMapping>,
    /// What has changed and is not in the table yet.
    pending: HashSet<Source>,
}

impl Hosts {
    fn route(&mut self, event: watcher::Event<Route>) {
        for source in self.routes.take(event, Source::route) {
            let leads = |m: &&Arc<DomainMapping>| source.is_target_of(m);
            self.pending.extend(self.mappings.all.values().filter(leads).map(|m| Source::mapping(m)));
            self.pending.insert(source);
        }
    }

    fn mapping(&mut self, event: watcher::Event<DomainMapping>) {
        self.pending.extend(self.mappings.take(event, Source::mapping));
    }

    fn everything(&mut self) {
        self.pending.extend(self.routes.all.keys().chain(self.mappings.all.keys()).cloned());
    }

    fn claim(&self, source: &Source, config: &Config) -> Option<Claim> {
        if let Some(route) = self.routes.all.get(source) {
            return Some(of_route(route, config));
        }
        let mapping = self.mappings.all.get(source)?;
        of_mapping(mapping, self.routes.all.get(&target(mapping)).map(|r| &**r))
    }

    fn flush(&mut self, gateway: &Gateway, config: &Config) {
        let pending = std::mem::take(&mut self.pending);
        let claims: Vec<_> = pending.into_iter().map(|s| (s.clone(), self.claim(&s, config))).collect();
        gateway.table.set(claims);
    }
}

/// The route that a mapping leads to.
fn target(mapping: &DomainMapping) -> Source {
    let mut route = Route::default();
    route.metadata.name = Some(mapping.spec.reference.name.clone());
    route.metadata.namespace = mapping.namespace();
    Source::route(&route)
}

/// Follows routes, mappings and settings for ever.
pub(super) async fn follow(client: Client, live: Live, gateway: Arc<Gateway>) {
    let config = watcher::Config::default;
    let routes = watcher(Api::<Route>::all(client.clone()), config()).default_backoff();
    let mut routes = std::pin::pin!(routes.filter_map(|e| async move { e.ok() }));
    let mappings = watcher(Api::<DomainMapping>::all(client), config()).default_backoff();
    let mut mappings = std::pin::pin!(mappings.filter_map(|e| async move { e.ok() }));
    let mut settings = live.subscribe();
    let mut hosts = Hosts { routes: Known::new(), mappings: Known::new(), pending: HashSet::new() };
    loop {
        tokio::select! {
            Some(event) = routes.next() => hosts.route(event),
            Some(event) = mappings.next() => hosts.mapping(event),
            Ok(()) = settings.changed() => hosts.everything(),
            else => return,
        }
        sleep(SETTLE).await;
        while let Some(event) = routes.next().now_or_never().flatten() {
            hosts.route(event);
        }
        while let Some(event) = mappings.next().now_or_never().flatten() {
            hosts.mapping(event);
        }
        hosts.flush(&gateway, &live.get());
    }
}
