//! Refusals, with the codes of the distribution specification.

use axum::response::{IntoResponse, Response};
use http::{HeaderValue, StatusCode, header};
use serde_json::json;
use thiserror::Error;

/// Why a request is refused.
#[derive(Debug, Error)]
pub enum Error {
    /// No such blob.
    #[error("blob unknown to registry")]
    BlobUnknown,
    /// No upload of that name.
    #[error("blob upload unknown to registry")]
    UploadUnknown,
    /// The upload does not go on where the client thinks.
    #[error("the upload is at byte {at}, not at {given}")]
    UploadOutOfOrder {
        /// Where it is.
        at: u64,
        /// Where the client wanted to go on.
        given: u64,
    },
    /// What arrived does not have the digest it was said to have.
    #[error("provided digest {wanted} did not match uploaded content {found}")]
    DigestMismatch {
        /// What the client said.
        wanted: String,
        /// What it is.
        found: String,
    },
    /// Not a digest this registry understands.
    #[error("\"{0}\" is not a digest: sha256:<64 hex digits> was expected")]
    DigestInvalid(String),
    /// The manifest names a blob that is not there.
    #[error("the manifest names {0}, which was not uploaded")]
    ManifestBlobUnknown(String),
    /// Not a manifest.
    #[error("manifest invalid: {0}")]
    ManifestInvalid(String),
    /// No such manifest.
    #[error("manifest unknown: {0}")]
    ManifestUnknown(String),
    /// Not a repository's name, or not a tag.
    #[error("invalid name \"{0}\"")]
    NameInvalid(String),
    /// No such repository.
    #[error("repository name not known to registry: {0}")]
    NameUnknown(String),
    /// Larger than a bound.
    #[error("{what} is larger than {limit} bytes")]
    TooLarge {
        /// What.
        what: &'static str,
        /// The bound in bytes.
        limit: u64,
    },
    /// Too many uploads at a time.
    #[error("too many uploads at a time; try again")]
    TooMany,
    /// Not part of the API.
    #[error("the operation is unsupported")]
    Unsupported,
    /// The disk refuses.
    #[error("the registry's storage failed")]
    Storage(#[from] std::io::Error),
}

impl Error {
    fn parts(&self) -> (StatusCode, &'static str) {
        match self {
            Self::BlobUnknown => (StatusCode::NOT_FOUND, "BLOB_UNKNOWN"),
            Self::UploadUnknown => (StatusCode::NOT_FOUND, "BLOB_UPLOAD_UNKNOWN"),
            Self::UploadOutOfOrder { .. } => (StatusCode::RANGE_NOT_SATISFIABLE, "BLOB_UPLOAD_INVALID"),
            Self::DigestMismatch { .. } | Self::DigestInvalid(_) => {
                (StatusCode::BAD_REQUEST, "DIGEST_INVALID")
            }
            Self::ManifestBlobUnknown(_) => (StatusCode::NOT_FOUND, "MANIFEST_BLOB_UNKNOWN"),
            Self::ManifestInvalid(_) => (StatusCode::BAD_REQUEST, "MANIFEST_INVALID"),
            Self::ManifestUnknown(_) => (StatusCode::NOT_FOUND, "MANIFEST_UNKNOWN"),
            Self::NameInvalid(_) => (StatusCode::BAD_REQUEST, "NAME_INVALID"),
            Self::NameUnknown(_) => (StatusCode::NOT_FOUND, "NAME_UNKNOWN"),
            Self::TooLarge { .. } => (StatusCode::PAYLOAD_TOO_LARGE, "SIZE_INVALID"),
            Self::TooMany => (StatusCode::TOO_MANY_REQUESTS, "TOOMANYREQUESTS"),
            Self::Unsupported => (StatusCode::METHOD_NOT_ALLOWED, "UNSUPPORTED"),
            Self::Storage(_) => (StatusCode::INTERNAL_SERVER_ERROR, "UNKNOWN"),
        }
    }
}

impl IntoResponse for Error {
    fn into_response(self) -> Response {
        if let Self::Storage(e) = &self {
            tracing::error!(error = %e, "the registry's storage failed");
        }
        let (status, code) = self.parts();
        let body =
            json!({"errors": [{"code": code, "message": self.to_string(), "detail": null}]}).to_string();
        let mut response = (status, body).into_response();
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        if status == StatusCode::TOO_MANY_REQUESTS {
            headers.insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
        }
        response
    }
}
