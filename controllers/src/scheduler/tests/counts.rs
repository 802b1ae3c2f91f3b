//! What is kept of earlier counts is what counting all pods anew would give.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;
use serde_json::{Value, json};

use super::{
    super::{node::NodeInfo, rules::Crowd},
    *,
};

/// Pods of two applications in two namespaces.
fn pod_of(uid: &str, look: usize, rules: usize, going: bool) -> Arc<PodInfo> {
    let (namespace, app) = (["ns", "other"][look / 2 % 2], ["web", "db"][look % 2]);
    let labels = json!({"app": app, "pod": uid});
    let mut metadata = json!({"name": uid, "uid": uid, "namespace": namespace, "labels": labels});
    if going {
        metadata["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
    }
    let mut spec = json!({"containers": [{"name": "c", "image": "img"}]});
    spec.as_object_mut().unwrap().extend(rules_of(rules).as_object().unwrap().clone());
    let whole = json!({"metadata": metadata, "spec": spec});
    Arc::new(PodInfo::new(Arc::new(serde_json::from_value(whole).unwrap())))
}

fn rules_of(number: usize) -> Value {
    let web = json!({"matchLabels": {"app": "web"}});
    let term = |key: &str, more: Value| {
        let mut term = json!({"labelSelector": web, "topologyKey": key});
        term.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        term
    };
    let required = |kind: &str, term: Value| json!({"affinity": {kind: {"requiredDuringSchedulingIgnoredDuringExecution": [term]}}});
    let preferred = |kind: &str, weight: i64, term: Value| {
        let wish = json!({"weight": weight, "podAffinityTerm": term});
        json!({"affinity": {kind: {"preferredDuringSchedulingIgnoredDuringExecution": [wish]}}})
    };
    let spread = |when: &str, more: Value| {
        let mut one =
            json!({"maxSkew": 1, "topologyKey": "zone", "whenUnsatisfiable": when, "labelSelector": web});
        one.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        json!({"topologySpreadConstraints": [one]})
    };
    let host = "kubernetes.io/hostname";
    match number {
        0 => json!({}),
        1 => required("podAffinity", term("zone", json!({}))),
        2 => required("podAntiAffinity", term(host, json!({}))),
        3 => required(
            "podAntiAffinity",
            term("zone", json!({"namespaceSelector": {"matchLabels": {"team": "a"}}})),
        ),
        4 => preferred("podAffinity", 30, term("zone", json!({"namespaces": ["ns", "other"]}))),
        5 => preferred("podAntiAffinity", 50, term(host, json!({"matchLabelKeys": ["app"]}))),
        6 => spread("DoNotSchedule", json!({"nodeTaintsPolicy": "Honor"})),
        7 => spread("ScheduleAnyway", json!({"topologyKey": host})),
        8 => {
            let mut both = spread("DoNotSchedule", json!({"minDomains": 3}));
            both["nodeSelector"] = json!({"disk": "ssd"});
            both
        }
        _ => required("podAffinity", term("zone", json!({"mismatchLabelKeys": ["pod"]}))),
    }
}
const RULES: usize = 10;

fn node_of(name: &str, look: usize) -> Arc<Node> {
    let looks = ["zone:1 disk:ssd", "zone:1", "zone:2 disk:ssd", "zone:2 taint=x", "zone:3", "disk:ssd"];
    node(&format!("{name} {}", looks[look % looks.len()]))
}

/// What all pods say about a node, counted one by one: whether they allow it, the skew of each constraint, the sum
/// of wishes.
type Verdict = (bool, Vec<Option<i64>>, i64);

/// Pods in the place of a node, by what counts.
fn around(snapshot: &Snapshot, place: usize, key: &str, counts: impl Fn(&NodeInfo, &PodInfo) -> i64) -> i64 {
    let Some(value) = snapshot.nodes[place].label(key) else { return 0 };
    let here = snapshot.nodes.iter().filter(|n| n.label(key) == Some(value));
    here.flat_map(|n| n.pods.values().map(|p| counts(n, p))).sum()
}

fn skew(pod: &PodInfo, snapshot: &Snapshot, place: usize, rule: &rules::Constraint) -> Option<i64> {
    let crowd: &Crowd = &rule.crowd;
    snapshot.nodes[place].label(&crowd.topology)?;
    let count = |place: usize| {
        around(snapshot, place, &crowd.topology, |n, p| i64::from(crowd.takes_in(pod, n) && crowd.counts(p)))
    };
    let taking = (0..snapshot.nodes.len()).filter(|i| crowd.takes_in(pod, &snapshot.nodes[*i]));
    let domains: BTreeMap<&str, i64> =
        taking.filter_map(|i| Some((snapshot.nodes[i].label(&crowd.topology)?, count(i)))).collect();
    let too_few = rule.min_domains.is_some_and(|min| (domains.len() as i32) < min);
    let least = if too_few { 0 } else { domains.values().copied().min().unwrap_or(0) };
    Some(count(place) + i64::from(rule.counts_itself) - least)
}

fn verdict(pod: &PodInfo, snapshot: &Snapshot, place: usize) -> Verdict {
    let (rules, names) = (&pod.rules, &snapshot.namespaces);
    let every = || snapshot.nodes.iter().flat_map(|n| n.pods.values());
    let meant = |place: usize, term: &rules::Term| {
        around(snapshot, place, &term.topology, |_, p| i64::from(term.matches(p, names)))
    };
    let labelled = |term: &rules::Term| snapshot.nodes[place].label(&term.topology).is_some();
    let nobody = |term: &rules::Term| {
        !snapshot
            .nodes
            .iter()
            .any(|n| n.label(&term.topology).is_some() && n.pods.values().any(|p| term.matches(p, names)))
    };
    let first = rules.affinity.iter().all(|t| nobody(t) && t.matches(pod, names));
    let near = rules.affinity.iter().all(|t| labelled(t) && (first || meant(place, t) > 0));
    let far = rules.anti_affinity.iter().all(|t| meant(place, t) == 0);
    let shunned = |term: &rules::Term| {
        term.matches(pod, names)
            && around(snapshot, place, &term.topology, |_, p| {
                i64::from(p.rules.anti_affinity.iter().any(|t| **t == *term))
            }) > 0
    };
    let wanted = !every().any(|p| p.rules.anti_affinity.iter().any(|t| shunned(t)));
    let skews: Vec<_> = rules.spread.iter().map(|c| (c, skew(pod, snapshot, place, c))).collect();
    let spread = skews.iter().filter(|(c, _)| c.hard).all(|(c, s)| s.is_some_and(|s| s <= c.max_skew));
    let own: i64 = rules.preferred.iter().map(|(weight, t)| weight * meant(place, t)).sum();
    let theirs = |key: &str| {
        around(snapshot, place, key, |_, p| {
            let about = |t: &Arc<rules::Term>| t.topology == key && t.matches(pod, names);
            let wishes = p.rules.preferred.iter().filter(|(_, t)| about(t)).map(|(w, _)| *w).sum::<i64>();
            wishes + p.rules.affinity.iter().filter(|t| about(t)).count() as i64
        })
    };
    let points = own + theirs("zone") + theirs("kubernetes.io/hostname");
    (near && far && wanted && spread, skews.into_iter().map(|(_, s)| s).collect(), points)
}

fn compare(pod: &PodInfo, cluster: &Cluster, tallies: &mut Tallies) {
    let snapshot = cluster.snapshot();
    let cycle = Cycle::new(pod, &snapshot, &Given::default(), tallies);
    for place in 0..snapshot.nodes.len() {
        let spread = cycle.others.spread.iter().chain(&cycle.soft_spread);
        let points = cycle.wishes.iter().filter_map(|(weight, tally)| Some(weight * tally.at(place)?)).sum();
        let kept: Verdict = (cycle.others.allow(place), spread.map(|s| s.skew_at(place)).collect(), points);
        assert_eq!(kept, verdict(pod, &snapshot, place), "{} on {}", pod.uid, snapshot.nodes[place].name);
    }
}

fn act(cluster: &mut Cluster, (act, n, p, look, rules): (u8, usize, usize, usize, usize)) {
    let (name, uid) = (format!("n{n}"), format!("p{p}"));
    match act {
        0 | 1 => cluster.put_node(node_of(&name, look)),
        2 => cluster.remove_node(&name),
        3 => drop(cluster.remove_pod(&uid)),
        4 => {
            let labels = BTreeMap::from([("team".to_owned(), ["a", "b"][look % 2].to_owned())]);
            cluster.put_namespace(["ns", "other"][n % 2], (look != 5).then_some(labels));
        }
        5 => cluster.place(&name, pod_of(&uid, look, rules, true)),
        _ => cluster.place(&name, pod_of(&uid, look, rules, false)),
    }
}

proptest! {
    /// However nodes, namespaces and pods come, change, move and go.
    #[test]
    fn are_those_of_all_pods(
        acts in prop::collection::vec((0..12u8, 0..5usize, 0..14usize, 0..6usize, 0..RULES), 1..60),
        asking in prop::collection::vec((0..4usize, 0..RULES), 1..4),
    ) {
        let (mut cluster, mut tallies) = (Cluster::default(), Tallies::default());
        let asking: Vec<_> =
            asking.iter().enumerate().map(|(i, (look, rules))| pod_of(&format!("q{i}"), *look, *rules, false)).collect();
        for (i, one) in acts.into_iter().enumerate() {
            act(&mut cluster, one);
            // Some are asked often, some seldom.
            asking.iter().enumerate().filter(|(k, _)| i % (k * k + 1) == 0).for_each(|(_, pod)| compare(pod, &cluster, &mut tallies));
        }
    }

    /// Without some pods of a node it is as if they had gone.
    #[test]
    fn without_some_are_those_of_the_others(
        placed in prop::collection::vec((0..4usize, 0..6usize, 0..RULES), 1..16),
        gone in prop::collection::btree_set(0..16usize, 0..6),
        place in 0..4usize, look in 0..4usize, rules in 0..RULES,
    ) {
        let mut cluster = Cluster::default();
        (0..4).for_each(|i| cluster.put_node(node_of(&format!("n{i}"), i)));
        for (i, (n, look, rules)) in placed.iter().enumerate() {
            cluster.place(&format!("n{n}"), pod_of(&format!("p{i}"), *look, *rules, false));
        }
        let (pod, snapshot) = (pod_of("q", look, rules, false), cluster.snapshot());
        let leaving: BTreeSet<String> = gone.iter().map(|i| format!("p{i}")).collect();
        let leaving: Vec<_> = snapshot.nodes[place].pods.values().filter(|p| leaving.contains(&p.uid)).cloned().collect();
        let cycle = Cycle::new(&pod, &snapshot, &Given::default(), &mut Tallies::default());
        let trial = cycle.others.without(place, &leaving, &snapshot.namespaces);
        leaving.iter().for_each(|p| drop(cluster.remove_pod(&p.uid)));
        let after = cluster.snapshot();
        for at in 0..4 {
            prop_assert_eq!(trial.allow(at), verdict(&pod, &after, at).0);
        }
    }
}

#[test]
fn who_has_missed_too_much_counts_anew() {
    let (mut cluster, mut tallies) = (Cluster::default(), Tallies::default());
    (0..3).for_each(|i| cluster.put_node(node_of(&format!("n{i}"), i)));
    let asking = pod_of("q", 0, 6, false);
    for i in 0..1500 {
        cluster.place(&format!("n{}", i % 3), pod_of(&format!("p{}", i % 40), 0, i % 3, false));
        if [3, 4, 1400].contains(&i) {
            compare(&asking, &cluster, &mut tallies);
        }
    }
    compare(&asking, &cluster, &mut tallies);
}

#[test]
fn no_more_are_kept_than_there_is_room_for() {
    let (mut cluster, mut tallies) = (Cluster::default(), Tallies::default());
    cluster.put_node(node_of("n0", 0));
    for i in 0..700 {
        let name = format!("p{i}");
        // Its terms name the pod itself.
        compare(&pod_of(&name, 0, 9, false), &cluster, &mut tallies);
        assert!(tallies.len() <= 256);
        cluster.place("n0", pod_of(&name, 0, i % RULES, false));
    }
    compare(&pod_of("p1", 0, 9, false), &cluster, &mut tallies);
}
