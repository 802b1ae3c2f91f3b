//! A container runtime of the tests' own (tools/test-containerd).

use std::{path::PathBuf, process::Command};

use tempfile::TempDir;

use crate::{program::repository, required::skip};

/// A containerd that lives as long as this does.
#[derive(Debug)]
pub struct Containerd {
    dir: TempDir,
    socket: PathBuf,
}

impl Containerd {
    /// Starts one; `None`, with a word on standard error, where containers cannot be run and need not be.
    pub fn start() -> Option<Self> {
        // The path of a socket may not be long.
        let dir = tempfile::Builder::new().prefix("ct").tempdir_in("/tmp").expect("a directory in /tmp");
        let mut containerd = Self { dir, socket: PathBuf::new() };
        containerd.socket = containerd.tool("up")?.trim().into();
        Some(containerd)
    }

    fn tool(&self, verb: &str) -> Option<String> {
        let out = Command::new(repository().join("tools/test-containerd"))
            .arg(verb)
            .arg(self.dir.path().join("c"))
            .output()
            .expect("tools/test-containerd runs");
        let said = String::from_utf8_lossy(&out.stderr);
        if out.status.code() == Some(77) {
            skip("containers", &said);
            return None;
        }
        assert!(out.status.success(), "tools/test-containerd {verb}: {said}");
        Some(String::from_utf8_lossy(&out.stdout).into_owned())
    }

    /// The flag that tells `wasmk` of it.
    pub fn endpoint(&self) -> String {
        format!("unix://{}", self.socket.display())
    }

    /// Pushes an image that is here to a registry that speaks plain HTTP, by another name.
    pub fn push(&self, image: &str, to: &str) {
        self.client(&["images", "push", "--plain-http", to, image]);
    }

    /// Makes a registry's images come from another address.
    pub fn mirror(&self, registry: &str, url: &str) {
        let dir = self.dir.path().join("c/certs").join(registry);
        std::fs::create_dir_all(&dir).expect("a directory");
        let text = format!("[host.\"{url}\"]\n  capabilities = [\"pull\", \"resolve\"]\n");
        std::fs::write(dir.join("hosts.toml"), text).expect("a file");
    }

    /// Forgets an image's name.
    pub fn remove(&self, image: &str) {
        self.client(&["images", "remove", image]);
    }

    /// Names of all images that are here, one in a line.
    pub fn images(&self) -> String {
        self.client(&["images", "list", "--quiet"])
    }

    /// What the OCI runtime of handler `noting` was called with.
    pub fn noted(&self) -> String {
        std::fs::read_to_string(self.dir.path().join("c/noted")).unwrap_or_default()
    }

    fn client(&self, args: &[&str]) -> String {
        let out = Command::new("ctr")
            .arg("--address")
            .arg(&self.socket)
            .args(["--namespace", "k8s.io"])
            .args(args)
            .output()
            .expect("ctr runs");
        let said = String::from_utf8_lossy(&out.stderr);
        assert!(out.status.success(), "ctr {}: {said}", args.join(" "));
        String::from_utf8_lossy(&out.stdout).into_owned()
    }

    /// Ends the runtime at once and starts it again; containers go on meanwhile.
    pub fn restart(&self) {
        self.tool("kill");
        self.tool("up");
    }
}

impl Drop for Containerd {
    fn drop(&mut self) {
        let tool = repository().join("tools/test-containerd");
        let _ = Command::new(tool).arg("down").arg(self.dir.path().join("c")).output();
    }
}
