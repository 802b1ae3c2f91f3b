//! Content by digest and images by reference, on disk.
//!
//! `blobs/sha256/<hex>` holds Wasm, `refs/<hash of the reference>.json` one record for each image. A
//! record is written after its content, so an image that is found is whole.

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use parking_lot::RwLock;
use sha2::{Digest, Sha256};

use super::Image;

pub(super) struct Store {
    blobs: PathBuf,
    refs: PathBuf,
    incoming: PathBuf,
    /// Held for reading while an image is added, for writing while content is removed: what was just
    /// stored and is not referenced yet must not be taken for garbage.
    collecting: RwLock<()>,
}

impl Store {
    pub(super) fn open(dir: PathBuf) -> io::Result<Self> {
        let store = Self {
            blobs: dir.join("blobs/sha256"),
            refs: dir.join("refs"),
            incoming: dir.join("incoming"),
            collecting: RwLock::new(()),
        };
        // What a crash left half-written.
        let _ = fs::remove_dir_all(&store.incoming);
        for dir in [&store.blobs, &store.refs, &store.incoming] {
            fs::create_dir_all(dir)?;
        }
        Ok(store)
    }

    /// A new file for content on its way; it vanishes unless it is kept.
    pub(super) fn incoming(&self) -> io::Result<Incoming> {
        static COUNT: std::sync::atomic::AtomicU64 = std::sync::atomic::AtomicU64::new(0);
        let count = COUNT.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let path = self.incoming.join(format!("{}-{count}", std::process::id()));
        Ok(Incoming { file: fs::File::create_new(&path)?, path })
    }

    fn blob(&self, digest: &str) -> io::Result<PathBuf> {
        let hex = digest.strip_prefix("sha256:").filter(|hex| hex.len() == 64);
        match hex.filter(|hex| hex.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))) {
            Some(hex) => Ok(self.blobs.join(hex)),
            None => {
                Err(io::Error::new(io::ErrorKind::InvalidInput, format!("{digest:?} is no sha256 digest")))
            }
        }
    }

    /// Whether content of this digest and length is here.
    pub(super) fn has(&self, digest: &str, size: u64) -> bool {
        self.blob(digest).and_then(fs::metadata).is_ok_and(|found| found.len() == size)
    }

    /// Makes verified content and its image visible.
    pub(super) fn keep(&self, content: Option<Incoming>, mut image: Image) -> io::Result<Image> {
        let _adding = self.collecting.read();
        image.module_path = self.blob(&image.module_digest)?;
        if let Some(content) = content {
            content.file.sync_data()?;
            fs::rename(&content.path, &image.module_path)?;
        }
        let mut record = self.incoming()?;
        record.file.write_all(&serde_json::to_vec(&image)?)?;
        record.file.sync_data()?;
        fs::rename(&record.path, self.record(&image.reference))?;
        Ok(image)
    }

    fn record(&self, reference: &str) -> PathBuf {
        self.refs.join(format!("{}.json", hex::encode(Sha256::digest(reference))))
    }

    pub(super) fn find(&self, reference: &str) -> Option<Image> {
        self.read(&self.record(reference)).filter(|image| image.reference == reference)
    }

    /// The image of a record; `None` if the record or the content it names is damaged or gone.
    fn read(&self, record: &Path) -> Option<Image> {
        let mut image: Image = serde_json::from_slice(&fs::read(record).ok()?).ok()?;
        image.module_path = self.blob(&image.module_digest).ok()?;
        self.has(&image.module_digest, image.module_size).then_some(image)
    }

    pub(super) fn list(&self) -> io::Result<Vec<Image>> {
        let mut images = Vec::new();
        for entry in fs::read_dir(&self.refs)? {
            images.extend(self.read(&entry?.path()));
        }
        images.sort_by(|a, b| a.reference.cmp(&b.reference));
        Ok(images)
    }

    pub(super) fn remove(&self, reference: &str) -> io::Result<u64> {
        let _alone = self.collecting.write();
        let Some(image) = self.find(reference) else {
            return Ok(0);
        };
        fs::remove_file(self.record(reference))?;
        if self.list()?.iter().any(|other| other.module_digest == image.module_digest) {
            return Ok(0);
        }
        fs::remove_file(&image.module_path)?;
        Ok(image.module_size)
    }
}

/// Content on its way into the store.
pub(super) struct Incoming {
    pub(super) file: fs::File,
    pub(super) path: PathBuf,
}

impl Drop for Incoming {
    fn drop(&mut self) {
        // Gone already if it was kept.
        let _ = fs::remove_file(&self.path);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::prepare::digest_of;

    fn add(store: &Store, reference: &str, wasm: &[u8]) -> Image {
        let mut content = store.incoming().unwrap();
        content.file.write_all(wasm).unwrap();
        let image = Image {
            reference: reference.into(),
            digest: "sha256:manifest".into(),
            module_digest: digest_of(wasm),
            module_size: wasm.len() as u64,
            annotations: Default::default(),
            config: Default::default(),
            module_path: PathBuf::new(),
        };
        store.keep(Some(content), image).unwrap()
    }

    #[test]
    fn shared_content_goes_with_its_last_image() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path().to_owned()).unwrap();
        let one = add(&store, "r/one:1", b"same");
        add(&store, "r/two:1", b"same");
        assert_eq!(store.list().unwrap().len(), 2);
        assert_eq!(store.remove("r/one:1").unwrap(), 0);
        assert_eq!(fs::read(&one.module_path).unwrap(), b"same");
        assert_eq!(store.remove("r/two:1").unwrap(), 4);
        assert!(!one.module_path.exists());
        assert_eq!(store.remove("r/two:1").unwrap(), 0);
    }

    #[test]
    fn damaged_images_are_not_found() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path().to_owned()).unwrap();
        let image = add(&store, "r/one:1", b"wasm");
        let again = Store::open(dir.path().to_owned()).unwrap();
        assert_eq!(again.find("r/one:1"), Some(image.clone()));
        fs::write(&image.module_path, b"wa").unwrap();
        assert_eq!(again.find("r/one:1"), None);
        add(&again, "r/one:1", b"wasm");
        fs::write(again.record("r/one:1"), b"{").unwrap();
        assert_eq!(again.find("r/one:1"), None);
        assert_eq!(again.list().unwrap(), []);
    }

    #[test]
    fn digests_cannot_name_other_files() {
        let store = Store::open(tempfile::tempdir().unwrap().path().to_owned()).unwrap();
        for digest in ["", "sha256:", "sha256:../../key", "md5:00", &format!("sha256:{}", "Z".repeat(64))] {
            assert!(store.blob(digest).is_err(), "{digest}");
        }
    }
}
