//! Keeps the gateway's table equal to the routes and domain mappings there are.

use std::{collections::HashSet, sync::Arc, time::Duration};

use parking_lot::Mutex;
use tokio::{sync::Notify, time::sleep};
use wasmk_api::knative::{DomainMapping, Route};

use crate::{
    cache::{Cache, key_of},
    config::{Config, Live},
    domain_mapping,
    fleet::Key,
    gateway::{Claim, Gateway, Source, of_mapping, of_route},
};

/// Changes this close together are taken together.
const SETTLE: Duration = Duration::from_millis(2);

/// Routes and mappings, and which of them are not in the table as they are now.
pub(super) struct Hosts {
    routes: Arc<Cache<Route>>,
    mappings: Arc<Cache<DomainMapping>>,
    pending: Mutex<HashSet<Changed>>,
    woken: Notify,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Changed {
    Route(Key),
    Mapping(Key),
}

impl Hosts {
    pub(super) fn new(routes: Arc<Cache<Route>>, mappings: Arc<Cache<DomainMapping>>) -> Self {
        Self { routes, mappings, pending: Mutex::default(), woken: Notify::new() }
    }

    /// A route has changed, and with it the mappings that lead to it.
    pub(super) fn route(&self, route: &Route) {
        let key = key_of(route);
        let mappings = self.mappings.under(&key);
        let mut changed: Vec<Changed> = mappings.iter().map(|m| Changed::Mapping(key_of(&**m))).collect();
        changed.push(Changed::Route(key));
        self.add(changed);
    }

    /// A mapping has changed.
    pub(super) fn mapping(&self, mapping: &DomainMapping) {
        self.add([Changed::Mapping(key_of(mapping))]);
    }

    fn add(&self, changed: impl IntoIterator<Item = Changed>) {
        self.pending.lock().extend(changed);
        self.woken.notify_one();
    }

    fn everything(&self) {
        let mappings = self.mappings.keys().into_iter().map(Changed::Mapping);
        self.add(self.routes.keys().into_iter().map(Changed::Route).chain(mappings));
    }

    /// What an object claims now; nothing when it is gone.
    fn claim(&self, changed: &Changed, config: &Config) -> (Source, Option<Claim>) {
        match changed {
            Changed::Route(key) => {
                (Source::route_at(key), self.routes.get(key).map(|route| of_route(&route, config)))
            }
            Changed::Mapping(key) => {
                let claim = self.mappings.get(key).and_then(|mapping| {
                    let route = self.routes.get(&domain_mapping::target(&mapping)?);
                    of_mapping(&mapping, route.as_deref())
                });
                (Source::mapping_at(key), claim)
            }
        }
    }

    fn flush(&self, gateway: &Gateway, config: &Config) {
        let pending = std::mem::take(&mut *self.pending.lock());
        let claims: Vec<_> = pending.iter().map(|changed| self.claim(changed, config)).collect();
        gateway.table.set(claims);
    }

    /// Follows what has changed, and the settings, for ever.
    pub(super) async fn follow(self: Arc<Self>, live: Live, gateway: Arc<Gateway>) {
        let mut settings = live.subscribe();
        loop {
            tokio::select! {
                () = self.woken.notified() => {}
                Ok(()) = settings.changed() => self.everything(),
            }
            sleep(SETTLE).await;
            self.flush(&gateway, &live.get());
        }
    }
}
