//! What a Kubernetes 1.36 control plane decided and answered, recorded: the same must come out here.
//!
//! `tests/vectors/rbac.jsonl.gz` has a case a line: requests that prepare it, then either questions with their
//! decisions or requests with their answers. `{u}` stands for a word of the case's own, `<…>` for what differs from
//! run to run. `rbac_roles.json.gz` has the roles and bindings every cluster starts with.

use std::io::Read;

use serde_json::{Map, Value, json};

use crate::support::{self, Server};

fn vectors(file: &str) -> String {
    let path = format!("../../tests/vectors/{file}");
    let packed = std::fs::File::open(&path).unwrap_or_else(|e| panic!("{path}: {e}"));
    let mut text = String::new();
    flate2::read::GzDecoder::new(packed).read_to_string(&mut text).unwrap();
    text
}

/// The value with the case's own word in place of `{u}`.
fn filled(value: &Value, word: &str) -> Value {
    let text = value.to_string().replace("{u}", word);
    serde_json::from_str(&text).unwrap()
}

/// Whether a text is what was recorded, apart from the parts in angle brackets.
fn fits(expect: &str, found: &str) -> bool {
    let mut rest = found;
    let mut first = true;
    for piece in split(expect) {
        let at = if first { rest.starts_with(piece).then_some(0) } else { rest.find(piece) };
        let Some(at) = at else { return false };
        rest = &rest[at + piece.len()..];
        first = false;
    }
    rest.is_empty() || expect.ends_with('>')
}

/// The parts of a text between `<name>` and `<name:1>`.
fn split(text: &str) -> Vec<&str> {
    let (mut pieces, mut rest) = (Vec::new(), text);
    while let Some((before, after)) = rest.split_once('<') {
        let Some((name, next)) = after.split_once('>') else { break };
        if !name.chars().all(|c| c.is_ascii_alphanumeric() || c == ':') {
            break;
        }
        pieces.push(before);
        rest = next;
    }
    pieces.push(rest);
    pieces
}

/// Lists whose order says nothing, in one order.
fn sorted(key: &str, list: &[Value]) -> Vec<Value> {
    let mut list = list.to_vec();
    if matches!(key, "managedFields" | "causes" | "resourceRules" | "nonResourceRules") {
        list.sort_by_key(|item| {
            let mut item = item.clone();
            if let Some(map) = item.as_object_mut() {
                map.shift_remove("time");
                map.sort_keys();
            }
            item.to_string()
        });
    }
    list
}

fn compare(key: &str, at: &str, expect: &Value, found: &Value) -> Result<(), String> {
    let differ = || Err(format!("{at}: expected {expect}, found {found}"));
    match (expect, found) {
        (Value::String(expect), Value::String(found)) if fits(expect, found) => Ok(()),
        (Value::Array(expect), Value::Array(found)) if expect.len() == found.len() => {
            let (expect, found) = (sorted(key, expect), sorted(key, found));
            let mut pairs = expect.iter().zip(&found).enumerate();
            pairs.try_for_each(|(i, (e, f))| compare("", &format!("{at}[{i}]"), e, f))
        }
        (Value::Object(expect), Value::Object(found)) => {
            let missing = |a: &Map<String, Value>, b: &Map<String, Value>| {
                a.keys().filter(|k| !b.contains_key(*k)).cloned().collect::<Vec<_>>().join(",")
            };
            let (absent, extra) = (missing(expect, found), missing(found, expect));
            if !absent.is_empty() || !extra.is_empty() {
                return Err(format!("{at}: without {absent:?}, and with {extra:?} besides"));
            }
            expect.iter().try_for_each(|(k, e)| compare(k, &format!("{at}.{k}"), e, &found[k]))
        }
        (expect, found) if expect == found => Ok(()),
        _ => differ(),
    }
}

async fn send(server: &Server, request: &Value) -> support::Answer {
    let text = |key: &str| request[key].as_str().unwrap_or("");
    let mut headers = vec![("accept", "application/json"), ("user-agent", "corpus/1.0")];
    let given = request["headers"].as_object().cloned().unwrap_or_default();
    let body = request.get("body").map_or_else(|| text("raw").to_owned(), Value::to_string);
    if !body.is_empty() {
        headers.push(("content-type", "application/json"));
    }
    for (name, value) in &given {
        headers.retain(|(known, _)| !known.eq_ignore_ascii_case(name));
        headers.extend(value.as_str().map(|value| (name.as_str(), value)));
    }
    server.send(text("method"), text("path"), &headers, &body).await
}

/// What is wrong with a case; empty when nothing is.
async fn run(server: &Server, case: &Value, word: &str) -> Vec<String> {
    let case = filled(case, word);
    let mut wrong = Vec::new();
    let namespace = json!({"metadata": {"name": format!("t-{word}")}});
    server.post("/api/v1/namespaces", namespace).await;
    let account = json!({"metadata": {"name": "default"}});
    server.post(&format!("/api/v1/namespaces/t-{word}/serviceaccounts"), account).await;
    for request in case["setup"].as_array().into_iter().flatten() {
        let answer = send(server, request).await;
        if answer.code >= 300 {
            wrong.push(format!("setup {}: {} {}", request["path"], answer.code, answer.body));
        }
    }
    for question in case["decisions"].as_array().into_iter().flatten() {
        let mut spec = question.clone();
        let expect = spec.as_object_mut().unwrap().shift_remove("allowed").unwrap();
        let review =
            json!({"apiVersion": "authorization.k8s.io/v1", "kind": "SubjectAccessReview", "spec": spec});
        let answer = server.post("/apis/authorization.k8s.io/v1/subjectaccessreviews", review).await;
        if answer.body["status"]["allowed"] != expect {
            wrong.push(format!("{question}: {}", answer.body["status"]));
        }
    }
    let single = case.get("request").is_some().then(|| vec![case.clone()]);
    for step in single.or_else(|| case["steps"].as_array().cloned()).unwrap_or_default() {
        let answer = send(server, &step["request"]).await;
        if step["expect"]["status"] != answer.code {
            wrong.push(format!(
                "expected {}, found {} {}",
                step["expect"]["status"], answer.code, answer.body
            ));
        } else if let (Some(expect), true) = (step["expect"].get("body"), step.get("mode").is_none()) {
            wrong.extend(compare("", "body", expect, &answer.body).err());
        }
    }
    wrong
}

#[tokio::test]
async fn recorded_decisions_and_refusals_come_out_the_same() {
    let server = support::start().await;
    let (mut cases, mut decisions, mut wrong) = (0, 0, Vec::new());
    for (number, line) in vectors("rbac.jsonl.gz").lines().enumerate() {
        let case: Value = serde_json::from_str(line).unwrap();
        let id = case["id"].as_str().unwrap();
        let letter = |n: usize| char::from(b'a' + u8::try_from(n % 26).unwrap());
        let word: String =
            ['q', 'z', letter(number / 26), letter(number), 'z', 'q', 'x', 'k'].iter().collect();
        let found = run(&server, &case, &word).await;
        wrong.extend(found.into_iter().map(|why| format!("{id}: {why}")));
        cases += 1;
        decisions += case["decisions"].as_array().map_or(0, Vec::len);
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(cases >= 113 && decisions >= 2400, "{cases} cases, {decisions} decisions");
}

#[tokio::test]
async fn every_cluster_starts_with_the_recorded_roles() {
    let server = support::start().await;
    let recorded: Value = serde_json::from_str(&vectors("rbac_roles.json.gz")).unwrap();
    let mut count = 0;
    for (plural, list) in recorded.as_object().unwrap() {
        for role in list.as_array().unwrap() {
            let text = |key: &str| role[key].as_str().unwrap_or("");
            let place = match text("namespace") {
                "" => String::new(),
                namespace => format!("namespaces/{namespace}/"),
            };
            let path = format!("/apis/rbac.authorization.k8s.io/v1/{place}{plural}/{}", text("name"));
            let found = server.get(&path).await;
            assert_eq!(found.code, 200, "{path}");
            for key in ["rules", "aggregationRule", "roleRef", "subjects"] {
                let part = |value: &Value| value.get(key).filter(|v| !v.is_null()).cloned();
                assert_eq!(part(&found.body), part(role), "{path} {key}");
            }
            for key in ["labels", "annotations"] {
                assert_eq!(found.body["metadata"][key], role[key], "{path} {key}");
            }
            count += 1;
        }
    }
    assert_eq!(count, 135);
}
