//! The watch cache: every resource's objects, encoded once, and the latest changes of each.
//!
//! One task follows the store and applies each change to the [`Cache`] of its resource, in order. All reads and
//! watches are served from the caches; a read that must be current waits until the caches have reached the
//! store's revision. Caches exist for whatever the store holds, whether or not its kind is served yet.

mod entry;
mod outline;
mod resource;

use std::{
    collections::{BTreeMap, HashMap},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use parking_lot::RwLock;
use tokio::{
    sync::watch,
    time::{Instant, sleep, timeout},
};
use wasmk_api::{Reason, Status};
use wasmk_store::{Event as Change, Range, Store, WatchBatch};

pub(crate) use entry::{Entry, Filter, Reader, encode};
pub(crate) use resource::{Cache, Compacted, Event, Page, Part, key};

/// Everything the API stores has a key that starts with this.
pub(crate) const ROOT: &str = "/registry/";
/// Keys read at once while loading.
const LOAD_PAGE: usize = 1000;
/// Longest wait for the caches to reach a revision.
const CATCH_UP: Duration = Duration::from_secs(3);
/// How long a reader waits before it asks the store's watch to report progress.
const NUDGE_AFTER: Duration = Duration::from_millis(20);
/// Pause before following the store again after a failure.
const RETRY: Duration = Duration::from_millis(500);
/// How long changes are remembered, but for each resource's last ones: as long as the store keeps them itself.
const MEMORY: Duration = Duration::from_secs(300);
/// How often what is older is looked for.
const AGE_EVERY: Duration = Duration::from_secs(60);

/// All caches, and the revision they have reached.
pub(crate) struct Caches {
    store: Arc<dyn Store>,
    readers: Box<dyn Fn(&str) -> Reader + Send + Sync>,
    all: RwLock<HashMap<Box<str>, Arc<Cache>>>,
    applied: AtomicU64,
    progress: watch::Sender<u64>,
}

impl Caches {
    /// Loads what the store holds. `readers` says how objects of a resource (`<group or core>/<plural>`) are read.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub(crate) async fn load(
        store: Arc<dyn Store>,
        readers: impl Fn(&str) -> Reader + Send + Sync + 'static,
    ) -> Result<Arc<Self>, wasmk_store::Error> {
        let caches = Self {
            store,
            readers: Box::new(readers),
            all: RwLock::default(),
            applied: AtomicU64::new(0),
            progress: watch::Sender::new(0),
        };
        let revision = caches
            .read_all(|resource, key, value, revision| caches.of(resource).load(key, value, revision))
            .await?;
        caches.reached(revision);
        for cache in caches.all.read().values() {
            cache.forget(revision);
        }
        Ok(Arc::new(caches))
    }

    /// The cache of a resource, made if there is none. `resource` is `<group or core>/<plural>`.
    pub(crate) fn of(&self, resource: &str) -> Arc<Cache> {
        if let Some(cache) = self.all.read().get(resource) {
            return cache.clone();
        }
        // Whatever the store held was loaded, so a resource without a cache has had no object up to now.
        let mut all = self.all.write();
        let floor = self.applied.load(Ordering::Acquire);
        all.entry(resource.into())
            .or_insert_with(|| Arc::new(Cache::new((self.readers)(resource), floor)))
            .clone()
    }

    /// The revision every cache has reached.
    pub(crate) fn revision(&self) -> u64 {
        self.applied.load(Ordering::Acquire)
    }

    /// A page of a resource's present objects with the revision it shows: every change up to that is in it, none
    /// after.
    pub(crate) fn page(&self, cache: &Cache, filter: &Filter, part: Part<'_>) -> (Page, u64) {
        // Read before the page: what is applied while that is taken may be missing from it. What is in it already
        // may be newer.
        let before = self.revision();
        let (page, last) = cache.page(filter, part);
        (page, before.max(last))
    }

    /// Number of objects of every resource.
    pub(crate) fn sizes(&self) -> Vec<(Box<str>, usize)> {
        self.all.read().iter().map(|(name, cache)| (name.clone(), cache.len())).collect()
    }

    /// Waits until the caches show everything acknowledged before the call; the revision reached.
    ///
    /// # Errors
    /// When the store does not answer or the caches do not catch up in time.
    pub(crate) async fn catch_up(&self) -> Result<u64, Status> {
        let revision = self.store.revision().await.map_err(|e| unavailable(&e))?;
        self.wait_for(revision).await?;
        Ok(revision)
    }

    /// Waits until the caches have reached a revision.
    ///
    /// # Errors
    /// When they do not in time.
    pub(crate) async fn wait_for(&self, revision: u64) -> Result<(), Status> {
        if self.revision() >= revision {
            return Ok(());
        }
        let mut progress = self.progress.subscribe();
        if timeout(NUDGE_AFTER, progress.wait_for(|at| *at >= revision)).await.is_ok() {
            return Ok(());
        }
        self.store.request_progress(ROOT.as_bytes()).await.map_err(|e| unavailable(&e))?;
        match timeout(CATCH_UP, progress.wait_for(|at| *at >= revision)).await {
            Ok(_) => Ok(()),
            Err(_) => Err(too_large(revision, self.revision())),
        }
    }

    /// Follows the store for ever; ends only when the store is closed.
    pub(crate) async fn follow(self: Arc<Self>) {
        tokio::select! {
            () = self.follow_store() => {}
            () = self.age() => {}
        }
    }

    /// Forgets old changes, for ever.
    async fn age(&self) {
        loop {
            sleep(AGE_EVERY).await;
            let Some(before) = Instant::now().checked_sub(MEMORY) else { continue };
            let caches: Vec<_> = self.all.read().values().cloned().collect();
            caches.iter().for_each(|cache| cache.age(before));
        }
    }

    async fn follow_store(&self) {
        loop {
            match self.store.watch(ROOT.as_bytes(), self.revision()).await {
                Ok(mut watch) => loop {
                    match watch.next().await {
                        Some(Ok(batch)) => self.apply(&batch),
                        Some(Err(error)) => {
                            break tracing::warn!(%error, "following the store was interrupted");
                        }
                        None => return,
                    }
                },
                Err(wasmk_store::Error::Closed) => return,
                Err(error @ wasmk_store::Error::Compacted { .. }) => {
                    tracing::warn!(%error, "changes were missed; reading everything again");
                    if let Err(error) = self.resync().await {
                        tracing::warn!(%error, "cannot read the store");
                    }
                }
                Err(error) => tracing::warn!(%error, "cannot follow the store"),
            }
            sleep(RETRY).await;
        }
    }

    fn apply(&self, batch: &WatchBatch) {
        for event in &batch.events {
            let (value, revision) = match event {
                Change::Put { kv, .. } => (Some(&kv.value), kv.mod_revision),
                Change::Delete { revision, .. } => (None, *revision),
            };
            if let Some((resource, key)) = split(event.key()) {
                self.of(resource).apply(key, value, revision);
            }
        }
        self.reached(batch.revision);
    }

    fn reached(&self, revision: u64) {
        self.applied.fetch_max(revision, Ordering::AcqRel);
        self.progress.send_replace(self.revision());
    }

    async fn read_all(
        &self,
        mut take: impl FnMut(&str, &str, &Bytes, u64),
    ) -> Result<u64, wasmk_store::Error> {
        let (mut start, mut at) = (None::<Vec<u8>>, None);
        loop {
            let range = Range { prefix: ROOT.as_bytes(), start: start.as_deref(), limit: LOAD_PAGE, at };
            let page = self.store.range(range).await?;
            for item in &page.items {
                if let Some((resource, key)) = split(&item.key) {
                    take(resource, key, &item.value, item.mod_revision);
                }
            }
            at = Some(page.revision);
            match page.items.last() {
                Some(last) if page.more => start = Some([&last.key[..], b"\0"].concat()),
                _ => return Ok(page.revision),
            }
        }
    }

    /// Brings the caches to the store's present state after a gap. Watchers from before list again: they may have
    /// missed states in between.
    async fn resync(&self) -> Result<(), wasmk_store::Error> {
        let mut fresh: HashMap<String, BTreeMap<Box<str>, Arc<Entry>>> = HashMap::new();
        let revision = self
            .read_all(|resource, key, value, revision| {
                if let Some(entry) = self.of(resource).entry(key, value, revision) {
                    fresh.entry(resource.into()).or_default().insert(key.into(), entry);
                }
            })
            .await?;
        let caches: Vec<_> =
            self.all.read().iter().map(|(name, cache)| (name.clone(), cache.clone())).collect();
        for (resource, cache) in caches {
            cache.replace(fresh.remove(&*resource).unwrap_or_default(), revision);
        }
        self.reached(revision);
        Ok(())
    }
}

/// Splits a key of the store into resource (`group/plural`) and the object's key.
fn split(key: &[u8]) -> Option<(&str, &str)> {
    let rest = std::str::from_utf8(key).ok()?.strip_prefix(ROOT)?;
    let group = rest.find('/')?;
    let resource = group + 1 + rest[group + 1..].find('/')?;
    Some((&rest[..resource], &rest[resource + 1..]))
}

/// The answer when the store fails.
pub(crate) fn unavailable(error: &wasmk_store::Error) -> Status {
    match error {
        wasmk_store::Error::TooLarge { .. } => {
            Status::new(Reason::RequestEntityTooLarge, format!("Request entity too large: {error}"))
        }
        error => {
            tracing::error!(%error, "the store failed");
            Status::new(Reason::ServiceUnavailable, format!("the store does not answer: {error}"))
        }
    }
}

/// The answer to a revision that has not happened.
pub(crate) fn too_large(revision: u64, current: u64) -> Status {
    Status::new(
        Reason::Timeout,
        format!("Timeout: Too large resource version: {revision}, current: {current}"),
    )
    .with_causes(&[wasmk_api::Cause {
        reason: "ResourceVersionTooLarge".into(),
        message: "Too large resource version".into(),
        field: String::new(),
    }])
    .retry_after(1)
}

#[cfg(test)]
mod tests {
    use wasmk_store::{Memory, Op, Txn};

    use super::*;

    fn value(name: &str) -> Vec<u8> {
        format!(r#"{{"kind":"T","apiVersion":"v1","metadata":{{"name":"{name}"}}}}"#).into_bytes()
    }

    #[tokio::test]
    async fn reads_are_current_and_changes_in_order() {
        let store = Arc::new(Memory::new());
        store.txn(Txn::put("/registry/core/things/a/x", value("x"), 0)).await.unwrap();
        let caches = Caches::load(store.clone(), |_| Reader::Plain).await.unwrap();
        let task = tokio::spawn(caches.clone().follow());
        let things = caches.of("core/things");
        assert_eq!(things.len(), 1);
        let before = things.count();
        store.txn(Txn::put("/registry/core/things/a/y", value("y"), 0)).await.unwrap();
        let revision = caches.catch_up().await.unwrap();
        assert_eq!(things.get("a/y").unwrap().revision, revision);
        assert_eq!(things.events_from(before, 10).unwrap().len(), 1);
        assert!(caches.wait_for(revision + 100).await.is_err());
        store.close();
        task.await.unwrap();
    }

    /// Every change is of this one resource, so a list at revision n shows an object that was changed in n.
    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_list_shows_every_change_up_to_its_revision_and_none_after() {
        let store = Arc::new(Memory::new());
        let caches = Caches::load(store.clone(), |_| Reader::Plain).await.unwrap();
        let task = tokio::spawn(caches.clone().follow());
        let put = |at: u64| Op::Put {
            key: format!("/registry/core/things/a/x{}", at % 7).into(),
            value: value("x").into(),
        };
        store.txn(Txn { ops: vec![put(0)], ..Txn::default() }).await.unwrap();
        caches.catch_up().await.unwrap();
        let things = caches.of("core/things");
        let (reader, cache) = (caches.clone(), things.clone());
        let reading = std::thread::spawn(move || {
            let mut last = 0;
            while last < 5000 {
                let (page, revision) = reader.page(&cache, &Filter::default(), Part::default());
                let newest = page.entries.iter().map(|entry| entry.revision).max();
                assert_eq!(newest, Some(revision));
                assert!(revision >= last);
                last = revision;
            }
        });
        let mut at = 0;
        while !reading.is_finished() {
            at += 1;
            store.txn(Txn { ops: vec![put(at)], ..Txn::default() }).await.unwrap();
        }
        reading.join().unwrap();
        store.close();
        task.await.unwrap();
    }

    #[tokio::test]
    async fn after_a_gap_the_state_is_the_stores() {
        let store = Arc::new(Memory::new());
        for name in ["kept", "gone"] {
            let key = format!("/registry/core/things/a/{name}");
            store.txn(Txn::put(key, value(name), 0)).await.unwrap();
        }
        let caches = Caches::load(store.clone(), |_| Reader::Plain).await.unwrap();
        let (things, before) = (caches.of("core/things"), caches.revision());
        let at = things.position_after(before).unwrap();
        store.txn(Txn::delete("/registry/core/things/a/gone", before)).await.unwrap();
        store.txn(Txn::put("/registry/core/things/a/new", value("new"), 0)).await.unwrap();
        caches.resync().await.unwrap();
        assert_eq!(caches.revision(), before + 2);
        let names: Vec<_> = things.list(&Filter::default()).iter().map(|e| e.name.clone()).collect();
        assert_eq!(names, ["kept".into(), "new".into()]);
        assert!(things.events_from(at, 9).is_err(), "what happened in the gap is not made up");
    }
}
