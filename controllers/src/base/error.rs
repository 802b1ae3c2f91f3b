//! What can go wrong in a pass.

use thiserror::Error;

use super::Key;

/// Why a pass did not finish. The next pass is the retry.
#[derive(Debug, Error)]
pub enum Error {
    /// The API refused or could not be reached.
    #[error("cannot {verb} {kind} {key}")]
    Api {
        /// What was tried: `create`, `delete`, `patch`, …
        verb: &'static str,
        /// The object's kind.
        kind: String,
        /// Which object.
        key: Key,
        /// The answer.
        #[source]
        source: Box<kube::Error>,
    },
    /// The list of served resources could not be read.
    #[error("cannot read the API's discovery documents")]
    Discovery(#[source] Box<kube::Error>),
    /// An object cannot be worked on as it is written.
    #[error("{0}")]
    Invalid(String),
}

/// A pass's outcome.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// Wraps an API failure with what was tried on which object.
    pub fn api(verb: &'static str, kind: &str, key: Key, source: kube::Error) -> Self {
        Self::Api { verb, kind: kind.into(), key, source: Box::new(source) }
    }

    fn status(&self) -> Option<&kube::core::Status> {
        let source = match self {
            Self::Api { source, .. } | Self::Discovery(source) => source,
            Self::Invalid(_) => return None,
        };
        match &**source {
            kube::Error::Api(status) => Some(status),
            _ => None,
        }
    }

    /// The object is not there.
    pub fn is_not_found(&self) -> bool {
        self.status().is_some_and(kube::core::Status::is_not_found)
    }

    /// Someone else wrote it first.
    pub fn is_conflict(&self) -> bool {
        self.status().is_some_and(kube::core::Status::is_conflict)
    }

    /// An object of that name is there.
    pub fn is_already_exists(&self) -> bool {
        self.status().is_some_and(kube::core::Status::is_already_exists)
    }

    /// The request itself was refused as wrong.
    pub fn is_invalid(&self) -> bool {
        self.status().is_some_and(|s| s.code == 422)
    }

    /// Whether a `Forbidden` answer says that the namespace is going away.
    pub fn is_namespace_terminating(&self) -> bool {
        self.status().is_some_and(|s| {
            s.code == 403
                && (s.message.contains("being terminated")
                    || s.details
                        .as_ref()
                        .is_some_and(|d| d.causes.iter().any(|c| c.reason == "NamespaceTerminating")))
        })
    }

    /// The API's own words, for conditions and events.
    pub fn message(&self) -> String {
        match (self.status(), self) {
            (Some(status), _) => status.message.clone(),
            (None, Self::Api { source, .. }) => source.to_string(),
            (None, other) => other.to_string(),
        }
    }
}
