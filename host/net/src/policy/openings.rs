//! What policies let into a pod and out of it, in words that packet filters have: addresses, ranges, ports.

use std::{collections::BTreeMap, net::IpAddr, ops::RangeInclusive};

use super::{
    cidr::Cidr,
    table::{Direction, Member, Peer, PortRule, Ports, Rule, Table, Transport},
};

/// Something that is let through.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Opening {
    /// The other side.
    pub peers: Peers,
    /// The ports on the side that is connected to; empty for all, of all protocols.
    pub ports: Vec<(Transport, RangeInclusive<u16>)>,
}

/// The other side of what is let through.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Peers {
    /// Anybody.
    All,
    /// Pods.
    Addresses(Vec<IpAddr>),
    /// A range without its exceptions.
    Block(Cidr, Vec<Cidr>),
}

/// All that is let through in a direction, in a stable order. `None` when policies say nothing of the pod there, so
/// that everything is.
pub fn openings(table: &Table, member: &Member, direction: Direction) -> Option<Vec<Opening>> {
    if !table.is_isolated(member, direction) {
        return None;
    }
    let mut all = Vec::new();
    for rule in table.rules(member, direction).flatten() {
        if rule.peers.is_empty() {
            open(table, rule, (member, direction), Peers::All, &mut all);
        }
        for peer in &rule.peers {
            open(table, rule, (member, direction), peers(table, member, peer), &mut all);
        }
    }
    Some(all)
}

fn peers(table: &Table, member: &Member, peer: &Peer) -> Peers {
    match peer {
        Peer::Block { range, except } => Peers::Block(*range, except.clone()),
        Peer::Pods { .. } => {
            let of =
                table.members().filter(|(ip, _)| table.is_peer(peer, &member.namespace, table.end(**ip)));
            let mut addresses: Vec<IpAddr> = of.map(|(ip, _)| *ip).collect();
            // Parts of the cluster that count as pods.
            addresses.extend(table.built_in_peers(peer, &member.namespace));
            addresses.sort_unstable();
            addresses.dedup();
            Peers::Addresses(addresses)
        }
    }
}

fn open(
    table: &Table,
    rule: &Rule,
    (member, direction): (&Member, Direction),
    peers: Peers,
    all: &mut Vec<Opening>,
) {
    let mut ports = Vec::new();
    for port in &rule.ports {
        match (&port.port, direction) {
            (Ports::All, _) => ports.push((port.transport, 0..=u16::MAX)),
            (Ports::Range(first, last), _) => ports.push((port.transport, *first..=*last)),
            (Ports::Named(name), Direction::Ingress) => {
                ports.extend(member.numbers(name, port.transport).map(|n| (port.transport, n..=n)));
            }
            // Each of those that are connected to has its own number for a name.
            (Ports::Named(name), Direction::Egress) => by_name(table, port, name, &peers, all),
        }
    }
    if rule.ports.is_empty() || !ports.is_empty() {
        all.push(Opening { peers, ports });
    }
}

fn by_name(table: &Table, port: &PortRule, name: &str, peers: &Peers, all: &mut Vec<Opening>) {
    let is_meant = |ip: &IpAddr| match peers {
        Peers::All => true,
        Peers::Addresses(list) => list.contains(ip),
        Peers::Block(range, except) => range.contains(*ip) && !except.iter().any(|e| e.contains(*ip)),
    };
    let mut numbers: BTreeMap<u16, Vec<IpAddr>> = BTreeMap::new();
    for (ip, member) in table.members().filter(|(ip, _)| is_meant(ip)) {
        for number in member.numbers(name, port.transport) {
            numbers.entry(number).or_default().push(*ip);
        }
    }
    for (number, mut addresses) in numbers {
        addresses.sort_unstable();
        addresses.dedup();
        all.push(Opening {
            peers: Peers::Addresses(addresses),
            ports: vec![(port.transport, number..=number)],
        });
    }
}
