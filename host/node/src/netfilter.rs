//! Network policies of pods that have a network namespace: filters of the system inside it, which containers
//! cannot change unless they may administer the network. Each change is one transaction.

use std::{
    fmt::Write,
    io,
    net::{IpAddr, Ipv4Addr},
    ops::RangeInclusive,
    time::Duration,
};

use tokio_util::sync::CancellationToken;
use wasmk_net::policy::{
    Direction, News, Policies, Table,
    openings::{Opening, Peers, openings},
    table::Transport,
};

use crate::netns::{Netns, nft};

/// How often filters are looked at although no policy changed: the node's own addresses may have.
const LOOK: Duration = Duration::from_secs(60);

/// The filters of one pod.
pub(crate) struct Filter {
    policies: Policies,
    netns: Netns,
    address: Ipv4Addr,
    /// What was last set there.
    set: String,
    /// The version of the policies that it was made of, or that changed nothing for it.
    version: u64,
}

impl Filter {
    /// Of the pod of that address, whose namespace has none from an earlier life or those of one.
    pub(crate) fn new(policies: Policies, netns: Netns, address: Ipv4Addr) -> Self {
        Self { policies, netns, address, set: String::new(), version: 0 }
    }

    /// Brings the filters up to date.
    ///
    /// # Errors
    /// When policies are about the pod and the system takes no filters.
    pub(crate) async fn update(&mut self) -> io::Result<()> {
        let News { version, table, concerns } = self.policies.news(self.version, self.address.into());
        if concerns {
            let wanted = rules(&table, self.address, &own_addresses());
            if wanted != self.set && (!self.set.is_empty() || table.is_active()) {
                let (netns, script) = (self.netns.clone(), wanted.clone());
                let work = move || netns.within(|| nft(&script));
                tokio::task::spawn_blocking(work).await.map_err(io::Error::other)??;
                self.set = wanted;
            }
        }
        self.version = version;
        Ok(())
    }

    /// Keeps them so until told to stop. Says the first time in a row that it fails.
    pub(crate) async fn keep(mut self, failed: impl Fn(&io::Error) + Send, stop: CancellationToken) {
        let mut changes = self.policies.changes();
        let mut well = true;
        loop {
            let updated = self.update().await;
            if let Err(error) = &updated
                && well
            {
                failed(error);
            }
            well = updated.is_ok();
            tokio::select! {
                () = stop.cancelled() => return,
                change = changes.changed() => if change.is_err() { return },
                () = tokio::time::sleep(LOOK) => self.version = 0,
            }
        }
    }
}

/// Where this machine's own traffic to pods comes from.
fn own_addresses() -> Vec<Ipv4Addr> {
    let Ok(all) = nix::ifaddrs::getifaddrs() else { return Vec::new() };
    let of = all.filter_map(|a| Some(a.address?.as_sockaddr_in()?.ip()));
    let mut addresses: Vec<Ipv4Addr> = of.filter(|ip| !ip.is_loopback()).collect();
    addresses.sort_unstable();
    addresses.dedup();
    addresses
}

/// The filters for the pod of an address, in place of earlier ones.
fn rules(table: &Table, address: Ipv4Addr, node: &[Ipv4Addr]) -> String {
    let mut script = String::from("table inet wasmk_policy {}\ndelete table inet wasmk_policy\n");
    let Some(member) = table.member(address.into()) else { return script };
    let chain = |direction| openings(table, member, direction).map(|open| chain(direction, &open, node));
    let chains: String = [Direction::Ingress, Direction::Egress].into_iter().filter_map(chain).collect();
    if !chains.is_empty() {
        // Writing to a string cannot fail.
        let _ = write!(script, "table inet wasmk_policy {{\n{chains}}}\n");
    }
    script
}

fn chain(direction: Direction, open: &[Opening], node: &[Ipv4Addr]) -> String {
    let (hook, interface, side) = match direction {
        Direction::Ingress => ("input", "iifname", "saddr"),
        Direction::Egress => ("output", "oifname", "daddr"),
    };
    let mut text = format!(
        "chain {hook} {{\ntype filter hook {hook} priority 0; policy drop;\n{interface} \"lo\" accept\n\
         ct state established,related accept\n"
    );
    if direction == Direction::Ingress && !node.is_empty() {
        let _ = writeln!(text, "ip saddr {{ {} }} accept", list(node));
    }
    for opening in open {
        if let Some(peers) = whom(&opening.peers, side) {
            for ports in ports(&opening.ports) {
                let _ = writeln!(text, "{peers}{ports}accept");
            }
        }
    }
    text.push_str("}\n");
    text
}

/// The words that mean the other side; `None` when it is nobody.
fn whom(peers: &Peers, side: &str) -> Option<String> {
    match peers {
        Peers::All => Some(String::new()),
        Peers::Addresses(all) => {
            let four: Vec<Ipv4Addr> = all
                .iter()
                .filter_map(|ip| match ip {
                    IpAddr::V4(ip) => Some(*ip),
                    IpAddr::V6(_) => None,
                })
                .collect();
            (!four.is_empty()).then(|| format!("ip {side} {{ {} }} ", list(&four)))
        }
        Peers::Block(range, except) => {
            let family = if range.is_ipv4() { "ip" } else { "ip6" };
            let mut text = format!("{family} {side} {range} ");
            for inner in except {
                let _ = write!(text, "{family} {side} != {inner} ");
            }
            Some(text)
        }
    }
}

/// The words that mean the ports, one line for each protocol.
fn ports(ports: &[(Transport, RangeInclusive<u16>)]) -> Vec<String> {
    if ports.is_empty() {
        return vec![String::new()];
    }
    let of = |(transport, name): (Transport, &str)| {
        let ranges = ports.iter().filter(|(t, _)| *t == transport).map(|(_, range)| {
            match (range.start(), range.end()) {
                (first, last) if first == last => first.to_string(),
                (first, last) => format!("{first}-{last}"),
            }
        });
        // Intervals of one set may not overlap, so each has its own words.
        ranges.map(|range| format!("{name} dport {range} ")).collect::<Vec<_>>()
    };
    [(Transport::Tcp, "tcp"), (Transport::Udp, "udp"), (Transport::Sctp, "sctp")]
        .into_iter()
        .flat_map(of)
        .collect()
}

fn list(addresses: &[Ipv4Addr]) -> String {
    addresses.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use std::{collections::HashMap, sync::Arc};

    use serde_json::{Value, json};
    use wasmk_net::policy::Member;

    use super::*;

    fn table(spec: Value) -> Table {
        let policy = json!({"metadata": {"namespace": "shop", "name": "p"}, "spec": spec});
        let member = |app: &str, address: &str| {
            let pod = json!({
                "metadata": {"namespace": "shop", "name": app, "labels": {"app": app}},
                "spec": {"containers": [{"name": "c", "ports": [{"name": "http", "containerPort": 8080}]}]},
                "status": {"podIP": address},
            });
            Arc::new(Member::of(&serde_json::from_value(pod).unwrap()).unwrap())
        };
        let members = [member("web", "10.1.0.2"), member("db", "10.1.0.3"), member("job", "10.1.0.4")];
        Table::new(&[Arc::new(serde_json::from_value(policy).unwrap())], HashMap::new(), members)
    }

    fn lines(spec: Value, chain: &str) -> Vec<String> {
        let text = rules(&table(spec), "10.1.0.2".parse().unwrap(), &["10.1.0.1".parse().unwrap()]);
        let Some((_, rest)) = text.split_once(&format!("chain {chain} {{\n")) else { return Vec::new() };
        let own = rest.split_once('}').map_or(rest, |_| rest.split("\n}\n").next().unwrap());
        own.lines().skip(3).map(String::from).collect()
    }

    #[test]
    fn rules_become_filters() {
        let web = json!({"matchLabels": {"app": "web"}});
        let node = "ip saddr { 10.1.0.1 } accept";
        assert!(lines(json!({"podSelector": {"matchLabels": {"app": "db"}}}), "input").is_empty());
        assert_eq!(lines(json!({"podSelector": web}), "input"), [node]);
        let spec = json!({"podSelector": web, "ingress": [
            {"from": [{"podSelector": {}}], "ports": [{"port": "http"}, {"protocol": "UDP"}]},
            {"from": [{"ipBlock": {"cidr": "4.42.6.0/24", "except": ["4.42.6.5/32"]}}, {"podSelector": {"matchLabels": {"app": "x"}}}]},
            {"ports": [{"port": 80, "endPort": 90}]},
        ]});
        assert_eq!(
            lines(spec, "input"),
            [
                node,
                "ip saddr { 10.1.0.2, 10.1.0.3, 10.1.0.4 } tcp dport 8080 accept",
                "ip saddr { 10.1.0.2, 10.1.0.3, 10.1.0.4 } udp dport 0-65535 accept",
                "ip saddr 4.42.6.0/24 ip saddr != 4.42.6.5/32 accept",
                "tcp dport 80-90 accept",
            ]
        );
        let spec = json!({"podSelector": web, "policyTypes": ["Egress"], "egress": [
            {"to": [{"podSelector": {"matchLabels": {"app": "db"}}}], "ports": [{"port": "http"}, {"port": 53, "protocol": "UDP"}]},
        ]});
        assert!(lines(spec.clone(), "input").is_empty());
        assert_eq!(
            lines(spec, "output"),
            ["ip daddr { 10.1.0.3 } tcp dport 8080 accept", "ip daddr { 10.1.0.3 } udp dport 53 accept"]
        );
    }

    #[test]
    fn a_pod_that_nobody_restricts_has_no_filters() {
        let text = rules(&Table::default(), "10.1.0.2".parse().unwrap(), &[]);
        assert_eq!(text, "table inet wasmk_policy {}\ndelete table inet wasmk_policy\n");
    }
}
