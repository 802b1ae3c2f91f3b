//! Runs WebAssembly: fetches images, compiles programs once, and runs them within limits.
//!
//! The way of a program: [`Images`] fetches it by reference into a content store; [`Runtime::prepare`]
//! compiles it, or maps the code compiled before; [`Program::run`] runs a command to its end and
//! [`Program::handler`] serves HTTP requests, each in an instance of its own.
//!
//! Invariants: a guest can do only what its [`Spec`] gives it; a trap, a loop, a leak or a flood in one
//! guest is invisible to its neighbours; nothing waits without a deadline or grows without a bound; code
//! is mapped only if this runtime wrote it for this engine. This crate knows no Kubernetes.

mod blobs;
mod body;
mod cache;
mod capabilities;
mod cgi;
mod declared;
mod descriptors;
mod engine;
mod error;
mod exit;
mod guest;
mod handler;
mod histogram;
pub mod images;
mod imports;
mod isolated;
mod keyvalue;
mod limits;
mod linker;
mod live;
mod log_record;
mod manners;
mod metrics;
mod network;
mod prepare;
mod program;
mod quota;
mod run;
mod runtime;
mod settings;
mod shared;
mod spec;
mod ticker;
mod trap;
mod usage;

pub use body::{Body, BodyError, TooLong, boxed, empty, full};
pub use capabilities::blobstore::{BlobTold, BlobWish, Blobs, BlobsElsewhere};
pub use capabilities::keyvalue::{KeyValue, KeyValueElsewhere, Told, Wish};
pub use cgi::Cgi;
pub use declared::REUSE_SECTION;
pub use engine::Allocation;
pub use error::{CallError, Error, PrepareError, PullError};
pub use exit::{ABORTED, Exit, ExitReason, KILLED, StopSignal};
pub use handler::Handler;
pub use histogram::{Histogram, Times};
pub use images::{Auth, Image, ImageConfig, Images, PullPolicy, Reference, Tree};
pub use imports::offers;
pub use isolated::{Bare, Isolated};
pub use metrics::{Metrics, Phases, Tally};
pub use network::{
    Deny, HttpService, HttpTarget, Network, NetworkError, Open, Protocol, host_and_port, lookup,
};
pub use prepare::digest_of as digest;
pub use program::{Program, ProgramKind};
pub use runtime::Runtime;
pub use settings::Settings;
pub use spec::{Discard, HttpLimits, LogSink, MAX_WRITE, Mount, Reuse, Spec, Stdin, Tail};
pub use usage::Usage;
