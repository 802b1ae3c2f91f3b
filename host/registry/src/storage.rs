//! The files behind the registry.

use std::{
    collections::HashMap,
    io::{self, ErrorKind},
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use futures::{Stream, StreamExt};
use parking_lot::Mutex;
use sha2::{Digest as _, Sha256};
use tokio::{
    fs::{self, File, OpenOptions},
    io::AsyncWriteExt,
};
use uuid::Uuid;

use crate::{Digest, Error, Repository, Tag};

/// Bounds of a registry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Largest blob, in bytes.
    pub blob: u64,
    /// Largest manifest, in bytes.
    pub manifest: u64,
    /// Uploads at a time.
    pub uploads: usize,
    /// Silence after which an upload makes room for another.
    pub idle: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self { blob: 4 << 30, manifest: 4 << 20, uploads: 256, idle: Duration::from_secs(3600) }
    }
}

/// A registry's files. Clones are the same files.
#[derive(Clone)]
pub struct Storage {
    root: Arc<PathBuf>,
    limits: Limits,
    uploads: Arc<Mutex<HashMap<Uuid, Upload>>>,
}

/// A blob on its way in; taken out of the map while bytes arrive.
struct Upload {
    hash: Sha256,
    size: u64,
    last: Instant,
}

impl Upload {
    fn new() -> Self {
        Self { hash: Sha256::new(), size: 0, last: Instant::now() }
    }
}

/// The file of an upload that is being worked on: removed when that is given up, however it ends.
struct Underway(Option<PathBuf>);

impl Underway {
    /// All went well.
    fn keep(mut self) {
        self.0 = None;
    }
}

impl Drop for Underway {
    fn drop(&mut self) {
        // Outside the program's runtime it is ending; its next life removes what is left.
        if let (Some(path), Ok(runtime)) = (self.0.take(), tokio::runtime::Handle::try_current()) {
            runtime.spawn_blocking(move || std::fs::remove_file(path));
        }
    }
}

/// A manifest with its type.
#[derive(Clone, Debug)]
pub struct Manifest {
    /// Its bytes.
    pub bytes: Bytes,
    /// Its media type.
    pub media_type: String,
    /// The hash of its bytes.
    pub digest: Digest,
}

impl Storage {
    /// Opens a directory, made if it is not there. Uploads that an earlier life left are dropped.
    ///
    /// # Errors
    /// When the directory cannot be used.
    pub async fn open(root: impl Into<PathBuf>, limits: Limits) -> io::Result<Self> {
        let root = root.into();
        for dir in ["blobs/sha256", "repositories"] {
            fs::create_dir_all(root.join(dir)).await?;
        }
        match fs::remove_dir_all(root.join("uploads")).await {
            Err(e) if e.kind() != ErrorKind::NotFound => return Err(e),
            _ => fs::create_dir_all(root.join("uploads")).await?,
        }
        Ok(Self { root: Arc::new(root), limits, uploads: Arc::default() })
    }

    fn blob_path(&self, digest: &Digest) -> PathBuf {
        self.root.join("blobs/sha256").join(digest.hex())
    }

    fn upload_path(&self, id: Uuid) -> PathBuf {
        self.root.join("uploads").join(id.to_string())
    }

    fn repository(&self, name: &Repository) -> PathBuf {
        self.root.join("repositories").join(name.as_str())
    }

    /// A blob's file and size.
    pub async fn blob(&self, digest: &Digest) -> Result<(File, u64), Error> {
        let file = File::open(self.blob_path(digest)).await.map_err(|e| missing(e, Error::BlobUnknown))?;
        let size = file.metadata().await?.len();
        Ok((file, size))
    }

    /// Whether a blob is there.
    pub async fn has_blob(&self, digest: &Digest) -> bool {
        fs::try_exists(self.blob_path(digest)).await.unwrap_or(false)
    }

    /// Removes a blob.
    pub async fn delete_blob(&self, digest: &Digest) -> Result<(), Error> {
        fs::remove_file(self.blob_path(digest)).await.map_err(|e| missing(e, Error::BlobUnknown))
    }

    /// Begins an upload. Those of which nothing was heard for long make room for it.
    pub async fn begin(&self) -> Result<Uuid, Error> {
        let id = Uuid::new_v4();
        {
            let mut uploads = self.uploads.lock();
            if uploads.len() >= self.limits.uploads {
                self.drop_idle(&mut uploads);
            }
            if uploads.len() >= self.limits.uploads {
                return Err(Error::TooMany);
            }
            uploads.insert(id, Upload::new());
        }
        if let Err(error) = File::create(self.upload_path(id)).await {
            self.uploads.lock().remove(&id);
            return Err(error.into());
        }
        Ok(id)
    }

    fn drop_idle(&self, uploads: &mut HashMap<Uuid, Upload>) {
        let idle: Vec<Uuid> =
            uploads.iter().filter(|(_, u)| u.last.elapsed() >= self.limits.idle).map(|(id, _)| *id).collect();
        for id in idle {
            uploads.remove(&id);
            drop(self.underway(id));
        }
    }

    fn underway(&self, id: Uuid) -> Underway {
        Underway(Some(self.upload_path(id)))
    }

    /// Bytes an upload has so far.
    pub fn progress(&self, id: Uuid) -> Result<u64, Error> {
        self.uploads.lock().get(&id).map(|u| u.size).ok_or(Error::UploadUnknown)
    }

    /// Adds bytes to an upload, beginning at `from` where the client says where; returns the new size.
    /// An upload that fails half-way, or whose client leaves, is gone: the client begins again.
    pub async fn append<S, E>(&self, id: Uuid, from: Option<u64>, mut chunks: S) -> Result<u64, Error>
    where
        S: Stream<Item = Result<Bytes, E>> + Unpin,
        E: std::error::Error + Send + Sync + 'static,
    {
        let at = self.progress(id)?;
        if let Some(given) = from.filter(|given| *given != at) {
            return Err(Error::UploadOutOfOrder { at, given });
        }
        let mut upload = self.uploads.lock().remove(&id).ok_or(Error::UploadUnknown)?;
        let underway = self.underway(id);
        let mut file = OpenOptions::new().append(true).open(self.upload_path(id)).await?;
        while let Some(chunk) = chunks.next().await {
            let chunk = chunk.map_err(io::Error::other)?;
            upload.size += chunk.len() as u64;
            if upload.size > self.limits.blob {
                return Err(Error::TooLarge { what: "the blob", limit: self.limits.blob });
            }
            upload.hash.update(&chunk);
            file.write_all(&chunk).await?;
        }
        file.flush().await?;
        let size = upload.size;
        upload.last = Instant::now();
        underway.keep();
        self.uploads.lock().insert(id, upload);
        Ok(size)
    }

    /// Ends an upload: if its bytes have that digest it becomes the blob, else it is gone.
    pub async fn finish(&self, id: Uuid, wanted: &Digest) -> Result<(), Error> {
        let upload = self.uploads.lock().remove(&id).ok_or(Error::UploadUnknown)?;
        let underway = self.underway(id);
        let found = Digest::finish(upload.hash);
        if found != *wanted {
            return Err(Error::DigestMismatch { wanted: wanted.to_string(), found: found.to_string() });
        }
        let path = self.upload_path(id);
        File::open(&path).await?.sync_all().await?;
        fs::rename(path, self.blob_path(wanted)).await?;
        underway.keep();
        Ok(())
    }

    /// Forgets an upload.
    pub async fn cancel(&self, id: Uuid) -> Result<(), Error> {
        self.uploads.lock().remove(&id).ok_or(Error::UploadUnknown)?;
        Ok(fs::remove_file(self.upload_path(id)).await?)
    }

    /// Keeps a manifest of a repository, and the tag if there is one.
    pub async fn put_manifest(
        &self,
        name: &Repository,
        tag: Option<&Tag>,
        media_type: &str,
        bytes: &[u8],
    ) -> Result<Digest, Error> {
        let digest = Digest::of(bytes);
        if !self.has_blob(&digest).await {
            self.write(&self.blob_path(&digest), bytes).await?;
        }
        let dir = self.repository(name);
        self.write(&dir.join("_manifests").join(digest.hex()), media_type.as_bytes()).await?;
        if let Some(tag) = tag {
            self.write(&dir.join("_tags").join(tag.as_str()), digest.to_string().as_bytes()).await?;
        }
        Ok(digest)
    }

    /// Writes a file so that it appears whole.
    async fn write(&self, path: &Path, bytes: &[u8]) -> Result<(), Error> {
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent).await?;
        }
        let fresh = self.upload_path(Uuid::new_v4());
        let mut file = File::create(&fresh).await?;
        file.write_all(bytes).await?;
        file.sync_all().await?;
        Ok(fs::rename(fresh, path).await?)
    }

    /// The digest a tag stands for.
    pub async fn tagged(&self, name: &Repository, tag: &Tag) -> Result<Digest, Error> {
        let path = self.repository(name).join("_tags").join(tag.as_str());
        let unknown = || Error::ManifestUnknown(format!("{}:{}", name.as_str(), tag.as_str()));
        let text = fs::read_to_string(path).await.map_err(|e| missing(e, unknown()))?;
        Digest::parse(&text)
    }

    /// A manifest of a repository.
    pub async fn manifest(&self, name: &Repository, digest: Digest) -> Result<Manifest, Error> {
        let unknown = || Error::ManifestUnknown(format!("{}@{digest}", name.as_str()));
        let link = self.repository(name).join("_manifests").join(digest.hex());
        let media_type = fs::read_to_string(link).await.map_err(|e| missing(e, unknown()))?;
        let bytes = fs::read(self.blob_path(&digest)).await.map_err(|e| missing(e, unknown()))?;
        Ok(Manifest { bytes: bytes.into(), media_type, digest })
    }

    /// The digest that a tag of a repository stands for, for callers that cannot wait: a read of a small file.
    pub fn peek_tag(&self, repository: &str, tag: &str) -> Option<Digest> {
        let (name, tag) = (Repository::parse(repository).ok()?, Tag::parse(tag).ok()?);
        let path = self.repository(&name).join("_tags").join(tag.as_str());
        Digest::parse(&std::fs::read_to_string(path).ok()?).ok()
    }

    /// A blob or manifest of at most so many bytes, for callers that cannot wait.
    pub fn peek(&self, digest: &Digest, most: u64) -> Option<Vec<u8>> {
        let path = self.blob_path(digest);
        let size = std::fs::metadata(&path).ok()?.len();
        (size <= most).then(|| std::fs::read(path).ok()).flatten()
    }

    /// Forgets a manifest of a repository with every tag that stands for it.
    pub async fn delete_manifest(&self, name: &Repository, digest: &Digest) -> Result<(), Error> {
        let unknown = Error::ManifestUnknown(format!("{}@{digest}", name.as_str()));
        let dir = self.repository(name);
        fs::remove_file(dir.join("_manifests").join(digest.hex())).await.map_err(|e| missing(e, unknown))?;
        for tag in self.tags(name).await? {
            if self.tagged(name, &tag).await.is_ok_and(|d| d == *digest) {
                self.delete_tag(name, &tag).await?;
            }
        }
        Ok(())
    }

    /// Forgets a tag.
    pub async fn delete_tag(&self, name: &Repository, tag: &Tag) -> Result<(), Error> {
        let unknown = Error::ManifestUnknown(format!("{}:{}", name.as_str(), tag.as_str()));
        let path = self.repository(name).join("_tags").join(tag.as_str());
        fs::remove_file(path).await.map_err(|e| missing(e, unknown))
    }

    /// The tags of a repository, sorted.
    pub async fn tags(&self, name: &Repository) -> Result<Vec<Tag>, Error> {
        let dir = self.repository(name);
        if !fs::try_exists(dir.join("_manifests")).await? {
            return Err(Error::NameUnknown(name.as_str().into()));
        }
        let mut tags: Vec<Tag> =
            children(&dir.join("_tags")).await?.iter().filter_map(|tag| Tag::parse(tag).ok()).collect();
        tags.sort();
        Ok(tags)
    }

    /// The manifests of a repository.
    pub async fn manifests(&self, name: &Repository) -> Result<Vec<Manifest>, Error> {
        let mut all = Vec::new();
        for hex in children(&self.repository(name).join("_manifests")).await? {
            if let Ok(digest) = Digest::parse(&format!("sha256:{hex}")) {
                all.push(self.manifest(name, digest).await?);
            }
        }
        Ok(all)
    }

    /// The repositories that have a manifest, sorted.
    pub async fn repositories(&self) -> Result<Vec<Repository>, Error> {
        let mut found = Vec::new();
        let mut left = vec![String::new()];
        while let Some(prefix) = left.pop() {
            for child in children(&self.root.join("repositories").join(&prefix)).await? {
                if child == "_manifests" {
                    found.extend(Repository::parse(&prefix));
                } else if !child.starts_with('_') {
                    left.push(if prefix.is_empty() { child } else { format!("{prefix}/{child}") });
                }
            }
        }
        found.sort();
        Ok(found)
    }

    /// The bounds.
    pub fn limits(&self) -> Limits {
        self.limits
    }
}

async fn children(dir: &Path) -> io::Result<Vec<String>> {
    let mut entries = match fs::read_dir(dir).await {
        Ok(entries) => entries,
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        Err(e) => return Err(e),
    };
    let mut names = Vec::new();
    while let Some(entry) = entries.next_entry().await? {
        names.extend(entry.file_name().into_string());
    }
    Ok(names)
}

fn missing(error: io::Error, unknown: Error) -> Error {
    match error.kind() {
        ErrorKind::NotFound | ErrorKind::NotADirectory => unknown,
        _ => Error::Storage(error),
    }
}
