//! Drivers come and go: each has a socket in the directory where plugins register. What is there is asked
//! who it is, looked at, written down in the node's CSINode, and told so.

use std::{
    collections::{BTreeMap, HashMap},
    os::unix::fs::{FileTypeExt, MetadataExt},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use futures::future::join_all;
use kube::{
    Api,
    api::{Patch, PatchParams, PostParams},
};
use serde_json::json;
use wasmk_api::k8s_openapi::{
    api::{
        core::v1::Node,
        storage::v1::{CSINode, CSINodeDriver, CSINodeSpec, VolumeNodeResources},
    },
    apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference},
};
use wasmk_csi::{
    Driver, Registration,
    registration::{InfoRequest, RegistrationStatus},
    v1::{
        GetPluginCapabilitiesRequest, GetPluginInfoRequest, NodeGetCapabilitiesRequest, NodeGetInfoRequest,
        ProbeRequest, node_service_capability::Type,
    },
};

use super::{Csi, Registered, rest::BackOff};

/// How often the directory is looked at.
const POLL: Duration = Duration::from_secs(1);
/// Sockets looked at at most.
const MOST: usize = 256;
/// What plugins call themselves that are storage drivers.
const KIND: &str = "CSIPlugin";

/// A socket that was seen.
struct Seen {
    /// Tells it from a later one of the same name.
    identity: (u64, i64, i64),
    /// The driver behind it, once it is registered.
    driver: Option<String>,
    rest: BackOff,
}

/// Follows the directory for ever.
pub(super) async fn follow(csi: &Arc<Csi>) {
    let mut seen: HashMap<PathBuf, Seen> = HashMap::new();
    let mut ticks = tokio::time::interval(POLL);
    loop {
        ticks.tick().await;
        let there = sockets(csi.records.registry());
        let gone: Vec<PathBuf> = seen
            .iter()
            .filter(|(path, s)| there.get(*path) != Some(&s.identity))
            .map(|(path, _)| path.clone())
            .collect();
        for path in gone {
            let name = seen.remove(&path).and_then(|s| s.driver);
            // One that was replaced comes back at once; the node's object need not say it was away.
            let replaced = there.contains_key(&path);
            if let Some(name) = name.filter(|_| !replaced) {
                csi.forget_driver(&name).await;
            }
        }
        for (path, identity) in there {
            let fresh = || Seen { identity, driver: None, rest: BackOff::default() };
            seen.entry(path).or_insert_with(fresh);
        }
        let due = seen.iter_mut().filter(|(_, s)| s.driver.is_none() && !s.rest.rests());
        join_all(due.map(|(path, seen)| csi.try_register(path, seen))).await;
    }
}

/// The sockets in a directory.
fn sockets(dir: &Path) -> BTreeMap<PathBuf, (u64, i64, i64)> {
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    let socket = |entry: std::fs::DirEntry| {
        let hidden = entry.file_name().as_encoded_bytes().starts_with(b".");
        let meta = entry.metadata().ok().filter(|m| m.file_type().is_socket() && !hidden)?;
        Some((entry.path(), (meta.ino(), meta.ctime(), meta.ctime_nsec())))
    };
    entries.filter_map(socket).take(MOST).collect()
}

impl Csi {
    async fn try_register(&self, path: &Path, seen: &mut Seen) {
        let registration = Registration::new(path);
        let outcome = self.register(&registration).await;
        let error = outcome.as_ref().err().cloned().unwrap_or_default();
        let status = RegistrationStatus { plugin_registered: outcome.is_ok(), error };
        // A driver that does not listen is registered all the same.
        let told = registration.notify_registration_status(status).await;
        match outcome {
            Ok(name) => {
                tracing::info!(driver = name, "a storage driver has registered");
                if let Err(error) = told {
                    tracing::debug!(%error, "a storage driver does not hear that it is registered");
                }
                seen.driver = Some(name);
            }
            Err(error) => {
                tracing::debug!(socket = %path.display(), error, "a plugin cannot be registered yet");
                seen.rest.failed();
            }
        }
    }

    async fn register(&self, registration: &Registration) -> Result<String, String> {
        let info = registration.get_info(InfoRequest {}).await.map_err(|e| e.to_string())?;
        if info.r#type != KIND {
            return Err(format!("plugins of type {:?} are not taken, only {KIND}", info.r#type));
        }
        if !info.supported_versions.iter().any(|v| v.trim_start_matches('v').starts_with("1.")) {
            let versions = info.supported_versions.join(", ");
            return Err(format!("driver {} speaks versions {versions}; 1.x is needed", info.name));
        }
        if info.name.is_empty() || info.name.contains('/') || info.name.starts_with('.') {
            return Err(format!("{:?} is no name of a driver", info.name));
        }
        let driver = look(&info.name, Driver::new(Path::new(&info.endpoint))).await?;
        self.write_driver(&driver).await.map_err(|e| format!("CSINode of this node: {e}"))?;
        self.drivers.lock().insert(info.name.clone(), Arc::new(driver));
        Ok(info.name)
    }

    async fn forget_driver(&self, name: &str) {
        tracing::info!(driver = name, "a storage driver has left");
        self.drivers.lock().remove(name);
        let kept = |driver: &CSINodeDriver| driver.name != name;
        if let Err(error) = self.change_drivers(|all| all.retain(kept)).await {
            tracing::warn!(%error, driver = name, "cannot take a driver off the node's CSINode");
        }
    }

    async fn write_driver(&self, driver: &Registered) -> Result<(), kube::Error> {
        let topology = &driver.topology;
        let entry = CSINodeDriver {
            name: driver.name.clone(),
            node_id: driver.node_id.clone(),
            topology_keys: Some(topology.keys().cloned().collect()).filter(|k: &Vec<_>| !k.is_empty()),
            allocatable: i32::try_from(driver.most_volumes)
                .ok()
                .filter(|count| *count > 0)
                .map(|count| VolumeNodeResources { count: Some(count) }),
        };
        // Another name of the node is another driver: one entry cannot change it.
        let stale = |d: &CSINodeDriver| d.name == entry.name && d.node_id != entry.node_id;
        self.change_drivers(|all| all.retain(|d| !stale(d))).await?;
        self.change_drivers(|all| {
            all.retain(|d| d.name != entry.name);
            all.push(entry.clone());
        })
        .await?;
        if topology.is_empty() {
            return Ok(());
        }
        let nodes: Api<Node> = Api::all(self.client.clone());
        let labels = Patch::Merge(json!({"metadata": {"labels": topology}}));
        nodes.patch(&self.node, &PatchParams::default(), &labels).await.map(drop)
    }

    /// Changes the drivers of the node's object, which is made when it is missing.
    async fn change_drivers(&self, change: impl FnOnce(&mut Vec<CSINodeDriver>)) -> Result<(), kube::Error> {
        let api: Api<CSINode> = Api::all(self.client.clone());
        let current = match api.get(&self.node).await {
            // Who may not read what is not there is told so.
            Err(kube::Error::Api(status)) if matches!(status.code, 403 | 404) => {
                self.make_object(&api).await?
            }
            other => other?,
        };
        let mut drivers = current.spec.drivers.clone();
        change(&mut drivers);
        if drivers == current.spec.drivers {
            return Ok(());
        }
        let patch = Patch::Merge(json!({
            "metadata": {"resourceVersion": current.metadata.resource_version},
            "spec": {"drivers": drivers},
        }));
        api.patch(&self.node, &PatchParams::default(), &patch).await.map(drop)
    }

    async fn make_object(&self, api: &Api<CSINode>) -> Result<CSINode, kube::Error> {
        let nodes: Api<Node> = Api::all(self.client.clone());
        let node = nodes.get(&self.node).await?;
        let owner = OwnerReference {
            api_version: "v1".into(),
            kind: "Node".into(),
            name: self.node.clone(),
            uid: node.metadata.uid.unwrap_or_default(),
            ..OwnerReference::default()
        };
        let object = CSINode {
            metadata: ObjectMeta {
                name: Some(self.node.clone()),
                owner_references: Some(vec![owner]),
                ..ObjectMeta::default()
            },
            spec: CSINodeSpec { drivers: Vec::new() },
        };
        api.create(&PostParams::default(), &object).await
    }
}

/// Asks a driver who it is and what it can do.
async fn look(name: &str, client: Driver) -> Result<Registered, String> {
    let words = |e: wasmk_csi::Error| e.to_string();
    let info = client.get_plugin_info(GetPluginInfoRequest {}).await.map_err(words)?;
    if info.name != name {
        return Err(format!("the driver calls itself {:?}, its registration {name:?}", info.name));
    }
    client.get_plugin_capabilities(GetPluginCapabilitiesRequest {}).await.map_err(words)?;
    let probe = client.probe(ProbeRequest {}).await.map_err(words)?;
    if probe.ready.is_some_and(|ready| !ready.value) {
        return Err(format!("driver {name} is not ready yet"));
    }
    let can = client.node_get_capabilities(NodeGetCapabilitiesRequest {}).await.map_err(words)?;
    let abilities = can.capabilities.into_iter().filter_map(|c| match c.r#type? {
        Type::Rpc(rpc) => Some(rpc.r#type()),
    });
    let abilities = abilities.collect();
    let node = client.node_get_info(NodeGetInfoRequest {}).await.map_err(words)?;
    if node.node_id.is_empty() {
        return Err(format!("driver {name} has no name for this node"));
    }
    Ok(Registered {
        name: name.into(),
        client,
        node_id: node.node_id,
        most_volumes: node.max_volumes_per_node,
        topology: node.accessible_topology.map(|t| t.segments.into_iter().collect()).unwrap_or_default(),
        abilities,
    })
}
