//! All pods of this node: watches them in the API and keeps one loop for each.

use std::{collections::HashMap, pin::pin, sync::Arc, time::Duration};

use futures::StreamExt;
use kube::{
    Api,
    runtime::{WatchStreamExt, watcher},
};
use parking_lot::Mutex;
use tokio_util::sync::CancellationToken;
use wasmk_api::k8s_openapi::api::core::v1::Pod;

use crate::{
    context::Context,
    pod::{self, Handle, Known, worker::Wish},
    static_pods,
};

/// The pods of a node, by uid.
pub(crate) struct Pods {
    cx: Arc<Context>,
    inner: Mutex<HashMap<String, Entry>>,
}

struct Entry {
    pod: Arc<Pod>,
    handle: Handle,
}

impl Pods {
    /// Takes up the pods on record; none runs before this returns.
    pub(crate) fn new(cx: Arc<Context>) -> Arc<Self> {
        let entries = cx.records.known().into_iter().filter_map(|Known { pod, state }| {
            let uid = pod.metadata.uid.clone()?;
            let handle = pod::spawn(cx.clone(), pod.clone(), Some(state));
            Some((uid, Entry { pod, handle }))
        });
        let inner = Mutex::new(entries.collect());
        Arc::new(Self { cx, inner })
    }

    /// A pod by namespace and name; of several with one name the newest.
    pub(crate) fn find(&self, namespace: &str, name: &str) -> Option<Arc<Pod>> {
        let inner = self.inner.lock();
        let named = |p: &&Arc<Pod>| {
            p.metadata.namespace.as_deref() == Some(namespace) && p.metadata.name.as_deref() == Some(name)
        };
        let all = inner.values().map(|e| &e.pod).filter(named);
        all.max_by_key(|p| p.metadata.creation_timestamp.clone().map(|t| t.0)).cloned()
    }

    /// All pods.
    pub(crate) fn list(&self) -> Vec<Arc<Pod>> {
        self.inner.lock().values().map(|e| e.pod.clone()).collect()
    }

    /// Follows the API until told to stop; pods already running go on when it is out of reach.
    pub(crate) async fn follow(self: Arc<Self>, stop: CancellationToken) {
        let api: Api<Pod> = Api::all(self.cx.client.clone());
        let config = watcher::Config::default().fields(&format!("spec.nodeName={}", self.cx.node));
        let mut events = pin!(watcher(api, config).default_backoff());
        let mut listed: Vec<String> = Vec::new();
        loop {
            let event = tokio::select! {
                () = stop.cancelled() => return,
                event = events.next() => event,
            };
            match event {
                Some(Ok(watcher::Event::Init)) => listed.clear(),
                Some(Ok(watcher::Event::InitApply(pod))) => {
                    listed.extend(pod.metadata.uid.clone());
                    self.apply(pod);
                }
                Some(Ok(watcher::Event::InitDone)) => self.keep_only(&std::mem::take(&mut listed)),
                Some(Ok(watcher::Event::Apply(pod))) => self.apply(pod),
                Some(Ok(watcher::Event::Delete(pod))) => self.gone(pod.metadata.uid.as_deref().unwrap_or("")),
                Some(Err(error)) => tracing::debug!(%error, "the watch of this node's pods broke off"),
                None => return,
            }
        }
    }

    fn apply(&self, mut pod: Pod) {
        let Some(uid) = pod.metadata.uid.clone() else { return };
        if static_pods::is_mirror(&pod) {
            return;
        }
        pod.metadata.managed_fields = None;
        let pod = Arc::new(pod);
        let mut inner = self.inner.lock();
        if let Some(entry) = inner.get_mut(&uid).filter(|e| !e.handle.is_done()) {
            entry.pod = pod.clone();
            entry.handle.tell(Wish::Pod(pod));
            return;
        }
        let handle = pod::spawn(self.cx.clone(), pod.clone(), None);
        inner.insert(uid, Entry { pod, handle });
    }

    fn gone(&self, uid: &str) {
        if let Some(entry) = self.inner.lock().remove(uid) {
            entry.handle.tell(Wish::Gone);
        }
    }

    /// Ends a pod because it takes too much. The wish may be overtaken by news of the pod; who looks at the
    /// node's resources repeats it as long as it is short of them.
    pub(crate) fn evict(&self, pod: &Pod, message: String) {
        let uid = pod.metadata.uid.as_deref().unwrap_or_default();
        if let Some(entry) = self.inner.lock().get(uid) {
            entry.handle.tell(Wish::Evict(message));
        }
    }

    /// Runs a pod of the node's own, unless it does already.
    pub(crate) fn run_static(&self, pod: Pod) {
        self.apply(pod);
    }

    /// The mirror of a pod of the node's own was made anew, without a status.
    pub(crate) fn mirrored(&self, pod: &Pod) {
        let uid = pod.metadata.uid.as_deref().unwrap_or_default();
        if let Some(entry) = self.inner.lock().get(uid) {
            entry.handle.forgotten();
        }
    }

    /// Ends a pod of the node's own.
    pub(crate) fn end_static(&self, pod: &Pod) {
        let uid = pod.metadata.uid.as_deref().unwrap_or_default();
        let mut inner = self.inner.lock();
        if inner.get(uid).is_some_and(|entry| entry.handle.is_done()) {
            inner.remove(uid);
        } else if let Some(entry) = inner.get(uid) {
            entry.handle.tell(Wish::Pod(Arc::new(static_pods::ended(pod))));
        }
    }

    /// Ends the pods that the API no longer has; those of the node's own were never the API's.
    fn keep_only(&self, uids: &[String]) {
        let keep: std::collections::HashSet<&String> = uids.iter().collect();
        let lost: Vec<String> = {
            let inner = self.inner.lock();
            let lost = inner.iter().filter(|(u, e)| !keep.contains(u) && !static_pods::is_static(&e.pod));
            lost.map(|(uid, _)| uid.clone()).collect()
        };
        lost.iter().for_each(|uid| self.gone(uid));
        if let Some(containers) = self.cx.containers.clone() {
            let uids: Vec<String> = self.inner.lock().keys().cloned().collect();
            tokio::spawn(async move { containers.discard_strays(&uids).await });
        }
    }

    /// Stops everything that runs, within the deadline; records stay for the next start.
    pub(crate) async fn quit(&self, deadline: Duration) {
        let entries: Vec<Entry> = self.inner.lock().drain().map(|(_, e)| e).collect();
        for entry in &entries {
            entry.handle.tell(Wish::Quit);
        }
        let all = async {
            for mut entry in entries {
                entry.handle.ended().await;
            }
        };
        if tokio::time::timeout(deadline, all).await.is_err() {
            tracing::warn!("some pods did not stop in time");
        }
    }
}
