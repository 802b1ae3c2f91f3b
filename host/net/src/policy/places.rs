//! Where the pods of this node are, as the node itself says.

use std::{
    collections::{HashMap, HashSet},
    net::IpAddr,
    sync::Arc,
};

use super::{book::Key, table::Member};

/// Pods of this node by namespace and name, and by address.
#[derive(Debug, Default)]
pub(super) struct Places {
    by_pod: HashMap<Key, Placed>,
    by_address: HashMap<IpAddr, Key>,
    /// Addresses that others have since somebody last looked.
    pub(super) moved: HashSet<IpAddr>,
}

#[derive(Debug)]
struct Placed {
    uid: String,
    address: IpAddr,
    member: Arc<Member>,
}

impl Places {
    /// Gives an address to a pod, whoever had it, in place of the one it had.
    pub(super) fn put(&mut self, key: Key, uid: String, address: IpAddr, member: Arc<Member>) {
        if let Some(before) = self.by_pod.remove(&key) {
            self.vacate(&key, before.address);
        }
        self.by_address.insert(address, key.clone());
        self.by_pod.insert(key, Placed { uid, address, member });
        self.moved.insert(address);
    }

    /// Forgets a pod; whether it was here.
    pub(super) fn leave(&mut self, key: &Key, uid: &str) -> bool {
        if self.by_pod.get(key).is_none_or(|placed| placed.uid != uid) {
            return false;
        }
        if let Some(placed) = self.by_pod.remove(key) {
            self.vacate(key, placed.address);
        }
        true
    }

    /// Who is at an address.
    pub(super) fn of(&self, address: IpAddr) -> Option<(&Key, &Arc<Member>)> {
        let key = self.by_address.get(&address)?;
        Some((key, &self.by_pod.get(key)?.member))
    }

    /// Another pod may have the address already.
    fn vacate(&mut self, key: &Key, address: IpAddr) {
        if self.by_address.get(&address) == Some(key) {
            self.by_address.remove(&address);
        }
        self.moved.insert(address);
    }
}
