//! One pod on this node: what is known of it, what to do next, and the loop that does it.

mod container;
pub mod env;
pub mod plan;
mod probe;
pub mod state;
pub mod status;
mod store;
pub mod volumes;
pub(crate) mod worker;

pub(crate) use container::{cpu_limit, logins, memory_limit};
pub(crate) use store::{Known, load};
pub(crate) use worker::{Handle, spawn};
