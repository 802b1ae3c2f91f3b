//! Patches: JSON patch, JSON merge patch and strategic merge patch, as Kubernetes applies them, and the
//! making of patches from what changed.
//!
//! [`parse`] reads a request's body and says what is wrong with it in the words of the server;
//! [`json()`], [`merge()`] and [`strategic()`] apply it. The result is a plain value: it still has to be
//! decoded (which drops nulls and unknown fields), defaulted and validated. Custom resources have no
//! strategic merge patch: the server refuses that content type for them.

mod diff;
mod error;
pub(crate) mod gofmt;
mod json;
mod lists;
mod merge;
mod strategic;

use serde_json::Value;

pub use diff::{diff, three_way_merge, three_way_strategic, two_way_strategic};
pub use error::PatchError;
pub use json::{MAX_COPIED_BYTES, MAX_DEPTH, MAX_OPERATIONS, json};
pub use merge::merge;
pub use strategic::strategic;

/// The kinds of patches that are read here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PatchType {
    /// `application/json-patch+json`
    Json,
    /// `application/merge-patch+json`
    Merge,
    /// `application/strategic-merge-patch+json`
    Strategic,
}

/// Reads a patch's body.
///
/// # Errors
/// When it is no JSON, or not of the shape such patches have.
pub fn parse(kind: PatchType, body: &[u8]) -> Result<Value, PatchError> {
    let prefix = if kind == PatchType::Strategic { "" } else { "error decoding patch: " };
    let refuse = |why: String| PatchError::BadRequest(format!("{prefix}{why}"));
    let value: Value = serde_json::from_slice(body).map_err(|error| match error.is_eof() {
        true => refuse("unexpected end of JSON input".into()),
        false => refuse(error.to_string()),
    })?;
    let wanted = match (kind, &value) {
        (PatchType::Json, Value::Array(operations)) => {
            json::check_operations(operations).map_err(refuse)?;
            return Ok(value);
        }
        (PatchType::Merge | PatchType::Strategic, Value::Object(_)) => return Ok(value),
        (PatchType::Json, Value::Null) => return Ok(Value::Array(Vec::new())),
        (PatchType::Strategic, Value::Null) => return Ok(Value::Object(serde_json::Map::new())),
        (PatchType::Merge, Value::Null) => return Err(PatchError::BadRequest("Invalid JSON Patch".into())),
        (PatchType::Json, _) => "[]handlers.jsonPatchOp",
        _ => "map[string]interface {}",
    };
    let found = gofmt::json_kind(&value);
    Err(refuse(format!("json: cannot unmarshal {found} into Go value of type {wanted}")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn bodies() {
        use PatchType::{Json, Merge, Strategic};
        for (kind, body, expect) in [
            (Merge, "", Err("error decoding patch: unexpected end of JSON input")),
            (Merge, "{", Err("error decoding patch: unexpected end of JSON input")),
            (
                Merge,
                "[]",
                Err(
                    "error decoding patch: json: cannot unmarshal array into Go value of type map[string]interface {}",
                ),
            ),
            (Merge, "null", Err("Invalid JSON Patch")),
            (Strategic, "{", Err("unexpected end of JSON input")),
            (
                Strategic,
                "\"x\"",
                Err("json: cannot unmarshal string into Go value of type map[string]interface {}"),
            ),
            (Strategic, "null", Ok(json!({}))),
            (
                Json,
                "\"x\"",
                Err(
                    "error decoding patch: json: cannot unmarshal string into Go value of type []handlers.jsonPatchOp",
                ),
            ),
            (
                Json,
                "[1]",
                Err(
                    "error decoding patch: json: cannot unmarshal number into Go value of type handlers.jsonPatchOp",
                ),
            ),
            (
                Json,
                r#"[{"op": 1}]"#,
                Err(
                    "error decoding patch: json: cannot unmarshal number into Go struct field jsonPatchOp.op of type string",
                ),
            ),
            (Json, "null", Ok(json!([]))),
            (Json, "[]", Ok(json!([]))),
        ] {
            let parsed = parse(kind, body.as_bytes()).map_err(|error| error.to_string());
            assert_eq!(parsed, expect.map_err(str::to_owned), "{kind:?} {body}");
        }
    }
}
