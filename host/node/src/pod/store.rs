//! The agent's own record of its pods on disk: `<pods>/<uid>/{pod.json,state.json}`, beside the
//! pod's volumes. A restarted agent goes on from here, with or without the API. The directory of a pod that
//! has left is set aside under another name at once, and removed when there is time.

use std::{
    fs, io,
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
    sync::Arc,
};

use serde::Serialize;
use wasmk_api::k8s_openapi::api::core::v1::Pod;

use super::state::PodState;

/// What the names of directories begin with that are to be removed.
const ASIDE: &str = ".gone-";

/// A pod found on disk.
pub(crate) struct Known {
    /// As it was last seen in the API.
    pub pod: Arc<Pod>,
    /// What was known of it.
    pub state: PodState,
}

/// All pods on disk; a damaged record is removed, for the API knows better, and so is what was set aside.
pub(crate) fn load(pods: &Path) -> Vec<Known> {
    let entries = fs::read_dir(pods).into_iter().flatten().flatten();
    let (aside, kept): (Vec<_>, Vec<_>) =
        entries.partition(|e| e.file_name().as_encoded_bytes().starts_with(ASIDE.as_bytes()));
    aside.iter().for_each(|entry| remove(&entry.path()));
    kept.iter().filter_map(|entry| read(&entry.path())).collect()
}

/// Removes a directory with all that is in it, if it is there. May take long.
pub(super) fn remove(dir: &Path) {
    if let Err(error) = fs::remove_dir_all(dir)
        && error.kind() != io::ErrorKind::NotFound
    {
        tracing::warn!(dir = %dir.display(), %error, "cannot remove a directory of a pod");
    }
}

fn read(dir: &Path) -> Option<Known> {
    let pod = fs::read(dir.join("pod.json")).ok().and_then(|b| serde_json::from_slice(&b).ok());
    let state = fs::read(dir.join("state.json")).ok().and_then(|b| serde_json::from_slice(&b).ok());
    if let (Some(pod), Some(state)) = (pod, state) {
        return Some(Known { pod: Arc::new(pod), state });
    }
    tracing::warn!(dir = %dir.display(), "the record of a pod is damaged and is removed");
    let _ = fs::remove_dir_all(dir);
    None
}

/// The record of one pod.
pub(super) struct Record {
    dir: PathBuf,
    pod: Option<Arc<Pod>>,
    state: Option<PodState>,
}

impl Record {
    pub(super) fn new(pods: &Path, uid: &str) -> Self {
        Self { dir: pods.join(uid), pod: None, state: None }
    }

    /// The pod's own directory.
    pub(super) fn dir(&self) -> &Path {
        &self.dir
    }

    /// Writes what changed since the last call.
    pub(super) fn save(&mut self, pod: &Arc<Pod>, state: &PodState) -> io::Result<()> {
        if self.state.is_none() && self.pod.is_none() {
            fs::DirBuilder::new().recursive(true).mode(0o700).create(&self.dir)?;
        }
        if !self.pod.as_ref().is_some_and(|p| same(p, pod)) {
            replace(&self.dir, "pod.json", &**pod)?;
            self.pod = Some(pod.clone());
        }
        if self.state.as_ref() != Some(state) {
            replace(&self.dir, "state.json", state)?;
            self.state = Some(state.clone());
        }
        Ok(())
    }

    /// Takes the pod off the record at once; where its directory now is, if it had one.
    pub(super) fn set_aside(&self) -> Option<PathBuf> {
        let name = self.dir.file_name()?.to_str()?;
        let aside = self.dir.with_file_name(format!("{ASIDE}{name}"));
        match fs::rename(&self.dir, &aside) {
            Ok(()) => Some(aside),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => {
                tracing::warn!(dir = %self.dir.display(), %error, "cannot set the directory of a pod aside");
                Some(self.dir.clone())
            }
        }
    }
}

/// Whether a restarted agent would do the same with both: the status is computed anew anyway.
fn same(a: &Arc<Pod>, b: &Arc<Pod>) -> bool {
    let (m, n) = (&a.metadata, &b.metadata);
    Arc::ptr_eq(a, b)
        || (a.spec == b.spec
            && m.labels == n.labels
            && m.annotations == n.annotations
            && m.deletion_timestamp == n.deletion_timestamp
            && m.deletion_grace_period_seconds == n.deletion_grace_period_seconds)
}

/// Replaces a file in one step, so that a crash leaves the old or the new one.
fn replace(dir: &Path, name: &str, value: &impl Serialize) -> io::Result<()> {
    let temporary = dir.join(format!("{name}.new"));
    fs::write(&temporary, serde_json::to_vec(value)?)?;
    fs::rename(temporary, dir.join(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_set_aside_is_off_the_record_and_goes_with_the_next_start() {
        let pods = tempfile::tempdir().unwrap();
        let pod = Arc::new(Pod::default());
        for uid in ["stays", "leaves"] {
            let mut record = Record::new(pods.path(), uid);
            record.save(&pod, &PodState::default()).unwrap();
            fs::create_dir(record.dir().join("volumes")).unwrap();
        }
        let leaves = Record::new(pods.path(), "leaves");
        let aside = leaves.set_aside().unwrap();
        assert!(aside.join("volumes").is_dir() && !leaves.dir().exists());
        assert_eq!(leaves.set_aside(), None, "it has gone already");
        assert_eq!(load(pods.path()).len(), 1);
        let left: Vec<_> = fs::read_dir(pods.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
        assert_eq!(left, ["stays"]);
    }
}
