//! API descriptions: OpenAPI v3 per group and version, and v2 for all.

use std::sync::Arc;

use http::{HeaderValue, StatusCode, header};
use wasmk_api::Status;
use wasmk_machinery::openapi;

use crate::{call::Call, discovery, dispatch::not_found_page, http::Answer, server::Core, table::Table};

/// How clients begin to ask for version 2 in protobuf.
const V2_BINARY: &str = "application/com.github.proto-openapi.spec.v2";

/// Answers `/openapi/…`.
///
/// # Errors
/// None; what does not exist is answered as such.
pub(crate) fn serve(
    core: &Arc<Core>,
    call: &Call,
    table: &Arc<Table>,
    parts: &[&str],
) -> Result<Answer, Status> {
    let document = match parts {
        ["v3"] => core
            .documents
            .get(table, "openapi-v3", || serde_json::to_vec(&openapi::index(&table.registry)).ok()),
        ["v3", "api", version] => v3(core, table, "", version),
        ["v3", "apis", group, version] => v3(core, table, group, version),
        ["v2"] if wants_binary(call) => return Ok(binary(core, call, table)),
        ["v2"] => core
            .documents
            .get(table, "openapi-v2", || serde_json::to_vec(&openapi::document_v2(&table.registry)).ok()),
        _ => return Ok(not_found_page()),
    };
    let Some(document) = document else { return Ok(nothing()) };
    let mut answer = discovery::tagged(call, document);
    if call.query.get("hash").is_some() {
        // The hash is part of the address: the document behind it never changes.
        let forever = HeaderValue::from_static("public, immutable");
        answer.headers_mut().insert(header::CACHE_CONTROL, forever);
    }
    Ok(answer)
}

fn v3(core: &Core, table: &Arc<Table>, group: &str, version: &str) -> Option<bytes::Bytes> {
    core.documents.get(table, &format!("openapi-v3/{group}/{version}"), || {
        serde_json::to_vec(&openapi::document_v3(&table.registry, group, version)?).ok()
    })
}

fn nothing() -> Answer {
    let mut answer = Answer::new(axum::body::Body::empty());
    *answer.status_mut() = StatusCode::NOT_FOUND;
    answer
}

fn wants_binary(call: &Call) -> bool {
    let accept = call.headers.get(header::ACCEPT).and_then(|v| v.to_str().ok()).unwrap_or("");
    let first = accept.split(',').next().unwrap_or("").trim();
    first.starts_with(V2_BINARY)
}

/// Version 2 as older clients want it: its tag covers the table it was made from.
fn binary(core: &Core, call: &Call, table: &Arc<Table>) -> Answer {
    let made = core
        .documents
        .get(table, "openapi-v2-protobuf", || Some(openapi::document_v2_protobuf(&table.registry)));
    discovery::tagged_as(call, openapi::V2_PROTOBUF, made.unwrap_or_default())
}
