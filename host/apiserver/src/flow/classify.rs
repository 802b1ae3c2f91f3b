//! Which flow a request belongs to: the first schema, by precedence, whose rules are about it.

use http::HeaderValue;
use serde::Deserialize;
use serde_json::Value;

use wasmk_kinds::value::text;

use super::header;
use crate::{
    auth::User,
    cache::{Cache, Filter},
    http::RequestInfo,
};

/// A schema, ready to be matched.
pub(super) struct Schema {
    pub(super) name: String,
    pub(super) uid: HeaderValue,
    pub(super) level: String,
    precedence: i64,
    method: String,
    rules: Vec<Rule>,
}

/// Who asks for what.
#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Rule {
    subjects: Vec<Subject>,
    resource_rules: Vec<ResourceRule>,
    non_resource_rules: Vec<PathRule>,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Subject {
    kind: String,
    user: Named,
    group: Named,
    service_account: Named,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Named {
    namespace: String,
    name: String,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct ResourceRule {
    verbs: Vec<String>,
    api_groups: Vec<String>,
    resources: Vec<String>,
    namespaces: Vec<String>,
    cluster_scope: bool,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct PathRule {
    verbs: Vec<String>,
    #[serde(rename = "nonResourceURLs")]
    paths: Vec<String>,
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
                uid: header(object.uid()),
                level: spec.get("priorityLevelConfiguration").map_or("", |l| text(l, "name")).into(),
                precedence: spec.get("matchingPrecedence").and_then(Value::as_i64).unwrap_or(1000),
                method: spec.get("distinguisherMethod").map_or("", |m| text(m, "type")).into(),
                rules: rules(&spec),
            }
        })
        .collect();
    all.sort_by(|a, b| a.precedence.cmp(&b.precedence).then_with(|| a.name.cmp(&b.name)));
    all
}

/// The rules of a schema; one that cannot be read is about nothing.
fn rules(spec: &Value) -> Vec<Rule> {
    let all = spec.get("rules").and_then(Value::as_array);
    all.into_iter().flatten().filter_map(|rule| Rule::deserialize(rule).ok()).collect()
}

impl Schema {
    /// Whether it is about a request.
    pub(super) fn is_about(&self, user: &User, info: &RequestInfo) -> bool {
        self.rules.iter().any(|rule| {
            rule.subjects.iter().any(|subject| subject.is(user))
                && match info.is_resource {
                    true => rule.resource_rules.iter().any(|r| r.is_about(info)),
                    false => rule.non_resource_rules.iter().any(|r| r.is_about(info)),
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

impl Subject {
    fn is(&self, user: &User) -> bool {
        match &*self.kind {
            "User" => self.user.name == "*" || self.user.name == user.name,
            "Group" => self.group.name == "*" || user.is_in(&self.group.name),
            "ServiceAccount" => {
                let wanted = &self.service_account;
                user.as_service_account().is_some_and(|(namespace, name)| {
                    wanted.namespace == namespace && (wanted.name == "*" || wanted.name == name)
                })
            }
            _ => false,
        }
    }
}

fn has(items: &[String], wanted: &str) -> bool {
    items.iter().any(|item| item == "*" || item == wanted)
}

impl ResourceRule {
    fn is_about(&self, info: &RequestInfo) -> bool {
        let place = match &*info.namespace {
            "" => self.cluster_scope,
            namespace => has(&self.namespaces, namespace),
        };
        // A request over all namespaces is one of the cluster.
        place
            && has(&self.verbs, info.verb)
            && has(&self.api_groups, &info.group)
            && self.resources.iter().any(|item| item == "*" || is_resource(item, info))
    }
}

/// Whether `pods` or `pods/log` is what a request is about.
fn is_resource(item: &str, info: &RequestInfo) -> bool {
    match item.strip_prefix(&*info.resource) {
        Some("") => info.subresource.is_empty(),
        Some(rest) => !info.subresource.is_empty() && rest.strip_prefix('/') == Some(&*info.subresource),
        None => false,
    }
}

impl PathRule {
    fn is_about(&self, info: &RequestInfo) -> bool {
        has(&self.verbs, info.verb)
            && self.paths.iter().any(|path| match path.strip_suffix('*') {
                Some(start) => info.path.starts_with(start),
                None => *path == info.path,
            })
    }
}

#[cfg(test)]
mod tests {
    use http::Method;
    use serde_json::json;

    use super::*;
    use crate::http::Query;

    #[test]
    fn rules_are_about_what_they_say() {
        let spec = json!({"rules": [{
            "subjects": [
                {"kind": "Group", "group": {"name": "workers"}},
                {"kind": "ServiceAccount", "serviceAccount": {"namespace": "n", "name": "*"}},
            ],
            "resourceRules": [
                {"verbs": ["get", "list"], "apiGroups": [""], "resources": ["pods", "pods/log"], "namespaces": ["n"]},
                {"verbs": ["*"], "apiGroups": ["*"], "resources": ["nodes"], "clusterScope": true},
            ],
            "nonResourceRules": [{"verbs": ["get"], "nonResourceURLs": ["/healthz", "/logs/*"]}],
        }]});
        let schema = Schema {
            name: String::new(),
            uid: header(""),
            level: String::new(),
            precedence: 0,
            method: String::new(),
            rules: rules(&spec),
        };
        let worker = User::new("jane", ["workers"]);
        let check = |user: &User, method: Method, path: &str, expect: bool| {
            let info = RequestInfo::new(&method, path, &Query::parse(""));
            assert_eq!(schema.is_about(user, &info), expect, "{method} {path}");
        };
        for (path, expect) in [
            ("/api/v1/namespaces/n/pods", true),
            ("/api/v1/namespaces/n/pods/a/log", true),
            ("/api/v1/namespaces/n/pods/a/exec", false),
            ("/api/v1/namespaces/n/podtemplates", false),
            ("/api/v1/namespaces/m/pods", false),
            ("/api/v1/pods", false),
            ("/api/v1/nodes/a", true),
            ("/apis/apps/v1/namespaces/n/pods", false),
            ("/healthz", true),
            ("/healthz/ping", false),
            ("/logs/a/b", true),
        ] {
            check(&worker, Method::GET, path, expect);
            check(&User::service_account("n", "robot"), Method::GET, path, expect);
            check(&User::new("joe", ["idlers"]), Method::GET, path, false);
        }
        check(&worker, Method::DELETE, "/api/v1/namespaces/n/pods/a", false);
    }
}
