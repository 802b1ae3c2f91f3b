//! An OCI registry: the distribution API 1.1 over content-addressed files.
//!
//! ```text
//! DIR/blobs/sha256/HEX                          every blob and manifest, by what it holds
//! DIR/repositories/NAME/_manifests/HEX          a manifest of that repository: its media type
//! DIR/repositories/NAME/_tags/TAG               the digest a tag stands for
//! DIR/uploads/UUID                              a blob on its way in
//! ```
//!
//! Invariants: a blob's name is the hash of its bytes, verified before it gets the name; a file appears
//! whole or not at all; a tag never points to a manifest that is not there when it is set. The registry
//! does not authenticate: whoever serves it decides who reaches it (`wasmk up`: loopback).

mod error;
mod http;
mod names;
mod storage;

pub use error::Error;
pub use http::router;
pub use names::{Digest, Repository, Tag};
pub use storage::{Limits, Storage};
