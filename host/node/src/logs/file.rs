//! The log of a container that the container runtime writes itself, in the same format: it is
//! watched for those who follow it, and moved away when it is full.

use std::{io, path::PathBuf, sync::Arc, time::Duration};

use tokio::sync::watch;

use super::writer::{FILE_BYTES, rotate};

/// How often the file is looked at while somebody follows it.
const FOLLOWED: Duration = Duration::from_millis(100);
/// How often it is looked at otherwise.
const UNWATCHED: Duration = Duration::from_secs(10);

/// A run's log that somebody else writes.
pub struct FileLog {
    path: PathBuf,
    /// Counts changes; `u64::MAX` once the run is over.
    version: Arc<watch::Sender<u64>>,
}

impl FileLog {
    pub(super) fn new(path: PathBuf) -> Self {
        Self { path, version: Arc::new(watch::Sender::new(0)) }
    }

    pub(super) fn version(&self) -> &Arc<watch::Sender<u64>> {
        &self.version
    }

    /// Tells followers of growth; returns when the file was full and has been moved away, so that its
    /// writer is to be told to begin a new one.
    pub async fn watch(&self) {
        let mut size = 0;
        loop {
            let now = tokio::fs::metadata(&self.path).await.map_or(0, |m| m.len());
            if now != size {
                size = now;
                self.version.send_modify(|v| *v = v.saturating_add(1));
            }
            if size >= FILE_BYTES {
                match self.rotate() {
                    Ok(()) => return,
                    Err(error) => {
                        tracing::warn!(path = %self.path.display(), %error, "cannot move a full log away");
                    }
                }
            }
            let followed = self.version.receiver_count() > 0;
            tokio::time::sleep(if followed { FOLLOWED } else { UNWATCHED }).await;
        }
    }

    fn rotate(&self) -> io::Result<()> {
        rotate(&self.path)
    }

    /// Tells followers that the run is over.
    pub fn close(&self) {
        self.version.send_replace(u64::MAX);
    }
}
