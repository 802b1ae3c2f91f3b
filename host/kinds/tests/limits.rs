//! What is wrong with what limits requests and with what scales workloads, in Kubernetes' words and order.

use serde_json::{Value, json};
use wasmk_api::Object;

fn check(kind: &str, spec: &Value, expect: &[&str]) {
    let object = Object::from_value(json!({
        "apiVersion": "flowcontrol.apiserver.k8s.io/v1", "kind": kind, "metadata": {"name": "x"}, "spec": spec,
    }));
    let causes = wasmk_kinds::kind("flowcontrol.apiserver.k8s.io", kind).validate(&object.unwrap());
    let found: Vec<String> =
        causes.iter().map(|cause| format!("{}: {}", cause.field, cause.message)).collect();
    assert_eq!(found, expect, "{spec}");
}

#[test]
fn rules_of_schemas() {
    let schema = |rule: Value| json!({"matchingPrecedence": 9, "priorityLevelConfiguration": {"name": "l"}, "rules": [rule]});
    let user = json!([{"kind": "User", "user": {"name": "u"}}]);
    let all = json!({"verbs": ["*"], "apiGroups": ["*"], "resources": ["*"], "namespaces": ["*"]});
    check("FlowSchema", &schema(json!({"subjects": user, "resourceRules": [all]})), &[]);
    let odd = json!({"verbs": ["get", "jump"], "apiGroups": ["*", "a"], "namespaces": ["N"]});
    check(
        "FlowSchema",
        &schema(json!({"subjects": user, "resourceRules": [odd]})),
        &[
            "spec.rules[0].resourceRules[0].verbs: Unsupported value: [\"get\",\"jump\"]: supported values: \"create\", \"delete\", \"deletecollection\", \"get\", \"list\", \"patch\", \"proxy\", \"update\", \"watch\"",
            "spec.rules[0].resourceRules[0].apiGroups: Invalid value: [\"*\",\"a\"]: if '*' is present, must not specify other api groups",
            "spec.rules[0].resourceRules[0].resources: Required value: resource rules must supply at least one resource",
            "spec.rules[0].resourceRules[0].namespaces[0]: Invalid value: \"N\": each member of this list must be '*' or a DNS-1123 label; a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must start and end with an alphanumeric character (e.g. 'my-name',  or '123-abc', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?')",
        ],
    );
    let subjects = json!([
        {"kind": "ServiceAccount", "serviceAccount": {"name": "*"}, "user": {"name": "u"}},
        {"kind": "Group", "group": {}},
    ]);
    let paths = json!([{"verbs": ["get"], "nonResourceURLs": ["/a*", "a", "/a/*", "//"]}]);
    check(
        "FlowSchema",
        &schema(json!({"subjects": subjects, "nonResourceRules": paths})),
        &[
            "spec.rules[0].subjects[0].serviceAccount.namespace: Required value: must specify namespace for service account",
            "spec.rules[0].subjects[0].user: Forbidden: user is forbidden when subject kind is not 'User'",
            "spec.rules[0].subjects[1].group.name: Required value",
            "spec.rules[0].nonResourceRules[0].nonResourceURLs[0]: Invalid value: \"/a*\": wildcard can only do suffix matching",
            "spec.rules[0].nonResourceRules[0].nonResourceURLs[1]: Invalid value: \"a\": must start with slash",
            "spec.rules[0].nonResourceRules[0].nonResourceURLs[3]: Invalid value: \"//\": must not contain double slash",
        ],
    );
}

#[test]
fn limits_of_levels() {
    let limited = |queuing: Value, percent: i64| {
        json!({"type": "Limited", "limited": {
            "limitResponse": {"type": "Queue", "queuing": queuing}, "lendablePercent": percent,
        }})
    };
    let queues = |queues: i64, hand: i64| json!({"queues": queues, "handSize": hand, "queueLengthLimit": 5});
    check("PriorityLevelConfiguration", &limited(queues(64, 8), 50), &[]);
    let at = "spec.limited.limitResponse.queuing";
    check(
        "PriorityLevelConfiguration",
        &limited(queues(8, 9), 101),
        &[
            &format!("{at}.handSize: Invalid value: 9: should not be greater than queues (8)"),
            "spec.limited.lendablePercent: Invalid value: 101: must be between 0 and 100, inclusive",
        ],
    );
    check(
        "PriorityLevelConfiguration",
        &limited(queues(512, 8), 0),
        &[&format!(
            "{at}.handSize: Invalid value: 8: required entropy bits of deckSize 512 and handSize 8 should not be greater than 60"
        )],
    );
    check(
        "PriorityLevelConfiguration",
        &json!({"type": "Exempt"}),
        &["spec.type: Invalid value: \"Exempt\": type must be 'Exempt' if and only if name is 'exempt'"],
    );
}

#[test]
fn metrics_of_autoscalers() {
    let check = |metric: Value, expect: &[&str]| {
        let target = json!({"apiVersion": "apps/v1", "kind": "Deployment", "name": "d"});
        let object = Object::from_value(json!({
            "apiVersion": "autoscaling/v2", "kind": "HorizontalPodAutoscaler", "metadata": {"name": "x"},
            "spec": {"scaleTargetRef": target, "minReplicas": 1, "maxReplicas": 2, "metrics": [metric]},
        }));
        let causes = wasmk_kinds::kind("autoscaling", "HorizontalPodAutoscaler").validate(&object.unwrap());
        let found: Vec<String> = causes
            .iter()
            .map(|cause| format!("{}: {}", cause.field.trim_start_matches("spec.metrics[0]."), cause.message))
            .collect();
        assert_eq!(found, expect, "{metric}");
    };
    let half = json!({"type": "Utilization", "averageUtilization": 50});
    check(json!({"type": "Resource", "resource": {"name": "cpu", "target": half}}), &[]);
    let known = "supported values: \"ContainerResource\", \"External\", \"Object\", \"Pods\", \"Resource\"";
    let unsupported = |kind: &str| format!("type: Unsupported value: {kind:?}: {known}");
    check(
        json!({"resource": {"name": "cpu", "target": half}}),
        &["type: Required value: must specify a metric source type", &unsupported(""), &unsupported("")],
    );
    check(
        json!({"type": "Resource"}),
        &["resource: Required value: must populate information for the given metric source"],
    );
    check(
        json!({"type": "Resource", "resource": {"name": "cpu", "target": half}, "pods": {
            "metric": {"name": "m"}, "target": {"type": "AverageValue", "averageValue": "1"},
        }}),
        &["pods: Forbidden: must populate the given metric source only"],
    );
    check(
        json!({"type": "External", "external": {"metric": {"name": "a/b"}, "target": {}}}),
        &[
            "external.metric.name: Invalid value: \"a/b\": may not contain '/'",
            "external.target.type: Required value: must specify a metric target type",
            "external.target.type: Invalid value: \"\": must be either Utilization, Value, or AverageValue",
            "external.target.averageValue: Required value: must set either a target value for metric or a per-pod target",
        ],
    );
    check(
        json!({"type": "ContainerResource", "containerResource": {
            "name": "cpu", "container": "C", "target": {"type": "Utilization", "averageUtilization": 0},
        }}),
        &[
            "containerResource.container: Invalid value: \"C\": a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must start and end with an alphanumeric character (e.g. 'my-name',  or '123-abc', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?')",
            "containerResource.target.averageUtilization: Invalid value: 0: must be greater than 0",
        ],
    );
}
