//! The `wasmk` program as a library: the parts put together, and the command line over them.
//!
//! This crate is the one place that knows all parts; the parts do not know each other.

pub mod access;
pub mod agent;
mod agents;
mod bootstrap;
pub mod cli;
pub mod cluster;
mod control;
mod controllers;
pub mod data_dir;
mod door;
mod encryption;
mod executor;
pub mod files;
mod footprint;
mod hook;
mod imports;
pub mod join;
pub mod kubeconfig;
mod links;
mod metrics;
mod own_log;
pub mod pki;
mod renewal;
mod rotating;
mod scheduler_config;
pub mod store;
