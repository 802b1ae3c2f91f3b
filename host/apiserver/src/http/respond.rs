//! Answers: objects, statuses and texts as HTTP responses.

use std::io::Write;

use axum::body::Body;
use bytes::Bytes;
use http::{HeaderValue, Response, StatusCode, header};
use serde::Serialize;
use serde_json::Value;
use wasmk_api::{Reason, Status};
use wasmk_machinery::protobuf;

use super::negotiate::{Format, Wanted};

/// Replies at least this long are compressed for clients that welcome it.
const GZIP_FROM: usize = 128 << 10;
/// Objects of at least this size together are written where nobody else has to wait for it.
const ASIDE_FROM: usize = 1 << 20;

/// Refusals made before a handler is found carry empty details.
const GENERIC: [&str; 3] = ["406: ", "415: ", "forbidden: "];

/// An HTTP answer.
pub(crate) type Answer = Response<Body>;

/// Bytes of a media type.
pub(crate) fn bytes(code: StatusCode, content_type: &'static str, body: impl Into<Bytes>) -> Answer {
    let mut response = Response::new(Body::from(body.into()));
    *response.status_mut() = code;
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache, private"));
    response
}

/// Plain text.
pub(crate) fn text(code: StatusCode, body: impl Into<String>) -> Answer {
    bytes(code, "text/plain;charset=utf-8", body.into())
}

/// JSON that is already encoded, in the encoding the client wants.
pub(crate) fn encoded(code: StatusCode, wanted: Wanted, json: Bytes) -> Answer {
    if wanted.format == Format::Json && !wanted.pretty {
        return compressed(code, wanted, json);
    }
    match serde_json::from_slice::<Value>(&json) {
        Ok(value) => value_as(code, wanted, &value),
        Err(error) => status(&Status::internal(error)),
    }
}

/// What JSON can be made of, in the encoding the client wants.
pub(crate) fn value_as(code: StatusCode, wanted: Wanted, value: &impl Serialize) -> Answer {
    let body = match (wanted.format, wanted.pretty) {
        (Format::Json, false) => serde_json::to_vec(value).map_err(|e| e.to_string()),
        (Format::Json, true) => serde_json::to_vec_pretty(value).map_err(|e| e.to_string()),
        (Format::Yaml, _) => serde_json::to_value(value)
            .map(|value| wasmk_machinery::yaml::write(&value).into_bytes())
            .map_err(|e| e.to_string()),
        (Format::Protobuf, _) => match serde_json::to_value(value) {
            Ok(value) => match protobuf::value(&value) {
                Ok(body) => Ok(body),
                // Documents that are no objects, like the version, are JSON for everybody.
                Err(_) => return value_as(code, Wanted { format: Format::Json, ..wanted }, &value),
            },
            Err(error) => Err(error.to_string()),
        },
    };
    match body {
        Ok(body) => compressed(code, wanted, body.into()),
        Err(error) => status(&Status::internal(error)),
    }
}

/// Makes an answer of objects of that size together: on a thread of its own where it takes long.
///
/// # Errors
/// Those of `make`.
pub(crate) async fn aside(
    size: usize,
    make: impl FnOnce() -> Result<Answer, Status> + Send + 'static,
) -> Result<Answer, Status> {
    if size < ASIDE_FROM {
        return make();
    }
    tokio::task::spawn_blocking(make).await.map_err(Status::internal)?
}

/// A body that is written already, in the encoding the client wants.
pub(crate) fn compressed(code: StatusCode, wanted: Wanted, body: Bytes) -> Answer {
    let media = wanted.format.content_type();
    match wanted.gzip.then(|| pack(&body)).flatten() {
        Some(packed) => gzipped(code, media, packed),
        None => bytes(code, media, body),
    }
}

/// The compressed form of a body that is worth it.
pub(crate) fn pack(body: &[u8]) -> Option<Vec<u8>> {
    if body.len() < GZIP_FROM {
        return None;
    }
    let room = Vec::with_capacity(body.len() / 4);
    let mut encoder = flate2::write::GzEncoder::new(room, flate2::Compression::fast());
    encoder.write_all(body).and_then(|()| encoder.finish()).ok()
}

/// A body that is compressed already.
pub(crate) fn gzipped(code: StatusCode, media: &'static str, packed: impl Into<Bytes>) -> Answer {
    let mut response = bytes(code, media, packed);
    response.headers_mut().insert(header::CONTENT_ENCODING, HeaderValue::from_static("gzip"));
    response.headers_mut().insert(header::VARY, HeaderValue::from_static("Accept-Encoding"));
    response
}

/// A failure, as JSON.
pub(crate) fn status(status: &Status) -> Answer {
    status_as(Wanted::default(), status)
}

/// A failure, in the encoding the client wants.
pub(crate) fn status_as(wanted: Wanted, status: &Status) -> Answer {
    let code = StatusCode::from_u16(status.code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let mut value = status.to_value();
    let generic = status.reason == Reason::MethodNotAllowed
        || GENERIC.iter().any(|start| status.message.starts_with(start));
    if generic && status.details.is_empty() {
        value["details"] = serde_json::json!({});
    }
    let mut response = value_as(code, wanted, &value);
    if let Some(seconds) = status.details.get("retryAfterSeconds").and_then(Value::as_u64) {
        response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(seconds));
    }
    response
}

/// Adds a `Warning` header.
pub(crate) fn warn(response: &mut Answer, text: &str) {
    let clean: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    let quoted = clean.replace('\\', r"\\").replace('"', "\\\"");
    if let Ok(value) = HeaderValue::from_bytes(format!("299 - \"{quoted}\"").as_bytes()) {
        response.headers_mut().append(header::WARNING, value);
    }
}
