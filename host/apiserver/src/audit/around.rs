//! Audit around the handling of a request: what is noted before, and when the answer is there.

use std::sync::Arc;

use axum::{body::Body, extract::Request};
use bytes::Bytes;
use http_body_util::BodyExt;
use wasmk_api::Status;
use wasmk_machinery::{
    decode::{self, FieldValidation, Format},
    schema::KindSchema,
};

use super::{Stage, Trail};
use crate::{
    auth::User,
    dispatch,
    http::{Answer, RequestInfo, negotiate},
    server::Core,
};

/// Begins the trail of a request. `None` when nothing is kept of it.
pub(crate) fn begin(
    core: &Core,
    id: &str,
    info: &RequestInfo,
    user: &User,
    request: &Request,
) -> Option<Trail> {
    let audit = core.audit.as_ref()?;
    Trail::begin(audit, id, info, user, request, (core.config.clock)())
}

/// Notes that the request was received.
pub(crate) async fn received(core: &Core, trail: &Option<Trail>) {
    let (Some(audit), Some(trail)) = (&core.audit, trail) else { return };
    if let Some(event) = trail.event(Stage::RequestReceived, None, (core.config.clock)()) {
        audit.keep(event).await;
    }
}

/// Notes what is sent, when that is kept; the request is whole afterwards.
///
/// # Errors
/// When the body is too large or breaks off.
pub(crate) async fn sent(
    core: &Core,
    trail: &mut Option<Trail>,
    info: &RequestInfo,
    request: Request,
) -> Result<Request, Status> {
    // The name of what is created stands only in the body.
    let looked_at = |t: &&mut Trail| t.wants_request() || info.verb == "create";
    let Some(trail) = trail.as_mut().filter(looked_at) else { return Ok(request) };
    let reads = matches!(info.verb, "get" | "list" | "watch" | "head" | "options");
    if !info.is_resource || reads || is_stream(info) {
        return Ok(request);
    }
    let (parts, body) = request.into_parts();
    let body = dispatch::body(Request::new(body)).await?;
    trail.sent(&as_json(core, info, &parts.headers, &body));
    Ok(Request::from_parts(parts, Body::from(body)))
}

fn is_stream(info: &RequestInfo) -> bool {
    matches!(&*info.subresource, "proxy" | "exec" | "attach" | "portforward")
}

/// A body as JSON, whatever it was sent as; as it is when it cannot be read.
fn as_json(core: &Core, info: &RequestInfo, headers: &http::HeaderMap, body: &Bytes) -> Bytes {
    let format = match negotiate::body_type(headers) {
        Ok(negotiate::BodyType::Protobuf) => Format::Protobuf,
        Ok(negotiate::BodyType::Yaml) => Format::Yaml,
        _ => return body.clone(),
    };
    let table = core.table.load();
    let read = table.get(&info.group, &info.version, &info.resource).and_then(|resource| {
        let schema = KindSchema::built_in(&resource.gvk)?;
        decode::decode(body, format, &resource.gvk, &schema, FieldValidation::Ignore).ok()
    });
    read.and_then(|decoded| serde_json::to_vec(&decoded.object.0).ok())
        .map_or_else(|| body.clone(), Bytes::from)
}

/// The body of an answer as JSON, also of one in protobuf.
fn answered(headers: &http::HeaderMap, body: Bytes) -> Bytes {
    if negotiate::content_type(headers) != negotiate::Format::Protobuf.content_type() {
        return body;
    }
    let read = decode::from_protobuf(&body).ok().and_then(|object| serde_json::to_vec(&object).ok());
    read.map_or(body, Bytes::from)
}

/// Ends the trail with the answer, or with the end of the answer's body when that may take long.
pub(crate) async fn done(core: &Arc<Core>, trail: Option<Trail>, answer: Answer, long: bool) -> Answer {
    let (Some(audit), Some(trail)) = (&core.audit, trail) else { return answer };
    let code = answer.status();
    if long && (code.is_success() || code.is_informational()) {
        if let Some(event) = trail.event(Stage::ResponseStarted, Some((code, None)), (core.config.clock)()) {
            audit.keep(event).await;
        }
        let end = End { core: core.clone(), trail, code };
        return answer.map(|body| Body::new(body.map_frame(move |frame| (&end, frame).1)));
    }
    let (parts, body) = answer.into_parts();
    let (body, bytes) = if trail.wants_response() || !code.is_success() {
        match body.collect().await {
            Ok(all) => {
                let bytes = all.to_bytes();
                (Body::from(bytes.clone()), Some(bytes))
            }
            // Answers that are no streams are whole in memory and cannot break off.
            Err(_) => (Body::empty(), None),
        }
    } else {
        (body, None)
    };
    let read = bytes.map(|bytes| answered(&parts.headers, bytes));
    let event = trail.event(Stage::ResponseComplete, Some((code, read.as_ref())), (core.config.clock)());
    if let Some(event) = event {
        audit.keep(event).await;
    }
    Answer::from_parts(parts, body)
}

/// Makes the last event of a long answer when its body is dropped: sent, or given up.
struct End {
    core: Arc<Core>,
    trail: Trail,
    code: http::StatusCode,
}

impl Drop for End {
    fn drop(&mut self) {
        let now = (self.core.config.clock)();
        let Some(event) = self.trail.event(Stage::ResponseComplete, Some((self.code, None)), now) else {
            return;
        };
        let core = self.core.clone();
        // Outside a runtime everything is ending.
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn(async move {
                if let Some(audit) = &core.audit {
                    audit.keep(event).await;
                }
            });
        }
    }
}
