//! What data cannot say about each built-in kind: defaults, preparation, validation, printed columns.
//!
//! [`kind`] gives the behaviour of a group and kind; a kind with nothing special gets a neutral one, and so
//! does a custom resource. Everything is a function over [`Object`]; nothing here does I/O, keeps state or
//! knows the request, and nothing but the clock is read.
//!
//! The order of a write is: decode and structural defaults (elsewhere), then [`Kind::default`], then one of
//! the `prepare_…`, then one of the `validate…`.

mod admission;
mod api_service;
mod autoscaling;
mod certificates;
mod classes;
mod columns;
mod coordination;
mod core;
mod crd;
mod devices;
mod domain_path;
mod errors;
mod expression;
mod fields;
mod flow_control;
mod int_or_percent;
mod internal;
mod kind;
mod meta;
mod net;
mod networking;
mod normalize;
mod pod;
mod pod_warnings;
mod policy;
mod ports;
mod rbac;
mod registry;
mod resource_names;
mod resources;
mod reviews;
mod selector;
mod status;
mod storage;
mod table;
mod types;
pub mod value;
mod workloads;

pub use core::node::taint_new as taint_new_node;
pub use errors::{At, Errors};
pub use kind::{Column, Kind, Scale, ScaleSelector};
pub use meta::{
    NameRule, check as check_metadata, check_update as check_metadata_update, finalizer_warnings,
};
pub use net::is_own;
pub use normalize::forget_empty;
pub use registry::kind;

pub use wasmk_api::Object;
