//! What of the table changed with each of its versions, so that whoever made something of it for one pod need not make
//! it again when others change.

use std::{collections::VecDeque, net::IpAddr, sync::Arc};

use super::table::{Direction, End, Member, Peer, Ports, Rule, Table};

/// Versions whose changes are remembered.
const VERSIONS: usize = 64;

/// What changed with a version.
#[derive(Clone, Debug)]
pub(super) enum Delta {
    /// Rules, or more than is worth telling.
    All,
    /// Whose some addresses are.
    Members(Vec<Change>),
}

/// An address that is another's, or whose pod has changed.
#[derive(Clone, Debug)]
pub(super) struct Change {
    pub(super) address: IpAddr,
    pub(super) before: Option<Arc<Member>>,
    pub(super) after: Option<Arc<Member>>,
}

/// The last changes.
#[derive(Debug, Default)]
pub(super) struct History {
    /// The version that the last of them led to.
    version: u64,
    deltas: VecDeque<Delta>,
}

impl History {
    pub(super) fn push(&mut self, delta: Delta) -> u64 {
        if self.deltas.len() == VERSIONS {
            self.deltas.pop_front();
        }
        self.deltas.push_back(delta);
        self.version += 1;
        self.version
    }

    pub(super) fn version(&self) -> u64 {
        self.version
    }

    /// Whether something of what the table says about a pod may have changed since that version. `table` is the
    /// present one.
    pub(super) fn concerns(&self, since: u64, table: &Table, address: IpAddr) -> bool {
        let Ok(missed) = usize::try_from(self.version.saturating_sub(since)) else { return true };
        if missed > self.deltas.len() {
            return true;
        }
        self.deltas.iter().rev().take(missed).any(|delta| match delta {
            Delta::All => true,
            Delta::Members(changes) => changes.iter().any(|change| concerns(table, address, change)),
        })
    }
}

fn concerns(table: &Table, address: IpAddr, change: &Change) -> bool {
    if change.address == address {
        return true;
    }
    let Some(member) = table.member(address) else { return false };
    let others = || change.before.iter().chain(&change.after);
    [Direction::Ingress, Direction::Egress].into_iter().any(|direction| {
        table.rules(member, direction).flatten().any(|rule| {
            others().any(|other| {
                names(rule, direction, other)
                    || rule.peers.iter().any(|peer| is_pod(table, peer, &member.namespace, other))
            })
        })
    })
}

/// Whether a rule means a pod by its labels; blocks mean addresses, whoever has them.
fn is_pod(table: &Table, peer: &Peer, namespace: &str, other: &Member) -> bool {
    matches!(peer, Peer::Pods { .. }) && table.is_peer(peer, namespace, End::nameless(other))
}

/// Whether a rule means a number that a pod has given a name.
fn names(rule: &Rule, direction: Direction, other: &Member) -> bool {
    direction == Direction::Egress
        && rule.ports.iter().any(|port| match &port.port {
            Ports::Named(name) => other.numbers(name, port.transport).next().is_some(),
            Ports::All | Ports::Range(..) => false,
        })
}
