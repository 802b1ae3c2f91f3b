//! The table beside a naive reading of the objects.

use super::*;

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

pub(super) fn policy() -> impl Strategy<Value = Value> {
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
