//! The objects of a kind, kept equal to the API's by one watch that everybody here shares.
//!
//! Whoever listens is told of a change when the cache holds it already: a pass that begins after that sees it.
//!
//! Objects rest as the bytes they are read from, a tenth of what they take when they can be looked at: a cluster has
//! many functions, and looks at few of them at a time. Those it looked at last are at hand.

use std::{
    collections::{HashMap, HashSet, VecDeque},
    fmt::Debug,
    hash::Hash,
    sync::Arc,
};

use futures::StreamExt;
use kube::{
    Api, Resource, ResourceExt,
    runtime::{WatchStreamExt, watcher},
};
use parking_lot::{Mutex, RwLock};
use serde::{Serialize, de::DeserializeOwned};
use tokio::sync::watch;

use crate::fleet::Key;

/// Objects of a kind that are at hand.
const AT_HAND: usize = 256;

/// Under which other keys an object is found.
type Index<K> = fn(&K) -> Vec<Key>;

/// The objects of a kind, by namespace and name.
pub(crate) struct Cache<K> {
    inner: RwLock<Inner>,
    /// Taken with no other lock held, or with `inner` held: never the other way round.
    at_hand: Mutex<AtHand<K>>,
    index: Option<Index<K>>,
    listed: watch::Sender<bool>,
}

#[derive(Default)]
struct Inner {
    all: HashMap<Key, Packed>,
    by: HashMap<Key, Vec<Key>>,
    /// While a watch lists anew: those it has named so far.
    named: Option<HashSet<Key>>,
}

/// An object at rest, as JSON.
type Packed = Arc<[u8]>;

/// The objects that were looked at last, each with what it was read from: it counts while that is what is there.
struct AtHand<K> {
    objects: HashMap<Key, (Packed, Arc<K>)>,
    order: VecDeque<Key>,
}

impl<K> AtHand<K> {
    fn get(&self, key: &Key, packed: &Packed) -> Option<Arc<K>> {
        self.objects.get(key).filter(|(of, _)| Arc::ptr_eq(of, packed)).map(|(_, object)| object.clone())
    }

    fn put(&mut self, key: &Key, packed: Packed, object: Arc<K>) {
        if self.objects.insert(key.clone(), (packed, object)).is_some() {
            return;
        }
        self.order.push_back(key.clone());
        if self.order.len() > AT_HAND
            && let Some(oldest) = self.order.pop_front()
        {
            self.objects.remove(&oldest);
        }
    }
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

impl<K: Resource + Serialize + DeserializeOwned> Cache<K> {
    /// An empty one whose objects are found by their own key only.
    pub(crate) fn new() -> Arc<Self> {
        Self::made(None)
    }

    /// An empty one whose objects are found by further keys.
    pub(crate) fn indexed(index: Index<K>) -> Arc<Self> {
        Self::made(Some(index))
    }

    fn made(index: Option<Index<K>>) -> Arc<Self> {
        let at_hand = AtHand { objects: HashMap::new(), order: VecDeque::new() };
        let (inner, listed) = (RwLock::default(), watch::Sender::new(false));
        Arc::new(Self { inner, at_hand: Mutex::new(at_hand), index, listed })
    }

    /// The object of that key.
    pub(crate) fn get(&self, key: &Key) -> Option<Arc<K>> {
        let packed = self.inner.read().all.get(key).cloned()?;
        self.unpack(key, packed)
    }

    /// Whether there is an object of that key.
    pub(crate) fn has(&self, key: &Key) -> bool {
        self.inner.read().all.contains_key(key)
    }

    fn unpack(&self, key: &Key, packed: Packed) -> Option<Arc<K>> {
        if let Some(object) = self.at_hand.lock().get(key, &packed) {
            return Some(object);
        }
        match serde_json::from_slice(&packed) {
            Ok(object) => {
                let object = Arc::new(object);
                self.at_hand.lock().put(key, packed, Arc::clone(&object));
                Some(object)
            }
            Err(error) => {
                tracing::error!(%key, %error, "an object that was written here cannot be read");
                None
            }
        }
    }

    /// The objects under a further key, by their own.
    pub(crate) fn under(&self, key: &Key) -> Vec<Arc<K>> {
        let keys = self.inner.read().by.get(key).cloned().unwrap_or_default();
        keys.iter().filter_map(|key| self.get(key)).collect()
    }

    /// All keys, in no order.
    pub(crate) fn keys(&self) -> Vec<Key> {
        self.inner.read().all.keys().cloned().collect()
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
        let (key, more) = (key_of(&object), self.further(&object));
        // Maps with names for keys always become JSON.
        let packed: Packed = serde_json::to_vec(&object).unwrap_or_default().into();
        let object = Arc::new(object);
        let old = self.index.and_then(|index| self.get(&key).map(|old| index(&old))).unwrap_or_default();
        let mut inner = self.inner.write();
        if let Some(named) = &mut inner.named {
            named.insert(key.clone());
        }
        inner.all.insert(key.clone(), packed.clone());
        if old != more {
            inner.forget(&key, old);
            for other in more {
                inner.by.entry(other).or_default().push(key.clone());
            }
        }
        drop(inner);
        self.at_hand.lock().put(&key, packed, Arc::clone(&object));
        object
    }

    fn remove(&self, key: &Key) -> Option<Arc<K>> {
        let gone = self.get(key)?;
        let mut inner = self.inner.write();
        inner.all.remove(key);
        inner.forget(key, self.further(&gone));
        Some(gone)
    }

    fn further(&self, object: &K) -> Vec<Key> {
        self.index.map(|index| index(object)).unwrap_or_default()
    }
}

impl Inner {
    fn forget(&mut self, key: &Key, others: Vec<Key>) {
        for other in others {
            if let Some(keys) = self.by.get_mut(&other) {
                keys.retain(|known| known != key);
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
    K: Resource<DynamicType: Clone + Eq + Hash>
        + Clone
        + Serialize
        + DeserializeOwned
        + Debug
        + Send
        + 'static,
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
        let kept = cache.get(&Key::new("default", "a")).unwrap();
        assert_eq!((&kept.metadata.managed_fields, kept.labels()["of"].as_str()), (&None, "x"));
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

    #[test]
    fn few_objects_are_decoded_and_the_rest_are_bytes() {
        const MANY: usize = 3 * AT_HAND;
        let cache = Cache::indexed(of);
        for n in 0..MANY {
            cache.take(watcher::Event::Apply(map(&format!("m{n}"), "x")), |_, _| {});
        }
        let get = |n: usize| cache.get(&Key::new("default", format!("m{n}"))).unwrap();
        for n in 0..MANY {
            assert_eq!(get(n).name_any(), format!("m{n}"), "all of them are there");
        }
        assert!(Arc::ptr_eq(&get(MANY - 1), &get(MANY - 1)), "what is at hand is not read again");
        let at_hand = cache.at_hand.lock();
        assert_eq!((at_hand.objects.len(), at_hand.order.len()), (AT_HAND, AT_HAND));
        let inner = cache.inner.read();
        let bytes: usize = inner.all.values().map(|packed| packed.len()).sum();
        assert!(bytes / MANY < 200, "an object of one label takes {} bytes", bytes / MANY);
    }

    #[test]
    fn nobody_gets_what_an_object_was_before() {
        let cache = Cache::indexed(of);
        for of in ["x", "y"] {
            cache.take(watcher::Event::Apply(map("a", of)), |_, _| {});
            assert_eq!(cache.get(&Key::new("default", "a")).unwrap().labels()["of"], of);
        }
    }
}
