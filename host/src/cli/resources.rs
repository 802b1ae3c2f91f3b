//! Which resources the server has, and the names users give them.

use anyhow::{Result, anyhow, bail};
use serde_json::Value;

use super::api::Api;

const DISCOVERY: &str =
    "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList,application/json";

/// One resource in one version of its group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Resource {
    pub(super) group: String,
    pub(super) version: String,
    pub(super) plural: String,
    pub(super) singular: String,
    pub(super) kind: String,
    pub(super) short_names: Vec<String>,
    pub(super) categories: Vec<String>,
    pub(super) verbs: Vec<String>,
    pub(super) namespaced: bool,
    /// Whether this is the version the server prefers.
    pub(super) preferred: bool,
}

impl Resource {
    /// `apps/v1`, or `v1` in the core group.
    pub(super) fn api_version(&self) -> String {
        if self.group.is_empty() { self.version.clone() } else { format!("{}/{}", self.group, self.version) }
    }

    /// `deployments.apps`, or `pods` in the core group.
    pub(super) fn qualified(&self) -> String {
        if self.group.is_empty() { self.plural.clone() } else { format!("{}.{}", self.plural, self.group) }
    }

    /// `deployment.apps/web`, or `pod/web` in the core group: the form commands print.
    pub(super) fn named(&self, name: &str) -> String {
        if self.group.is_empty() {
            format!("{}/{name}", self.singular)
        } else {
            format!("{}.{}/{name}", self.singular, self.group)
        }
    }

    /// The path of its objects in a namespace (`None`: all namespaces, or a cluster resource).
    pub(super) fn path(&self, namespace: Option<&str>) -> String {
        let root = if self.group.is_empty() { "/api" } else { "/apis" };
        let place = match namespace {
            Some(namespace) if self.namespaced => format!("/namespaces/{namespace}"),
            _ => String::new(),
        };
        format!("{root}/{}{place}/{}", self.api_version(), self.plural)
    }

    fn is_called(&self, name: &str) -> bool {
        self.plural == name || self.singular == name || self.short_names.iter().any(|s| s == name)
    }

    /// Whether it can be listed, as what `get all` and categories want.
    pub(super) fn can(&self, verb: &str) -> bool {
        self.verbs.iter().any(|v| v == verb)
    }
}

/// The groups that have what was in `extensions`.
const EXTENSIONS_NOW: [&str; 3] = ["apps", "networking.k8s.io", "policy"];

/// Every resource of a server, in the order it gives them.
#[derive(Clone, Debug)]
pub(super) struct Resources(Vec<Resource>);

impl Resources {
    /// Asks the server.
    pub(super) async fn discover(api: &Api) -> Result<Self> {
        let (core, named) =
            futures::try_join!(api.get_as("/api", DISCOVERY), api.get_as("/apis", DISCOVERY))?;
        let mut all = Vec::new();
        for group in items(&core).chain(items(&named)) {
            read_group(group, &mut all);
        }
        Ok(Self(all))
    }

    /// All of them.
    pub(super) fn iter(&self) -> impl Iterator<Item = &Resource> {
        self.0.iter()
    }

    /// The resource of a kind in that `apiVersion`.
    pub(super) fn of_kind(&self, api_version: &str, kind: &str) -> Option<&Resource> {
        self.0.iter().find(|r| r.kind == kind && r.api_version() == api_version)
    }

    /// The `apiVersion` to use for a kind in place of one that is not served: of the same group, or where the kinds
    /// of the former group `extensions` are now.
    pub(super) fn served_as(&self, api_version: &str, kind: &str) -> Option<String> {
        let group = api_version.split_once('/').map_or("", |(group, _)| group);
        let near = |r: &&Resource| match group {
            "extensions" => EXTENSIONS_NOW.contains(&&*r.group),
            group => r.group == group,
        };
        self.0.iter().filter(|r| r.preferred && r.kind == kind).find(near).map(Resource::api_version)
    }

    /// What a user means by a word: plural, singular or short name, kind, each also with
    /// `.group` or `.version.group`; or a category. Several resources only for a category.
    pub(super) fn find(&self, word: &str) -> Result<Vec<&Resource>> {
        let lower = word.to_lowercase();
        if let Some(one) = self.find_one(&lower) {
            return Ok(vec![one]);
        }
        let in_category: Vec<_> =
            self.0.iter().filter(|r| r.preferred && r.can("list") && r.categories.contains(&lower)).collect();
        if in_category.is_empty() {
            bail!("the server doesn't have a resource type \"{word}\"");
        }
        Ok(in_category)
    }

    /// The same for exactly one resource.
    pub(super) fn single(&self, word: &str) -> Result<&Resource> {
        self.find_one(&word.to_lowercase())
            .ok_or_else(|| anyhow!("the server doesn't have a resource type \"{word}\""))
    }

    fn find_one(&self, word: &str) -> Option<&Resource> {
        let (name, group) = word.split_once('.').map_or((word, None), |(name, group)| (name, Some(group)));
        let fits = |r: &&Resource| {
            let group_fits = group.is_none_or(|g| r.group == g || format!("{}.{}", r.version, r.group) == g);
            (r.is_called(name) || r.kind.to_lowercase() == name) && group_fits
        };
        let preferred = self.0.iter().filter(|r| r.preferred).find(|r| fits(r));
        preferred.or_else(|| self.0.iter().find(fits))
    }
}

fn items(list: &Value) -> impl Iterator<Item = &Value> {
    list["items"].as_array().into_iter().flatten()
}

fn read_group(group: &Value, all: &mut Vec<Resource>) {
    let name = group["metadata"]["name"].as_str().unwrap_or("");
    let versions = group["versions"].as_array().map(Vec::as_slice).unwrap_or_default();
    let mut seen: Vec<String> = Vec::new();
    for version in versions {
        for entry in version["resources"].as_array().into_iter().flatten() {
            let resource = read_resource(name, version, entry, &seen);
            seen.push(resource.plural.clone());
            all.push(resource);
        }
    }
}

fn read_resource(group: &str, version: &Value, entry: &Value, seen: &[String]) -> Resource {
    let text = |value: &Value| value.as_str().unwrap_or("").to_string();
    let texts = |value: &Value| value.as_array().into_iter().flatten().map(text).collect();
    let plural = text(&entry["resource"]);
    let kind = text(&entry["responseKind"]["kind"]);
    let singular = match text(&entry["singularResource"]) {
        empty if empty.is_empty() => kind.to_lowercase(),
        singular => singular,
    };
    Resource {
        group: group.into(),
        version: text(&version["version"]),
        preferred: !seen.contains(&plural),
        plural,
        singular,
        kind,
        short_names: texts(&entry["shortNames"]),
        categories: texts(&entry["categories"]),
        verbs: texts(&entry["verbs"]),
        namespaced: entry["scope"] == "Namespaced",
    }
}
