//! CloudEvents as they travel over HTTP, and which of them a filter lets through.

use std::collections::BTreeMap;

use base64::{Engine, engine::general_purpose::STANDARD};
use bytes::{Bytes, BytesMut};
use http::{HeaderMap, HeaderName, HeaderValue, Request, Response, header};
use http_body::Body as HttpBody;
use http_body_util::BodyExt;
use serde_json::{Map, Value};

use crate::executor::{Body, full};

/// Attributes every event has.
const REQUIRED: [&str; 4] = ["id", "source", "specversion", "type"];
/// The media type of an event that travels as one JSON text.
const STRUCTURED: &str = "application/cloudevents+json";

/// An event.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Event {
    /// Attributes and extensions, `datacontenttype` included.
    pub attributes: BTreeMap<String, String>,
    /// What it carries.
    pub data: Bytes,
}

impl Event {
    /// A new event of a type from a source.
    pub(crate) fn new(kind: &str, source: &str, content_type: &str, data: impl Into<Bytes>) -> Self {
        let id = format!("{:016x}{:016x}", rand::random::<u64>(), rand::random::<u64>());
        let pairs = [
            ("id", id.as_str()),
            ("source", source),
            ("specversion", "1.0"),
            ("type", kind),
            ("datacontenttype", content_type),
            ("time", &wasmk_api::Timestamp::now().to_string()),
        ]
        .map(|(key, value)| (key.to_string(), value.to_string()));
        Self { attributes: pairs.into(), data: data.into() }
    }

    /// Reads an event from a message's headers and body, in either form.
    ///
    /// # Errors
    /// When it is none, with what is missing.
    pub(crate) fn read(headers: &HeaderMap, body: Bytes) -> Result<Self, String> {
        let content_type = headers.get(header::CONTENT_TYPE).and_then(|v| v.to_str().ok()).unwrap_or("");
        let event = match content_type.starts_with(STRUCTURED) {
            true => Self::structured(&body)?,
            false => Self::binary(headers, content_type, body),
        };
        for key in REQUIRED {
            if event.attributes.get(key).is_none_or(String::is_empty) {
                return Err(format!("no CloudEvent: the attribute {key} (header ce-{key}) is missing"));
            }
        }
        Ok(event)
    }

    /// Whether a message says that it is an event.
    pub(crate) fn is_in(headers: &HeaderMap) -> bool {
        let content_type = headers.get(header::CONTENT_TYPE).and_then(|v| v.to_str().ok()).unwrap_or("");
        headers.contains_key("ce-type") || content_type.starts_with(STRUCTURED)
    }

    fn binary(headers: &HeaderMap, content_type: &str, data: Bytes) -> Self {
        let attribute = |(name, value): (&HeaderName, &HeaderValue)| {
            let name = name.as_str().strip_prefix("ce-")?;
            Some((name.to_string(), value.to_str().ok()?.to_string()))
        };
        let mut attributes: BTreeMap<String, String> = headers.iter().filter_map(attribute).collect();
        if !content_type.is_empty() {
            attributes.insert("datacontenttype".into(), content_type.into());
        }
        Self { attributes, data }
    }

    fn structured(body: &Bytes) -> Result<Self, String> {
        let map: Map<String, Value> =
            serde_json::from_slice(body).map_err(|e| format!("no CloudEvent in JSON: {e}"))?;
        let mut event = Self::default();
        for (key, value) in map {
            match (key.as_str(), value) {
                ("data", Value::String(text)) => event.data = text.into(),
                ("data", value) => event.data = value.to_string().into(),
                ("data_base64", Value::String(text)) => {
                    event.data = STANDARD.decode(text).map_err(|e| format!("data_base64: {e}"))?.into();
                }
                (_, Value::String(text)) => {
                    event.attributes.insert(key, text);
                }
                (_, Value::Null) => {}
                (_, other) => {
                    event.attributes.insert(key, other.to_string());
                }
            }
        }
        event.attributes.entry("datacontenttype".into()).or_insert_with(|| "application/json".into());
        Ok(event)
    }

    /// The event as a POST in binary form.
    ///
    /// # Errors
    /// When the address is none.
    pub(crate) fn request(&self, uri: &str) -> Result<Request<Body>, String> {
        let mut request =
            Request::post(uri).body(full(self.data.clone())).map_err(|e| format!("{uri}: {e}"))?;
        for (key, value) in &self.attributes {
            let name = if key == "datacontenttype" { "content-type".into() } else { format!("ce-{key}") };
            if let (Ok(name), Ok(value)) = (HeaderName::try_from(name), HeaderValue::from_str(value)) {
                request.headers_mut().insert(name, value);
            }
        }
        Ok(request)
    }

    /// The value of an attribute.
    pub(crate) fn get(&self, key: &str) -> Option<&str> {
        self.attributes.get(key).map(String::as_str)
    }
}

/// An empty answer of a status, with a text for people.
pub(crate) fn answer(status: http::StatusCode, text: &str) -> Response<Body> {
    let mut response = Response::new(full(text.to_string()));
    *response.status_mut() = status;
    response
}

/// A whole body; nothing when it breaks off or is longer than so many bytes.
pub(crate) async fn gather<B: HttpBody<Data = Bytes> + Unpin>(mut body: B, most: usize) -> Option<Bytes> {
    let mut all = BytesMut::new();
    while let Some(frame) = body.frame().await {
        if let Ok(data) = frame.ok()?.into_data() {
            all.extend_from_slice(&data);
        }
        if all.len() > most {
            return None;
        }
    }
    Some(all.freeze())
}

/// Whether a trigger wants an event: by `filters` where there are any, else by `filter.attributes`.
pub(crate) fn wants(spec: &Value, event: &Event) -> bool {
    if let Some(filters) = spec["filters"].as_array().filter(|f| !f.is_empty()) {
        return filters.iter().all(|filter| passes(filter, event));
    }
    let attributes = spec["filter"]["attributes"].as_object();
    // An empty text stands for any value.
    attributes.into_iter().flatten().all(|(key, value)| value == "" || event.get(key) == value.as_str())
}

fn passes(filter: &Value, event: &Event) -> bool {
    let pairs = |dialect: &str, fits: fn(&str, &str) -> bool| {
        let wanted = filter[dialect].as_object();
        wanted
            .into_iter()
            .flatten()
            .all(|(key, value)| event.get(key).is_some_and(|have| fits(have, value.as_str().unwrap_or(""))))
    };
    let list = |dialect: &str| filter[dialect].as_array().map(Vec::as_slice).unwrap_or_default();
    let any = list("any");
    pairs("exact", |have, want| have == want)
        && pairs("prefix", |have, want| have.starts_with(want))
        && pairs("suffix", |have, want| have.ends_with(want))
        && list("all").iter().all(|f| passes(f, event))
        && (any.is_empty() || any.iter().any(|f| passes(f, event)))
        && (!filter["not"].is_object() || !passes(&filter["not"], event))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn headers(pairs: &[(&'static str, &str)]) -> HeaderMap {
        pairs.iter().map(|(k, v)| (HeaderName::from_static(k), v.parse().unwrap())).collect()
    }

    #[test]
    fn both_forms_are_the_same_event() {
        let binary = headers(&[
            ("ce-id", "1"),
            ("ce-source", "/s"),
            ("ce-type", "t"),
            ("ce-specversion", "1.0"),
            ("content-type", "application/json"),
        ]);
        let one = Event::read(&binary, Bytes::from_static(b"{\"a\":1}")).unwrap();
        let text = json!({"id": "1", "source": "/s", "type": "t", "specversion": "1.0", "data": {"a": 1}});
        let structured = headers(&[("content-type", "application/cloudevents+json; charset=utf-8")]);
        let other = Event::read(&structured, text.to_string().into()).unwrap();
        assert_eq!(one, other);
        let request = one.request("http://x/y").unwrap();
        assert_eq!(request.headers()["ce-type"], "t");
        assert_eq!(request.headers()["content-type"], "application/json");
        assert!(Event::is_in(request.headers()));
    }

    #[test]
    fn what_is_no_event_says_what_is_missing() {
        let said = Event::read(&headers(&[("ce-id", "1")]), Bytes::new()).unwrap_err();
        assert!(said.contains("ce-source"), "{said}");
        let structured = headers(&[("content-type", STRUCTURED)]);
        assert!(Event::read(&structured, Bytes::from_static(b"[]")).is_err());
    }

    #[test]
    fn filters() {
        let event = Event::new("com.example.made", "/shop", "text/plain", "");
        for (spec, expected) in [
            (json!({}), true),
            (json!({"filter": {"attributes": {"type": "com.example.made"}}}), true),
            (json!({"filter": {"attributes": {"type": ""}}}), true),
            (json!({"filter": {"attributes": {"type": "other"}}}), false),
            (json!({"filter": {"attributes": {"missing": "x"}}}), false),
            (
                json!({"filters": [{"prefix": {"type": "com.example."}}, {"exact": {"source": "/shop"}}]}),
                true,
            ),
            (json!({"filters": [{"not": {"suffix": {"type": ".made"}}}]}), false),
            (json!({"filters": [{"any": [{"exact": {"type": "x"}}, {"exact": {"source": "/shop"}}]}]}), true),
            (
                json!({"filters": [{"all": [{"exact": {"type": "x"}}, {"exact": {"source": "/shop"}}]}]}),
                false,
            ),
        ] {
            assert_eq!(wants(&spec, &event), expected, "{spec}");
        }
    }
}
