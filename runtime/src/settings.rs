//! What the embedding program decides once, before the engine exists.

use std::path::PathBuf;
use std::time::Duration;

/// Settings of a [`Runtime`](crate::Runtime). Every number is a bound that is enforced.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Directory for pulled images and compiled code; created with mode 0700 if absent.
    pub data_dir: PathBuf,
    /// Most guest instances alive at a time. Each takes 4 GiB of address space (not memory).
    pub max_instances: u32,
    /// Longest wait for one of these instances before a run or call is refused.
    pub instance_wait: Duration,
    /// Programs compiled at the same time; each compiles its functions in parallel.
    pub compile_threads: usize,
    /// Largest program accepted, in bytes of Wasm.
    pub max_program_bytes: u64,
    /// Largest image layer accepted, in bytes.
    pub max_layer_bytes: u64,
    /// Largest content of an image that is unpacked into a directory, in bytes; never more than half of what
    /// the disk has left.
    pub max_tree_bytes: u64,
    /// Bytes of compiled code kept on disk; the least recently used goes first.
    pub max_compiled_bytes: u64,
    /// Programs kept loaded (mapped) while nobody uses them.
    pub max_idle_programs: usize,
    /// Linear memory of all guests together, in bytes. `None`: no limit but the machine's.
    pub memory_budget: Option<u64>,
    /// Linear memory of a guest whose [`Spec`](crate::Spec) names no limit, in bytes.
    pub default_memory_limit: u64,
    /// Registries (`host` or `host:port`) spoken to without TLS, besides loopback addresses.
    pub plain_http_registries: Vec<String>,
    /// Registries and where their images are looked for first, in order: `docker.io`, `mirror.example.com`. A
    /// mirror is shown no credentials.
    pub mirrors: Vec<(String, String)>,
    /// Longest time for one image pull or push.
    pub pull_timeout: Duration,
}

impl Settings {
    /// Settings for a machine of ordinary size with everything under `data_dir`.
    pub fn new(data_dir: impl Into<PathBuf>) -> Self {
        Self {
            data_dir: data_dir.into(),
            max_instances: 1000,
            instance_wait: Duration::from_secs(10),
            compile_threads: 2,
            max_program_bytes: 256 << 20,
            max_layer_bytes: 512 << 20,
            max_tree_bytes: 16 << 30,
            max_compiled_bytes: 4 << 30,
            max_idle_programs: 64,
            memory_budget: None,
            default_memory_limit: 1 << 30,
            plain_http_registries: Vec::new(),
            mirrors: Vec::new(),
            pull_timeout: Duration::from_secs(300),
        }
    }
}
