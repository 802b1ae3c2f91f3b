//! Everything that is no resource: discovery, API descriptions, health, version, metrics.

use std::{collections::HashMap, sync::Arc};

use bytes::Bytes;
use http::{HeaderValue, Method, StatusCode, header};
use parking_lot::Mutex;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tokio::sync::OnceCell;
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

/// A document in the forms it is sent in.
pub(crate) struct Document {
    body: Bytes,
    /// The body compressed, where that is worth it.
    packed: Option<Bytes>,
    /// The hash of the body.
    tag: HeaderValue,
}

impl Document {
    fn new(body: Vec<u8>) -> Self {
        let tag = format!("\"{}\"", hex::encode_upper(Sha256::digest(&body)));
        let tag = HeaderValue::from_str(&tag).unwrap_or(HeaderValue::from_static(""));
        Self { packed: respond::pack(&body).map(Into::into), body: body.into(), tag }
    }
}

/// Documents made from the table, kept until it changes.
#[derive(Default)]
pub(crate) struct Documents(Mutex<Made>);

/// A table and the documents made from it, or about to be.
#[derive(Default)]
struct Made {
    table: Option<Arc<Table>>,
    documents: HashMap<String, Place>,
}

/// Where a document will be; whoever comes meanwhile waits for it.
type Place = Arc<OnceCell<Option<Arc<Document>>>>;

impl Documents {
    /// The document of that name, made with `make` when it is not there yet: once, and aside, because some take
    /// long. There must be a bound to the names.
    pub(crate) async fn get(
        &self,
        table: &Arc<Table>,
        name: &str,
        make: impl FnOnce() -> Option<Vec<u8>> + Send + 'static,
    ) -> Option<Arc<Document>> {
        let made = || async move {
            let made = tokio::task::spawn_blocking(move || make().map(|body| Arc::new(Document::new(body))));
            made.await.inspect_err(|error| tracing::error!(%error, name, "a document could not be made"))
        };
        self.place(table, name).get_or_try_init(made).await.ok()?.clone()
    }

    fn place(&self, table: &Arc<Table>, name: &str) -> Place {
        let mut made = self.0.lock();
        if !made.table.as_ref().is_some_and(|known| Arc::ptr_eq(known, table)) {
            *made = Made { table: Some(table.clone()), documents: HashMap::new() };
        }
        made.documents.entry(name.into()).or_default().clone()
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
        ["api"] => groups(core, call, &table, true).await,
        ["apis"] => groups(core, call, &table, false).await,
        ["apis", group] => found(call, discovery::api_group(&table.registry, group)),
        ["api", version] => found(call, discovery::api_resource_list(&table.registry, "", version)),
        ["apis", group, version] => {
            found(call, discovery::api_resource_list(&table.registry, group, version))
        }
        ["openapi", ..] => Ok(openapi::serve(core, call, &table, &parts[1..]).await),
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

async fn groups(
    core: &Arc<Core>,
    call: &Call,
    table: &Arc<Table>,
    core_group: bool,
) -> Result<Answer, Status> {
    let accept = call.headers.get(header::ACCEPT).and_then(|v| v.to_str().ok()).unwrap_or("");
    if let Some(form) = accept.split(',').find_map(|range| Aggregated::of_accept(range.trim())) {
        return aggregated(core, call, table, core_group, form).await;
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

async fn aggregated(
    core: &Arc<Core>,
    call: &Call,
    table: &Arc<Table>,
    core_group: bool,
    form: Aggregated,
) -> Result<Answer, Status> {
    let name = format!("aggregated-{core_group}-{}", form.version());
    let (server, served) = (core.clone(), table.clone());
    let make = move || {
        let mut document = discovery::aggregated(&served.registry, core_group, form);
        if !core_group {
            aggregate::add_stale(&server.aggregated.load(), &mut document);
        }
        serde_json::to_vec(&document).ok()
    };
    let made = core.documents.get(table, &name, make).await;
    let made = made.ok_or_else(|| Status::internal("the list of resources could not be made"))?;
    let mut answer = tagged(call, Format::Json.content_type(), &made);
    if let Ok(kind) = HeaderValue::from_str(&form.content_type()) {
        answer.headers_mut().insert(header::CONTENT_TYPE, kind);
    }
    Ok(answer)
}

/// A document with its hash as tag; clients that have it already are told so.
pub(crate) fn tagged(call: &Call, media: &'static str, document: &Document) -> Answer {
    let known = call.headers.get(header::IF_NONE_MATCH).is_some_and(|tag| *tag == document.tag);
    let mut answer = match &document.packed {
        _ if known => respond::bytes(StatusCode::NOT_MODIFIED, media, Bytes::new()),
        Some(packed) if call.wanted.gzip => respond::gzipped(StatusCode::OK, media, packed.clone()),
        _ => respond::bytes(StatusCode::OK, media, document.body.clone()),
    };
    let headers = answer.headers_mut();
    headers.insert(header::VARY, HeaderValue::from_static("Accept, Accept-Encoding"));
    headers.insert(header::ETAG, document.tag.clone());
    answer
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};

    use wasmk_store::Memory;

    use super::*;
    use crate::cache::{Caches, Reader};

    #[tokio::test]
    async fn a_document_is_made_once_for_a_table() {
        let caches = Caches::load(Arc::new(Memory::new()), |_| Reader::Plain).await.unwrap();
        let table = || Arc::new(Table::new(&caches, Vec::new(), Vec::new()));
        let (documents, times) = (Documents::default(), Arc::new(AtomicU64::new(0)));
        let make = |size: usize| {
            let times = times.clone();
            move || {
                times.fetch_add(1, Ordering::Relaxed);
                Some(vec![b'x'; size])
            }
        };
        let (first, second) = (table(), table());
        let get = async |table, size| documents.get(table, "d", make(size)).await.unwrap();
        let (one, other) = tokio::join!(get(&first, 1 << 20), get(&first, 7));
        assert!(Arc::ptr_eq(&one, &other) && times.load(Ordering::Relaxed) == 1);
        assert!(one.packed.as_ref().is_some_and(|packed| packed.len() < one.body.len()));
        let small = get(&second, 7).await;
        assert!(small.packed.is_none() && small.tag != one.tag && times.load(Ordering::Relaxed) == 2);
        assert!(documents.get(&second, "none", || None).await.is_none());
    }
}
