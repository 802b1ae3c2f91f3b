//! What can be wrong with an apply request, and the `Status` it becomes.

use thiserror::Error;
use wasmk_api::{Cause, Reason, Status};

use super::{Element, managed::ManagerId, show_path};

/// A `fieldsV1` value that is none.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum FieldsError {
    /// A key is malformed.
    #[error("parsing key {element:?} as path element: {why}")]
    Element {
        /// The key.
        element: String,
        /// What is wrong with it.
        why: String,
    },
    /// Something that is no object stands in the tree.
    #[error("expected an object of fields")]
    Shape,
    /// The tree is nested beyond all bounds.
    #[error("fields are nested too deeply")]
    TooDeep,
}

/// A field that another manager owns with another value.
#[derive(Clone, Debug, PartialEq)]
pub struct Conflict {
    /// Who owns it.
    pub manager: ManagerId,
    /// Which field.
    pub path: Vec<Element>,
}

/// Why an apply request was refused.
#[derive(Clone, Debug, PartialEq, Error)]
pub enum ApplyError {
    /// The request is malformed.
    #[error("{0}")]
    BadRequest(String),
    /// Others own fields with other values, and the request does not force.
    #[error("{}", conflict_message(.0))]
    Conflicts(Vec<Conflict>),
    /// The configuration does not fit the schema. Kubernetes answers it as a fault of the server.
    #[error("{0}")]
    Untyped(String),
}

fn conflict_message(conflicts: &[Conflict]) -> String {
    if let [one] = conflicts {
        return format!(
            "Apply failed with 1 conflict: conflict with {}: {}",
            one.manager.shown(),
            show_path(&one.path)
        );
    }
    let mut lines = Vec::new();
    let mut current = None;
    for conflict in conflicts {
        if current != Some(&conflict.manager) {
            lines.push(format!("conflicts with {}:", conflict.manager.shown()));
            current = Some(&conflict.manager);
        }
        lines.push(format!("- {}", show_path(&conflict.path)));
    }
    format!("Apply failed with {} conflicts: {}", conflicts.len(), lines.join("\n"))
}

impl From<ApplyError> for Status {
    fn from(error: ApplyError) -> Self {
        let message = error.to_string();
        match error {
            ApplyError::BadRequest(_) => Self::bad_request(message),
            ApplyError::Untyped(_) => Self::new(Reason::Unknown, message),
            ApplyError::Conflicts(conflicts) => {
                let cause = |conflict: &Conflict| Cause {
                    reason: "FieldManagerConflict".into(),
                    message: format!("conflict with {}", conflict.manager.shown()),
                    field: show_path(&conflict.path),
                };
                let causes: Vec<Cause> = conflicts.iter().map(cause).collect();
                Self::new(Reason::Conflict, message).with_causes(&causes)
            }
        }
    }
}
