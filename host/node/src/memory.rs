//! A directory that is never on a disk, for secrets and volumes of medium `Memory`.

use std::{
    fs::DirBuilder,
    os::unix::fs::{DirBuilderExt, MetadataExt},
    path::{Path, PathBuf},
};

use sha2::{Digest, Sha256};

/// Where Linux keeps files in memory that need no privilege.
const MEMORY: &str = "/dev/shm";

/// The part of it that pods have nothing to do with: Secrets kept for the time without the API.
pub(crate) const SOURCES: &str = "sources";

/// The agent's own directory in memory, told from other agents' by where they keep their things;
/// `None` where the system has no such place, and then disks are used.
pub(crate) fn open(home: &Path) -> Option<PathBuf> {
    let home = home.canonicalize().unwrap_or_else(|_| home.into());
    let digest = Sha256::digest(home.as_os_str().as_encoded_bytes());
    let name: String = digest.iter().take(8).map(|b| format!("{b:02x}")).collect();
    let dir = Path::new(MEMORY).join(format!("wasmk-{name}"));
    // Anybody may make directories there: one that is not ours is not used.
    let _ = DirBuilder::new().mode(0o700).create(&dir);
    let meta = dir.symlink_metadata().ok()?;
    let ours = meta.is_dir() && meta.uid() == nix::unistd::geteuid().as_raw() && meta.mode() & 0o077 == 0;
    ours.then_some(dir)
}

/// Removes the directory when no pod uses it.
pub(crate) fn close(dir: &Path) {
    let mut left = std::fs::read_dir(dir).into_iter().flatten().flatten();
    if left.all(|entry| entry.file_name() == SOURCES) {
        // What fails to go now is found by the next start.
        let _ = std::fs::remove_dir_all(dir);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_agent_has_its_own() {
        let homes = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
        if !Path::new(MEMORY).is_dir() {
            assert_eq!(open(homes[0].path()), None);
            return;
        }
        let dirs = homes.each_ref().map(|h| open(h.path()).unwrap());
        assert_ne!(dirs[0], dirs[1]);
        assert_eq!(open(homes[0].path()).as_ref(), Some(&dirs[0]));
        for dir in &dirs {
            std::fs::create_dir(dir.join("a-pod")).unwrap();
            std::fs::create_dir(dir.join(SOURCES)).unwrap();
            close(dir);
            assert!(dir.join(SOURCES).exists(), "a pod still needs it");
            std::fs::remove_dir(dir.join("a-pod")).unwrap();
            close(dir);
            assert!(!dir.exists());
        }
    }
}
