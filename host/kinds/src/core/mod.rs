//! Kinds of the core group that are no workloads.

pub(crate) mod config;
pub(crate) mod endpoints;
pub(crate) mod event;
pub(crate) mod namespace;
pub(crate) mod node;
pub(crate) mod quota;
pub(crate) mod service;
pub(crate) mod service_account;
pub(crate) mod service_validate;
