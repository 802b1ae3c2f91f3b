//! What containers were given, on disk.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use crate::{containers::Device, engine::Mount};

/// One resource of one container of one pod.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(super) struct Key {
    pub(super) uid: String,
    pub(super) container: String,
    pub(super) resource: String,
}

/// What is needed to use devices.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Grant {
    /// Environment variables.
    pub(crate) env: BTreeMap<String, String>,
    /// Files and directories: on the machine, in the container, and whether only for reading.
    pub(crate) mounts: Vec<(PathBuf, String, bool)>,
    /// Devices: on the machine, in the container, and what may be done with them.
    pub(crate) devices: Vec<(PathBuf, String, String)>,
    /// Notes for the container runtime.
    pub(crate) annotations: BTreeMap<String, String>,
    /// Names that the container runtime looks up.
    pub(crate) cdi: Vec<String>,
}

impl Grant {
    pub(super) fn add(&mut self, other: Self) {
        self.env.extend(other.env);
        self.mounts.extend(other.mounts);
        self.devices.extend(other.devices);
        self.annotations.extend(other.annotations);
        self.cdi.extend(other.cdi);
    }

    /// Adds the variables that a container does not set itself.
    pub(crate) fn add_env(&self, env: &mut Vec<(String, String)>) {
        let known: BTreeSet<String> = env.iter().map(|(name, _)| name.clone()).collect();
        let fresh = self.env.iter().filter(|(name, _)| !known.contains(*name));
        env.extend(fresh.map(|(name, value)| (name.clone(), value.clone())));
    }

    /// Mounts where the pod has none.
    pub(crate) fn add_mounts(&self, mounts: &mut Vec<Mount>) {
        for (host, guest, read_only) in &self.mounts {
            if mounts.iter().all(|m| m.guest != *guest) {
                let (host, guest, read_only) = (host.clone(), guest.clone(), *read_only);
                mounts.push(Mount { host, guest, read_only, propagation: None });
            }
        }
    }

    /// The devices for the container runtime.
    pub(crate) fn devices(&self) -> impl Iterator<Item = Device> {
        let device = |(host, guest, permissions): &(PathBuf, String, String)| Device {
            host: host.clone(),
            guest: guest.clone(),
            permissions: permissions.clone(),
        };
        self.devices.iter().map(device)
    }
}

/// The devices of a container; without a grant their plugin has not answered yet.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Given {
    pub(super) ids: Vec<String>,
    pub(super) grant: Option<Grant>,
}

#[derive(Default, Serialize, Deserialize)]
struct Content {
    /// Resources that plugins have registered.
    resources: BTreeSet<String>,
    given: Vec<(Key, Given)>,
}

/// The record.
pub(super) struct Records {
    file: PathBuf,
    resources: BTreeSet<String>,
    given: BTreeMap<Key, Given>,
}

impl Records {
    /// What is in the file; nothing if it cannot be read.
    pub(super) fn open(file: &Path) -> Self {
        let content: Content =
            std::fs::read(file).ok().and_then(|text| serde_json::from_slice(&text).ok()).unwrap_or_default();
        Self { file: file.into(), resources: content.resources, given: content.given.into_iter().collect() }
    }

    pub(super) fn resources(&self) -> impl Iterator<Item = &str> {
        self.resources.iter().map(String::as_str)
    }

    pub(super) fn learn(&mut self, resource: &str) {
        if self.resources.insert(resource.into()) {
            self.save();
        }
    }

    pub(super) fn given(&self) -> impl Iterator<Item = (&Key, &Given)> {
        self.given.iter()
    }

    pub(super) fn of(&self, key: &Key) -> Option<&Given> {
        self.given.get(key)
    }

    pub(super) fn give(&mut self, key: &Key, given: Given) {
        if self.given.get(key) != Some(&given) {
            self.given.insert(key.clone(), given);
            self.save();
        }
    }

    /// Takes back what other pods have.
    pub(super) fn keep(&mut self, pods: &BTreeSet<String>) {
        self.retain(|key| pods.contains(&key.uid));
    }

    /// Takes back what containers of a pod have.
    pub(super) fn release(&mut self, uid: &str, container: impl Fn(&str) -> bool) {
        self.retain(|key| !(key.uid == uid && container(&key.container)));
    }

    /// Takes back what containers of a pod have of one resource.
    pub(super) fn release_of(&mut self, uid: &str, resource: &str, container: impl Fn(&str) -> bool) {
        self.retain(|key| !(key.uid == uid && key.resource == resource && container(&key.container)));
    }

    fn retain(&mut self, keep: impl Fn(&Key) -> bool) {
        let before = self.given.len();
        self.given.retain(|key, _| keep(key));
        if self.given.len() != before {
            self.save();
        }
    }

    /// In one step, so that a crash leaves the old or the new one.
    fn save(&self) {
        let given = self.given.iter().map(|(key, given)| (key.clone(), given.clone())).collect();
        let content = Content { resources: self.resources.clone(), given };
        let fresh = self.file.with_extension("new");
        let text = serde_json::to_vec(&content).map_err(std::io::Error::other);
        let written = text.and_then(|text| std::fs::write(&fresh, text));
        if let Err(error) = written.and_then(|()| std::fs::rename(&fresh, &self.file)) {
            tracing::warn!(file = %self.file.display(), %error, "cannot write down which devices are in use");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_container_has_its_own_variables_and_places() {
        let grant = Grant {
            env: [("A".into(), "device".into()), ("B".into(), "device".into())].into(),
            mounts: vec![("/h".into(), "/one".into(), true), ("/h".into(), "/two".into(), true)],
            ..Grant::default()
        };
        let mut env = vec![("A".to_string(), "own".to_string())];
        grant.add_env(&mut env);
        assert_eq!(env, [("A".into(), "own".into()), ("B".into(), "device".into())]);
        let own = Mount { host: "/own".into(), guest: "/one".into(), read_only: false, propagation: None };
        let mut mounts = vec![own.clone()];
        grant.add_mounts(&mut mounts);
        assert_eq!((mounts.len(), &mounts[0], mounts[1].guest.as_str()), (2, &own, "/two"));
    }
}
