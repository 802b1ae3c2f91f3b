//! Devices of this machine that plugins announce (`vendor.example/gpu`), counted in the node's capacity and given
//! to containers that ask for them by their limits.
//!
//! A plugin registers at the agent's socket ([`server`]), lists its devices as long as it lives ([`plugin`]), and is
//! asked what a container needs to use those that it gets. What was given is on record ([`record`]) until the pod
//! has ended: neither a new life of the plugin nor one of the agent gives it to another.

mod choose;
mod plugin;
mod record;
mod server;

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use parking_lot::Mutex;
use tokio::sync::watch;
use wasmk_api::{
    Quantity,
    k8s_openapi::api::core::v1::{Container, Pod},
};

use crate::engine::Failure;
use plugin::Plugin;
pub(crate) use record::Grant;
use record::{Given, Key, Records};

/// Reason of a container whose devices cannot be had.
const DEVICE_ERROR: &str = "UnexpectedAdmissionError";
/// How long the devices of a plugin that has left are counted in the node's capacity.
const GRACE: Duration = Duration::from_secs(300);
/// Resources with plugins at most.
const MOST: usize = 256;

/// Devices by resource: how many there are, and how many of them can be given.
pub(crate) type Amounts = BTreeMap<String, (usize, usize)>;

/// The devices of a node.
pub(crate) struct Devices {
    dir: PathBuf,
    state: Mutex<State>,
    amounts: watch::Sender<Amounts>,
}

struct State {
    records: Records,
    plugins: BTreeMap<String, Plugin>,
    /// Counts plugins, so that news of an old one is told from that of its successor.
    lives: u64,
}

impl State {
    fn amounts(&self) -> Amounts {
        let mut all: Amounts = self.records.resources().map(|name| (name.into(), (0, 0))).collect();
        all.extend(self.plugins.iter().map(|(name, plugin)| (name.clone(), plugin.amounts())));
        all
    }

    /// Devices of a resource that containers have.
    fn taken(&self, resource: &str) -> BTreeSet<&str> {
        let given = self.records.given().filter(|(key, _)| key.resource == resource);
        given.flat_map(|(_, given)| given.ids.iter().map(String::as_str)).collect()
    }

    /// Takes devices for a container, unless it has them already.
    fn reserve(&mut self, key: &Key, count: usize) -> Result<Given, String> {
        if let Some(given) = self.records.of(key).filter(|given| given.ids.len() == count) {
            return Ok(given.clone());
        }
        let plugin = self.plugins.get(&key.resource).filter(|plugin| plugin.is_here());
        let plugin = plugin.ok_or_else(|| format!("no plugin of {} is registered", key.resource))?;
        let taken = self.taken(&key.resource);
        let free: Vec<String> = plugin.healthy().filter(|id| !taken.contains(id)).map(String::from).collect();
        if free.len() < count {
            return Err(format!(
                "requested number of devices unavailable for {}. Requested: {count}, Available: {}",
                key.resource,
                free.len()
            ));
        }
        let given = Given { ids: free.into_iter().take(count).collect(), grant: None };
        self.records.give(key, given.clone());
        Ok(given)
    }
}

impl Devices {
    /// Keeps its socket and its record in `dir`; `pods` are those that this node still has. Plugins see that the
    /// socket is a new one and register again.
    ///
    /// # Errors
    /// When the directory cannot be used.
    pub(crate) fn open(dir: &Path, pods: &BTreeSet<String>) -> io::Result<Arc<Self>> {
        std::fs::create_dir_all(dir)?;
        let mut records = Records::open(&dir.join("given.json"));
        records.keep(pods);
        let state = State { records, plugins: BTreeMap::new(), lives: 0 };
        let amounts = watch::Sender::new(state.amounts());
        Ok(Arc::new(Self { dir: dir.into(), state: Mutex::new(state), amounts }))
    }

    /// Takes registrations for ever.
    pub(crate) async fn keep(self: Arc<Self>) {
        if let Err(error) = server::serve(self.clone()).await {
            tracing::warn!(dir = %self.dir.display(), %error, "device plugins cannot register");
        }
    }

    /// How many devices there are.
    pub(crate) fn amounts(&self) -> watch::Receiver<Amounts> {
        self.amounts.subscribe()
    }

    fn changed(&self) {
        let now = self.state.lock().amounts();
        self.amounts.send_if_modified(|old| {
            let changed = *old != now;
            *old = now;
            changed
        });
    }

    /// Gives a container what its limits ask for, or what it was given before.
    ///
    /// # Errors
    /// When there are not so many devices, or their plugin does not answer.
    pub(crate) async fn give(&self, pod: &Pod, container: &Container) -> Result<Grant, Failure> {
        let mut all = Grant::default();
        for (resource, count) in wanted(container) {
            let uid = pod.metadata.uid.clone().unwrap_or_default();
            let key = Key { uid, container: container.name.clone(), resource };
            let known = {
                let mut state = self.state.lock();
                let known = state.records.resources().any(|name| name == key.resource);
                if known {
                    state.records.release(&key.uid, |name| ended(pod, name, &container.name));
                }
                known
            };
            // Others are counted by whoever wrote them into the node's status.
            if known {
                let failed = |text| Failure::new(DEVICE_ERROR, format!("Allocate failed due to {text}"));
                all.add(self.allocate(&key, count).await.map_err(failed)?);
            }
        }
        Ok(all)
    }

    async fn allocate(&self, key: &Key, count: usize) -> Result<Grant, String> {
        let mut given = self.state.lock().reserve(key, count)?;
        let plugin = self.state.lock().plugins.get(&key.resource).and_then(Plugin::client);
        let grant = match (given.grant.take(), &plugin) {
            (Some(grant), _) => grant,
            (None, None) => return Err(format!("no plugin of {} is registered", key.resource)),
            (None, Some(plugin)) => match self.ask(plugin, key, &mut given.ids).await {
                Ok(grant) => grant,
                Err(error) => {
                    let mine = |name: &str| name == key.container;
                    self.state.lock().records.release_of(&key.uid, &key.resource, mine);
                    return Err(error);
                }
            },
        };
        let whole = Given { ids: given.ids.clone(), grant: Some(grant.clone()) };
        self.state.lock().records.give(key, whole);
        if let Some(plugin) = plugin.filter(|p| p.prepares) {
            plugin.prepare(given.ids).await?;
        }
        Ok(grant)
    }

    /// Asks a plugin which devices it likes best, if it has an opinion, and what is needed to use them.
    async fn ask(&self, plugin: &plugin::Client, key: &Key, ids: &mut Vec<String>) -> Result<Grant, String> {
        if plugin.prefers {
            let free: Vec<String> = {
                let state = self.state.lock();
                let taken = state.taken(&key.resource);
                let own: BTreeSet<&str> = ids.iter().map(String::as_str).collect();
                let healthy = state.plugins.get(&key.resource).into_iter().flat_map(Plugin::healthy);
                healthy.filter(|id| !taken.contains(id) || own.contains(id)).map(String::from).collect()
            };
            let preferred = plugin.preferred(free.clone(), ids.len()).await?;
            let mut state = self.state.lock();
            let mut taken = state.taken(&key.resource);
            taken.retain(|id| !ids.iter().any(|own| own == id));
            let better = choose::better(ids, &preferred, &free, &taken);
            drop(taken);
            state.records.give(key, Given { ids: better.clone(), grant: None });
            *ids = better;
        }
        plugin.allocate(ids.clone()).await
    }

    /// The pod has ended: others can have its devices.
    pub(crate) fn release(&self, uid: &str) {
        self.state.lock().records.release(uid, |_| true);
    }
}

/// Whether a container of a pod was an init container that has ended when another one begins.
fn ended(pod: &Pod, name: &str, other: &str) -> bool {
    let inits = pod.spec.iter().flat_map(|s| s.init_containers.iter().flatten());
    name != other
        && inits.into_iter().any(|init| init.name == name && init.restart_policy.as_deref() != Some("Always"))
}

/// The devices that a container's limits ask for.
fn wanted(container: &Container) -> Vec<(String, usize)> {
    let limits = container.resources.iter().flat_map(|r| r.limits.iter().flatten());
    let count = |amount: &str| usize::try_from(amount.parse::<Quantity>().ok()?.value()).ok();
    limits
        .filter(|(name, _)| name.contains('/'))
        .filter_map(|(name, amount)| Some((name.clone(), count(&amount.0)?)))
        .filter(|(_, count)| *count > 0)
        .collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn limits_name_devices() {
        let container: Container = serde_json::from_value(json!({"name": "c", "resources": {"limits":
            {"cpu": "1", "example.com/gpu": "2", "example.com/none": "0", "hugepages-2Mi": "4Mi"}}}))
        .unwrap();
        assert_eq!(wanted(&container), [("example.com/gpu".to_owned(), 2)]);
    }

    #[test]
    fn devices_of_init_containers_are_free_for_the_rest() {
        let pod: Pod = serde_json::from_value(json!({"spec": {"containers": [{"name": "main"}],
            "initContainers": [{"name": "first"}, {"name": "sidecar", "restartPolicy": "Always"}]}}))
        .unwrap();
        for (name, other, expect) in [
            ("first", "main", true),
            ("first", "first", false),
            ("sidecar", "main", false),
            ("main", "x", false),
        ] {
            assert_eq!(ended(&pod, name, other), expect, "{name} {other}");
        }
    }

    #[tokio::test]
    async fn reservations_outlive_their_plugin_and_end_with_the_pod() {
        let dir = tempfile::tempdir().unwrap();
        let pods = ["a", "b"].map(String::from).into();
        let key = |uid: &str| Key { uid: uid.into(), container: "c".into(), resource: "e/r".into() };
        let devices = Devices::open(dir.path(), &pods).unwrap();
        {
            let mut state = devices.state.lock();
            state.records.learn("e/r");
            assert!(state.reserve(&key("a"), 1).unwrap_err().contains("no plugin of e/r"));
            state.plugins.insert("e/r".into(), Plugin::with(&[("d1", true), ("d2", false), ("d3", true)]));
            assert_eq!(state.amounts()["e/r"], (3, 2));
            assert_eq!(state.reserve(&key("a"), 1).unwrap().ids, ["d1"]);
            assert_eq!(state.reserve(&key("a"), 1).unwrap().ids, ["d1"], "the same again");
            assert!(state.reserve(&key("b"), 2).unwrap_err().ends_with("Requested: 2, Available: 1"));
            assert_eq!(state.reserve(&key("b"), 1).unwrap().ids, ["d3"]);
        }
        drop(devices);
        let devices = Devices::open(dir.path(), &pods).unwrap();
        assert_eq!(*devices.amounts().borrow(), Amounts::from([("e/r".into(), (0, 0))]));
        devices.release("a");
        let mut state = devices.state.lock();
        assert_eq!(state.reserve(&key("b"), 1).unwrap().ids, ["d3"], "without any plugin");
        state.plugins.insert("e/r".into(), Plugin::with(&[("d1", true), ("d3", true)]));
        assert_eq!(state.reserve(&key("c"), 1).unwrap().ids, ["d1"]);
    }
}
