//! Errors as API clients see them: Kubernetes `Status` objects.

use std::fmt;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use crate::{GroupKind, GroupResource};

/// Why a request failed, in the words clients switch on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[allow(missing_docs)]
pub enum Reason {
    Unauthorized,
    Forbidden,
    NotFound,
    AlreadyExists,
    Conflict,
    Gone,
    Invalid,
    ServerTimeout,
    Timeout,
    TooManyRequests,
    BadRequest,
    MethodNotAllowed,
    NotAcceptable,
    RequestEntityTooLarge,
    UnsupportedMediaType,
    InternalError,
    Expired,
    ServiceUnavailable,
    /// The empty reason, which some of Kubernetes' refusals have.
    #[serde(rename = "")]
    Unknown,
}

impl Reason {
    /// The HTTP status code that goes with it.
    pub fn code(self) -> u16 {
        match self {
            Self::BadRequest => 400,
            Self::Unauthorized => 401,
            Self::Forbidden => 403,
            Self::NotFound => 404,
            Self::MethodNotAllowed => 405,
            Self::NotAcceptable => 406,
            Self::AlreadyExists | Self::Conflict => 409,
            Self::Gone | Self::Expired => 410,
            Self::RequestEntityTooLarge => 413,
            Self::UnsupportedMediaType => 415,
            Self::Invalid => 422,
            Self::TooManyRequests => 429,
            Self::InternalError | Self::Unknown => 500,
            Self::ServiceUnavailable => 503,
            Self::ServerTimeout | Self::Timeout => 504,
        }
    }
}

/// One field that is at fault.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cause {
    /// For instance `FieldValueRequired`.
    pub reason: String,
    /// What is wrong, without the field's name.
    pub message: String,
    /// The field's path, for instance `spec.containers[0].name`.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub field: String,
}

/// A failed request's answer: a `Status` object of Kubernetes, also usable as an error.
#[derive(Clone, Debug, PartialEq)]
pub struct Status {
    /// HTTP status code.
    pub code: u16,
    /// Machine-readable reason.
    pub reason: Reason,
    /// What happened, for people.
    pub message: String,
    /// `details`, as the wire has them; empty when there are none.
    pub details: Map<String, Value>,
}

impl std::error::Error for Status {}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl Status {
    /// A failure of that reason with its usual code and no details.
    pub fn new(reason: Reason, message: impl Into<String>) -> Self {
        Self { code: reason.code(), reason, message: message.into(), details: Map::new() }
    }

    /// With another HTTP code than the reason's usual one.
    #[must_use]
    pub fn with_code(mut self, code: u16) -> Self {
        self.code = code;
        self
    }

    /// With `details.name`, `details.group` and `details.kind` (empty ones are left out).
    #[must_use]
    pub fn about(mut self, name: &str, group: &str, kind: &str) -> Self {
        for (key, text) in [("name", name), ("group", group), ("kind", kind)] {
            if !text.is_empty() {
                self.details.insert(key.into(), text.into());
            }
        }
        self
    }

    /// With causes, in that order.
    #[must_use]
    pub fn with_causes(mut self, causes: &[Cause]) -> Self {
        if !causes.is_empty() {
            self.details.insert("causes".into(), json!(causes));
        }
        self
    }

    /// With `details` on the wire even if there is nothing in it, as some of Kubernetes' refusals have it.
    #[must_use]
    pub fn with_details(mut self) -> Self {
        self.details.insert(String::new(), Value::Null);
        self
    }

    /// With `details.retryAfterSeconds`; the server repeats it as a header.
    #[must_use]
    pub fn retry_after(mut self, seconds: u32) -> Self {
        self.details.insert("retryAfterSeconds".into(), seconds.into());
        self
    }

    /// `pods "web" not found`.
    pub fn not_found(resource: &GroupResource, name: &str) -> Self {
        Self::new(Reason::NotFound, format!("{resource} \"{name}\" not found")).about(
            name,
            &resource.group,
            &resource.resource,
        )
    }

    /// The answer to a path nothing is served at.
    pub fn no_such_path() -> Self {
        Self::new(Reason::NotFound, "the server could not find the requested resource")
    }

    /// `pods "web" already exists`.
    pub fn already_exists(resource: &GroupResource, name: &str) -> Self {
        Self::new(Reason::AlreadyExists, format!("{resource} \"{name}\" already exists")).about(
            name,
            &resource.group,
            &resource.resource,
        )
    }

    /// `Operation cannot be fulfilled on pods "web": …`.
    pub fn conflict(resource: &GroupResource, name: &str, why: &str) -> Self {
        Self::new(Reason::Conflict, format!("Operation cannot be fulfilled on {resource} \"{name}\": {why}"))
            .about(name, &resource.group, &resource.resource)
    }

    /// `pods "web" is forbidden: …`; without a name `pods is forbidden: …`.
    pub fn forbidden(resource: &GroupResource, name: &str, why: &str) -> Self {
        let message = match name {
            "" => format!("{resource} is forbidden: {why}"),
            name => format!("{resource} \"{name}\" is forbidden: {why}"),
        };
        Self::new(Reason::Forbidden, message).about(name, &resource.group, &resource.resource)
    }

    /// `Pod "web" is invalid: …`, listing the causes as Kubernetes does: alone, or in brackets.
    pub fn invalid(kind: &GroupKind, name: &str, causes: &[Cause]) -> Self {
        let mut texts: Vec<String> = Vec::with_capacity(causes.len());
        for cause in causes {
            let text = match &*cause.field {
                "" => cause.message.clone(),
                field => format!("{field}: {}", cause.message),
            };
            if !texts.contains(&text) {
                texts.push(text);
            }
        }
        let list = match &*texts {
            [one] => one.clone(),
            many => format!("[{}]", many.join(", ")),
        };
        Self::new(Reason::Invalid, format!("{kind} \"{name}\" is invalid: {list}"))
            .about(name, &kind.group, &kind.kind)
            .with_causes(causes)
    }

    /// A request that cannot be understood.
    pub fn bad_request(message: impl Into<String>) -> Self {
        Self::new(Reason::BadRequest, message)
    }

    /// Credentials were missing or refused.
    pub fn unauthorized() -> Self {
        Self::new(Reason::Unauthorized, "Unauthorized")
    }

    /// The resource does not have that verb.
    pub fn method_not_allowed() -> Self {
        Self::new(Reason::MethodNotAllowed, "the server does not allow this method on the requested resource")
    }

    /// A revision that has been compacted.
    pub fn expired(message: impl Into<String>) -> Self {
        Self::new(Reason::Expired, message)
    }

    /// Too many requests; try again after that many seconds.
    pub fn too_many_requests(message: impl Into<String>, seconds: u32) -> Self {
        Self::new(Reason::TooManyRequests, message).retry_after(seconds)
    }

    /// A fault of the server. `error` is shown to the client: leave secrets out.
    pub fn internal(error: impl fmt::Display) -> Self {
        Self::new(Reason::InternalError, format!("Internal error occurred: {error}")).with_causes(&[Cause {
            reason: String::new(),
            message: error.to_string(),
            field: String::new(),
        }])
    }

    /// The JSON that goes over the wire.
    pub fn to_value(&self) -> Value {
        let mut map = Map::new();
        map.insert("kind".into(), "Status".into());
        map.insert("apiVersion".into(), "v1".into());
        map.insert("metadata".into(), json!({}));
        map.insert("status".into(), "Failure".into());
        map.insert("message".into(), self.message.clone().into());
        if self.reason != Reason::Unknown {
            map.insert("reason".into(), json!(self.reason));
        }
        if !self.details.is_empty() {
            let details = self.details.iter().filter(|(key, _)| !key.is_empty());
            let details = details.map(|(key, value)| (key.clone(), slim(key, value))).collect();
            map.insert("details".into(), Value::Object(details));
        }
        map.insert("code".into(), self.code.into());
        Value::Object(map)
    }
}

/// Causes without a reason or field leave those keys out on the wire.
fn slim(key: &str, value: &Value) -> Value {
    let ("causes", Value::Array(causes)) = (key, value) else { return value.clone() };
    let slim_cause = |cause: &Value| match cause {
        Value::Object(map) => Value::Object(
            map.iter().filter(|(_, v)| v.as_str() != Some("")).map(|(k, v)| (k.clone(), v.clone())).collect(),
        ),
        other => other.clone(),
    };
    Value::Array(causes.iter().map(slim_cause).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn several_causes_are_bracketed_and_repeats_said_once() {
        let cause = |field: &str| Cause {
            reason: "FieldValueRequired".into(),
            message: "Required value".into(),
            field: field.into(),
        };
        let kind = GroupKind { group: "apps".into(), kind: "Deployment".into() };
        let status = Status::invalid(&kind, "web", &[cause("spec.a"), cause("spec.b"), cause("spec.a")]);
        assert_eq!(
            status.message,
            "Deployment.apps \"web\" is invalid: [spec.a: Required value, spec.b: Required value]"
        );
        assert_eq!(status.to_value()["code"], 422);
        assert_eq!(Status::bad_request("").with_details().to_value()["details"], json!({}));
    }
}
