//! `wasmk fn describe` and `wasmk fn export`: a function, for people and for files.

use anyhow::Result;
use serde_json::{Value, json};
use wasmk_api::{Timestamp, human_duration};
use wasmk_machinery::yaml;

use super::{
    super::{Context, Exit, api::Api, selection::with_query},
    path,
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
    let now = Timestamp::now();
    cx.out.columns(&facts(&service, now));
    cx.out.line("\nRevisions:");
    cx.out.text(&targets(&service, &revisions["items"], now));
    cx.out.line("\nConditions:");
    cx.out.text(&conditions(&service, now));
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

pub(super) fn age(object: &Value, now: Timestamp) -> String {
    since(&object["metadata"]["creationTimestamp"], now)
}

fn since(time: &Value, now: Timestamp) -> String {
    let then = time.as_str().and_then(|t| t.parse::<Timestamp>().ok());
    then.map(|then| human_duration(now.since(then))).unwrap_or_default()
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

pub(super) fn condition<'a>(object: &'a Value, kind: &str) -> &'a Value {
    let mut all = object["status"]["conditions"].as_array().into_iter().flatten();
    all.find(|c| c["type"] == kind).unwrap_or(&Value::Null)
}

/// The revisions that get requests or have a tag, with their share, then the others, the newest first.
fn targets(service: &Value, revisions: &Value, now: Timestamp) -> String {
    let mut all: Vec<&Value> = revisions.as_array().into_iter().flatten().collect();
    let name = |r: &Value| r["metadata"]["name"].as_str().unwrap_or("").to_owned();
    all.sort_by_cached_key(|r| std::cmp::Reverse((r["metadata"]["creationTimestamp"].to_string(), name(r))));
    let mut text = String::new();
    let traffic = service["status"]["traffic"].as_array().map(Vec::as_slice).unwrap_or_default();
    for target in traffic {
        let found = all.iter().find(|r| r["metadata"]["name"] == target["revisionName"]);
        let share = format!("{}%", target["percent"].as_u64().unwrap_or(0));
        let name = target["revisionName"].as_str().unwrap_or("");
        let latest = target["latestRevision"] == true;
        let mut title = if latest { format!("@latest ({name})") } else { name.to_owned() };
        if let Some(tag) = target["tag"].as_str().filter(|tag| !tag.is_empty()) {
            title += &format!(" #{tag}");
        }
        text += &revision(&share, &title, found.copied().unwrap_or(&Value::Null), now);
    }
    let named = |r: &&&Value| traffic.iter().any(|t| t["revisionName"] == r["metadata"]["name"]);
    for other in all.iter().filter(|r| !named(r)) {
        text += &revision("", &name(other), other, now);
    }
    text
}

fn revision(share: &str, title: &str, revision: &Value, now: Timestamp) -> String {
    let generation = &revision["metadata"]["labels"]["serving.knative.dev/configurationGeneration"];
    let status = &revision["status"];
    let image = revision["spec"]["containers"][0]["image"].as_str().unwrap_or("");
    let digest = status["containerStatuses"][0]["imageDigest"].as_str().unwrap_or("");
    let pinned = digest.rsplit_once("sha256:").map_or("", |(_, hex)| hex.get(..6).unwrap_or(""));
    let pinned = if pinned.is_empty() { String::new() } else { format!(" (pinned to {pinned})") };
    let count = |key: &str| status[key].as_i64().unwrap_or(0);
    let mut text = format!(
        "{share:>6}  {title} [{}] ({})\n{:8}Image:     {}{pinned}\n{:8}Replicas:  {}/{}\n",
        generation.as_str().unwrap_or(""),
        age(revision, now),
        "",
        image.split('@').next().unwrap_or(image),
        "",
        count("actualReplicas"),
        count("desiredReplicas"),
    );
    let ready = condition(revision, "Ready");
    if ready["status"] == "False" {
        let why = ["reason", "message"].map(|key| ready[key].as_str().unwrap_or(""));
        text += &format!("{:8}Error:     {}\n", "", why.join(": "));
    }
    text
}

/// Conditions with a mark of what they mean, `Ready` first.
fn conditions(service: &Value, now: Timestamp) -> String {
    let mut all: Vec<&Value> = service["status"]["conditions"].as_array().into_iter().flatten().collect();
    all.sort_by_key(|c| c["type"] != "Ready");
    let mark = |c: &Value| match (c["status"].as_str(), c["severity"].as_str()) {
        (Some("True"), _) => "++",
        (Some("False"), Some("Info")) => " I",
        (Some("False"), Some("Warning")) => " W",
        (Some("False"), _) => "!!",
        _ => "??",
    };
    let width = all.iter().filter_map(|c| c["type"].as_str()).map(str::len).max().unwrap_or(4);
    let mut text = format!("  OK {:width$}  {:>4} REASON\n", "TYPE", "AGE");
    for c in all {
        let part = |key: &str| c[key].as_str().unwrap_or("");
        let why = match (part("reason"), part("message")) {
            (reason, "") => reason.to_owned(),
            (reason, message) => format!("{reason} ({message})"),
        };
        let age = since(&c["lastTransitionTime"], now);
        text += format!("  {} {:width$}  {age:>4} {why}", mark(c), part("type")).trim_end();
        text.push('\n');
    }
    text
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

    #[test]
    fn revisions_and_conditions_read_as_those_of_kn() {
        let now: Timestamp = "2026-01-01T00:02:00Z".parse().unwrap();
        let made = |name: &str, generation: &str| {
            json!({"metadata": {"name": name, "creationTimestamp": "2026-01-01T00:00:00Z",
                "labels": {"serving.knative.dev/configurationGeneration": generation}},
                "spec": {"containers": [{"image": "r/hello@sha256:abcdef0123"}]},
                "status": {"containerStatuses": [{"imageDigest": "r/hello@sha256:abcdef0123"}], "desiredReplicas": 1}})
        };
        let service = json!({"status": {
            "traffic": [{"revisionName": "hello-00002", "latestRevision": true, "percent": 100},
                {"revisionName": "hello-00001", "percent": 0, "tag": "old"}],
            "conditions": [{"type": "ConfigurationsReady", "status": "True", "lastTransitionTime": "2026-01-01T00:01:00Z"},
                {"type": "Ready", "status": "False", "reason": "R", "message": "m", "lastTransitionTime": "2026-01-01T00:01:55Z"}],
        }});
        let revisions = json!([made("hello-00001", "1"), made("hello-00002", "2"), made("hello-00003", "3")]);
        let text = targets(&service, &revisions, now);
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines[0], "  100%  @latest (hello-00002) [2] (2m)");
        assert_eq!(lines[1], "        Image:     r/hello (pinned to abcdef)");
        assert_eq!(lines[2], "        Replicas:  0/1");
        assert_eq!(lines[3], "    0%  hello-00001 #old [1] (2m)");
        assert_eq!(lines[6], "        hello-00003 [3] (2m)");
        assert_eq!(
            conditions(&service, now),
            "  OK TYPE                  AGE REASON\n  !! Ready                  5s R (m)\n  ++ ConfigurationsReady   60s\n"
        );
    }
}
