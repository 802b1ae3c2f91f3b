//! Patches: JSON patch, JSON merge patch and strategic merge patch, as Kubernetes applies them, and the
//! making of patches from what changed.
//!
//! [`parse`] reads a request's body and says what is wrong with it in the words of the server;
//! [`json()`], [`merge()`] and [`strategic()`] apply it. The result is a plain value: it still has to be
//! decoded (which drops nulls and unknown fields), defaulted and validated. No patch nests deeper than
//! [`decode::MAX_DEPTH`](crate::decode::MAX_DEPTH). Custom resources have no
//! strategic merge patch: the server refuses that content type for them.

mod diff;
mod error;
pub(crate) mod gofmt;
mod json;
mod lists;
mod merge;
mod strategic;

use serde_json::Value;

use crate::decode::{self, Format};

pub use diff::{diff, three_way_merge, three_way_strategic, two_way_strategic};
pub use error::PatchError;
pub use json::{MAX_COPIED_BYTES, MAX_OPERATIONS, json};
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

/// A patch's body as read.
#[derive(Clone, Debug, PartialEq)]
pub struct Parsed {
    /// A list of operations, or an object.
    pub patch: Value,
    /// What strict field validation objects to: repeated keys, and unknown ones of operations. By the
    /// request's `fieldValidation` it is ignored, a warning or an error.
    pub strict: Vec<String>,
}

/// Reads a patch's body.
///
/// # Errors
/// When it is no JSON, or not of the shape such patches have.
pub fn parse(kind: PatchType, body: &[u8]) -> Result<Parsed, PatchError> {
    let prefix = if kind == PatchType::Strategic { "" } else { "error decoding patch: " };
    let refuse = |why: String| PatchError::BadRequest(format!("{prefix}{why}"));
    let (patch, mut strict) = decode::plain(body, Format::Json).map_err(refuse)?;
    let wanted = match (kind, &patch) {
        (PatchType::Json, Value::Array(operations)) => {
            json::check_operations(operations).map_err(refuse)?;
            strict.extend(json::unknown_fields(operations));
            let strict = strict.into_iter().map(|error| format!("json patch {error}")).collect();
            return Ok(Parsed { patch, strict });
        }
        (PatchType::Merge | PatchType::Strategic, Value::Object(_)) => return Ok(Parsed { patch, strict }),
        (PatchType::Json, Value::Null) => return Ok(Parsed { patch: Value::Array(Vec::new()), strict }),
        (PatchType::Strategic, Value::Null) => {
            return Ok(Parsed { patch: Value::Object(serde_json::Map::new()), strict });
        }
        (PatchType::Merge, Value::Null) => return Err(PatchError::BadRequest("Invalid JSON Patch".into())),
        (PatchType::Json, _) => "[]handlers.jsonPatchOp",
        _ => "map[string]interface {}",
    };
    let found = gofmt::json_kind(&patch);
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
            let parsed = parse(kind, body.as_bytes()).map(|p| p.patch).map_err(|error| error.to_string());
            assert_eq!(parsed, expect.map_err(str::to_owned), "{kind:?} {body}");
        }
    }

    #[test]
    fn strict_errors() {
        for (kind, body, expect) in [
            (PatchType::Merge, r#"{"a": {"b": 1, "b": 2}}"#, vec![r#"duplicate field "a.b""#]),
            (
                PatchType::Json,
                r#"[{"op": "test", "path": "/a", "x": 1}]"#,
                vec![r#"json patch unknown field "[0].x""#],
            ),
        ] {
            assert_eq!(parse(kind, body.as_bytes()).unwrap().strict, expect);
        }
    }
}
