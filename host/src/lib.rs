//! The `wasmk` program as a library: the parts put together, and the command line over them.
//!
//! This crate is the one place that knows all parts; the parts do not know each other.

pub mod cli;
pub mod cluster;
pub mod data_dir;
pub mod files;
pub mod kubeconfig;
pub mod pki;
