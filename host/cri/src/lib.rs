//! A client of a container runtime (containerd, CRI-O, …) through its interface, CRI v1.
//!
//! [`Client`] makes each call with a deadline, over the runtime's Unix socket; the connection is made
//! when it is needed and made again when it was lost. [`v1`] has the messages. Nothing here knows
//! of pods in the API.

mod calls;
mod client;

pub use calls::Tally;
pub use client::{Client, Error, Info, MAX_MESSAGE, unix_channel};

/// Messages and services of device plugins.
#[allow(missing_docs, clippy::all, clippy::pedantic)]
pub mod devices {
    tonic::include_proto!("v1beta1");
}

/// Messages of the interface.
#[allow(missing_docs, clippy::all, clippy::pedantic)]
pub mod v1 {
    tonic::include_proto!("runtime.v1");
}
