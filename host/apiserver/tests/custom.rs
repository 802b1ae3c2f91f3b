//! Custom resources: from their definition to their end.

mod support;

use serde_json::{Value, json};

const DEFINITIONS: &str = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions";
const THINGS: &str = "/apis/example.com/v1/namespaces/default/things";

fn definition() -> Value {
    json!({
        "metadata": {"name": "things.example.com"},
        "spec": {
            "group": "example.com", "scope": "Namespaced",
            "names": {"plural": "things", "kind": "Thing", "shortNames": ["th"]},
            "versions": [{
                "name": "v1", "served": true, "storage": true,
                "subresources": {"status": {}, "scale": {
                    "specReplicasPath": ".spec.size", "statusReplicasPath": ".status.size",
                }},
                "additionalPrinterColumns": [{"name": "Size", "type": "integer", "jsonPath": ".spec.size"}],
                "selectableFields": [{"jsonPath": ".spec.colour"}],
                "schema": {"openAPIV3Schema": {"type": "object", "properties": {
                    "spec": {"type": "object", "properties": {
                        "size": {"type": "integer", "default": 2, "maximum": 5},
                        "colour": {"type": "string"},
                    }},
                    "status": {"type": "object", "x-kubernetes-preserve-unknown-fields": true},
                }}},
            }],
        },
    })
}

/// Repeats a request until it is answered with a code; fails after a while.
async fn until(server: &support::Server, path: &str, code: u16) -> support::Answer {
    let found = async {
        loop {
            let answer = server.get(path).await;
            if answer.code == code {
                return answer;
            }
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(std::time::Duration::from_secs(20), found).await.expect("the answer in time")
}

#[tokio::test]
async fn a_definition_is_served_validated_and_cleaned_up() {
    let server = support::start().await;
    assert_eq!(server.post(DEFINITIONS, definition()).await.code, 201);
    until(&server, THINGS, 200).await;
    let thing = |spec: Value| json!({"apiVersion": "example.com/v1", "kind": "Thing", "metadata": {"name": "a"}, "spec": spec});
    let refused = server.post(THINGS, thing(json!({"size": 9}))).await;
    assert_eq!(refused.code, 422, "{refused:?}");
    let made = server.post(THINGS, thing(json!({"colour": "red", "unknown": 1}))).await;
    assert_eq!(made.body["spec"], json!({"colour": "red", "size": 2}));
    assert_eq!(made.warnings.len(), 1);
    let accept = [("accept", "application/json;as=Table;v=v1;g=meta.k8s.io")];
    let table = server.send("GET", THINGS, &accept, "").await.body;
    assert_eq!(table["rows"][0]["cells"], json!(["a", 2]));
    let red = server.get(&format!("{THINGS}?fieldSelector=spec.colour%3Dred")).await.body;
    let blue = server.get(&format!("{THINGS}?fieldSelector=spec.colour%3Dblue")).await.body;
    assert_eq!((red["items"].as_array().unwrap().len(), blue["items"].as_array().unwrap().len()), (1, 0));
    server.merge(&format!("{THINGS}/a/scale"), json!({"spec": {"replicas": 4}})).await;
    server.merge(&format!("{THINGS}/a/status"), json!({"status": {"size": 3}, "spec": {"size": 1}})).await;
    let now = server.get(&format!("{THINGS}/a")).await.body;
    assert_eq!((&now["spec"]["size"], &now["status"]["size"]), (&json!(4), &json!(3)));
    assert_eq!(now["metadata"]["generation"], 2);
    let groups = server.get("/apis/example.com/v1").await.body;
    assert_eq!(groups["resources"][0]["shortNames"], json!(["th"]));

    server.delete(&format!("{DEFINITIONS}/things.example.com")).await;
    until(&server, &format!("{DEFINITIONS}/things.example.com"), 404).await;
    until(&server, THINGS, 404).await;
}

#[tokio::test]
async fn bad_definitions_are_refused() {
    let server = support::start().await;
    let mut wrong = definition();
    wrong["metadata"]["name"] = "other.example.com".into();
    assert_eq!(server.post(DEFINITIONS, wrong).await.code, 422);
    let mut schemaless = definition();
    schemaless["spec"]["versions"][0].as_object_mut().unwrap().remove("schema");
    assert_eq!(server.post(DEFINITIONS, schemaless).await.code, 422);
}

#[tokio::test]
async fn a_bound_policy_refuses_what_its_expression_does() {
    let server = support::start().await;
    let group = "/apis/admissionregistration.k8s.io/v1";
    let rules = json!([{"apiGroups": [""], "apiVersions": ["v1"], "operations": ["CREATE"], "resources": ["configmaps"]}]);
    let policy = json!({"metadata": {"name": "p.example.com"}, "spec": {
        "matchConstraints": {"resourceRules": rules},
        "variables": [{"name": "start", "expression": "'ok'"}],
        "validations": [{"expression": "object.metadata.name.startsWith(variables.start)", "message": "not ok"}],
    }});
    assert_eq!(server.post(&format!("{group}/validatingadmissionpolicies"), policy).await.code, 201);
    let maps = "/api/v1/namespaces/default/configmaps";
    assert_eq!(server.post(maps, json!({"metadata": {"name": "unbound"}})).await.code, 201);
    let binding = json!({"metadata": {"name": "b"}, "spec": {"policyName": "p.example.com", "validationActions": ["Deny"]}});
    assert_eq!(server.post(&format!("{group}/validatingadmissionpolicybindings"), binding).await.code, 201);
    let refused = server.post(maps, json!({"metadata": {"name": "bad"}})).await;
    assert_eq!(refused.code, 422);
    assert!(refused.body["message"].as_str().unwrap().ends_with("denied request: not ok"), "{refused:?}");
    assert_eq!(server.post(maps, json!({"metadata": {"name": "ok-one"}})).await.code, 201);
}

/// Who sees that a definition is established finds its kind, at once and in every document.
#[tokio::test(flavor = "multi_thread")]
async fn an_established_definition_is_served() {
    let server = support::start().await;
    for at in 0..30 {
        let plural = format!("things{at}");
        let mut wanted = definition();
        wanted["metadata"]["name"] = format!("{plural}.example.com").into();
        wanted["spec"]["names"] = json!({"plural": plural, "kind": format!("Thing{at}")});
        assert_eq!(server.post(DEFINITIONS, wanted).await.code, 201);
        let path = format!("{DEFINITIONS}/{plural}.example.com");
        let established = async {
            loop {
                let found = server.get(&path).await.body;
                let conditions = found["status"]["conditions"].as_array().cloned().unwrap_or_default();
                if conditions.iter().any(|c| c["type"] == "Established" && c["status"] == "True") {
                    return;
                }
            }
        };
        tokio::time::timeout(std::time::Duration::from_secs(20), established).await.expect("in time");
        let things = format!("/apis/example.com/v1/namespaces/default/{plural}");
        assert_eq!(server.post(&things, json!({"metadata": {"name": "a"}})).await.code, 201, "{plural}");
        let served = server.get("/apis/example.com/v1").await.body;
        let names: Vec<_> = served["resources"].as_array().unwrap().iter().map(|r| &r["name"]).collect();
        assert!(names.contains(&&json!(plural)), "{names:?}");
    }
}

/// Of two definitions with one kind, the second waits.
#[tokio::test(flavor = "multi_thread")]
async fn a_kind_belongs_to_one_definition() {
    let server = support::start().await;
    let mut other = definition();
    other["metadata"]["name"] = "others.example.com".into();
    other["spec"]["names"] = json!({"plural": "others", "kind": "Thing"});
    let (first, second) =
        tokio::join!(server.post(DEFINITIONS, definition()), server.post(DEFINITIONS, other.clone()));
    assert_eq!((first.code, second.code), (201, 201));
    let told = async {
        loop {
            let mut said = Vec::new();
            for name in ["things", "others"] {
                let found = server.get(&format!("{DEFINITIONS}/{name}.example.com")).await.body;
                for condition in found["status"]["conditions"].as_array().into_iter().flatten() {
                    if condition["type"] == "NamesAccepted" {
                        said.push(condition["status"].as_str().unwrap().to_owned());
                    }
                }
            }
            if said.len() == 2 {
                said.sort();
                return said;
            }
        }
    };
    let told = tokio::time::timeout(std::time::Duration::from_secs(20), told).await.expect("in time");
    assert_eq!(told, ["False", "True"]);
}

#[tokio::test]
async fn a_policy_may_look_at_lists_in_lists_of_an_ordinary_object() {
    let server = support::start().await;
    let group = "/apis/admissionregistration.k8s.io/v1";
    let rules = json!([{"apiGroups": ["apps"], "apiVersions": ["v1"], "operations": ["CREATE", "UPDATE"], "resources": ["deployments"]}]);
    let expression = "object.spec.template.spec.containers.all(c, c.env.all(e, e.name != 'BAD'))";
    let policy = json!({"metadata": {"name": "p.example.com"}, "spec": {
        "matchConstraints": {"resourceRules": rules}, "validations": [{"expression": expression}],
    }});
    assert_eq!(server.post(&format!("{group}/validatingadmissionpolicies"), policy).await.code, 201);
    let binding = json!({"metadata": {"name": "b"}, "spec": {"policyName": "p.example.com", "validationActions": ["Deny"]}});
    assert_eq!(server.post(&format!("{group}/validatingadmissionpolicybindings"), binding).await.code, 201);
    let deployment = |name: &str, variable: &str| {
        let mut env: Vec<Value> =
            (0..60).map(|at| json!({"name": format!("V{at}"), "value": "some value"})).collect();
        env.push(json!({"name": variable}));
        let spec = json!({"containers": [{"name": "c", "image": "i", "env": env}]});
        json!({
            "metadata": {"name": name, "annotations": {"example.com/notes": "x".repeat(6000)}},
            "spec": {"selector": {"matchLabels": {"a": "b"}}, "template": {"metadata": {"labels": {"a": "b"}}, "spec": spec}},
        })
    };
    let deployments = "/apis/apps/v1/namespaces/default/deployments";
    let made = server.post(deployments, deployment("good", "GOOD")).await;
    assert_eq!(made.code, 201, "{made:?}");
    let changed = server.merge(&format!("{deployments}/good"), json!({"spec": {"replicas": 2}})).await;
    assert_eq!(changed.code, 200, "{changed:?}");
    let refused = server.post(deployments, deployment("bad", "BAD")).await;
    assert!(refused.body["message"].as_str().unwrap().contains("failed expression"), "{refused:?}");
}

#[tokio::test]
async fn a_definition_goes_when_its_last_object_lets_it() {
    let server = support::start().await;
    assert_eq!(server.post(DEFINITIONS, definition()).await.code, 201);
    until(&server, THINGS, 200).await;
    let thing = json!({
        "apiVersion": "example.com/v1", "kind": "Thing", "metadata": {"name": "a", "finalizers": ["example.com/x"]},
    });
    assert_eq!(server.post(THINGS, thing).await.code, 201);
    let path = format!("{DEFINITIONS}/things.example.com");
    server.delete(&path).await;
    let marked = async {
        while server.get(&format!("{THINGS}/a")).await.body["metadata"].get("deletionTimestamp").is_none() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(std::time::Duration::from_secs(20), marked).await.expect("the object is deleted");
    assert_eq!(server.get(&path).await.code, 200);
    let freed = server.merge(&format!("{THINGS}/a"), json!({"metadata": {"finalizers": null}})).await;
    assert_eq!(freed.code, 200, "{freed:?}");
    until(&server, &path, 404).await;
}
