//! Gives each pod an address of its own out of the node's range.

use std::{collections::HashMap, net::Ipv4Addr};

use fixedbitset::FixedBitSet;
use parking_lot::Mutex;
use thiserror::Error;

/// Why there is no address.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum PoolError {
    /// The text is not an IPv4 range.
    #[error("pod range \"{0}\" is not of the form 127.42.0.0/24")]
    Range(String),
    /// Every address is in use.
    #[error("all {0} addresses of the node's pod range are in use")]
    Full(usize),
}

/// The addresses of one node. Which owner has which address is remembered by the owners'
/// own records on disk: after a restart each claims its address before new ones are taken,
/// so no address can be left behind by a pod that is gone.
pub struct AddressPool {
    first: u32,
    size: u32,
    inner: Mutex<Inner>,
}

#[derive(Default)]
struct Inner {
    by_owner: HashMap<String, u32>,
    /// By the addresses' distance from the first.
    used: FixedBitSet,
}

impl AddressPool {
    /// All addresses of a range but the first (the network) and the last (broadcast).
    ///
    /// # Errors
    /// When the range cannot be read or holds less than four addresses.
    pub fn new(cidr: &str) -> Result<Self, PoolError> {
        let (network, count) = range(cidr).ok_or_else(|| PoolError::Range(cidr.into()))?;
        Ok(Self { first: network + 1, size: count - 2, inner: Mutex::default() })
    }

    /// Number of addresses, used or not.
    pub fn size(&self) -> usize {
        self.size as usize
    }

    /// The owner's address: the one it has, else the lowest free one.
    ///
    /// # Errors
    /// [`PoolError::Full`].
    pub fn take(&self, owner: &str) -> Result<Ipv4Addr, PoolError> {
        let mut inner = self.inner.lock();
        if let Some(offset) = inner.by_owner.get(owner) {
            return Ok(Ipv4Addr::from(self.first + offset));
        }
        let free = inner.used.zeroes().next().unwrap_or(inner.used.len());
        // A range has at most 2^24 addresses.
        let offset = free as u32;
        if offset >= self.size {
            return Err(PoolError::Full(self.size()));
        }
        inner.used.grow_and_insert(free);
        inner.by_owner.insert(owner.into(), offset);
        Ok(Ipv4Addr::from(self.first + offset))
    }

    /// Takes a certain address; `false` when it is another's or not of this range.
    pub fn claim(&self, ip: Ipv4Addr, owner: &str) -> bool {
        let Some(offset) = u32::from(ip).checked_sub(self.first).filter(|o| *o < self.size) else {
            return false;
        };
        let mut inner = self.inner.lock();
        if let Some(had) = inner.by_owner.get(owner) {
            return *had == offset;
        }
        if inner.used.contains(offset as usize) {
            return false;
        }
        inner.used.grow_and_insert(offset as usize);
        inner.by_owner.insert(owner.into(), offset);
        true
    }

    /// Frees the owner's address, if it has one.
    pub fn give_back(&self, owner: &str) {
        let mut inner = self.inner.lock();
        if let Some(offset) = inner.by_owner.remove(owner) {
            inner.used.remove(offset as usize);
        }
    }

    /// Number of addresses in use.
    pub fn used(&self) -> usize {
        self.inner.lock().by_owner.len()
    }
}

/// The first address of a range and how many it has.
fn range(cidr: &str) -> Option<(u32, u32)> {
    let (base, bits) = cidr.split_once('/')?;
    let base: Ipv4Addr = base.parse().ok()?;
    let bits: u32 = bits.parse().ok().filter(|bits| (8..=30).contains(bits))?;
    let count = 1_u32 << (32 - bits);
    Some((u32::from(base) & !(count - 1), count))
}

/// The last address of a range, which a pool of it does not give to anyone; `None` when it is no range.
pub fn last_address(cidr: &str) -> Option<Ipv4Addr> {
    range(cidr).map(|(network, count)| Ipv4Addr::from(network + (count - 1)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lowest_free_first() {
        let pool = AddressPool::new("127.42.3.0/29").unwrap();
        let ip = |last| Ipv4Addr::new(127, 42, 3, last);
        for (owner, last) in [("a", 1), ("b", 2), ("a", 1), ("c", 3)] {
            assert_eq!(pool.take(owner), Ok(ip(last)), "{owner}");
        }
        pool.give_back("a");
        assert_eq!(pool.take("d"), Ok(ip(1)));
        for owner in ["e", "f", "g"] {
            pool.take(owner).unwrap();
        }
        assert_eq!((pool.used(), pool.take("h")), (6, Err(PoolError::Full(6))));
    }

    #[test]
    fn many_come_and_go() {
        let pool = AddressPool::new("10.0.0.0/20").unwrap();
        let all: Vec<_> = (0..pool.size()).map(|n| pool.take(&n.to_string()).unwrap()).collect();
        assert!(all.is_sorted() && all.windows(2).all(|pair| pair[0] != pair[1]));
        assert_eq!(pool.take("one more"), Err(PoolError::Full(4094)));
        for n in [4000, 65, 64, 700] {
            pool.give_back(&n.to_string());
        }
        assert!(pool.claim(all[65], "claims"));
        let next: Vec<_> = (0..3).map(|n| pool.take(&format!("new {n}")).unwrap()).collect();
        assert_eq!(next, [all[64], all[700], all[4000]]);
        assert_eq!(pool.used(), pool.size());
    }

    #[test]
    fn owners_claim_what_they_had() {
        let pool = AddressPool::new("127.42.3.0/24").unwrap();
        let ip = |last| Ipv4Addr::new(127, 42, 3, last);
        assert!(pool.claim(ip(1), "a") && pool.claim(ip(1), "a"));
        assert!(!pool.claim(ip(1), "b") && !pool.claim(ip(2), "a"));
        assert!(!pool.claim(ip(0), "c") && !pool.claim(ip(255), "c"));
        assert!(!pool.claim(Ipv4Addr::new(127, 42, 4, 1), "c"));
        assert_eq!(pool.take("b"), Ok(ip(2)));
    }

    #[test]
    fn ranges_that_are_none() {
        for text in ["", "127.42.0.0", "127.42.0.0/31", "127.42.0.0/x", "::1/64", "127.42.0.0/7"] {
            assert!(AddressPool::new(text).is_err(), "{text}");
        }
    }

    #[test]
    fn the_last_address_is_nobodys() {
        for (cidr, last) in
            [("127.42.4.0/22", Some("127.42.7.255")), ("127.42.0.0/16", Some("127.42.255.255")), ("x", None)]
        {
            assert_eq!(last_address(cidr).map(|a| a.to_string()).as_deref(), last, "{cidr}");
        }
    }
}
