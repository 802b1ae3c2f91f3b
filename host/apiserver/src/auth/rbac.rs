//! Role based access control: who is bound to which rules.
//!
//! An immutable index by subject is made from the caches of roles and bindings and swapped whole when one of them
//! has changed; a decision takes no lock.

use std::{collections::HashMap, sync::Arc};

use arc_swap::ArcSwap;
use parking_lot::Mutex;
use serde::Deserialize;

use super::{
    rules::{Attributes, Rule},
    user::User,
};
use crate::cache::{Cache, Caches, Entry, Filter};

const GROUP: &str = "rbac.authorization.k8s.io";

#[derive(Deserialize, Default)]
#[serde(default)]
struct RoleFields {
    rules: Option<Vec<Rule>>,
}

#[derive(Clone, Debug, Deserialize, Default, PartialEq, Eq, Hash)]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct RoleRef {
    pub(crate) kind: String,
    pub(crate) name: String,
}

#[derive(Deserialize, Default)]
#[serde(default, rename_all = "camelCase")]
struct BindingFields {
    subjects: Option<Vec<Subject>>,
    role_ref: RoleRef,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Subject {
    kind: String,
    name: String,
    namespace: String,
}

/// A binding of one subject, as decisions see it.
#[derive(Debug)]
struct Grant {
    role: RoleRef,
    rules: Option<Arc<Vec<Rule>>>,
    /// What is said of a request that it allows.
    reason: Arc<str>,
}

/// Rules of roles by namespace and name.
type Roles = HashMap<(Box<str>, Box<str>), Arc<Vec<Rule>>>;

#[derive(Default)]
struct Index {
    counts: [u64; 4],
    users: HashMap<Box<str>, Grants>,
    groups: HashMap<Box<str>, Grants>,
}

/// What one subject was granted.
#[derive(Default)]
struct Grants {
    everywhere: Vec<Arc<Grant>>,
    within: HashMap<Box<str>, Vec<Arc<Grant>>>,
}

impl Grants {
    /// Those that count in a namespace (empty: in the whole cluster).
    fn of(&self, namespace: &str) -> impl Iterator<Item = &Arc<Grant>> {
        self.everywhere.iter().chain(self.within.get(namespace).into_iter().flatten())
    }
}

/// A decision with its reason.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Decision {
    /// Whether it is allowed.
    pub(crate) allowed: bool,
    /// Whether it is refused for good: then nobody else is asked.
    pub(crate) denied: bool,
    /// Why, or what went wrong on the way.
    pub(crate) reason: Arc<str>,
}

impl Decision {
    /// Allowed.
    pub(crate) fn allow(reason: impl Into<Arc<str>>) -> Self {
        Self { allowed: true, denied: false, reason: reason.into() }
    }

    /// Neither allowed nor refused for good.
    pub(crate) fn no_opinion(reason: impl Into<Arc<str>>) -> Self {
        Self { allowed: false, denied: false, reason: reason.into() }
    }
}

/// The authorizer of RBAC.
pub(crate) struct Rbac {
    roles: Arc<Cache>,
    cluster_roles: Arc<Cache>,
    bindings: Arc<Cache>,
    cluster_bindings: Arc<Cache>,
    index: ArcSwap<Index>,
    building: Mutex<()>,
}

impl Rbac {
    /// Over those caches.
    pub(crate) fn new(caches: &Caches) -> Self {
        let cache = |plural: &str| caches.of(&format!("{GROUP}/{plural}"));
        Self {
            roles: cache("roles"),
            cluster_roles: cache("clusterroles"),
            bindings: cache("rolebindings"),
            cluster_bindings: cache("clusterrolebindings"),
            index: ArcSwap::from_pointee(Index { counts: [u64::MAX; 4], ..Index::default() }),
            building: Mutex::new(()),
        }
    }

    fn counts(&self) -> [u64; 4] {
        [&self.roles, &self.cluster_roles, &self.bindings, &self.cluster_bindings].map(|c| c.count())
    }

    fn index(&self) -> Arc<Index> {
        let now = self.counts();
        let index = self.index.load_full();
        if index.counts == now {
            return index;
        }
        let _one = self.building.lock();
        let now = self.counts();
        let index = self.index.load_full();
        if index.counts == now {
            return index;
        }
        let fresh = Arc::new(self.build(now));
        self.index.store(fresh.clone());
        fresh
    }

    fn build(&self, counts: [u64; 4]) -> Index {
        let everything = Filter::default();
        let read_roles = |cache: &Cache| -> Roles {
            cache
                .list(&everything)
                .iter()
                .map(|e| ((e.namespace.clone(), e.name.clone()), Arc::new(rules_of(e))))
                .collect()
        };
        let (roles, cluster_roles) = (read_roles(&self.roles), read_roles(&self.cluster_roles));
        let mut index = Index { counts, ..Index::default() };
        let bindings =
            self.cluster_bindings.list(&everything).into_iter().chain(self.bindings.list(&everything));
        for entry in bindings {
            let Ok(fields) = serde_json::from_slice::<BindingFields>(entry.stored()) else { continue };
            let role = fields.role_ref;
            let rules = if role.kind == "ClusterRole" {
                cluster_roles.get(&(Box::default(), role.name.as_str().into())).cloned()
            } else {
                roles.get(&(entry.namespace.clone(), role.name.as_str().into())).cloned()
            };
            for subject in fields.subjects.into_iter().flatten() {
                index.add(&entry, &subject, &role, rules.clone());
            }
        }
        index
    }

    /// Decides.
    pub(crate) fn authorize(&self, user: &User, asked: &Attributes<'_>) -> Decision {
        let index = self.index();
        let mut broken = Vec::new();
        for grant in index.grants(user, asked.namespace) {
            match &grant.rules {
                Some(rules) if rules.iter().any(|r| r.allows(asked)) => {
                    return Decision::allow(grant.reason.clone());
                }
                Some(_) => {}
                None => {
                    broken.push(format!("{} {:?} not found", missing_role(&grant.role.kind), grant.role.name))
                }
            }
        }
        broken.dedup();
        let reason = match broken.len() {
            0 => String::new(),
            1 => format!("RBAC: {}", broken[0]),
            _ => format!("RBAC: [{}]", broken.join(", ")),
        };
        Decision::no_opinion(reason)
    }

    /// Every rule somebody has in a namespace (empty: in the whole cluster), and what could not be resolved.
    pub(crate) fn rules(&self, user: &User, namespace: &str) -> (Vec<Rule>, Vec<String>) {
        let index = self.index();
        let (mut all, mut broken) = (Vec::new(), Vec::new());
        for grant in index.grants(user, namespace) {
            match &grant.rules {
                Some(rules) => all.extend(rules.iter().cloned()),
                None => {
                    broken.push(format!("{} {:?} not found", missing_role(&grant.role.kind), grant.role.name))
                }
            }
        }
        (all, broken)
    }

    /// The rules of the role a binding in `namespace` refers to; `None` when there is no such role.
    pub(crate) fn role_rules(&self, namespace: &str, role: &RoleRef) -> Option<Vec<Rule>> {
        let entry = if role.kind == "ClusterRole" {
            self.cluster_roles.get(&role.name)
        } else {
            self.roles.get(&format!("{namespace}/{}", role.name))
        };
        entry.map(|e| rules_of(&e))
    }
}

fn rules_of(entry: &Entry) -> Vec<Rule> {
    serde_json::from_slice::<RoleFields>(entry.stored()).ok().and_then(|r| r.rules).unwrap_or_default()
}

fn missing_role(kind: &str) -> String {
    format!("{}.{GROUP}", if kind == "ClusterRole" { "clusterrole" } else { "role" })
}

impl Index {
    fn add(&mut self, entry: &Entry, subject: &Subject, role: &RoleRef, rules: Option<Arc<Vec<Rule>>>) {
        let kind = if entry.namespace.is_empty() { "ClusterRoleBinding" } else { "RoleBinding" };
        let binding = if entry.namespace.is_empty() {
            format!("{kind} {:?}", entry.name)
        } else {
            format!("{kind} {:?}", format!("{}/{}", entry.name, entry.namespace))
        };
        let (map, name, via) = match &*subject.kind {
            "User" => (&mut self.users, subject.name.clone(), format!("User {:?}", subject.name)),
            "Group" => (&mut self.groups, subject.name.clone(), format!("Group {:?}", subject.name)),
            "ServiceAccount" => {
                let namespace =
                    if subject.namespace.is_empty() { &entry.namespace } else { subject.namespace.as_str() };
                let via = format!("ServiceAccount {:?}", format!("{}/{namespace}", subject.name));
                (&mut self.users, User::service_account(namespace, &subject.name).name, via)
            }
            _ => return,
        };
        let reason = format!("RBAC: allowed by {binding} of {} {:?} to {via}", role.kind, role.name);
        let grant = Arc::new(Grant { role: role.clone(), rules, reason: reason.into() });
        let grants = map.entry(name.into_boxed_str()).or_default();
        match entry.namespace.is_empty() {
            true => grants.everywhere.push(grant),
            false => grants.within.entry(entry.namespace.clone()).or_default().push(grant),
        }
    }

    fn grants<'a>(&'a self, user: &'a User, namespace: &'a str) -> impl Iterator<Item = &'a Arc<Grant>> {
        let by_group = user.groups.iter().filter_map(|g| self.groups.get(&**g));
        self.users.get(&*user.name).into_iter().chain(by_group).flat_map(move |g| g.of(namespace))
    }
}
