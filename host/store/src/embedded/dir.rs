//! The data directory as a whole: one process at a time, one format.
//!
//! | file | |
//! |---|---|
//! | `lock` | locked while a process has the store open; names that process |
//! | `format` | version of everything else |
//! | `log-<number>` | segments of the log |
//! | `checkpoints`, `checkpoint-0`, `checkpoint-1` | see [`super::checkpoint`] |
//! | `closed` | where the log ended when the store was closed; absent while it is open |

use std::fs::{self, DirBuilder, File, OpenOptions, TryLockError};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;
use std::sync::Arc;

use super::disk::{self, Disk};
use super::log::segment_number;
use super::recover::{Closed, is_unused};
use crate::Error;

const LOCK: &str = "lock";
const FORMAT: &str = "format";
const CLOSED: &str = "closed";
/// What the format file says.
pub(crate) const VERSION: &str = "wasmk-store 2";
/// Formats that are read as well; a directory in one of them becomes one of [`VERSION`] when it is opened.
/// 1: without [`Kind::Edit`](super::record::Kind::Edit).
const READABLE: [&str; 1] = ["wasmk-store 1"];

/// Creates the directory if need be, for its owner only, and locks it. The lock goes with the returned file, and
/// with the process.
pub(crate) fn lock(path: &Path) -> Result<File, Error> {
    if !path.is_dir() {
        make(path).map_err(|e| Error::io("create", path, e))?;
    }
    hold(path)
}

/// Creates a directory and those above it, durably.
fn make(path: &Path) -> io::Result<()> {
    let above = path.parent().filter(|above| !above.as_os_str().is_empty());
    if let Some(above) = above.filter(|above| !above.is_dir()) {
        make(above)?;
    }
    match DirBuilder::new().mode(0o700).create(path) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists && path.is_dir() => {}
        made => made?,
    }
    File::open(above.unwrap_or(Path::new(".")))?.sync_all()
}

/// Locks a directory that exists.
pub(crate) fn hold(path: &Path) -> Result<File, Error> {
    let name = path.join(LOCK);
    let failed = |error| Error::io("lock", &name, error);
    let mut options = OpenOptions::new();
    let options = options.read(true).write(true).create(true).truncate(false).mode(0o600);
    let mut file = options.open(&name).map_err(failed)?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            let mut pid = String::new();
            file.read_to_string(&mut pid).map_err(failed)?;
            return Err(Error::InUse { path: path.to_path_buf(), pid: pid.trim().to_string() });
        }
        Err(TryLockError::Error(error)) => return Err(failed(error)),
    }
    let note = file.set_len(0).and_then(|()| writeln!(file, "{}", std::process::id()));
    note.map_err(failed)?;
    Ok(file)
}

/// What a directory holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Found {
    /// No store yet.
    Nothing,
    /// A store of this format.
    Current,
    /// A store of an older format that can be read.
    Older(&'static str),
}

/// Looks what the directory holds. Refuses one of another format, and one that is not a store.
pub(crate) fn find(disk: &Arc<dyn Disk>) -> Result<Found, Error> {
    let path = disk.path(FORMAT);
    let foreign =
        |found: String| Error::ForeignVersion { path: path.clone(), found, expected: VERSION.into() };
    match disk.read(FORMAT, 256) {
        Ok(text) => {
            let found = String::from_utf8_lossy(&text).trim_end().to_string();
            if found == VERSION {
                return Ok(Found::Current);
            }
            let older = READABLE.into_iter().find(|older| *older == found);
            older.map(Found::Older).ok_or_else(|| foreign(found))
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            for name in disk.list().map_err(|error| Error::io("list", &disk.path(""), error))? {
                // What an interrupted creation leaves behind may stay; anything else is not ours to overwrite.
                let begun = name == LOCK || name.ends_with(".new");
                let ours = begun || segment_number(&name) == Some(1) && is_unused(disk, &name)?;
                if !ours {
                    return Err(foreign(format!("nothing, but there is a file {name}")));
                }
            }
            Ok(Found::Nothing)
        }
        Err(error) => Err(Error::io("read", &path, error)),
    }
}

/// Declares a new store complete.
pub(crate) fn write_format(disk: &dyn Disk) -> Result<(), Error> {
    let text = format!("{VERSION}\n");
    disk::replace(disk, FORMAT, text.as_bytes())
        .map_err(|error| Error::io("write", &disk.path(FORMAT), error))
}

/// Where the log must end, if the store was closed.
pub(crate) fn read_closed(disk: &dyn Disk) -> Result<Option<Closed>, Error> {
    let path = disk.path(CLOSED);
    match disk.read(CLOSED, 4096) {
        Ok(text) => serde_json::from_slice(&text).map(Some).map_err(|e| Error::Corrupt {
            path,
            offset: 0,
            revision: 0,
            reason: e.to_string(),
        }),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(Error::io("read", &path, error)),
    }
}

/// Notes where the log ended.
pub(crate) fn write_closed(disk: &dyn Disk, closed: Closed) -> Result<(), Error> {
    let failed = |error| Error::io("write", &disk.path(CLOSED), error);
    let text = serde_json::to_vec(&closed).map_err(|error| failed(error.into()))?;
    disk::replace(disk, CLOSED, &text).map_err(failed)
}

/// Notes that the log may move on.
pub(crate) fn remove_closed(disk: &dyn Disk) -> Result<(), Error> {
    let removed = disk.remove(CLOSED).and_then(|()| disk.sync_dir());
    removed.map_err(|error| Error::io("remove", &disk.path(CLOSED), error))
}

/// Whether a directory is absent or holds nothing.
pub(crate) fn is_empty(path: &Path) -> Result<bool, Error> {
    match fs::read_dir(path) {
        Ok(mut entries) => Ok(entries.next().is_none()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(true),
        Err(error) => Err(Error::io("list", path, error)),
    }
}
