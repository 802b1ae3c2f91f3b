//! Host → split → revision. Read without a lock; a change touches only the hosts it is about.
//!
//! The hosts stand in shards, each an immutable map that is swapped whole: one route's change copies a few dozen
//! entries, however many routes there are.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use arc_swap::{ArcSwap, ArcSwapOption};
use kube::ResourceExt;
use parking_lot::Mutex;
use wasmk_api::knative::{DomainMapping, Route};

use crate::{
    cache::key_of,
    config::Config,
    domain_mapping::leads_to_route,
    fleet::{Fleet, Key, Member},
    rollout::Rollouts,
    route::Hosts,
};

/// Shards of the table.
const SHARDS: usize = 256;

type Shard = HashMap<Arc<str>, Arc<Site>>;

/// A revision that requests go to.
#[derive(Debug)]
pub struct Target {
    key: Key,
    /// Found at the first request and kept until its revision is gone.
    member: ArcSwapOption<Member>,
}

impl std::fmt::Debug for Member {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Member({})", self.key)
    }
}

impl Target {
    fn new(key: Key) -> Self {
        Self { key, member: ArcSwapOption::empty() }
    }

    /// Which revision.
    pub fn key(&self) -> &Key {
        &self.key
    }

    /// The revision, if it is known yet.
    pub fn member(&self, fleet: &Fleet) -> Option<Arc<Member>> {
        if let Some(member) = &*self.member.load()
            && !member.is_gone()
        {
            return Some(member.clone());
        }
        let member = fleet.get(&self.key);
        self.member.store(member.clone());
        member
    }
}

/// Where a host's requests go.
#[derive(Debug)]
pub struct Site {
    /// Revisions with the upper end of their share, rising to the last one's.
    splits: Vec<(u32, Arc<Target>)>,
    /// Revisions by tag, for requests that name one in a header.
    tags: Vec<(String, Arc<Target>)>,
}

impl Site {
    fn new(shares: impl IntoIterator<Item = (u32, Arc<Target>)>) -> Option<Self> {
        let mut sum = 0_u32;
        let mut splits = Vec::new();
        for (share, target) in shares {
            if share > 0 {
                sum = sum.saturating_add(share);
                splits.push((sum, target));
            }
        }
        splits.shrink_to_fit();
        (!splits.is_empty()).then_some(Self { splits, tags: Vec::new() })
    }

    /// The revision for a draw from all 32-bit numbers.
    pub fn pick(&self, draw: u32) -> &Target {
        let (last, rest) = self.splits.split_last().expect("a site has a revision");
        let point = (u64::from(draw) * u64::from(last.0)) >> 32;
        rest.iter().find(|(end, _)| point < u64::from(*end)).map_or(&last.1, |(_, target)| target)
    }

    /// Whether all requests go to one revision.
    pub fn only(&self) -> Option<&Target> {
        match &self.splits[..] {
            [(_, only)] => Some(only),
            _ => None,
        }
    }

    /// The revision of a tag.
    pub fn tagged(&self, tag: &str) -> Option<&Target> {
        self.tags.iter().find(|(name, _)| name == tag).map(|(_, target)| &**target)
    }
}

/// Who claims hosts: objects of the API, by kind, namespace and name.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Source {
    kind: &'static str,
    namespace: String,
    name: String,
}

impl Source {
    /// A Route.
    pub fn route(route: &Route) -> Self {
        Self::route_at(&key_of(route))
    }

    /// The Route of that key.
    pub(crate) fn route_at(key: &Key) -> Self {
        Self { kind: "Route", namespace: key.namespace.clone(), name: key.name.clone() }
    }

    /// The DomainMapping of that key.
    pub(crate) fn mapping_at(key: &Key) -> Self {
        Self { kind: "DomainMapping", namespace: key.namespace.clone(), name: key.name.clone() }
    }
}

/// The hosts of one object, and since when it is there: of two that claim a host the first has it.
#[derive(Debug, Default)]
pub struct Claim {
    since: Box<str>,
    hosts: Box<[(Arc<str>, Arc<Site>)]>,
}

impl Claim {
    fn new(since: String, hosts: impl IntoIterator<Item = (String, Arc<Site>)>) -> Self {
        let hosts = hosts.into_iter().map(|(host, site)| (host.into(), site)).collect();
        Self { since: since.into(), hosts }
    }

    fn site(&self, host: &str) -> Option<&Arc<Site>> {
        self.hosts.iter().find(|(name, _)| **name == *host).map(|(_, site)| site)
    }
}

/// All hosts.
pub struct Table {
    shards: Box<[ArcSwap<Shard>]>,
    claims: Mutex<Claims>,
}

#[derive(Default)]
struct Claims {
    by_source: HashMap<Arc<Source>, Claim>,
    by_host: HashMap<Arc<str>, Claimants>,
}

/// Who claims a host: mostly one.
struct Claimants {
    one: Arc<Source>,
    others: Vec<Arc<Source>>,
}

impl Default for Table {
    fn default() -> Self {
        let shards = (0..SHARDS).map(|_| ArcSwap::default()).collect();
        Self { shards, claims: Mutex::default() }
    }
}

impl Table {
    /// The site of a host name (see [`request_host`](crate::names::request_host)).
    pub fn find(&self, host: &str) -> Option<Arc<Site>> {
        self.shards[shard(host)].load().get(host).cloned()
    }

    /// Takes what some objects claim now; nothing for those that are gone.
    pub fn set(&self, changes: impl IntoIterator<Item = (Source, Option<Claim>)>) {
        let mut claims = self.claims.lock();
        let mut touched: BTreeMap<usize, Vec<Arc<str>>> = BTreeMap::new();
        for (source, claim) in changes {
            for host in claims.replace(source, claim) {
                touched.entry(shard(&host)).or_default().push(host);
            }
        }
        for (index, hosts) in touched {
            let mut map = Shard::clone(&self.shards[index].load());
            for host in hosts {
                match claims.holder(&host) {
                    Some(site) => map.insert(host, site),
                    None => map.remove(&*host),
                };
            }
            self.shards[index].store(Arc::new(map));
        }
    }

    /// Forgets the sources that `keep` refuses.
    pub fn retain(&self, keep: impl Fn(&Source) -> bool) {
        let gone: Vec<Source> = {
            let claims = self.claims.lock();
            claims.by_source.keys().filter(|source| !keep(source)).map(|source| (**source).clone()).collect()
        };
        self.set(gone.into_iter().map(|source| (source, None)));
    }

    /// How many hosts there are.
    pub fn len(&self) -> usize {
        self.shards.iter().map(|shard| shard.load().len()).sum()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl Claims {
    /// Puts a claim in the place of the source's last one; returns the hosts either is about.
    fn replace(&mut self, source: Source, claim: Option<Claim>) -> Vec<Arc<str>> {
        let mut hosts = Vec::new();
        if let Some((source, old)) = self.by_source.remove_entry(&source) {
            for (host, _) in old.hosts {
                self.give_up(&host, &source);
                hosts.push(host);
            }
        }
        if let Some(claim) = claim {
            let source = Arc::new(source);
            for (host, _) in &claim.hosts {
                self.lay_claim(host, &source);
                hosts.push(host.clone());
            }
            self.by_source.insert(source, claim);
        }
        hosts
    }

    fn lay_claim(&mut self, host: &Arc<str>, source: &Arc<Source>) {
        match self.by_host.get_mut(host) {
            Some(claimants) if claimants.all().any(|known| known == source) => {}
            Some(claimants) => claimants.others.push(source.clone()),
            None => {
                let claimants = Claimants { one: source.clone(), others: Vec::new() };
                self.by_host.insert(host.clone(), claimants);
            }
        }
    }

    fn give_up(&mut self, host: &Arc<str>, source: &Arc<Source>) {
        let Some(claimants) = self.by_host.get_mut(host) else { return };
        claimants.others.retain(|other| other != source);
        if claimants.one == *source {
            match claimants.others.pop() {
                Some(other) => claimants.one = other,
                None => drop(self.by_host.remove(host)),
            }
        }
    }

    /// The site of who claimed a host first.
    fn holder(&self, host: &str) -> Option<Arc<Site>> {
        let claims = self.by_host.get(host)?.all().filter_map(|source| {
            let claim = self.by_source.get(source)?;
            Some((&claim.since, source, claim.site(host)?))
        });
        claims.min_by_key(|(since, source, _)| (*since, *source)).map(|(_, _, site)| site.clone())
    }
}

impl Claimants {
    fn all(&self) -> impl Iterator<Item = &Arc<Source>> {
        std::iter::once(&self.one).chain(&self.others)
    }
}

/// FNV-1a: short names, and nothing to defend against, as an attacker cannot choose the shards' number.
fn shard(host: &str) -> usize {
    let step = |hash: u32, byte: u8| (hash ^ u32::from(byte)).wrapping_mul(16_777_619);
    host.bytes().fold(2_166_136_261, step) as usize % SHARDS
}

/// The hosts of a route: its own and one per tag, inside the cluster and, unless kept local, outside.
pub(crate) fn of_route(route: &Route, config: &Config) -> Claim {
    let names = Hosts::of(route, config);
    let mut hosts = Vec::new();
    for (tag, site) in sites(route) {
        let inside = names.inside(&tag);
        let short = inside.strip_suffix(".cluster.local").unwrap_or_default().to_string();
        hosts.extend([inside, short].map(|host| (host, site.clone())));
        hosts.extend(names.outside(&tag).map(|host| (host.to_ascii_lowercase(), site)));
    }
    Claim::new(since(&route.metadata), hosts)
}

/// The host of a mapping, leading where its route's requests go.
pub(crate) fn of_mapping(mapping: &DomainMapping, route: Option<&Route>) -> Option<Claim> {
    let route = route.filter(|_| leads_to_route(&mapping.spec.reference))?;
    let (_, site) = sites(route).into_iter().find(|(tag, _)| tag.is_empty())?;
    Some(Claim::new(since(&mapping.metadata), [(mapping.name_any(), site)]))
}

fn since(metadata: &k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta) -> String {
    metadata.creation_timestamp.as_ref().map(|t| t.0.to_string()).unwrap_or_default()
}

/// The site of a route (no tag) and those of its tags.
fn sites(route: &Route) -> Vec<(String, Arc<Site>)> {
    let Some(status) = &route.status else { return Vec::new() };
    let namespace = route.namespace().unwrap_or_default();
    let rollouts = Rollouts::of(route);
    let mut known: HashMap<String, Arc<Target>> = HashMap::new();
    let mut target = |name: &str| {
        let made = || Arc::new(Target::new(Key::new(&*namespace, name)));
        known.entry(name.to_string()).or_insert_with(made).clone()
    };
    let mut shares = Vec::new();
    let mut tags = Vec::new();
    for one in status.traffic.iter().filter(|t| t.revision_name.is_some()) {
        shares.extend(rollouts.weights(one).into_iter().map(|(name, weight)| (weight, target(&name))));
        if !one.tag.is_empty() {
            tags.push((one.tag.clone(), target(one.revision_name.as_deref().unwrap_or(""))));
        }
    }
    let mut named = Vec::new();
    if let Some(site) = Site::new(shares) {
        named.push((String::new(), Arc::new(Site { tags: tags.clone(), ..site })));
    }
    let tagged =
        tags.into_iter().filter_map(|(tag, target)| Some((tag, Arc::new(Site::new([(100, target)])?))));
    named.extend(tagged);
    named
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn route(name: &str, traffic: Value, labels: Value) -> Route {
        serde_json::from_value(json!({
            "metadata": {"name": name, "namespace": "default", "labels": labels},
            "spec": {}, "status": {"traffic": traffic},
        }))
        .unwrap()
    }

    fn put(table: &Table, route: &Route) {
        table.set([(Source::route(route), Some(of_route(route, &Config::new("example.com"))))]);
    }

    fn table(traffic: Value, labels: Value) -> Table {
        let table = Table::default();
        put(&table, &route("hello", traffic, labels));
        table
    }

    fn share(table: &Table, host: &str, revision: &str) -> usize {
        let site = table.find(host).unwrap();
        (0..1000_u32).filter(|i| site.pick(i * (u32::MAX / 1000)).key().name == revision).count()
    }

    #[test]
    fn traffic_is_split_by_percent_and_tags_have_hosts() {
        let table = table(
            json!([{"revisionName": "a", "percent": 90}, {"revisionName": "b", "percent": 10, "tag": "new"}]),
            json!({}),
        );
        let host = "hello.default.example.com";
        assert!((895..=905).contains(&share(&table, host, "a")));
        assert_eq!(share(&table, host, "a") + share(&table, host, "b"), 1000);
        assert_eq!(share(&table, "new-hello.default.example.com", "b"), 1000);
        let site = table.find(host).unwrap();
        assert_eq!(site.pick(u32::MAX).key().name, "b");
        assert_eq!(site.tagged("new").unwrap().key().name, "b");
        assert!(site.tagged("old").is_none() && site.only().is_none());
    }

    #[test]
    fn unknown_and_local_hosts_are_not_found() {
        let traffic = json!([{"revisionName": "a", "percent": 100}]);
        let open = table(traffic.clone(), json!({}));
        assert!(open.find("nobody.default.example.com").is_none());
        let local = table(traffic, json!({"networking.knative.dev/visibility": "cluster-local"}));
        assert!(local.find("hello.default.example.com").is_none());
        assert!(local.find("hello.default.svc.cluster.local").is_some());
        assert!(local.find("hello.default.svc").is_some());
    }

    #[test]
    fn no_share_no_host() {
        assert!(table(json!([{"revisionName": "a", "percent": 0}]), json!({})).is_empty());
    }

    #[test]
    fn changes_touch_only_their_own_hosts() {
        let table = table(json!([{"revisionName": "a", "percent": 100}]), json!({}));
        let host = "hello.default.example.com";
        let before = table.find(host).unwrap();
        put(&table, &route("other", json!([{"revisionName": "o", "percent": 100}]), json!({})));
        assert!(Arc::ptr_eq(&before, &table.find(host).unwrap()));
        put(&table, &route("hello", json!([{"revisionName": "b", "percent": 100}]), json!({})));
        assert_eq!(table.find(host).unwrap().only().unwrap().key().name, "b");
        table.retain(|source| source.name == "other");
        assert!(table.find(host).is_none());
        assert_eq!(table.len(), 3);
    }

    #[test]
    fn the_first_keeps_a_host_until_it_goes() {
        let table = Table::default();
        let mapping = |namespace: &str, since: &str| -> DomainMapping {
            serde_json::from_value(json!({
                "metadata": {"name": "x.example.org", "namespace": namespace, "creationTimestamp": since},
                "spec": {"ref": {"kind": "Service", "name": "hello", "apiVersion": "serving.knative.dev/v1"}},
            }))
            .unwrap()
        };
        let route =
            |revision: &str| route("hello", json!([{"revisionName": revision, "percent": 100}]), json!({}));
        let (late, early) = (mapping("a", "2026-01-02T00:00:00Z"), mapping("b", "2026-01-01T00:00:00Z"));
        for (mapping, revision) in [(&late, "late"), (&early, "early")] {
            table.set([(Source::mapping_at(&key_of(mapping)), of_mapping(mapping, Some(&route(revision))))]);
        }
        let name = |table: &Table| table.find("x.example.org").unwrap().only().unwrap().key().name.clone();
        assert_eq!(name(&table), "early");
        table.set([(Source::mapping_at(&key_of(&early)), None)]);
        assert_eq!(name(&table), "late");
    }

    #[test]
    fn a_rollout_splits_a_target() {
        let mut one =
            route("hello", json!([{"revisionName": "b", "percent": 100, "latestRevision": true}]), json!({}));
        let moving =
            json!({"": {"to": "b", "share": 25, "from": [["a", 100]], "since": "2026-01-01T00:00:00Z"}});
        let key = wasmk_api::knative::ROLLOUT_ANNOTATION.to_string();
        one.metadata.annotations = Some([(key, moving.to_string())].into());
        let table = Table::default();
        put(&table, &one);
        assert!((245..=255).contains(&share(&table, "hello.default.example.com", "b")));
    }
}
