//! Bearer tokens that another service knows: it is asked with a TokenReview.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::{
    remote::{Memory, Remote, RemoteError},
    settings::Webhook,
    user::User,
};

/// A user as reviews name it.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct UserInfo {
    username: String,
    uid: String,
    groups: Vec<String>,
    extra: BTreeMap<String, Vec<String>>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct Status {
    authenticated: bool,
    user: UserInfo,
    audiences: Vec<String>,
    error: String,
}

/// What a service said of a token: its user and the audiences it is good for, or nothing.
type Said = Option<(User, Vec<String>)>;

/// The service.
pub(crate) struct TokenReviewer {
    remote: Remote,
    settings: Webhook,
    known: Memory<Said>,
}

impl TokenReviewer {
    /// As the settings say. Does not connect.
    ///
    /// # Errors
    /// When its kubeconfig cannot be used.
    pub(crate) async fn new(settings: Webhook) -> Result<Self, RemoteError> {
        let remote = Remote::new(settings.config.clone()).await?;
        Ok(Self { remote, settings, known: Memory::default() })
    }

    /// The user of a token for one of those audiences, and which of them.
    pub(crate) async fn user(&self, token: &str, audiences: &[&str]) -> Said {
        let question = Sha256::new().chain_update(audiences.join("\0")).chain_update([0]).chain_update(token);
        let question: [u8; 32] = question.finalize().into();
        if let Some(known) = self.known.get(&question) {
            return known;
        }
        match self.ask(token, audiences).await {
            Ok(said) => {
                let life = if said.is_some() { self.settings.good } else { self.settings.bad };
                self.known.put(question, said.clone(), life);
                said
            }
            Err(error) => {
                tracing::warn!(%error, "a token could not be reviewed");
                None
            }
        }
    }

    async fn ask(&self, token: &str, audiences: &[&str]) -> Result<Said, RemoteError> {
        let review = json!({
            "apiVersion": format!("authentication.k8s.io/{}", self.settings.version),
            "kind": "TokenReview",
            "metadata": { "creationTimestamp": null },
            "spec": { "token": token, "audiences": audiences },
            "status": { "user": {} },
        });
        let answer = self.remote.post(&review).await?;
        let status = answer.get("status").cloned().unwrap_or(Value::Null);
        let status: Status = serde_json::from_value(status).unwrap_or_default();
        if !status.error.is_empty() {
            tracing::debug!(error = status.error, "the service found fault with a token");
        }
        if !status.authenticated {
            return Ok(None);
        }
        // A service that says nothing of audiences knows only the API's own.
        let shared: Vec<String> = match status.audiences.as_slice() {
            [] => audiences.iter().map(|a| (*a).to_owned()).collect(),
            some => some.iter().filter(|a| audiences.contains(&a.as_str())).cloned().collect(),
        };
        if shared.is_empty() {
            return Ok(None);
        }
        let mut user = User::new(status.user.username, status.user.groups);
        (user.uid, user.extra) = (status.user.uid, status.user.extra);
        Ok(Some((user, shared)))
    }
}
