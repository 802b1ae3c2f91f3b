//! A service elsewhere that answers JSON with JSON, reached as a kubeconfig says; and a memory for its answers.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use bytes::Bytes;
use http::{Method, Request, StatusCode, Uri, header};
use kube::config::{KubeConfigOptions, Kubeconfig};
use parking_lot::Mutex;
use serde_json::Value;
use thiserror::Error;
use tokio::time::{sleep, timeout};

/// Longest wait for one answer.
const PATIENCE: Duration = Duration::from_secs(30);
/// How often a call is made when it fails.
const ATTEMPTS: u32 = 3;
/// The pause before the second call; twice as long before the third.
const PAUSE: Duration = Duration::from_millis(250);
/// The largest answer, in bytes.
const MAX_ANSWER: usize = 1 << 20;
/// Most answers that are remembered.
const MAX_REMEMBERED: usize = 4096;

/// Why there was no answer.
#[derive(Debug, Error)]
pub enum RemoteError {
    /// The kubeconfig does not say how to reach it.
    #[error("the kubeconfig of the service cannot be used: {0}")]
    Config(String),
    /// It could not be reached, or broke off.
    #[error("the service at {url} cannot be asked: {why}")]
    Unreachable {
        /// Its URL.
        url: String,
        /// What went wrong.
        why: String,
    },
    /// It did not answer in time.
    #[error("the service at {url} did not answer within {} s", PATIENCE.as_secs())]
    Slow {
        /// Its URL.
        url: String,
    },
    /// It answered with a failure, or not with JSON.
    #[error("the service at {url} answered {code}: {why}")]
    Refused {
        /// Its URL.
        url: String,
        /// The HTTP status.
        code: u16,
        /// What it said.
        why: String,
    },
}

impl RemoteError {
    fn is_passing(&self) -> bool {
        match self {
            Self::Config(_) => false,
            Self::Refused { code, .. } => *code >= 500 || *code == 429,
            Self::Unreachable { .. } | Self::Slow { .. } => true,
        }
    }
}

/// The service.
pub(crate) struct Remote {
    client: kube::Client,
    url: String,
    path: String,
}

impl Remote {
    /// As a kubeconfig says. Does not connect.
    ///
    /// # Errors
    /// When the kubeconfig is incomplete or its certificates cannot be read.
    pub(crate) async fn new(config: Kubeconfig) -> Result<Self, RemoteError> {
        let unusable = |e: &dyn std::fmt::Display| RemoteError::Config(e.to_string());
        let config = kube::Config::from_custom_kubeconfig(config, &KubeConfigOptions::default()).await;
        Self::over(config.map_err(|e| unusable(&e))?)
    }

    /// At that URL, with servers that `ca` (PEM) signs, or the system trusts.
    ///
    /// # Errors
    /// When URL or authority cannot be used.
    pub(crate) fn at(url: &str, ca: Option<&str>) -> Result<Self, RemoteError> {
        let url: Uri = url.parse().map_err(|_| RemoteError::Config(format!("{url:?} is no URL")))?;
        let mut config = kube::Config::new(url);
        config.root_cert = ca.map(|pem| {
            let all = x509_parser::pem::Pem::iter_from_buffer(pem.as_bytes());
            all.filter_map(Result::ok).map(|pem| pem.contents).collect()
        });
        Self::over(config)
    }

    fn over(mut config: kube::Config) -> Result<Self, RemoteError> {
        let url = config.cluster_url.to_string();
        let (path, query) = (config.cluster_url.path(), config.cluster_url.query());
        let path = query.map_or_else(|| path.to_owned(), |query| format!("{path}?{query}"));
        let mut parts = config.cluster_url.into_parts();
        parts.path_and_query = Some(http::uri::PathAndQuery::from_static("/"));
        config.cluster_url = Uri::from_parts(parts).map_err(|e| RemoteError::Config(e.to_string()))?;
        let client = kube::Client::try_from(config).map_err(|e| RemoteError::Config(e.to_string()))?;
        Ok(Self { client, url, path })
    }

    /// Posts JSON; passing failures are tried again a few times.
    ///
    /// # Errors
    /// When there was no JSON for an answer.
    pub(crate) async fn post(&self, body: &Value) -> Result<Value, RemoteError> {
        let answer = self.deliver(body).await?;
        self.json(&answer)
    }

    /// Posts JSON and takes any answer that is no failure.
    ///
    /// # Errors
    /// When there was none.
    pub(crate) async fn deliver(&self, body: &Value) -> Result<Bytes, RemoteError> {
        let mut attempt = 1;
        loop {
            match self.once(Method::POST, &self.path, body.to_string().into_bytes()).await {
                Err(error) if error.is_passing() && attempt < ATTEMPTS => sleep(PAUSE * attempt).await,
                outcome => return outcome,
            }
            attempt += 1;
        }
    }

    /// Gets JSON from a path of the service.
    ///
    /// # Errors
    /// When there was no JSON for an answer.
    pub(crate) async fn get(&self, path: &str) -> Result<Value, RemoteError> {
        let answer = self.once(Method::GET, path, Vec::new()).await?;
        self.json(&answer)
    }

    async fn once(&self, method: Method, path: &str, body: Vec<u8>) -> Result<Bytes, RemoteError> {
        let unreachable = |why: String| RemoteError::Unreachable { url: self.url.clone(), why };
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header(header::CONTENT_TYPE, "application/json")
            .header(header::ACCEPT, "application/json")
            .body(kube::client::Body::from(body))
            .map_err(|e| unreachable(e.to_string()))?;
        let exchange = async {
            let answer = self.client.send(request).await.map_err(|e| unreachable(chain(&e)))?;
            let code = answer.status();
            let body = http_body_util::Limited::new(answer.into_body(), MAX_ANSWER);
            let body =
                http_body_util::BodyExt::collect(body).await.map_err(|e| unreachable(e.to_string()))?;
            self.read(code, body.to_bytes())
        };
        timeout(PATIENCE, exchange).await.map_err(|_| RemoteError::Slow { url: self.url.clone() })?
    }

    fn read(&self, code: StatusCode, body: Bytes) -> Result<Bytes, RemoteError> {
        if code.is_success() {
            return Ok(body);
        }
        let why = String::from_utf8_lossy(&body).chars().take(200).collect();
        Err(RemoteError::Refused { url: self.url.clone(), code: code.as_u16(), why })
    }

    fn json(&self, body: &[u8]) -> Result<Value, RemoteError> {
        serde_json::from_slice(body).map_err(|e| RemoteError::Refused {
            url: self.url.clone(),
            code: StatusCode::OK.as_u16(),
            why: format!("no JSON: {e}"),
        })
    }
}

/// An error with its causes, in one line.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        text = format!("{text}: {inner}");
        cause = inner.source();
    }
    text
}

/// Answers by the hash of their question, each for a while.
pub(crate) struct Memory<V>(Mutex<HashMap<[u8; 32], (Instant, V)>>);

impl<V> Default for Memory<V> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

impl<V: Clone> Memory<V> {
    /// The answer, while it holds.
    pub(crate) fn get(&self, question: &[u8; 32]) -> Option<V> {
        let all = self.0.lock();
        all.get(question).filter(|(until, _)| *until > Instant::now()).map(|(_, value)| value.clone())
    }

    /// Remembers an answer; nothing when it is to hold no time.
    pub(crate) fn put(&self, question: [u8; 32], value: V, life: Duration) {
        if life.is_zero() {
            return;
        }
        let now = Instant::now();
        let mut all = self.0.lock();
        if all.len() >= MAX_REMEMBERED {
            all.retain(|_, (until, _)| *until > now);
            if all.len() >= MAX_REMEMBERED {
                all.clear();
            }
        }
        all.insert(question, (now + life, value));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_bounded_and_forgets() {
        let memory = Memory::default();
        let key = |n: usize| {
            let mut key = [0; 32];
            key[..8].copy_from_slice(&n.to_le_bytes());
            key
        };
        memory.put(key(0), 0, Duration::ZERO);
        assert_eq!(memory.get(&key(0)), None);
        for n in 0..MAX_REMEMBERED + 10 {
            memory.put(key(n), n, Duration::from_secs(60));
        }
        assert_eq!(memory.get(&key(MAX_REMEMBERED + 9)), Some(MAX_REMEMBERED + 9));
        assert!(memory.0.lock().len() <= MAX_REMEMBERED);
    }
}
