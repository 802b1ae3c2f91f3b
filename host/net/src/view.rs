//! The cluster's Services and EndpointSlices, kept up to date; shared by the proxy, name
//! resolution and whoever else needs them.
//!
//! Services that are other names (`ExternalName`) have neither address nor endpoints: they are kept apart, as names
//! alone, and when one changes nobody has anything to do.

use std::{
    collections::{HashMap, HashSet},
    future::ready,
    sync::Arc,
};

use futures::{FutureExt, Stream, StreamExt};
use kube::{
    Api,
    runtime::{
        WatchStreamExt, reflector,
        watcher::{self, Event, watcher},
    },
};
use parking_lot::{Mutex, RwLock};
use tokio::sync::watch;
use wasmk_api::k8s_openapi::api::{core::v1::Service, discovery::v1::EndpointSlice};

use crate::{
    plan::{Table, plan},
    slices::Slices,
};

/// A read-only view of all Services and EndpointSlices.
#[derive(Clone)]
pub struct View {
    services: reflector::Store<Service>,
    aliases: Arc<RwLock<Aliases>>,
    slices: reflector::Store<EndpointSlice>,
    version: watch::Receiver<u64>,
    made: Arc<Mutex<Made>>,
}

/// What was last made of the lists, each with the version of the lists it was made of: however many ask,
/// it is made once.
#[derive(Default)]
struct Made {
    slices: Option<(u64, Arc<Slices>)>,
    /// The table of the node that was last asked about.
    table: Option<(u64, String, Arc<Table>)>,
}

/// What Services are other names for, by their namespace and name.
#[derive(Default)]
struct Aliases {
    all: HashMap<String, HashMap<String, Arc<str>>>,
    /// While a watch lists anew: those that it has not named yet.
    stale: Option<HashSet<(String, String)>>,
}

impl Aliases {
    fn get(&self, namespace: &str, name: &str) -> Option<&Arc<str>> {
        self.all.get(namespace)?.get(name)
    }

    fn put(&mut self, (namespace, name): (String, String), target: &str) {
        self.all.entry(namespace).or_default().insert(name, target.into());
    }

    fn remove(&mut self, (namespace, name): &(String, String)) {
        if let Some(names) = self.all.get_mut(namespace) {
            names.remove(name);
            if names.is_empty() {
                self.all.remove(namespace);
            }
        }
    }

    /// Takes what an event says of other names; what it says of Services with addresses is returned. `there` says
    /// whether one of that name is known.
    fn take(&mut self, event: Event<Service>, there: impl Fn(&Service) -> bool) -> Option<Event<Service>> {
        match &event {
            Event::Init => {
                let names = |(namespace, names): (&String, &HashMap<String, _>)| {
                    names.keys().map(|name| (namespace.clone(), name.clone())).collect::<Vec<_>>()
                };
                self.stale = Some(self.all.iter().flat_map(names).collect());
            }
            Event::InitDone => {
                self.stale.take().iter().flatten().for_each(|key| self.remove(key));
            }
            Event::Delete(service) => {
                self.remove(&key(service));
                return there(service).then_some(event);
            }
            Event::Apply(service) | Event::InitApply(service) => {
                let Some(target) = alias(service) else {
                    self.remove(&key(service));
                    return Some(event);
                };
                let key = key(service);
                if let Some(stale) = &mut self.stale {
                    stale.remove(&key);
                }
                self.put(key, target);
                // A list anew leaves out what had an address before.
                return match event {
                    Event::Apply(service) if there(&service) => Some(Event::Delete(service)),
                    _ => None,
                };
            }
        }
        Some(event)
    }
}

fn key(service: &Service) -> (String, String) {
    let meta = &service.metadata;
    (meta.namespace.clone().unwrap_or_default(), meta.name.clone().unwrap_or_default())
}

/// What a Service is another name for.
fn alias(service: &Service) -> Option<&str> {
    let spec = service.spec.as_ref().filter(|spec| spec.type_.as_deref() == Some("ExternalName"))?;
    spec.external_name.as_deref()
}

impl View {
    /// A view, and the task that keeps it; without the task it stays empty.
    pub fn new(client: kube::Client) -> (Self, impl Future<Output = ()> + Send + 'static) {
        let (services, writer) = reflector::store();
        let api: Api<Service> = Api::all(client.clone());
        let (aliases, known) = (Arc::new(RwLock::new(Aliases::default())), services.clone());
        let of_service = |service: &Service| reflector::ObjectRef::from_obj(service);
        let (sorted, there) =
            (aliases.clone(), move |service: &Service| known.get(&of_service(service)).is_some());
        let service_events =
            watcher(api, watcher::Config::default()).default_backoff().filter_map(move |event| {
                ready(match event {
                    Ok(event) => sorted.write().take(event, &there).map(Ok),
                    Err(error) => Some(Err(error)),
                })
            });
        let service_events = service_events.reflect(writer);
        let (slices, writer) = reflector::store();
        let api: Api<EndpointSlice> = Api::all(client);
        let slice_events = watcher(api, watcher::Config::default()).default_backoff().reflect(writer);
        let (version_in, version) = watch::channel(0);
        let task = async move {
            let all = futures::stream::select(changes(service_events), changes(slice_events));
            futures::pin_mut!(all);
            while all.next().await.is_some() {
                version_in.send_modify(|v| *v += 1);
            }
        };
        (Self { services, aliases, slices, version, made: Arc::default() }, task)
    }

    /// A view of nothing.
    #[cfg(test)]
    pub(crate) fn empty() -> Self {
        let client = kube::Client::new(
            tower::service_fn(|_: http::Request<kube::client::Body>| {
                std::future::pending::<Result<http::Response<kube::client::Body>, std::io::Error>>()
            }),
            "default",
        );
        Self::new(client).0
    }

    /// All Services but those that are other names.
    pub fn services(&self) -> Vec<Arc<Service>> {
        self.services.state()
    }

    /// All EndpointSlices.
    pub fn slices(&self) -> Arc<Slices> {
        let version = *self.version.borrow();
        self.slices_of(version, &mut self.made.lock())
    }

    /// What a proxy on `node` is to listen on now.
    pub fn table(&self, node: &str) -> Arc<Table> {
        // Read before the lists: what changes meanwhile makes for another version.
        let version = *self.version.borrow();
        let mut made = self.made.lock();
        if let Some((of, name, table)) = &made.table
            && *of == version
            && name == node
        {
            return table.clone();
        }
        let slices = self.slices_of(version, &mut made);
        let table = Arc::new(plan(&self.services(), &slices, node));
        made.table = Some((version, node.to_owned(), table.clone()));
        table
    }

    fn slices_of(&self, version: u64, made: &mut Made) -> Arc<Slices> {
        match &made.slices {
            Some((of, slices)) if *of >= version => slices.clone(),
            _ => {
                let slices: Arc<Slices> = Arc::new(self.slices.state().into_iter().collect());
                made.slices = Some((version, slices.clone()));
                slices
            }
        }
    }

    /// What a Service is another name for.
    pub fn alias(&self, namespace: &str, name: &str) -> Option<Arc<str>> {
        self.aliases.read().get(namespace, name).cloned()
    }

    /// One Service that is not another name.
    pub fn service(&self, namespace: &str, name: &str) -> Option<Arc<Service>> {
        self.services.get(&reflector::ObjectRef::new(name).within(namespace))
    }

    /// Whether both lists have arrived once.
    pub fn is_ready(&self) -> bool {
        let services = self.services.wait_until_ready().now_or_never();
        let slices = self.slices.wait_until_ready().now_or_never();
        services.is_some_and(|r| r.is_ok()) && slices.is_some_and(|r| r.is_ok())
    }

    /// Changes with every change, but not with those of other names.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.version.clone()
    }
}

fn changes<K>(stream: impl Stream<Item = Result<K, watcher::Error>>) -> impl Stream<Item = ()> {
    stream.map(|event| {
        if let Err(error) = event {
            tracing::debug!(%error, "a watch of services and endpoints broke off");
        }
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn service(name: &str, external: Option<&str>) -> Service {
        let spec = match external {
            Some(target) => json!({"type": "ExternalName", "externalName": target}),
            None => json!({"type": "ClusterIP", "clusterIP": "127.43.0.9"}),
        };
        serde_json::from_value(json!({"metadata": {"namespace": "shop", "name": name}, "spec": spec}))
            .unwrap()
    }

    /// What becomes of an event where these Services with addresses are known: what is passed on, and the other names.
    fn check(aliases: &mut Aliases, known: &[&str], event: Event<Service>, expect: (&str, &[&str])) {
        let there =
            |service: &Service| known.iter().any(|name| service.metadata.name.as_deref() == Some(*name));
        let passed = match aliases.take(event, there) {
            None => "nothing",
            Some(Event::Init) => "init",
            Some(Event::InitApply(_)) => "one",
            Some(Event::InitDone) => "done",
            Some(Event::Apply(_)) => "put",
            Some(Event::Delete(_)) => "gone",
        };
        let mut names: Vec<String> =
            aliases.all.values().flatten().map(|(name, target)| format!("{name}={target}")).collect();
        names.sort();
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        assert_eq!((passed, &names[..]), expect);
    }

    #[test]
    fn other_names_are_kept_apart() {
        let all = &mut Aliases::default();
        check(all, &[], Event::Init, ("init", &[]));
        check(all, &[], Event::InitApply(service("a", Some("x"))), ("nothing", &["a=x"]));
        check(all, &[], Event::InitApply(service("web", None)), ("one", &["a=x"]));
        check(all, &["web"], Event::InitDone, ("done", &["a=x"]));
        check(all, &["web"], Event::Apply(service("b", Some("y"))), ("nothing", &["a=x", "b=y"]));
        check(all, &["web"], Event::Apply(service("b", Some("z"))), ("nothing", &["a=x", "b=z"]));
        // One becomes the other.
        check(all, &["web"], Event::Apply(service("web", Some("x"))), ("gone", &["a=x", "b=z", "web=x"]));
        check(all, &[], Event::Apply(service("web", None)), ("put", &["a=x", "b=z"]));
        check(all, &["web"], Event::Delete(service("b", Some("z"))), ("nothing", &["a=x"]));
        // A list anew that no longer names one.
        check(all, &["web"], Event::Init, ("init", &["a=x"]));
        check(all, &["web"], Event::InitApply(service("c", Some("x"))), ("nothing", &["a=x", "c=x"]));
        check(all, &["web"], Event::InitDone, ("done", &["c=x"]));
        check(all, &["web"], Event::Delete(service("web", None)), ("gone", &["c=x"]));
        check(all, &[], Event::Delete(service("c", Some("x"))), ("nothing", &[]));
        assert!(all.all.is_empty(), "nothing is left");
    }
}
