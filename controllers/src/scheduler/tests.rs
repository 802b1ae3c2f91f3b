//! Where pods go, as tables.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::Node;
use serde_json::{Value, json};

use super::*;

/// `name [cpu=N] [memory=Mi] [pods=N] [KEY:VALUE label] [taint=KEY] [avoid=KEY] [cordoned]
/// [handler=NAME]`.
fn node(text: &str) -> Arc<Node> {
    let mut words = text.split_whitespace();
    let name = words.next().unwrap();
    let mut allocatable = json!({"cpu": "4", "memory": "8Gi", "pods": "110"});
    let mut labels = json!({"kubernetes.io/hostname": name});
    let mut spec = json!({"taints": []});
    let mut handlers = Vec::new();
    for word in words {
        match word.split_once('=') {
            Some(("memory", value)) => allocatable["memory"] = json!(format!("{value}Mi")),
            Some(("taint", key)) => spec["taints"] = json!([{"key": key, "effect": "NoSchedule"}]),
            Some(("avoid", key)) => spec["taints"] = json!([{"key": key, "effect": "PreferNoSchedule"}]),
            Some(("handler", value)) => handlers.push(json!({"name": value})),
            Some((resource, value)) => allocatable[resource] = json!(value),
            None if word == "cordoned" => spec["unschedulable"] = json!(true),
            None => {
                let (key, value) = word.split_once(':').unwrap();
                labels[key] = json!(value);
            }
        }
    }
    let meta = json!({"name": name, "uid": name, "labels": labels});
    let status = json!({"allocatable": allocatable, "runtimeHandlers": handlers});
    Arc::new(serde_json::from_value(json!({"metadata": meta, "spec": spec, "status": status})).unwrap())
}

/// A pod of app `web`, with extra fields of its spec.
fn pod(name: &str, spec: Value) -> Arc<PodInfo> {
    let mut whole = json!({
        "metadata": {"name": name, "namespace": "ns", "uid": name, "labels": {"app": "web"},
            "ownerReferences": [{"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "web", "uid": "rs", "controller": true}]},
        "spec": {"containers": [{"name": "c", "image": "img"}]},
    });
    for (key, value) in spec.as_object().unwrap() {
        whole["spec"][key] = value.clone();
    }
    Arc::new(PodInfo::new(Arc::new(serde_json::from_value(whole).unwrap())))
}

fn asking(cpu: &str) -> Value {
    json!({"containers": [{"name": "c", "resources": {"requests": {"cpu": cpu}}}]})
}

fn cluster(nodes: &[&str], placed: &[(&str, Arc<PodInfo>)]) -> Cluster {
    let mut cluster = Cluster::default();
    nodes.iter().for_each(|n| cluster.put_node(node(n)));
    placed.iter().for_each(|(node, pod)| cluster.place(node, pod.clone()));
    cluster
}

fn decide(cluster: &Cluster, pod: &PodInfo, class: Option<&RuntimeClass>) -> String {
    let snapshot = cluster.snapshot();
    let given = Given { class: class.map(|c| Arc::new(c.clone())), volumes: Vec::new(), limits: None };
    let cycle = Cycle::new(pod, &snapshot, &given, &mut Tallies::default());
    match choose(pod, &snapshot, &cycle, &Profile::default(), 0) {
        Ok((index, _)) => snapshot.nodes[index].name.clone(),
        Err(rejections) => {
            let all: Vec<_> = rejections.into_iter().map(|(_, r)| r).collect();
            explain::message(snapshot.nodes.len(), &all)
        }
    }
}

fn check(nodes: &[&str], placed: &[(&str, Value)], spec: Value, expect: &str) {
    let name = |i: usize| format!("old{i}");
    let placed: Vec<_> =
        placed.iter().enumerate().map(|(i, (n, s))| (*n, pod(&name(i), s.clone()))).collect();
    assert_eq!(decide(&cluster(nodes, &placed), &pod("new", spec.clone()), None), expect, "{spec}");
}

#[test]
fn resources_decide_what_fits() {
    let half = || asking("500m");
    let full = [("a", half()), ("a", half()), ("a", half()), ("a", half())];
    check(&["a cpu=2"], &full[..3], half(), "a");
    check(&["a cpu=2"], &full, half(), "0/1 nodes are available: 1 Insufficient cpu.");
    check(&["a cpu=2", "b cpu=1"], &full, half(), "b");
    check(&["a pods=1"], &full[..1], json!({}), "0/1 nodes are available: 1 Too many pods.");
    check(&["a"], &[], asking("9"), "0/1 nodes are available: 1 Insufficient cpu.");
    check(&[], &[], json!({}), "no nodes available to schedule pods");
    let gpu = json!({"containers": [{"name": "c", "resources": {"requests": {"example.com/gpu": "1"}}}]});
    check(&["a"], &[], gpu.clone(), "0/1 nodes are available: 1 Insufficient example.com/gpu.");
    check(&["a", "b example.com/gpu=1"], &[], gpu, "b");
    let init = json!({"initContainers": [{"name": "i", "resources": {"requests": {"cpu": "3"}}}],
        "overhead": {"cpu": "2"}});
    check(&["a"], &[], init, "0/1 nodes are available: 1 Insufficient cpu.");
}

#[test]
fn labels_taints_and_names_are_respected() {
    check(&["a", "b disk:ssd"], &[], json!({"nodeSelector": {"disk": "ssd"}}), "b");
    check(
        &["a"],
        &[],
        json!({"nodeSelector": {"disk": "ssd"}}),
        "0/1 nodes are available: 1 node(s) didn't match Pod's node affinity/selector.",
    );
    let wants = |op: &str, values: Value| {
        json!({"affinity": {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms":
            [{"matchExpressions": [{"key": "n", "operator": op, "values": values}]}]}}}})
    };
    check(&["a n:1", "b n:5"], &[], wants("Gt", json!(["3"])), "b");
    check(&["a n:1", "b n:5"], &[], wants("NotIn", json!(["1"])), "b");
    check(
        &["a taint=x", "b cordoned"],
        &[],
        json!({}),
        "0/2 nodes are available: 1 node(s) had untolerated taint(s), 1 node(s) were unschedulable.",
    );
    check(&["a taint=x"], &[], json!({"tolerations": [{"operator": "Exists"}]}), "a");
    check(&["a avoid=x", "b"], &[("b", asking("3"))], json!({}), "b");
    check(&["a avoid=x"], &[], json!({}), "a");
    check(&["a", "b"], &[], json!({"nodeName": "b"}), "b");
}

#[test]
fn a_port_of_the_node_is_given_once() {
    let port = |ip: &str| json!({"containers": [{"name": "c", "ports": [{"containerPort": 80, "hostPort": 80, "hostIP": ip}]}]});
    check(&["a", "b"], &[("a", port(""))], port("10.0.0.1"), "b");
    check(&["a"], &[("a", port("10.0.0.2"))], port("10.0.0.1"), "a");
    check(
        &["a"],
        &[("a", port("10.0.0.1"))],
        port("10.0.0.1"),
        "0/1 nodes are available: 1 node(s) didn't have free ports for the requested pod ports.",
    );
}

#[test]
fn a_runtime_must_be_offered() {
    let class: RuntimeClass =
        serde_json::from_value(json!({"metadata": {"name": "wasm"}, "handler": "wasmtime"})).unwrap();
    let pod = pod("p", json!({"runtimeClassName": "wasm"}));
    let at = |nodes: &[&str]| decide(&cluster(nodes, &[]), &pod, Some(&class));
    assert_eq!(at(&["a handler=runc", "b handler=wasmtime"]), "b");
    assert_eq!(at(&["a"]), "a", "a node that says nothing is trusted");
    assert_eq!(
        at(&["a handler=runc"]),
        "0/1 nodes are available: 1 node(s) didn't offer runtime handler \"wasmtime\"."
    );
}

#[test]
fn affinity_and_its_opposite() {
    let term =
        json!([{"labelSelector": {"matchLabels": {"app": "web"}}, "topologyKey": "kubernetes.io/hostname"}]);
    let rule =
        |kind: &str| json!({"affinity": {kind: {"requiredDuringSchedulingIgnoredDuringExecution": term}}});
    check(&["a", "b"], &[("b", json!({}))], rule("podAffinity"), "b");
    check(&["a"], &[], rule("podAffinity"), "a");
    check(&["a", "b"], &[("a", json!({}))], rule("podAntiAffinity"), "b");
    check(
        &["a"],
        &[("a", json!({}))],
        rule("podAntiAffinity"),
        "0/1 nodes are available: 1 node(s) didn't match pod anti-affinity rules.",
    );
    check(
        &["a"],
        &[("a", rule("podAntiAffinity"))],
        json!({}),
        "0/1 nodes are available: 1 node(s) didn't satisfy existing pods anti-affinity rules.",
    );
    let wish = json!({"affinity": {"podAffinity": {"preferredDuringSchedulingIgnoredDuringExecution":
        [{"weight": 100, "podAffinityTerm": term[0]}]}}});
    check(&["a", "b"], &[("b", asking("1"))], wish, "b");
}

#[test]
fn spreading_hard_soft_and_by_default() {
    let spread = |when: &str| {
        json!({"topologySpreadConstraints": [{"maxSkew": 1, "topologyKey": "zone", "whenUnsatisfiable": when,
            "labelSelector": {"matchLabels": {"app": "web"}}}]})
    };
    let nodes = ["a zone:1", "b zone:2"];
    check(&nodes, &[("a", json!({}))], spread("DoNotSchedule"), "b");
    check(&nodes, &[("a", json!({}))], spread("ScheduleAnyway"), "b");
    check(
        &["a zone:1", "b zone:2 taint=x"],
        &[("a", json!({}))],
        spread("DoNotSchedule"),
        "0/2 nodes are available: 1 node(s) didn't match pod topology spread constraints, \
         1 node(s) had untolerated taint(s).",
    );
    check(&["a", "b", "c"], &[("a", json!({})), ("b", json!({}))], json!({}), "c");
}

#[test]
fn the_account_follows_what_happens() {
    let mut state = State::default();
    let on_pod = |state: &mut State, old: Option<&Arc<Pod>>, new: Option<&Arc<Pod>>| {
        let waiting = new.and_then(|pod| feed::waiting(&Settings::default(), pod));
        feed::on_pod(state, waiting, old, new)
    };
    state.cluster.put_node(node("a cpu=1"));
    let whole = |name: &str, at: &str| {
        let mut pod = (*pod(name, asking("1")).pod).clone();
        pod.spec.as_mut().unwrap().node_name = (!at.is_empty()).then(|| at.to_owned());
        Arc::new(pod)
    };
    let (free, bound) = (whole("p", ""), whole("p", "a"));
    on_pod(&mut state, None, Some(&free));
    let taken = state.queue.take().unwrap();
    state.cluster.place("a", taken);
    on_pod(&mut state, Some(&free), Some(&free));
    assert!(state.queue.take().is_none(), "an assumed pod does not come back");
    assert_eq!(
        decide(&state.cluster, &pod("q", asking("1")), None),
        "0/1 nodes are available: 1 Insufficient cpu."
    );
    assert_eq!(on_pod(&mut state, Some(&free), Some(&bound)), Some(Change::POD_PLACED));
    assert_eq!(on_pod(&mut state, Some(&bound), Some(&bound)), None);
    assert_eq!(on_pod(&mut state, Some(&bound), None), Some(Change::pod_gone(state.cluster.room_on("a"))));
    assert_eq!(decide(&state.cluster, &pod("q", asking("1")), None), "a");
    // A pod may be known before its node.
    on_pod(&mut state, None, Some(&whole("r", "b")));
    state.cluster.put_node(node("b cpu=1"));
    state.cluster.remove_node("a");
    assert_eq!(
        decide(&state.cluster, &pod("q", asking("1")), None),
        "0/1 nodes are available: 1 Insufficient cpu."
    );
}

#[test]
fn preemption_takes_the_least_important() {
    let with = |name: &str, cpu: &str, priority: i32| {
        let mut spec = asking(cpu);
        spec["priority"] = json!(priority);
        pod(name, spec)
    };
    let placed = [("a", with("a1", "1", 5)), ("a", with("a2", "1", 1)), ("b", with("b1", "2", 3))];
    let cluster = cluster(&["a cpu=2", "b cpu=2", "c cordoned"], &placed);
    let find = |pod: &PodInfo| {
        let snapshot = cluster.snapshot();
        let given = Given::default();
        let cycle = Cycle::new(pod, &snapshot, &given, &mut Tallies::default());
        let rejections = choose(pod, &snapshot, &cycle, &Profile::default(), 0).unwrap_err();
        preempt::find(pod, &snapshot, &rejections, &cycle, &[]).map(|v| {
            let names: Vec<_> = v.pods.iter().map(|p| p.uid.clone()).collect();
            format!("{} without {}", v.node, names.join(" "))
        })
    };
    assert_eq!(find(&with("new", "1", 9)).as_deref(), Some("a without a2"));
    assert_eq!(find(&with("new", "2", 9)).as_deref(), Some("b without b1"));
    assert_eq!(find(&with("new", "2", 3)), None);
    assert_eq!(find(&with("new", "5", 9)), None);
}

fn with_priority(name: &str, cpu: &str, priority: i32) -> Arc<PodInfo> {
    let mut spec = asking(cpu);
    spec["priority"] = json!(priority);
    pod(name, spec)
}

#[test]
fn preemption_keeps_what_budgets_want() {
    let labelled = |name: &str, app: &str, priority: i32| {
        let mut whole = (*with_priority(name, "1", priority).pod).clone();
        whole.metadata.labels = Some([("app".to_owned(), app.to_owned())].into());
        Arc::new(PodInfo::new(Arc::new(whole)))
    };
    let placed =
        [("a", labelled("db", "db", 1)), ("a", labelled("web", "web", 2)), ("b", labelled("other", "x", 5))];
    let cluster = cluster(&["a cpu=2", "b cpu=1"], &placed);
    let budget = |app: &str, allowed: i32| {
        let budget: PodDisruptionBudget = serde_json::from_value(json!({
            "metadata": {"name": app, "namespace": "ns"}, "spec": {"selector": {"matchLabels": {"app": app}}},
            "status": {"disruptionsAllowed": allowed, "currentHealthy": 1, "desiredHealthy": 1, "expectedPods": 1}}))
        .unwrap();
        Budget::of(&budget).unwrap()
    };
    let find = |budgets: &[Budget], priority: i32| {
        let (snapshot, given, pod) =
            (cluster.snapshot(), Given::default(), with_priority("new", "1", priority));
        let cycle = Cycle::new(&pod, &snapshot, &given, &mut Tallies::default());
        let rejections = choose(&pod, &snapshot, &cycle, &Profile::default(), 0).unwrap_err();
        let victims = preempt::find(&pod, &snapshot, &rejections, &cycle, budgets).unwrap();
        victims.pods.iter().map(|p| p.uid.clone()).collect::<Vec<_>>().join(" ")
    };
    assert_eq!(find(&[], 9), "db", "the least important");
    assert_eq!(find(&[budget("db", 1)], 9), "db", "its budget allows one");
    assert_eq!(find(&[budget("db", 0)], 9), "web", "its budget allows none");
    assert_eq!(find(&[budget("db", 0), budget("web", 0)], 9), "other", "a node where no promise is broken");
    assert_eq!(find(&[budget("db", 0), budget("web", 0)], 3), "db", "if there is no other way, even so");
}

#[test]
fn room_that_was_made_is_kept_for_the_one_it_was_made_for() {
    let mut cluster = cluster(&["a cpu=2"], &[]);
    let important = with_priority("important", "2", 9);
    cluster.nominate("a", important.clone());
    let refusal = "0/1 nodes are available: 1 Insufficient cpu.";
    assert_eq!(decide(&cluster, &with_priority("small", "1", 5), None), refusal);
    assert_eq!(decide(&cluster, &with_priority("equal", "1", 9), None), refusal);
    assert_eq!(decide(&cluster, &with_priority("more", "1", 10), None), "a", "not from who matters more");
    assert_eq!(decide(&cluster, &important, None), "a");
    cluster.nominate("a", with_priority("greater", "1", 10));
    assert_eq!(
        decide(&cluster, &with_priority("small", "1", 5), None),
        "a",
        "the weaker one has lost its place"
    );
    cluster.unnominate("greater");
    assert_eq!(decide(&cluster, &with_priority("small", "2", 5), None), "a");
}

#[test]
fn profiles_choose_in_their_own_way() {
    let cluster = cluster(&["a", "b"], &[("a", pod("old", asking("1")))]);
    let choice = |profile: &Profile| {
        let mut whole = (*pod("new", asking("1")).pod).clone();
        whole.metadata.owner_references = None;
        let pod = PodInfo::new(Arc::new(whole));
        let snapshot = cluster.snapshot();
        let cycle = Cycle::new(&pod, &snapshot, &Given::default(), &mut Tallies::default());
        let (place, _) = choose(&pod, &snapshot, &cycle, profile, 0).unwrap();
        snapshot.nodes[place].name.clone()
    };
    assert_eq!(choice(&Profile::default()), "b");
    let balance = BTreeMap::from([("NodeResourcesBalancedAllocation".to_owned(), 0)]);
    let packing = Profile { name: "packing".into(), strategy: Strategy::MostAllocated, weights: balance };
    assert_eq!(choice(&packing), "a");
    let check = |profiles: Vec<Profile>| Settings { profiles, ..Settings::default() }.check();
    assert!(check(vec![Profile::default(), packing.clone()]).is_ok());
    assert!(check(vec![packing.clone(), packing.clone()]).is_err() && check(Vec::new()).is_err());
    let unknown = Profile { weights: [("Luck".to_owned(), 1)].into(), ..packing };
    assert!(check(vec![unknown]).unwrap_err().to_string().contains("Luck"));
}

#[test]
fn a_change_of_a_node_wakes_those_it_matters_to() {
    let change = |before: &str, after: &str| feed::changed_for(&node(before), &node(after));
    assert!(change("a", "a").is_empty());
    assert_eq!(change("a cpu=1", "a cpu=2"), Plugins::of(&[Plugin::NodeResourcesFit]));
    assert_eq!(change("a taint=x", "a"), Plugins::of(&[Plugin::TaintToleration, Plugin::PodTopologySpread]));
    assert_eq!(change("a cordoned", "a"), Plugins::of(&[Plugin::NodeUnschedulable]));
    assert_eq!(change("a", "a handler=wasm"), Plugins::of(&[Plugin::RuntimeHandler]));
    assert!(change("a", "a disk:ssd").meets(Plugins::of(&[Plugin::NodeAffinity])));
}

#[test]
fn images_that_are_there_attract() {
    let with_image = |name: &str, image: &str, size: i64| {
        let mut node = (*node(name)).clone();
        let images = json!([{"names": [image], "sizeBytes": size}]);
        node.status.as_mut().unwrap().images = serde_json::from_value(images).unwrap();
        Arc::new(node)
    };
    let mut cluster = Cluster::default();
    cluster.put_node(node("a"));
    cluster.put_node(with_image("b", "img:latest", 2 << 30));
    assert_eq!(decide(&cluster, &pod("new", json!({})), None), "b");
    cluster.put_node(with_image("b", "other:latest", 2 << 30));
    assert_eq!(decide(&cluster, &pod("new", json!({})), None), "a");
}

#[test]
fn what_no_removal_changes_is_not_tried() {
    let said = |nodes: &[&str], cpu: &str| {
        let cluster = cluster(nodes, &[("a", pod("old", asking("1")))]);
        let (snapshot, given, pod) = (cluster.snapshot(), Given::default(), with_priority("new", cpu, 9));
        let cycle = Cycle::new(&pod, &snapshot, &given, &mut Tallies::default());
        let rejections = choose(&pod, &snapshot, &cycle, &Profile::default(), 0).unwrap_err();
        rejections[0].1.resolvable
    };
    assert!(said(&["a cpu=1"], "1"));
    assert!(!said(&["a cpu=1"], "2"), "the whole node has less");
}

mod counts;

mod account {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        /// However nodes and pods come, move and go: the account is what one made afresh from what is
        /// there would be.
        #[test]
        fn is_the_sum_of_what_is_there(acts in prop::collection::vec((0..5u8, 0..6usize, 0..12usize, 0..3usize), 0..120)) {
            let rules = [json!({}), json!({"affinity": {"podAntiAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [
                {"labelSelector": {"matchLabels": {"app": "web"}}, "topologyKey": "zone"}]}}}), asking("1")];
            let mut cluster = Cluster::default();
            let mut nodes = std::collections::BTreeSet::new();
            let mut places = BTreeMap::new();
            for (act, n, p, rule) in acts {
                let (name, uid) = (format!("n{n}"), format!("p{p}"));
                match act {
                    0 => {
                        cluster.put_node(node(&format!("{name} cpu={}", rule + 1)));
                        nodes.insert(name);
                    }
                    1 => {
                        cluster.remove_node(&name);
                        nodes.remove(&name);
                    }
                    2 => {
                        cluster.remove_pod(&uid);
                        places.remove(&uid);
                    }
                    _ => {
                        cluster.place(&name, pod(&uid, rules[rule].clone()));
                        places.insert(uid, (name, rule));
                    }
                }
            }
            let snapshot = cluster.snapshot();
            prop_assert_eq!(snapshot.nodes.len(), nodes.len());
            let mut forbidding = 0;
            let mut counted = BTreeMap::new();
            for (place, info) in snapshot.nodes.iter().enumerate() {
                prop_assert_eq!(snapshot.position(&info.name), Some(place));
                let here: Vec<_> = places.iter().filter(|(_, (n, _))| *n == info.name).collect();
                prop_assert_eq!(info.pods.len(), here.len());
                prop_assert_eq!(info.requested.pods, here.len() as i64);
                prop_assert_eq!(info.requested.cpu, here.iter().filter(|(_, (_, r))| *r == 2).count() as i64 * 1000);
                for pod in info.pods.values() {
                    *counted.entry((pod.group, place)).or_insert(0_i64) += 1;
                }
            }
            for (id, group) in &snapshot.groups.all {
                forbidding += usize::from(!group.sample.rules.anti_affinity.is_empty());
                for (place, count) in &group.nodes {
                    prop_assert_eq!(counted.remove(&(*id, *place)), Some(*count));
                }
            }
            prop_assert!(counted.is_empty());
            let said = |(said, _): &&groups::Saying| *said == groups::Said::MustNot;
            prop_assert_eq!(snapshot.groups.sayings.keys().filter(said).count(), forbidding.min(1));
        }
    }
}
