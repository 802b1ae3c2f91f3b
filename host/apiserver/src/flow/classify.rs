//! Which flow a request belongs to: the first schema, by precedence, whose rules are about it.

use serde_json::Value;

use crate::{
    auth::User,
    cache::{Cache, Filter},
    http::RequestInfo,
};

/// A schema, ready to be matched.
pub(super) struct Schema {
    pub(super) name: String,
    pub(super) uid: String,
    pub(super) level: String,
    precedence: i64,
    method: String,
    rules: Vec<Value>,
}

fn text<'a>(value: &'a Value, key: &str) -> &'a str {
    value.get(key).and_then(Value::as_str).unwrap_or("")
}

fn list<'a>(value: &'a Value, key: &str) -> impl Iterator<Item = &'a Value> {
    value.get(key).and_then(Value::as_array).into_iter().flatten()
}

/// All schemas, in the order they are tried.
pub(super) fn schemas(cache: &Cache) -> Vec<Schema> {
    let mut all: Vec<Schema> = cache
        .list(&Filter::default())
        .iter()
        .map(|entry| {
            let object = entry.object();
            let spec = object.0.get("spec").cloned().unwrap_or_default();
            Schema {
                name: entry.name.to_string(),
                uid: object.uid().into(),
                level: spec.get("priorityLevelConfiguration").map_or("", |l| text(l, "name")).into(),
                precedence: spec.get("matchingPrecedence").and_then(Value::as_i64).unwrap_or(1000),
                method: spec.get("distinguisherMethod").map_or("", |m| text(m, "type")).into(),
                rules: list(&spec, "rules").cloned().collect(),
            }
        })
        .collect();
    all.sort_by(|a, b| a.precedence.cmp(&b.precedence).then_with(|| a.name.cmp(&b.name)));
    all
}

impl Schema {
    /// Whether it is about a request.
    pub(super) fn is_about(&self, user: &User, info: &RequestInfo) -> bool {
        self.rules.iter().any(|rule| {
            list(rule, "subjects").any(|subject| is(subject, user))
                && match info.is_resource {
                    true => list(rule, "resourceRules").any(|r| of_resource(r, info)),
                    false => list(rule, "nonResourceRules").any(|r| of_path(r, info)),
                }
        })
    }

    /// What tells the flows of the schema apart.
    pub(super) fn distinguisher<'a>(&self, user: &'a User, info: &'a RequestInfo) -> &'a str {
        match &*self.method {
            "ByUser" => &user.name,
            "ByNamespace" => &info.namespace,
            _ => "",
        }
    }
}

fn is(subject: &Value, user: &User) -> bool {
    let part = |key: &str| subject.get(key).unwrap_or(&Value::Null);
    match text(subject, "kind") {
        "User" => matches!(text(part("user"), "name"), "*") || text(part("user"), "name") == user.name,
        "Group" => matches!(text(part("group"), "name"), "*") || user.is_in(text(part("group"), "name")),
        "ServiceAccount" => {
            let wanted = part("serviceAccount");
            user.as_service_account().is_some_and(|(namespace, name)| {
                text(wanted, "namespace") == namespace
                    && matches!(text(wanted, "name"), n if n == "*" || n == name)
            })
        }
        _ => false,
    }
}

fn has(rule: &Value, key: &str, wanted: &str) -> bool {
    list(rule, key).filter_map(Value::as_str).any(|item| item == "*" || item == wanted)
}

fn of_resource(rule: &Value, info: &RequestInfo) -> bool {
    let place = match &*info.namespace {
        "" => rule.get("clusterScope") == Some(&Value::Bool(true)),
        namespace => has(rule, "namespaces", namespace),
    };
    // A request over all namespaces is one of the cluster.
    place
        && has(rule, "verbs", info.verb)
        && has(rule, "apiGroups", &info.group)
        && has(rule, "resources", &info.full_resource())
}

fn of_path(rule: &Value, info: &RequestInfo) -> bool {
    let paths = list(rule, "nonResourceURLs").filter_map(Value::as_str);
    has(rule, "verbs", info.verb)
        && paths.into_iter().any(|path| match path.strip_suffix('*') {
            Some(start) => info.path.starts_with(start),
            None => path == info.path,
        })
}
