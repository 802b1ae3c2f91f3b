//! API descriptions: OpenAPI v3 per group and version, and v2 for all.

use std::sync::Arc;

use http::{HeaderValue, StatusCode, header};
use wasmk_machinery::openapi;

use crate::{
    call::Call,
    discovery::{self, Document},
    dispatch::not_found_page,
    http::{Answer, negotiate::Format},
    server::Core,
    table::Table,
};

/// How clients begin to ask for version 2 in protobuf.
const V2_BINARY: &str = "application/com.github.proto-openapi.spec.v2";

/// Answers `/openapi/…`.
pub(crate) async fn serve(core: &Core, call: &Call, table: &Arc<Table>, parts: &[&str]) -> Answer {
    let (mut media, served) = (Format::Json.content_type(), table.clone());
    let document = match parts {
        ["v3"] => {
            let make = move || serde_json::to_vec(&openapi::index(&served.registry)).ok();
            core.documents.get(table, "openapi-v3", make).await
        }
        ["v3", "api", version] => v3(core, table, "", version).await,
        ["v3", "apis", group, version] => v3(core, table, group, version).await,
        ["v2"] if wants_binary(call) => {
            media = openapi::V2_PROTOBUF;
            let make = move || Some(openapi::document_v2_protobuf(&served.registry));
            core.documents.get(table, "openapi-v2-protobuf", make).await
        }
        ["v2"] => {
            let make = move || serde_json::to_vec(&openapi::document_v2(&served.registry)).ok();
            core.documents.get(table, "openapi-v2", make).await
        }
        _ => return not_found_page(),
    };
    let Some(document) = document else { return nothing() };
    let mut answer = discovery::tagged(call, media, &document);
    if call.query.get("hash").is_some() {
        // The hash is part of the address: the document behind it never changes.
        let forever = HeaderValue::from_static("public, immutable");
        answer.headers_mut().insert(header::CACHE_CONTROL, forever);
    }
    answer
}

async fn v3(core: &Core, table: &Arc<Table>, group: &str, version: &str) -> Option<Arc<Document>> {
    if !table.has_version(group, version) {
        return None;
    }
    let (served, name) = (table.clone(), format!("openapi-v3/{group}/{version}"));
    let (group, version) = (group.to_owned(), version.to_owned());
    let make = move || serde_json::to_vec(&openapi::document_v3(&served.registry, &group, &version)?).ok();
    core.documents.get(table, &name, make).await
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
