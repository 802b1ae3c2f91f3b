//! Lists: concatenations of objects that are already encoded, a page at a time.

use std::sync::Arc;

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use bytes::{BufMut, BytesMut};
use http::StatusCode;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use wasmk_api::{Object, Status};
use wasmk_machinery::protobuf;

use super::{Former, components, filter, partial};
use crate::{
    cache::{Compacted, Entry, Page, Part, too_large},
    call::Call,
    http::{Answer, Form, Format, ListOptions, Match, Wanted, respond},
    server::Core,
    table::Resource,
};

/// Where a list goes on: the state it shows and the last key of the page before.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Continue {
    v: String,
    rv: u64,
    start: String,
    /// How many objects there are after that key; only without selectors.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    left: Option<usize>,
}

impl Continue {
    fn after(start: &str, revision: u64, left: Option<usize>) -> Self {
        Self { v: VERSION.into(), rv: revision, start: start.into(), left }
    }

    fn encode(&self) -> String {
        URL_SAFE_NO_PAD.encode(serde_json::to_vec(self).unwrap_or_default())
    }

    fn decode(text: &str) -> Result<Self, Status> {
        let bad = |why: String| {
            Status::bad_request(format!("invalid continue token: continue key is not valid: {why}"))
        };
        let bytes = URL_SAFE_NO_PAD.decode(text.trim_end_matches('=')).map_err(|e| bad(e.to_string()))?;
        let token: Self = serde_json::from_slice(&bytes).map_err(|_| {
            let first = bytes.first().map_or(' ', |b| char::from(*b));
            bad(format!("invalid character '{first}' looking for beginning of value"))
        })?;
        if token.v != VERSION {
            return Err(bad(format!("server does not recognize this encoded version {:?}", token.v)));
        }
        Ok(token)
    }
}

const VERSION: &str = "meta.k8s.io/v1";

/// A page with the revision it shows.
struct Shown {
    page: Page,
    revision: u64,
}

/// Answers `list`.
pub(crate) async fn list(core: &Core, call: &Call, resource: &Arc<Resource>) -> Result<Answer, Status> {
    let options = ListOptions::parse(&call.query, false)?;
    let filter = filter(call, resource, &options)?;
    let mut shown = page(core, resource, &options, &filter).await?;
    shown.page.entries = resource.present(core, shown.page.entries).await?;
    let cont = shown
        .page
        .more
        .as_deref()
        .map(|start| Continue::after(start, shown.revision, shown.page.remaining).encode());
    let (wanted, size) = (call.wanted, shown.page.entries.iter().map(|e| e.length()).sum());
    let (former, resource) = (Former::new(core, call, resource), resource.clone());
    respond::aside(size, move || written(wanted, &former, &resource, &shown, cont.as_deref())).await
}

/// A list in the form and encoding that is wanted.
fn written(
    wanted: Wanted,
    former: &Former,
    resource: &Resource,
    shown: &Shown,
    cont: Option<&str>,
) -> Result<Answer, Status> {
    match (wanted.form, wanted.format, resource.binary) {
        (Form::Whole, Format::Protobuf, Some(item)) => {
            let body = binary(resource, item, shown, cont)?;
            Ok(respond::compressed(StatusCode::OK, wanted, body.into()))
        }
        (Form::Whole, ..) => {
            Ok(respond::encoded(StatusCode::OK, wanted, concatenate(resource, shown, cont)?))
        }
        _ => {
            let object = |e: &Arc<Entry>| match wanted.form {
                Form::Partial(_) => e.head(),
                _ => resource.shown(e),
            };
            let objects: Vec<_> = shown.page.entries.iter().map(object).collect();
            let value = formed(wanted.form, former, &objects, shown, cont);
            Ok(respond::value_as(StatusCode::OK, wanted, &value))
        }
    }
}

async fn page(
    core: &Core,
    resource: &Resource,
    options: &ListOptions,
    filter: &crate::cache::Filter,
) -> Result<Shown, Status> {
    if components::are(resource) {
        let revision = core.caches.catch_up().await?;
        let mut entries = components::entries(core);
        entries.retain(|entry| filter.matches(entry));
        return Ok(Shown { page: Page { entries, more: None, remaining: None }, revision });
    }
    let cache = &resource.cache;
    if !options.cont.is_empty() {
        if !matches!(&*options.resource_version, "" | "0") {
            return Err(Status::bad_request(
                "specifying resource version is not allowed when using continue",
            ));
        }
        let token = Continue::decode(&options.cont)?;
        let part = Part { start: Some(&token.start), limit: options.limit, left: token.left };
        let page = cache.page_at(filter, part, token.rv).map_err(|_| expired(&token, core))?;
        return Ok(Shown { page, revision: token.rv });
    }
    let part = Part { limit: options.limit, ..Part::default() };
    match options.wanted()? {
        Match::Newest => {
            core.caches.catch_up().await?;
        }
        Match::Any => {}
        Match::NotOlderThan(revision) => core.caches.wait_for(revision).await?,
        Match::Exact(revision) => {
            let current = core.caches.catch_up().await?;
            if revision > current {
                return Err(too_large(revision, current));
            }
            let page = cache.page_at(filter, part, revision).map_err(|c| too_old(revision, c))?;
            return Ok(Shown { page, revision });
        }
    }
    // Changes may have been applied since; the page shows what is there now, and says so.
    let (page, revision) = core.caches.page(cache, filter, part);
    Ok(Shown { page, revision })
}

fn too_old(revision: u64, compacted: Compacted) -> Status {
    Status::expired(format!(
        "The resourceVersion for the provided list is too old: {revision} ({})",
        compacted.oldest
    ))
}

/// The page's state is gone; the client may go on from the same place at the present state.
fn expired(token: &Continue, core: &Core) -> Status {
    let fresh = Continue::after(&token.start, core.caches.revision(), None);
    let mut status = Status::expired(
        "The provided continue parameter is too old to display a consistent list result. You can start a new list \
         without the continue parameter, or use the continue token in this response to retrieve the remainder of \
         the results. Continuing with the provided token results in an inconsistent list - objects that were \
         created, modified, or deleted between the time the first chunk was returned and now may show up in the \
         list.",
    );
    status.details.insert("continue".into(), fresh.encode().into());
    status
}

fn metadata(resource: &Resource, shown: &Shown, cont: Option<&str>) -> Value {
    let mut metadata = json!({ "resourceVersion": shown.revision.to_string() });
    if let Some(cont) = cont {
        metadata["continue"] = cont.into();
    }
    if cont.is_none() && resource.custom().is_some() {
        metadata["continue"] = "".into();
    }
    if let (Some(_), Some(remaining)) = (cont, shown.page.remaining) {
        metadata["remainingItemCount"] = remaining.into();
    }
    metadata
}

fn head(out: &mut BytesMut, resource: &Resource, shown: &Shown, cont: Option<&str>) {
    out.put_slice(
        format!(
            "{{\"kind\":\"{}\",\"apiVersion\":\"{}\",\"metadata\":{},\"items\":[",
            resource.list_kind,
            resource.gvk.api_version(),
            metadata(resource, shown, cont),
        )
        .as_bytes(),
    );
}

/// A list in protobuf.
fn binary(
    resource: &Resource,
    item: protobuf::Type,
    shown: &Shown,
    cont: Option<&str>,
) -> Result<Vec<u8>, Status> {
    let list = resource.gvk.group_version().kind(resource.list_kind.clone());
    let items = shown.page.entries.iter().map(|entry| match resource.serves(entry) {
        true => entry.body(),
        false => serde_json::to_vec(&resource.served(entry.object())).unwrap_or_default().into(),
    });
    protobuf::list(&list, &metadata(resource, shown, cont), item, items).map_err(Status::internal)
}

fn concatenate(resource: &Resource, shown: &Shown, cont: Option<&str>) -> Result<bytes::Bytes, Status> {
    let size: usize = shown.page.entries.iter().map(|e| e.length() + 2).sum();
    let mut out = BytesMut::with_capacity(size + 256);
    head(&mut out, resource, shown, cont);
    let custom = resource.custom().is_some();
    for (i, entry) in shown.page.entries.iter().enumerate() {
        if i > 0 {
            out.put_u8(b',');
        }
        item(&mut out, resource, entry, custom)?;
    }
    out.put_slice(b"]}");
    Ok(out.freeze())
}

/// Items of built-in kinds carry no kind and apiVersion, those of custom resources do.
fn item(out: &mut BytesMut, resource: &Resource, entry: &Arc<Entry>, custom: bool) -> Result<(), Status> {
    match (resource.serves(entry), custom) {
        (true, true) => entry.write(out),
        (true, false) => {
            out.put_u8(b'{');
            entry.write_item(out);
        }
        (false, _) => {
            let mut object = resource.served(entry.object());
            if !custom {
                object.0.shift_remove("kind");
                object.0.shift_remove("apiVersion");
            }
            out.put_slice(&serde_json::to_vec(&object).map_err(Status::internal)?);
        }
    }
    Ok(())
}

fn formed(form: Form, former: &Former, objects: &[Object], shown: &Shown, cont: Option<&str>) -> Value {
    let remaining = shown.page.remaining.filter(|_| cont.is_some());
    let revision = shown.revision.to_string();
    match form {
        Form::Table(version) => former.table(version, objects, &revision, cont, remaining, true),
        Form::Partial(version) => {
            let items: Vec<Value> = objects.iter().map(|o| partial(o, version)).collect();
            let mut metadata = json!({ "resourceVersion": revision });
            if let Some(cont) = cont {
                metadata["continue"] = cont.into();
            }
            if let Some(remaining) = remaining {
                metadata["remainingItemCount"] = remaining.into();
            }
            json!({
                "kind": "PartialObjectMetadataList",
                "apiVersion": format!("meta.k8s.io/{version}"),
                "metadata": metadata,
                "items": if items.is_empty() { Value::Null } else { items.into() },
            })
        }
        Form::Whole => Value::Null,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// Tokens are the client's to bend: they name a place in the list, or are refused as a bad request.
        #[test]
        fn bent_tokens_are_read_or_refused(
            text in ".{0,64}",
            edits in prop::collection::vec((any::<usize>(), any::<u8>()), 0..6),
        ) {
            let mut bytes = serde_json::to_vec(&Continue::after(&text, 7, Some(3))).unwrap();
            for (at, byte) in edits {
                let at = at % bytes.len();
                bytes[at] = byte;
            }
            for token in [text, URL_SAFE_NO_PAD.encode(&bytes)] {
                match Continue::decode(&token) {
                    Ok(read) => prop_assert_eq!(Continue::decode(&read.encode()).unwrap(), read),
                    Err(status) => prop_assert_eq!(status.code, 400),
                }
            }
        }
    }

    #[test]
    fn continue_tokens() {
        for left in [None, Some(3)] {
            let token = Continue::after("a/b", 7, left);
            assert_eq!(Continue::decode(&token.encode()).unwrap(), token);
        }
        let why = Continue::decode("YWJj").unwrap_err().message;
        assert_eq!(
            why,
            "invalid continue token: continue key is not valid: invalid character 'a' looking for beginning of value"
        );
    }
}
