//! What Kubernetes does to objects, as pure functions over one schema index: decode, default, prune,
//! validate, discover, describe. Nothing here does I/O.

pub mod apply;
pub mod cel;
pub mod decode;
pub mod default;
pub mod field;
pub mod names;
pub mod openapi;
pub mod patch;
pub mod protobuf;
pub mod prune;
pub mod resources;
pub mod schema;
pub mod validate;
pub mod yaml;
