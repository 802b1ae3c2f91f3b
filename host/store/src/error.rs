//! What can go wrong in a store, with the names needed to do something about it.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::Revision;

/// Why a store operation failed. Cheap to clone, because one failed sync answers a whole group of writers.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The revision asked for is older than the history still kept.
    #[error("revision {requested} has been compacted; the oldest revision still kept is {compacted}")]
    Compacted {
        /// The revision the caller asked for.
        requested: Revision,
        /// The oldest revision that can be read or watched from.
        compacted: Revision,
    },
    /// The revision asked for has not happened yet.
    #[error("revision {requested} is in the future; the current revision is {current}")]
    FutureRevision {
        /// The revision the caller asked for.
        requested: Revision,
        /// The current revision.
        current: Revision,
    },
    /// A key, value or transaction exceeds its bound.
    #[error("{what} has {size}, at most {limit} are allowed")]
    TooLarge {
        /// What is too large, with its unit: "the key (bytes)".
        what: &'static str,
        /// Its size.
        size: usize,
        /// The bound it exceeds.
        limit: usize,
    },
    /// The request contradicts itself.
    #[error("invalid request: {0}")]
    Invalid(String),
    /// The disk under the data directory is full. Nothing of the write was kept; reads go on, and writes work
    /// again as soon as there is room.
    #[error("the disk is full, cannot write {}", path.display())]
    Full {
        /// The file that could not grow.
        path: PathBuf,
        /// The operating system's answer.
        source: Arc<io::Error>,
    },
    /// A file operation failed.
    #[error("cannot {action} {}", path.display())]
    Io {
        /// What was tried, as a verb.
        action: &'static str,
        /// The file or directory it was tried on.
        path: PathBuf,
        /// The operating system's answer.
        source: Arc<io::Error>,
    },
    /// An earlier sync failed, so what the disk holds is unknown: writes stay refused until the store is opened
    /// again, reads go on.
    #[error("writes to {} are refused since a disk error ({reason}); check the disk and restart", path.display())]
    ReadOnly {
        /// The log file whose sync failed.
        path: PathBuf,
        /// What failed.
        reason: String,
    },
    /// A file is damaged in a place that had been made durable: opening it would lose acknowledged writes.
    #[error(
        "{} is damaged at byte {offset}, after revision {revision}: {reason}; nothing was changed: `wasmk store \
         verify` tells what is affected, `wasmk store dump` prints what can be read, `wasmk store repair` gives up \
         what follows the damage, `wasmk store restore` brings back a snapshot",
        path.display()
    )]
    Corrupt {
        /// The damaged file.
        path: PathBuf,
        /// Offset of the first byte that cannot be trusted.
        offset: u64,
        /// The last revision before the damage.
        revision: Revision,
        /// What is wrong there.
        reason: String,
    },
    /// The data directory was written by another version of the format.
    #[error("{} holds store format {found:?}, this program reads {expected:?}; use the program version that wrote it", path.display())]
    ForeignVersion {
        /// The file that names the version.
        path: PathBuf,
        /// What it says.
        found: String,
        /// What this program reads and writes.
        expected: String,
    },
    /// Another live process has the data directory open.
    #[error("data directory {} is in use by process {pid}", path.display())]
    InUse {
        /// The data directory.
        path: PathBuf,
        /// The process holding it, as it noted itself in the lock file.
        pid: String,
    },
    /// A value cannot be encrypted or decrypted.
    #[error("cannot {action} the value of {key}: {reason}")]
    Seal {
        /// "encrypt" or "decrypt".
        action: &'static str,
        /// The key it belongs to.
        key: String,
        /// What is missing or wrong.
        reason: String,
    },
    /// A snapshot stream cannot be read.
    #[error("not a usable snapshot: {0}")]
    BadSnapshot(String),
    /// The store was closed.
    #[error("the store is closed")]
    Closed,
    /// A remote backend cannot be reached or refused the request.
    #[error("store backend: {0}")]
    Backend(String),
}

impl Error {
    /// Wraps an I/O error, telling a full disk from everything else.
    pub(crate) fn io(action: &'static str, path: &Path, source: io::Error) -> Self {
        let (path, full) = (path.to_path_buf(), is_full(&source));
        let source = Arc::new(source);
        if full { Self::Full { path, source } } else { Self::Io { action, path, source } }
    }
}

fn is_full(error: &io::Error) -> bool {
    use io::ErrorKind::{FileTooLarge, QuotaExceeded, StorageFull};
    matches!(error.kind(), StorageFull | QuotaExceeded | FileTooLarge)
}
