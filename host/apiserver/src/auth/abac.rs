//! Attribute based access control: a file of policies, usually one JSON object a line.

use serde::Deserialize;
use thiserror::Error;

use super::{rules::Attributes, user, user::User};

/// Most policies of a file.
const MAX_POLICIES: usize = 100_000;

/// Why a policy file cannot be used.
#[derive(Debug, Error)]
pub enum PolicyError {
    /// A line is no policy.
    #[error("line {line}: {why}")]
    Line {
        /// Counted from one.
        line: usize,
        /// What is wrong with it.
        why: String,
    },
    /// It is larger than it may be.
    #[error("more than {MAX_POLICIES} policies")]
    TooLong,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Spec {
    user: String,
    group: String,
    readonly: bool,
    api_group: String,
    resource: String,
    namespace: String,
    non_resource_path: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Versioned {
    api_version: String,
    kind: String,
    #[serde(default)]
    spec: Spec,
}

/// The policies of a file.
#[derive(Clone, Debug, Default)]
pub struct Policy(Vec<Spec>);

impl Policy {
    /// Reads a file: objects of `{"apiVersion": "abac.authorization.kubernetes.io/v1beta1", "kind": "Policy",
    /// "spec": {...}}`, or of the older unversioned form. Empty lines and those that begin with `#` are left out.
    ///
    /// # Errors
    /// When something else stands there.
    pub fn parse(text: &str) -> Result<Self, PolicyError> {
        let plain: Vec<&str> =
            text.lines().map(|line| if line.trim_start().starts_with('#') { "" } else { line }).collect();
        let plain = plain.join("\n");
        let mut values = serde_json::Deserializer::from_str(&plain).into_iter::<serde_json::Value>();
        let mut all = Vec::new();
        loop {
            let offset = values.byte_offset();
            let Some(value) = values.next() else { break };
            if all.len() == MAX_POLICIES {
                return Err(PolicyError::TooLong);
            }
            let blank = plain[offset..].len() - plain[offset..].trim_start().len();
            let line = plain[..offset + blank].matches('\n').count() + 1;
            let value = value.map_err(|e| PolicyError::Line { line, why: format!("no JSON: {e}") })?;
            all.push(read(value).map_err(|why| PolicyError::Line { line, why })?);
        }
        Ok(Self(all))
    }

    /// Whether one of the policies allows it.
    pub(crate) fn allows(&self, user: &User, asked: &Attributes<'_>) -> bool {
        self.0.iter().any(|p| p.is_about(user) && p.allows(asked))
    }

    /// What somebody may do in a namespace: groups, resources and paths of each policy with its verbs.
    pub(crate) fn rules(&self, user: &User, namespace: &str) -> Vec<super::rules::Rule> {
        let about = self.0.iter().filter(|p| p.is_about(user));
        about.flat_map(|p| p.rules(namespace)).collect()
    }
}

fn read(value: serde_json::Value) -> Result<Spec, String> {
    if value.get("apiVersion").is_none() {
        return serde_json::from_value(value).map(unversioned).map_err(|e| e.to_string());
    }
    let policy: Versioned = serde_json::from_value(value).map_err(|e| e.to_string())?;
    let known = ["abac.authorization.kubernetes.io/v1beta1", "abac.authorization.kubernetes.io/v0"];
    if policy.kind != "Policy" || !known.contains(&&*policy.api_version) {
        return Err(format!(
            "a Policy of {} was expected, found {} of {}",
            known[0], policy.kind, policy.api_version
        ));
    }
    Ok(policy.spec)
}

/// The older form means all groups, and every namespace or resource it does not name.
fn unversioned(mut spec: Spec) -> Spec {
    let all_paths = spec.namespace.is_empty() && spec.resource.is_empty() && spec.api_group.is_empty();
    let fill = |text: &mut String| {
        if text.is_empty() {
            *text = "*".into();
        }
    };
    fill(&mut spec.namespace);
    fill(&mut spec.resource);
    fill(&mut spec.api_group);
    if spec.user.is_empty() && spec.group.is_empty() {
        spec.group = user::AUTHENTICATED.into();
    }
    if spec.user == "*" {
        spec.user.clear();
        spec.group = user::AUTHENTICATED.into();
    }
    if all_paths && spec.non_resource_path.is_empty() {
        spec.non_resource_path = "*".into();
    }
    spec
}

fn reads(verb: &str) -> bool {
    matches!(verb, "get" | "list" | "watch")
}

impl Spec {
    fn is_about(&self, user: &User) -> bool {
        if self.user.is_empty() && self.group.is_empty() {
            return false;
        }
        (self.user.is_empty() || self.user == "*" || self.user == user.name)
            && (self.group.is_empty() || self.group == "*" || user.is_in(&self.group))
    }

    fn allows(&self, asked: &Attributes<'_>) -> bool {
        let is = |mine: &str, wanted: &str| mine == "*" || mine == wanted;
        if self.readonly && !reads(asked.verb) {
            return false;
        }
        if !asked.is_resource {
            let path = &*self.non_resource_path;
            return is(path, asked.path)
                || path.strip_suffix('*').is_some_and(|prefix| asked.path.starts_with(prefix));
        }
        is(&self.namespace, asked.namespace)
            && is(&self.resource, asked.resource)
            && is(&self.api_group, asked.group)
    }

    fn rules(&self, namespace: &str) -> Vec<super::rules::Rule> {
        let verbs: Vec<String> =
            if self.readonly { vec!["get".into(), "list".into(), "watch".into()] } else { vec!["*".into()] };
        let mut all = Vec::new();
        if !self.resource.is_empty() && (self.namespace == "*" || self.namespace == namespace) {
            all.push(super::rules::Rule {
                verbs: verbs.clone(),
                api_groups: vec![self.api_group.clone()],
                resources: vec![self.resource.clone()],
                ..Default::default()
            });
        }
        if !self.non_resource_path.is_empty() {
            let urls = vec![self.non_resource_path.clone()];
            all.push(super::rules::Rule { verbs, urls, ..Default::default() });
        }
        all
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `user verb namespace resource` or `user verb /path`.
    fn check(policy: &str, asked: &str, expect: bool) {
        let policy = Policy::parse(policy).unwrap();
        let words: Vec<&str> = asked.split(' ').collect();
        let user = User::new(words[0], ["dev"]);
        let asked = match words[2].starts_with('/') {
            true => Attributes { verb: words[1], path: words[2], ..Default::default() },
            false => Attributes {
                verb: words[1],
                namespace: words[2].trim_matches('-'),
                resource: words[3],
                is_resource: true,
                ..Default::default()
            },
        };
        assert_eq!(policy.allows(&user, &asked), expect, "{asked:?}");
    }

    #[test]
    fn lines_allow_what_they_say() {
        let v1 = |spec: &str| {
            format!(
                r#"{{"apiVersion":"abac.authorization.kubernetes.io/v1beta1","kind":"Policy","spec":{spec}}}"#
            )
        };
        let bob = v1(r#"{"user":"bob","namespace":"lab","resource":"pods","apiGroup":"","readonly":true}"#);
        for (asked, expect) in [
            ("bob get lab pods", true),
            ("bob list lab pods", true),
            ("bob create lab pods", false),
            ("bob get lab secrets", false),
            ("bob get other pods", false),
            ("bob get - pods", false),
            ("eve get lab pods", false),
            ("bob get /version", false),
        ] {
            check(&bob, asked, expect);
        }
        let all = v1(r#"{"user":"eve","namespace":"*","resource":"*","apiGroup":"*","nonResourcePath":"*"}"#);
        check(&all, "eve delete - nodes", true);
        check(&all, "eve get /metrics", true);
        check(&all, "bob get lab pods", false);
        check(&v1(r#"{"group":"dev","nonResourcePath":"/api*","readonly":true}"#), "bob get /apis", true);
        check(&v1(r#"{"namespace":"*","resource":"*","apiGroup":"*"}"#), "bob get lab pods", false);
        check(
            r#"{"user":"bob","resource":"pods","namespace":"lab","readonly":true}"#,
            "bob get lab pods",
            true,
        );
        check(r#"{"user":"bob"}"#, "bob delete lab secrets", true);
    }

    #[test]
    fn odd_lines_are_refused_with_their_number() {
        for (text, expect) in [
            ("# fine\n\n{", "line 3: no JSON"),
            (r#"{"apiVersion":"x/v1","kind":"Policy"}"#, "line 1: a Policy of"),
            ("{}\n\n {\"user\":7}", "line 3: invalid type"),
        ] {
            let error = Policy::parse(text).unwrap_err().to_string();
            assert!(error.starts_with(expect), "{error}");
        }
    }
}
