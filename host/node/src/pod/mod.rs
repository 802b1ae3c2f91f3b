//! One pod on this node: what is known of it, what to do next, and the loop that does it.

mod actions;
mod attend;
mod claims;
mod contained;
mod container;
pub mod env;
mod images;
mod message;
mod own;
pub mod plan;
mod ports;
mod probe;
mod setup;
pub mod state;
pub mod status;
mod store;
pub mod volumes;
pub(crate) mod worker;

pub(crate) use container::{cpu_limit, memory_limit, per_request};
pub(crate) use images::logins;
pub(crate) use store::{Known, Records};
pub(crate) use worker::{Handle, spawn};
