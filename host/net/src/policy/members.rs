//! Pods by address, in parts: a change of one pod copies one part of many, and whoever holds the former state keeps it.

use std::{collections::HashMap, net::IpAddr, sync::Arc};

use super::table::Member;

/// How many parts there are.
const PARTS: usize = 256;

type Part = HashMap<IpAddr, Arc<Member>>;

/// Pods by address. Copies are cheap.
#[derive(Clone, Debug)]
pub(super) struct Members {
    parts: Arc<[Arc<Part>]>,
}

impl Default for Members {
    fn default() -> Self {
        let empty: Arc<Part> = Arc::default();
        Self { parts: (0..PARTS).map(|_| empty.clone()).collect() }
    }
}

impl Members {
    pub(super) fn get(&self, address: IpAddr) -> Option<&Arc<Member>> {
        self.parts[part_of(address)].get(&address)
    }

    pub(super) fn insert(&mut self, address: IpAddr, member: Arc<Member>) {
        self.part(address).insert(address, member);
    }

    pub(super) fn remove(&mut self, address: IpAddr) {
        if self.get(address).is_some() {
            self.part(address).remove(&address);
        }
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (&IpAddr, &Arc<Member>)> {
        self.parts.iter().flat_map(|part| part.iter())
    }

    fn part(&mut self, address: IpAddr) -> &mut Part {
        Arc::make_mut(&mut Arc::make_mut(&mut self.parts)[part_of(address)])
    }
}

/// Neighbouring addresses are in different parts.
fn part_of(address: IpAddr) -> usize {
    let last = match address {
        IpAddr::V4(ip) => ip.octets()[3],
        IpAddr::V6(ip) => ip.octets()[15],
    };
    usize::from(last) % PARTS
}
