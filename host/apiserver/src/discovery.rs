//! Everything that is no resource: discovery, API descriptions, health, version, metrics.

use std::{collections::HashMap, sync::Arc};

use bytes::Bytes;
use http::{HeaderValue, Method, StatusCode, header};
use parking_lot::Mutex;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use wasmk_api::{GroupVersion, Reason, Status};
use wasmk_machinery::resources::discovery::{self, Aggregated};

use crate::{
    aggregate,
    call::Call,
    dispatch::not_found_page,
    health,
    http::{Answer, Wanted, negotiate::Format, respond},
    logs, openapi,
    server::Core,
    table::Table,
};

/// Documents made from the table, kept until it changes.
#[derive(Default)]
pub(crate) struct Documents(Mutex<Option<Made>>);

/// A table and the documents made from it.
type Made = (Arc<Table>, HashMap<String, Bytes>);

impl Documents {
    /// The document of that name, made with `make` when it is not there yet.
    pub(crate) fn get(
        &self,
        table: &Arc<Table>,
        name: &str,
        make: impl FnOnce() -> Option<Vec<u8>>,
    ) -> Option<Bytes> {
        if let Some((known, documents)) = &*self.0.lock()
            && Arc::ptr_eq(known, table)
            && let Some(document) = documents.get(name)
        {
            return Some(document.clone());
        }
        let made = Bytes::from(make()?);
        let mut slot = self.0.lock();
        match &mut *slot {
            Some((known, documents)) if Arc::ptr_eq(known, table) => {
                documents.insert(name.into(), made.clone());
            }
            other => *other = Some((table.clone(), HashMap::from([(name.into(), made.clone())]))),
        }
        Some(made)
    }
}

/// Answers requests for anything but resources.
///
/// # Errors
/// 405 for methods other than GET and HEAD, 406 for encodings that are not offered.
pub(crate) async fn other(
    core: &Arc<Core>,
    call: &Arc<Call>,
    _request: axum::extract::Request,
) -> Result<Answer, Status> {
    let path = call.info.path.trim_end_matches('/');
    if !matches!(call.method, Method::GET | Method::HEAD) {
        return if known(path) { Err(Status::method_not_allowed()) } else { Ok(not_found_page()) };
    }
    let table = core.table.load_full();
    let parts: Vec<&str> = path.split('/').skip(1).collect();
    match parts.as_slice() {
        [] | [""] | ["index.html"] => Ok(paths(&table)),
        ["api"] => groups(core, call, &table, true),
        ["apis"] => groups(core, call, &table, false),
        ["apis", group] => found(call, discovery::api_group(&table.registry, group)),
        ["api", version] => found(call, discovery::api_resource_list(&table.registry, "", version)),
        ["apis", group, version] => {
            found(call, discovery::api_resource_list(&table.registry, group, version))
        }
        ["openapi", ..] => openapi::serve(core, call, &table, &parts[1..]),
        ["logs", name @ ..] => logs::serve(core, name).await,
        _ => Ok(health::serve(core, call, &parts)),
    }
}

fn known(path: &str) -> bool {
    let first = path.split('/').nth(1).unwrap_or("");
    matches!(
        first,
        "api" | "apis" | "openapi" | "version" | "healthz" | "livez" | "readyz" | "metrics" | "logs" | ""
    )
}

fn paths(table: &Table) -> Answer {
    let mut paths = vec!["/.well-known/openid-configuration".to_owned(), "/api".into(), "/apis".into()];
    for group in table.registry.groups() {
        if !group.name.is_empty() {
            paths.push(format!("/apis/{}", group.name));
        }
        let path = |version: &str| GroupVersion::new(group.name.as_str(), version).path();
        paths.extend(group.versions.iter().map(|v| path(&v.version)));
    }
    for path in [
        "/healthz",
        "/livez",
        "/metrics",
        "/openapi/v2",
        "/openapi/v3",
        "/openid/v1/jwks",
        "/readyz",
        "/version",
    ] {
        paths.push(path.into());
    }
    paths.sort();
    paths.dedup();
    respond::value_as(
        StatusCode::OK,
        Wanted { pretty: true, ..Wanted::default() },
        &json!({ "paths": paths }),
    )
}

fn groups(core: &Core, call: &Call, table: &Arc<Table>, core_group: bool) -> Result<Answer, Status> {
    let accept = call.headers.get(header::ACCEPT).and_then(|v| v.to_str().ok()).unwrap_or("");
    if let Some(form) = accept.split(',').find_map(|range| Aggregated::of_accept(range.trim())) {
        return Ok(aggregated(core, call, table, core_group, form));
    }
    refuse_odd(accept)?;
    let value = if core_group {
        let address = format!("{}:{}", core.config.advertise_address, core.config.advertise_port);
        discovery::api_versions(&table.registry, &address)
    } else {
        let mut document = discovery::api_group_list(&table.registry);
        aggregate::add_missing(&core.aggregated.load(), &mut document);
        document
    };
    Ok(respond::value_as(StatusCode::OK, plain(call), &value))
}

/// Documents have no tables and no metadata.
fn plain(call: &Call) -> Wanted {
    Wanted { form: crate::http::Form::Whole, ..call.wanted }
}

fn refuse_odd(accept: &str) -> Result<(), Status> {
    let known = [
        "*/*",
        "application/*",
        "application/json",
        "application/yaml",
        "application/vnd.kubernetes.protobuf",
    ];
    let acceptable = accept.is_empty()
        || accept.split(',').any(|c| known.contains(&c.split(';').next().unwrap_or("").trim()));
    if acceptable {
        return Ok(());
    }
    Err(Status::new(
        Reason::NotAcceptable,
        "only the following media types are accepted: application/json, application/yaml, application/vnd.kubernetes.protobuf",
    ))
}

fn found(call: &Call, document: Option<Value>) -> Result<Answer, Status> {
    Ok(match document {
        Some(value) => respond::value_as(StatusCode::OK, plain(call), &value),
        None => not_found_page(),
    })
}

fn aggregated(core: &Core, call: &Call, table: &Arc<Table>, core_group: bool, form: Aggregated) -> Answer {
    let name = format!("aggregated-{core_group}-{}", form.version());
    let made = core.documents.get(table, &name, || {
        let mut document = discovery::aggregated(&table.registry, core_group, form);
        if !core_group {
            aggregate::add_stale(&core.aggregated.load(), &mut document);
        }
        serde_json::to_vec(&document).ok()
    });
    let mut answer = tagged(call, made.unwrap_or_default());
    if let Ok(kind) = HeaderValue::from_str(&form.content_type()) {
        answer.headers_mut().insert(header::CONTENT_TYPE, kind);
    }
    answer
}

/// A JSON document with its hash as tag; clients that have it already are told so.
pub(crate) fn tagged(call: &Call, body: Bytes) -> Answer {
    tagged_as(call, Format::Json.content_type(), body)
}

/// The same for a document of any media type.
pub(crate) fn tagged_as(call: &Call, media: &'static str, body: Bytes) -> Answer {
    let tag = format!("\"{}\"", hex::encode_upper(Sha256::digest(&body)));
    let matches = call.headers.get(header::IF_NONE_MATCH).is_some_and(|v| v.as_bytes() == tag.as_bytes());
    let mut answer = if matches {
        respond::bytes(StatusCode::NOT_MODIFIED, media, Bytes::new())
    } else {
        respond::encoded(StatusCode::OK, Wanted { format: Format::Json, pretty: false, ..plain(call) }, body)
    };
    let headers = answer.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(media));
    headers.insert(header::VARY, HeaderValue::from_static("Accept, Accept-Encoding"));
    if let Ok(tag) = HeaderValue::from_str(&tag) {
        headers.insert(header::ETAG, tag);
    }
    answer
}
