//! What the agent asks of whatever runs a container. The agent proper knows only these
//! traits; [`crate::wasm`] fills them with the Wasm runtime, tests with a fake.

use std::{path::PathBuf, sync::Arc, time::Duration};

use async_trait::async_trait;
use bytes::Bytes;
use http_body_util::combinators::UnsyncBoxBody;
use wasmk_runtime::{Network, Stdin, StopSignal};

use crate::logs::LogSink;

/// Any error, boxed.
pub type BoxError = Box<dyn std::error::Error + Send + Sync>;
/// The body of a request to or a response from a workload, streamed.
pub type Body = UnsyncBoxBody<Bytes, BoxError>;

/// When an image is fetched although it is here already.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PullPolicy {
    /// Ask the registry each time.
    Always,
    /// Only when it is missing.
    IfNotPresent,
    /// Never; a missing image is an error.
    Never,
}

/// A registry login, from an image pull secret.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Login {
    /// Registry host, with port if any.
    pub registry: String,
    /// User name.
    pub username: String,
    /// Password or token.
    pub password: String,
}

/// An image to get ready.
#[derive(Clone, Debug)]
pub struct Wanted {
    /// Reference as the pod writes it.
    pub image: String,
    /// When to fetch.
    pub policy: PullPolicy,
    /// Logins to try for its registry.
    pub logins: Vec<Login>,
}

/// What kind of workload an image is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Runs to its end.
    Command,
    /// Answers HTTP requests, an instance each; the agent listens for it.
    Http,
}

/// An image that is here and ready to start.
#[derive(Clone)]
pub struct Prepared {
    /// Reference by digest.
    pub image_id: String,
    /// What it is.
    pub kind: Kind,
    /// It had to be fetched just now.
    pub fetched: bool,
    /// Size of the artifact in bytes.
    pub size: u64,
    /// To start it.
    pub program: Arc<dyn Program>,
}

/// The files of an image, here for reading.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Files {
    /// Reference by digest.
    pub image_id: String,
    /// The directory they are in.
    pub path: PathBuf,
    /// They had to be fetched just now.
    pub fetched: bool,
    /// Their size in bytes.
    pub size: u64,
}

/// A host directory a container sees.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mount {
    /// On this machine.
    pub host: PathBuf,
    /// In the container.
    pub guest: String,
    /// No writing.
    pub read_only: bool,
    /// How mounts made later are passed on; only containers know this.
    pub propagation: Option<String>,
}

/// Stores of keys and values, or containers of objects.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stores {
    /// Whose they are: a namespace, and no later one of that name.
    pub owner: String,
    /// What they are called.
    pub names: Vec<String>,
}

/// All a container is given, and nothing else.
#[derive(Clone)]
pub struct Launch {
    /// For messages: `namespace/pod/container`.
    pub name: String,
    /// In place of the image's entry point, if given.
    pub command: Option<Vec<String>>,
    /// In place of the image's arguments, if given.
    pub args: Option<Vec<String>>,
    /// Directory to start in.
    pub working_dir: Option<String>,
    /// Environment, in order.
    pub env: Vec<(String, String)>,
    /// Directories.
    pub mounts: Vec<Mount>,
    /// What it may reach, and from which address.
    pub network: Arc<dyn Network>,
    /// Most bytes of memory per instance; `None` is the runtime's own limit.
    pub memory: Option<u64>,
    /// Share of processors in thousandths of a core; `None` is no limit.
    pub cpu_millis: Option<u32>,
    /// Longest time for one request; `None` is the runtime's own limit.
    pub timeout: Option<Duration>,
    /// Most requests answered at a time; `None` is the runtime's own limit.
    pub concurrency: Option<usize>,
    /// Limits of each request, and whether instances may be used again.
    pub per_request: wasmk_api::PerRequest,
    /// Stores of keys and values that it may open.
    pub keyvalue: Option<Stores>,
    /// Containers of objects that it may use.
    pub blobs: Option<Stores>,
    /// Where its output goes.
    pub log: Arc<dyn LogSink>,
    /// What it reads as standard input; `None` is nothing.
    pub stdin: Option<Stdin>,
    /// It is to run in another process than this, whatever is usual on the node.
    pub isolated: bool,
}

/// How a run ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct End {
    /// As a shell would see it.
    pub code: i32,
    /// `Completed`, `Error`, `OOMKilled`.
    pub reason: String,
    /// For the user; may be empty.
    pub message: String,
}

/// Why something could not be done, as a container's waiting reason.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Failure {
    /// `ErrImagePull`, `InvalidImageName`, `CreateContainerError`, …
    pub reason: &'static str,
    /// For the user.
    pub message: String,
}

impl Failure {
    /// A failure with that reason.
    pub fn new(reason: &'static str, message: impl std::fmt::Display) -> Self {
        Self { reason, message: message.to_string() }
    }
}

/// What a container uses.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// CPU time since its start, in nanoseconds.
    pub cpu_nanos: u64,
    /// Memory in use, in bytes.
    pub memory: u64,
}

/// How a command inside a container ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExecEnd {
    /// Its exit status.
    pub code: i32,
    /// The beginning of what it printed.
    pub output: String,
}

/// Runs commands inside one container.
#[async_trait]
pub trait Exec: Send + Sync {
    /// Runs a command to its end.
    ///
    /// # Errors
    /// In words, when it cannot be run or is not over within `limit`.
    async fn exec(&self, command: &[String], limit: Duration) -> Result<ExecEnd, String>;
}

/// Gets images ready.
#[async_trait]
pub trait Engine: Send + Sync + 'static {
    /// Whether an image is for this engine; `None` when that cannot be told (now).
    async fn recognizes(&self, wanted: &Wanted) -> Option<bool> {
        let _ = wanted;
        Some(true)
    }

    /// Gets a program ready that is not from an image.
    ///
    /// # Errors
    /// When it is not one, or not one for commands.
    async fn load(&self, program: Bytes) -> Result<Arc<dyn Program>, Failure> {
        let _ = program;
        Err(Failure::new("CreateContainerError", "this engine loads programs from images only"))
    }

    /// Fetches (by policy), checks and compiles an image.
    ///
    /// # Errors
    /// With the reason a container waits for.
    async fn prepare(&self, wanted: &Wanted) -> Result<Prepared, Failure>;

    /// Name and version, `wasmtime://48.0.8`.
    fn version(&self) -> String;

    /// What a container (by its launch's name) uses, while it is live.
    fn usage(&self, name: &str) -> Option<Usage> {
        let _ = name;
        None
    }

    /// Fetches (by policy) an image for its files, which may be of any kind.
    ///
    /// # Errors
    /// With the reason a container waits for.
    async fn files(&self, wanted: &Wanted) -> Result<Files, Failure> {
        let text = format!("image {}: this engine gives programs only", wanted.image);
        Err(Failure::new("ErrImagePull", text))
    }

    /// Digests of images whose files are here, that none of these names stands for, and that are in none of
    /// these directories.
    async fn unused_files(&self, used: &[String], directories: &[PathBuf]) -> Vec<String> {
        let _ = (used, directories);
        Vec::new()
    }

    /// Removes an image's files, by its digest.
    ///
    /// # Errors
    /// In words.
    async fn remove_files(&self, digest: &str) -> Result<(), String> {
        let _ = digest;
        Ok(())
    }

    /// Images that are here and that none of these names stands for.
    async fn unused_images(&self, used: &[String]) -> Vec<String> {
        let _ = used;
        Vec::new()
    }

    /// Removes an image; programs made of it go on.
    ///
    /// # Errors
    /// In words.
    async fn remove_image(&self, image: &str) -> Result<(), String> {
        let _ = image;
        Ok(())
    }

    /// Owners of stores of keys and values, or of objects, that are kept here.
    fn store_owners(&self) -> Vec<String> {
        Vec::new()
    }

    /// Removes the stores of an owner.
    ///
    /// # Errors
    /// In words.
    fn forget_stores(&self, owner: &str) -> Result<(), String> {
        let _ = owner;
        Ok(())
    }

    /// The engine's own figures in the text format of Prometheus.
    fn metrics(&self) -> String {
        String::new()
    }
}

/// Something that can be started.
#[async_trait]
pub trait Program: Send + Sync {
    /// Runs a command until it ends or `stop` ends it. Never panics on a guest's fault.
    async fn run(&self, launch: Launch, stop: StopSignal) -> End;

    /// Sets an HTTP component up for requests.
    ///
    /// # Errors
    /// When the component cannot be linked or configured.
    fn handler(&self, launch: Launch) -> Result<Arc<dyn Handler>, Failure>;
}

/// Answers requests.
#[async_trait]
pub trait Handler: Send + Sync {
    /// One request. A guest's fault becomes a 5xx response.
    async fn handle(&self, request: http::Request<Body>) -> http::Response<Body>;

    /// Waits until what answers has ended by itself; what is in this process never does.
    async fn ended(&self) -> End {
        std::future::pending().await
    }
}
