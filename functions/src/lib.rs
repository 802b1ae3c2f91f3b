//! Functions: Knative Serving's kinds, their controllers, the autoscaler and the gateway.
//!
//! Everything here is an ordinary API client. What a node must do for it, to answer a request in
//! place, is the narrow trait [`Executor`]. Invariants:
//!
//! - the gateway writes nothing to the API, and reads its table without a lock;
//! - the table is a function of the routes and mappings there are: a deleted route gets no request;
//! - the settings in `config-*` ConfigMaps count from the moment they change;
//! - only the autoscaler changes how many pods a revision has.

mod admission;
mod autoscaler;
mod cache;
mod conditions;
mod config;
mod configuration;
mod context;
mod crds;
mod defaults;
mod domain_mapping;
mod eventing;
mod executor;
mod fleet;
mod gateway;
mod gc;
mod names;
mod passes;
mod placeholders;
mod references;
mod revision;
mod rollout;
mod route;
mod schema;
mod service;
mod spin;
mod tasks;
mod workloads;

pub use admission::Admission;
pub use autoscaler::{Bounds, Class, Metric};
pub use config::{Live, NAMESPACE, Wrong};
pub use crds::definitions;
pub use executor::{Body, BoxError, Executor, Function, Handler, Prepared, Refused, full};
pub use fleet::{Backend, Fleet, Key, Limits, Member};
pub use gateway::{Answer, Claim, Gateway, Peer, Site, Source, Table, Target};
pub use tasks::{Functions, Settings};

/// The ConfigMaps of a new cluster's settings, to be made where they are missing.
pub fn config_maps() -> Vec<serde_json::Value> {
    config::config_maps()
}
