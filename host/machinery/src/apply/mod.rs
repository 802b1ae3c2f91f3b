//! Field ownership: `metadata.managedFields` and server-side apply.
//!
//! Every write goes through a [`FieldManager`] of its kind, version and subresource:
//!
//! - create, update and every patch that is no apply patch: [`FieldManager::update`] with the stored
//!   object (none on create) and the object right after decoding and defaulting, *before* admission,
//!   allocations and anything else the server sets by itself: nobody owns what the server added. It fills
//!   in `metadata.managedFields` of the new object and never fails;
//! - an apply patch: [`FieldManager::apply`] with the configuration exactly as sent. Its result is then
//!   decoded, defaulted, admitted, validated and stored as that of any other patch. Fields that lost their last owner are
//!   gone or null in it, which decoding treats alike.
//!
//! The `scale` subresource keeps its owners in its parent: see [`scale`].
//!
//! Objects must come from the decoder, which bounds their nesting: the walks here are recursive.

mod compare;
mod element;
mod error;
mod last_applied;
mod leaves;
mod managed;
mod manager;
mod merge;
mod prune;
mod remove;
mod reset;
pub mod scale;
mod set;
mod typed;
mod validate;
mod zero;

pub use compare::Comparison;
pub use element::Element;
pub use error::{ApplyError, Conflict, FieldsError};
pub use managed::{ANCIENT, BEFORE_FIRST_APPLY, MAX_UPDATE_MANAGERS, ManagerId, Operation};
pub use manager::{FieldManager, Versions};
pub use reset::Reset;
pub use set::{Set, show_path};

use serde_json::Value;

use crate::schema::KindSchema;

/// Whether a value of a custom resource has not the shape its schema wants, so that its fields cannot be told apart.
pub fn misfits(kind: &KindSchema, value: &Value) -> bool {
    !kind.is_built_in() && validate::validate(typed::Type::root(kind.schema()), value).is_some()
}

/// A live object with everything a configuration says, as an apply patch that owns nothing would leave it.
///
/// # Errors
/// When the configuration does not fit the kind, or items of a list cannot be told apart.
pub fn merged(kind: &KindSchema, live: &Value, config: &Value) -> Result<Value, String> {
    let root = typed::Type::root(kind.schema());
    if let Some(why) = validate::validate(root, config) {
        return Err(why);
    }
    let mut new = merge::merge(root, live, config)?;
    // Merging leaves out what only the server keeps.
    if let (Some(metadata), Some(kept)) =
        (new.get_mut("metadata").and_then(Value::as_object_mut), live.pointer("/metadata/managedFields"))
    {
        metadata.insert("managedFields".into(), kept.clone());
    }
    Ok(new)
}
