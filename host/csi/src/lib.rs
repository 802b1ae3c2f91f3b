//! A client of storage drivers through their interface, CSI v1, and of their registration on a node.
//!
//! [`Driver`] and [`Registration`] make each call with a deadline, over a Unix socket; the connection is
//! made when it is needed and made again when it was lost. [`v1`] and [`registration`] have the messages,
//! and the services for whoever writes a driver. Nothing here knows of objects in the API.

mod client;

pub use client::{CALL, Driver, Error, MAX_MESSAGE, Registration};

/// Messages and services of drivers.
#[allow(missing_docs, clippy::all, clippy::pedantic)]
pub mod v1 {
    tonic::include_proto!("csi.v1");
}

/// Messages and services of registration.
#[allow(missing_docs, clippy::all, clippy::pedantic)]
pub mod registration {
    tonic::include_proto!("pluginregistration");
}
