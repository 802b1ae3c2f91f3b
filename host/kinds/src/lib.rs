//! What data cannot say about each built-in kind: defaults, preparation, validation, printed columns.
//!
//! [`kind`] gives the behaviour of a group and kind; a kind with nothing special gets a neutral one, and so
//! does a custom resource. Everything is a pure function over [`Object`]; nothing here does I/O, keeps state
//! or knows the request. The order of a write is: decode and structural defaults (elsewhere), then
//! [`Kind::default`], then one of the `prepare_…`, then one of the `validate…`.

mod kind;
mod registry;

pub use kind::{Column, Kind, Scale, ScaleSelector};
pub use registry::kind;

pub use wasmk_api::Object;
