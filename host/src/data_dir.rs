//! Where a control plane or an agent keeps what it knows, and how others find it running.
//!
//! ```text
//! DIR/run.json      where the live process listens (control plane only; removed at a clean stop)
//! DIR/agent.json    which node the live process is (agent only; removed at a clean stop)
//! DIR/run.lock      held by the live process
//! DIR/kubeconfig    the administrator's (control plane only)
//! DIR/pki/          certificates and keys
//! DIR/store/        every object
//! DIR/store.sock    where the live process answers commands about the store
//! DIR/registry/     pushed artifacts
//! DIR/node/         images, compiled code, logs and volumes of this node's pods
//! DIR/wasmk.log     output of a detached process; what became too long is in wasmk.log.old
//! DIR/agent-N/      the same of a node that the control plane keeps beside it, and
//! DIR/agent-N.log   its output
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
    /// Whether Ingresses were left out on purpose.
    #[serde(default)]
    pub without_ingress: bool,
    /// The name of the node in this process, if it runs one.
    pub node: Option<String>,
    /// The names of the nodes that it keeps beside it, in their order.
    #[serde(default)]
    pub agents: Vec<String>,
}

impl Running {
    /// Where programs on this machine reach the API.
    pub fn api_from_here(&self) -> SocketAddr {
        if self.api.ip().is_unspecified() {
            return SocketAddr::new([127, 0, 0, 1].into(), self.api.port());
        }
        self.api
    }
}

/// A node's own process, as `DIR/agent.json` holds it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunningAgent {
    /// Its process.
    pub pid: u32,
    /// Its name in the cluster.
    pub node: String,
}

/// Proof that this process is the directory's only user; let go when dropped.
#[derive(Debug)]
pub struct Claim {
    _lock: Flock<File>,
    run_file: PathBuf,
    agent_file: PathBuf,
}

impl Drop for Claim {
    fn drop(&mut self) {
        self.unpublish();
    }
}

impl Claim {
    /// Without the files `status` says "not running" at once; left-over ones are told apart by the lock, until it is
    /// taken again.
    fn unpublish(&self) {
        let _ = std::fs::remove_file(&self.run_file);
        let _ = std::fs::remove_file(&self.agent_file);
    }

    /// Tells others where this process listens.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn publish(&self, running: &Running) -> Result<()> {
        files::write_private(&self.run_file, &serde_json::to_vec_pretty(running)?)
    }

    /// Tells others which node this process is.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn publish_agent(&self, running: &RunningAgent) -> Result<()> {
        files::write_private(&self.agent_file, &serde_json::to_vec_pretty(running)?)
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

    /// That of a node beside the control plane, the first being 0.
    #[must_use]
    pub fn agent(&self, index: usize) -> Self {
        Self(self.join(&format!("agent-{index}")))
    }

    /// Where that node's output goes.
    pub fn agent_log(&self, index: usize) -> PathBuf {
        self.join(&format!("agent-{index}.log"))
    }

    /// How many such nodes there were at the last start.
    pub fn agents(&self) -> usize {
        (0..).take_while(|index| self.agent(*index).path().is_dir()).count()
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
            Ok(lock) => {
                let (run_file, agent_file) = (self.join("run.json"), self.join("agent.json"));
                let claim = Claim { _lock: lock, run_file, agent_file };
                // What a process left behind that was killed is not true of this one.
                claim.unpublish();
                Ok(claim)
            }
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
        let running = self.read_run_file()?;
        Ok(running.filter(|_| self.is_claimed()))
    }

    /// The node whose process uses the directory now.
    ///
    /// # Errors
    /// When a file is there and cannot be read.
    pub fn running_agent(&self) -> Result<Option<RunningAgent>> {
        let running = self.read("agent.json")?;
        Ok(running.filter(|_| self.is_claimed()))
    }

    fn is_claimed(&self) -> bool {
        let file = File::options().write(true).open(self.join("run.lock"));
        file.is_ok_and(|file| Flock::lock(file, FlockArg::LockExclusiveNonblock).is_err())
    }

    fn read_run_file(&self) -> Result<Option<Running>> {
        self.read("run.json")
    }

    fn read<T: serde::de::DeserializeOwned>(&self, name: &str) -> Result<Option<T>> {
        let path = self.join(name);
        let Some(text) = files::read_if_there(&path)? else { return Ok(None) };
        let read = serde_json::from_str(&text);
        read.map(Some).with_context(|| format!("cannot understand {}", path.display()))
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
            without_ingress: false,
            node: None,
            agents: Vec::new(),
        };
        claim.publish(&running).unwrap();
        assert_eq!(data.running().unwrap(), Some(running));
        let agent = RunningAgent { pid: 7, node: "a".into() };
        claim.publish_agent(&agent).unwrap();
        assert_eq!(data.running_agent().unwrap(), Some(agent));
        let refused = data.claim().unwrap_err().to_string();
        assert!(refused.contains("in use") && refused.contains("process 7"), "{refused}");
        drop(claim);
        assert_eq!(data.running().unwrap(), None);
        assert_eq!(data.running_agent().unwrap(), None);
        data.claim().unwrap();
    }

    #[test]
    fn what_a_killed_process_left_is_not_told_of_the_next() {
        let dir = tempfile::tempdir().unwrap();
        let data = DataDir::new(dir.path());
        let agent = RunningAgent { pid: 7, node: "a".into() };
        files::write_private(&data.join("agent.json"), &serde_json::to_vec(&agent).unwrap()).unwrap();
        let _claim = data.claim().unwrap();
        assert_eq!(data.running_agent().unwrap(), None);
    }

    #[test]
    fn agents_are_counted_by_their_directories() {
        let dir = tempfile::tempdir().unwrap();
        let data = DataDir::new(dir.path());
        assert_eq!(data.agents(), 0);
        for index in [0, 1, 3] {
            files::private_dir(data.agent(index).path()).unwrap();
        }
        assert_eq!(data.agents(), 2);
    }
}
