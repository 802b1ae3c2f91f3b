//! What can go wrong, one enum for each operation.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

/// The runtime could not be set up, or a guest could not be started.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The engine refused its configuration.
    #[error("cannot start the Wasm engine: {0}")]
    Engine(String),
    /// A directory of the runtime cannot be used.
    #[error("cannot use {}", path.display())]
    Directory {
        /// The directory or file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A mount of the guest cannot be opened.
    #[error("cannot mount {} at {guest}", host.display())]
    Mount {
        /// Path on the host.
        host: PathBuf,
        /// Path in the guest.
        guest: String,
        /// What the engine said.
        message: String,
    },
    /// A store or its owner cannot be called that.
    #[error("{0:?} cannot name a key-value store: lower-case letters, digits, '-' and '.' were expected")]
    Name(String),
    /// The program is not of the kind asked for.
    #[error("program is {found}, which cannot be {wanted}")]
    Kind {
        /// What was asked, `run` or `served`.
        wanted: &'static str,
        /// What the program is.
        found: &'static str,
    },
    /// All instances of the runtime are in use.
    #[error("no free instance within {waited:?}: all of {most} are in use")]
    Busy {
        /// How long was waited.
        waited: Duration,
        /// The runtime's bound.
        most: u32,
    },
    /// The guest used more processor time than it was given for one run.
    #[error("guest used more than {0:?} of processor time")]
    OverCpu(Duration),
    /// The instance could not be made.
    #[error("cannot instantiate the program: {0}")]
    Instantiate(String),
    /// The guest's memory limit is below what it starts with.
    #[error("program needs more memory to start than its limit of {limit} bytes")]
    MemoryLimit {
        /// The limit in bytes.
        limit: u64,
    },
}

/// An image could not be fetched, read or stored.
#[derive(Debug, Clone, thiserror::Error)]
pub enum PullError {
    /// The image is fine but holds no Wasm.
    #[error("image {reference} is not a WebAssembly image: {}", media_types.join(", "))]
    NotWasm {
        /// The image asked for.
        reference: String,
        /// Media types found in its manifest, or the platforms of its index.
        media_types: Vec<String>,
    },
    /// The image's program wants something the runtime does not offer.
    #[error("image {reference} imports {interface}, which this runtime does not offer")]
    MissingImport {
        /// The image asked for.
        reference: String,
        /// The interface, or the core module and the name in it.
        interface: String,
    },
    /// The policy forbids a pull and the image is not here.
    #[error("image {reference} is not present and its pull policy is Never")]
    NotPresent {
        /// The image asked for.
        reference: String,
    },
    /// The registry does not have it.
    #[error("image {reference} does not exist in its registry")]
    NotFound {
        /// The image asked for.
        reference: String,
    },
    /// The registry wants other credentials.
    #[error("registry refuses access to image {reference}: {message}")]
    Unauthorized {
        /// The image asked for.
        reference: String,
        /// What the registry said.
        message: String,
    },
    /// The bytes are not what the manifest promised.
    #[error("image {reference}: content is {actual}, manifest says {expected}")]
    Digest {
        /// The image asked for.
        reference: String,
        /// Digest in the manifest.
        expected: String,
        /// Digest of the bytes received.
        actual: String,
    },
    /// A blob is larger than allowed.
    #[error("image {reference}: {what} is larger than {limit} bytes")]
    TooLarge {
        /// The image asked for.
        reference: String,
        /// Which part.
        what: String,
        /// The bound in bytes.
        limit: u64,
    },
    /// The image cannot be understood.
    #[error("image {reference}: {message}")]
    Malformed {
        /// The image asked for.
        reference: String,
        /// What was expected and what was found.
        message: String,
    },
    /// The registry cannot be reached or failed.
    #[error("image {reference}: {message}")]
    Registry {
        /// The image asked for.
        reference: String,
        /// What happened.
        message: String,
    },
    /// The pull took longer than allowed.
    #[error("image {reference}: not complete after {limit:?}")]
    TimedOut {
        /// The image asked for.
        reference: String,
        /// The bound.
        limit: Duration,
    },
    /// The local store failed.
    #[error("image store: {0}")]
    Store(Arc<io::Error>),
}

impl From<io::Error> for PullError {
    fn from(error: io::Error) -> Self {
        Self::Store(Arc::new(error))
    }
}

/// A program could not be made ready to run.
#[derive(Debug, Clone, thiserror::Error)]
pub enum PrepareError {
    /// The bytes are no Wasm.
    #[error("not a WebAssembly module or component: {0}")]
    NotWasm(String),
    /// The bytes have another digest than they should.
    #[error("program is {actual}, expected {expected}")]
    Digest {
        /// The digest asked for.
        expected: String,
        /// The digest found.
        actual: String,
    },
    /// Larger than the runtime takes.
    #[error("program has {size} bytes, more than the {limit} allowed")]
    TooLarge {
        /// Its size.
        size: u64,
        /// The bound.
        limit: u64,
    },
    /// It has no entry point the runtime knows.
    #[error("program exports none of _start, wasi:cli/run and wasi:http/incoming-handler; it exports {}", exports.join(", "))]
    NoEntryPoint {
        /// What it does export.
        exports: Vec<String>,
    },
    /// It wants something the runtime does not offer.
    #[error("program imports {interface}, which this runtime does not offer")]
    MissingImport {
        /// The interface or module and name.
        interface: String,
    },
    /// The compiler or linker refused it.
    #[error("cannot compile the program: {0}")]
    Compile(String),
    /// Reading the program or writing its compiled code failed.
    #[error("compiled code cache: {0}")]
    Cache(Arc<io::Error>),
}

impl From<io::Error> for PrepareError {
    fn from(error: io::Error) -> Self {
        Self::Cache(Arc::new(error))
    }
}

/// An HTTP guest gave no response.
#[derive(Debug, Clone, thiserror::Error)]
pub enum CallError {
    /// The guest trapped before it answered.
    #[error("guest trapped: {message}")]
    Trapped {
        /// What was forbidden, in one line.
        message: String,
        /// The guest's frames, innermost first.
        backtrace: String,
    },
    /// The guest asked for more memory than its limit and could not go on.
    #[error("guest ran out of its memory limit")]
    OutOfMemory,
    /// The guest did not answer in time.
    #[error("guest did not answer within {0:?}")]
    TimedOut(Duration),
    /// The guest used more processor time than one request may.
    #[error("guest used more than {0:?} of processor time")]
    OverCpu(Duration),
    /// The response's body is longer than allowed.
    #[error("guest answered with more than {0} bytes")]
    ResponseTooLong(u64),
    /// The guest returned without setting a response.
    #[error("guest ended without a response")]
    NoResponse,
    /// The guest answered with an error code of wasi:http.
    #[error("guest answered with error {0}")]
    Guest(String),
    /// The request cannot be handed to a guest.
    #[error("request cannot be handed to the guest: {0}")]
    BadRequest(String),
    /// The request's body or headers are larger than allowed.
    #[error("request {what} larger than {limit} bytes")]
    TooLarge {
        /// `body is` or `headers are`.
        what: &'static str,
        /// The bound in bytes.
        limit: u64,
    },
    /// No instance became free in time.
    #[error("no free instance within {0:?}")]
    Busy(Duration),
    /// The handler is stopping.
    #[error("handler is stopped")]
    Stopped,
    /// The instance could not be made.
    #[error("cannot instantiate the program: {0}")]
    Instantiate(String),
}

impl CallError {
    /// The HTTP status that says this to the client.
    pub fn status(&self) -> http::StatusCode {
        match self {
            Self::TimedOut(_) => http::StatusCode::GATEWAY_TIMEOUT,
            Self::Busy(_) | Self::Stopped => http::StatusCode::SERVICE_UNAVAILABLE,
            Self::BadRequest(_) => http::StatusCode::BAD_REQUEST,
            Self::TooLarge { .. } => http::StatusCode::PAYLOAD_TOO_LARGE,
            Self::Trapped { .. }
            | Self::OutOfMemory
            | Self::OverCpu(_)
            | Self::ResponseTooLong(_)
            | Self::Instantiate(_) => http::StatusCode::INTERNAL_SERVER_ERROR,
            Self::NoResponse | Self::Guest(_) => http::StatusCode::BAD_GATEWAY,
        }
    }
}
