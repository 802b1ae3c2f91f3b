//! The flow schemas and priority levels every cluster has.

use serde_json::{Value, json};
use wasmk_api::Object;

/// Marks objects the server keeps as they should be; users may take it off.
const AUTOUPDATE: &str = "apf.kubernetes.io/autoupdate-spec";

/// Queues, hand size and longest queue of a level that queues.
type Queuing = Option<(u32, u32, u32)>;

/// Levels: name, shares, percentage that others may borrow, queues. The exempt one is made apart.
const LEVELS: [(&str, u32, u32, Queuing); 7] = [
    ("catch-all", 5, 0, None),
    ("node-high", 40, 25, Some((64, 6, 50))),
    ("system", 30, 33, Some((64, 6, 50))),
    ("leader-election", 10, 0, Some((16, 4, 50))),
    ("workload-high", 40, 50, Some((128, 6, 50))),
    ("workload-low", 100, 90, Some((128, 6, 50))),
    ("global-default", 20, 50, Some((128, 6, 50))),
];

/// Subjects in short: `g:` groups, `u:` users, `s:` service accounts of `kube-system`.
const EVERYBODY: &[&str] = &["g:system:unauthenticated", "g:system:authenticated"];
const ELECTORS: &[&str] = &["u:system:kube-controller-manager", "u:system:kube-scheduler", "s:*"];

/// What a schema's rule is about: verbs, groups, resources, namespaces, and whether cluster-scoped ones too.
type Rule = (
    &'static [&'static str],
    &'static [&'static str],
    &'static [&'static str],
    &'static [&'static str],
    bool,
);

/// A row of [`SCHEMAS`].
type Schema = (&'static str, &'static str, u32, &'static str, &'static [&'static str], &'static [Rule]);

const ALL: Rule = (&["*"], &["*"], &["*"], &["*"], true);
const WRITES: &[&str] = &["get", "create", "update"];

/// Schemas: name, level, precedence, how flows are told apart, subjects, rules; with `nonResourceRules` about every
/// path where the rule is about everything.
const SCHEMAS: [Schema; 12] = [
    ("exempt", "exempt", 1, "", &["g:system:masters"], &[ALL]),
    (
        "system-leader-election",
        "leader-election",
        100,
        "ByUser",
        ELECTORS,
        &[(WRITES, &["coordination.k8s.io"], &["leases"], &["kube-system"], false)],
    ),
    (
        "endpoint-controller",
        "workload-high",
        150,
        "ByUser",
        &["u:system:kube-controller-manager", "s:endpoint-controller", "s:endpointslicemirroring-controller"],
        &[(WRITES, &[""], &["endpoints"], &["*"], false)],
    ),
    (
        "workload-leader-election",
        "leader-election",
        200,
        "ByUser",
        ELECTORS,
        &[(WRITES, &["coordination.k8s.io"], &["leases"], &["*"], false)],
    ),
    (
        "system-node-high",
        "node-high",
        400,
        "ByUser",
        &["g:system:nodes"],
        &[
            (&["*"], &[""], &["nodes", "nodes/status"], &["*"], true),
            (&["*"], &["coordination.k8s.io"], &["leases"], &["*"], false),
        ],
    ),
    ("system-nodes", "system", 500, "ByUser", &["g:system:nodes"], &[ALL]),
    (
        "kube-controller-manager",
        "workload-high",
        800,
        "ByNamespace",
        &["u:system:kube-controller-manager"],
        &[ALL],
    ),
    ("kube-scheduler", "workload-high", 800, "ByNamespace", &["u:system:kube-scheduler"], &[ALL]),
    ("kube-system-service-accounts", "workload-high", 900, "ByNamespace", &["s:*"], &[ALL]),
    ("service-accounts", "workload-low", 9000, "ByUser", &["g:system:serviceaccounts"], &[ALL]),
    ("global-default", "global-default", 9900, "ByUser", EVERYBODY, &[ALL]),
    ("catch-all", "catch-all", 10_000, "ByUser", EVERYBODY, &[ALL]),
];

const API_VERSION: &str = "flowcontrol.apiserver.k8s.io/v1";

fn subjects(short: &[&str]) -> Value {
    let one = |short: &&str| match short.split_at(2) {
        ("g:", name) => json!({ "kind": "Group", "group": { "name": name } }),
        ("u:", name) => json!({ "kind": "User", "user": { "name": name } }),
        (_, name) => json!({
            "kind": "ServiceAccount", "serviceAccount": { "namespace": "kube-system", "name": name },
        }),
    };
    short.iter().map(one).collect()
}

fn metadata(name: &str) -> Value {
    json!({ "name": name, "annotations": { AUTOUPDATE: "true" } })
}

fn level(name: &str, shares: u32, lendable: u32, queuing: Queuing) -> Value {
    let response = match queuing {
        None => json!({ "type": "Reject" }),
        Some((queues, hand, length)) => json!({
            "type": "Queue", "queuing": { "queues": queues, "handSize": hand, "queueLengthLimit": length },
        }),
    };
    json!({
        "kind": "PriorityLevelConfiguration", "apiVersion": API_VERSION, "metadata": metadata(name),
        "spec": {
            "type": "Limited",
            "limited": {
                "nominalConcurrencyShares": shares, "lendablePercent": lendable, "limitResponse": response,
            },
        },
    })
}

fn schema(name: &str, level: &str, precedence: u32, method: &str, who: &[&str], rules: &[Rule]) -> Value {
    let resource = |(verbs, groups, resources, namespaces, cluster): &Rule| {
        let mut rule = json!({ "verbs": verbs, "apiGroups": groups, "resources": resources });
        if *cluster {
            rule["clusterScope"] = true.into();
        }
        rule["namespaces"] = json!(namespaces);
        rule
    };
    let mut rule = json!({
        "subjects": subjects(who), "resourceRules": rules.iter().map(resource).collect::<Value>(),
    });
    if rules.contains(&ALL) {
        rule["nonResourceRules"] = json!([{ "verbs": ["*"], "nonResourceURLs": ["*"] }]);
    }
    wrapped(name, level, precedence, method, rule)
}

fn wrapped(name: &str, level: &str, precedence: u32, method: &str, rule: Value) -> Value {
    let mut spec = json!({
        "priorityLevelConfiguration": { "name": level }, "matchingPrecedence": precedence, "rules": [rule],
    });
    if !method.is_empty() {
        spec["distinguisherMethod"] = json!({ "type": method });
    }
    json!({ "kind": "FlowSchema", "apiVersion": API_VERSION, "metadata": metadata(name), "spec": spec })
}

/// All of them, levels first.
pub(crate) fn all() -> Vec<Object> {
    let mut all = vec![json!({
        "kind": "PriorityLevelConfiguration", "apiVersion": API_VERSION, "metadata": metadata("exempt"),
        "spec": { "type": "Exempt", "exempt": { "nominalConcurrencyShares": 0, "lendablePercent": 0 } },
    })];
    all.extend(
        LEVELS.iter().map(|(name, shares, lendable, queuing)| level(name, *shares, *lendable, *queuing)),
    );
    let probes = json!({
        "subjects": subjects(EVERYBODY),
        "nonResourceRules": [{ "verbs": ["get"], "nonResourceURLs": ["/healthz", "/readyz", "/livez"] }],
    });
    all.push(wrapped("probes", "exempt", 2, "", probes));
    all.extend(SCHEMAS.iter().map(|row| schema(row.0, row.1, row.2, row.3, row.4, row.5)));
    all.into_iter().filter_map(Object::from_value).collect()
}
