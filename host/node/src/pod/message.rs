//! Termination messages: what a container leaves for the user when it ends.

use std::{
    io,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};

use futures::StreamExt;
use wasmk_api::k8s_openapi::api::core::v1::Container;

use super::{container::Run, state::MESSAGE_BYTES};
use crate::{
    engine::{End, Mount},
    logs::LogOptions,
};

/// Where a container writes its message when it does not say.
const DEFAULT_PATH: &str = "/dev/termination-log";
/// Lines of the log that stand for a message.
const LOG_LINES: usize = 80;
/// Bytes of the log that stand for a message.
const LOG_BYTES: usize = 2048;

fn path(container: &Container) -> &str {
    container.termination_message_path.as_deref().filter(|p| !p.is_empty()).unwrap_or(DEFAULT_PATH)
}

fn file_name(container: &Container) -> Option<&str> {
    Path::new(path(container)).file_name()?.to_str()
}

fn directory(container: &Container, dir: &Path) -> PathBuf {
    dir.join("messages").join(&container.name)
}

/// An empty file for the message, which anybody in the container may write: its place on this machine
/// and in the container.
///
/// # Errors
/// When it cannot be made.
pub(super) fn offer_file(container: &Container, dir: &Path) -> io::Result<(PathBuf, String)> {
    let folder = directory(container, dir);
    std::fs::create_dir_all(&folder)?;
    let file = folder.join(file_name(container).unwrap_or("message"));
    std::fs::write(&file, b"")?;
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o666))?;
    Ok((file, path(container).to_string()))
}

/// The same for a guest, which is given directories only: the one that the file is in. Where the pod
/// mounts something of its own there, the guest does without.
pub(super) fn offer_directory(container: &Container, dir: &Path, mounts: &mut Vec<Mount>) {
    let Some(parent) = Path::new(path(container)).parent().and_then(Path::to_str) else { return };
    let taken = mounts.iter().any(|m| Path::new(parent).starts_with(&m.guest));
    if parent == "/" || parent.is_empty() || taken {
        return;
    }
    match offer_file(container, dir) {
        Ok(_) => mounts.push(Mount {
            host: directory(container, dir),
            guest: parent.into(),
            read_only: false,
            propagation: None,
        }),
        Err(error) => tracing::debug!(%error, "a guest gets no place for its termination message"),
    }
}

/// Puts the message of a run that is over into its end.
pub(super) async fn of_end(run: &Run, end: &mut End) {
    let container = &run.container;
    let Some(name) = file_name(container) else { return };
    let file = directory(container, &run.dir).join(name);
    let left = tokio::task::spawn_blocking(move || read(&file)).await.unwrap_or_default();
    if !left.is_empty() {
        end.message = left;
        return;
    }
    let from_log = container.termination_message_policy.as_deref() == Some("FallbackToLogsOnError");
    if from_log && end.code != 0 {
        end.message = last_lines(run).await;
    }
}

fn read(file: &Path) -> String {
    use std::io::Read;
    let mut bytes = Vec::new();
    // The guest may have put anything there but a file of the agent's own: links are not followed.
    let plain = file.symlink_metadata().is_ok_and(|m| m.is_file());
    if plain && let Ok(open) = std::fs::File::open(file) {
        let _ = open.take(MESSAGE_BYTES as u64).read_to_end(&mut bytes);
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

async fn last_lines(run: &Run) -> String {
    let options = LogOptions { tail: Some(LOG_LINES), ..LogOptions::default() };
    let Ok(mut stream) = run.cx.logs.read(&run.log_name(), options) else { return String::new() };
    let mut bytes = Vec::new();
    while let Some(Ok(part)) = stream.next().await {
        bytes.extend_from_slice(&part);
    }
    let start = bytes.len().saturating_sub(LOG_BYTES);
    String::from_utf8_lossy(&bytes[start..]).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_guest_is_given_the_directory_unless_it_has_one() {
        let dir = tempfile::tempdir().unwrap();
        let check = |path: Option<&str>, mounted: &[&str], expect: &[&str]| {
            let container = Container {
                name: "c".into(),
                termination_message_path: path.map(String::from),
                ..Container::default()
            };
            let mount = |guest: &&str| Mount {
                host: dir.path().into(),
                guest: (*guest).into(),
                read_only: false,
                propagation: None,
            };
            let mut mounts: Vec<Mount> = mounted.iter().map(mount).collect();
            offer_directory(&container, dir.path(), &mut mounts);
            let shown: Vec<&str> = mounts.iter().map(|m| m.guest.as_str()).collect();
            assert_eq!(shown, expect, "{path:?}");
        };
        check(None, &[], &["/dev"]);
        check(Some("/tmp/last"), &[], &["/tmp"]);
        check(Some("/tmp/last"), &["/tmp"], &["/tmp"]);
        check(Some("/last"), &[], &[]);
        assert_eq!(std::fs::read(dir.path().join("messages/c/termination-log")).unwrap(), b"");
    }

    #[test]
    fn links_are_not_followed() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("secret"), b"s").unwrap();
        std::os::unix::fs::symlink("secret", dir.path().join("link")).unwrap();
        assert_eq!(read(&dir.path().join("link")), "");
        assert_eq!(read(&dir.path().join("secret")), "s");
    }
}
