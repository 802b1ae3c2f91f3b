//! Shared caches: one watch per resource, however many controllers read it.
//!
//! A cache also takes in the answers to our own writes ([`Informer::assume`]), so a pass
//! that follows a write sees it. That is what keeps controllers from creating twice; no
//! separate book-keeping of expected events is needed. Resource versions order the two
//! sources, and uids seen deleted are remembered for a while so that a late answer does
//! not bring an object back.

use std::{
    any::{Any, TypeId},
    collections::{BTreeMap, BTreeSet, HashMap, HashSet, VecDeque},
    sync::Arc,
};

use futures::StreamExt;
use kube::{
    Client,
    runtime::{WatchStreamExt, watcher},
};
use parking_lot::{Mutex, RwLock};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::{Key, Watched, uid, watched::trim_meta};

/// Deleted uids remembered per resource.
const MAX_TOMBSTONES: usize = 4096;

type Handler<K> = Box<dyn Fn(Option<&Arc<K>>, Option<&Arc<K>>) + Send + Sync>;

/// The cache of one resource.
pub struct Informer<K> {
    state: RwLock<State<K>>,
    /// Held while a change is stored and told, so that listeners see changes in order.
    handlers: Mutex<Vec<Handler<K>>>,
    ready: watch::Sender<bool>,
}

struct State<K> {
    objects: BTreeMap<Key, Arc<K>>,
    index: HashMap<String, BTreeSet<Key>>,
    gone: Tombstones,
    /// While a list is under way: the keys it has brought, and those assumed meanwhile.
    listing: Option<HashSet<Key>>,
}

#[derive(Default)]
struct Tombstones {
    set: HashSet<String>,
    order: VecDeque<String>,
}

impl Tombstones {
    fn add(&mut self, uid: &str) {
        if uid.is_empty() || !self.set.insert(uid.into()) {
            return;
        }
        self.order.push_back(uid.into());
        if self.order.len() > MAX_TOMBSTONES
            && let Some(old) = self.order.pop_front()
        {
            self.set.remove(&old);
        }
    }
}

impl<K> Default for State<K> {
    fn default() -> Self {
        Self { objects: BTreeMap::new(), index: HashMap::new(), gone: Tombstones::default(), listing: None }
    }
}

impl<K: Watched> State<K> {
    /// Stores an object unless a newer one is there; the one replaced, when it was stored.
    fn put(&mut self, object: &Arc<K>) -> Option<Option<Arc<K>>> {
        let key = Key::of(object.meta());
        if let Some(listing) = &mut self.listing {
            listing.insert(key.clone());
        }
        if self.gone.set.contains(uid(&**object)) {
            return None;
        }
        let old = self.objects.get(&key).cloned();
        if let Some(old) = &old {
            if version(old.meta()) >= version(object.meta()) && version(object.meta()).is_some() {
                return None;
            }
            if uid(&**old) != uid(&**object) {
                self.gone.add(uid(&**old));
            }
            self.unindex(&key, old);
        }
        for name in object.index() {
            self.index.entry(name).or_default().insert(key.clone());
        }
        self.objects.insert(key, object.clone());
        Some(old)
    }

    fn remove(&mut self, key: &Key) -> Option<Arc<K>> {
        let old = self.objects.remove(key)?;
        self.gone.add(uid(&*old));
        self.unindex(key, &old);
        Some(old)
    }

    fn unindex(&mut self, key: &Key, old: &K) {
        for name in old.index() {
            if let Some(keys) = self.index.get_mut(&name) {
                keys.remove(key);
                if keys.is_empty() {
                    self.index.remove(&name);
                }
            }
        }
    }
}

fn version(meta: &k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta) -> Option<u64> {
    meta.resource_version.as_deref()?.parse().ok()
}

impl<K: Watched> Default for Informer<K> {
    fn default() -> Self {
        Self { state: RwLock::default(), handlers: Mutex::default(), ready: watch::channel(false).0 }
    }
}

impl<K: Watched> Informer<K> {
    /// One object.
    pub fn get(&self, key: &Key) -> Option<Arc<K>> {
        self.state.read().objects.get(key).cloned()
    }

    /// All objects, ordered by namespace and name.
    pub fn list(&self) -> Vec<Arc<K>> {
        self.state.read().objects.values().cloned().collect()
    }

    /// All keys.
    pub fn keys(&self) -> Vec<Key> {
        self.state.read().objects.keys().cloned().collect()
    }

    /// How many objects there are.
    pub fn len(&self) -> usize {
        self.state.read().objects.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The objects of a namespace, ordered by name.
    pub fn in_namespace(&self, namespace: &str) -> Vec<Arc<K>> {
        let state = self.state.read();
        let from = Key::new(namespace, "");
        state
            .objects
            .range(from..)
            .take_while(|(key, _)| key.namespace == namespace)
            .map(|(_, object)| object.clone())
            .collect()
    }

    /// The objects under a name of [`Watched::index`].
    pub fn indexed(&self, name: &str) -> Vec<Arc<K>> {
        let state = self.state.read();
        let keys = state.index.get(name).into_iter().flatten();
        keys.filter_map(|key| state.objects.get(key).cloned()).collect()
    }

    /// The objects controlled by that uid.
    pub fn controlled_by(&self, owner: &str) -> Vec<Arc<K>> {
        self.indexed(&format!("owner/{owner}"))
    }

    /// The objects of a namespace that nobody controls.
    pub fn orphans(&self, namespace: &str) -> Vec<Arc<K>> {
        self.indexed(&format!("orphan/{namespace}"))
    }

    /// The objects on a node (pods only).
    pub fn on_node(&self, node: &str) -> Vec<Arc<K>> {
        self.indexed(&format!("node/{node}"))
    }

    /// Calls `handler(before, after)` for every change from now on, and for what is already
    /// there as if it had just come. Handlers must be quick and must not call back into this cache's
    /// writing methods.
    pub fn subscribe(&self, handler: impl Fn(Option<&Arc<K>>, Option<&Arc<K>>) + Send + Sync + 'static) {
        let mut handlers = self.handlers.lock();
        for object in self.list() {
            handler(None, Some(&object));
        }
        handlers.push(Box::new(handler));
    }

    /// Takes in an object as an answer to our own write brought it.
    pub fn assume(&self, mut object: K) -> Arc<K> {
        trim_meta(object.meta_mut());
        object.trim();
        let object = Arc::new(object);
        self.store(&object);
        object
    }

    /// Takes out an object that our own write has removed.
    pub fn forget(&self, object: &K) {
        let key = Key::of(object.meta());
        let handlers = self.handlers.lock();
        let removed = {
            let mut state = self.state.write();
            state.gone.add(uid(object));
            let same = state.objects.get(&key).is_some_and(|o| uid(&**o) == uid(object));
            if same { state.remove(&key) } else { None }
        };
        if let Some(old) = removed {
            handlers.iter().for_each(|h| h(Some(&old), None));
        }
    }

    /// Returns once the first list has been read.
    pub async fn ready(&self) {
        let mut ready = self.ready.subscribe();
        // The sender lives as long as `self`.
        let _ = ready.wait_for(|ready| *ready).await;
    }

    fn store(&self, object: &Arc<K>) {
        let handlers = self.handlers.lock();
        let stored = self.state.write().put(object);
        if let Some(old) = stored {
            // Another uid under the same name: the old object is gone.
            let replaced = old.as_ref().is_some_and(|o| uid(&**o) != uid(&**object));
            if replaced {
                handlers.iter().for_each(|h| h(old.as_ref(), None));
            }
            let before = old.as_ref().filter(|_| !replaced);
            handlers.iter().for_each(|h| h(before, Some(object)));
        }
    }

    fn apply(&self, event: watcher::Event<K>) {
        match event {
            watcher::Event::Init => self.state.write().listing = Some(HashSet::new()),
            watcher::Event::InitApply(mut object) | watcher::Event::Apply(mut object) => {
                object.trim();
                self.store(&Arc::new(object));
            }
            watcher::Event::Delete(object) => self.forget(&object),
            watcher::Event::InitDone => {
                self.end_listing();
                self.ready.send_replace(true);
            }
        }
    }

    fn end_listing(&self) {
        let handlers = self.handlers.lock();
        let removed: Vec<Arc<K>> = {
            let mut state = self.state.write();
            let Some(listed) = state.listing.take() else { return };
            let stale: Vec<Key> = state.objects.keys().filter(|k| !listed.contains(*k)).cloned().collect();
            stale.iter().filter_map(|key| state.remove(key)).collect()
        };
        for old in removed {
            handlers.iter().for_each(|h| h(Some(&old), None));
        }
    }
}

/// The caches of all resources; each begins with its first reader.
#[derive(Clone)]
pub struct Informers {
    client: Client,
    shutdown: CancellationToken,
    all: Arc<Mutex<HashMap<TypeId, Arc<dyn Any + Send + Sync>>>>,
}

impl Informers {
    /// Caches that read through `client` until `shutdown`.
    pub fn new(client: Client, shutdown: CancellationToken) -> Self {
        Self { client, shutdown, all: Arc::default() }
    }

    /// The cache of a kind.
    pub fn of<K: Watched>(&self) -> Arc<Informer<K>> {
        let mut all = self.all.lock();
        let fresh = || {
            let informer = Arc::new(Informer::<K>::default());
            tokio::spawn(follow(informer.clone(), self.client.clone(), self.shutdown.clone()));
            informer as Arc<dyn Any + Send + Sync>
        };
        let informer = all.entry(TypeId::of::<K>()).or_insert_with(fresh).clone();
        informer.downcast().unwrap_or_else(|_| unreachable!("stored under its own type id"))
    }
}

async fn follow<K: Watched>(informer: Arc<Informer<K>>, client: Client, shutdown: CancellationToken) {
    let events = watcher(K::scope(client), K::config())
        .default_backoff()
        .map(|event| event.map(|e| e.modify(|o| trim_meta(o.meta_mut()))));
    let mut events = std::pin::pin!(events.take_until(shutdown.cancelled_owned()));
    while let Some(event) = events.next().await {
        match event {
            Ok(event) => informer.apply(event),
            Err(error) => {
                tracing::debug!(kind = %K::kind(&()), error = &error as &dyn std::error::Error, "watch broke");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::api::core::v1::Pod;

    fn pod(name: &str, uid: &str, version: u64) -> Pod {
        let mut pod = Pod::default();
        pod.metadata.namespace = Some("ns".into());
        pod.metadata.name = Some(name.into());
        pod.metadata.uid = Some(uid.into());
        pod.metadata.resource_version = Some(version.to_string());
        pod
    }

    fn seen(informer: &Informer<Pod>) -> Vec<String> {
        let show = |p: &Arc<Pod>| {
            format!("{}@{}", uid(&**p), p.metadata.resource_version.as_deref().unwrap_or_default())
        };
        informer.list().iter().map(show).collect()
    }

    #[test]
    fn older_news_do_not_undo_a_write() {
        let informer = Informer::default();
        informer.assume(pod("a", "1", 9));
        informer.apply(watcher::Event::Apply(pod("a", "1", 5)));
        assert_eq!(seen(&informer), ["1@9"]);
        informer.apply(watcher::Event::Apply(pod("a", "1", 10)));
        assert_eq!(seen(&informer), ["1@10"]);
    }

    #[test]
    fn a_late_answer_does_not_bring_an_object_back() {
        let informer = Informer::default();
        informer.apply(watcher::Event::Apply(pod("a", "1", 5)));
        informer.apply(watcher::Event::Delete(pod("a", "1", 6)));
        informer.assume(pod("a", "1", 5));
        assert!(seen(&informer).is_empty());
        informer.assume(pod("a", "2", 7));
        informer.apply(watcher::Event::Delete(pod("a", "1", 6)));
        assert_eq!(seen(&informer), ["2@7"]);
    }

    #[test]
    fn a_new_list_drops_what_it_does_not_bring() {
        let informer = Informer::default();
        informer.apply(watcher::Event::Apply(pod("a", "1", 5)));
        informer.apply(watcher::Event::Apply(pod("b", "2", 6)));
        informer.apply(watcher::Event::Init);
        informer.apply(watcher::Event::InitApply(pod("b", "2", 6)));
        informer.assume(pod("c", "3", 9));
        informer.apply(watcher::Event::InitDone);
        assert_eq!(seen(&informer), ["2@6", "3@9"]);
    }

    #[test]
    fn listeners_learn_of_a_replacement_as_going_and_coming() {
        let informer = Informer::default();
        let log = Arc::new(Mutex::new(Vec::new()));
        let sink = log.clone();
        informer.subscribe(move |old, new| {
            let name = |p: Option<&Arc<Pod>>| p.map(|p| uid(&**p).to_owned()).unwrap_or_default();
            sink.lock().push(format!("{}>{}", name(old), name(new)));
        });
        informer.assume(pod("a", "1", 1));
        informer.assume(pod("a", "1", 2));
        informer.assume(pod("a", "2", 3));
        assert_eq!(*log.lock(), [">1", "1>1", "1>", ">2"]);
    }
}
