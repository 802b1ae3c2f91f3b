//! The real program, started on free ports and a directory of its own, and real clients beside it.

use std::{
    ffi::OsString,
    net::{SocketAddr, TcpListener},
    path::{Path, PathBuf},
    process::{Child, ChildStdin, Command, Output, Stdio},
    sync::LazyLock,
    time::{Duration, Instant},
};

use serde_json::Value;
use tempfile::TempDir;

/// Longest wait for anything.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// A running `wasmk up`; stopped when dropped.
#[derive(Debug)]
pub struct Program {
    dir: TempDir,
    child: Child,
    status: Value,
    range: Option<PodRange>,
    _guard: ChildStdin,
}

/// A part of the pods' addresses that no other program on this machine uses, held by a port in it.
#[derive(Debug)]
struct PodRange {
    third: u8,
    _claim: TcpListener,
}

impl PodRange {
    fn claim() -> Self {
        let free = (1..63_u8).map(|part| part * 4).find_map(|third| {
            let claim = TcpListener::bind(SocketAddr::from(([127, 42, third + 3, 254], 42_424))).ok()?;
            Some(Self { third, _claim: claim })
        });
        free.expect("a free range of pod addresses")
    }

    fn cidr(&self) -> String {
        format!("127.42.{}.0/22", self.third)
    }

    /// A part of the services' addresses to go with it.
    fn services(&self) -> String {
        format!("127.43.{}.0/22", self.third)
    }
}

impl Program {
    /// Starts it with the usual settings.
    pub fn start() -> Self {
        Self::start_with(&[])
    }

    /// Starts it with more flags.
    pub fn start_with(flags: &[&str]) -> Self {
        Self::start_in(tempfile::tempdir().expect("a temporary directory"), flags)
    }

    /// Starts it on a data directory that may hold an earlier life.
    pub fn start_in(dir: TempDir, flags: &[&str]) -> Self {
        Self::start_at(dir, PodRange::claim(), flags)
    }

    fn start_at(dir: TempDir, range: PodRange, flags: &[&str]) -> Self {
        let log = std::fs::File::create(dir.path().join("up.log")).expect("a log file");
        let child = Command::new(binary())
            .arg("up")
            .args(unless(flags, ["--gateway-addr", "127.0.0.1:0"]))
            .args(unless(flags, ["--api-addr", "127.0.0.1:0"]))
            .args(["--registry-addr", "127.0.0.1:0", "--node-name", "node-a"])
            .args(ingress(flags))
            .arg("--data-dir")
            .arg(dir.path().join("data"))
            .args(unless(flags, ["--pod-cidr", &range.cidr()]))
            .args(unless(flags, ["--service-cidr", &range.services()]))
            .args(flags)
            .args(no_containers(flags))
            .args(isolation(flags))
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("a second handle"))
            .stderr(log)
            .spawn()
            .expect("wasmk starts");
        let mut program =
            Self { dir, _guard: guard(child.id()), child, status: Value::Null, range: Some(range) };
        program.status = program.until_ready();
        program
    }

    fn until_ready(&mut self) -> Value {
        let deadline = Instant::now() + PATIENCE;
        while Instant::now() < deadline {
            if let Some(code) = self.child.try_wait().expect("a child to ask") {
                panic!("wasmk up ended with {code}:\n{}", self.log());
            }
            let out = self.run(&["status", "-o", "json", "--data-dir", &self.data_dir()]);
            let status: Value = serde_json::from_slice(&out.stdout).unwrap_or(Value::Null);
            if status["ready"] == true {
                return status;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        panic!("wasmk up was not ready in time:\n{}", self.log());
    }

    /// How the first addresses of its services begin: `127.43.8.`.
    pub fn service_prefix(&self) -> String {
        let third = self.range.as_ref().map(|range| range.third).unwrap_or_default();
        format!("127.43.{third}.")
    }

    /// The ranges of its pods' and services' addresses, as flags for another server of the same cluster.
    pub fn ranges(&self) -> [String; 4] {
        let (pods, services) =
            self.range.as_ref().map(|range| (range.cidr(), range.services())).unwrap_or_default();
        ["--pod-cidr".into(), pods, "--service-cidr".into(), services]
    }

    /// What `wasmk up` printed.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.dir.path().join("up.log")).unwrap_or_default()
    }

    /// Its data directory.
    pub fn data_dir(&self) -> String {
        self.dir.path().join("data").display().to_string()
    }

    /// Its process.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// A directory for the test's own files.
    pub fn scratch(&self) -> &Path {
        self.dir.path()
    }

    /// The administrator's kubeconfig.
    pub fn kubeconfig(&self) -> String {
        format!("{}/kubeconfig", self.data_dir())
    }

    /// The address in `wasmk status -o json` under that key (`api`, `gateway`, `registry`, `ingress`).
    pub fn address(&self, of: &str) -> SocketAddr {
        let url = self.status[of].as_str().expect("an address");
        url.split_once("://").expect("a URL").1.parse().expect("an address and a port")
    }

    /// `wasmk …`, whatever it answers.
    pub fn run(&self, args: &[&str]) -> Output {
        self.client(&binary(), args, None)
    }

    /// `wasmk …`, which must succeed; its standard output.
    pub fn wasmk(&self, args: &[&str]) -> String {
        succeeded("wasmk", args, &self.run(args))
    }

    /// `kubectl …`, whatever it answers.
    pub fn kubectl_output(&self, args: &[&str], stdin: Option<&str>) -> Output {
        self.client(Path::new("kubectl"), args, stdin)
    }

    /// `kubectl …`, which must succeed; its standard output.
    pub fn kubectl(&self, args: &[&str]) -> String {
        succeeded("kubectl", args, &self.kubectl_output(args, None))
    }

    /// `kubectl apply -f -` of that text.
    pub fn apply(&self, manifest: &str) -> String {
        let args = ["apply", "-f", "-"];
        succeeded("kubectl", &args, &self.kubectl_output(&args, Some(manifest)))
    }

    /// Another program with the cluster's kubeconfig.
    pub fn client(&self, program: &Path, args: &[&str], stdin: Option<&str>) -> Output {
        use std::io::Write;
        let mut child = Command::new(program)
            .args(args)
            .env("KUBECONFIG", self.kubeconfig())
            .env("HOME", self.dir.path())
            .env("PATH", search_path())
            .envs(toolchain())
            .current_dir(self.dir.path())
            .stdin(if stdin.is_some() { Stdio::piped() } else { Stdio::null() })
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap_or_else(|e| {
                panic!("{} cannot be started ({e}); `make test` installs it", program.display())
            });
        if let (Some(text), Some(mut pipe)) = (stdin, child.stdin.take()) {
            pipe.write_all(text.as_bytes()).expect("the client reads its input");
        }
        child.wait_with_output().expect("the client ends")
    }

    /// Asks again and again until `good` is true of the answer, which is returned.
    pub fn until<T>(&self, what: &str, mut ask: impl FnMut(&Self) -> T, good: impl Fn(&T) -> bool) -> T
    where
        T: std::fmt::Debug,
    {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let answer = ask(self);
            if good(&answer) {
                return answer;
            }
            assert!(Instant::now() < deadline, "{what}: still {answer:?}\n{}", self.log());
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// Asks the gateway for a path of a function, by its host name: status code and body.
    pub fn call(&self, host: &str, path: &str) -> (u16, String) {
        let url = format!("http://{}{path}", self.address("gateway"));
        let out = Command::new("curl")
            .args(["-sS", "--max-time", "30", "-w", "\n%{http_code}", "-H", &format!("Host: {host}"), &url])
            .output()
            .expect("curl runs");
        let text = String::from_utf8_lossy(&out.stdout).into_owned();
        let (body, code) = text.rsplit_once('\n').unwrap_or(("", "0"));
        (code.parse().unwrap_or(0), body.into())
    }

    /// Ends the process without a chance to clean up, and starts it again on what it left.
    pub fn kill(mut self) -> Self {
        self.child.kill().expect("a child to kill");
        self.child.wait().expect("a child to wait for");
        self.again(&[])
    }

    /// The same, and starts it again with flags.
    pub fn kill_with(mut self, flags: &[&str]) -> Self {
        self.child.kill().expect("a child to kill");
        self.child.wait().expect("a child to wait for");
        self.again(flags)
    }

    /// Stops it as a user does, and starts it again.
    pub fn restart(mut self) -> Self {
        self.wasmk(&["down", "--data-dir", &self.data_dir()]);
        self.child.wait().expect("a child to wait for");
        self.again(&[])
    }

    /// Stops it as a user does; the directory it leaves is for [`start_in`](Self::start_in).
    pub fn stop(mut self) -> TempDir {
        self.wasmk(&["down", "--data-dir", &self.data_dir()]);
        self.child.wait().expect("a child to wait for");
        let fresh = tempfile::tempdir().expect("a temporary directory");
        std::mem::replace(&mut self.dir, fresh)
    }

    fn again(&mut self, flags: &[&str]) -> Self {
        let fresh = tempfile::tempdir().expect("a temporary directory");
        let range = self.range.take().expect("a range from the first start");
        Self::start_at(std::mem::replace(&mut self.dir, fresh), range, flags)
    }

    /// The text of an example with this cluster's registry in it.
    pub fn example(&self, file: &str) -> String {
        let path = repository().join("examples").join(file);
        let text = std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        text.replace("127.0.0.1:5050", &self.address("registry").to_string())
    }

    /// Pushes a guest; the whole reference of its image.
    pub fn push(&self, name: &str) -> String {
        let file = guest(name);
        self.wasmk(&["push", file.to_str().expect("a UTF-8 path"), &format!("default/{name}:1")]);
        format!("{}/default/{name}:1", self.address("registry"))
    }

    /// `kubectl …`, which must fail; its standard error.
    pub fn kubectl_refused(&self, args: &[&str], stdin: Option<&str>) -> String {
        let out = self.kubectl_output(args, stdin);
        assert!(!out.status.success(), "kubectl {} succeeded", args.join(" "));
        String::from_utf8_lossy(&out.stderr).into_owned()
    }

    /// `wasmk …`, which must fail; its standard error.
    pub fn refused(&self, args: &[&str]) -> String {
        let out = self.run(args);
        assert!(!out.status.success(), "wasmk {} succeeded", args.join(" "));
        String::from_utf8_lossy(&out.stderr).into_owned()
    }

    /// One value of an object, by kubectl's JSONPath; empty when it is not there.
    pub fn value(&self, object: &str, path: &str) -> String {
        let out = self.kubectl_output(&["get", object, "-o", &format!("jsonpath={path}")], None);
        String::from_utf8_lossy(&out.stdout).into_owned()
    }

    /// Waits until that value of the object is `expected`.
    pub fn until_value(&self, object: &str, path: &str, expected: &str) {
        self.until(&format!("{object} {path}"), |p| p.value(object, path), |v| v == expected);
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A container runtime that happens to be on this machine is left alone unless a test names one.
fn no_containers(flags: &[&str]) -> &'static [&'static str] {
    let flag = "--container-runtime-endpoint";
    if flags.contains(&flag) { &[] } else { &["--container-runtime-endpoint", "none"] }
}

/// Ingresses are served at free ports unless a test says otherwise.
fn ingress(flags: &[&str]) -> &'static [&'static str] {
    let chosen = ["--publish", "--no-ingress"].iter().any(|flag| flags.contains(flag));
    if chosen { &[] } else { &["--ingress-addr", "127.0.0.1:0", "--ingress-tls-addr", "127.0.0.1:0"] }
}

/// All tests can be run with guests in processes of their own: `WASMK_TEST_ISOLATION=process`.
fn isolation(flags: &[&str]) -> Vec<String> {
    let flag = "--wasm-isolation";
    match std::env::var("WASMK_TEST_ISOLATION") {
        Ok(how) if !flags.contains(&flag) => vec![flag.to_owned(), how],
        _ => Vec::new(),
    }
}

/// A flag with its usual value, unless it is among the flags.
fn unless<'a>(flags: &[&str], usual: [&'a str; 2]) -> Vec<&'a str> {
    if flags.contains(&usual[0]) { Vec::new() } else { usual.to_vec() }
}

fn succeeded(program: &str, args: &[&str], out: &Output) -> String {
    let (stdout, stderr) = (String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr));
    assert!(out.status.success(), "{program} {} failed:\n{stdout}{stderr}", args.join(" "));
    stdout.into_owned()
}

/// Where compilers are for `fn build`, and what they keep from one build to the next: the test's own home directory
/// would hide Rust, and C and Go are beside the Python clients unless the machine has its own.
pub(crate) fn toolchain() -> impl Iterator<Item = (&'static str, OsString)> {
    let home = std::env::var_os("HOME").unwrap_or_default();
    let rust =
        [("RUSTUP_HOME", ".rustup"), ("CARGO_HOME", ".cargo")].into_iter().map(move |(name, folder)| {
            let usual = || Path::new(&home).join(folder).into_os_string();
            (name, std::env::var_os(name).unwrap_or_else(usual))
        });
    let fetched = std::env::var_os("WASMK_TEST_VENV").map(PathBuf::from).into_iter().flat_map(|folder| {
        let kept = |name: &str| folder.join("cache").join(name).into_os_string();
        [("ZIG_GLOBAL_CACHE_DIR", kept("zig")), ("GOCACHE", kept("go")), ("GOTOOLCHAIN", "local".into())]
    });
    rust.chain(fetched)
}

/// Where programs are looked for: beside the one under test, then as ever, then among what the tests have fetched.
pub(crate) fn search_path() -> OsString {
    let usual = std::env::var_os("PATH").unwrap_or_default();
    let own = binary().parent().map(Path::to_path_buf);
    let fetched = std::env::var_os("WASMK_TEST_VENV").map(|folder| Path::new(&folder).join("bin"));
    let all = own.into_iter().chain(std::env::split_paths(&usual)).chain(fetched);
    std::env::join_paths(all).expect("folders without colons")
}

/// Ends a process when this one ends, however it does: programs in statics are never dropped.
#[allow(clippy::zombie_processes, reason = "the shell outlives this process, that is its purpose")]
fn guard(process: u32) -> ChildStdin {
    let mut shell = Command::new("sh")
        .args(["-c", &format!("cat; kill -9 {process}")])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("a shell to watch with");
    shell.stdin.take().expect("a pipe")
}

/// The program under test: what WASMK_BINARY names, or what `cargo build --bin wasmk` made beside this test.
pub fn binary() -> PathBuf {
    if let Some(path) = std::env::var_os("WASMK_BINARY") {
        return path.into();
    }
    let test = std::env::current_exe().expect("the test's own path");
    let path = test.parent().and_then(Path::parent).expect("a target directory").join("wasmk");
    assert!(
        path.exists(),
        "{} is not there: run `make test`, or `cargo build --bin wasmk` first",
        path.display()
    );
    path
}

/// A guest built by `tools/build-test-guests`.
pub fn guest(name: &str) -> PathBuf {
    let dir =
        std::env::var_os("WASMK_GUESTS").expect("WASMK_GUESTS names the built guests; `make test` sets it");
    let path = Path::new(&dir).join(format!("{name}.wasm"));
    assert!(path.exists(), "{} is not there: run tools/build-test-guests", path.display());
    path
}

/// The repository's root. Tests and benches run in the directory of their package; where they were
/// compiled says nothing, as clones may share what they build.
pub fn repository() -> &'static Path {
    static ROOT: LazyLock<PathBuf> = LazyLock::new(|| {
        let package = std::env::current_dir().expect("a working directory");
        package.parent().expect("a package is in the repository").into()
    });
    &ROOT
}
