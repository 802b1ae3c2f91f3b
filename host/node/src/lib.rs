//! The agent of a node: runs the pods that the API gives this machine.
//!
//! Each pod has a loop of its own ([`pod`]): a pure plan over a plain record, and a doer. What
//! runs a container is behind a trait ([`engine`]); [`wasm`] is the one of the Wasm runtime. Beside it
//! a container runtime may run OCI containers, in the same pods.
//! The agent talks to the API only through a [`kube::Client`], and goes on with the pods it
//! has while the API is out of reach.
//!
//! Invariants: a status in the API is computed from what is known, never edited; every pod on
//! disk is either in the API or on its way out; whatever waits has a bound.

mod containers;
mod context;
mod csi;
mod devices;
pub mod engine;
mod events;
mod exec;
pub mod functions;
mod garbage;
mod http;
mod keyvalue;
pub mod logs;
mod machine;
mod memory;
mod netfilter;
mod netns;
mod network;
mod node;
pub mod pod;
mod pods;
mod pressure;
mod register;
mod running;
mod serve;
mod settings;
mod shortage;
mod sources;
mod starts;
mod static_pods;
mod volume_stats;
pub mod wasm;

pub use containers::Sandbox;
pub use functions::{Function, FunctionError, FunctionSpec, Functions};
pub use garbage::ImageCollection;
pub use http::serve_stream;
pub use node::{Node, NodeError};
pub use register::{CONTAINER_LABEL, ISOLATED_HANDLER, WASM_HANDLERS, WASM_LABEL};
pub use settings::{Capacity, DEFAULT_MAX_PODS, Settings};
pub use shortage::Thresholds;
pub use wasm::WasmEngine;
