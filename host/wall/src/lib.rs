//! The second wall around Wasm guests: they run in processes of their own that may do nothing but that.
//!
//! The first wall is the sandbox of WebAssembly itself. Whoever gets through it is in a process that has no files,
//! no programs, no other processes and no sockets but those that the agent makes for it: [`Wall`] starts such
//! workers, one for each namespace and one for each guest with directories, and has guests run in them as
//! [`wasmk_runtime::Program`] would have them run in this process.
//!
//! The agent pulls, checks and compiles; a worker gets machine code as an open file, and has the runtime, nothing
//! else. Invariants: the agent believes nothing that a worker says; what a worker may do is decided before it has
//! seen a guest and never widened; a worker ends with its agent.
//!
//! Kernels differ in which walls they have: [`Standing`] tells. This crate knows no Kubernetes.

mod agent;
mod error;
mod frames;
mod groups;
mod kills;
mod message;
mod notify;
mod walls;
mod worker;

pub use agent::{Handler, Settings, Wall};
pub use error::{Error, Fault};
pub use message::Standing;
pub use walls::{Directory, Room, raise};
pub use worker::main as worker;
