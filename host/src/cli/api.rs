//! Plain requests to the API, with its errors in kubectl's words.

use anyhow::{Context as _, Result, anyhow};
use futures::{StreamExt, TryStreamExt, future::ready, stream::BoxStream};
use http::{Method, Request, header};
use http_body_util::BodyExt;
use kube::{Client, client::Body};
use serde_json::Value;
use tokio_util::{codec, io::StreamReader};

/// Asks for a table, and for the plain object where the server has none.
pub(super) const TABLE: &str = "application/json;as=Table;v=v1;g=meta.k8s.io,application/json";
const JSON: &str = "application/json";
/// Longest line of a watch: an object with its overhead.
const MAX_EVENT: usize = 8 << 20;
/// Longest line of a log, in bytes.
const MAX_LINE: usize = 1 << 20;

/// A client of one cluster.
#[derive(Clone)]
pub(super) struct Api {
    /// The connection.
    pub(super) client: Client,
}

impl Api {
    pub(super) fn new(client: Client) -> Self {
        Self { client }
    }

    /// The namespace to act in when none is named.
    pub(super) fn default_namespace(&self) -> &str {
        self.client.default_namespace()
    }

    /// GET as JSON.
    pub(super) async fn get(&self, path: &str) -> Result<Value> {
        self.get_as(path, JSON).await
    }

    /// GET with an `Accept` header.
    pub(super) async fn get_as(&self, path: &str, accept: &str) -> Result<Value> {
        let request = Request::get(path).header(header::ACCEPT, accept).body(Vec::new())?;
        self.client.request::<Value>(request).await.map_err(worded)
    }

    /// GET as text.
    pub(super) async fn text(&self, path: &str) -> Result<String> {
        self.client.request_text(Request::get(path).body(Vec::new())?).await.map_err(worded)
    }

    /// A request with a JSON body.
    pub(super) async fn send(&self, method: Method, path: &str, body: &Value) -> Result<Value> {
        self.send_as(method, path, JSON, body).await
    }

    /// A request with a body of that content type.
    pub(super) async fn send_as(
        &self,
        method: Method,
        path: &str,
        content_type: &str,
        body: &Value,
    ) -> Result<Value> {
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header(header::CONTENT_TYPE, content_type)
            .header(header::ACCEPT, JSON)
            .body(serde_json::to_vec(body)?)?;
        self.client.request::<Value>(request).await.map_err(worded)
    }

    /// GET whose body is read piece by piece: a watch or a followed log.
    pub(super) async fn stream(&self, path: &str, accept: &str) -> Result<Body> {
        let request = Request::get(path).header(header::ACCEPT, accept).body(Body::empty())?;
        let response = self.client.send(request).await.map_err(worded)?;
        if response.status().is_success() {
            return Ok(response.into_body());
        }
        let body = response.into_body().collect().await?.to_bytes();
        let status: Value = serde_json::from_slice(&body).unwrap_or(Value::Null);
        Err(refusal(status["reason"].as_str().unwrap_or(""), status["message"].as_str().unwrap_or("")))
    }
}

impl Api {
    /// What a watch tells: the types of changes with the objects. Bookmarks are left out; an error of the server is
    /// its refusal.
    pub(super) async fn events(
        &self,
        path: &str,
        accept: &str,
    ) -> Result<BoxStream<'static, Result<(String, Value)>>> {
        let lines = lines(self.stream(path, accept).await?, MAX_EVENT);
        let events = lines.map(|line| event(&line?));
        Ok(events.try_filter(|(kind, _)| ready(kind != "BOOKMARK")).boxed())
    }

    /// The lines of a log.
    pub(super) async fn lines(&self, path: &str) -> Result<BoxStream<'static, Result<String>>> {
        Ok(lines(self.stream(path, "*/*").await?, MAX_LINE))
    }
}

fn lines(body: Body, longest: usize) -> BoxStream<'static, Result<String>> {
    let reader = StreamReader::new(body.into_data_stream().map_err(std::io::Error::other));
    let lines = codec::FramedRead::new(reader, codec::LinesCodec::new_with_max_length(longest));
    lines.map_err(anyhow::Error::new).boxed()
}

fn event(line: &str) -> Result<(String, Value)> {
    let mut event: Value = serde_json::from_str(line)?;
    let kind = event["type"].as_str().context("the watch sent something that is no event")?.to_owned();
    let object = event.get_mut("object").map(Value::take).unwrap_or_default();
    if kind != "ERROR" {
        return Ok((kind, object));
    }
    let message = object["message"].as_str().unwrap_or("the watch failed").to_owned();
    Err(anyhow!(Refusal { reason: object["reason"].as_str().unwrap_or("").into(), message }))
}

/// Whether the failure is the server's "not found".
pub(super) fn is_not_found(error: &anyhow::Error) -> bool {
    error.downcast_ref::<Refusal>().is_some_and(|r| r.reason == "NotFound")
}

/// The server's refusal, printed as kubectl prints it.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub(super) struct Refusal {
    /// The `Status` reason.
    pub(super) reason: String,
    message: String,
}

fn refusal(reason: &str, message: &str) -> anyhow::Error {
    let message = match reason {
        "" => message.to_string(),
        // kubectl shows these without the server's preamble.
        "Invalid" | "BadRequest" => message.to_string(),
        reason => format!("({reason}): {message}"),
    };
    anyhow!(Refusal {
        reason: reason.into(),
        message: format!("Error from server {message}").replace("server (", "server (")
    })
}

fn worded(error: kube::Error) -> anyhow::Error {
    match error {
        kube::Error::Api(status) => refusal(&status.reason, &status.message),
        other => anyhow::Error::new(other).context("cannot reach the API server"),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[tokio::test]
    async fn a_body_is_read_line_by_line_and_event_by_event() {
        let sent = [
            json!({"type": "ADDED", "object": {"metadata": {"name": "ä"}}}),
            json!({"type": "ERROR", "object": {"reason": "Expired", "message": "too old"}}),
            json!([1]),
        ];
        let text: String = sent.iter().map(|event| format!("{event}\n")).collect();
        let got: Vec<String> =
            lines(Body::from(text.into_bytes()), MAX_EVENT).map(|line| line.unwrap()).collect().await;
        let events: Vec<Result<(String, Value)>> = got.iter().map(|line| event(line)).collect();
        assert!(
            matches!(&events[0], Ok((kind, object)) if kind == "ADDED" && object["metadata"]["name"] == "ä")
        );
        let refused = events[1].as_ref().unwrap_err().downcast_ref::<Refusal>().unwrap();
        assert_eq!((&*refused.reason, refused.to_string()), ("Expired", "too old".into()));
        assert!(events[2].is_err());
    }
}
