//! One request's trail of audit events.

use axum::extract::Request;
use bytes::Bytes;
use http::{StatusCode, header};
use serde_json::{Map, Value, json};
use wasmk_api::Timestamp;

use super::{Audit, Level, Stage, policy::Kept};
use crate::{auth::User, http::RequestInfo, tls::Peer};

/// Largest body that is kept of a request or answer, in bytes; of a larger one only that it was there.
pub(crate) const MAX_BODY: usize = 1 << 20;
/// Kinds whose objects hold secrets, with where these are.
const SECRETS: [(&str, &[&str]); 4] = [
    ("Secret", &["/data", "/stringData"]),
    ("SecretList", &[]),
    ("TokenReview", &["/spec/token"]),
    ("TokenRequest", &["/status/token"]),
];
const BLANK: &str = "<redacted>";

/// What is known of a request as it goes on.
pub(crate) struct Trail {
    kept: Kept,
    /// The parts of the events that do not change.
    base: Map<String, Value>,
    request_object: Option<Value>,
    annotations: Map<String, Value>,
}

impl Trail {
    /// Of a request by `user`. `None` when nothing is kept of it.
    pub(crate) fn begin(
        audit: &Audit,
        id: &str,
        info: &RequestInfo,
        user: &User,
        request: &Request,
        now: Timestamp,
    ) -> Option<Self> {
        let kept = audit.policy().of(user, &crate::dispatch::attributes(info));
        if kept.level == Level::None {
            return None;
        }
        let mut base = Map::new();
        base.insert("kind".into(), "Event".into());
        base.insert("apiVersion".into(), "audit.k8s.io/v1".into());
        base.insert("level".into(), format!("{:?}", kept.level).into());
        base.insert("auditID".into(), id.into());
        base.insert("stage".into(), Value::Null);
        let uri = request.uri().path_and_query().map_or("/", |p| p.as_str());
        base.insert("requestURI".into(), uri.into());
        base.insert("verb".into(), info.verb.into());
        base.insert("user".into(), user.to_value());
        base.insert("sourceIPs".into(), sources(request).into());
        if let Some(agent) = request.headers().get(header::USER_AGENT).and_then(|v| v.to_str().ok()) {
            base.insert("userAgent".into(), agent.into());
        }
        if info.is_resource {
            base.insert("objectRef".into(), reference(info));
        }
        base.insert("requestReceivedTimestamp".into(), micros(now));
        Some(Self { kept, base, request_object: None, annotations: Map::new() })
    }

    /// Notes as whom the user acts.
    pub(crate) fn acting(&mut self, user: &User) {
        self.base.insert("impersonatedUser".into(), user.to_value());
    }

    /// Whether what is sent is kept.
    pub(crate) fn wants_request(&self) -> bool {
        self.kept.level >= Level::Request
    }

    /// Whether what is answered is kept.
    pub(crate) fn wants_response(&self) -> bool {
        self.kept.level >= Level::RequestResponse
    }

    /// Notes what was sent.
    pub(crate) fn sent(&mut self, body: &Bytes) {
        let object = self.object(body);
        // The name of what is created stands only in the body.
        if let (Some(object), Some(reference)) =
            (&object, self.base.get_mut("objectRef").and_then(Value::as_object_mut))
        {
            for (key, path) in [("name", "/metadata/name"), ("uid", "/metadata/uid")] {
                if let Some(text) = object.pointer(path).and_then(Value::as_str).filter(|t| !t.is_empty()) {
                    reference.entry(key).or_insert_with(|| text.into());
                }
            }
        }
        if self.wants_request() {
            self.request_object = object;
        }
    }

    /// Notes something about how the request was handled.
    pub(crate) fn annotate(&mut self, key: &str, value: impl Into<String>) {
        self.annotations.insert(key.into(), value.into().into());
    }

    /// The event of a stage; `None` when it is left out.
    pub(crate) fn event(
        &self,
        stage: Stage,
        answer: Option<(StatusCode, Option<&Bytes>)>,
        now: Timestamp,
    ) -> Option<Value> {
        if self.kept.omitted.contains(&stage) {
            return None;
        }
        let mut event = self.base.clone();
        event.insert("stage".into(), format!("{stage:?}").into());
        if let Some((code, body)) = answer {
            let object = body.and_then(|body| self.object(body));
            event.insert("responseStatus".into(), status(code, body));
            if let Some(sent) = &self.request_object {
                event.insert("requestObject".into(), sent.clone());
            }
            if let (true, Some(object)) = (self.wants_response(), object) {
                event.insert("responseObject".into(), object);
            }
        }
        event.insert("stageTimestamp".into(), micros(now));
        if !self.annotations.is_empty() && stage != Stage::RequestReceived {
            event.insert("annotations".into(), self.annotations.clone().into());
        }
        Some(event.into())
    }

    fn object(&self, body: &Bytes) -> Option<Value> {
        if body.is_empty() || body.len() > MAX_BODY {
            return None;
        }
        let mut value: Value = serde_json::from_slice(body).ok()?;
        let secret = self.base.get("objectRef").is_some_and(|r| r["resource"] == "secrets");
        blank(&mut value, secret);
        if self.kept.omit_managed_fields {
            without_managed_fields(&mut value);
        }
        Some(value)
    }
}

fn reference(info: &RequestInfo) -> Value {
    let mut map = Map::new();
    for (key, value) in [
        ("resource", &info.resource),
        ("namespace", &info.namespace),
        ("name", &info.name),
        ("apiGroup", &info.group),
        ("apiVersion", &info.version),
        ("subresource", &info.subresource),
    ] {
        if !value.is_empty() {
            map.insert(key.into(), value.as_str().into());
        }
    }
    map.into()
}

/// Where a request came from: what proxies say, then who connected.
fn sources(request: &Request) -> Vec<String> {
    let named = request.headers().get("x-forwarded-for").and_then(|v| v.to_str().ok()).unwrap_or("");
    let mut all: Vec<String> = named
        .split(',')
        .filter_map(|text| text.trim().parse::<std::net::IpAddr>().ok())
        .map(|ip| ip.to_string())
        .collect();
    if let Some(Peer(ip)) = request.extensions().get() {
        all.push(ip.to_string());
    }
    all.dedup();
    all
}

fn micros(time: Timestamp) -> Value {
    time.micros().into()
}

/// The answer's status: what a failure says of itself, or the code alone.
fn status(code: StatusCode, body: Option<&Bytes>) -> Value {
    let failure = (!code.is_success())
        .then(|| body.and_then(|body| serde_json::from_slice::<Value>(body).ok()))
        .flatten()
        .filter(|value| value["kind"] == "Status");
    match failure {
        Some(mut failure) => {
            if let Some(map) = failure.as_object_mut() {
                map.shift_remove("kind");
                map.shift_remove("apiVersion");
            }
            failure
        }
        None => json!({ "metadata": {}, "code": code.as_u16() }),
    }
}

/// Blanks what is secret. `secret` says that everything in it is about Secrets, whatever it calls itself.
fn blank(value: &mut Value, secret: bool) {
    let kind = value.get("kind").and_then(Value::as_str).unwrap_or("").to_owned();
    let paths = SECRETS.iter().find(|(k, _)| *k == kind).map_or(&[][..], |(_, paths)| *paths);
    let paths = if secret && paths.is_empty() { SECRETS[0].1 } else { paths };
    for path in paths {
        match value.pointer_mut(path) {
            Some(Value::Object(map)) => map.values_mut().for_each(|v| *v = BLANK.into()),
            Some(other) => *other = BLANK.into(),
            None => {}
        }
    }
    if secret {
        if let Some(annotations) = value.pointer_mut("/metadata/annotations").and_then(Value::as_object_mut)
            && let Some(last) = annotations.get_mut("kubectl.kubernetes.io/last-applied-configuration")
        {
            *last = BLANK.into();
        }
        for item in value.get_mut("items").and_then(Value::as_array_mut).into_iter().flatten() {
            blank(item, true);
        }
        // A JSON patch is a list of operations; their values may be anything.
        for operation in value.as_array_mut().into_iter().flatten().filter_map(Value::as_object_mut) {
            if let Some(value) = operation.get_mut("value") {
                *value = BLANK.into();
            }
        }
    }
}

fn without_managed_fields(value: &mut Value) {
    if let Some(metadata) = value.get_mut("metadata").and_then(Value::as_object_mut) {
        metadata.shift_remove("managedFields");
    }
    for item in value.get_mut("items").and_then(Value::as_array_mut).into_iter().flatten() {
        without_managed_fields(item);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_are_blanked_wherever_they_stand() {
        let check = |mut value: Value, secret: bool| {
            blank(&mut value, secret);
            let text = value.to_string();
            assert!(!text.contains("hush"), "{text}");
            assert!(text.contains(BLANK) && text.contains("name"), "{text}");
        };
        check(json!({"kind": "Secret", "name": "n", "data": {"k": "hush"}}), false);
        check(json!({"name": "n", "stringData": {"k": "hush"}}), true);
        check(json!({"kind": "TokenReview", "name": "n", "spec": {"token": "hush"}}), false);
        check(json!({"kind": "TokenRequest", "name": "n", "status": {"token": "hush"}}), false);
        check(json!({"kind": "SecretList", "name": "n", "items": [{"data": {"a": "hush"}}]}), true);
        check(json!([{"op": "add", "path": "/name", "value": "hush"}]), true);
        let applied = json!({"kubectl.kubernetes.io/last-applied-configuration": "hush"});
        check(json!({"kind": "Secret", "metadata": {"name": "n", "annotations": applied}}), true);
    }
}
