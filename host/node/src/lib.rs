//! The agent of a node: runs the pods that the API gives this machine.
//!
//! Each pod has a loop of its own ([`pod`]): a pure plan over a plain record, and a doer. What
//! runs a container is behind a trait ([`engine`]); [`wasm`] is the one of the Wasm runtime.
//! The agent talks to the API only through a [`kube::Client`], and goes on with the pods it
//! has while the API is out of reach.
//!
//! Invariants: a status in the API is computed from what is known, never edited; every pod on
//! disk is either in the API or on its way out; whatever waits has a bound.

mod context;
pub mod engine;
mod events;
pub mod functions;
mod http;
pub mod logs;
mod machine;
mod network;
mod node;
pub mod pod;
mod pods;
mod register;
mod serve;
mod settings;
mod sources;
pub mod wasm;

pub use functions::{Function, FunctionError, FunctionSpec, Functions};
pub use http::serve_stream;
pub use node::{Node, NodeError};
pub use register::{HANDLERS, WASM_LABEL};
pub use settings::{Capacity, DEFAULT_MAX_PODS, Settings};
pub use wasm::WasmEngine;
