//! One pod on this node: what is known of it, what to do next, and the loop that does it.

mod actions;
mod attend;
pub(crate) mod claims;
mod contained;
mod container;
pub mod env;
pub(crate) mod image_volumes;
mod images;
mod isolation;
mod message;
pub(crate) mod own;
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
pub(crate) use images::{Choice, choose, logins};
pub(crate) use isolation::{Classes, isolated};
pub(crate) use store::{Known, Records};
pub(crate) use worker::{Handle, spawn};
