//! What is known on disk of volumes that drivers may have mounted:
//! `plugins/kubernetes.io/csi/<driver>/<hash of the volume>/{globalmount,vol_data.json}` for a volume on this
//! node, `plugins/kubernetes.io/csi-pods/<uid>/<volume>/{mount,vol_data.json}` for its use by a pod.

use std::{
    fs, io,
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize, de::DeserializeOwned};
use sha2::{Digest, Sha256};

const FILE: &str = "vol_data.json";

/// A volume on this node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct OnNode {
    pub(super) driver: String,
    pub(super) handle: String,
    /// It has to be attached to the node.
    pub(super) attached: bool,
    /// It is staged, since the machine started with this.
    pub(super) staged: Option<String>,
}

/// The use of a volume by a pod.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct InPod {
    pub(super) driver: String,
    pub(super) handle: String,
    /// The driver was asked to publish it.
    pub(super) begun: bool,
    /// It is published, since the machine started with this.
    pub(super) published: Option<String>,
}

/// The directories.
pub(super) struct Records {
    volumes: PathBuf,
    pods: PathBuf,
    registry: PathBuf,
    /// Tells one start of the machine from another: mounts do not outlive it.
    boot: String,
}

fn make(dir: &Path) -> io::Result<()> {
    fs::DirBuilder::new().recursive(true).mode(0o750).create(dir)
}

impl Records {
    pub(super) fn open(data: &Path) -> io::Result<Self> {
        let plugins = data.join("plugins/kubernetes.io");
        let (volumes, pods, registry) =
            (plugins.join("csi"), plugins.join("csi-pods"), data.join("plugins_registry"));
        for dir in [&volumes, &pods, &registry] {
            make(dir)?;
        }
        // Drivers are told these paths, and stand elsewhere.
        let whole = |dir: PathBuf| dir.canonicalize();
        let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
        let boot = boot.trim().to_string();
        Ok(Self { volumes: whole(volumes)?, pods: whole(pods)?, registry: whole(registry)?, boot })
    }

    /// Where drivers register.
    pub(super) fn registry(&self) -> &Path {
        &self.registry
    }

    /// This start of the machine.
    pub(super) fn boot(&self) -> &str {
        &self.boot
    }

    fn of_volume(&self, driver: &str, handle: &str) -> PathBuf {
        self.volumes.join(driver).join(hex::encode(Sha256::digest(handle)))
    }

    fn of_use(&self, uid: &str, volume: &str) -> PathBuf {
        self.pods.join(uid).join(volume)
    }

    /// Where a volume is staged.
    pub(super) fn staging(&self, driver: &str, handle: &str) -> PathBuf {
        self.of_volume(driver, handle).join("globalmount")
    }

    /// Where a volume is published for a pod.
    pub(super) fn target(&self, uid: &str, volume: &str) -> PathBuf {
        self.of_use(uid, volume).join("mount")
    }

    pub(super) fn on_node(&self, driver: &str, handle: &str) -> Option<OnNode> {
        read(&self.of_volume(driver, handle))
    }

    pub(super) fn in_pod(&self, uid: &str, volume: &str) -> Option<InPod> {
        read(&self.of_use(uid, volume))
    }

    pub(super) fn save_on_node(&self, record: &OnNode) -> io::Result<()> {
        save(&self.of_volume(&record.driver, &record.handle), record)
    }

    pub(super) fn save_in_pod(&self, uid: &str, volume: &str, record: &InPod) -> io::Result<()> {
        save(&self.of_use(uid, volume), record)
    }

    /// Forgets a volume whose driver has freed it.
    pub(super) fn forget_on_node(&self, driver: &str, handle: &str) -> io::Result<()> {
        let dir = self.of_volume(driver, handle);
        forget(&dir, &dir.join("globalmount"))
    }

    /// Forgets a use that its driver has ended.
    pub(super) fn forget_in_pod(&self, uid: &str, volume: &str) -> io::Result<()> {
        let dir = self.of_use(uid, volume);
        forget(&dir, &dir.join("mount"))?;
        // It stays while other volumes are in it.
        let _ = fs::remove_dir(self.pods.join(uid));
        Ok(())
    }

    /// Pods that use volumes.
    pub(super) fn pods(&self) -> Vec<String> {
        names(&self.pods)
    }

    /// Volumes that a pod uses.
    pub(super) fn of_pod(&self, uid: &str) -> Vec<String> {
        names(&self.pods.join(uid))
    }

    pub(super) fn holds(&self, uid: &str) -> bool {
        !uid.is_empty() && self.pods.join(uid).exists()
    }

    /// Whether a volume has any other use than this one.
    pub(super) fn is_used_beside(&self, record: &InPod, uid: &str, volume: &str) -> bool {
        let same = |of: &str, name: &str| {
            let used = self.in_pod(of, name);
            used.is_some_and(|u| u.driver == record.driver && u.handle == record.handle)
        };
        self.pods()
            .iter()
            .any(|of| self.of_pod(of).iter().any(|name| (of != uid || name != volume) && same(of, name)))
    }

    /// Names, as nodes list them, of volumes that may not be detached.
    pub(super) fn in_use(&self) -> Vec<String> {
        let drivers = names(&self.volumes);
        let dirs = drivers.iter().flat_map(|driver| {
            let dir = self.volumes.join(driver);
            names(&dir).into_iter().map(move |name| dir.join(name))
        });
        let records = dirs.filter_map(|dir| read::<OnNode>(&dir)).filter(|record| record.attached);
        records.map(|r| format!("kubernetes.io/csi/{}^{}", r.driver, r.handle)).collect()
    }
}

/// Names of what is in a directory, in order.
fn names(dir: &Path) -> Vec<String> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    let mut names: Vec<String> = entries.filter_map(|e| e.file_name().into_string().ok()).collect();
    names.sort();
    names
}

fn read<T: DeserializeOwned>(dir: &Path) -> Option<T> {
    serde_json::from_slice(&fs::read(dir.join(FILE)).ok()?).ok()
}

/// In one step, so that a crash leaves the old or the new one.
fn save(dir: &Path, record: &impl Serialize) -> io::Result<()> {
    make(dir)?;
    let fresh = dir.join(format!("{FILE}.new"));
    fs::write(&fresh, serde_json::to_vec(record)?)?;
    fs::rename(fresh, dir.join(FILE))
}

/// Removes what is empty, the record last; what is still mounted is not.
fn forget(dir: &Path, place: &Path) -> io::Result<()> {
    let gone = |outcome: io::Result<()>| match outcome {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(io::Error::new(error.kind(), format!("{}: {error}", place.display())))
        }
        _ => Ok(()),
    };
    match fs::symlink_metadata(place) {
        Ok(meta) if meta.is_dir() => gone(fs::remove_dir(place))?,
        Ok(_) => gone(fs::remove_file(place))?,
        Err(_) => {}
    }
    gone(fs::remove_file(dir.join(FILE)))?;
    gone(fs::remove_dir(dir))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_outlive_the_agent_and_content_outlives_them() {
        let data = tempfile::tempdir().unwrap();
        let records = Records::open(data.path()).unwrap();
        let (driver, handle) = ("d.example.com".to_string(), "../odd handle".to_string());
        let node = OnNode { driver: driver.clone(), handle: handle.clone(), attached: true, staged: None };
        records.save_on_node(&node).unwrap();
        let used = InPod {
            driver: driver.clone(),
            handle: handle.clone(),
            begun: true,
            published: Some("b".into()),
        };
        records.save_in_pod("uid", "v", &used).unwrap();
        let records = Records::open(data.path()).unwrap();
        assert_eq!(records.on_node(&driver, &handle), Some(node));
        assert_eq!(records.in_pod("uid", "v"), Some(used.clone()));
        assert_eq!(records.in_use(), ["kubernetes.io/csi/d.example.com^../odd handle"]);
        assert!(records.is_used_beside(&used, "uid", "w") && !records.is_used_beside(&used, "uid", "v"));
        assert!(records.holds("uid") && !records.holds("other"));
        assert_eq!((records.pods(), records.of_pod("uid")), (vec!["uid".into()], vec!["v".into()]));

        // A mount that is still there is neither emptied nor forgotten.
        let target = records.target("uid", "v");
        fs::create_dir(&target).unwrap();
        fs::write(target.join("data"), "precious").unwrap();
        assert!(records.forget_in_pod("uid", "v").is_err());
        assert!(records.holds("uid") && target.join("data").exists());
        fs::remove_file(target.join("data")).unwrap();
        records.forget_in_pod("uid", "v").unwrap();
        records.forget_in_pod("uid", "v").unwrap();
        records.forget_on_node(&driver, &handle).unwrap();
        assert!(!records.holds("uid") && records.in_use().is_empty());
    }
}
