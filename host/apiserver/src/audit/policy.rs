//! Audit policies: how much is kept of which request.

use serde::Deserialize;
use thiserror::Error;

use crate::auth::{Attributes, User};

/// How much is kept.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
pub(crate) enum Level {
    /// Nothing.
    #[default]
    None,
    /// Who asked for what.
    Metadata,
    /// And what was sent.
    Request,
    /// And what was answered.
    RequestResponse,
}

/// When an event is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
pub(crate) enum Stage {
    /// Before the request is handled.
    RequestReceived,
    /// When the answer of a long-running request begins.
    ResponseStarted,
    /// When the answer is complete.
    ResponseComplete,
    /// When handling it failed badly.
    Panic,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase", deny_unknown_fields)]
struct GroupResources {
    group: String,
    resources: Vec<String>,
    resource_names: Vec<String>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Rule {
    level: Level,
    #[serde(default)]
    users: Vec<String>,
    #[serde(default)]
    user_groups: Vec<String>,
    #[serde(default)]
    verbs: Vec<String>,
    #[serde(default)]
    resources: Vec<GroupResources>,
    #[serde(default)]
    namespaces: Vec<String>,
    #[serde(default, rename = "nonResourceURLs")]
    urls: Vec<String>,
    #[serde(default)]
    omit_stages: Vec<Stage>,
    omit_managed_fields: Option<bool>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Document {
    api_version: String,
    kind: String,
    #[serde(default, rename = "metadata")]
    _metadata: serde::de::IgnoredAny,
    #[serde(default)]
    rules: Vec<Rule>,
    #[serde(default)]
    omit_stages: Vec<Stage>,
    #[serde(default)]
    omit_managed_fields: bool,
}

/// Why a policy cannot be used.
#[derive(Debug, Error)]
pub enum PolicyError {
    /// It cannot be read.
    #[error("the audit policy cannot be read: {0}")]
    Unreadable(String),
    /// It is of another kind.
    #[error("an audit.k8s.io/v1 Policy was expected, found {kind} of {version}")]
    Kind {
        /// Its kind.
        kind: String,
        /// Its version.
        version: String,
    },
    /// It keeps nothing of anything.
    #[error("the audit policy has no rules")]
    Empty,
    /// A rule is about resources and paths at once.
    #[error("rule {0} of the audit policy has resources or namespaces and nonResourceURLs at once")]
    Both(usize),
}

/// A policy.
#[derive(Clone, Debug)]
pub struct Policy {
    rules: Vec<Rule>,
    omit_stages: Vec<Stage>,
    omit_managed_fields: bool,
}

/// What is kept of one request.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Kept {
    /// How much.
    pub(crate) level: Level,
    /// At which stages nothing.
    pub(crate) omitted: Vec<Stage>,
    /// Whether objects are kept without their managed fields.
    pub(crate) omit_managed_fields: bool,
}

impl Policy {
    /// Reads a policy file, YAML or JSON.
    ///
    /// # Errors
    /// When it is no usable policy.
    pub fn parse(text: &str) -> Result<Self, PolicyError> {
        let document: Document =
            serde_yaml::from_str(text).map_err(|e| PolicyError::Unreadable(e.to_string()))?;
        if document.kind != "Policy" || document.api_version != "audit.k8s.io/v1" {
            return Err(PolicyError::Kind { kind: document.kind, version: document.api_version });
        }
        if document.rules.is_empty() {
            return Err(PolicyError::Empty);
        }
        let both = |r: &Rule| !(r.urls.is_empty() || r.resources.is_empty() && r.namespaces.is_empty());
        if let Some(index) = document.rules.iter().position(both) {
            return Err(PolicyError::Both(index));
        }
        Ok(Self {
            rules: document.rules,
            omit_stages: document.omit_stages,
            omit_managed_fields: document.omit_managed_fields,
        })
    }

    /// What is kept of a request: as the first rule says that is about it.
    pub(crate) fn of(&self, user: &User, asked: &Attributes<'_>) -> Kept {
        let Some(rule) = self.rules.iter().find(|rule| rule.is_about(user, asked)) else {
            return Kept { level: Level::None, ..Kept::default() };
        };
        Kept {
            level: rule.level,
            omitted: self.omit_stages.iter().chain(&rule.omit_stages).copied().collect(),
            omit_managed_fields: rule.omit_managed_fields.unwrap_or(self.omit_managed_fields),
        }
    }
}

impl Rule {
    fn is_about(&self, user: &User, asked: &Attributes<'_>) -> bool {
        let listed = |list: &[String], wanted: &str| list.is_empty() || list.iter().any(|i| i == wanted);
        if !listed(&self.users, &user.name)
            || !(self.user_groups.is_empty() || self.user_groups.iter().any(|g| user.is_in(g)))
            || !listed(&self.verbs, asked.verb)
        {
            return false;
        }
        if !self.resources.is_empty() || !self.namespaces.is_empty() {
            return asked.is_resource
                && listed(&self.namespaces, asked.namespace)
                && (self.resources.is_empty() || self.resources.iter().any(|r| r.covers(asked)));
        }
        if !self.urls.is_empty() {
            return !asked.is_resource && self.urls.iter().any(|url| covers_path(url, asked.path));
        }
        true
    }
}

impl GroupResources {
    fn covers(&self, asked: &Attributes<'_>) -> bool {
        if self.group != asked.group {
            return false;
        }
        if self.resources.is_empty() {
            return true;
        }
        if !self.resource_names.is_empty() && !self.resource_names.iter().any(|n| n == asked.name) {
            return false;
        }
        self.resources.iter().any(|resource| match resource.split_once('/') {
            _ if resource == "*" => true,
            None => resource == asked.resource && asked.subresource.is_empty(),
            Some(("*", sub)) => sub == asked.subresource,
            Some((resource, "*")) => resource == asked.resource && !asked.subresource.is_empty(),
            Some((resource, sub)) => resource == asked.resource && sub == asked.subresource,
        })
    }
}

fn covers_path(url: &str, path: &str) -> bool {
    url == "*" || url == path || url.strip_suffix('*').is_some_and(|prefix| path.starts_with(prefix))
}

#[cfg(test)]
mod tests {
    use super::*;

    const POLICY: &str = "
apiVersion: audit.k8s.io/v1
kind: Policy
omitStages: [RequestReceived]
rules:
- level: None
  users: [system:kube-proxy]
  verbs: [watch]
  resources: [{group: '', resources: [endpoints, services]}]
- level: None
  userGroups: [system:authenticated]
  nonResourceURLs: ['/api*', /version]
- level: Request
  resources: [{group: '', resources: [configmaps]}]
  namespaces: [kube-system]
- level: Metadata
  resources: [{group: '', resources: [secrets, configmaps, 'pods/*']}]
- level: RequestResponse
  resources: [{group: apps}, {group: '', resources: [pods], resourceNames: [p]}]
  omitStages: [ResponseStarted]
- level: Metadata
  userGroups: [system:unauthenticated]
";

    /// `user verb group/resource/subresource namespace name` or `user verb /path`.
    fn check(asked: &str, expect: Level) {
        let words: Vec<&str> = asked.split(' ').collect();
        let user = if words[0] == "nobody" { User::anonymous() } else { User::new(words[0], ["x"]) };
        let attributes = if words[2].starts_with("/v") || words[2].starts_with("/a") {
            Attributes { verb: words[1], path: words[2], ..Attributes::default() }
        } else {
            let parts: Vec<&str> = words[2].split('/').collect();
            Attributes {
                verb: words[1],
                group: parts[0],
                resource: parts[1],
                subresource: parts.get(2).copied().unwrap_or(""),
                namespace: words.get(3).copied().unwrap_or(""),
                name: words.get(4).copied().unwrap_or(""),
                is_resource: true,
                ..Attributes::default()
            }
        };
        assert_eq!(Policy::parse(POLICY).unwrap().of(&user, &attributes).level, expect, "{asked}");
    }

    #[test]
    fn the_first_rule_that_is_about_it_counts() {
        check("system:kube-proxy watch /services", Level::None);
        check("ann watch /configmaps kube-system", Level::Request);
        check("ann get /configmaps default", Level::Metadata);
        check("ann get /pods/log default p", Level::Metadata);
        check("ann get /pods default p", Level::RequestResponse);
        check("ann get /pods default q", Level::None);
        check("ann get apps/deployments default q", Level::RequestResponse);
        check("ann get batch/jobs default q", Level::None);
        check("ann get /version", Level::None);
        check("nobody get /version", Level::Metadata);
        check("nobody get batch/jobs default", Level::Metadata);
    }

    #[test]
    fn stages_add_up() {
        let policy = Policy::parse(POLICY).unwrap();
        let asked = Attributes { verb: "get", group: "apps", is_resource: true, ..Attributes::default() };
        let kept = policy.of(&User::new("a", ["b"]), &asked);
        assert_eq!(kept.omitted, [Stage::RequestReceived, Stage::ResponseStarted]);
    }

    #[test]
    fn odd_policies_are_refused() {
        for (text, expect) in [
            ("a: [", "cannot be read"),
            ("apiVersion: v1\nkind: Pod", "expected, found Pod"),
            ("apiVersion: audit.k8s.io/v1\nkind: Policy\nrules: []", "no rules"),
            ("apiVersion: audit.k8s.io/v1\nkind: Policy\nrules: [{level: All}]", "cannot be read"),
            ("apiVersion: audit.k8s.io/v1\nkind: Policy\nrules: [{level: None, verb: [a]}]", "unknown field"),
            (
                "apiVersion: audit.k8s.io/v1\nkind: Policy\nrules: [{level: None, namespaces: [a], nonResourceURLs: [/x]}]",
                "rule 0",
            ),
        ] {
            let error = Policy::parse(text).unwrap_err().to_string();
            assert!(error.contains(expect), "{error}");
        }
    }
}
