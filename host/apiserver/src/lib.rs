//! The API server: everything between a request and the store.
#![allow(dead_code)]

mod auth;
mod cache;
mod config;
mod http;

pub use auth::{KeyError, User};
pub use config::{Config, NoNodes, NodeDialer, NodeStream, ServiceRange, VersionInfo};
