//! Another service that decides: it is asked with a SubjectAccessReview.

use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::{
    rbac::Decision,
    remote::{Memory, Remote, RemoteError},
    rules::Attributes,
    settings::Webhook,
    user::User,
};

/// The service.
pub(crate) struct AccessReviewer {
    remote: Remote,
    settings: Webhook,
    known: Memory<Decision>,
}

impl AccessReviewer {
    /// As the settings say. Does not connect.
    ///
    /// # Errors
    /// When its kubeconfig cannot be used.
    pub(crate) async fn new(settings: Webhook) -> Result<Self, RemoteError> {
        let remote = Remote::new(settings.config.clone()).await?;
        Ok(Self { remote, settings, known: Memory::default() })
    }

    /// What the service says; when it cannot be asked, it has no opinion.
    pub(crate) async fn authorize(&self, user: &User, asked: &Attributes<'_>) -> Decision {
        let review = review(&self.settings.version, user, asked);
        let question: [u8; 32] = Sha256::digest(review.to_string()).into();
        if let Some(known) = self.known.get(&question) {
            return known;
        }
        match self.remote.post(&review).await {
            Ok(answer) => {
                let decision = read(&answer);
                let life = if decision.allowed { self.settings.good } else { self.settings.bad };
                self.known.put(question, decision.clone(), life);
                decision
            }
            Err(error) => {
                tracing::warn!(%error, "access could not be reviewed");
                Decision::default()
            }
        }
    }
}

fn read(answer: &Value) -> Decision {
    let flag = |path: &str| answer.pointer(path).and_then(Value::as_bool).unwrap_or(false);
    let text = |path: &str| answer.pointer(path).and_then(Value::as_str).unwrap_or("");
    Decision {
        allowed: flag("/status/allowed"),
        denied: flag("/status/denied"),
        reason: text("/status/reason").into(),
    }
}

fn review(version: &str, user: &User, asked: &Attributes<'_>) -> Value {
    let mut spec = json!({ "user": user.name });
    // The older version calls the groups by another name.
    let groups = if version == "v1beta1" { "group" } else { "groups" };
    for (key, value, empty) in [
        (groups, json!(user.groups), user.groups.is_empty()),
        ("uid", json!(user.uid), user.uid.is_empty()),
        ("extra", json!(user.extra), user.extra.is_empty()),
    ] {
        if !empty {
            spec[key] = value;
        }
    }
    if asked.is_resource {
        let mut attributes = serde_json::Map::new();
        for (key, value) in [
            ("namespace", asked.namespace),
            ("verb", asked.verb),
            ("group", asked.group),
            ("version", asked.version),
            ("resource", asked.resource),
            ("subresource", asked.subresource),
            ("name", asked.name),
        ] {
            if !value.is_empty() {
                attributes.insert(key.into(), value.into());
            }
        }
        spec["resourceAttributes"] = attributes.into();
    } else {
        spec["nonResourceAttributes"] = json!({ "path": asked.path, "verb": asked.verb });
    }
    json!({
        "apiVersion": format!("authorization.k8s.io/{version}"),
        "kind": "SubjectAccessReview",
        "metadata": { "creationTimestamp": null },
        "spec": spec,
        "status": { "allowed": false },
    })
}
