//! The output of a detached process: a file that is kept short while the process writes to it.
//!
//! A control plane does so for its own, and for those of the agents that it keeps.

use std::{
    fs::{self, File},
    io,
    os::{fd::AsFd, unix::fs::MetadataExt},
    path::{Path, PathBuf},
    time::Duration,
};

/// Bytes after which the file is begun anew; what was in it until then is kept once, beside it.
const LONGEST: u64 = 64 << 20;
/// How often its length is looked at.
const EVERY: Duration = Duration::from_secs(60);

/// Opens the file for a process that begins.
///
/// # Errors
/// When it cannot be written.
pub(crate) fn open(path: &Path) -> io::Result<File> {
    // Appending, so that who writes to it does not mind that it becomes shorter.
    let file = File::options().create(true).append(true).open(path)?;
    file.set_len(0)?;
    Ok(file)
}

/// Keeps the file short for as long as this process runs, if its output goes there.
pub(crate) async fn keep_short(path: PathBuf) {
    while is_output(&path).unwrap_or(false) {
        look_after_a_while(&path).await;
    }
}

/// Keeps a file short that another process writes to. Never ends.
pub(crate) async fn keep_anothers_short(path: PathBuf) {
    loop {
        look_after_a_while(&path).await;
    }
}

async fn look_after_a_while(path: &Path) {
    tokio::time::sleep(EVERY).await;
    let file = path.to_path_buf();
    let done = tokio::task::spawn_blocking(move || shorten(&file, LONGEST)).await;
    if let Ok(Err(error)) = done {
        tracing::warn!(%error, path = %path.display(), "the log was not begun anew");
    }
}

/// Whether the errors of this process go to that file.
fn is_output(path: &Path) -> io::Result<bool> {
    let stderr = File::from(io::stderr().as_fd().try_clone_to_owned()?).metadata()?;
    let file = fs::metadata(path)?;
    Ok((stderr.dev(), stderr.ino()) == (file.dev(), file.ino()))
}

/// Empties a file that is too long, after its content was copied.
fn shorten(path: &Path, longest: u64) -> io::Result<()> {
    if fs::metadata(path)?.len() <= longest {
        return Ok(());
    }
    fs::copy(path, path.with_extension("log.old"))?;
    File::options().write(true).open(path)?.set_len(0)
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn a_long_log_is_begun_anew_under_whoever_writes_to_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("wasmk.log");
        fs::write(&path, "of the process before").unwrap();
        let mut log = open(&path).unwrap();
        let mut write = |text: &str| {
            log.write_all(text.as_bytes()).unwrap();
            shorten(&path, 10).unwrap();
            fs::read_to_string(&path).unwrap()
        };
        assert_eq!(write("short\n"), "short\n");
        assert_eq!(write("and long\n"), "");
        assert_eq!(write("again\n"), "again\n");
        let old = fs::read_to_string(folder.path().join("wasmk.log.old")).unwrap();
        assert_eq!(old, "short\nand long\n");
        assert!(!is_output(&path).unwrap());
    }
}
