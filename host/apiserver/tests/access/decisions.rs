//! The table of decisions in `tests/vectors/decisions.txt`, whose opening says how it is written.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use crate::support::{self, Server};

const RBAC: &str = "/apis/rbac.authorization.k8s.io/v1";
const REVIEWS: &str = "/apis/authorization.k8s.io/v1/subjectaccessreviews";
const GROUP: &str = "rbac.authorization.k8s.io";

/// One cluster's roles, bindings and questions.
#[derive(Default)]
struct Case<'a> {
    name: &'a str,
    /// Rules by the path of their role.
    rules: BTreeMap<String, Vec<Value>>,
    /// Paths with bindings.
    bindings: Vec<(String, Value)>,
    /// Lines with questions.
    asked: Vec<Vec<&'a str>>,
}

fn read(text: &str) -> Vec<Case<'_>> {
    let mut cases: Vec<Case<'_>> = Vec::new();
    for line in text.lines().map(str::trim).filter(|l| !l.is_empty() && !l.starts_with('#')) {
        if let Some(name) = line.strip_prefix("case ") {
            cases.push(Case { name, ..Case::default() });
            continue;
        }
        let case = cases.last_mut().expect("a case before its lines");
        let words: Vec<&str> = line.split_whitespace().collect();
        match words[..] {
            ["role" | "clusterrole", of, verbs, groups, resources, ref names @ ..] => {
                let rule = json!({
                    "verbs": list(verbs),
                    "apiGroups": list(groups).iter().map(|g| if *g == "core" { "" } else { g }).collect::<Vec<_>>(),
                    "resources": list(resources),
                    "resourceNames": names.iter().flat_map(|n| list(n)).collect::<Vec<_>>(),
                });
                case.rules.entry(path(of, "roles")).or_default().push(rule);
            }
            ["urls", of, verbs, paths] => {
                let rule = json!({ "verbs": list(verbs), "nonResourceURLs": list(paths) });
                case.rules.entry(path(of, "roles")).or_default().push(rule);
            }
            ["bind" | "clusterbind", of, role, ref subjects @ ..] => {
                let (kind, name) = role.split_once('/').expect("a kind and a name of a role");
                let kind = if kind == "role" { "Role" } else { "ClusterRole" };
                let subjects: Vec<Value> = subjects.iter().map(|s| subject(s)).collect();
                let role = json!({ "apiGroup": GROUP, "kind": kind, "name": name });
                case.bindings
                    .push((path(of, "rolebindings"), json!({ "roleRef": role, "subjects": subjects })));
            }
            ["yes" | "no", _, _, _, _] => case.asked.push(words),
            _ => panic!("{}: {line}", case.name),
        }
    }
    cases
}

fn list(text: &str) -> Vec<&str> {
    text.split(',').collect()
}

/// The path of a role or binding called `NAMESPACE/NAME` or `NAME`.
fn path(of: &str, plural: &str) -> String {
    match of.split_once('/') {
        Some((namespace, name)) => format!("{RBAC}/namespaces/{namespace}/{plural}/{name}"),
        None => format!("{RBAC}/cluster{plural}/{of}"),
    }
}

fn subject(text: &str) -> Value {
    let (kind, name) = text.split_once(':').expect("a sort and a name of a subject");
    match kind {
        "user" => json!({ "apiGroup": GROUP, "kind": "User", "name": name }),
        "group" => json!({ "apiGroup": GROUP, "kind": "Group", "name": name }),
        _ => {
            let (namespace, name) = name.split_once('/').expect("a namespace and a name of an account");
            json!({ "kind": "ServiceAccount", "namespace": namespace, "name": name })
        }
    }
}

/// A user with groups, as authentication would name them.
fn user(text: &str) -> (String, Vec<String>) {
    if let Some(account) = text.strip_prefix("sa:") {
        let (namespace, name) = account.split_once('/').expect("a namespace and a name of an account");
        let groups = ["system:serviceaccounts", "system:authenticated"].map(String::from).into_iter();
        let groups = groups.chain([format!("system:serviceaccounts:{namespace}")]).collect();
        return (format!("system:serviceaccount:{namespace}:{name}"), groups);
    }
    let mut parts = text.split('+').map(String::from);
    (parts.next().unwrap_or_default(), parts.collect())
}

fn question(line: &[&str]) -> Value {
    let (user, groups) = user(line[1]);
    let (verb, what, place) = (line[2], line[3], line[4]);
    let mut spec = json!({ "user": user, "groups": groups });
    if what.starts_with('/') {
        spec["nonResourceAttributes"] = json!({ "verb": verb, "path": what });
        return spec;
    }
    let (what, name) = what.split_once(':').unwrap_or((what, ""));
    let (what, subresource) = what.split_once('/').unwrap_or((what, ""));
    let (resource, group) = what.split_once('.').unwrap_or((what, ""));
    spec["resourceAttributes"] = json!({
        "verb": verb, "group": group, "resource": resource, "subresource": subresource, "name": name,
        "namespace": if place == "-" { "" } else { place },
    });
    spec
}

async fn write(server: &Server, path: &str, mut object: Value) {
    let (collection, name) = path.rsplit_once('/').expect("a path with a name");
    object["metadata"] = json!({ "name": name });
    let answer = server.post(collection, object).await;
    assert_eq!(answer.code, 201, "{path}: {answer:?}");
}

async fn check(server: &Server, case: &Case<'_>) -> Vec<String> {
    for (path, rules) in &case.rules {
        write(server, path, json!({ "rules": rules })).await;
    }
    for (path, binding) in &case.bindings {
        write(server, path, binding.clone()).await;
    }
    let mut wrong = Vec::new();
    for line in &case.asked {
        let answer = server.post(REVIEWS, json!({ "spec": question(line) })).await;
        if answer.body["status"]["allowed"] != (line[0] == "yes") {
            wrong.push(format!("{}: {}: {}", case.name, line.join(" "), answer.body["status"]));
        }
    }
    for path in case.rules.keys().chain(case.bindings.iter().map(|(path, _)| path)) {
        assert_eq!(server.delete(path).await.code, 200, "{path}");
    }
    wrong
}

#[tokio::test]
async fn decisions_follow_the_published_rules() {
    let text = include_str!("../../../../tests/vectors/decisions.txt");
    let cases = read(text);
    let asked: usize = cases.iter().map(|case| case.asked.len()).sum();
    assert!(asked >= 150, "{asked} questions");
    let server = support::start().await;
    for namespace in ["a", "b", "c", "d"] {
        let answer = server.post("/api/v1/namespaces", json!({ "metadata": { "name": namespace } })).await;
        assert_eq!(answer.code, 201, "{answer:?}");
    }
    let mut wrong = Vec::new();
    for case in &cases {
        wrong.extend(check(&server, case).await);
    }
    assert!(wrong.is_empty(), "{} of {asked}:\n{}", wrong.len(), wrong.join("\n"));
}
