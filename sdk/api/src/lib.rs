//! The words every part of wasmk shares: objects, kinds, errors, selectors, quantities.
//!
//! [`Object`] is what the API layer handles: a JSON map with typed access to its
//! metadata, the same for built-in kinds, our own and custom resources. Code that
//! *reads* objects (controllers, scheduler, node, command line) uses the structs of
//! [`k8s_openapi`] instead, re-exported here so that everyone reads one version.
//!
//! Nothing here does I/O.

pub mod http;
pub mod knative;
pub mod labels;
mod object;
pub mod per_request;
pub mod proxy_protocol;
mod quantity;
mod resource;
mod schedule;
mod selector;
mod status;
mod time;

pub use k8s_openapi;
pub use object::Object;
pub use per_request::PerRequest;
pub use quantity::{Quantity, QuantityError};
pub use resource::{GroupKind, GroupResource, GroupVersion, Gvk, Gvr};
pub use schedule::Schedule;
pub use selector::{FieldSelector, LabelSelector, Operator, Requirement, SelectorError};
pub use status::{Cause, Reason, Status};
pub use time::{Timestamp, human_duration, parse_duration};

/// Where the parts of a node connect from when they reach a pod for the cluster's sake: probes, port-forwards, proxies
/// that have judged whom they speak for. Network policies let it pass; no pod can have it.
pub const NODE_SOURCE: std::net::Ipv4Addr = std::net::Ipv4Addr::new(127, 0, 42, 1);
