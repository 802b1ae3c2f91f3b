//! Roles, bindings and tokens.

use anyhow::{Context as _, Result, bail};
use http::Method;
use serde_json::{Value, json};

use super::{super::Context, object};
use crate::cli::{
    api::Api,
    make::{self, Flags},
    resources::Resources,
};

const RBAC: &str = "rbac.authorization.k8s.io/v1";

#[derive(Clone, Debug, clap::Args)]
pub(super) struct Role {
    name: String,
    /// What may be done
    #[arg(long, value_delimiter = ',', required = true)]
    verb: Vec<String>,
    /// To what: `pods`, `deployments.apps`, `pods/log`
    #[arg(long, value_delimiter = ',', required_unless_present = "non_resource_url")]
    resource: Vec<String>,
    /// Only to objects of these names
    #[arg(long, value_delimiter = ',')]
    resource_name: Vec<String>,
    /// To paths that are no objects (of a cluster role)
    #[arg(long, value_delimiter = ',', value_name = "PATH")]
    non_resource_url: Vec<String>,
    #[command(flatten)]
    flags: Flags,
}

impl Role {
    pub(super) async fn run(self, cx: &Context, kind: &str) -> Result<()> {
        let api = Api::new(cx.client().await?);
        let resources = Resources::discover(&api).await?;
        let mut role = object(RBAC, kind, &self.name);
        role["rules"] = self.rules(&resources)?;
        make::make_with(cx, &api, &resources, &self.flags, role, "created").await
    }

    /// One rule for each API group, in the order named.
    fn rules(&self, resources: &Resources) -> Result<Value> {
        if !self.non_resource_url.is_empty() {
            return Ok(json!([{"nonResourceURLs": self.non_resource_url, "verbs": self.verb}]));
        }
        let mut groups: Vec<(String, Vec<String>)> = Vec::new();
        for word in &self.resource {
            let (name, part) = word.split_once('/').map_or((word.as_str(), ""), |(name, part)| (name, part));
            let (group, plural) = match name {
                "*" => (String::new(), "*".to_string()),
                name => resources.single(name).map(|r| (r.group.clone(), r.plural.clone()))?,
            };
            let plural = if part.is_empty() { plural } else { format!("{plural}/{part}") };
            match groups.iter_mut().find(|(known, _)| *known == group) {
                Some((_, list)) => list.push(plural),
                None => groups.push((group, vec![plural])),
            }
        }
        let rule = |(group, list): (String, Vec<String>)| {
            let mut rule = json!({"apiGroups": [group], "resources": list, "verbs": self.verb});
            if !self.resource_name.is_empty() {
                rule["resourceNames"] = json!(self.resource_name);
            }
            rule
        };
        Ok(groups.into_iter().map(rule).collect())
    }
}

#[derive(Clone, Debug, clap::Args)]
pub(super) struct Binding {
    name: String,
    /// The cluster role to give
    #[arg(long)]
    clusterrole: Option<String>,
    /// The role of the same namespace to give
    #[arg(long, conflicts_with = "clusterrole")]
    role: Option<String>,
    /// To a user; may be repeated
    #[arg(long, value_delimiter = ',')]
    user: Vec<String>,
    /// To a group; may be repeated
    #[arg(long, value_delimiter = ',')]
    group: Vec<String>,
    /// To a service account; may be repeated
    #[arg(long, value_name = "NAMESPACE:NAME", value_delimiter = ',')]
    serviceaccount: Vec<String>,
    #[command(flatten)]
    flags: Flags,
}

impl Binding {
    pub(super) async fn run(self, cx: &Context, kind: &str) -> Result<()> {
        let cx = &cx.as_own_user();
        let (role_kind, role) = match (&self.clusterrole, &self.role) {
            (Some(role), _) => ("ClusterRole", role),
            (None, Some(_)) if kind == "ClusterRoleBinding" => {
                bail!("a cluster role binding takes --clusterrole, not --role")
            }
            (None, Some(role)) => ("Role", role),
            (None, None) => bail!("exactly one of clusterrole or role must be specified"),
        };
        let mut binding = object(RBAC, kind, &self.name);
        binding["roleRef"] =
            json!({"apiGroup": "rbac.authorization.k8s.io", "kind": role_kind, "name": role});
        let subjects = self.subjects()?;
        if !subjects.is_empty() {
            binding["subjects"] = subjects.into();
        }
        make::make(cx, &self.flags, binding).await
    }

    fn subjects(&self) -> Result<Vec<Value>> {
        let plain = |kind: &'static str| move |name: &String| json!({"apiGroup": "rbac.authorization.k8s.io", "kind": kind, "name": name});
        let mut all: Vec<Value> = self.user.iter().map(plain("User")).collect();
        all.extend(self.group.iter().map(plain("Group")));
        for account in &self.serviceaccount {
            let (namespace, name) = account
                .split_once(':')
                .filter(|(namespace, name)| !namespace.is_empty() && !name.is_empty())
                .with_context(|| format!("serviceaccount must be <namespace>:<name>, got {account:?}"))?;
            all.push(json!({"kind": "ServiceAccount", "name": name, "namespace": namespace}));
        }
        Ok(all)
    }
}

#[derive(Clone, Debug, clap::Args)]
pub(super) struct Token {
    /// The service account
    name: String,
    /// How long it is to be good, in seconds
    #[arg(long, value_name = "SECONDS")]
    duration: Option<u64>,
    /// Who it is to be shown to
    #[arg(long)]
    audience: Vec<String>,
}

impl Token {
    pub(super) async fn run(self, cx: &Context) -> Result<()> {
        let api = Api::new(cx.client().await?);
        let mut spec = json!({"audiences": self.audience});
        if let Some(seconds) = self.duration {
            spec["expirationSeconds"] = json!(seconds);
        }
        let request = json!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": spec});
        let path =
            format!("/api/v1/namespaces/{}/serviceaccounts/{}/token", api.default_namespace(), self.name);
        let answer = api.send(Method::POST, &path, &request).await?;
        cx.out.line(answer["status"]["token"].as_str().context("the server sent no token")?);
        Ok(())
    }
}
