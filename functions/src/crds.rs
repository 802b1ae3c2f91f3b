//! The definitions of Knative Serving's kinds, as `wasmk up` gives them to the API.

use std::collections::BTreeMap;

use serde_json::{Value, json};
use wasmk_api::knative::GROUP;

use crate::{eventing, schema, spin};

/// Printed columns: heading and path. Readiness comes last for every kind.
type Columns = &'static [(&'static str, &'static str)];

const READY: [(&str, &str); 2] = [
    ("Ready", ".status.conditions[?(@.type=='Ready')].status"),
    ("Reason", ".status.conditions[?(@.type=='Ready')].reason"),
];

/// Fields that several kinds have.
const PARTS: &str = include_str!("../data/parts.txt");
/// The fields of what a revision runs.
const TEMPLATE: &str = include_str!("../data/template.txt");
/// The fields of each kind.
const FIELDS: &str = include_str!("../data/kinds.txt");

/// A kind's names, version, summary and columns before readiness.
struct Kind {
    kind: &'static str,
    plural: &'static str,
    short: &'static [&'static str],
    version: &'static str,
    about: &'static str,
    columns: Columns,
}

const KINDS: [Kind; 5] = [
    Kind {
        kind: "Service",
        plural: "services",
        short: &["kservice", "ksvc"],
        version: "v1",
        about: "A function or web service: a template and how traffic reaches the revisions made from it.",
        columns: &[
            ("URL", ".status.url"),
            ("LatestCreated", ".status.latestCreatedRevisionName"),
            ("LatestReady", ".status.latestReadyRevisionName"),
        ],
    },
    Kind {
        kind: "Configuration",
        plural: "configurations",
        short: &["config", "cfg"],
        version: "v1",
        about: "Makes a revision of each template it is given.",
        columns: &[
            ("LatestCreated", ".status.latestCreatedRevisionName"),
            ("LatestReady", ".status.latestReadyRevisionName"),
        ],
    },
    Kind {
        kind: "Revision",
        plural: "revisions",
        short: &["rev"],
        version: "v1",
        about: "One immutable version of a function.",
        columns: &[
            ("Config Name", ".metadata.labels['serving\\.knative\\.dev/configuration']"),
            ("Generation", ".metadata.labels['serving\\.knative\\.dev/configurationGeneration']"),
        ],
    },
    Kind {
        kind: "Route",
        plural: "routes",
        short: &["rt"],
        version: "v1",
        about: "Gives revisions a host name and splits its traffic over them.",
        columns: &[("URL", ".status.url")],
    },
    Kind {
        kind: "DomainMapping",
        plural: "domainmappings",
        short: &["dm"],
        version: "v1beta1",
        about: "Leads a host name of one's own (the object's name) to a Service or Route.",
        columns: &[("URL", ".status.url")],
    },
];

/// What fields mean that Knative adds to those of pods, for `kubectl explain`.
const MEANINGS: [(&str, &str); 13] = [
    ("/spec/template", "What the next revision is made from; each change makes a revision."),
    ("/spec/traffic", "How requests are split; everything goes to the latest ready revision when empty."),
    (
        "/spec/template/spec/containerConcurrency",
        "Most requests an instance answers at a time; 0 for no limit.",
    ),
    ("/spec/template/spec/timeoutSeconds", "Seconds an answer may take in all."),
    ("/spec/template/spec/responseStartTimeoutSeconds", "Seconds until the first byte of an answer."),
    ("/spec/template/spec/idleTimeoutSeconds", "Seconds an answer may pause between two pieces."),
    (
        "/spec/template/spec/containers",
        "The containers; the one with a port, or the only one, gets the requests.",
    ),
    ("/spec/containerConcurrency", "Most requests an instance answers at a time; 0 for no limit."),
    ("/spec/timeoutSeconds", "Seconds an answer may take in all."),
    ("/spec/ref", "The Service or Route that the host name leads to."),
    ("/status/url", "Where it is reached."),
    ("/status/address", "Where it is reached from inside the cluster."),
    ("/status/traffic", "The split in force, every target by revision."),
];

/// `CustomResourceDefinition` objects of all kinds.
pub fn definitions() -> Vec<Value> {
    let mut parts = schema::named(PARTS, &BTreeMap::new());
    parts.insert("template".into(), schema::object(TEMPLATE, &parts));
    let schemas = schema::named(FIELDS, &parts);
    let serving = KINDS.iter().map(|kind| definition(kind, schemas[kind.kind].clone()));
    serving.chain(eventing::definitions(&parts)).chain(spin::definitions()).collect()
}

fn definition(kind: &Kind, mut schema: Value) -> Value {
    schema["description"] = kind.about.into();
    for (path, meaning) in MEANINGS {
        if let Some(field) = schema.pointer_mut(&path.replace('/', "/properties/")) {
            field["description"] = meaning.into();
        }
    }
    let mut printed: Vec<Value> = kind
        .columns
        .iter()
        .chain(&READY)
        .map(|(name, path)| json!({"name": name, "type": "string", "jsonPath": path}))
        .collect();
    if kind.kind == "Revision" {
        for (name, path) in
            [("Actual Replicas", ".status.actualReplicas"), ("Desired Replicas", ".status.desiredReplicas")]
        {
            printed.push(json!({"name": name, "type": "integer", "jsonPath": path}));
        }
    }
    json!({
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {
            "name": format!("{}.{GROUP}", kind.plural),
            "labels": {"knative.dev/crd-install": "true", "app.kubernetes.io/name": "knative-serving"},
        },
        "spec": {
            "group": GROUP,
            "scope": "Namespaced",
            "names": {
                "kind": kind.kind,
                "plural": kind.plural,
                "singular": kind.kind.to_lowercase(),
                "shortNames": kind.short,
                "categories": ["all", "knative", "serving"],
            },
            "versions": [{
                "name": kind.version,
                "served": true,
                "storage": true,
                "subresources": {"status": {}},
                "additionalPrinterColumns": printed,
                "schema": {"openAPIV3Schema": schema},
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
        assert_eq!(all.len(), 11);
    }

    #[test]
    fn every_kind_has_a_schema_without_gaps() {
        for definition in definitions() {
            let schema = &definition["spec"]["versions"][0]["schema"]["openAPIV3Schema"];
            assert!(!schema.to_string().contains("null"), "{}", definition["metadata"]["name"]);
            assert!(
                schema["properties"]["spec"]["properties"].is_object(),
                "{}",
                definition["metadata"]["name"]
            );
        }
        let service = &definitions()[0]["spec"]["versions"][0]["schema"]["openAPIV3Schema"];
        let spec = &service["properties"]["spec"]["properties"]["template"]["properties"]["spec"];
        assert_eq!(spec["required"], json!(["containers"]));
        let container = &spec["properties"]["containers"]["items"]["properties"];
        assert_eq!(container["ports"]["items"]["properties"]["protocol"]["default"], "TCP");
    }
}
