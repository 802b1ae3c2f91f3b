//! One pod on this node: what is known of it, what to do next, and the loop that does it.

mod container;
pub mod env;
pub mod plan;
mod probe;
pub mod state;
pub mod status;
mod store;
pub mod volumes;
pub mod worker;

pub use container::default_port;
pub(crate) use container::{cpu_limit, logins, memory_limit};
pub use store::{Known, load};
pub use worker::{Handle, spawn};
