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
/// How the names of full logs tell when they were.
const FULL_AT: &str = "%Y-%m-%dT%H-%M-%S";

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
        let is_full = is_file && limit > 0 && self.written > 0 && self.written + length > limit;
        if is_full && let Err(error) = self.rotate() {
            // The event is written all the same; room is made when as much again has been.
            tracing::warn!(%error, path = %self.settings.path.display(), "the audit log was not rotated");
            self.written = 0;
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
        let now = jiff::Timestamp::now().strftime(FULL_AT);
        let named = |n: u32| path.with_file_name(format!("{stem}-{now}.{n:03}{dot}{extension}"));
        (0..1000).map(named).find(|path| !path.exists()).unwrap_or_else(|| named(999))
    }

    /// Deletes full files that are too old or too many.
    fn tidy(&self) -> io::Result<()> {
        let path = &self.settings.path;
        let folder = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let ours = |name: &str| is_full_name(name, &path.file_name().unwrap_or_default().to_string_lossy());
        let mut full: Vec<PathBuf> = fs::read_dir(folder)?
            .filter_map(|entry| Some(entry.ok()?.path()))
            .filter(|p| p.file_name().is_some_and(|name| ours(&name.to_string_lossy())))
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

/// Whether a name is that of a full log, as [`Rotated::full_name`] makes it from the name of the open one: no other
/// file of the folder is ours.
fn is_full_name(name: &str, open: &str) -> bool {
    let part = |part: Option<&std::ffi::OsStr>| part.unwrap_or_default().to_string_lossy().into_owned();
    let (stem, extension) = (part(Path::new(open).file_stem()), part(Path::new(open).extension()));
    let middle = name.strip_prefix(&*stem).and_then(|rest| rest.strip_prefix('-')).and_then(|rest| {
        if extension.is_empty() { Some(rest) } else { rest.strip_suffix(&*extension)?.strip_suffix('.') }
    });
    middle.and_then(|middle| middle.rsplit_once('.')).is_some_and(|(time, number)| {
        let digits = number.len() == 3 && number.bytes().all(|b| b.is_ascii_digit());
        digits && jiff::civil::DateTime::strptime(FULL_AT, time).is_ok()
    })
}

fn append(path: &Path) -> io::Result<File> {
    fs::OpenOptions::new().create(true).append(true).mode(0o600).open(path)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn other_files_are_left_alone() {
        for (name, open, ours) in [
            ("audit-2026-01-02T03-04-05.000.log", "audit.log", true),
            ("audit-2026-01-02T03-04-05.999.log", "audit.log", true),
            ("audit-2026-01-02T03-04-05.999", "audit", true),
            ("audit-2026-01-02T03-04-05.999", "audit.log", false),
            ("audit-2026-01-02T03-04-05.log", "audit.log", false),
            ("audit-2026-01-02T03-04-05.0000.log", "audit.log", false),
            ("audit-2026-13-02T03-04-05.000.log", "audit.log", false),
            ("audit-b.log", "audit.log", false),
            ("audit-policy.000.log", "audit.log", false),
            ("audit.log", "audit.log", false),
            ("other-2026-01-02T03-04-05.000.log", "audit.log", false),
        ] {
            assert_eq!(is_full_name(name, open), ours, "{name}");
        }
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("audit.log");
        let others = ["audit-b.log", "audit-policy.log", "audit-b-2026-01-02T03-04-05.000.log"];
        others.iter().for_each(|name| fs::write(folder.path().join(name), "live").unwrap());
        fs::write(folder.path().join("audit-2026-01-02T03-04-05.000.log"), "old").unwrap();
        let settings = FileSettings { path, max_megabytes: 1, max_days: 0, max_backups: 1 };
        let mut log = Rotated::open(settings).unwrap();
        for _ in 0..4 {
            log.write(&vec![b'x'; 600 << 10]).unwrap();
        }
        others.iter().for_each(|name| assert!(folder.path().join(name).exists(), "{name}"));
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), others.len() + 2);
    }

    #[test]
    fn an_event_is_written_also_when_no_room_can_be_made() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("audit.log");
        let settings = FileSettings { path: path.clone(), max_megabytes: 1, max_days: 0, max_backups: 0 };
        let mut log = Rotated::open(settings).unwrap();
        let line = vec![b'x'; 600 << 10];
        log.write(&line).unwrap();
        // Whoever moved the log away made that impossible.
        fs::rename(&path, folder.path().join("moved")).unwrap();
        log.write(&line).unwrap();
        assert_eq!(fs::metadata(folder.path().join("moved")).unwrap().len(), 2 * line.len() as u64);
    }

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
