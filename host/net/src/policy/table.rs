//! Who may talk to whom. Pure: NetworkPolicies, pods and the labels of namespaces in, a table out.
//!
//! A connection passes when the rules of both ends let it: those for what leaves the one pod, and those for what
//! enters the other. An end that is no pod has no rules of its own, and only blocks of addresses mean it.

use std::{
    collections::{BTreeMap, HashMap},
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use serde::{Deserialize, Serialize};
use wasmk_api::{
    LabelSelector, NODE_SOURCE,
    k8s_openapi::{
        api::{
            core::v1::Pod,
            networking::v1::{
                NetworkPolicy, NetworkPolicyPeer as ApiPeer, NetworkPolicyPort as ApiPort, NetworkPolicySpec,
            },
        },
        apimachinery::pkg::{apis::meta::v1 as meta, util::intstr::IntOrString},
    },
};

use super::{cidr::Cidr, members::Members};
use crate::plan::Protocol;

/// Labels of a pod or a namespace.
pub type Labels = BTreeMap<String, String>;

/// The direction of rules, as seen from the pod they are for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Direction {
    /// Into the pod.
    Ingress,
    /// Out of it.
    Egress,
}

/// What policies have to know of a pod.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Member {
    /// Its namespace.
    pub namespace: String,
    /// Its labels.
    pub labels: Labels,
    /// Its addresses; none while it has not got one.
    pub addresses: Vec<IpAddr>,
    /// Its ports that have names.
    ports: Vec<(String, Transport, u16)>,
    /// Of two pods with one address the later counts.
    pub(super) made: Option<i64>,
}

/// A protocol of rules; pods here speak the first two.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Transport {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
    /// SCTP.
    Sctp,
}

impl Transport {
    fn of(name: Option<&str>) -> Option<Self> {
        match name.unwrap_or("TCP") {
            "TCP" => Some(Self::Tcp),
            "UDP" => Some(Self::Udp),
            "SCTP" => Some(Self::Sctp),
            _ => None,
        }
    }
}

impl From<Protocol> for Transport {
    fn from(protocol: Protocol) -> Self {
        match protocol {
            Protocol::Tcp => Self::Tcp,
            Protocol::Udp => Self::Udp,
        }
    }
}

impl Member {
    /// Of a pod. `None` for one that has the node's network, to which policies do not apply, and for one that
    /// has ended.
    pub fn of(pod: &Pod) -> Option<Self> {
        let spec = pod.spec.as_ref()?;
        let phase = pod.status.as_ref().and_then(|s| s.phase.as_deref());
        if spec.host_network == Some(true) || matches!(phase, Some("Succeeded" | "Failed")) {
            return None;
        }
        let status = pod.status.as_ref();
        let listed = status.and_then(|s| s.pod_ips.as_ref()).into_iter().flatten().map(|ip| ip.ip.as_str());
        let first = status.and_then(|s| s.pod_ip.as_deref());
        let mut addresses: Vec<IpAddr> = listed.chain(first).filter_map(|ip| ip.parse().ok()).collect();
        addresses.sort_unstable();
        addresses.dedup();
        let containers = spec.containers.iter().chain(spec.init_containers.iter().flatten());
        let ports = containers.flat_map(|c| c.ports.iter().flatten()).filter_map(|port| {
            let number = u16::try_from(port.container_port).ok()?;
            Some((port.name.clone()?, Transport::of(port.protocol.as_deref())?, number))
        });
        Some(Self {
            namespace: pod.metadata.namespace.clone().unwrap_or_default(),
            labels: pod.metadata.labels.clone().unwrap_or_default(),
            addresses,
            ports: ports.collect(),
            made: pod.metadata.creation_timestamp.as_ref().map(|t| t.0.as_second()),
        })
    }

    /// Of a namespace and labels alone.
    pub fn new(namespace: impl Into<String>, labels: Labels) -> Self {
        Self { namespace: namespace.into(), labels, ..Self::default() }
    }

    /// The same with that address alone.
    pub fn at(self, address: IpAddr) -> Self {
        Self { addresses: vec![address], ..self }
    }

    /// The numbers of its ports of that name.
    pub(super) fn numbers(&self, name: &str, transport: Transport) -> impl Iterator<Item = u16> {
        self.ports.iter().filter(move |(n, t, _)| n == name && *t == transport).map(|(_, _, number)| *number)
    }
}

/// One side of a connection.
#[derive(Clone, Copy, Debug)]
pub struct End<'a> {
    address: Option<IpAddr>,
    member: Option<&'a Member>,
}

impl<'a> End<'a> {
    /// A program that has the labels of a pod but no address of its own.
    pub fn nameless(member: &'a Member) -> Self {
        Self { address: None, member: Some(member) }
    }
}

/// What one NetworkPolicy says.
#[derive(Debug)]
struct Policy {
    pods: LabelSelector,
    /// Rules for each direction it has a word in.
    ingress: Option<Vec<Rule>>,
    egress: Option<Vec<Rule>>,
}

/// Allows what fits both lists; an empty one fits everything.
#[derive(Debug)]
pub(super) struct Rule {
    pub(super) peers: Vec<Peer>,
    pub(super) ports: Vec<PortRule>,
}

#[derive(Debug)]
pub(super) enum Peer {
    /// Pods with such labels, in namespaces with such labels or, without a selector for these, in the policy's.
    Pods {
        namespaces: Option<LabelSelector>,
        pods: LabelSelector,
    },
    Block {
        range: Cidr,
        except: Vec<Cidr>,
    },
}

#[derive(Debug)]
pub(super) struct PortRule {
    pub(super) transport: Transport,
    pub(super) port: Ports,
}

#[derive(Debug)]
pub(super) enum Ports {
    All,
    Range(u16, u16),
    Named(String),
}

/// The rules of a cluster at one moment. Copies share what they have in common.
#[derive(Clone, Debug, Default)]
pub struct Table {
    policies: Arc<HashMap<String, Vec<Policy>>>,
    namespaces: Arc<HashMap<String, Labels>>,
    members: Members,
    /// Parts of the cluster that pods elsewhere would be: by the one port they serve.
    built_in: Arc<HashMap<SocketAddr, Arc<Member>>>,
}

impl Table {
    /// Of all that is known. Of members with the same address the one made last has it.
    pub fn new(
        policies: &[Arc<NetworkPolicy>],
        namespaces: HashMap<String, Labels>,
        members: impl IntoIterator<Item = Arc<Member>>,
    ) -> Self {
        let mut table = Self::default();
        table.set_namespaces(namespaces);
        table.set_policies(policies);
        for member in members {
            for address in &member.addresses {
                if table.member(*address).is_none_or(|known| known.made < member.made) {
                    table.place(*address, member.clone());
                }
            }
        }
        table
    }

    /// Takes those policies in place of the present ones.
    pub(super) fn set_policies<'a>(&mut self, policies: impl IntoIterator<Item = &'a Arc<NetworkPolicy>>) {
        let mut all: HashMap<String, Vec<Policy>> = HashMap::new();
        for policy in policies {
            let namespace = policy.metadata.namespace.clone().unwrap_or_default();
            all.entry(namespace).or_default().extend(policy.spec.as_ref().map(read));
        }
        self.policies = Arc::new(all);
    }

    /// Takes those labels of namespaces in place of the present ones.
    pub(super) fn set_namespaces(&mut self, namespaces: HashMap<String, Labels>) {
        self.namespaces = Arc::new(namespaces);
    }

    /// Takes those parts of the cluster in place of the present ones.
    pub(super) fn set_built_in(&mut self, built_in: HashMap<SocketAddr, Arc<Member>>) {
        self.built_in = Arc::new(built_in);
    }

    /// Takes an address from whoever has it.
    pub(super) fn vacate(&mut self, address: IpAddr) {
        self.members.remove(address);
    }

    /// Gives an address to a member, whoever had it.
    pub fn place(&mut self, address: IpAddr, member: Arc<Member>) {
        self.members.insert(address, member);
    }

    /// Makes what serves at that port count as a pod.
    pub fn build_in(&mut self, at: SocketAddr, member: Arc<Member>) {
        Arc::make_mut(&mut self.built_in).insert(at, member);
    }

    /// Whether there is any policy at all.
    pub fn is_active(&self) -> bool {
        !self.policies.is_empty()
    }

    /// The pod of an address.
    pub fn member(&self, address: IpAddr) -> Option<&Arc<Member>> {
        self.members.get(address)
    }

    /// All pods with an address.
    pub fn members(&self) -> impl Iterator<Item = (&IpAddr, &Arc<Member>)> {
        self.members.iter()
    }

    /// Addresses of what counts as a pod and is such a peer.
    pub(super) fn built_in_peers(&self, peer: &Peer, namespace: &str) -> impl Iterator<Item = IpAddr> {
        let is_peer = move |member| self.is_peer(peer, namespace, End::nameless(member));
        self.built_in.iter().filter(move |(_, member)| is_peer(member)).map(|(at, _)| at.ip())
    }

    /// Whoever has an address: a pod, or somebody else.
    pub fn end(&self, address: IpAddr) -> End<'_> {
        End { address: Some(address), member: self.members.get(address).map(|m| &**m) }
    }

    /// Whether a connection, or a first datagram, may pass from one address to another.
    pub fn allows(&self, from: IpAddr, to: SocketAddr, protocol: Protocol) -> bool {
        self.allows_from(self.end(from), to, protocol)
    }

    /// The same for one side that may have no address.
    pub fn allows_from(&self, from: End<'_>, to: SocketAddr, protocol: Protocol) -> bool {
        let member = self.built_in.get(&to).or_else(|| self.members.get(to.ip())).map(|m| &**m);
        self.allows_between(from, End { address: Some(to.ip()), member }, to.port(), protocol)
    }

    /// The same for two such sides; `port` is that of the second.
    pub fn allows_between(&self, from: End<'_>, to: End<'_>, port: u16, protocol: Protocol) -> bool {
        if !self.is_active() || (from.address.is_some() && from.address == to.address) {
            return true;
        }
        // What the node's own program opens it has judged, or must always be able to open.
        if from.address == Some(NODE_SOURCE.into()) {
            return true;
        }
        let port = Port { transport: protocol.into(), number: port, owner: to.member };
        self.passes(Direction::Egress, from.member, to, &port)
            && self.passes(Direction::Ingress, to.member, from, &port)
    }

    /// Whether policies restrict a pod in that direction.
    pub fn is_isolated(&self, member: &Member, direction: Direction) -> bool {
        self.rules(member, direction).next().is_some()
    }

    /// Whether the pod's policies let the peer, if they have a word in it.
    fn passes(&self, direction: Direction, of: Option<&Member>, peer: End<'_>, port: &Port<'_>) -> bool {
        let Some(member) = of else { return true };
        let mut isolated = false;
        for rules in self.rules(member, direction) {
            isolated = true;
            if rules.iter().any(|rule| self.fits(rule, &member.namespace, peer, port)) {
                return true;
            }
        }
        !isolated
    }

    /// The rules of each policy that is about a pod, for one direction.
    pub(super) fn rules<'a>(
        &'a self,
        member: &'a Member,
        direction: Direction,
    ) -> impl Iterator<Item = &'a Vec<Rule>> {
        let policies = self.policies.get(&member.namespace).into_iter().flatten();
        policies.filter_map(move |policy| {
            let rules = match direction {
                Direction::Ingress => policy.ingress.as_ref(),
                Direction::Egress => policy.egress.as_ref(),
            }?;
            policy.pods.matches(Some(&member.labels)).then_some(rules)
        })
    }

    fn fits(&self, rule: &Rule, namespace: &str, peer: End<'_>, port: &Port<'_>) -> bool {
        let by_peer = rule.peers.is_empty() || rule.peers.iter().any(|p| self.is_peer(p, namespace, peer));
        by_peer && (rule.ports.is_empty() || rule.ports.iter().any(|p| p.fits(port)))
    }

    pub(super) fn is_peer(&self, wanted: &Peer, namespace: &str, peer: End<'_>) -> bool {
        match wanted {
            Peer::Pods { namespaces, pods } => {
                let Some(member) = peer.member else { return false };
                let in_namespace = match namespaces {
                    None => member.namespace == namespace,
                    Some(selector) => {
                        self.namespaces.get(&member.namespace).is_some_and(|l| selector.matches(Some(l)))
                    }
                };
                in_namespace && pods.matches(Some(&member.labels))
            }
            Peer::Block { range, except } => peer
                .address
                .is_some_and(|ip| range.contains(ip) && !except.iter().any(|inner| inner.contains(ip))),
        }
    }
}

/// The port that is connected to.
struct Port<'a> {
    transport: Transport,
    number: u16,
    /// Whose names it may have.
    owner: Option<&'a Member>,
}

impl PortRule {
    fn fits(&self, port: &Port<'_>) -> bool {
        self.transport == port.transport
            && match &self.port {
                Ports::All => true,
                Ports::Range(first, last) => (*first..=*last).contains(&port.number),
                Ports::Named(name) => port
                    .owner
                    .is_some_and(|owner| owner.numbers(name, port.transport).any(|n| n == port.number)),
            }
    }
}

fn read(spec: &NetworkPolicySpec) -> Policy {
    let listed = spec.policy_types.iter().flatten();
    let has = |name: &str| listed.clone().any(|t| t == name);
    let unsaid = listed.clone().next().is_none();
    let ingress = spec.ingress.iter().flatten();
    let egress = spec.egress.iter().flatten();
    let all = || meta::LabelSelector::default();
    Policy {
        pods: selector(&spec.pod_selector.clone().unwrap_or_else(all)),
        ingress: (unsaid || has("Ingress"))
            .then(|| ingress.map(|rule| rule_of(rule.from.as_deref(), rule.ports.as_deref())).collect()),
        egress: (has("Egress") || (unsaid && egress.clone().next().is_some()))
            .then(|| egress.map(|rule| rule_of(rule.to.as_deref(), rule.ports.as_deref())).collect()),
    }
}

fn rule_of(peers: Option<&[ApiPeer]>, ports: Option<&[ApiPort]>) -> Rule {
    Rule {
        peers: peers.unwrap_or_default().iter().map(peer).collect(),
        ports: ports.unwrap_or_default().iter().map(port_rule).collect(),
    }
}

/// The API has checked it; what it could not have let through means nobody.
fn selector(selector: &meta::LabelSelector) -> LabelSelector {
    LabelSelector::from_api(selector).unwrap_or_else(|_| nobody())
}

fn nobody() -> LabelSelector {
    LabelSelector::equals([("wasmk.dev/nobody", "")])
}

fn peer(peer: &ApiPeer) -> Peer {
    let Some(block) = &peer.ip_block else {
        return Peer::Pods {
            namespaces: peer.namespace_selector.as_ref().map(selector),
            pods: peer.pod_selector.as_ref().map(selector).unwrap_or_default(),
        };
    };
    match block.cidr.parse() {
        Ok(range) => {
            let except = block.except.iter().flatten().filter_map(|text| text.parse().ok());
            Peer::Block { range, except: except.collect() }
        }
        Err(_) => Peer::Pods { namespaces: None, pods: nobody() },
    }
}

/// A port that cannot be, which the API does not let through, means none.
fn port_rule(rule: &ApiPort) -> PortRule {
    let number = |n: i32| u16::try_from(n).ok();
    let port = match &rule.port {
        None => Some(Ports::All),
        Some(IntOrString::Int(first)) => number(*first)
            .zip(number(rule.end_port.unwrap_or(*first)))
            .map(|(first, last)| Ports::Range(first, last)),
        Some(IntOrString::String(name)) => Some(Ports::Named(name.clone())),
    };
    let transport = Transport::of(rule.protocol.as_deref());
    match transport.zip(port) {
        Some((transport, port)) => PortRule { transport, port },
        None => PortRule { transport: Transport::Tcp, port: Ports::Range(1, 0) },
    }
}
