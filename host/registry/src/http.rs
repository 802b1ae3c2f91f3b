//! The distribution API's paths.

use std::collections::HashMap;

use axum::{
    Router,
    body::{Body, to_bytes},
    extract::{Query, Request, State},
    response::{IntoResponse, Response},
    routing::any,
};
use futures::StreamExt;
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header};
use serde_json::{Value, json};
use tokio_util::io::ReaderStream;
use uuid::Uuid;

use crate::{Digest, Error, Repository, Storage, Tag};

/// Names listed at a time where the client names no number, and at the most.
const PAGE: usize = 1000;
/// Bytes read from a blob's file at a time.
const CHUNK: usize = 128 << 10;
const DIGEST: HeaderName = HeaderName::from_static("docker-content-digest");
const UPLOAD: HeaderName = HeaderName::from_static("docker-upload-uuid");
const SUBJECT: HeaderName = HeaderName::from_static("oci-subject");

type Parameters = HashMap<String, String>;

/// The registry's paths, below `/v2/`.
pub fn router(storage: Storage) -> Router {
    Router::new().fallback(any(entry)).with_state(storage)
}

async fn entry(
    State(storage): State<Storage>,
    Query(query): Query<Parameters>,
    request: Request,
) -> Response {
    let head = request.method() == Method::HEAD;
    let answer = dispatch(storage, query, request).await.unwrap_or_else(Error::into_response);
    if head { answer.map(|_| Body::empty()) } else { answer }
}

async fn dispatch(storage: Storage, query: Parameters, request: Request) -> Result<Response, Error> {
    let path = request.uri().path().to_string();
    let Some(rest) = path.strip_prefix("/v2") else { return Err(Error::NameUnknown(path)) };
    let rest = rest.trim_start_matches('/');
    match rest {
        "" => Ok(json_answer(StatusCode::OK, &json!({}))),
        "_catalog" => catalog(&storage, &query).await,
        _ => {
            let (name, what, reference) = split(rest).ok_or_else(|| Error::NameInvalid(rest.into()))?;
            let name = Repository::parse(name)?;
            match what {
                "manifests" => manifests(&storage, &name, reference, request).await,
                "blobs" => blobs(&storage, reference, request).await,
                "uploads" => uploads(&storage, &name, reference, &query, request).await,
                "tags" if reference == "list" => tags(&storage, &name, &query).await,
                "referrers" => referrers(&storage, &name, reference, &query).await,
                _ => Err(Error::Unsupported),
            }
        }
    }
}

/// `default/hello/blobs/uploads/X` → `default/hello`, `uploads`, `X`. Names may have any number of parts.
fn split(path: &str) -> Option<(&str, &'static str, &str)> {
    const KINDS: [(&str, &str); 5] = [
        ("/blobs/uploads/", "uploads"),
        ("/manifests/", "manifests"),
        ("/blobs/", "blobs"),
        ("/tags/", "tags"),
        ("/referrers/", "referrers"),
    ];
    if let Some(name) = path.strip_suffix("/blobs/uploads") {
        return Some((name, "uploads", ""));
    }
    KINDS.into_iter().find_map(|(mark, kind)| {
        let at = path.rfind(mark)?;
        Some((&path[..at], kind, &path[at + mark.len()..]))
    })
}

fn json_answer(status: StatusCode, value: &Value) -> Response {
    let content_type = [(header::CONTENT_TYPE, "application/json")];
    (status, content_type, value.to_string()).into_response()
}

fn header_value(text: impl AsRef<str>) -> HeaderValue {
    HeaderValue::from_str(text.as_ref()).unwrap_or(HeaderValue::from_static(""))
}

/// A page of sorted names, with the link to the next.
fn page(names: Vec<String>, query: &Parameters) -> (Vec<String>, Option<(usize, String)>) {
    let last = query.get("last").map(String::as_str).unwrap_or("");
    let size = query.get("n").and_then(|n| n.parse().ok()).unwrap_or(PAGE).min(PAGE);
    let mut left = names.into_iter().filter(|n| last.is_empty() || n.as_str() > last);
    let shown: Vec<String> = left.by_ref().take(size).collect();
    let next = left.next().and(shown.last().cloned()).map(|last| (size, last));
    (shown, next)
}

fn listed(path: &str, key: &str, mut value: Value, names: Vec<String>, query: &Parameters) -> Response {
    let (shown, next) = page(names, query);
    value[key] = shown.into();
    let mut response = json_answer(StatusCode::OK, &value);
    if let Some((size, last)) = next {
        let link = format!("<{path}?n={size}&last={last}>; rel=\"next\"");
        response.headers_mut().insert(header::LINK, header_value(link));
    }
    response
}

async fn catalog(storage: &Storage, query: &Parameters) -> Result<Response, Error> {
    let names = storage.repositories().await?.iter().map(|r| r.as_str().to_string()).collect();
    Ok(listed("/v2/_catalog", "repositories", json!({}), names, query))
}

async fn tags(storage: &Storage, name: &Repository, query: &Parameters) -> Result<Response, Error> {
    let names = storage.tags(name).await?.iter().map(|t| t.as_str().to_string()).collect();
    let path = format!("/v2/{}/tags/list", name.as_str());
    Ok(listed(&path, "tags", json!({"name": name.as_str()}), names, query))
}

async fn manifests(
    storage: &Storage,
    name: &Repository,
    reference: &str,
    request: Request,
) -> Result<Response, Error> {
    let digest = Digest::parse(reference).ok();
    let tag = match digest {
        Some(_) => None,
        None => Some(Tag::parse(reference)?),
    };
    match *request.method() {
        Method::GET | Method::HEAD => {
            let digest = match (digest, &tag) {
                (Some(digest), _) => digest,
                (None, Some(tag)) => storage.tagged(name, tag).await?,
                (None, None) => return Err(Error::DigestInvalid(reference.into())),
            };
            let manifest = storage.manifest(name, digest).await?;
            let headers = [
                (header::CONTENT_TYPE, header_value(&manifest.media_type)),
                (header::CONTENT_LENGTH, header_value(manifest.bytes.len().to_string())),
                (DIGEST, header_value(manifest.digest.to_string())),
            ];
            Ok((headers, manifest.bytes).into_response())
        }
        Method::PUT => put_manifest(storage, name, tag.as_ref(), digest.as_ref(), request).await,
        Method::DELETE => {
            match (digest, tag) {
                (Some(digest), _) => storage.delete_manifest(name, &digest).await?,
                (None, Some(tag)) => storage.delete_tag(name, &tag).await?,
                (None, None) => return Err(Error::DigestInvalid(reference.into())),
            }
            Ok(StatusCode::ACCEPTED.into_response())
        }
        _ => Err(Error::Unsupported),
    }
}

async fn put_manifest(
    storage: &Storage,
    name: &Repository,
    tag: Option<&Tag>,
    wanted: Option<&Digest>,
    request: Request,
) -> Result<Response, Error> {
    let limit = storage.limits().manifest;
    let said = request.headers().get(header::CONTENT_TYPE).and_then(|v| v.to_str().ok()).map(String::from);
    let bytes = to_bytes(request.into_body(), usize::try_from(limit).unwrap_or(usize::MAX)).await;
    let bytes = bytes.map_err(|_| Error::TooLarge { what: "the manifest", limit })?;
    let manifest: Value =
        serde_json::from_slice(&bytes).map_err(|e| Error::ManifestInvalid(e.to_string()))?;
    if manifest["schemaVersion"] != 2 {
        return Err(Error::ManifestInvalid("schemaVersion 2 was expected".into()));
    }
    if let Some(wanted) = wanted.filter(|w| **w != Digest::of(&bytes)) {
        let found = Digest::of(&bytes).to_string();
        return Err(Error::DigestMismatch { wanted: wanted.to_string(), found });
    }
    let parts =
        std::iter::once(&manifest["config"]).chain(manifest["layers"].as_array().into_iter().flatten());
    for part in parts.filter_map(|p| p["digest"].as_str()) {
        if !storage.has_blob(&Digest::parse(part)?).await {
            return Err(Error::ManifestBlobUnknown(part.into()));
        }
    }
    let media_type = manifest["mediaType"].as_str().map(String::from).or(said);
    let media_type = media_type.ok_or_else(|| Error::ManifestInvalid("it has no mediaType".into()))?;
    let digest = storage.put_manifest(name, tag, &media_type, &bytes).await?;
    let mut headers = HeaderMap::new();
    headers.insert(header::LOCATION, header_value(format!("/v2/{}/manifests/{digest}", name.as_str())));
    headers.insert(DIGEST, header_value(digest.to_string()));
    if let Some(subject) = manifest["subject"]["digest"].as_str() {
        headers.insert(SUBJECT, header_value(subject));
    }
    Ok((StatusCode::CREATED, headers).into_response())
}

async fn blobs(storage: &Storage, reference: &str, request: Request) -> Result<Response, Error> {
    let digest = Digest::parse(reference)?;
    match *request.method() {
        Method::GET | Method::HEAD => {
            let (file, size) = storage.blob(&digest).await?;
            let headers = [
                (header::CONTENT_TYPE, header_value("application/octet-stream")),
                (header::CONTENT_LENGTH, header_value(size.to_string())),
                (DIGEST, header_value(digest.to_string())),
            ];
            Ok((headers, Body::from_stream(ReaderStream::with_capacity(file, CHUNK))).into_response())
        }
        Method::DELETE => {
            storage.delete_blob(&digest).await?;
            Ok(StatusCode::ACCEPTED.into_response())
        }
        _ => Err(Error::Unsupported),
    }
}

async fn uploads(
    storage: &Storage,
    name: &Repository,
    reference: &str,
    query: &Parameters,
    request: Request,
) -> Result<Response, Error> {
    let wanted = query.get("digest").map(|d| Digest::parse(d)).transpose()?;
    if *request.method() == Method::POST {
        return begin(storage, name, wanted, query, request).await;
    }
    let id: Uuid = reference.parse().map_err(|_| Error::UploadUnknown)?;
    match *request.method() {
        Method::PATCH => {
            let size = append(storage, id, request).await?;
            Ok(under_way(StatusCode::ACCEPTED, name, id, size))
        }
        Method::PUT => {
            let wanted = wanted.ok_or_else(|| Error::DigestInvalid(String::new()))?;
            append(storage, id, request).await?;
            storage.finish(id, &wanted).await?;
            Ok(created(name, &wanted))
        }
        Method::GET | Method::HEAD => Ok(under_way(StatusCode::NO_CONTENT, name, id, storage.progress(id)?)),
        Method::DELETE => {
            storage.cancel(id).await?;
            Ok(StatusCode::NO_CONTENT.into_response())
        }
        _ => Err(Error::Unsupported),
    }
}

/// Begins an upload; takes the whole blob when its digest is given, or none when it is there already.
async fn begin(
    storage: &Storage,
    name: &Repository,
    wanted: Option<Digest>,
    query: &Parameters,
    request: Request,
) -> Result<Response, Error> {
    if let Some(mount) = query.get("mount") {
        let digest = Digest::parse(mount)?;
        if storage.has_blob(&digest).await {
            return Ok(created(name, &digest));
        }
    }
    let id = storage.begin().await?;
    let Some(wanted) = wanted else { return Ok(under_way(StatusCode::ACCEPTED, name, id, 0)) };
    append(storage, id, request).await?;
    storage.finish(id, &wanted).await?;
    Ok(created(name, &wanted))
}

async fn append(storage: &Storage, id: Uuid, request: Request) -> Result<u64, Error> {
    let range = request.headers().get(header::CONTENT_RANGE).and_then(|v| v.to_str().ok());
    let from = range.and_then(|r| r.trim_start_matches("bytes ").split('-').next()?.parse().ok());
    storage.append(id, from, request.into_body().into_data_stream().boxed()).await
}

fn created(name: &Repository, digest: &Digest) -> Response {
    let location = header_value(format!("/v2/{}/blobs/{digest}", name.as_str()));
    (StatusCode::CREATED, [(header::LOCATION, location), (DIGEST, header_value(digest.to_string()))])
        .into_response()
}

fn under_way(status: StatusCode, name: &Repository, id: Uuid, size: u64) -> Response {
    let headers = [
        (header::LOCATION, header_value(format!("/v2/{}/blobs/uploads/{id}", name.as_str()))),
        (header::RANGE, header_value(format!("0-{}", size.saturating_sub(1)))),
        (UPLOAD, header_value(id.to_string())),
    ];
    (status, headers).into_response()
}

/// The manifests whose subject is that digest, as an index.
async fn referrers(
    storage: &Storage,
    name: &Repository,
    subject: &str,
    query: &Parameters,
) -> Result<Response, Error> {
    let subject = Digest::parse(subject)?.to_string();
    let mut found = Vec::new();
    for manifest in storage.manifests(name).await? {
        let value: Value = serde_json::from_slice(&manifest.bytes).unwrap_or(Value::Null);
        if value["subject"]["digest"] != subject {
            continue;
        }
        let kind =
            value["artifactType"].as_str().or_else(|| value["config"]["mediaType"].as_str()).unwrap_or("");
        if query.get("artifactType").is_some_and(|wanted| wanted != kind) {
            continue;
        }
        found.push(json!({
            "mediaType": manifest.media_type,
            "digest": manifest.digest.to_string(),
            "size": manifest.bytes.len(),
            "artifactType": kind,
            "annotations": value["annotations"],
        }));
    }
    let index = json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.index.v1+json",
        "manifests": found,
    });
    let mut response = json_answer(StatusCode::OK, &index);
    let content_type = HeaderValue::from_static("application/vnd.oci.image.index.v1+json");
    response.headers_mut().insert(header::CONTENT_TYPE, content_type);
    Ok(response)
}
