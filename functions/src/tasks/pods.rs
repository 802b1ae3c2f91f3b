//! Keeps each member's pods equal to the ready pods there are.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::SocketAddr,
    sync::Arc,
};

use futures::StreamExt;
use k8s_openapi::api::core::v1::Pod;
use kube::{
    Api, Client, ResourceExt,
    runtime::{WatchStreamExt, watcher},
};
use wasmk_api::knative::{REVISION_LABEL, label};

use crate::{
    defaults,
    fleet::{Fleet, Key},
};

/// Ready pods of revisions, by name.
#[derive(Default)]
struct Ready {
    pods: HashMap<Key, BTreeMap<String, SocketAddr>>,
    /// While the watch lists anew: the pods before that it has not named yet.
    stale: Option<BTreeSet<(Key, String)>>,
}

impl Ready {
    /// Takes one event; returns the revisions whose pods it may change.
    fn take(&mut self, event: watcher::Event<Pod>) -> Vec<Key> {
        match event {
            watcher::Event::Init => {
                let names = |(key, pods): (&Key, &BTreeMap<String, SocketAddr>)| {
                    pods.keys().map(|name| (key.clone(), name.clone())).collect::<Vec<_>>()
                };
                self.stale = Some(self.pods.iter().flat_map(names).collect());
                Vec::new()
            }
            watcher::Event::InitDone => {
                let stale = self.stale.take().unwrap_or_default();
                stale.iter().for_each(|(key, name)| self.remove(key, name));
                stale.into_iter().map(|(key, _)| key).collect()
            }
            watcher::Event::Apply(pod) | watcher::Event::InitApply(pod) => self.put(&pod, address(&pod)),
            watcher::Event::Delete(pod) => self.put(&pod, None),
        }
    }

    fn put(&mut self, pod: &Pod, address: Option<SocketAddr>) -> Vec<Key> {
        let Some(revision) = label(&pod.metadata, REVISION_LABEL) else { return Vec::new() };
        let (key, name) = (Key::new(pod.namespace().unwrap_or_default(), revision), pod.name_any());
        if let Some(stale) = &mut self.stale {
            stale.remove(&(key.clone(), name.clone()));
        }
        match address {
            Some(address) => {
                self.pods.entry(key.clone()).or_default().insert(name, address);
            }
            None => self.remove(&key, &name),
        }
        vec![key]
    }

    fn remove(&mut self, key: &Key, name: &str) {
        if let Some(pods) = self.pods.get_mut(key) {
            pods.remove(name);
            if pods.is_empty() {
                self.pods.remove(key);
            }
        }
    }

    fn tell(&self, fleet: &Fleet, key: &Key) {
        if let Some(member) = fleet.get(key) {
            member.set_backends(self.pods.get(key).into_iter().flat_map(|p| p.values().copied()).collect());
        }
    }
}

/// Follows pods and members for ever.
pub(super) async fn follow(client: Client, fleet: Arc<Fleet>) {
    let of_functions = watcher::Config::default().labels(REVISION_LABEL);
    let events = watcher(Api::<Pod>::all(client), of_functions).default_backoff();
    let mut events = std::pin::pin!(events.filter_map(|e| async move { e.ok() }));
    let mut members = fleet.changed.subscribe();
    let mut ready = Ready::default();
    loop {
        tokio::select! {
            event = events.next() => {
                let Some(event) = event else { return };
                ready.take(event).iter().for_each(|key| ready.tell(&fleet, key));
            }
            _ = members.changed() => fleet.take_fresh().iter().for_each(|key| ready.tell(&fleet, key)),
        }
    }
}

/// Where a ready pod of a revision takes requests.
fn address(pod: &Pod) -> Option<SocketAddr> {
    let status = pod.status.as_ref()?;
    let ready = status.conditions.iter().flatten().any(|c| c.type_ == "Ready" && c.status == "True");
    if !ready || pod.metadata.deletion_timestamp.is_some() {
        return None;
    }
    let ip = status.pod_ip.as_ref()?.parse().ok()?;
    let ports = pod.spec.iter().flat_map(|s| &s.containers).flat_map(|c| c.ports.iter().flatten());
    let port = ports.map(|p| p.container_port).next().unwrap_or(defaults::PORT);
    Some(SocketAddr::new(ip, u16::try_from(port).ok()?))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn pod(name: &str, ip: &str, ready: bool) -> Pod {
        serde_json::from_value(json!({
            "metadata": {"name": name, "namespace": "default", "labels": {REVISION_LABEL: "hello-00001"}},
            "spec": {"containers": [{"name": "c", "ports": [{"containerPort": 80}]}]},
            "status": {"podIP": ip, "conditions": [{"type": "Ready", "status": if ready { "True" } else { "False" }}]},
        }))
        .unwrap()
    }

    #[test]
    fn pods_come_and_go() {
        let key = Key::new("default", "hello-00001");
        let mut ready = Ready::default();
        let count = |ready: &Ready| ready.pods.get(&key).map_or(0, BTreeMap::len);
        assert_eq!(
            ready.take(watcher::Event::Apply(pod("a", "127.42.0.1", true))),
            std::slice::from_ref(&key)
        );
        ready.take(watcher::Event::Apply(pod("b", "127.42.0.2", false)));
        assert_eq!(count(&ready), 1);
        ready.take(watcher::Event::Apply(pod("b", "127.42.0.2", true)));
        assert_eq!(count(&ready), 2);
        // A list anew that no longer names the first.
        ready.take(watcher::Event::Init);
        ready.take(watcher::Event::InitApply(pod("b", "127.42.0.2", true)));
        assert_eq!(ready.take(watcher::Event::InitDone), std::slice::from_ref(&key));
        assert_eq!(count(&ready), 1);
        ready.take(watcher::Event::Delete(pod("b", "127.42.0.2", true)));
        assert!(ready.pods.is_empty());
    }
}
