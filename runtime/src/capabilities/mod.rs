//! What the host lets guests do, one file for each capability.

pub(crate) mod blobstore;
pub(crate) mod config;
mod egress;
pub(crate) mod environment;
pub(crate) mod http;
mod keys;
pub(crate) mod keyvalue;
pub(crate) mod logging;
pub(crate) mod sockets;
pub(crate) mod stdio;
mod tls;
