//! Why a patch was refused, and the `Status` it becomes.

use thiserror::Error;
use wasmk_api::{Reason, Status};

/// Why a patch was refused.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum PatchError {
    /// The patch is malformed.
    #[error("{0}")]
    BadRequest(String),
    /// The patch does not apply to the object. Clients are told nothing of the reason given here.
    #[error("{0}")]
    Unprocessable(String),
    /// The patch is beyond a bound.
    #[error("Request entity too large: {0}")]
    TooLarge(String),
    /// The patch contradicts itself or the schema. Kubernetes answers it as a fault of the server.
    #[error("{0}")]
    Failed(String),
}

impl From<PatchError> for Status {
    fn from(error: PatchError) -> Self {
        let message = error.to_string();
        match error {
            PatchError::BadRequest(_) => Self::bad_request(message),
            PatchError::TooLarge(_) => Self::new(Reason::RequestEntityTooLarge, message),
            PatchError::Failed(_) => Self::new(Reason::Unknown, message),
            PatchError::Unprocessable(_) => {
                Self::new(Reason::Invalid, "the server rejected our request due to an error in our request")
                    .with_details()
            }
        }
    }
}
