//! What a running process does for commands on the same machine: a socket in its data directory.
//!
//! Only the directory's owner can reach it. Whoever connects gets a snapshot of the store, and the end of the
//! stream behind its checksum.

use std::{
    fs,
    io::{self, Write},
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use anyhow::{Context, Result};
use tokio::{
    io::AsyncWriteExt,
    net::{UnixListener, UnixStream},
    sync::Semaphore,
};
use tokio_util::sync::CancellationToken;
use wasmk_store::Store;

/// Snapshots sent at the same time; each holds the list of everything while it is sent.
const MAX_SNAPSHOTS: usize = 2;
/// Longest time for one snapshot to be taken away.
const SEND_LIMIT: Duration = Duration::from_secs(600);
/// Bytes sent at a time.
const CHUNK: usize = 1 << 20;

/// The socket of a data directory.
pub(crate) fn socket(data: &Path) -> PathBuf {
    data.join("store.sock")
}

/// Serves snapshots of `store` until stopped.
///
/// # Errors
/// When the socket cannot be made, for instance because its path is longer than the system allows.
pub(crate) fn serve(
    data: &Path,
    store: Arc<dyn Store>,
    stop: CancellationToken,
) -> Result<impl Future<Output = ()> + Send + use<>> {
    let path = socket(data);
    match fs::remove_file(&path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            return Err(error).with_context(|| format!("cannot replace {}", path.display()));
        }
        _ => {}
    }
    let listener = UnixListener::bind(&path).with_context(|| format!("cannot make {}", path.display()))?;
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600))?;
    Ok(async move {
        let room = Arc::new(Semaphore::new(MAX_SNAPSHOTS));
        loop {
            let accepted = tokio::select! {
                () = stop.cancelled() => break,
                accepted = listener.accept() => accepted,
            };
            let Ok((stream, _)) = accepted else { continue };
            let (store, room) = (store.clone(), room.clone());
            tokio::spawn(async move {
                let Ok(_permit) = room.acquire().await else { return };
                let sent = tokio::time::timeout(SEND_LIMIT, send(&*store, stream)).await;
                if let Err(error) = sent.unwrap_or_else(|_| Err(anyhow::anyhow!("it was not taken in time")))
                {
                    tracing::warn!("a snapshot was not sent: {error:#}");
                }
            });
        }
        // The next start makes it anew; a left-over one refuses connections.
        let _ = fs::remove_file(path);
    })
}

async fn send(store: &dyn Store, mut stream: UnixStream) -> Result<()> {
    let mut bytes = Vec::new();
    wasmk_store::export(store, &mut bytes).await?;
    for chunk in bytes.chunks(CHUNK) {
        stream.write_all(chunk).await?;
    }
    stream.shutdown().await?;
    Ok(())
}

/// Has the process that uses a data directory send a snapshot. Blocks.
///
/// # Errors
/// When there is no such process, or the stream breaks. That the stream is whole is for the reader to check.
pub(crate) fn receive(data: &Path, mut into: impl Write) -> Result<u64> {
    let path = socket(data);
    let stream = std::os::unix::net::UnixStream::connect(&path);
    let mut stream =
        stream.with_context(|| format!("cannot reach the running process at {}", path.display()))?;
    stream.set_read_timeout(Some(SEND_LIMIT))?;
    Ok(io::copy(&mut stream, &mut into)?)
}
