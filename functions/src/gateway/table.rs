//! Host → split → revision: one immutable table, swapped whole when a route changes.

use std::{collections::HashMap, sync::Arc};

use kube::ResourceExt;
use wasmk_api::knative::{Route, VISIBILITY_LABEL, label};

use crate::{
    fleet::Key,
    names::{self, CLUSTER_DOMAIN},
};

/// Where a host's requests go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Site {
    /// Revisions with the upper end of their share, rising to the last one's.
    splits: Vec<(u32, Key)>,
}

impl Site {
    fn new(shares: impl IntoIterator<Item = (u32, Key)>) -> Option<Self> {
        let mut sum = 0_u32;
        let mut splits = Vec::new();
        for (share, key) in shares {
            if share > 0 {
                sum = sum.saturating_add(share);
                splits.push((sum, key));
            }
        }
        (!splits.is_empty()).then_some(Self { splits })
    }

    /// The revision for a draw from all 32-bit numbers.
    pub fn pick(&self, draw: u32) -> &Key {
        let (last, rest) = self.splits.split_last().expect("a site has a revision");
        let point = (u64::from(draw) * u64::from(last.0)) >> 32;
        rest.iter().find(|(end, _)| point < u64::from(*end)).map_or(&last.1, |(_, key)| key)
    }
}

/// All hosts.
#[derive(Clone, Debug, Default)]
pub struct Table {
    hosts: HashMap<String, Arc<Site>>,
}

impl Table {
    /// The table of these routes. `domain` is the suffix of hosts reached from outside. Where two routes
    /// claim a host, the one that was there first keeps it.
    pub fn of<'a>(routes: impl IntoIterator<Item = &'a Route>, domain: &str) -> Self {
        let mut routes: Vec<&Route> = routes.into_iter().collect();
        routes.sort_by_key(|r| (r.metadata.creation_timestamp.clone(), r.namespace(), r.name_any()));
        let mut hosts = HashMap::new();
        for route in routes {
            for (host, site) in sites(route, domain) {
                hosts.entry(host).or_insert_with(|| Arc::new(site));
            }
        }
        Self { hosts }
    }

    /// The site of a host name (see [`names::request_host`]).
    pub fn find(&self, host: &str) -> Option<&Arc<Site>> {
        self.hosts.get(host)
    }

    /// How many hosts there are.
    pub fn len(&self) -> usize {
        self.hosts.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.hosts.is_empty()
    }
}

/// The hosts of one route: its own and one per tag, inside the cluster and, unless kept local, outside.
fn sites(route: &Route, domain: &str) -> Vec<(String, Site)> {
    let Some(status) = &route.status else { return Vec::new() };
    let (name, namespace) = (route.name_any(), route.namespace().unwrap_or_default());
    let key = |revision: &Option<String>| Some(Key::new(&*namespace, revision.clone()?));
    let shares = status
        .traffic
        .iter()
        .filter_map(|t| Some((u32::try_from(t.percent.unwrap_or(0)).unwrap_or(0), key(&t.revision_name)?)));
    let mut named: Vec<(&str, Site)> = Site::new(shares).map(|site| ("", site)).into_iter().collect();
    for target in status.traffic.iter().filter(|t| !t.tag.is_empty()) {
        let site = key(&target.revision_name).and_then(|key| Site::new([(100, key)]));
        named.extend(site.map(|site| (target.tag.as_str(), site)));
    }
    let local = label(&route.metadata, VISIBILITY_LABEL) == Some("cluster-local");
    let mut hosts = Vec::new();
    for (tag, site) in named {
        for suffix in [CLUSTER_DOMAIN, "svc"] {
            hosts.push((names::host(&name, tag, &namespace, suffix), site.clone()));
        }
        if !local {
            hosts.push((names::host(&name, tag, &namespace, domain), site));
        }
    }
    hosts
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn table(traffic: Value, labels: Value) -> Table {
        let route: Route = serde_json::from_value(json!({
            "metadata": {"name": "hello", "namespace": "default", "labels": labels},
            "spec": {}, "status": {"traffic": traffic},
        }))
        .unwrap();
        Table::of([&route], "example.com")
    }

    fn share(table: &Table, host: &str, revision: &str) -> usize {
        let site = table.find(host).unwrap();
        (0..1000_u32).filter(|i| site.pick(i * (u32::MAX / 1000)).name == revision).count()
    }

    #[test]
    fn traffic_is_split_by_percent() {
        let traffic =
            json!([{"revisionName": "a", "percent": 90}, {"revisionName": "b", "percent": 10, "tag": "new"}]);
        let table = table(traffic, json!({}));
        let host = "hello.default.example.com";
        assert!((895..=905).contains(&share(&table, host, "a")));
        assert_eq!(share(&table, host, "a") + share(&table, host, "b"), 1000);
        assert_eq!(share(&table, "new-hello.default.example.com", "b"), 1000);
        assert_eq!(table.find(host).unwrap().pick(u32::MAX).name, "b");
    }

    #[test]
    fn unknown_and_local_hosts_are_not_found() {
        let traffic = json!([{"revisionName": "a", "percent": 100}]);
        let open = table(traffic.clone(), json!({}));
        assert!(open.find("nobody.default.example.com").is_none());
        let local = table(traffic, json!({"networking.knative.dev/visibility": "cluster-local"}));
        assert!(local.find("hello.default.example.com").is_none());
        assert!(local.find("hello.default.svc.cluster.local").is_some());
    }

    #[test]
    fn no_share_no_host() {
        assert!(table(json!([{"revisionName": "a", "percent": 0}]), json!({})).is_empty());
    }
}
