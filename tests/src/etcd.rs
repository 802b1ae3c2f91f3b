//! An etcd for servers that share a store.

use std::{
    net::{TcpListener, TcpStream},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use tempfile::TempDir;

use crate::program::PATIENCE;

/// An etcd of one member, on free ports and a directory of its own; ends when dropped.
#[derive(Debug)]
pub struct Etcd {
    address: String,
    process: Child,
    _dir: TempDir,
}

impl Etcd {
    /// Starts it, and waits until it listens.
    ///
    /// # Panics
    /// When there is no etcd on this machine, or it does not listen in time.
    pub fn start() -> Self {
        let free = || TcpListener::bind("127.0.0.1:0").and_then(|l| l.local_addr()).expect("a free port");
        let (client, peer) = (free(), free());
        let dir = tempfile::tempdir().expect("a temporary directory");
        let (client_url, peer_url) = (format!("http://{client}"), format!("http://{peer}"));
        let process = Command::new("etcd")
            .arg("--data-dir")
            .arg(dir.path())
            .args(["--name", "default"])
            .args(["--listen-client-urls", &client_url, "--advertise-client-urls", &client_url])
            .args(["--listen-peer-urls", &peer_url, "--initial-advertise-peer-urls", &peer_url])
            .args(["--initial-cluster", &format!("default={peer_url}")])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("etcd can be started; `make test` installs it");
        let deadline = Instant::now() + PATIENCE;
        while TcpStream::connect(client).is_err() {
            assert!(Instant::now() < deadline, "etcd does not listen");
            std::thread::sleep(Duration::from_millis(20));
        }
        Self { address: client.to_string(), process, _dir: dir }
    }

    /// How `wasmk --store` names it.
    pub fn store(&self) -> String {
        format!("etcd://{}", self.address)
    }
}

impl Drop for Etcd {
    fn drop(&mut self) {
        let _ = self.process.kill().and_then(|()| self.process.wait());
    }
}
