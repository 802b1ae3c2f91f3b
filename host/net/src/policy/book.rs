//! All that the table of policies is made of, and the table: what changes is looked at again, and nothing else.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use serde::{Deserialize, Serialize};
use wasmk_api::k8s_openapi::api::networking::v1::NetworkPolicy;

use super::{
    Places,
    delta::{Change, Delta},
    table::{Labels, Member, Table},
};

/// Namespace and name.
pub(super) type Key = (String, String);

/// The objects, as they were last seen, and what follows from them.
#[derive(Debug, Default)]
pub(super) struct Book {
    policies: HashMap<Key, Arc<NetworkPolicy>>,
    namespaces: HashMap<String, Labels>,
    pods: HashMap<Key, Arc<Member>>,
    /// Whose addresses they are, by what the API says: of several the one made last.
    holders: HashMap<IpAddr, Vec<Key>>,
    built_in: HashMap<SocketAddr, Arc<Member>>,
    table: Table,
    /// Addresses whose pod may be another than the table says.
    moved: HashSet<IpAddr>,
    /// More than pods has changed.
    anew: bool,
}

/// What is kept of it for the next start.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(super) struct Page {
    policies: Vec<Arc<NetworkPolicy>>,
    namespaces: BTreeMap<String, Labels>,
    /// With namespace and name.
    pub(super) pods: Vec<(Key, Arc<Member>)>,
    built_in: Vec<(SocketAddr, Arc<Member>)>,
}

impl Book {
    /// As it was when the page was written.
    pub(super) fn open(page: Page) -> Self {
        let mut book = Self::default();
        let named = |policy: Arc<NetworkPolicy>| {
            let meta = &policy.metadata;
            ((meta.namespace.clone().unwrap_or_default(), meta.name.clone().unwrap_or_default()), policy)
        };
        book.set_policies(page.policies.into_iter().map(named).collect());
        book.set_namespaces(page.namespaces.into_iter().collect());
        book.set_pods(page.pods.into_iter().collect());
        book.set_built_in(page.built_in.into_iter().collect());
        book
    }

    /// What is to be kept.
    pub(super) fn page(&self) -> Page {
        Page {
            policies: self.policies.values().cloned().collect(),
            namespaces: self.namespaces.clone().into_iter().collect(),
            pods: self.pods.iter().map(|(key, member)| (key.clone(), member.clone())).collect(),
            built_in: self.built_in.iter().map(|(at, member)| (*at, member.clone())).collect(),
        }
    }

    /// Whether there is any policy.
    pub(super) fn is_active(&self) -> bool {
        !self.policies.is_empty()
    }

    /// Whether an address is a pod's, as the API says.
    pub(super) fn has(&self, address: IpAddr) -> bool {
        self.holders.contains_key(&address)
    }

    pub(super) fn set_policies(&mut self, all: HashMap<Key, Arc<NetworkPolicy>>) {
        self.anew |= self.policies != all;
        self.policies = all;
    }

    pub(super) fn set_policy(&mut self, key: Key, policy: Option<Arc<NetworkPolicy>>) {
        self.anew |= put(&mut self.policies, key, policy).is_some();
    }

    pub(super) fn set_namespaces(&mut self, all: HashMap<String, Labels>) {
        self.anew |= self.namespaces != all;
        self.namespaces = all;
    }

    pub(super) fn set_namespace(&mut self, name: String, labels: Option<Labels>) {
        self.anew |= put(&mut self.namespaces, name, labels).is_some();
    }

    pub(super) fn set_built_in(&mut self, all: HashMap<SocketAddr, Arc<Member>>) {
        self.anew |= self.built_in != all;
        self.built_in = all;
    }

    pub(super) fn set_pods(&mut self, all: HashMap<Key, Arc<Member>>) {
        let gone: Vec<Key> = self.pods.keys().filter(|key| !all.contains_key(*key)).cloned().collect();
        for key in gone {
            self.set_pod(key, None);
        }
        for (key, member) in all {
            self.set_pod(key, Some(member));
        }
    }

    pub(super) fn set_pod(&mut self, key: Key, member: Option<Arc<Member>>) {
        let now = member.clone();
        let Some(before) = put(&mut self.pods, key.clone(), member) else { return };
        for address in before.iter().flat_map(|m| &m.addresses) {
            self.moved.insert(*address);
            if let Some(holders) = self.holders.get_mut(address) {
                holders.retain(|holder| *holder != key);
                if holders.is_empty() {
                    self.holders.remove(address);
                }
            }
        }
        for address in now.iter().flat_map(|m| &m.addresses) {
            self.moved.insert(*address);
            self.holders.entry(*address).or_default().push(key.clone());
        }
    }

    /// Brings the table up to date; it and what changed of it, if anything did.
    pub(super) fn commit(&mut self, places: &mut Places) -> Option<(Table, Delta)> {
        self.moved.extend(places.moved.drain());
        let changes = self.move_in(places);
        if std::mem::take(&mut self.anew) {
            self.table.set_policies(self.policies.values());
            self.table.set_namespaces(self.namespaces.clone());
            self.table.set_built_in(self.built_in.clone());
            return Some((self.table.clone(), Delta::All));
        }
        (!changes.is_empty()).then(|| (self.table.clone(), Delta::Members(changes)))
    }

    /// Gives the addresses that may have moved to those that have them.
    fn move_in(&mut self, places: &Places) -> Vec<Change> {
        let mut changes = Vec::new();
        for address in std::mem::take(&mut self.moved) {
            let (before, after) = (self.table.member(address).cloned(), self.owner(address, places));
            if before == after {
                continue;
            }
            match &after {
                Some(member) => self.table.place(address, member.clone()),
                None => self.table.vacate(address),
            }
            changes.push(Change { address, before, after });
        }
        changes
    }

    /// Whose address it is: the node knows its own pods before the API does, and the API knows their labels.
    fn owner(&self, address: IpAddr, places: &Places) -> Option<Arc<Member>> {
        if let Some((key, placed)) = places.of(address) {
            let known = self.pods.get(key).filter(|m| m.addresses.contains(&address));
            return Some(known.unwrap_or(placed).clone());
        }
        let holders = self.holders.get(&address)?.iter().filter_map(|key| self.pods.get(key));
        holders.max_by_key(|member| member.made).cloned()
    }
}

/// Puts or removes a value; what was there before, unless it is the same.
fn put<K, V>(all: &mut HashMap<K, V>, key: K, value: Option<V>) -> Option<Option<V>>
where
    K: std::hash::Hash + Eq,
    V: PartialEq,
{
    if all.get(&key) == value.as_ref() {
        return None;
    }
    Some(match value {
        Some(value) => all.insert(key, value),
        None => all.remove(&key),
    })
}
