mod changes;
mod objects;

use std::{collections::HashMap, net::SocketAddr, sync::Arc};

use proptest::prelude::*;
use serde_json::{Value, json};
use wasmk_api::k8s_openapi::api::{core::v1::Pod, networking::v1::NetworkPolicy};

use super::{
    book::{Key, Page},
    openings::openings,
    table::{Labels, Member, Table},
    *,
};
use crate::plan::Protocol;

/// Pods by address: `namespace/name`, with labels `app=name` and those given; `web` has a named port.
fn pods() -> Vec<(&'static str, Value)> {
    let pod = |address: &'static str, namespace: &str, app: &str, more: Value| {
        let mut pod = json!({
            "metadata": {"namespace": namespace, "name": app, "labels": {"app": app}},
            "spec": {"containers": [{"name": "main", "ports": [
                {"name": "http", "containerPort": 8080},
                {"name": "dns", "containerPort": 5353, "protocol": "UDP"},
            ]}]},
            "status": {"podIP": address, "phase": "Running"},
        });
        json_patch(&mut pod, more);
        (address, pod)
    };
    vec![
        pod("127.42.0.1", "shop", "web", json!({})),
        pod("127.42.0.2", "shop", "db", json!({})),
        pod("127.42.0.3", "shop", "job", json!({"metadata": {"labels": {"tier": "back"}}})),
        pod("127.42.0.4", "team", "web", json!({})),
        pod("127.42.0.5", "team", "job", json!({"metadata": {"labels": {"tier": "back"}}})),
        pod("127.42.0.6", "shop", "node", json!({"spec": {"hostNetwork": true}})),
        pod("127.42.0.7", "shop", "done", json!({"status": {"phase": "Succeeded"}})),
    ]
}

/// Merges objects into objects.
fn json_patch(into: &mut Value, more: Value) {
    match (into, more) {
        (Value::Object(into), Value::Object(more)) => {
            more.into_iter()
                .for_each(|(key, value)| json_patch(into.entry(key).or_insert(Value::Null), value));
        }
        (into, more) => *into = more,
    }
}

fn namespaces() -> HashMap<String, Labels> {
    let of = |name: &str, team: &str| {
        let labels = [("kubernetes.io/metadata.name", name), ("team", team)];
        (name.to_string(), labels.map(|(k, v)| (k.to_string(), v.to_string())).into())
    };
    [of("shop", "a"), of("team", "b")].into()
}

fn table(policies: &[Value]) -> Table {
    let policy = |(i, spec): (usize, &Value)| {
        let namespace = spec["in"].as_str().unwrap_or("shop");
        let mut spec = spec.clone();
        spec.as_object_mut().unwrap().remove("in");
        let object = json!({"metadata": {"namespace": namespace, "name": format!("p{i}")}, "spec": spec});
        Arc::new(serde_json::from_value::<NetworkPolicy>(object).unwrap())
    };
    let policies: Vec<_> = policies.iter().enumerate().map(policy).collect();
    let members = pods().into_iter().filter_map(|(_, pod)| {
        let pod: Pod = serde_json::from_value(pod).unwrap();
        Member::of(&pod).map(Arc::new)
    });
    Table::new(&policies, namespaces(), members)
}

/// Each try is `from -> to:port`, of a pod's last number or a whole address; `udp` in front for datagrams.
fn check(policies: &[Value], open: &[&str], shut: &[&str]) {
    let table = table(policies);
    let whole = |text: &str| if text.contains('.') { text.to_string() } else { format!("127.42.0.{text}") };
    for (tries, expect) in [(open, true), (shut, false)] {
        for line in tries {
            let (protocol, rest) =
                line.strip_prefix("udp ").map_or((Protocol::Tcp, *line), |rest| (Protocol::Udp, rest));
            let (from, to) = rest.split_once(" -> ").unwrap();
            let (to, port) = to.split_once(':').unwrap();
            let to: SocketAddr = format!("{}:{port}", whole(to)).parse().unwrap();
            let passed = table.allows(whole(from).parse().unwrap(), to, protocol);
            assert_eq!(passed, expect, "{line} with {policies:?}");
        }
    }
}

fn app(name: &str) -> Value {
    json!({"matchLabels": {"app": name}})
}

#[test]
fn without_a_policy_everything_is_allowed() {
    check(&[], &["1 -> 2:80", "5 -> 2:80", "9.9.9.9 -> 2:80", "1 -> 9.9.9.9:80"], &[]);
    // One that selects others changes nothing.
    check(&[json!({"podSelector": app("nobody"), "ingress": []})], &["5 -> 2:80", "9.9.9.9 -> 2:80"], &[]);
}

#[test]
fn a_policy_without_rules_blocks_what_comes_in() {
    check(
        &[json!({"podSelector": app("db"), "ingress": []})],
        &["2 -> 1:80", "2 -> 2:80", "1 -> 3:80", "5 -> 4:80", "127.0.42.1 -> 2:80", "2 -> 9.9.9.9:80"],
        &["1 -> 2:80", "5 -> 2:80", "9.9.9.9 -> 2:80", "127.0.0.1 -> 2:80", "udp 1 -> 2:53"],
    );
}

#[test]
fn peers_are_chosen_by_pod_namespace_or_both() {
    let from = |peers: Value| [json!({"podSelector": app("db"), "ingress": [{"from": peers}]})];
    check(&from(json!([{"podSelector": app("web")}])), &["1 -> 2:80"], &["4 -> 2:80", "3 -> 2:80"]);
    check(
        &from(json!([{"podSelector": {}}])),
        &["1 -> 2:80", "3 -> 2:80"],
        &["4 -> 2:80", "1.1.1.1 -> 2:80"],
    );
    let team = json!({"matchLabels": {"team": "b"}});
    check(&from(json!([{"namespaceSelector": team}])), &["4 -> 2:80", "5 -> 2:80"], &["1 -> 2:80"]);
    check(
        &from(json!([{"namespaceSelector": team, "podSelector": app("web")}])),
        &["4 -> 2:80"],
        &["5 -> 2:80", "1 -> 2:80"],
    );
    check(
        &from(json!([{"namespaceSelector": team}, {"podSelector": app("web")}])),
        &["4 -> 2:80", "5 -> 2:80", "1 -> 2:80"],
        &["3 -> 2:80"],
    );
    check(&from(json!([{"namespaceSelector": {}}])), &["1 -> 2:80", "4 -> 2:80"], &["9.9.9.9 -> 2:80"]);
    let expression = json!({"matchExpressions": [{"key": "tier", "operator": "DoesNotExist"}]});
    check(&from(json!([{"podSelector": expression}])), &["1 -> 2:80"], &["3 -> 2:80"]);
    check(&from(json!([])), &["1 -> 2:80", "9.9.9.9 -> 2:80", "127.0.0.1 -> 2:80"], &[]);
}

#[test]
fn blocks_have_exceptions() {
    let block = json!({"ipBlock": {"cidr": "4.42.6.0/24", "except": ["4.42.6.5/32"]}});
    check(
        &[json!({"podSelector": {}, "ingress": [{"from": [block]}]})],
        &["4.42.6.4 -> 2:80", "4.42.6.6 -> 1:80"],
        &["4.42.6.5 -> 2:80", "4.42.7.1 -> 2:80", "1 -> 2:80"],
    );
}

#[test]
fn ports_are_numbers_names_and_ranges_of_a_protocol() {
    let ports = |ports: Value| [json!({"podSelector": app("web"), "ingress": [{"ports": ports}]})];
    check(
        &ports(json!([{"protocol": "TCP", "port": 8080}])),
        &["2 -> 1:8080", "9.9.9.9 -> 1:8080"],
        &["2 -> 1:8081", "udp 2 -> 1:8080"],
    );
    check(
        &ports(json!([{"port": "http"}, {"protocol": "UDP", "port": "dns"}])),
        &["2 -> 1:8080", "udp 2 -> 1:5353"],
        &["2 -> 1:80", "2 -> 1:5353", "udp 2 -> 1:8080"],
    );
    check(
        &ports(json!([{"port": 8000, "endPort": 8010}])),
        &["2 -> 1:8000", "2 -> 1:8010"],
        &["2 -> 1:7999", "2 -> 1:8011"],
    );
    check(&ports(json!([{"protocol": "UDP"}])), &["udp 2 -> 1:1"], &["2 -> 1:1"]);
    check(&ports(json!([{"protocol": "SCTP", "port": 80}])), &[], &["2 -> 1:80", "udp 2 -> 1:80"]);
}

#[test]
fn types_say_which_directions_are_restricted() {
    let to_db = json!([{"to": [{"podSelector": app("db")}], "ports": [{"port": 5432}]}]);
    // Rules for what leaves, but only what enters is restricted.
    check(
        &[json!({"podSelector": app("web"), "policyTypes": ["Ingress"], "egress": to_db})],
        &["1 -> 3:80"],
        &["2 -> 1:80"],
    );
    check(
        &[json!({"podSelector": app("web"), "policyTypes": ["Egress"], "egress": to_db})],
        &["1 -> 2:5432", "2 -> 1:80", "3 -> 2:80"],
        &["1 -> 2:80", "1 -> 3:5432", "1 -> 9.9.9.9:5432"],
    );
    // Unsaid, rules for what leaves mean both.
    check(
        &[json!({"podSelector": app("web"), "egress": to_db})],
        &["1 -> 2:5432"],
        &["1 -> 2:80", "2 -> 1:80"],
    );
    check(&[json!({"podSelector": app("web"), "policyTypes": ["Egress"]})], &["2 -> 1:80"], &["1 -> 2:80"]);
}

#[test]
fn policies_add_up_and_both_sides_must_agree() {
    let shut = json!({"podSelector": {}, "ingress": []});
    let open = json!({"podSelector": app("db"), "ingress": [{"from": [{"podSelector": app("web")}]}]});
    check(&[shut.clone(), open.clone()], &["1 -> 2:80"], &["3 -> 2:80", "2 -> 1:80"]);
    let stay = json!({"podSelector": app("web"), "policyTypes": ["Egress"], "egress": []});
    check(&[shut, open, stay], &[], &["1 -> 2:80"]);
    // What another namespace allows its pods does not open this one.
    let theirs = json!({"in": "team", "podSelector": {}, "policyTypes": ["Egress"], "egress": [{}]});
    check(&[json!({"podSelector": {}}), theirs], &["4 -> 5:80"], &["4 -> 2:80"]);
}

#[test]
fn what_has_the_nodes_network_and_what_has_ended_are_no_pods() {
    check(
        &[json!({"podSelector": {}, "policyTypes": ["Ingress", "Egress"]})],
        &["9.9.9.9 -> 6:80"],
        &["1 -> 6:80"],
    );
    // A peer that only a pod can be does not mean them.
    check(
        &[json!({"podSelector": app("db"), "ingress": [{"from": [{"podSelector": {}}]}]})],
        &["1 -> 2:80"],
        &["6 -> 2:80", "7 -> 2:80"],
    );
}

#[test]
fn an_address_is_the_latest_pods() {
    let pod = |name: &str, made: &str| {
        let pod = json!({
            "metadata": {"namespace": "shop", "name": name, "labels": {"app": name}, "creationTimestamp": made},
            "spec": {"containers": []}, "status": {"podIP": "127.42.0.1"},
        });
        let pod: Pod = serde_json::from_value(pod).unwrap();
        Arc::new(Member::of(&pod).unwrap())
    };
    let (old, new) = (pod("old", "2026-01-01T00:00:00Z"), pod("new", "2026-01-02T00:00:00Z"));
    for members in [[old.clone(), new.clone()], [new, old]] {
        let table = Table::new(&[], HashMap::new(), members);
        assert_eq!(table.member("127.42.0.1".parse().unwrap()).unwrap().labels["app"], "new");
    }
}

#[test]
fn names_answered_by_the_cluster_count_as_pods() {
    let dns: SocketAddr = "127.42.255.254:5353".parse().unwrap();
    let to =
        json!([{"to": [{"namespaceSelector": {"matchLabels": {"team": "a"}}, "podSelector": app("dns")}]}]);
    let mut table = table(&[json!({"podSelector": {}, "policyTypes": ["Egress"], "egress": to})]);
    let client = "127.42.0.1".parse().unwrap();
    assert!(!table.allows(client, dns, Protocol::Udp));
    let member = Member::new("shop", [("app".to_string(), "dns".to_string())].into());
    table.build_in(dns, Arc::new(member));
    assert!(table.allows(client, dns, Protocol::Udp));
    assert!(!table.allows(client, (dns.ip(), 6443).into(), Protocol::Tcp), "another port is another program");
}

#[tokio::test]
async fn a_forbidden_connection_gets_no_answer() {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    let policies = Policies::none();
    policies.set(table(&[json!({"podSelector": app("web")})]));
    let listener = tokio::net::TcpListener::bind("127.42.0.1:0").await.unwrap();
    let at = listener.local_addr().unwrap();
    let gate = Gate::new(policies.clone());

    let mut stranger = TcpStream::connect(at).await.unwrap();
    let (stream, client) = listener.accept().await.unwrap();
    assert!(gate.pass(stream, client.ip(), at).is_none());
    stranger.write_all(b"hello").await.unwrap();
    let limit = Duration::from_millis(200);
    assert!(tokio::time::timeout(limit, stranger.read_u8()).await.is_err(), "neither an answer nor an end");
    drop(stranger);

    let _node = policies.connect(at).await.unwrap();
    let (stream, client) = listener.accept().await.unwrap();
    assert_eq!(client.ip(), IpAddr::from(NODE_SOURCE));
    assert!(gate.pass(stream, client.ip(), at).is_some());

    let hole = policies.hole().expect("a hole can be made");
    assert!(tokio::time::timeout(limit, TcpStream::connect(hole)).await.is_err(), "it takes no connection");
}
