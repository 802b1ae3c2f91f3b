//! The rules of roles, and what they cover.

use serde::Deserialize;
use serde_json::{Map, Value, json};

/// What somebody wants to do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Attributes<'a> {
    /// The verb.
    pub(crate) verb: &'a str,
    /// The API group.
    pub(crate) group: &'a str,
    /// The version, which decides nothing here.
    pub(crate) version: &'a str,
    /// The resource, or empty for a path.
    pub(crate) resource: &'a str,
    /// The subresource, or empty.
    pub(crate) subresource: &'a str,
    /// The namespace, or empty for the whole cluster.
    pub(crate) namespace: &'a str,
    /// The object's name, or empty.
    pub(crate) name: &'a str,
    /// The path, when no resource is asked for.
    pub(crate) path: &'a str,
    /// Whether a resource is asked for.
    pub(crate) is_resource: bool,
    /// The node that a list's or watch's field selector is limited to, or empty.
    pub(crate) on_node: &'a str,
}

/// One rule of a role.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct Rule {
    pub(crate) verbs: Vec<String>,
    pub(crate) api_groups: Vec<String>,
    pub(crate) resources: Vec<String>,
    pub(crate) resource_names: Vec<String>,
    #[serde(rename = "nonResourceURLs")]
    pub(crate) urls: Vec<String>,
}

fn has(list: &[String], wanted: &str) -> bool {
    list.iter().any(|item| item == "*" || item == wanted)
}

impl Rule {
    /// Whether it allows a request.
    pub(crate) fn allows(&self, asked: &Attributes<'_>) -> bool {
        if !has(&self.verbs, asked.verb) {
            return false;
        }
        if !asked.is_resource {
            return self.urls.iter().any(|url| url_covers(url, asked.path));
        }
        has(&self.api_groups, asked.group)
            && self.resources.iter().any(|r| resource_covers(r, asked.resource, asked.subresource))
            && (self.resource_names.is_empty() || self.resource_names.iter().any(|n| n == asked.name))
    }

    /// Whether it allows everything that `other`, a rule broken into single items, allows.
    fn covers(&self, other: &Self) -> bool {
        let all = |mine: &[String], theirs: &[String]| {
            mine.iter().any(|m| m == "*") || theirs.iter().all(|t| mine.contains(t))
        };
        if !all(&self.verbs, &other.verbs) {
            return false;
        }
        if let Some(url) = other.urls.first() {
            return self.urls.iter().any(|mine| mine == url || url_covers(mine, url));
        }
        let names = self.resource_names.is_empty()
            || (!other.resource_names.is_empty()
                && other.resource_names.iter().all(|n| self.resource_names.contains(n)));
        let resources = other.resources.iter().all(|r| {
            let (resource, sub) = r.split_once('/').unwrap_or((r, ""));
            self.resources.iter().any(|mine| mine == r || resource_covers(mine, resource, sub))
        });
        all(&self.api_groups, &other.api_groups) && resources && names
    }

    /// The rule as rules of one verb, group, resource, name or URL each.
    fn breakdown(&self) -> Vec<Self> {
        let mut all = Vec::new();
        for verb in &self.verbs {
            let verbs = vec![verb.clone()];
            for group in &self.api_groups {
                for resource in &self.resources {
                    let single = Self {
                        verbs: verbs.clone(),
                        api_groups: vec![group.clone()],
                        resources: vec![resource.clone()],
                        ..Self::default()
                    };
                    if self.resource_names.is_empty() {
                        all.push(single);
                        continue;
                    }
                    for name in &self.resource_names {
                        all.push(Self { resource_names: vec![name.clone()], ..single.clone() });
                    }
                }
            }
            for url in &self.urls {
                all.push(Self { verbs: verbs.clone(), urls: vec![url.clone()], ..Self::default() });
            }
        }
        all
    }

    /// The rule as an object of the API.
    pub(crate) fn to_value(&self) -> Value {
        let mut map = Map::new();
        for (key, list) in [
            ("verbs", &self.verbs),
            ("apiGroups", &self.api_groups),
            ("resources", &self.resources),
            ("resourceNames", &self.resource_names),
            ("nonResourceURLs", &self.urls),
        ] {
            if key == "verbs" || !list.is_empty() {
                map.insert(key.into(), json!(list));
            }
        }
        Value::Object(map)
    }

    /// The rule as refusals print it: `{APIGroups:[""], Resources:["pods"], Verbs:["get"]}`.
    fn compact(&self) -> String {
        let parts: Vec<String> = [
            ("APIGroups", &self.api_groups),
            ("Resources", &self.resources),
            ("NonResourceURLs", &self.urls),
            ("ResourceNames", &self.resource_names),
            ("Verbs", &self.verbs),
        ]
        .into_iter()
        .filter(|(_, list)| !list.is_empty())
        .map(|(name, list)| {
            let items: Vec<String> = list.iter().map(|i| format!("{i:?}")).collect();
            format!("{name}:[{}]", items.join(" "))
        })
        .collect();
        format!("{{{}}}", parts.join(", "))
    }
}

fn resource_covers(rule: &str, resource: &str, sub: &str) -> bool {
    match rule.split_once('/') {
        _ if rule == "*" => true,
        None => sub.is_empty() && rule == resource,
        Some(("*", rule_sub)) => !sub.is_empty() && rule_sub == sub,
        Some((rule_resource, rule_sub)) => rule_resource == resource && rule_sub == sub,
    }
}

fn url_covers(rule: &str, path: &str) -> bool {
    rule == "*" || rule == path || rule.strip_suffix('*').is_some_and(|prefix| path.starts_with(prefix))
}

/// What of `wanted` the `owned` rules do not allow, in compact form, rules that differ only in their verbs
/// put together. Empty when they allow everything.
pub(crate) fn missing(owned: &[Rule], wanted: &[Rule]) -> Vec<String> {
    let mut uncovered: Vec<Rule> = Vec::new();
    for single in wanted.iter().flat_map(Rule::breakdown) {
        if owned.iter().any(|o| o.covers(&single)) {
            continue;
        }
        let same = |r: &&mut Rule| {
            r.api_groups == single.api_groups
                && r.resources == single.resources
                && r.resource_names == single.resource_names
                && r.urls == single.urls
        };
        match uncovered.iter_mut().find(same) {
            Some(rule) if rule.verbs.contains(&single.verbs[0]) => {}
            Some(rule) => rule.verbs.extend(single.verbs),
            None => uncovered.push(single),
        }
    }
    let mut texts: Vec<String> = uncovered.iter().map(Rule::compact).collect();
    texts.sort();
    texts
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rule(verbs: &str, groups: &str, resources: &str, names: &str) -> Rule {
        let list = |text: &str| text.split(' ').filter(|t| *t != "-").map(Into::into).collect();
        Rule {
            verbs: list(verbs),
            api_groups: if groups == "core" { vec![String::new()] } else { list(groups) },
            resources: list(resources),
            resource_names: list(names),
            urls: Vec::new(),
        }
    }

    #[test]
    fn what_rules_allow() {
        let asked =
            |verb: &'static str, resource: &'static str, subresource: &'static str, name: &'static str| {
                Attributes { verb, resource, subresource, name, is_resource: true, ..Attributes::default() }
            };
        let get_pods = rule("get", "core", "pods", "-");
        assert!(get_pods.allows(&asked("get", "pods", "", "x")));
        assert!(!get_pods.allows(&asked("list", "pods", "", "")));
        assert!(!get_pods.allows(&asked("get", "pods", "log", "x")));
        assert!(rule("*", "*", "*/log", "-").allows(&asked("get", "pods", "log", "x")));
        assert!(!rule("get", "core", "pods", "a").allows(&asked("get", "pods", "", "b")));
        let urls = Rule { verbs: vec!["get".into()], urls: vec!["/metrics/*".into()], ..Rule::default() };
        assert!(urls.allows(&Attributes { verb: "get", path: "/metrics/x", ..Attributes::default() }));
        assert!(!urls.allows(&Attributes { verb: "get", path: "/livez", ..Attributes::default() }));
    }

    #[test]
    fn what_is_missing() {
        let owned = [rule("get list", "core", "pods", "-")];
        assert!(missing(&owned, &[rule("get", "core", "pods", "a b")]).is_empty());
        assert_eq!(
            missing(&owned, &[rule("get watch", "core", "pods secrets", "-")]),
            [
                r#"{APIGroups:[""], Resources:["pods"], Verbs:["watch"]}"#,
                r#"{APIGroups:[""], Resources:["secrets"], Verbs:["get" "watch"]}"#
            ]
        );
        assert!(missing(&[rule("*", "*", "*", "-")], &[rule("a b", "x y", "p/q r", "n")]).is_empty());
    }
}
