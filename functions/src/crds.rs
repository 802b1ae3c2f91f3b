//! The definitions of Knative Serving's kinds, as `wasmk up` gives them to the API.

use serde_json::{Value, json};
use wasmk_api::knative::GROUP;

/// Printed columns: heading and path. Readiness comes last for every kind.
type Columns = &'static [(&'static str, &'static str)];

const READY: [(&str, &str); 2] = [
    ("Ready", ".status.conditions[?(@.type=='Ready')].status"),
    ("Reason", ".status.conditions[?(@.type=='Ready')].reason"),
];

/// Kind, plural, singular, short names, columns before readiness.
const KINDS: [(&str, &str, &str, &[&str], Columns); 4] = [
    (
        "Service",
        "services",
        "service",
        &["kservice", "ksvc"],
        &[
            ("URL", ".status.url"),
            ("LatestCreated", ".status.latestCreatedRevisionName"),
            ("LatestReady", ".status.latestReadyRevisionName"),
        ],
    ),
    (
        "Configuration",
        "configurations",
        "configuration",
        &["config", "cfg"],
        &[
            ("LatestCreated", ".status.latestCreatedRevisionName"),
            ("LatestReady", ".status.latestReadyRevisionName"),
        ],
    ),
    (
        "Revision",
        "revisions",
        "revision",
        &["rev"],
        &[
            ("Config Name", ".metadata.labels['serving\\.knative\\.dev/configuration']"),
            ("Generation", ".metadata.labels['serving\\.knative\\.dev/configurationGeneration']"),
        ],
    ),
    ("Route", "routes", "route", &["rt"], &[("URL", ".status.url")]),
];

/// `CustomResourceDefinition` objects of all kinds.
pub fn definitions() -> Vec<Value> {
    KINDS
        .iter()
        .map(|(kind, plural, singular, short, columns)| definition(kind, plural, singular, short, columns))
        .collect()
}

fn definition(kind: &str, plural: &str, singular: &str, short: &[&str], columns: Columns) -> Value {
    let mut printed: Vec<Value> = columns
        .iter()
        .chain(&READY)
        .map(|(name, path)| json!({"name": name, "type": "string", "jsonPath": path}))
        .collect();
    if kind == "Revision" {
        for (name, path) in
            [("Actual Replicas", ".status.actualReplicas"), ("Desired Replicas", ".status.desiredReplicas")]
        {
            printed.push(json!({"name": name, "type": "integer", "jsonPath": path}));
        }
    }
    let open = json!({"type": "object", "x-kubernetes-preserve-unknown-fields": true});
    json!({
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {
            "name": format!("{plural}.{GROUP}"),
            "labels": {"knative.dev/crd-install": "true", "app.kubernetes.io/name": "knative-serving"},
        },
        "spec": {
            "group": GROUP,
            "scope": "Namespaced",
            "names": {
                "kind": kind,
                "plural": plural,
                "singular": singular,
                "shortNames": short,
                "categories": ["all", "knative", "serving"],
            },
            "versions": [{
                "name": "v1",
                "served": true,
                "storage": true,
                "subresources": {"status": {}},
                "additionalPrinterColumns": printed,
                "schema": {"openAPIV3Schema": {"type": "object", "properties": {"spec": open, "status": open}}},
            }],
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn services_print_what_knative_users_know() {
        let all = definitions();
        let names: Vec<_> = all[0]["spec"]["versions"][0]["additionalPrinterColumns"]
            .as_array()
            .unwrap()
            .iter()
            .map(|c| c["name"].as_str().unwrap())
            .collect();
        assert_eq!(names, ["URL", "LatestCreated", "LatestReady", "Ready", "Reason"]);
        assert_eq!(all.len(), 4);
    }
}
