//! The audit log: a file of events, one a line, rotated by size and age.

use std::{
    fs::{self, File},
    io::{self, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use serde_json::Value;
use tokio::sync::mpsc;

use super::{AuditError, FileSettings};

/// Most events that wait to be written; then requests wait.
const MAX_WAITING: usize = 4096;
const MEGABYTE: u64 = 1 << 20;
const DAY: u64 = 24 * 3600;

/// The way to the log: a thread of its own writes it.
pub(crate) struct Log {
    lines: mpsc::Sender<Vec<u8>>,
}

impl Log {
    /// Opens the file and starts writing.
    ///
    /// # Errors
    /// When it cannot be opened for writing.
    pub(crate) fn open(settings: FileSettings) -> Result<Self, AuditError> {
        let path = settings.path.clone();
        let failed = |source| AuditError::File { path: path.clone(), source };
        let mut rotated = Rotated::open(settings).map_err(failed)?;
        let (lines, mut waiting) = mpsc::channel::<Vec<u8>>(MAX_WAITING);
        std::thread::Builder::new()
            .name("audit".into())
            .spawn(move || {
                while let Some(line) = waiting.blocking_recv() {
                    if let Err(error) = rotated.write(&line) {
                        tracing::error!(%error, "an audit event was not written");
                    }
                }
            })
            .map_err(failed)?;
        Ok(Self { lines })
    }

    /// Writes an event, as soon as there is room.
    pub(crate) async fn write(&self, event: &Value) {
        let mut line = event.to_string().into_bytes();
        line.push(b'\n');
        // The thread ends only with the sender.
        let _ = self.lines.send(line).await;
    }
}

/// A file that makes room for another when it is full.
struct Rotated {
    settings: FileSettings,
    file: Box<dyn Write + Send>,
    written: u64,
}

impl Rotated {
    fn open(settings: FileSettings) -> io::Result<Self> {
        if settings.path == Path::new("-") {
            return Ok(Self { settings, file: Box::new(io::stdout()), written: 0 });
        }
        if let Some(folder) = settings.path.parent() {
            fs::create_dir_all(folder)?;
        }
        let file = append(&settings.path)?;
        let written = file.metadata()?.len();
        Ok(Self { settings, file: Box::new(file), written })
    }

    fn write(&mut self, line: &[u8]) -> io::Result<()> {
        let length = line.len() as u64;
        let limit = self.settings.max_megabytes * MEGABYTE;
        let is_file = self.settings.path != Path::new("-");
        if is_file && limit > 0 && self.written > 0 && self.written + length > limit {
            self.rotate()?;
        }
        self.file.write_all(line)?;
        self.written += length;
        Ok(())
    }

    fn rotate(&mut self) -> io::Result<()> {
        fs::rename(&self.settings.path, self.full_name())?;
        self.file = Box::new(append(&self.settings.path)?);
        self.written = 0;
        self.tidy()
    }

    /// The name of a file that is full: with the time before the extension.
    fn full_name(&self) -> PathBuf {
        let path = &self.settings.path;
        let part = |text: Option<&std::ffi::OsStr>| text.unwrap_or_default().to_string_lossy().into_owned();
        let (stem, extension) = (part(path.file_stem()), part(path.extension()));
        let dot = if extension.is_empty() { "" } else { "." };
        let now = jiff::Timestamp::now().strftime("%Y-%m-%dT%H-%M-%S");
        let named = |n: u32| path.with_file_name(format!("{stem}-{now}.{n:03}{dot}{extension}"));
        (0..1000).map(named).find(|path| !path.exists()).unwrap_or_else(|| named(999))
    }

    /// Deletes full files that are too old or too many.
    fn tidy(&self) -> io::Result<()> {
        let path = &self.settings.path;
        let folder = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let stem = format!("{}-", path.file_stem().unwrap_or_default().to_string_lossy());
        let mut full: Vec<PathBuf> = fs::read_dir(folder)?
            .filter_map(|entry| Some(entry.ok()?.path()))
            .filter(|p| p.extension() == path.extension())
            .filter(|p| p.file_name().is_some_and(|n| n.to_string_lossy().starts_with(&stem)))
            .collect();
        full.sort();
        full.reverse();
        let keep = if self.settings.max_backups == 0 { usize::MAX } else { self.settings.max_backups };
        let age = Duration::from_secs(self.settings.max_days.saturating_mul(DAY));
        for (index, path) in full.iter().enumerate() {
            let changed = fs::metadata(path).and_then(|m| m.modified()).unwrap_or(SystemTime::UNIX_EPOCH);
            let old = !age.is_zero() && changed.elapsed().is_ok_and(|elapsed| elapsed > age);
            if index >= keep || old {
                fs::remove_file(path)?;
            }
        }
        Ok(())
    }
}

fn append(path: &Path) -> io::Result<File> {
    fs::OpenOptions::new().create(true).append(true).mode(0o600).open(path)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn full_files_make_room_and_go_when_there_are_too_many() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("logs/audit.log");
        let settings = FileSettings { path: path.clone(), max_megabytes: 1, max_days: 0, max_backups: 2 };
        let mut log = Rotated::open(settings.clone()).unwrap();
        let line = vec![b'x'; 600 << 10];
        for _ in 0..5 {
            log.write(&line).unwrap();
        }
        let files = fs::read_dir(path.parent().unwrap()).unwrap().count();
        assert_eq!(files, 3, "the open one and two full ones");
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        drop(log);
        assert_eq!(Rotated::open(settings).unwrap().written, line.len() as u64);
    }
}
