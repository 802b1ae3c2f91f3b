//! `wasmk fn describe` and `wasmk fn export`: a function, for people and for files.

use anyhow::Result;
use serde_json::{Value, json};
use wasmk_api::{Timestamp, human_duration};
use wasmk_machinery::yaml;

use super::{
    super::{Context, Exit, api::Api, selection::with_query},
    path, traffic,
};

/// Variables shown at the most.
const MAX_VARIABLES: usize = 50;

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(in super::super) enum Format {
    Json,
    Yaml,
}

#[derive(Debug, clap::Args)]
pub(in super::super) struct Args {
    /// The function
    name: String,
    /// How to print
    #[arg(short, long, value_enum)]
    output: Option<Format>,
}

#[derive(Debug, clap::Args)]
pub(in super::super) struct Export {
    /// The function
    name: String,
    /// How to print
    #[arg(short, long, value_enum, default_value = "yaml")]
    output: Format,
}

pub(in super::super) async fn run(args: Args, cx: &Context) -> Result<Exit> {
    let api = Api::new(cx.client().await?);
    let service = api.get(&path(api.default_namespace(), &args.name)).await?;
    if let Some(format) = args.output {
        return print(&service, format, cx);
    }
    let all = format!("/apis/serving.knative.dev/v1/namespaces/{}/revisions", api.default_namespace());
    let selector = format!("serving.knative.dev/service={}", args.name);
    let revisions = api.get(&with_query(&all, &[("labelSelector", selector.as_str())])).await?;
    cx.out.columns(&facts(&service, Timestamp::now()));
    cx.out.line("\nTraffic:");
    cx.out.columns(&traffic::rows(&service["status"]["traffic"]));
    cx.out.line("\nRevisions:");
    cx.out.columns(&history(&revisions["items"], Timestamp::now()));
    cx.out.line("\nConditions:");
    cx.out.columns(&conditions(&service));
    Ok(Exit::Done)
}

pub(in super::super) async fn export(args: Export, cx: &Context) -> Result<Exit> {
    let api = Api::new(cx.client().await?);
    let service = api.get(&path(api.default_namespace(), &args.name)).await?;
    print(&bare(&service), args.output, cx)
}

fn print(value: &Value, format: Format, cx: &Context) -> Result<Exit> {
    match format {
        Format::Json => cx.out.line(serde_json::to_string_pretty(value)?),
        Format::Yaml => cx.out.text(&yaml::write(value)),
    }
    Ok(Exit::Done)
}

/// A function as its author would write it: without status and what the cluster added to its metadata.
fn bare(service: &Value) -> Value {
    let metadata = &service["metadata"];
    let mut kept = json!({"name": metadata["name"], "namespace": metadata["namespace"]});
    let own = |key: &str| {
        let system = ["serving.knative.dev/creator", "serving.knative.dev/lastModifier"];
        !system.contains(&key) && key != "kubectl.kubernetes.io/last-applied-configuration"
    };
    for map in ["labels", "annotations"] {
        let pairs = metadata[map].as_object().into_iter().flatten().filter(|(key, _)| own(key));
        let pairs: serde_json::Map<String, Value> = pairs.map(|(k, v)| (k.clone(), v.clone())).collect();
        if !pairs.is_empty() {
            kept[map] = pairs.into();
        }
    }
    json!({
        "apiVersion": service["apiVersion"],
        "kind": service["kind"],
        "metadata": kept,
        "spec": service["spec"],
    })
}

fn age(object: &Value, now: Timestamp) -> String {
    let made = object["metadata"]["creationTimestamp"].as_str().and_then(|t| t.parse::<Timestamp>().ok());
    made.map(|made| human_duration(now.since(made))).unwrap_or_default()
}

fn facts(service: &Value, now: Timestamp) -> Vec<Vec<String>> {
    let text = |value: &Value| value.as_str().unwrap_or("").to_string();
    let template = &service["spec"]["template"];
    let container = &template["spec"]["containers"][0];
    let mut rows = vec![
        vec!["Name:".into(), text(&service["metadata"]["name"])],
        vec!["Namespace:".into(), text(&service["metadata"]["namespace"])],
        vec!["Age:".into(), age(service, now)],
        vec!["URL:".into(), text(&service["status"]["url"])],
        vec!["Inside:".into(), text(&service["status"]["address"]["url"])],
        vec!["Image:".into(), text(&container["image"])],
        vec!["Timeout:".into(), format!("{}s", template["spec"]["timeoutSeconds"])],
        vec!["Concurrency:".into(), template["spec"]["containerConcurrency"].to_string()],
    ];
    for variable in container["env"].as_array().into_iter().flatten().take(MAX_VARIABLES) {
        let value = variable["value"].as_str().unwrap_or("<from elsewhere>");
        rows.push(vec!["Env:".into(), format!("{}={value}", text(&variable["name"]))]);
    }
    for (key, value) in template["metadata"]["annotations"].as_object().into_iter().flatten() {
        if let Some(key) = key.strip_prefix("autoscaling.knative.dev/") {
            rows.push(vec!["Scale:".into(), format!("{key}={}", text(value))]);
        }
    }
    rows
}

fn condition<'a>(object: &'a Value, kind: &str) -> &'a Value {
    let mut all = object["status"]["conditions"].as_array().into_iter().flatten();
    all.find(|c| c["type"] == kind).unwrap_or(&Value::Null)
}

fn history(revisions: &Value, now: Timestamp) -> Vec<Vec<String>> {
    let head = ["NAME", "READY", "REPLICAS", "AGE", "DIGEST", "REASON"].map(String::from).to_vec();
    let mut all: Vec<&Value> = revisions.as_array().into_iter().flatten().collect();
    all.sort_by_key(|r| {
        std::cmp::Reverse(r["metadata"]["creationTimestamp"].as_str().unwrap_or("").to_string())
    });
    let row = |r: &&Value| {
        let digest = r["status"]["containerStatuses"][0]["imageDigest"].as_str().unwrap_or("");
        let digest = digest.rsplit_once("sha256:").map_or("", |(_, hex)| hex);
        let ready = condition(r, "Ready");
        vec![
            r["metadata"]["name"].as_str().unwrap_or("").into(),
            ready["status"].as_str().unwrap_or("Unknown").into(),
            r["status"]["actualReplicas"].as_i64().unwrap_or(0).to_string(),
            age(r, now),
            digest.chars().take(12).collect(),
            ready["reason"].as_str().unwrap_or("").into(),
        ]
    };
    std::iter::once(head).chain(all.iter().map(row)).collect()
}

fn conditions(service: &Value) -> Vec<Vec<String>> {
    let head = ["TYPE", "STATUS", "REASON", "MESSAGE"].map(String::from).to_vec();
    let row = |c: &Value| {
        ["type", "status", "reason", "message"].map(|key| c[key].as_str().unwrap_or("").to_string()).to_vec()
    };
    let all = service["status"]["conditions"].as_array().into_iter().flatten();
    std::iter::once(head).chain(all.map(row)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_export_holds_what_its_author_wrote() {
        let service = json!({
            "apiVersion": "serving.knative.dev/v1", "kind": "Service",
            "metadata": {"name": "hello", "namespace": "default", "uid": "u", "resourceVersion": "3",
                "annotations": {"serving.knative.dev/creator": "me", "note": "n"}},
            "spec": {"template": {}}, "status": {"url": "x"},
        });
        assert_eq!(
            bare(&service),
            json!({"apiVersion": "serving.knative.dev/v1", "kind": "Service",
                "metadata": {"name": "hello", "namespace": "default", "annotations": {"note": "n"}},
                "spec": {"template": {}}})
        );
    }
}
