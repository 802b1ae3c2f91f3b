//! Recorded answers of a Kubernetes 1.36 API server, against this one.
//!
//! `tests/vectors/*.jsonl.gz` hold one case each line: requests with what Kubernetes answered. What differs is listed
//! in `tests/vectors/differences.tsv` with its reason; a new difference fails, and so does one that is listed and gone.

mod normal;
mod run;
#[path = "../support/mod.rs"]
mod support;

use std::{collections::BTreeMap, io::Read, path::PathBuf};

use futures::{StreamExt, stream};
use serde_json::Value;
use wasmk_apiserver::ServiceRange;

/// Cases that run at the same time.
const AT_ONCE: usize = 8;

fn folder() -> PathBuf {
    PathBuf::from("../../tests/vectors")
}

fn cases(area: &str) -> Vec<Value> {
    let packed = std::fs::read(folder().join(format!("{area}.jsonl.gz"))).unwrap();
    let mut text = String::new();
    flate2::read::GzDecoder::new(&*packed).read_to_string(&mut text).unwrap();
    text.lines().filter(|l| !l.is_empty()).map(|l| serde_json::from_str(l).unwrap()).collect()
}

/// The listed differences of an area, with their reasons.
fn listed(area: &str) -> BTreeMap<String, String> {
    let text = std::fs::read_to_string(folder().join("differences.tsv")).unwrap();
    text.lines()
        .filter(|l| !l.starts_with('#') && l.starts_with(&format!("{area}/")))
        .map(|line| {
            let (id, reason) = line.split_once('\t').expect("a case and a reason");
            assert!(reason.len() > 10, "{id} has no reason");
            (id.to_owned(), reason.to_owned())
        })
        .collect()
}

async fn check(area: &str) {
    let server = support::start_with(|config| {
        // The addresses that the recorded cases spell out.
        config.service_range = ServiceRange::parse("10.96.0.0/16").unwrap();
    })
    .await;
    let server = &server;
    let (alone, together): (Vec<Value>, Vec<Value>) =
        cases(area).into_iter().partition(|c| c["alone"] == true);
    let total = alone.len() + together.len();
    let one = |case: Value| async move {
        let found = run::case(server, &case).await;
        (case["id"].as_str().unwrap().to_owned(), found)
    };
    let mut outcomes: BTreeMap<String, Vec<String>> =
        stream::iter(together).map(one).buffer_unordered(AT_ONCE).collect().await;
    for case in alone {
        let (id, found) = one(case).await;
        outcomes.insert(id, found);
    }
    assert_eq!(outcomes.len(), total, "two cases have one name");
    let listed = listed(area);
    let mut wrong = Vec::new();
    for (id, differences) in &outcomes {
        match (differences.is_empty(), listed.contains_key(id)) {
            (true, true) => wrong.push(format!("{id} is listed but does not differ any more")),
            (false, false) => wrong.push(format!("{id} differs:\n    {}", differences.join("\n    "))),
            _ => {}
        }
    }
    wrong.extend(listed.keys().filter(|id| !outcomes.contains_key(*id)).map(|id| format!("{id} is no case")));
    assert!(wrong.is_empty(), "{} of {total}:\n{}", wrong.len(), wrong.join("\n"));
}

#[tokio::test(flavor = "multi_thread")]
async fn objects_get_the_defaults_of_kubernetes() {
    check("defaulting").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_wrong_is_said_as_kubernetes_says_it() {
    check("validation").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn patches_and_applies_do_as_in_kubernetes() {
    check("patches").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn reads_answer_as_kubernetes_does() {
    check("reads").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn watches_tell_what_kubernetes_tells() {
    check("watch").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn custom_resources_live_as_in_kubernetes() {
    check("crd").await;
}
