//! A real etcd, for as long as a test lasts.

use std::io::Write;
use std::net::TcpListener;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use wasmk_store::{Etcd, MAX_TXN_KEYS, Store};

/// Longest a server may take to answer.
const START_LIMIT: Duration = Duration::from_secs(30);

pub(crate) struct Server {
    dir: tempfile::TempDir,
    client: String,
    peer: String,
    process: Child,
}

impl Server {
    /// Starts one; `None`, with a word why, where etcd is not installed.
    pub(crate) fn start() -> Option<Self> {
        if Command::new("etcd").arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status().is_err()
        {
            // Past the test harness, which keeps what passing tests print.
            let _ = writeln!(std::io::stderr(), "skipped: there is no etcd in PATH");
            return None;
        }
        let dir = tempfile::tempdir().expect("a temporary directory");
        let (client, peer) = (free_address(), free_address());
        let process = spawn(&dir, &client, &peer);
        Some(Self { dir, client, peer, process })
    }

    /// Kills it and starts it again on the same data and address.
    pub(crate) fn restart(&mut self) {
        self.stop();
        self.process = spawn(&self.dir, &self.client, &self.peer);
    }

    pub(crate) async fn connect(&self) -> Etcd {
        let limit = Instant::now() + START_LIMIT;
        loop {
            match Etcd::connect(std::slice::from_ref(&self.client), None).await {
                Ok(store) if store.revision().await.is_ok() => return store,
                Err(error) if Instant::now() > limit => panic!("etcd does not answer: {error}"),
                _ => tokio::time::sleep(Duration::from_millis(50)).await,
            }
        }
    }

    fn stop(&mut self) {
        self.process.kill().expect("our own process");
        self.process.wait().expect("our own process");
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop();
    }
}

fn free_address() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    format!("http://{}", listener.local_addr().expect("bound"))
}

fn spawn(dir: &tempfile::TempDir, client: &str, peer: &str) -> Child {
    Command::new("etcd")
        .arg("--data-dir")
        .arg(dir.path())
        .args(["--listen-client-urls", client, "--advertise-client-urls", client])
        .args(["--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer])
        .args(["--initial-cluster", &format!("default={peer}"), "--max-txn-ops", &MAX_TXN_KEYS.to_string()])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("etcd starts")
}
