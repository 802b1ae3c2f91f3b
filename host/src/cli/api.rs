//! Plain requests to the API, with its errors in kubectl's words.

use anyhow::{Result, anyhow};
use http::{Method, Request, header};
use http_body_util::BodyExt;
use kube::{Client, client::Body};
use serde_json::Value;

/// Asks for a table, and for the plain object where the server has none.
pub(super) const TABLE: &str = "application/json;as=Table;v=v1;g=meta.k8s.io,application/json";
const JSON: &str = "application/json";

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
