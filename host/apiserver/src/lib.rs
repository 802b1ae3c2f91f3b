//! The API server: everything between a request and the store.
//!
//! A request takes one way (`dispatch`): authentication, limits, authorization, then a handler that is found in
//! one table of resources. Reads come from the watch cache (`cache`, `read`); writes go through one pipeline
//! (`write`) that ends in a transaction of the store. Custom resources add rows to the table (`crd`).
//!
//! Nothing here starts a workload, and no code path lists kinds: what is particular about one is a row
//! (`special`, `wasmk-machinery`'s table) or a behaviour of `wasmk-kinds`.

mod admission;
mod aggregate;
mod alloc;
pub mod audit;
mod auth;
mod authorize;
mod bootstrap;
mod cache;
mod call;
mod client;
mod config;
mod crd;
mod discovery;
mod dispatch;
mod expiry;
mod flow;
mod health;
mod http;
mod jsonpath;
mod logs;
mod machine;
mod metrics;
mod openapi;
mod read;
mod remote;
mod server;
mod services;
mod special;
mod sub;
mod table;
mod tls;
mod write;

pub use admission::{AdmissionPlugins, PluginError};
pub use auth::{
    KeyError, RemoteError, User,
    abac::{Policy as AbacPolicy, PolicyError as AbacError},
    settings::{Accounts, Authentication, Authorization, Authorizer, Oidc, RequestHeader, Webhook},
};
pub use config::{
    Component, Config, FrontProxy, KindHook, LocalService, LogFile, NoNodes, NodeDialer, NodeStream,
    ServiceRange, VersionInfo,
};
pub use server::{ApiServer, NodeIdentifier, StartError, Trust};
pub use tls::{Patience, Serving, TlsError, serve_tls, serve_tls_with, tls_config, tls_config_for};
