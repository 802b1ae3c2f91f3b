//! Which routes lead to a configuration or a revision, without a walk over all of them.
//!
//! A route's pass notes what it names before it looks at any of that, and before it writes where its traffic
//! goes: who learns of a change in what is named finds the route here, or the route has seen the change.

use std::{
    collections::{BTreeSet, HashMap},
    sync::Arc,
};

use parking_lot::Mutex;
use tokio::sync::OnceCell;
use wasmk_api::knative::{Route, TrafficTarget};

use crate::{
    cache::{Cache, key_of},
    fleet::Key,
    rollout::Rollouts,
};

/// Routes that are noted before those that are gone are looked for.
const SWEEP: usize = 1024;

/// What a route can lead to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum What {
    /// The newest revision of a configuration.
    Configuration,
    /// One revision.
    Revision,
}

/// What each route leads to. It may name more than a route does now, never less.
pub(crate) struct References {
    routes: Arc<Cache<Route>>,
    /// Filled from the routes that were there at the start.
    primed: OnceCell<()>,
    noted: Mutex<Noted>,
}

#[derive(Default)]
struct Noted {
    /// Names of routes, by what they lead to.
    by_target: HashMap<(What, Key), Vec<String>>,
    by_route: HashMap<Key, Box<[(What, String)]>>,
    sweep_at: usize,
}

impl References {
    /// Of these routes, as far as they are noted.
    pub(crate) fn new(routes: Arc<Cache<Route>>) -> Self {
        let noted = Noted { sweep_at: SWEEP, ..Noted::default() };
        Self { routes, primed: OnceCell::new(), noted: Mutex::new(noted) }
    }

    /// Notes what a route leads to, or is going to lead to: the traffic and the revisions that still have
    /// some of it.
    pub(crate) fn note<'a>(
        &self,
        route: &Route,
        traffic: &[TrafficTarget],
        revisions: impl IntoIterator<Item = &'a str>,
    ) {
        let mut targets = named(route);
        targets.extend(traffic.iter().flat_map(names));
        targets.extend(revisions.into_iter().map(|name| (What::Revision, name.to_owned())));
        let there = |key: &Key| self.routes.has(key);
        self.noted.lock().set(key_of(route), targets, there);
    }

    /// The routes that name something of their namespace.
    pub(crate) fn of(&self, what: What, target: &Key) -> Vec<Arc<Route>> {
        let names = self.noted.lock().by_target.get(&(what, target.clone())).cloned().unwrap_or_default();
        names.into_iter().filter_map(|name| self.routes.get(&Key::new(&*target.namespace, name))).collect()
    }

    /// Waits until all routes that were there at the start are noted.
    pub(crate) async fn primed(&self) {
        let prime = async {
            self.routes.listed().await;
            for key in self.routes.keys() {
                let Some(route) = self.routes.get(&key) else { continue };
                let mut noted = self.noted.lock();
                if !noted.by_route.contains_key(&key) {
                    noted.set(key, named(&route), |_| true);
                }
            }
        };
        self.primed.get_or_init(|| prime).await;
    }
}

impl Noted {
    fn set(&mut self, route: Key, targets: BTreeSet<(What, String)>, there: impl Fn(&Key) -> bool) {
        self.remove(&route);
        for (what, name) in &targets {
            let target = Key::new(&*route.namespace, &**name);
            let routes = self.by_target.entry((*what, target)).or_default();
            if let Err(at) = routes.binary_search(&route.name) {
                routes.reserve_exact(1);
                routes.insert(at, route.name.clone());
            }
        }
        self.by_route.insert(route, targets.into_iter().collect());
        if self.by_route.len() >= self.sweep_at {
            let gone: Vec<Key> = self.by_route.keys().filter(|key| !there(key)).cloned().collect();
            gone.iter().for_each(|key| self.remove(key));
            self.sweep_at = SWEEP.max(self.by_route.len() * 2);
        }
    }

    fn remove(&mut self, route: &Key) {
        for (what, name) in self.by_route.remove(route).unwrap_or_default() {
            let target = (what, Key::new(&*route.namespace, name));
            if let Some(routes) = self.by_target.get_mut(&target) {
                routes.retain(|name| *name != route.name);
                if routes.is_empty() {
                    self.by_target.remove(&target);
                }
            }
        }
    }
}

/// All that a route names, in its spec, its status and its rollouts.
fn named(route: &Route) -> BTreeSet<(What, String)> {
    let status = route.status.iter().flat_map(|s| &s.traffic);
    let mut all: BTreeSet<_> = route.spec.traffic.iter().chain(status).flat_map(names).collect();
    all.extend(Rollouts::of(route).revisions().map(|name| (What::Revision, name.to_owned())));
    all
}

fn names(target: &TrafficTarget) -> impl Iterator<Item = (What, String)> + use<> {
    let configuration = target.configuration_name.clone().map(|name| (What::Configuration, name));
    configuration.into_iter().chain(target.revision_name.clone().map(|name| (What::Revision, name)))
}

#[cfg(test)]
mod tests {
    use kube::{ResourceExt, runtime::watcher};
    use serde_json::{Value, json};

    use super::*;

    fn route(name: &str, spec: Value, status: Value) -> Route {
        serde_json::from_value(json!({
            "metadata": {"name": name, "namespace": "default"},
            "spec": {"traffic": spec}, "status": {"traffic": status},
        }))
        .unwrap()
    }

    #[tokio::test]
    async fn routes_are_found_by_what_they_name() {
        let routes_there = Cache::new();
        let take = |event| routes_there.take(event, |_, _| {});
        let routes = [
            route("a", json!([{"configurationName": "a"}]), json!([{"revisionName": "a-00001"}])),
            route("b", json!([{"revisionName": "a-00001"}]), json!([])),
        ];
        let references = References::new(routes_there.clone());
        take(watcher::Event::Init);
        for route in &routes {
            take(watcher::Event::InitApply(route.clone()));
        }
        take(watcher::Event::InitDone);
        let find = |what, name: &str| -> Vec<String> {
            let found = references.of(what, &Key::new("default", name));
            found.iter().map(|route| route.name_any()).collect()
        };
        assert!(find(What::Revision, "a-00001").is_empty(), "none is noted yet");
        references.primed().await;
        assert_eq!(find(What::Revision, "a-00001"), ["a", "b"]);
        assert_eq!(find(What::Configuration, "a"), ["a"]);
        assert!(references.of(What::Configuration, &Key::new("other", "a")).is_empty());
        // What it is going to lead to counts beside what it leads to.
        let next: TrafficTarget = serde_json::from_value(json!({"revisionName": "a-00003"})).unwrap();
        references.note(&routes[0], &[next], ["a-00002"]);
        for name in ["a-00002", "a-00003"] {
            assert_eq!(find(What::Revision, name), ["a"]);
        }
        assert_eq!(find(What::Revision, "a-00001"), ["a", "b"]);
        // Then it leads there only.
        let moved = route("a", json!([{"configurationName": "a"}]), json!([{"revisionName": "a-00003"}]));
        references.note(&moved, &[], []);
        assert_eq!(find(What::Revision, "a-00001"), ["b"]);
        assert!(find(What::Revision, "a-00002").is_empty());
        take(watcher::Event::Delete(routes[1].clone()));
        assert!(find(What::Revision, "a-00001").is_empty());
    }

    #[test]
    fn routes_that_are_gone_are_forgotten() {
        let mut noted = Noted { sweep_at: 3, ..Noted::default() };
        for n in 0..3 {
            let targets = [(What::Configuration, format!("c{n}"))].into();
            noted.set(Key::new("default", format!("r{n}")), targets, |key| key.name != "r0");
        }
        assert_eq!((noted.by_route.len(), noted.by_target.len(), noted.sweep_at), (2, 2, SWEEP));
    }
}
