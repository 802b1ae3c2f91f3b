//! Commands inside a container that runs. A Wasm container has no shell, but it can run a `.wasm` file
//! that its volumes carry, with what the container itself was given and nothing else.

use std::{
    path::{Component, Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use async_trait::async_trait;
use parking_lot::Mutex;
use wasmk_runtime::StopSignal;

use crate::{
    containers::Containers,
    engine::{Engine, Exec, ExecEnd, Launch, Program},
    logs::{LogSink, Stream},
};

/// Largest program that is run so, in bytes.
const PROGRAM: u64 = 256 << 20;
/// Most bytes of a command's output that are kept.
const OUTPUT: usize = 10 * 1024;

/// Commands in a container of the container runtime.
pub(crate) struct InContainer {
    pub(crate) containers: Arc<Containers>,
    pub(crate) id: String,
}

#[async_trait]
impl Exec for InContainer {
    async fn exec(&self, command: &[String], limit: Duration) -> Result<ExecEnd, String> {
        self.containers.exec(&self.id, command, limit).await
    }
}

/// Commands in a Wasm container.
pub(crate) struct InGuest {
    pub(crate) engine: Arc<dyn Engine>,
    pub(crate) launch: Arc<Launch>,
}

#[async_trait]
impl Exec for InGuest {
    async fn exec(&self, command: &[String], limit: Duration) -> Result<ExecEnd, String> {
        let (program, mut launch) = prepare(&*self.engine, &self.launch, command).await?;
        let output = Arc::new(Head::default());
        launch.log = output.clone();
        // Dropping the run ends the guest.
        let run = program.run(launch, StopSignal::new());
        let late = |_| format!("command timed out: {} after {} s", command.join(" "), limit.as_secs());
        let end = tokio::time::timeout(limit, run).await.map_err(late)?;
        Ok(ExecEnd { code: end.code, output: output.text() })
    }
}

/// The program that a command names, and what it is given: all that its container has but the
/// standard input, with the command as its arguments.
///
/// # Errors
/// In words, when there is no such program.
pub(crate) async fn prepare(
    engine: &dyn Engine,
    of: &Launch,
    command: &[String],
) -> Result<(Arc<dyn Program>, Launch), String> {
    let name = command.first().ok_or("no command is given")?.clone();
    let mut launch = of.clone();
    launch.command = Some(command.to_vec());
    (launch.args, launch.stdin) = (None, None);
    launch.name = format!("{}/exec", of.name);
    let file = locate(of, &name)?;
    let read = move || {
        let size = std::fs::metadata(&file)?.len();
        if size > PROGRAM {
            return Err(std::io::Error::other(format!(
                "{size} bytes are too many, at most {PROGRAM} are run"
            )));
        }
        std::fs::read(&file)
    };
    let failed = |e: &dyn std::fmt::Display| format!("cannot run {name}: {e}");
    let bytes = tokio::task::spawn_blocking(read).await.map_err(|e| failed(&e))?.map_err(|e| failed(&e))?;
    let program = engine.load(bytes.into()).await.map_err(|e| failed(&e))?;
    Ok((program, launch))
}

/// The file on this machine that a name in the container stands for. It is inside one of the
/// container's mounts, also when links are followed.
fn locate(launch: &Launch, name: &str) -> Result<PathBuf, String> {
    let start = Path::new(launch.working_dir.as_deref().unwrap_or("/"));
    let path = Path::new("/").join(start).join(name);
    let missing =
        || format!("it has no shell and no other programs, and its volumes have no file {}", path.display());
    if path.components().any(|c| matches!(c, Component::ParentDir)) {
        return Err(missing());
    }
    let inside = launch.mounts.iter().filter(|m| path.starts_with(&m.guest));
    let mount = inside.max_by_key(|m| m.guest.len()).ok_or_else(missing)?;
    let rest = path.strip_prefix(&mount.guest).map_err(|_| missing())?;
    let root = mount.host.canonicalize().map_err(|_| missing())?;
    let file = root.join(rest).canonicalize().map_err(|_| missing())?;
    if !file.starts_with(&root) || !file.is_file() {
        return Err(missing());
    }
    Ok(file)
}

/// Keeps the beginning of what is written.
#[derive(Default)]
struct Head(Mutex<Vec<u8>>);

impl Head {
    fn text(&self) -> String {
        String::from_utf8_lossy(&self.0.lock()).into_owned()
    }
}

impl LogSink for Head {
    fn write(&self, _: Stream, bytes: &[u8]) {
        let mut kept = self.0.lock();
        let room = OUTPUT.saturating_sub(kept.len()).min(bytes.len());
        kept.extend_from_slice(&bytes[..room]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::Mount;

    #[test]
    fn programs_are_found_in_mounts_only() {
        let dir = tempfile::tempdir().unwrap();
        let volume = dir.path().join("v");
        std::fs::create_dir_all(volume.join("deep")).unwrap();
        for file in [volume.join("a.wasm"), volume.join("deep/b.wasm"), dir.path().join("secret.wasm")] {
            std::fs::write(file, b"x").unwrap();
        }
        std::os::unix::fs::symlink("../secret.wasm", volume.join("link.wasm")).unwrap();
        std::os::unix::fs::symlink("a.wasm", volume.join("good.wasm")).unwrap();
        let mount = |guest: &str, host: &Path| Mount {
            host: host.into(),
            guest: guest.into(),
            read_only: true,
            propagation: None,
        };
        let mut launch = Launch {
            name: "n/p/c".into(),
            command: None,
            args: None,
            working_dir: None,
            env: Vec::new(),
            mounts: vec![mount("/data", &volume), mount("/data/sub", &volume.join("deep"))],
            network: Arc::new(wasmk_runtime::Deny),
            memory: None,
            cpu_millis: None,
            timeout: None,
            concurrency: None,
            per_request: Default::default(),
            keyvalue: None,
            blobs: None,
            log: Arc::new(Head::default()),
            stdin: None,
            isolated: false,
        };
        let check = |launch: &Launch, name: &str, expect: Option<&str>| {
            let found = locate(launch, name).ok().map(|f| f.strip_prefix(dir.path()).unwrap().to_path_buf());
            assert_eq!(found, expect.map(PathBuf::from), "{name}");
        };
        check(&launch, "/data/a.wasm", Some("v/a.wasm"));
        check(&launch, "/data/good.wasm", Some("v/a.wasm"));
        check(&launch, "data/sub/b.wasm", Some("v/deep/b.wasm"));
        check(&launch, "/data/link.wasm", None);
        check(&launch, "/data/../secret.wasm", None);
        check(&launch, "/data", None);
        check(&launch, "ls", None);
        launch.working_dir = Some("/data/deep".into());
        check(&launch, "b.wasm", Some("v/deep/b.wasm"));
    }
}
