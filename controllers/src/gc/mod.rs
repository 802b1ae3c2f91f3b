//! Deletes what has lost its owners, and carries out foreground and orphaning deletion.
//!
//! Watches the metadata of every deletable resource that discovery names, custom ones
//! included. An owner that the watches do not know is asked for at the API before anything
//! of its is deleted. Deletes objects, edits their owner references, and removes the
//! finalizers `foregroundDeletion` and `orphan`; nothing else.

use std::{
    collections::{BTreeMap, HashSet},
    sync::Arc,
    time::Duration,
};

use futures::StreamExt;
use kube::{
    Api,
    api::{DynamicObject, PartialObjectMeta},
    runtime::{WatchStreamExt, watcher},
};
use parking_lot::Mutex;
use tokio::sync::watch;
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::base::{Context, Queue, Served};

mod graph;
mod judge;

use graph::{Graph, Tasks, Uid, Work};

const NAME: &str = "garbage-collector-controller";
/// Resources watched at most.
const MAX_MONITORS: usize = 2000;
/// How long a dependent waits for an owner that the watches have not shown yet.
const OWNER_GRACE: Duration = Duration::from_secs(1);
/// How long work waits for the first lists.
const FIRST_LISTS: Duration = Duration::from_secs(30);
/// How often discovery is read though nothing is known to have changed.
const REDISCOVER: Duration = Duration::from_secs(300);
/// How long after a change of kinds discovery is read: kinds come in groups.
const SETTLE: Duration = Duration::from_millis(500);
/// Objects judged at once.
const WORKERS: usize = 20;

/// The graph, its work, and the resources being watched.
struct Collector {
    cx: Context,
    graph: Mutex<Graph>,
    queue: Queue<Work>,
    monitors: Mutex<BTreeMap<(String, String), Monitor>>,
    /// How many first lists are still awaited.
    unread: watch::Sender<usize>,
}

struct Monitor {
    served: Arc<Served>,
    _stop: DropGuard,
}

pub(crate) async fn run(cx: Context) {
    let collector = Arc::new(Collector {
        cx: cx.clone(),
        graph: Mutex::default(),
        queue: Queue::default(),
        monitors: Mutex::default(),
        unread: watch::channel(0).0,
    });
    let graph = Arc::downgrade(&collector);
    collector.queue.refill_from(move || graph.upgrade().map_or_else(Vec::new, |c| c.graph.lock().all_work()));
    let discovering = async {
        tokio::select! {
            () = cx.shutdown.cancelled() => {}
            () = collector.clone().discover() => {}
        }
    };
    let judging = async {
        // The first round of discovery says how many lists there are to wait for.
        let mut unread = collector.unread.subscribe();
        let lists = async {
            let _ = unread.wait_for(|n| *n > 0).await;
            let _ = unread.wait_for(|n| *n == 0).await;
        };
        let _ = tokio::time::timeout(FIRST_LISTS, lists).await;
        cx.work(NAME, &collector.queue, WORKERS, |work| collector.clone().attempt(work)).await;
    };
    tokio::join!(discovering, judging);
}

impl Collector {
    async fn discover(self: Arc<Self>) {
        loop {
            match self.cx.discovery.resources().await {
                Ok(resources) => self.clone().sync_monitors(&resources),
                Err(error) => {
                    tracing::warn!(
                        controller = NAME,
                        error = &error as &dyn std::error::Error,
                        "no discovery"
                    );
                    tokio::time::sleep(Duration::from_secs(2)).await;
                    continue;
                }
            }
            let changed = self.cx.discovery.changed();
            if tokio::time::timeout(REDISCOVER, changed).await.is_ok() {
                tokio::time::sleep(SETTLE).await;
            }
        }
    }

    fn sync_monitors(self: Arc<Self>, resources: &[Served]) {
        let wanted: BTreeMap<(String, String), &Served> = resources
            .iter()
            .filter(|s| s.is_collectable() && s.resource.plural != "events")
            .map(|s| ((s.resource.group.clone(), s.resource.plural.clone()), s))
            .take(MAX_MONITORS)
            .collect();
        let mut monitors = self.monitors.lock();
        monitors.retain(|name, monitor| wanted.get(name).is_some_and(|s| **s == *monitor.served));
        let new: Vec<_> = wanted.into_iter().filter(|(name, _)| !monitors.contains_key(name)).collect();
        self.unread.send_modify(|n| *n += new.len());
        for (name, served) in new {
            let served = Arc::new(served.clone());
            let stop = self.cx.shutdown.child_token();
            tokio::spawn(self.clone().monitor(served.clone(), stop.clone()));
            monitors.insert(name, Monitor { served, _stop: stop.drop_guard() });
        }
    }

    async fn monitor(self: Arc<Self>, served: Arc<Served>, stop: CancellationToken) {
        let api: Api<PartialObjectMeta<DynamicObject>> =
            Api::all_with(self.cx.client.clone(), &served.resource);
        let events = watcher(api, watcher::Config::default()).default_backoff();
        let mut events = std::pin::pin!(events.take_until(stop.cancelled_owned()));
        let mut listed = HashSet::new();
        let mut first = true;
        while let Some(event) = events.next().await {
            match event {
                Ok(watcher::Event::Init) => listed = HashSet::new(),
                Ok(watcher::Event::InitApply(object)) => {
                    listed.extend(object.metadata.uid.as_deref().map(Uid::from));
                    self.add(self.graph.lock().put(&served, &object.metadata));
                }
                Ok(watcher::Event::InitDone) => {
                    self.add(self.graph.lock().keep_only(&served, &std::mem::take(&mut listed)));
                    if std::mem::take(&mut first) {
                        self.unread.send_modify(|n| *n = n.saturating_sub(1));
                    }
                }
                Ok(watcher::Event::Apply(object)) => {
                    self.note_new_kinds(&served);
                    self.add(self.graph.lock().put(&served, &object.metadata));
                }
                Ok(watcher::Event::Delete(object)) => {
                    self.note_new_kinds(&served);
                    let uid = object.metadata.uid.unwrap_or_default();
                    self.add(self.graph.lock().remove(&uid));
                }
                Err(error) => {
                    let kind = &served.resource.kind;
                    tracing::debug!(kind, error = &error as &dyn std::error::Error, "watch broke");
                }
            }
        }
        // The resource is not served any more, or this is the end: its objects are unknown now.
        if first {
            self.unread.send_modify(|n| *n = n.saturating_sub(1));
        }
        if !self.cx.shutdown.is_cancelled() {
            self.add(self.graph.lock().keep_only(&served, &HashSet::new()));
        }
    }

    fn note_new_kinds(&self, served: &Served) {
        if matches!(&*served.resource.group, "apiextensions.k8s.io" | "apiregistration.k8s.io") {
            self.cx.discovery.invalidate();
        }
    }

    fn add(&self, tasks: Tasks) {
        tasks.now.into_iter().for_each(|work| self.queue.add(work));
        tasks.soon.into_iter().for_each(|work| self.queue.add_after(work, OWNER_GRACE));
    }
}
