//! The objects of a kind, kept equal to the API's by one watch that everybody here shares.
//!
//! Whoever listens is told of a change when the cache holds it already: a pass that begins after that sees it.

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    fmt::Debug,
    hash::Hash,
    sync::Arc,
};

use futures::StreamExt;
use kube::{
    Api, Resource, ResourceExt,
    runtime::{WatchStreamExt, watcher},
};
use parking_lot::RwLock;
use serde::de::DeserializeOwned;
use tokio::sync::watch;

use crate::fleet::Key;

/// Under which other keys an object is found.
type Index<K> = fn(&K) -> Vec<Key>;

/// The objects of a kind, by namespace and name.
pub(crate) struct Cache<K> {
    inner: RwLock<Inner<K>>,
    index: Index<K>,
    listed: watch::Sender<bool>,
}

struct Inner<K> {
    all: HashMap<Key, Arc<K>>,
    by: HashMap<Key, BTreeSet<Key>>,
    /// While a watch lists anew: those it has named so far.
    named: Option<HashSet<Key>>,
}

/// What became of an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Change {
    /// It is new, or another than before.
    Put,
    /// It is gone; this is what it was.
    Gone,
}

/// The key of an object.
pub(crate) fn key_of(object: &impl ResourceExt) -> Key {
    Key::new(object.namespace().unwrap_or_default(), object.name_any())
}

impl<K: Resource> Cache<K> {
    /// An empty one whose objects are found by their own key only.
    pub(crate) fn new() -> Arc<Self> {
        Self::indexed(|_| Vec::new())
    }

    /// An empty one whose objects are found by further keys.
    pub(crate) fn indexed(index: Index<K>) -> Arc<Self> {
        let inner = Inner { all: HashMap::new(), by: HashMap::new(), named: None };
        Arc::new(Self { inner: RwLock::new(inner), index, listed: watch::Sender::new(false) })
    }

    /// The object of that key.
    pub(crate) fn get(&self, key: &Key) -> Option<Arc<K>> {
        self.inner.read().all.get(key).cloned()
    }

    /// The objects under a further key, by their own.
    pub(crate) fn under(&self, key: &Key) -> Vec<Arc<K>> {
        let inner = self.inner.read();
        let keys = inner.by.get(key).into_iter().flatten();
        keys.filter_map(|key| inner.all.get(key).cloned()).collect()
    }

    /// All keys, in no order.
    pub(crate) fn keys(&self) -> Vec<Key> {
        self.inner.read().all.keys().cloned().collect()
    }

    /// All objects, in no order.
    pub(crate) fn all(&self) -> Vec<Arc<K>> {
        self.inner.read().all.values().cloned().collect()
    }

    /// Waits until all objects that there were at the start are here.
    pub(crate) async fn listed(&self) {
        // It fails only when nobody keeps the cache any more: the program ends.
        let _ = self.listed.subscribe().wait_for(|listed| *listed).await;
    }

    /// Takes one event of a watch, and tells what it changes.
    pub(crate) fn take(&self, event: watcher::Event<K>, tell: impl Fn(&Arc<K>, Change)) {
        match event {
            watcher::Event::Init => self.inner.write().named = Some(HashSet::new()),
            watcher::Event::InitApply(object) | watcher::Event::Apply(object) => {
                tell(&self.put(object), Change::Put);
            }
            watcher::Event::Delete(object) => {
                if let Some(gone) = self.remove(&key_of(&object)) {
                    tell(&gone, Change::Gone);
                }
            }
            watcher::Event::InitDone => {
                let missing = {
                    let mut inner = self.inner.write();
                    let named = inner.named.take().unwrap_or_default();
                    inner.all.keys().filter(|key| !named.contains(key)).cloned().collect::<Vec<_>>()
                };
                missing.iter().filter_map(|key| self.remove(key)).for_each(|gone| tell(&gone, Change::Gone));
                self.listed.send_replace(true);
            }
        }
    }

    fn put(&self, mut object: K) -> Arc<K> {
        // Nobody here asks who wrote which field, and it is a third of an object.
        object.meta_mut().managed_fields = None;
        let (key, more, object) = (key_of(&object), (self.index)(&object), Arc::new(object));
        let mut inner = self.inner.write();
        if let Some(named) = &mut inner.named {
            named.insert(key.clone());
        }
        let old = inner.all.insert(key.clone(), object.clone());
        if let Some(old) = old {
            inner.forget(&key, (self.index)(&old));
        }
        for other in more {
            inner.by.entry(other).or_default().insert(key.clone());
        }
        object
    }

    fn remove(&self, key: &Key) -> Option<Arc<K>> {
        let mut inner = self.inner.write();
        let gone = inner.all.remove(key)?;
        inner.forget(key, (self.index)(&gone));
        Some(gone)
    }
}

impl<K> Inner<K> {
    fn forget(&mut self, key: &Key, others: Vec<Key>) {
        for other in others {
            if let Some(keys) = self.by.get_mut(&other) {
                keys.remove(key);
                if keys.is_empty() {
                    self.by.remove(&other);
                }
            }
        }
    }
}

/// Keeps a cache equal to the API's objects for ever.
pub(crate) async fn follow<K>(
    cache: Arc<Cache<K>>,
    api: Api<K>,
    which: watcher::Config,
    tell: impl Fn(&Arc<K>, Change),
) where
    K: Resource<DynamicType: Clone + Eq + Hash> + Clone + DeserializeOwned + Debug + Send + 'static,
{
    let mut events = std::pin::pin!(watcher(api, which).default_backoff());
    while let Some(event) = events.next().await {
        match event {
            Ok(event) => cache.take(event, &tell),
            Err(error) => tracing::debug!(%error, "a watch begins anew"),
        }
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::ConfigMap;
    use parking_lot::Mutex;
    use serde_json::json;

    use super::*;

    fn map(name: &str, of: &str) -> ConfigMap {
        let metadata =
            json!({"name": name, "namespace": "default", "labels": {"of": of}, "managedFields": [{}]});
        serde_json::from_value(json!({"metadata": metadata})).unwrap()
    }

    fn of(map: &ConfigMap) -> Vec<Key> {
        vec![Key::new("default", &*map.labels()["of"])]
    }

    #[test]
    fn objects_come_move_and_go() {
        let (cache, told) = (Cache::indexed(of), Mutex::new(Vec::new()));
        let take = |event| {
            cache.take(event, |map: &Arc<ConfigMap>, change| {
                let there = cache.get(&key_of(&**map)).is_some();
                assert_eq!(there, change == Change::Put, "the cache holds it before anyone is told");
                told.lock().push(format!("{}{}", if there { "+" } else { "-" }, map.name_any()));
            });
            std::mem::take(&mut *told.lock()).join(" ")
        };
        let under = |of: &str| {
            let found = cache.under(&Key::new("default", of));
            found.iter().map(|m| m.name_any()).collect::<Vec<_>>().join(" ")
        };
        use watcher::Event::{Apply, Delete, Init, InitApply, InitDone};
        assert_eq!(take(Init), "");
        assert_eq!(take(InitApply(map("a", "x"))) + &take(InitApply(map("b", "x"))), "+a+b");
        assert_eq!((take(InitDone), under("x")), (String::new(), "a b".into()));
        assert!(cache.all().iter().all(|m| m.metadata.managed_fields.is_none()));
        assert_eq!(
            (take(Apply(map("a", "y"))), under("x"), under("y")),
            ("+a".into(), "b".into(), "a".into())
        );
        assert_eq!((take(Delete(map("a", "y"))), under("y")), ("-a".into(), String::new()));
        assert_eq!(take(Delete(map("a", "y"))), "", "gone once");
        // A list anew that no longer names the other.
        assert_eq!(take(Init) + &take(InitApply(map("c", "x"))) + &take(InitDone), "+c-b");
        assert_eq!((under("x"), cache.keys().len()), ("c".into(), 1));
        assert!(cache.inner.read().by.len() == 1, "nothing is left of what is gone");
    }
}
