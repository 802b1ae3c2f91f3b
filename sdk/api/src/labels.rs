//! Labels that several parts write or read.

/// On an EndpointSlice, and on Endpoints made by hand: the Service it belongs to.
pub const SERVICE_NAME: &str = "kubernetes.io/service-name";
