//! Images unpacked into directories, by the digest of their manifest, on disk.
//!
//! `trees/sha256/<hex>/root` is an image's content, `trees/refs/<hash of the reference>.json` a record for
//! each name it was fetched by. A record is written after its content is on disk.

use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use nix::sys::statvfs::statvfs;
use parking_lot::RwLock;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

/// An image's content as a directory, for reading only.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tree {
    reference: String,
    digest: String,
    size: u64,
    #[serde(skip)]
    path: PathBuf,
}

impl Tree {
    /// The reference it was pulled by, in full.
    pub fn reference(&self) -> &str {
        &self.reference
    }

    /// Digest of its manifest.
    pub fn digest(&self) -> &str {
        &self.digest
    }

    /// Bytes that were unpacked.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// The directory.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

pub(super) struct Trees {
    content: PathBuf,
    refs: PathBuf,
    incoming: PathBuf,
    /// Held for reading while a tree gets a name, for writing while one is removed.
    collecting: RwLock<()>,
}

/// A directory on its way into the store; it vanishes unless it is kept.
pub(super) struct Fresh {
    dir: PathBuf,
}

impl Fresh {
    /// Where the content goes.
    pub(super) fn root(&self) -> PathBuf {
        self.dir.join("root")
    }
}

impl Drop for Fresh {
    fn drop(&mut self) {
        // Gone already if it was kept.
        let _ = fs::remove_dir_all(&self.dir);
    }
}

impl Trees {
    pub(super) fn open(dir: PathBuf) -> io::Result<Self> {
        let trees = Self {
            content: dir.join("sha256"),
            refs: dir.join("refs"),
            incoming: dir.join("incoming"),
            collecting: RwLock::new(()),
        };
        // What a crash left half-done.
        let _ = fs::remove_dir_all(&trees.incoming);
        for dir in [&trees.content, &trees.refs, &trees.incoming] {
            fs::create_dir_all(dir)?;
        }
        Ok(trees)
    }

    /// A new directory, and how many bytes may go there: never more than half of what the disk has left.
    pub(super) fn fresh(&self, most: u64) -> io::Result<(Fresh, u64)> {
        static COUNT: std::sync::atomic::AtomicU64 = std::sync::atomic::AtomicU64::new(0);
        let count = COUNT.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let fresh = Fresh { dir: self.incoming.join(format!("{}-{count}", std::process::id())) };
        fs::create_dir_all(fresh.root())?;
        fs::set_permissions(fresh.root(), fs::Permissions::from_mode(0o755))?;
        let disk = statvfs(&self.incoming)?;
        let free = disk.blocks_available().saturating_mul(disk.fragment_size());
        Ok((fresh, most.min(free / 2)))
    }

    fn dir(&self, digest: &str) -> io::Result<PathBuf> {
        let hex = digest.strip_prefix("sha256:").filter(|hex| hex.len() == 64);
        match hex.filter(|hex| hex.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))) {
            Some(hex) => Ok(self.content.join(hex)),
            None => Err(io::Error::other(format!("{digest:?} is no sha256 digest"))),
        }
    }

    fn record(&self, reference: &str) -> PathBuf {
        self.refs.join(format!("{}.json", hex::encode(Sha256::digest(reference))))
    }

    /// Gives content that is here another name; `None` if it is not here.
    pub(super) fn name(&self, reference: &str, digest: &str) -> io::Result<Option<Tree>> {
        let _adding = self.collecting.read();
        let dir = self.dir(digest)?;
        let Some(size) = fs::read_to_string(dir.join("size")).ok().and_then(|text| text.parse().ok()) else {
            return Ok(None);
        };
        let path = dir.join("root");
        let tree = Tree { reference: reference.into(), digest: digest.into(), size, path };
        let record = self.record(reference);
        let fresh = record.with_extension(format!("{}.new", hex::encode(&Sha256::digest(digest)[..8])));
        fs::write(&fresh, serde_json::to_vec(&tree)?)?;
        fs::rename(fresh, record)?;
        Ok(Some(tree))
    }

    /// Makes unpacked content visible.
    pub(super) fn keep(&self, fresh: Fresh, reference: &str, digest: &str, size: u64) -> io::Result<Tree> {
        fs::write(fresh.dir.join("size"), size.to_string())?;
        nix::unistd::syncfs(&fs::File::open(&fresh.dir)?)?;
        let dir = self.dir(digest)?;
        match fs::rename(&fresh.dir, &dir) {
            // Somebody else was quicker.
            Err(_) if dir.join("size").exists() => {}
            renamed => renamed?,
        }
        self.name(reference, digest)?.ok_or_else(|| io::Error::other("an image was removed meanwhile"))
    }

    pub(super) fn find(&self, reference: &str) -> Option<Tree> {
        self.read(&self.record(reference)).filter(|tree| tree.reference == reference)
    }

    fn read(&self, record: &Path) -> Option<Tree> {
        let mut tree: Tree = serde_json::from_slice(&fs::read(record).ok()?).ok()?;
        let dir = self.dir(&tree.digest).ok()?;
        tree.path = dir.join("root");
        dir.join("size").exists().then_some(tree)
    }

    /// All trees by all their names; one that has lost its names is under none.
    pub(super) fn list(&self) -> io::Result<Vec<Tree>> {
        let mut trees = Vec::new();
        for entry in fs::read_dir(&self.refs)? {
            trees.extend(self.read(&entry?.path()));
        }
        for entry in fs::read_dir(&self.content)? {
            let entry = entry?;
            let digest = format!("sha256:{}", entry.file_name().to_string_lossy());
            if trees.iter().all(|tree| tree.digest != digest) {
                let path = entry.path().join("root");
                trees.push(Tree { reference: String::new(), digest, size: 0, path });
            }
        }
        trees.sort_by(|a, b| a.reference.cmp(&b.reference));
        Ok(trees)
    }

    /// Removes content with all its names.
    pub(super) fn remove(&self, digest: &str) -> io::Result<()> {
        let aside = {
            let _alone = self.collecting.write();
            let dir = self.dir(digest)?;
            for tree in self.list()?.iter().filter(|tree| tree.digest == digest && !tree.reference.is_empty())
            {
                fs::remove_file(self.record(&tree.reference))?;
            }
            let (fresh, _) = self.fresh(0)?;
            match fs::rename(&dir, fresh.root()) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => fresh,
            }
        };
        drop(aside);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn trees_have_names_and_go_with_all_of_them() {
        let dir = tempfile::tempdir().unwrap();
        let open = || Trees::open(dir.path().to_owned()).unwrap();
        let trees = open();
        let digest = format!("sha256:{}", "a".repeat(64));
        assert_eq!(trees.name("r/one:1", &digest).unwrap(), None);
        let (fresh, room) = trees.fresh(100).unwrap();
        assert_eq!(room, 100);
        fs::write(fresh.root().join("file"), "content").unwrap();
        let one = trees.keep(fresh, "r/one:1", &digest, 7).unwrap();
        assert_eq!(fs::read(one.path().join("file")).unwrap(), b"content");
        // Unpacked a second time at the same time, it is the same.
        let (fresh, _) = trees.fresh(100).unwrap();
        assert_eq!(trees.keep(fresh, "r/one:1", &digest, 7).unwrap(), one);
        trees.name("r/two:1", &digest).unwrap().unwrap();
        assert_eq!(open().find("r/two:1").unwrap().path(), one.path());
        assert_eq!(trees.list().unwrap().len(), 2);
        // A name may come to stand for other content.
        fs::remove_file(trees.record("r/one:1")).unwrap();
        fs::remove_file(trees.record("r/two:1")).unwrap();
        assert_eq!(trees.list().unwrap()[0].digest(), digest);
        trees.remove(&digest).unwrap();
        trees.remove(&digest).unwrap();
        assert_eq!((trees.list().unwrap(), fs::read_dir(&trees.incoming).unwrap().count()), (vec![], 0));
        assert!(trees.remove("sha256:../../x").is_err());
    }
}
