//! Functions: Knative Serving's kinds, their controllers, the autoscaler and the gateway.
//!
//! Everything here is an ordinary API client. What a node must do for it, to answer a request in
//! place, is the narrow trait [`Executor`]. Invariants:
//!
//! - the gateway writes nothing to the API, and reads its table and fleet without waiting;
//! - the table is a function of the routes there are: a deleted route gets no request;
//! - only the autoscaler changes how many pods a revision has.

mod autoscaler;
mod conditions;
mod configuration;
mod context;
mod crds;
mod defaults;
mod executor;
mod fleet;
mod gateway;
mod names;
mod revision;
mod route;
mod service;
mod tasks;

pub use autoscaler::Bounds;
pub use crds::definitions;
pub use executor::{Body, BoxError, Executor, Function, Handler, Prepared, Refused, full};
pub use fleet::{Fleet, Key, Limits, Member};
pub use gateway::{Gateway, Site, Table};
pub use tasks::{Functions, Settings};
