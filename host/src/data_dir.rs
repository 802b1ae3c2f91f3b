//! Where a control plane or an agent keeps what it knows, and how others find it running.
//!
//! ```text
//! DIR/run.json      where the live process listens (removed at a clean stop)
//! DIR/run.lock      held by the live process
//! DIR/kubeconfig    the administrator's (control plane only)
//! DIR/pki/          certificates and keys
//! DIR/store/        every object
//! DIR/store.sock    where the live process answers commands about the store
//! DIR/registry/     pushed artifacts
//! DIR/node/         images, compiled code, logs and volumes of this node's pods
//! DIR/wasmk.log     output of a detached process; what became too long is in wasmk.log.old
//! ```

use std::{
    fs::File,
    net::SocketAddr,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail};
use nix::fcntl::{Flock, FlockArg};
use serde::{Deserialize, Serialize};

use crate::files;

/// A data directory; it need not exist yet.
#[derive(Clone, Debug)]
pub struct DataDir(PathBuf);

/// Where a running control plane listens, as `DIR/run.json` holds it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Running {
    /// Its process.
    pub pid: u32,
    /// The Kubernetes API, HTTPS.
    pub api: SocketAddr,
    /// Functions by Host header, HTTP.
    pub gateway: SocketAddr,
    /// The OCI registry, HTTP.
    pub registry: SocketAddr,
    /// What Ingresses lead to, HTTP; none when its port was not to be had.
    #[serde(default)]
    pub ingress: Option<SocketAddr>,
    /// The same over TLS.
    #[serde(default)]
    pub ingress_tls: Option<SocketAddr>,
    /// The name of the node in this process, if it runs one.
    pub node: Option<String>,
}

/// Proof that this process is the directory's only user; let go when dropped.
#[derive(Debug)]
pub struct Claim {
    _lock: Flock<File>,
    run_file: PathBuf,
}

impl Drop for Claim {
    fn drop(&mut self) {
        // Without the file `status` says "not running" at once; a left-over one is told apart by the lock.
        let _ = std::fs::remove_file(&self.run_file);
    }
}

impl Claim {
    /// Tells others where this process listens.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn publish(&self, running: &Running) -> Result<()> {
        files::write_private(&self.run_file, &serde_json::to_vec_pretty(running)?)
    }
}

impl DataDir {
    /// The directory at that path.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self(path.into())
    }

    /// The directory itself.
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// A file or directory below it.
    pub fn join(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    /// The administrator's kubeconfig.
    pub fn kubeconfig(&self) -> PathBuf {
        self.join("kubeconfig")
    }

    /// Makes the directory and claims it for this process.
    ///
    /// # Errors
    /// When another live process has it, or it cannot be made.
    pub fn claim(&self) -> Result<Claim> {
        files::private_dir(&self.0)?;
        let path = self.join("run.lock");
        let file = File::options().create(true).truncate(false).write(true).open(&path);
        let file = file.with_context(|| format!("cannot open {}", path.display()))?;
        match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(lock) => Ok(Claim { _lock: lock, run_file: self.join("run.json") }),
            Err((_, nix::errno::Errno::EWOULDBLOCK)) => {
                let whose = self.read_run_file().ok().flatten().map(|r| format!(" (process {})", r.pid));
                bail!(
                    "the data directory {} is in use by another wasmk{}; stop it with `wasmk down --data-dir {}` or choose another --data-dir",
                    self.0.display(),
                    whose.unwrap_or_default(),
                    self.0.display()
                )
            }
            Err((_, e)) => Err(e).with_context(|| format!("cannot lock {}", path.display())),
        }
    }

    /// The process that uses the directory now, if any has published where it listens.
    ///
    /// # Errors
    /// When a file is there and cannot be read.
    pub fn running(&self) -> Result<Option<Running>> {
        let Some(running) = self.read_run_file()? else { return Ok(None) };
        let path = self.join("run.lock");
        let Ok(file) = File::options().write(true).open(&path) else { return Ok(None) };
        match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(_free) => Ok(None),
            Err(_) => Ok(Some(running)),
        }
    }

    fn read_run_file(&self) -> Result<Option<Running>> {
        let path = self.join("run.json");
        let Some(text) = files::read_if_there(&path)? else { return Ok(None) };
        let running = serde_json::from_str(&text);
        running.map(Some).with_context(|| format!("cannot understand {}", path.display()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_process_at_a_time() {
        let dir = tempfile::tempdir().unwrap();
        let data = DataDir::new(dir.path().join("d"));
        let claim = data.claim().unwrap();
        let address = "127.0.0.1:1".parse().unwrap();
        let running = Running {
            pid: 7,
            api: address,
            gateway: address,
            registry: address,
            ingress: None,
            ingress_tls: None,
            node: None,
        };
        claim.publish(&running).unwrap();
        assert_eq!(data.running().unwrap(), Some(running));
        let refused = data.claim().unwrap_err().to_string();
        assert!(refused.contains("in use") && refused.contains("process 7"), "{refused}");
        drop(claim);
        assert_eq!(data.running().unwrap(), None);
        data.claim().unwrap();
    }
}
