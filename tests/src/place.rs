//! A namespace of a test's own, and a shell in which `kubectl` and `wasmk` act in it.

use std::{
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    time::{Duration, Instant},
};

use tempfile::TempDir;

use crate::program::{PATIENCE, Program, search_path, toolchain};

/// Longest any one script may take.
const LIMIT: &str = "90";

/// A namespace in a running program.
#[derive(Debug)]
pub struct Place {
    program: &'static Program,
    dir: TempDir,
}

/// A process that is ended when dropped.
#[derive(Debug)]
pub struct Running(Child);

impl Running {
    /// Starts a command with nothing to read and nowhere to print.
    pub fn start(command: &mut Command) -> Self {
        let command = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        Self(command.spawn().expect("the program starts"))
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Place {
    /// Makes the namespace and a kubeconfig whose current context is in it.
    pub fn new(program: &'static Program, namespace: &str) -> Self {
        if namespace != "default" {
            program.kubectl(&["create", "namespace", namespace]);
        }
        let dir = tempfile::tempdir().expect("a temporary directory");
        std::fs::copy(program.kubeconfig(), dir.path().join("config")).expect("a kubeconfig to copy");
        let place = Self { program, dir };
        place.sh(&format!("kubectl config set-context --current --namespace={namespace}"));
        place
    }

    /// The directory its scripts run in; `config` in it is the kubeconfig.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// Writes a file into its directory.
    pub fn write(&self, name: &str, text: &str) -> PathBuf {
        let path = self.dir.path().join(name);
        std::fs::create_dir_all(path.parent().expect("a folder")).expect("a folder can be made");
        std::fs::write(&path, text).expect("a file can be written");
        path
    }

    /// A command with the place's surroundings.
    pub fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command
            .env("PATH", search_path())
            .env("KUBECONFIG", self.dir.path().join("config"))
            .env("HOME", self.dir.path())
            .env("REGISTRY", self.program.address("registry").to_string())
            .env("API", format!("https://{}", self.program.address("api")))
            .envs(toolchain())
            .current_dir(self.dir.path())
            .stdin(Stdio::null());
        command
    }

    /// Runs a shell script, whatever comes of it.
    pub fn output(&self, script: &str) -> Output {
        let mut command = self.command("timeout");
        command.args([LIMIT, "bash", "-c", script]).output().expect("a shell runs")
    }

    /// Runs a shell script, which must succeed; its standard output without the last line's end.
    pub fn sh(&self, script: &str) -> String {
        let out = self.output(script);
        let (stdout, stderr) = (String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr));
        assert!(out.status.success(), "{script}\n{stdout}{stderr}");
        stdout.trim_end().into()
    }

    /// Runs a shell script, which must fail; its standard error.
    pub fn fails(&self, script: &str) -> String {
        let out = self.output(script);
        assert!(!out.status.success(), "{script}\nsucceeded: {}", String::from_utf8_lossy(&out.stdout));
        String::from_utf8_lossy(&out.stderr).into_owned()
    }

    /// `kubectl apply` of a manifest, in which `$REGISTRY` stands for the cluster's registry.
    pub fn apply(&self, manifest: &str) -> String {
        self.manifest(manifest);
        self.sh("kubectl apply -f manifest.yaml")
    }

    /// `kubectl apply` of a manifest, which must be refused; the reason.
    pub fn refuses(&self, manifest: &str) -> String {
        self.manifest(manifest);
        self.fails("kubectl apply -f manifest.yaml")
    }

    fn manifest(&self, text: &str) {
        let registry = self.program.address("registry").to_string();
        self.write("manifest.yaml", &text.replace("$REGISTRY", &registry));
    }

    /// Runs the script again and again until it prints exactly that.
    pub fn until(&self, script: &str, expected: &str) {
        self.until_that(script, |text| text == expected);
    }

    /// Runs the script again and again until what it prints is good, and returns that.
    pub fn until_that(&self, script: &str, good: impl Fn(&str) -> bool) -> String {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let out = self.output(script);
            let text = String::from_utf8_lossy(&out.stdout).trim_end().to_string();
            if good(&text) {
                return text;
            }
            let stderr = String::from_utf8_lossy(&out.stderr);
            assert!(Instant::now() < deadline, "{script}\nstill: {text}\n{stderr}{}", self.program.log());
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    /// One value of an object, by kubectl's JSONPath; empty when it is not there.
    pub fn value(&self, object: &str, path: &str) -> String {
        let out = self.output(&format!("kubectl get {object} -o jsonpath='{path}'"));
        String::from_utf8_lossy(&out.stdout).into_owned()
    }

    /// Waits until that value of the object is `expected`.
    pub fn until_value(&self, object: &str, path: &str, expected: &str) {
        self.until(&format!("kubectl get {object} -o jsonpath='{path}'"), expected);
    }
}
