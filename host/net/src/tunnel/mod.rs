//! Streams to agents that nobody can dial: the agent dials out once, and the server opens
//! streams inside that connection; the agent, too, for what only the server's machine has.
//!
//! Each stream has its own window, so one slow reader never holds up another. Everything is
//! bounded: streams per link, bytes under way per stream, frames waiting for the connection.

mod agent;
mod mux;
mod server;

#[allow(unreachable_pub, missing_docs, clippy::pedantic, clippy::all)]
mod proto {
    tonic::include_proto!("wasmk.tunnel.v1");
}

pub use agent::{Uplink, run};
pub use mux::{FRAME_BYTES, QUEUE, STREAMS, WINDOW};
pub use proto::tunnel_server::TunnelServer;
pub use server::{Identify, Server, Service};

/// One stream. Dropping it closes it; shutting its writing side down leaves reading open.
pub type TunnelStream = tokio::io::DuplexStream;

#[cfg(test)]
mod tests;
