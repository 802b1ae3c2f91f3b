//! Admission: what may enter the cluster, and what is added to it on the way in.
//!
//! Mutating steps run before an object is prepared and validated, validating ones after. Each is a row with the
//! resources it looks at, one file per step.

mod lifecycle;

use wasmk_api::{Object, Status};

use crate::write::Work;

/// Lets every step change an object that is created (`old` absent) or updated.
///
/// # Errors
/// When a step refuses it.
pub(crate) async fn mutate(work: &Work<'_>, object: &mut Object, old: Option<&Object>) -> Result<(), Status> {
    lifecycle::check(work, object, old)?;
    Ok(())
}

/// Lets every step refuse an object that is created, updated, or deleted (`new` absent).
///
/// # Errors
/// When a step refuses it.
pub(crate) async fn validate(
    work: &Work<'_>,
    new: Option<&Object>,
    old: Option<&Object>,
) -> Result<(), Status> {
    if let (None, Some(old)) = (new, old) {
        lifecycle::protect(work, old)?;
    }
    Ok(())
}
