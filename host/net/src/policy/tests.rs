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

/// Whether a connection passes, straight from the objects and the words of their documentation.
mod naive {
    use super::*;

    struct Side<'a> {
        address: &'a str,
        pod: Option<&'a Value>,
    }

    fn side<'a>(pods: &'a [(&'static str, Value)], address: &'a str) -> Side<'a> {
        let filtered =
            |pod: &Value| pod["spec"]["hostNetwork"] != true && pod["status"]["phase"] != "Succeeded";
        Side { address, pod: pods.iter().find(|(a, p)| *a == address && filtered(p)).map(|(_, p)| p) }
    }

    fn selects(selector: &Value, labels: &Value) -> bool {
        let equal =
            selector["matchLabels"].as_object().is_none_or(|all| all.iter().all(|(k, v)| labels[k] == *v));
        let terms = selector["matchExpressions"].as_array();
        let holds = terms.is_none_or(|terms| {
            terms.iter().all(|term| {
                let value = &labels[term["key"].as_str().unwrap()];
                let among = term["values"].as_array().is_some_and(|list| list.contains(value));
                match term["operator"].as_str().unwrap() {
                    "In" => among,
                    "NotIn" => !among,
                    "Exists" => !value.is_null(),
                    _ => value.is_null(),
                }
            })
        });
        equal && holds
    }

    fn is_peer(peer: &Value, namespace: &str, side: &Side<'_>) -> bool {
        if let Some(block) = peer.get("ipBlock") {
            let within = |range: &Value| {
                let range: cidr::Cidr = range.as_str().unwrap().parse().unwrap();
                range.contains(side.address.parse().unwrap())
            };
            return within(&block["cidr"])
                && !block["except"].as_array().is_some_and(|e| e.iter().any(within));
        }
        let Some(pod) = side.pod else { return false };
        let theirs = pod["metadata"]["namespace"].as_str().unwrap();
        let in_namespace = match peer.get("namespaceSelector") {
            None => theirs == namespace,
            Some(selector) => selects(selector, &json!(namespaces()[theirs])),
        };
        in_namespace && peer.get("podSelector").is_none_or(|s| selects(s, &pod["metadata"]["labels"]))
    }

    fn is_port(rule: &Value, target: &Side<'_>, port: u16, protocol: Protocol) -> bool {
        let wanted = rule["protocol"].as_str().unwrap_or("TCP");
        if wanted != if protocol == Protocol::Tcp { "TCP" } else { "UDP" } {
            return false;
        }
        match &rule["port"] {
            Value::Null => true,
            Value::String(name) => target.pod.is_some_and(|pod| {
                pod["spec"]["containers"][0]["ports"].as_array().unwrap().iter().any(|p| {
                    p["name"] == *name
                        && p["containerPort"] == port
                        && p["protocol"].as_str().unwrap_or("TCP") == wanted
                })
            }),
            first => {
                let first = first.as_u64().unwrap();
                (first..=rule["endPort"].as_u64().unwrap_or(first)).contains(&u64::from(port))
            }
        }
    }

    /// Whether the policies about one side let the other.
    fn lets(
        policies: &[Value],
        (direction, peers, kind): (&str, &str, &str),
        (own, other): (&Side<'_>, &Side<'_>),
        target: &Side<'_>,
        (port, protocol): (u16, Protocol),
    ) -> bool {
        let Some(pod) = own.pod else { return true };
        let namespace = pod["metadata"]["namespace"].as_str().unwrap();
        let about: Vec<&Value> = policies
            .iter()
            .filter(|p| p["in"].as_str().unwrap_or("shop") == namespace)
            .filter(|p| selects(&p["podSelector"], &pod["metadata"]["labels"]))
            .filter(|p| match p["policyTypes"].as_array().filter(|types| !types.is_empty()) {
                Some(types) => types.iter().any(|t| t == kind),
                None => kind == "Ingress" || p["egress"].as_array().is_some_and(|rules| !rules.is_empty()),
            })
            .collect();
        let rules = about.iter().flat_map(|p| p[direction].as_array().into_iter().flatten());
        let mut fitting = rules.filter(|rule| {
            let some = |key: &str| rule[key].as_array().filter(|list| !list.is_empty()).cloned();
            some(peers).is_none_or(|list| list.iter().any(|p| is_peer(p, namespace, other)))
                && some("ports").is_none_or(|list| list.iter().any(|p| is_port(p, target, port, protocol)))
        });
        about.is_empty() || fitting.next().is_some()
    }

    pub(super) fn allows(policies: &[Value], from: &str, to: &str, port: u16, protocol: Protocol) -> bool {
        let pods = pods();
        let (source, target) = (side(&pods, from), side(&pods, to));
        let at = (port, protocol);
        from == to
            || (lets(policies, ("egress", "to", "Egress"), (&source, &target), &target, at)
                && lets(policies, ("ingress", "from", "Ingress"), (&target, &source), &target, at))
    }
}

fn selectors() -> impl Strategy<Value = Value> {
    prop_oneof![
        Just(json!({})),
        prop::sample::select(vec!["web", "db", "job"]).prop_map(app),
        prop::sample::select(vec!["Exists", "DoesNotExist"])
            .prop_map(|op| json!({"matchExpressions": [{"key": "tier", "operator": op}]})),
        prop::sample::select(vec!["In", "NotIn"]).prop_map(
            |op| json!({"matchExpressions": [{"key": "app", "operator": op, "values": ["web", "db"]}]})
        ),
    ]
}

fn peers() -> impl Strategy<Value = Value> {
    let namespaces = prop_oneof![
        Just(json!({})),
        Just(json!({"matchLabels": {"team": "a"}})),
        Just(json!({"matchLabels": {"team": "b"}}))
    ];
    prop_oneof![
        selectors().prop_map(|s| json!({"podSelector": s})),
        namespaces.clone().prop_map(|s| json!({"namespaceSelector": s})),
        (namespaces, selectors()).prop_map(|(n, p)| json!({"namespaceSelector": n, "podSelector": p})),
        Just(json!({"ipBlock": {"cidr": "127.42.0.0/30", "except": ["127.42.0.2/32"]}})),
        Just(json!({"ipBlock": {"cidr": "9.0.0.0/8"}})),
        Just(json!({"ipBlock": {"cidr": "0.0.0.0/0"}})),
    ]
}

fn ports() -> impl Strategy<Value = Value> {
    prop_oneof![
        Just(json!({"port": 8080})),
        Just(json!({"port": 8000, "endPort": 9000, "protocol": "TCP"})),
        Just(json!({"port": "http"})),
        Just(json!({"port": "dns", "protocol": "UDP"})),
        Just(json!({"protocol": "UDP"})),
        Just(json!({"protocol": "SCTP", "port": 8080})),
    ]
}

fn rules(peers_key: &'static str) -> impl Strategy<Value = Value> {
    let list = |strategy| prop::option::of(prop::collection::vec(strategy, 0..3));
    (list(peers().boxed()), list(ports().boxed())).prop_map(move |(peers, ports)| {
        let mut rule = json!({});
        if let Some(peers) = peers {
            rule[peers_key] = json!(peers);
        }
        if let Some(ports) = ports {
            rule["ports"] = json!(ports);
        }
        rule
    })
}

fn policy() -> impl Strategy<Value = Value> {
    let types = prop::sample::select(vec![
        json!(null),
        json!([]),
        json!(["Ingress"]),
        json!(["Egress"]),
        json!(["Ingress", "Egress"]),
    ]);
    let lists = (prop::collection::vec(rules("from"), 0..3), prop::collection::vec(rules("to"), 0..3));
    (prop::sample::select(vec!["shop", "team"]), selectors(), types, lists).prop_map(
        |(namespace, selector, types, (ingress, egress))| {
            let mut spec =
                json!({"in": namespace, "podSelector": selector, "ingress": ingress, "egress": egress});
            if !types.is_null() {
                spec["policyTypes"] = types;
            }
            spec
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn the_table_says_what_the_objects_say(policies in prop::collection::vec(policy(), 0..4)) {
        let table = table(&policies);
        let mut places: Vec<String> = pods().into_iter().map(|(address, _)| address.into()).collect();
        places.extend(["9.9.9.9".into(), "127.0.0.1".into()]);
        for from in &places {
            for to in &places {
                for (port, protocol) in
                    [(8080, Protocol::Tcp), (80, Protocol::Tcp), (5353, Protocol::Udp), (8080, Protocol::Udp)]
                {
                    let at = SocketAddr::new(to.parse().unwrap(), port);
                    let expect = naive::allows(&policies, from, to, port, protocol);
                    prop_assert_eq!(table.allows(from.parse().unwrap(), at, protocol), expect, "{} -> {}", from, at);
                }
            }
        }
    }
}

/// What happens to a book: pods by a number each, of which the first few are also the node's own.
#[derive(Clone, Debug)]
enum Event {
    Pod(u8, Option<(u8, &'static str)>),
    Place(u8, u8),
    Leave(u8),
    Policies(Vec<Value>),
    Labels(&'static str),
}

fn events() -> impl Strategy<Value = Event> {
    let apps = || prop::sample::select(vec!["web", "db", "job"]);
    prop_oneof![
        4 => (0..6_u8, prop::option::of((1..6_u8, apps()))).prop_map(|(n, pod)| Event::Pod(n, pod)),
        2 => (0..3_u8, 1..6_u8).prop_map(|(n, at)| Event::Place(n, at)),
        1 => (0..3_u8).prop_map(Event::Leave),
        1 => prop::collection::vec(policy(), 0..3).prop_map(Event::Policies),
        1 => prop::sample::select(vec!["a", "b"]).prop_map(Event::Labels),
    ]
}

/// The objects that a book is told of.
#[derive(Default)]
struct World {
    pods: HashMap<Key, Arc<Member>>,
    policies: HashMap<Key, Arc<NetworkPolicy>>,
    namespaces: HashMap<String, Labels>,
}

fn numbered(n: u8, (at, app): (u8, &str)) -> Pod {
    let made = format!("2026-01-01T00:00:{n:02}Z");
    let pod = json!({
        "metadata": {"namespace": if n.is_multiple_of(2) { "shop" } else { "team" }, "name": n.to_string(), "uid": n.to_string(),
            "labels": {"app": app}, "creationTimestamp": made},
        "spec": {"containers": [{"name": "main", "ports": [{"name": "http", "containerPort": 8000 + u16::from(n)}]}]},
        "status": {"podIP": format!("127.42.0.{at}")},
    });
    serde_json::from_value(pod).unwrap()
}

impl World {
    fn happen(&mut self, event: Event, book: &mut Book, places: &mut Places) {
        match event {
            Event::Pod(n, pod) => {
                let name = key(&numbered(n, (1, "")));
                let member = pod.and_then(|pod| Member::of(&numbered(n, pod))).map(Arc::new);
                match &member {
                    Some(member) => drop(self.pods.insert(name.clone(), member.clone())),
                    None => drop(self.pods.remove(&name)),
                }
                book.set_pod(name, member);
            }
            Event::Place(n, at) => {
                let pod = numbered(n, (at, "web"));
                let address: IpAddr = format!("127.42.0.{at}").parse().unwrap();
                places.put(
                    key(&pod),
                    n.to_string(),
                    address,
                    Arc::new(Member::of(&pod).unwrap().at(address)),
                );
            }
            Event::Leave(n) => drop(places.leave(&key(&numbered(n, (1, ""))), &n.to_string())),
            Event::Policies(specs) => {
                let named = |(i, mut spec): (usize, Value)| {
                    let name = (spec["in"].as_str().unwrap_or("shop").to_string(), i.to_string());
                    spec.as_object_mut().unwrap().remove("in");
                    let object = json!({"metadata": {"namespace": name.0, "name": name.1}, "spec": spec});
                    (name, Arc::new(serde_json::from_value(object).unwrap()))
                };
                self.policies = specs.into_iter().enumerate().map(named).collect();
                book.set_policies(self.policies.clone());
            }
            Event::Labels(team) => {
                let labels: Labels = [("team".to_string(), team.to_string())].into();
                self.namespaces.insert("shop".into(), labels.clone());
                book.set_namespace("shop".into(), Some(labels));
            }
        }
    }

    /// The table made of everything.
    fn table(&self, places: &Places) -> Table {
        let policies: Vec<_> = self.policies.values().cloned().collect();
        let mut table = Table::new(&policies, self.namespaces.clone(), self.pods.values().cloned());
        for at in 1..6_u8 {
            let address: IpAddr = format!("127.42.0.{at}").parse().unwrap();
            if let Some((key, placed)) = places.of(address) {
                let known = self.pods.get(key).filter(|m| m.addresses.contains(&address));
                table.place(address, known.unwrap_or(placed).clone());
            }
        }
        table
    }
}

/// Whose an address is, and what is open to him and for him.
type Said = (Option<Arc<Member>>, Vec<Option<Vec<openings::Opening>>>);

/// All that the table says of each address.
fn said(table: &Table) -> Vec<Said> {
    let of = |at: u8| {
        let member = table.member(format!("127.42.0.{at}").parse().unwrap()).cloned();
        let both = [Direction::Ingress, Direction::Egress];
        let open = member.iter().flat_map(|m| both.map(|direction| openings(table, m, direction)));
        (member.clone(), open.collect())
    };
    (1..6).map(of).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn what_changes_makes_the_same_as_all_anew(
        (first, rest) in (prop::collection::vec(policy(), 1..3), prop::collection::vec(events(), 1..40))
    ) {
        let (mut world, mut book, mut places) = (World::default(), Book::default(), Places::default());
        let policies = Policies::none();
        let mut before = said(&Table::default());
        for event in std::iter::once(Event::Policies(first)).chain(rest) {
            let since = policies.inner.history.lock().version();
            world.happen(event.clone(), &mut book, &mut places);
            if let Some((table, delta)) = book.commit(&mut places) {
                policies.change(table, delta);
            }
            let now = said(&policies.table());
            prop_assert_eq!(&now, &said(&world.table(&places)), "after {:?}", event);
            for (at, pair) in (1..6_u8).zip(before.iter().zip(&now)) {
                let news = policies.news(since, format!("127.42.0.{at}").parse().unwrap());
                prop_assert!(since == 0 || news.concerns || pair.0 == pair.1, "{} after {:?}", at, event);
            }
            before = now;
        }
    }
}

#[test]
fn a_change_concerns_whom_the_rules_of_it_are_about() {
    let (mut world, mut book, mut places) = (World::default(), Book::default(), Places::default());
    let rule = json!({"podSelector": app("db"), "ingress": [{"from": [{"podSelector": app("web")}]}]});
    for event in [
        Event::Policies(vec![rule]),
        Event::Pod(0, Some((1, "db"))),
        Event::Pod(2, Some((2, "web"))),
        Event::Pod(4, Some((3, "job"))),
    ] {
        world.happen(event, &mut book, &mut places);
    }
    let policies = Policies::none();
    let at = |n: u8| -> IpAddr { format!("127.42.0.{n}").parse().unwrap() };
    let mut check = |event: Event, changed: bool, concerned: [bool; 3]| {
        let since = policies.news(0, at(1)).version;
        world.happen(event.clone(), &mut book, &mut places);
        assert_eq!(policies.renew(&mut book), changed, "{event:?}");
        assert_eq!([1, 2, 3].map(|n| policies.news(since, at(n)).concerns), concerned, "{event:?}");
    };
    check(Event::Leave(0), true, [true; 3]);
    check(Event::Leave(0), false, [false; 3]);
    check(Event::Pod(2, Some((2, "web"))), false, [false; 3]);
    check(Event::Pod(2, Some((4, "web"))), true, [true, true, false]);
    check(Event::Pod(4, Some((5, "job"))), true, [false, false, true]);
    check(Event::Pod(4, None), true, [false; 3]);
    check(Event::Labels("a"), true, [true; 3]);
}

/// A client of an API that never answers.
fn nobody() -> kube::Client {
    let service = tower::service_fn(|_: http::Request<kube::client::Body>| {
        std::future::pending::<Result<http::Response<kube::client::Body>, std::io::Error>>()
    });
    kube::Client::new(service, "default")
}

#[tokio::test]
async fn the_last_known_rules_count_until_the_api_is_heard() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("policies.json");
    let (mut world, mut book) = (World::default(), Book::default());
    let rule = json!({"podSelector": app("db"), "ingress": [{"from": [{"podSelector": app("web")}]}]});
    for event in
        [Event::Policies(vec![rule]), Event::Pod(0, Some((1, "db"))), Event::Pod(2, Some((2, "web")))]
    {
        world.happen(event, &mut book, &mut Places::default());
    }
    Memory::new(file.clone()).write(book.page()).unwrap();

    let (policies, keep) = Policies::new(nobody(), View::empty(), Some(file.clone()));
    let allows = |from: u8, to: u8| {
        let address = |n: u8| -> IpAddr { format!("127.42.0.{n}").parse().unwrap() };
        policies.allows(address(from), (address(to), 80).into(), Protocol::Tcp)
    };
    assert!(allows(2, 1) && !allows(3, 1), "before anything else happens");
    // A pod that is started meanwhile has its rules, too.
    let keep = tokio::spawn(keep);
    policies.place(&numbered(4, (3, "db")), "127.42.0.3".parse().unwrap());
    policies.settled("127.42.0.3".parse().unwrap(), Duration::from_secs(20)).await;
    assert!(allows(2, 3) && !allows(4, 3));
    keep.abort();

    std::fs::write(&file, "{").unwrap();
    assert!(
        !Policies::new(nobody(), View::empty(), Some(file)).0.is_active(),
        "nothing is made of what is damaged"
    );
}

#[test]
fn a_page_is_kept_whole_or_without_its_pods() {
    let dir = tempfile::tempdir().unwrap();
    let memory = Memory::new(dir.path().join("policies.json"));
    let mut book = Book::default();
    let mut world = World::default();
    world.happen(Event::Policies(vec![json!({"podSelector": {}})]), &mut book, &mut Places::default());
    let labels: Labels = [("app".to_string(), "x".repeat(1 << 20))].into();
    let pods = |count: u32| {
        let member = Arc::new(Member::new("shop", labels.clone()));
        (0..count).map(|n| (("shop".to_string(), n.to_string()), member.clone())).collect::<HashMap<_, _>>()
    };
    for (count, kept) in [(3, 3), (40, 0)] {
        book.set_pods(pods(count));
        memory.write(book.page()).unwrap();
        let page: Page = memory.read();
        assert_eq!((page.pods.len(), Book::open(page).is_active()), (kept, true), "{count}");
    }
}
