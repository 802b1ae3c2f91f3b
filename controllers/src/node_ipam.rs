//! Gives every node a range of pod addresses out of the cluster's.
//!
//! Reads nodes. Writes `spec.podCIDR` and `spec.podCIDRs` of nodes that have none: the
//! lowest range nobody has. One node at a time, so that a range is given once.

use std::{collections::BTreeSet, net::Ipv4Addr, sync::Arc};

use k8s_openapi::api::core::v1::Node;
use serde_json::json;

use crate::base::{Context, EventKind, Informer, Key, Next, Queue, Result, is_deleting, on_change};

const NAME: &str = "node-ipam-controller";

pub(crate) async fn run(cx: Context) {
    let Some(pool) = Pool::parse(&cx.settings.cluster_cidr, cx.settings.node_cidr_mask) else {
        tracing::error!(
            controller = NAME,
            cidr = cx.settings.cluster_cidr,
            "not an IPv4 range, nodes get none"
        );
        return;
    };
    let queue = Arc::new(Queue::default());
    let nodes = cx.cache::<Node>();
    on_change(&nodes, &queue);
    nodes.ready().await;
    cx.work(NAME, &queue, 1, |key| reconcile(&cx, &nodes, pool, key)).await;
}

async fn reconcile(cx: &Context, nodes: &Informer<Node>, pool: Pool, key: Key) -> Result<Next> {
    let Some(node) = nodes.get(&key) else { return Ok(Next::Change) };
    if range(&node).is_some() || is_deleting(&*node) {
        return Ok(Next::Change);
    }
    let all = nodes.list();
    let Some(cidr) = pool.lowest_free(all.iter().filter_map(|n| range(n))) else {
        let message = format!("Node {} status is now: CIDRNotAvailable", key.name);
        cx.events.record(NAME, &*node, EventKind::Warning, "CIDRNotAvailable", message);
        return Ok(Next::Change);
    };
    let patch = json!({
        "metadata": {"resourceVersion": node.metadata.resource_version},
        "spec": {"podCIDR": cidr, "podCIDRs": [cidr]},
    });
    cx.patch(&*node, patch).await?;
    Ok(Next::Change)
}

fn range(node: &Node) -> Option<&str> {
    node.spec.as_ref()?.pod_cidr.as_deref().filter(|c| !c.is_empty())
}

/// An IPv4 range that is given away in equal parts.
#[derive(Clone, Copy, Debug)]
struct Pool {
    base: u32,
    mask: u8,
    parts: u32,
}

impl Pool {
    fn parse(cidr: &str, mask: u8) -> Option<Self> {
        let (address, length) = cidr.split_once('/')?;
        let (address, length): (Ipv4Addr, u8) = (address.parse().ok()?, length.parse().ok()?);
        if length > mask || mask > 30 || length == 0 {
            return None;
        }
        let base = u32::from(address) & (u32::MAX << (32 - length));
        Some(Self { base, mask, parts: 1 << (mask - length).min(16) })
    }

    fn lowest_free<'a>(&self, taken: impl Iterator<Item = &'a str>) -> Option<String> {
        let size = 1_u32 << (32 - self.mask);
        let place = |cidr: &str| {
            let address: Ipv4Addr = cidr.split_once('/')?.0.parse().ok()?;
            Some(u32::from(address).checked_sub(self.base)? / size)
        };
        let taken: BTreeSet<u32> = taken.filter_map(place).collect();
        let free = (0..self.parts).find(|part| !taken.contains(part))?;
        Some(format!("{}/{}", Ipv4Addr::from(self.base + free * size), self.mask))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(pool: &str, mask: u8, taken: &[&str], expect: Option<&str>) {
        let given = Pool::parse(pool, mask).and_then(|p| p.lowest_free(taken.iter().copied()));
        assert_eq!(given.as_deref(), expect, "{pool} {taken:?}");
    }

    #[test]
    fn gives_the_lowest_free_range() {
        check("127.42.0.0/16", 24, &[], Some("127.42.0.0/24"));
        check("127.42.0.0/16", 24, &["127.42.0.0/24", "127.42.2.0/24"], Some("127.42.1.0/24"));
        check("127.42.0.0/16", 24, &["10.0.0.0/24", "nonsense"], Some("127.42.0.0/24"));
        check("10.0.0.0/30", 30, &["10.0.0.0/30"], None);
        check("10.0.0.0/24", 16, &[], None);
        check("fd00::/48", 64, &[], None);
    }
}
