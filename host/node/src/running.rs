//! What runs on this node now, by pod and container: for exec, attach and figures.

use std::{collections::HashMap, sync::Arc};

use parking_lot::Mutex;
use tokio_util::sync::DropGuard;
use wasmk_net::{plan::Table, policy::Gate, proxy::Proxy};

use crate::{engine::Launch, netns::Netns};

/// A container that runs.
#[derive(Clone)]
pub(crate) enum Running {
    /// WebAssembly in this process, with all it was given.
    Wasm(Arc<Launch>),
    /// In the container runtime, which calls it so.
    Container(String),
}

/// All containers that run. Clones are the same set.
#[derive(Clone, Default)]
pub(crate) struct Registry {
    inner: Arc<Mutex<Inner>>,
}

/// A pod's network namespace, and what goes on in it.
struct Surroundings {
    netns: Netns,
    _serving: DropGuard,
}

#[derive(Default)]
struct Inner {
    /// By uid of the pod and name of the container.
    containers: HashMap<(String, String), (u64, Running)>,
    /// Network namespaces of pods that have one, by uid.
    namespaces: HashMap<String, Surroundings>,
    /// What listens on the node for a pod, by uid.
    ports: HashMap<String, Proxy>,
    last: u64,
}

/// Keeps a container listed for as long as it is held.
pub(crate) struct Entry {
    registry: Registry,
    key: (String, String),
    number: u64,
}

impl Drop for Entry {
    fn drop(&mut self) {
        let mut inner = self.registry.inner.lock();
        // A later run of the same container may be listed already.
        if inner.containers.get(&self.key).is_some_and(|(number, _)| *number == self.number) {
            inner.containers.remove(&self.key);
        }
    }
}

impl Registry {
    /// Lists a container that runs.
    pub(crate) fn enter(&self, uid: &str, container: &str, running: Running) -> Entry {
        let mut inner = self.inner.lock();
        inner.last += 1;
        let (number, key) = (inner.last, (uid.to_string(), container.to_string()));
        inner.containers.insert(key.clone(), (number, running));
        Entry { registry: self.clone(), key, number }
    }

    /// A container that runs.
    pub(crate) fn find(&self, uid: &str, container: &str) -> Option<Running> {
        let key = (uid.to_string(), container.to_string());
        self.inner.lock().containers.get(&key).map(|(_, running)| running.clone())
    }

    /// Sets or forgets the network namespace of a pod, with the token that ends what serves it; whatever
    /// served an earlier one is ended.
    pub(crate) fn set_namespace(&self, uid: &str, namespace: Option<(Netns, DropGuard)>) {
        let mut inner = self.inner.lock();
        match namespace {
            Some((netns, serving)) => {
                let surroundings = Surroundings { netns, _serving: serving };
                drop(inner.namespaces.insert(uid.into(), surroundings));
            }
            None => drop(inner.namespaces.remove(uid)),
        }
    }

    /// Makes the node's ports that lead to a pod be those of the table, for those whom the gate lets pass.
    pub(crate) fn set_ports(&self, uid: &str, table: Table, gate: Gate) {
        let mut inner = self.inner.lock();
        if table.is_empty() {
            drop(inner.ports.remove(uid));
        } else {
            inner.ports.entry(uid.into()).or_insert_with(|| Proxy::new(gate)).set(&table);
        }
    }

    /// Forgets the node's ports that lead to a pod.
    pub(crate) fn clear_ports(&self, uid: &str) {
        self.inner.lock().ports.remove(uid);
    }

    /// The network namespace of a pod that has one of its own.
    pub(crate) fn namespace(&self, uid: &str) -> Option<Netns> {
        self.inner.lock().namespaces.get(uid).map(|s| s.netns.clone())
    }
}
