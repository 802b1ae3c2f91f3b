//! The Wasm runtime as this agent's [`Engine`].

use std::{
    collections::{BTreeSet, HashMap},
    fmt::Write,
    path::PathBuf,
    sync::{Arc, Weak},
    time::Duration,
};

use async_trait::async_trait;
use bytes::Bytes;
use parking_lot::Mutex;
use wasmk_runtime::{
    Auth, CallError, Exit, ExitReason, HttpLimits, Image, ProgramKind, PullError, REUSE_SECTION, Reference,
    Reuse, Runtime, Spec, StopSignal,
};
use wasmk_wall::Wall;

use crate::{
    engine::{
        Body, End, Engine, Failure, Files, Handler, Kind, Launch, Prepared, Program, PullPolicy, Usage,
        Wanted,
    },
    logs::{LogSink, Stream},
};

/// Version of the engine, as nodes report it.
const VERSION: &str = "wasmtime://48.0.8";
/// Longest time for finding out what kind of image a name stands for.
const RECOGNIZE: Duration = Duration::from_secs(20);
/// How long an instance that may be used again is kept without requests.
const REUSE_IDLE: Duration = Duration::from_secs(30);
/// Exit status of a run that was asked to stop, as a shell reports SIGTERM.
const TERMINATED: i32 = 143;

/// Runs WebAssembly.
pub struct WasmEngine {
    runtime: Runtime,
    wall: Option<Isolation>,
    live: Live,
}

/// A second wall around guests.
#[derive(Clone)]
pub struct Isolation {
    /// Runs them elsewhere.
    pub wall: Wall,
    /// All of them, and not only those that ask for it.
    pub always: bool,
}

/// Counters of what runs, by the launch's name.
type Live = Arc<Mutex<HashMap<String, Weak<wasmk_runtime::Usage>>>>;

impl WasmEngine {
    /// An engine over a runtime.
    pub fn new(runtime: Runtime) -> Arc<Self> {
        Arc::new(Self { runtime, wall: None, live: Live::default() })
    }

    /// An engine that can run guests in other processes.
    pub fn with_isolation(runtime: Runtime, isolation: Isolation) -> Arc<Self> {
        Arc::new(Self { runtime, wall: Some(isolation), live: Live::default() })
    }
}

#[async_trait]
impl Engine for WasmEngine {
    async fn recognizes(&self, wanted: &Wanted) -> Option<bool> {
        let reference: Reference = wanted.image.parse().ok()?;
        let images = self.runtime.images();
        if images.get(&reference).await.is_some() {
            return Some(true);
        }
        if wanted.policy == PullPolicy::Never {
            return None;
        }
        let policy = wasmk_runtime::PullPolicy::IfNotPresent;
        let pull = images.pull(&reference, policy, login(wanted, &reference));
        match tokio::time::timeout(RECOGNIZE, pull).await {
            Ok(Ok(_) | Err(PullError::MissingImport { .. })) => Some(true),
            Ok(Err(PullError::NotWasm { .. })) => Some(false),
            Ok(Err(_)) | Err(_) => None,
        }
    }

    async fn load(&self, program: Bytes) -> Result<Arc<dyn Program>, Failure> {
        let failed = |e: &dyn std::fmt::Display| Failure::new("CreateContainerError", e);
        let digest = wasmk_runtime::digest(&program);
        let program = self.runtime.prepare_bytes(program, &digest).await.map_err(|e| failed(&e))?;
        if program.kind() == ProgramKind::Http {
            return Err(failed(&"it answers HTTP requests and is no command"));
        }
        let image = None;
        let (runtime, wall) = (self.runtime.clone(), self.wall.clone());
        Ok(Arc::new(WasmProgram { runtime, wall, program, image, live: Live::default() }))
    }

    async fn prepare(&self, wanted: &Wanted) -> Result<Prepared, Failure> {
        let (reference, policy) = named(wanted)?;
        let images = self.runtime.images();
        let here = images.get(&reference).await;
        let present = here.is_some();
        // Content named by its digest cannot have changed.
        let fixed = policy != wasmk_runtime::PullPolicy::Always || reference.digest().is_some();
        let image = match here.filter(|_| fixed) {
            Some(image) => image,
            None => {
                let pulled = images.pull(&reference, policy, login(wanted, &reference)).await;
                pulled.map_err(pull_failure)?
            }
        };
        let program = self.runtime.prepare(&image).await;
        let program = program
            .map_err(|e| Failure::new("CreateContainerError", format!("image {}: {e}", wanted.image)))?;
        let kind = match program.kind() {
            ProgramKind::Http => Kind::Http,
            ProgramKind::Module | ProgramKind::Command => Kind::Command,
        };
        let image_id = image_id(&reference, image.digest());
        let size = image.size();
        let fetched = !present || policy == wasmk_runtime::PullPolicy::Always;
        let (runtime, wall, live) = (self.runtime.clone(), self.wall.clone(), self.live.clone());
        let program = Arc::new(WasmProgram { runtime, wall, program, image: Some(image), live });
        Ok(Prepared { image_id, kind, fetched, size, program })
    }

    async fn files(&self, wanted: &Wanted) -> Result<Files, Failure> {
        let (reference, policy) = named(wanted)?;
        let images = self.runtime.images();
        let before = images.get_tree(&reference).await;
        let pulled = images.pull_tree(&reference, policy, login(wanted, &reference)).await;
        let tree = pulled.map_err(pull_failure)?;
        Ok(Files {
            image_id: image_id(&reference, tree.digest()),
            path: tree.path().to_path_buf(),
            fetched: before.is_none_or(|before| before.digest() != tree.digest()),
            size: tree.size(),
        })
    }

    async fn unused_files(&self, used: &[String], directories: &[PathBuf]) -> Vec<String> {
        let used: Vec<Reference> = used.iter().filter_map(|name| name.parse().ok()).collect();
        let trees = self.runtime.images().list_trees().await.unwrap_or_default();
        let is_used = |tree: &wasmk_runtime::Tree| {
            directories.iter().any(|d| d == tree.path()) || used.iter().any(|u| u.whole() == tree.reference())
        };
        let kept: BTreeSet<&str> = trees.iter().filter(|t| is_used(t)).map(|t| t.digest()).collect();
        let unused: BTreeSet<&str> = trees.iter().map(|t| t.digest()).filter(|d| !kept.contains(d)).collect();
        unused.into_iter().map(String::from).collect()
    }

    async fn remove_files(&self, digest: &str) -> Result<(), String> {
        self.runtime.images().remove_tree(digest).await.map_err(|e| e.to_string())
    }

    fn version(&self) -> String {
        VERSION.into()
    }

    fn usage(&self, name: &str) -> Option<Usage> {
        let usage = self.live.lock().get(name)?.upgrade()?;
        let cpu_nanos = u64::try_from(usage.cpu().as_nanos()).unwrap_or(u64::MAX);
        Some(Usage { cpu_nanos, memory: usage.memory() })
    }

    async fn unused_images(&self, used: &[String]) -> Vec<String> {
        let used: Vec<Reference> = used.iter().filter_map(|name| name.parse().ok()).collect();
        let images = self.runtime.images().list().await.unwrap_or_default();
        let names = images.into_iter().map(|image| image.reference().to_string());
        names.filter(|name| used.iter().all(|u| u.whole() != *name)).collect()
    }

    async fn remove_image(&self, image: &str) -> Result<(), String> {
        let reference: Reference = image.parse().map_err(|e| format!("{e}"))?;
        self.runtime.images().remove(&reference).await.map(drop).map_err(|e| e.to_string())
    }

    fn store_owners(&self) -> Vec<String> {
        let mut owners = self.runtime.keyvalue_owners().unwrap_or_default();
        owners.extend(self.runtime.blob_owners().unwrap_or_default());
        owners.sort_unstable();
        owners.dedup();
        owners
    }

    fn forget_stores(&self, owner: &str) -> Result<(), String> {
        let both = self.runtime.forget_keyvalue(owner).and(self.runtime.forget_blobs(owner));
        both.map_err(|e| e.to_string())
    }

    fn metrics(&self) -> String {
        let m = self.runtime.metrics();
        let mut out = String::new();
        let phases = self.runtime.phases();
        for (phase, histogram) in [
            ("pull", &phases.pull),
            ("compile", &phases.compile),
            ("load", &phases.load),
            ("instantiate", &phases.instantiate),
        ] {
            histogram.write(crate::functions::PHASES, &format!("phase=\"{phase}\""), &mut out);
        }
        for (name, kind, value) in [
            ("compiled_total", "counter", m.compiled),
            ("cache_hits_total", "counter", m.cache_hits),
            ("programs", "gauge", m.programs),
            ("slots_in_use", "gauge", m.slots_in_use),
            ("slots", "gauge", m.slots),
            ("instances_total", "counter", m.instances),
            ("waits_total", "counter", m.waits),
            ("refused_total", "counter", m.refused),
            ("requests_total", "counter", m.requests),
            ("traps_total", "counter", m.traps),
            ("out_of_memory_total", "counter", m.out_of_memory),
            ("timeouts_total", "counter", m.timeouts),
            ("over_cpu_total", "counter", m.over_cpu),
            ("memory_bytes", "gauge", m.memory),
        ] {
            // Writing to a string cannot fail.
            let _ = write!(out, "# TYPE wasmk_runtime_{name} {kind}\nwasmk_runtime_{name} {value}\n");
        }
        out
    }
}

/// What is wanted, in the words of the runtime.
fn named(wanted: &Wanted) -> Result<(Reference, wasmk_runtime::PullPolicy), Failure> {
    let bad =
        |e| Failure::new("InvalidImageName", format!("couldn't parse image name \"{}\": {e}", wanted.image));
    let policy = match wanted.policy {
        PullPolicy::Always => wasmk_runtime::PullPolicy::Always,
        PullPolicy::IfNotPresent => wasmk_runtime::PullPolicy::IfNotPresent,
        PullPolicy::Never => wasmk_runtime::PullPolicy::Never,
    };
    Ok((wanted.image.parse().map_err(bad)?, policy))
}

/// An image's reference by digest.
fn image_id(reference: &Reference, digest: &str) -> String {
    format!("{}/{}@{digest}", reference.registry(), reference.repository())
}

/// The login for the image's registry.
fn login(wanted: &Wanted, reference: &Reference) -> Option<Auth> {
    let registry = reference.registry();
    let found = wanted.logins.iter().find(|l| {
        l.registry == registry || (registry.ends_with("docker.io") && l.registry.ends_with("docker.io"))
    })?;
    Some(Auth::Basic { username: found.username.clone(), password: found.password.clone() })
}

fn pull_failure(error: PullError) -> Failure {
    match error {
        PullError::NotWasm { reference, media_types } => {
            let text = format!(
                "image {reference} is not a WebAssembly image (found: {}) and this node runs no containers; \
                 push it as application/wasm, or schedule the pod to a node with a container runtime",
                media_types.join(", ")
            );
            Failure::new("CreateContainerError", text)
        }
        PullError::NotPresent { reference } => {
            let text = format!("Container image \"{reference}\" is not present with pull policy of Never");
            Failure::new("ErrImageNeverPull", text)
        }
        other => Failure::new("ErrImagePull", other),
    }
}

struct WasmProgram {
    runtime: Runtime,
    wall: Option<Isolation>,
    program: Arc<wasmk_runtime::Program>,
    /// Where it is from; `None` for a file.
    image: Option<Arc<Image>>,
    live: Live,
}

impl WasmProgram {
    /// How instances that answer HTTP may be used.
    fn reuse(&self, launch: &Launch) -> Result<Reuse, Failure> {
        if !launch.per_request.reuse {
            return Ok(Reuse::Never);
        }
        let most = self.program.reuse().ok_or_else(|| {
            let key = wasmk_api::per_request::INSTANCE_REUSE;
            let text = format!(
                "annotation {key} is \"enabled\", but the program does not declare that an instance can serve more \
                 than one request (it has no section {REUSE_SECTION})"
            );
            Failure::new("CreateContainerConfigError", text)
        })?;
        Ok(Reuse::Requests { most, idle: REUSE_IDLE })
    }

    /// The wall that a guest is to be behind, if it is.
    fn wall(&self, launch: &Launch) -> Result<Option<&Wall>, Failure> {
        match &self.wall {
            Some(isolation) if isolation.always || launch.isolated => Ok(Some(&isolation.wall)),
            None if launch.isolated => {
                Err(Failure::new("CreateContainerError", "this node runs no programs in processes apart"))
            }
            _ => Ok(None),
        }
    }

    /// A command that is started for each request.
    fn started_for_each(&self, launch: Launch) -> Result<Arc<dyn Handler>, Failure> {
        if launch.per_request.reuse {
            let text = format!(
                "a command that is started for each request (annotation {}: wagi) cannot be run with instances that \
                 are used again",
                wasmk_api::per_request::EXECUTOR
            );
            return Err(Failure::new("CreateContainerConfigError", text));
        }
        let spec = self.spec(&launch)?;
        if let Some(wall) = self.wall(&launch)? {
            let handler = wall.cgi(group(&launch), Arc::clone(&self.program), spec);
            return Ok(Arc::new(WalledHandler { handler, log: launch.log }));
        }
        let command = self.program.cgi(spec);
        let command = command.map_err(|e| Failure::new("CreateContainerError", e))?;
        Ok(Arc::new(WasmHandler { handler: Answering::Cgi(command), log: launch.log }))
    }

    fn spec(&self, launch: &Launch) -> Result<Spec, Failure> {
        let none = wasmk_runtime::ImageConfig::default();
        let config = self.image.as_ref().map_or(&none, |image| image.config());
        let usage = Arc::new(wasmk_runtime::Usage::default());
        let mut live = self.live.lock();
        // Looked through only when it would grow: there may be many.
        if live.len() == live.capacity() {
            live.retain(|_, usage| usage.strong_count() > 0);
        }
        live.insert(launch.name.clone(), Arc::downgrade(&usage));
        drop(live);
        let keyvalue = launch.keyvalue.as_ref().map(|stores| {
            let given = self.runtime.keyvalue(&stores.owner, stores.names.clone());
            given.map_err(|e| Failure::new("CreateContainerConfigError", e))
        });
        let blobs = launch.blobs.as_ref().map(|containers| {
            let given = self.runtime.blobs(&containers.owner, containers.names.clone());
            given.map_err(|e| Failure::new("CreateContainerConfigError", e))
        });
        Ok(Spec {
            args: arguments(launch, config),
            env: environment(launch, config),
            mounts: launch.mounts.iter().map(mount).collect(),
            working_dir: launch.working_dir.clone().or_else(|| config.working_dir.clone()),
            memory_limit: launch.memory,
            cpu_millis: launch.cpu_millis,
            stdout: Arc::new(Output(launch.log.clone(), Stream::Stdout)),
            stderr: Arc::new(Output(launch.log.clone(), Stream::Stderr)),
            network: launch.network.clone(),
            stdin: launch.stdin.clone(),
            http: limits(launch),
            usage,
            keyvalue: keyvalue.transpose()?,
            blobs: blobs.transpose()?,
            ..Spec::default()
        })
    }
}

/// The image's words, with the container's `command` in place of the entry point and its `args`
/// in place of the rest. There is always a program name in front.
fn arguments(launch: &Launch, config: &wasmk_runtime::ImageConfig) -> Vec<String> {
    let mut words = launch.command.clone().unwrap_or_else(|| config.entrypoint.clone());
    match (&launch.args, &launch.command) {
        (Some(args), _) => words.extend(args.iter().cloned()),
        (None, None) => words.extend(config.cmd.iter().cloned()),
        (None, Some(_)) => {}
    }
    // An image that is only a program has no name of its own to begin with.
    if launch.command.is_none() && config.entrypoint.is_empty() {
        words.insert(0, "main.wasm".into());
    }
    words
}

fn environment(launch: &Launch, config: &wasmk_runtime::ImageConfig) -> Vec<(String, String)> {
    let from_image = config.env.iter().filter_map(|v| v.split_once('=')).map(|(k, v)| (k.into(), v.into()));
    from_image.chain(launch.env.iter().cloned()).collect()
}

fn mount(mount: &crate::engine::Mount) -> wasmk_runtime::Mount {
    wasmk_runtime::Mount { host: mount.host.clone(), guest: mount.guest.clone(), read_only: mount.read_only }
}

fn limits(launch: &Launch) -> HttpLimits {
    let mut limits = HttpLimits::default();
    if let Some(timeout) = launch.timeout {
        limits.timeout = timeout;
    }
    if let Some(most) = launch.concurrency {
        limits.max_concurrency = u32::try_from(most).unwrap_or(u32::MAX);
    }
    if let Some(most) = launch.per_request.response {
        limits.max_response_body = most;
    }
    limits.max_cpu = launch.per_request.cpu;
    limits.max_memory = launch.per_request.memory;
    limits.max_egress = launch.per_request.egress;
    limits
}

#[async_trait]
impl Program for WasmProgram {
    async fn run(&self, launch: Launch, stop: StopSignal) -> End {
        let (wall, spec) = match self.wall(&launch).and_then(|wall| Ok((wall, self.spec(&launch)?))) {
            Ok(both) => both,
            Err(failure) => return start_error(failure.message),
        };
        // A guest without standard input cannot notice a request to stop, so there is nothing to
        // wait for: it ends as a program that does not handle SIGTERM does.
        let kill = StopSignal::new();
        let run = async {
            match wall {
                Some(wall) => wall.run(group(&launch), &self.program, spec, kill.clone()).await.map_err(lost),
                None => self.program.run(spec, kill.clone()).await.map_err(|e| start_error(e.to_string())),
            }
        };
        tokio::pin!(run);
        let outcome = tokio::select! {
            outcome = &mut run => outcome,
            grace = stop.requested() => {
                kill.kill();
                let outcome = run.await;
                return end(outcome, if grace > Duration::ZERO { TERMINATED } else { wasmk_runtime::KILLED });
            }
        };
        end(outcome, wasmk_runtime::KILLED)
    }

    fn handler(&self, launch: Launch) -> Result<Arc<dyn Handler>, Failure> {
        if self.program.kind() != ProgramKind::Http {
            return self.started_for_each(launch);
        }
        let wall = self.wall(&launch)?;
        let spec = Spec { reuse: self.reuse(&launch)?, ..self.spec(&launch)? };
        if let Some(wall) = wall {
            let handler = wall.handler(group(&launch), Arc::clone(&self.program), spec);
            return Ok(Arc::new(WalledHandler { handler, log: launch.log }));
        }
        let handler = self.program.handler(spec);
        let handler = handler.map_err(|e| Failure::new("CreateContainerError", e))?;
        Ok(Arc::new(WasmHandler { handler: Answering::Http(handler), log: launch.log }))
    }
}

/// Guests of a namespace are behind one wall.
fn group(launch: &Launch) -> &str {
    launch.name.split('/').next().unwrap_or_default()
}

/// A run whose process was lost, or that did not begin.
fn lost(error: wasmk_wall::Error) -> End {
    let reason = match error {
        wasmk_wall::Error::Lost(_) => "Error",
        wasmk_wall::Error::OutOfMemory | wasmk_wall::Error::OverLimit => "OOMKilled",
        _ => return start_error(error.to_string()),
    };
    End { code: wasmk_runtime::KILLED, reason: reason.into(), message: error.to_string() }
}

/// A run that did not begin.
fn start_error(message: String) -> End {
    End { code: 128, reason: "StartError".into(), message }
}

/// How a run ended, in the words of a container's status.
fn end(outcome: Result<Exit, End>, stopped: i32) -> End {
    let make = |code, reason: &str, message: String| End { code, reason: reason.into(), message };
    let exit = match outcome {
        Ok(exit) => exit,
        Err(end) => return end,
    };
    let text = exit.to_string();
    match exit.reason {
        ExitReason::Completed if exit.code == 0 => make(0, "Completed", String::new()),
        ExitReason::Completed => make(exit.code, "Error", String::new()),
        ExitReason::OutOfMemory => make(exit.code, "OOMKilled", text),
        ExitReason::Stopped => make(stopped, "Error", String::new()),
        ExitReason::Trapped { backtrace, .. } => make(exit.code, "Error", format!("{text}\n{backtrace}")),
        ExitReason::TimedOut => make(exit.code, "DeadlineExceeded", text),
    }
}

/// One of a guest's output streams.
struct Output(Arc<dyn LogSink>, Stream);

impl wasmk_runtime::LogSink for Output {
    fn poll_room(&self, cx: &mut std::task::Context<'_>) -> std::task::Poll<usize> {
        self.0.poll_room(cx)
    }

    fn write(&self, bytes: &[u8]) {
        self.0.write(self.1, bytes);
    }
}

/// How a program answers requests.
enum Answering {
    Http(wasmk_runtime::Handler),
    /// It is a command, started for each.
    Cgi(wasmk_runtime::Cgi),
}

struct WasmHandler {
    handler: Answering,
    log: Arc<dyn LogSink>,
}

#[async_trait]
impl Handler for WasmHandler {
    async fn handle(&self, request: http::Request<Body>) -> http::Response<Body> {
        let answered = match &self.handler {
            Answering::Http(handler) => handler.call(request).await,
            Answering::Cgi(command) => command.call(request).await,
        };
        match answered {
            Ok(response) => response,
            Err(error) => refuse(&error, &*self.log),
        }
    }
}

/// A handler in another process.
struct WalledHandler {
    handler: wasmk_wall::Handler,
    log: Arc<dyn LogSink>,
}

#[async_trait]
impl Handler for WalledHandler {
    async fn handle(&self, request: http::Request<Body>) -> http::Response<Body> {
        match self.handler.call(request).await {
            Ok(response) => response,
            Err(fault) => told(fault.status, &fault.text, &fault.backtrace, &*self.log),
        }
    }

    async fn ended(&self) -> End {
        lost(self.handler.ended().await)
    }
}

/// What a client sees of a guest's fault; the log has the details.
fn refuse(error: &CallError, log: &dyn LogSink) -> http::Response<Body> {
    let backtrace = match error {
        CallError::Trapped { backtrace, .. } => backtrace,
        _ => "",
    };
    told(error.status(), &error.to_string(), backtrace, log)
}

fn told(status: http::StatusCode, error: &str, backtrace: &str, log: &dyn LogSink) -> http::Response<Body> {
    let mut text = format!("{error}\n");
    if !backtrace.is_empty() {
        let _ = writeln!(text, "{backtrace}");
    }
    log.write(Stream::Stderr, text.as_bytes());
    let mut response = http::Response::new(wasmk_runtime::full(format!("{error}\n")));
    *response.status_mut() = status;
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ends_read_as_containers_do() {
        let exit = |code, reason| Ok(Exit { code, reason });
        for (outcome, expect) in [
            (exit(0, ExitReason::Completed), (0, "Completed", "")),
            (exit(3, ExitReason::Completed), (3, "Error", "")),
            (exit(137, ExitReason::OutOfMemory), (137, "OOMKilled", "ran out of its memory limit")),
            (exit(137, ExitReason::Stopped), (143, "Error", "")),
            (
                exit(134, ExitReason::Trapped { message: "unreachable".into(), backtrace: "a\nb".into() }),
                (134, "Error", "trapped: unreachable\na\nb"),
            ),
        ] {
            let end = end(outcome, TERMINATED);
            assert_eq!((end.code, end.reason.as_str(), end.message.as_str()), expect);
        }
    }

    #[test]
    fn pull_failures_name_the_reason() {
        let reference = || "r/x:1".to_string();
        for (error, reason) in [
            (PullError::NotFound { reference: reference() }, "ErrImagePull"),
            (PullError::NotPresent { reference: reference() }, "ErrImageNeverPull"),
            (
                PullError::NotWasm { reference: reference(), media_types: vec!["tar".into()] },
                "CreateContainerError",
            ),
        ] {
            assert_eq!(pull_failure(error).reason, reason);
        }
    }
}
