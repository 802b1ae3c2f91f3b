//! What nodes may read because their pods use it: a graph from nodes over pods to what those name.
//!
//! It follows the caches of pods and volumes change by change. Of bound pods' specs only the ephemeral containers
//! grow, so only pods that come and go, or have such, are read.

use std::{collections::HashMap, sync::Arc};

use parking_lot::Mutex;
use serde_json::Value;
use wasmk_api::Object;
use wasmk_kinds::value::list as items;

use crate::cache::{Cache, Caches, Entry, Filter};

/// Changes read at once.
const BATCH: usize = 1000;

/// What can be reached from a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Thing {
    Secret,
    ConfigMap,
    Claim,
    ServiceAccount,
    ResourceClaim,
}

type Key = (Thing, Box<str>);
/// Nodes by name, each with how many of its pods use the thing.
type Users = HashMap<Box<str>, u32>;

#[derive(Default)]
struct State {
    /// The next change of pods that has not been seen; `None` before the first look.
    pods_at: Option<u64>,
    uses: HashMap<Key, Users>,
    /// How many changes of volumes have been seen.
    volumes_at: Option<u64>,
    /// Secrets that volumes need, with the claims that are bound to those volumes.
    volume_secrets: HashMap<Box<str>, Vec<Box<str>>>,
}

/// The graph.
pub(crate) struct Graph {
    pods: Arc<Cache>,
    volumes: Arc<Cache>,
    attachments: Arc<Cache>,
    state: Mutex<State>,
}

impl Graph {
    pub(crate) fn new(caches: &Caches) -> Self {
        Self {
            pods: caches.of("core/pods"),
            volumes: caches.of("core/persistentvolumes"),
            attachments: caches.of("storage.k8s.io/volumeattachments"),
            state: Mutex::default(),
        }
    }

    /// Whether a pod on the node uses the thing of that namespace and name.
    pub(crate) fn uses(&self, node: &str, thing: Thing, namespace: &str, name: &str) -> bool {
        let key: Box<str> = format!("{namespace}/{name}").into();
        let mut state = self.state.lock();
        state.follow_pods(&self.pods);
        let on = |state: &State, key: Key| state.uses.get(&key).is_some_and(|users| users.contains_key(node));
        if on(&state, (thing, key.clone())) {
            return true;
        }
        if thing != Thing::Secret {
            return false;
        }
        state.follow_volumes(&self.volumes);
        let claims = state.volume_secrets.get(&key).cloned().unwrap_or_default();
        claims.into_iter().any(|claim| on(&state, (Thing::Claim, claim)))
    }

    /// Whether the pod is on the node.
    pub(crate) fn runs(&self, node: &str, namespace: &str, name: &str) -> bool {
        let pod = self.pods.get(&crate::cache::key(namespace, name));
        pod.is_some_and(|pod| pod.field("spec.nodeName") == Some(node))
    }

    /// Whether the volume is bound to a claim that a pod on the node uses.
    pub(crate) fn mounts(&self, node: &str, volume: &str) -> bool {
        let claim = self.volumes.get(volume).and_then(|entry| claim_of(&entry.object()));
        claim.is_some_and(|(namespace, name)| self.uses(node, Thing::Claim, &namespace, &name))
    }

    /// Whether the attachment is to the node.
    pub(crate) fn attaches(&self, node: &str, attachment: &str) -> bool {
        self.attachments
            .get(attachment)
            .is_some_and(|a| a.object().at(&["spec", "nodeName"]).and_then(Value::as_str) == Some(node))
    }
}

/// Whether what a bound pod uses may have changed: it has containers that were added while it runs.
fn may_have_grown(pod: &Entry) -> bool {
    std::str::from_utf8(pod.stored()).is_ok_and(|text| text.contains("\"ephemeralContainers\""))
}

impl State {
    fn follow_pods(&mut self, pods: &Cache) {
        loop {
            let Some(at) = self.pods_at else { return self.read_pods(pods) };
            let Ok(events) = pods.events_from(at, BATCH) else { return self.read_pods(pods) };
            if events.is_empty() {
                return;
            }
            self.pods_at = Some(at + events.len() as u64);
            for event in events {
                let node = |entry: &Entry| entry.field("spec.nodeName").unwrap_or("").to_owned();
                let before = event.before.as_ref().map(|b| node(b)).unwrap_or_default();
                let after = if event.deleted { String::new() } else { node(&event.after) };
                if before == after && (after.is_empty() || !may_have_grown(&event.after)) {
                    continue;
                }
                if let (Some(entry), false) = (&event.before, before.is_empty()) {
                    self.count(entry, &before, false);
                }
                if !after.is_empty() {
                    self.count(&event.after, &after, true);
                }
            }
        }
    }

    fn read_pods(&mut self, pods: &Cache) {
        let (all, at) = pods.list_then(&Filter::default());
        self.uses.clear();
        self.pods_at = Some(at);
        for pod in all {
            if let Some(node) = pod.field("spec.nodeName").filter(|n| !n.is_empty()) {
                self.count(&pod, node, true);
            }
        }
    }

    fn count(&mut self, pod: &Entry, node: &str, more: bool) {
        for key in used_by(&pod.object(), &pod.namespace) {
            let users = self.uses.entry(key.clone()).or_default();
            let count = users.entry(node.into()).or_default();
            *count = if more { *count + 1 } else { count.saturating_sub(1) };
            if *count == 0 {
                users.remove(node);
            }
            if users.is_empty() {
                self.uses.remove(&key);
            }
        }
    }

    fn follow_volumes(&mut self, volumes: &Cache) {
        let count = volumes.count();
        if self.volumes_at == Some(count) {
            return;
        }
        self.volumes_at = Some(count);
        self.volume_secrets.clear();
        for entry in volumes.list(&Filter::default()) {
            let volume = entry.object();
            let Some((namespace, claim)) = claim_of(&volume) else { continue };
            let mut names = Vec::new();
            references(volume.0.get("spec").unwrap_or(&Value::Null), &namespace, &mut names);
            for secret in names {
                let claims = self.volume_secrets.entry(secret).or_default();
                claims.push(format!("{namespace}/{claim}").into());
            }
        }
    }
}

/// The namespace and name of the claim a volume is bound to.
fn claim_of(volume: &Object) -> Option<(String, String)> {
    let text = |key: &str| volume.at(&["spec", "claimRef", key]).and_then(Value::as_str).map(str::to_owned);
    Some((text("namespace")?, text("name")?))
}

/// Secrets that the source of a persistent volume names: in any field that ends with `SecretRef`, or is one.
fn references(source: &Value, namespace: &str, into: &mut Vec<Box<str>>) {
    let Value::Object(map) = source else { return };
    for (key, value) in map {
        let text = |name: &str| value.get(name).and_then(Value::as_str);
        match &**key {
            "secretRef"
            | "controllerPublishSecretRef"
            | "nodeStageSecretRef"
            | "nodePublishSecretRef"
            | "controllerExpandSecretRef"
            | "nodeExpandSecretRef" => {
                if let Some(name) = text("name") {
                    into.push(format!("{}/{name}", text("namespace").unwrap_or(namespace)).into());
                }
            }
            "azureFile" => {
                if let Some(name) = text("secretName") {
                    into.push(format!("{}/{name}", text("secretNamespace").unwrap_or(namespace)).into());
                }
            }
            _ => references(value, namespace, into),
        }
    }
}

/// Everything a pod names, in its own namespace.
fn used_by(pod: &Object, namespace: &str) -> Vec<Key> {
    let mut all: Vec<Key> = Vec::new();
    if pod.annotation("kubernetes.io/config.mirror").is_some() {
        return all;
    }
    let Some(spec) = pod.0.get("spec") else { return all };
    let mut add = |thing: Thing, name: Option<&Value>| {
        if let Some(name) = name.and_then(Value::as_str).filter(|n| !n.is_empty()) {
            let key = (thing, format!("{namespace}/{name}").into());
            if !all.contains(&key) {
                all.push(key);
            }
        }
    };
    add(Thing::ServiceAccount, spec.get("serviceAccountName"));
    for secret in items(spec, "imagePullSecrets") {
        add(Thing::Secret, secret.get("name"));
    }
    for container in
        ["initContainers", "containers", "ephemeralContainers"].iter().flat_map(|list| items(spec, list))
    {
        for source in items(container, "envFrom") {
            add(Thing::Secret, source.pointer("/secretRef/name"));
            add(Thing::ConfigMap, source.pointer("/configMapRef/name"));
        }
        for variable in items(container, "env") {
            add(Thing::Secret, variable.pointer("/valueFrom/secretKeyRef/name"));
            add(Thing::ConfigMap, variable.pointer("/valueFrom/configMapKeyRef/name"));
        }
    }
    let pod_name = pod.name();
    for volume in items(spec, "volumes") {
        add(Thing::Secret, volume.pointer("/secret/secretName"));
        add(Thing::ConfigMap, volume.pointer("/configMap/name"));
        add(Thing::Claim, volume.pointer("/persistentVolumeClaim/claimName"));
        if let (Some(_), Some(name)) = (volume.get("ephemeral"), volume.get("name").and_then(Value::as_str)) {
            add(Thing::Claim, Some(&Value::String(format!("{pod_name}-{name}"))));
        }
        for source in volume.get("projected").into_iter().flat_map(|p| items(p, "sources")) {
            add(Thing::Secret, source.pointer("/secret/name"));
            add(Thing::ConfigMap, source.pointer("/configMap/name"));
        }
        for kind in ["cephfs", "rbd", "flexVolume", "scaleIO", "iscsi", "storageos"] {
            add(Thing::Secret, volume.pointer(&format!("/{kind}/secretRef/name")));
        }
        add(Thing::Secret, volume.pointer("/csi/nodePublishSecretRef/name"));
        add(Thing::Secret, volume.pointer("/azureFile/secretName"));
    }
    for claim in items(spec, "resourceClaims") {
        add(Thing::ResourceClaim, claim.get("resourceClaimName"));
    }
    for status in pod.0.get("status").into_iter().flat_map(|s| items(s, "resourceClaimStatuses")) {
        add(Thing::ResourceClaim, status.get("resourceClaimName"));
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cache::Reader;
    use serde_json::json;

    fn graph() -> Graph {
        let pods = Reader::Kind(wasmk_kinds::kind("", "Pod"));
        Graph {
            pods: Arc::new(Cache::new(pods, 0)),
            volumes: Arc::new(Cache::new(Reader::Plain, 0)),
            attachments: Arc::new(Cache::new(Reader::Plain, 0)),
            state: Mutex::default(),
        }
    }

    fn pod(node: &str) -> bytes::Bytes {
        json!({
            "kind": "Pod", "apiVersion": "v1", "metadata": { "name": "p", "namespace": "n" },
            "spec": {
                "nodeName": node, "serviceAccountName": "robot",
                "imagePullSecrets": [{ "name": "pull" }],
                "containers": [{ "name": "c", "env": [
                    { "name": "A", "valueFrom": { "secretKeyRef": { "name": "env", "key": "k" } } },
                ], "envFrom": [{ "configMapRef": { "name": "all" } }] }],
                "volumes": [
                    { "name": "v", "persistentVolumeClaim": { "claimName": "claim" } },
                    { "name": "w", "projected": { "sources": [{ "secret": { "name": "inner" } }] } },
                    { "name": "x", "configMap": { "name": "conf" } },
                ],
            },
        })
        .to_string()
        .into()
    }

    #[test]
    fn a_node_reaches_what_its_pods_name_as_long_as_it_has_them() {
        let graph = graph();
        let check = |expect: bool, node: &str| {
            for (thing, name) in [
                (Thing::Secret, "pull"),
                (Thing::Secret, "env"),
                (Thing::Secret, "inner"),
                (Thing::ConfigMap, "all"),
                (Thing::ConfigMap, "conf"),
                (Thing::Claim, "claim"),
                (Thing::ServiceAccount, "robot"),
            ] {
                assert_eq!(graph.uses(node, thing, "n", name), expect, "{node} {thing:?} {name}");
                assert!(!graph.uses(node, thing, "other", name));
            }
        };
        check(false, "a");
        graph.pods.apply("n/p", Some(&pod("")), 1);
        check(false, "a");
        graph.pods.apply("n/p", Some(&pod("a")), 2);
        check(true, "a");
        check(false, "b");
        assert!(graph.runs("a", "n", "p") && !graph.runs("b", "n", "p"));
        assert!(!graph.uses("a", Thing::Secret, "n", "p"));
        graph.pods.apply("n/p", None, 3);
        check(false, "a");
        graph.pods.apply("n/p", Some(&pod("b")), 4);
        check(true, "b");
    }

    #[test]
    fn containers_that_are_added_to_a_running_pod_count_as_long_as_it_is_there() {
        let graph = graph();
        let debugged = |name: &str, secret: &str| -> bytes::Bytes {
            let mut pod: Value = serde_json::from_slice(&pod("a")).unwrap();
            pod["metadata"]["name"] = name.into();
            let source = json!([{ "secretRef": { "name": secret } }]);
            pod["spec"]["ephemeralContainers"] = json!([{ "name": "debug", "envFrom": source }]);
            pod.to_string().into()
        };
        let may_read = |name: &str| graph.uses("a", Thing::Secret, "n", name);
        graph.pods.apply("n/p", Some(&pod("a")), 1);
        graph.pods.apply("n/other", Some(&debugged("other", "extra")), 2);
        assert!(may_read("extra") && may_read("env"));
        graph.pods.apply("n/p", Some(&debugged("p", "extra")), 3);
        graph.pods.apply("n/p", Some(&debugged("p", "own")), 4);
        assert!(may_read("own"));
        graph.pods.apply("n/p", None, 5);
        assert!(!may_read("own") && may_read("extra") && may_read("env"), "the other pod still has them");
        graph.pods.apply("n/other", None, 6);
        assert!(!may_read("extra") && !may_read("env"));
    }

    #[test]
    fn volumes_lead_on_to_their_secrets() {
        let graph = graph();
        let volume = json!({
            "kind": "PersistentVolume", "apiVersion": "v1", "metadata": { "name": "pv" },
            "spec": {
                "claimRef": { "namespace": "n", "name": "claim" },
                "csi": { "driver": "d", "nodeStageSecretRef": { "namespace": "vault", "name": "key" } },
            },
        });
        graph.volumes.apply("pv", Some(&volume.to_string().into()), 1);
        assert!(!graph.mounts("a", "pv"));
        graph.pods.apply("n/p", Some(&pod("a")), 2);
        assert!(graph.mounts("a", "pv") && !graph.mounts("b", "pv"));
        assert!(graph.uses("a", Thing::Secret, "vault", "key"));
        assert!(!graph.uses("b", Thing::Secret, "vault", "key"));
    }
}
