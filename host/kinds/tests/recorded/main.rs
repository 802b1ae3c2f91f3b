//! Kinds against recorded answers of a Kubernetes 1.36 API server.

mod common;
mod defaulting;
mod odd;
mod tables;
mod validation;
