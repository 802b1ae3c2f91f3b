//! What the host lets guests do, one file for each capability.

mod egress;
pub(crate) mod http;
pub(crate) mod sockets;
pub(crate) mod stdio;
mod tls;
