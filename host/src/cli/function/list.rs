//! `wasmk fn list` and `wasmk fn revisions`: the columns that users of `kn` look for.

use anyhow::Result;
use serde_json::Value;
use wasmk_api::Timestamp;

use super::{
    super::{Context, Exit, api::Api, selection::with_query},
    describe::{age, condition},
    path,
};

#[derive(Debug, clap::Args)]
pub(in super::super) struct Args {
    /// Over all namespaces
    #[arg(short = 'A', long)]
    all_namespaces: bool,
    /// How to print
    #[arg(short, long, value_enum)]
    output: Option<Format>,
}

#[derive(Debug, clap::Args)]
pub(in super::super) struct Revisions {
    /// Only those of a function
    #[arg(long, value_name = "NAME")]
    service: Option<String>,
    /// Over all namespaces
    #[arg(short = 'A', long)]
    all_namespaces: bool,
    /// How to print
    #[arg(short, long, value_enum)]
    output: Option<Format>,
}

#[derive(Clone, Copy, Debug, clap::ValueEnum)]
enum Format {
    Json,
}

pub(in super::super) async fn run(args: Args, cx: &Context) -> Result<Exit> {
    let api = Api::new(cx.client().await?);
    let path = match args.all_namespaces {
        true => "/apis/serving.knative.dev/v1/services".to_string(),
        false => path(api.default_namespace(), ""),
    };
    let list = api.get(&path).await?;
    if args.output.is_some() {
        cx.out.line(serde_json::to_string_pretty(&list)?);
        return Ok(Exit::Done);
    }
    let services = sorted(&list["items"]);
    if services.is_empty() {
        cx.out.note("no functions yet; `wasmk fn new NAME` makes one");
        return Ok(Exit::Done);
    }
    let head = ["NAME", "URL", "LATEST", "AGE", "CONDITIONS", "READY", "REASON"];
    cx.out.columns(&rows(&head, &services, args.all_namespaces, |s| function(s, Timestamp::now())));
    Ok(Exit::Done)
}

pub(in super::super) async fn revisions(args: Revisions, cx: &Context) -> Result<Exit> {
    let api = Api::new(cx.client().await?);
    let kind = |plural: &str| match args.all_namespaces {
        true => format!("/apis/serving.knative.dev/v1/{plural}"),
        false => format!("/apis/serving.knative.dev/v1/namespaces/{}/{plural}", api.default_namespace()),
    };
    let selector = args.service.as_ref().map(|name| format!("serving.knative.dev/service={name}"));
    let query = [("labelSelector", selector.as_deref().unwrap_or_default())];
    let list = api.get(&with_query(&kind("revisions"), &query)).await?;
    if args.output.is_some() {
        cx.out.line(serde_json::to_string_pretty(&list)?);
        return Ok(Exit::Done);
    }
    let revisions = sorted(&list["items"]);
    if revisions.is_empty() {
        cx.out.note("no revisions; `wasmk fn deploy` makes one");
        return Ok(Exit::Done);
    }
    let routes = api.get(&kind("routes")).await?;
    let head = ["NAME", "SERVICE", "TRAFFIC", "TAGS", "GENERATION", "AGE", "CONDITIONS", "READY", "REASON"];
    let row = |r: &Value| revision(r, &routes["items"], Timestamp::now());
    cx.out.columns(&rows(&head, &revisions, args.all_namespaces, row));
    Ok(Exit::Done)
}

/// Objects by namespace and service, and of one service the newest generation first.
fn sorted(items: &Value) -> Vec<&Value> {
    let mut all: Vec<&Value> = items.as_array().into_iter().flatten().collect();
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    all.sort_by_cached_key(|object| {
        let metadata = &object["metadata"];
        let labels = &metadata["labels"];
        let generation = std::cmp::Reverse(generation(object).parse::<u64>().unwrap_or(0));
        let service = text(&labels["serving.knative.dev/service"]);
        (text(&metadata["namespace"]), service, generation, text(&metadata["name"]))
    });
    all
}

fn rows(
    head: &[&str],
    objects: &[&Value],
    namespaces: bool,
    row: impl Fn(&Value) -> Vec<String>,
) -> Vec<Vec<String>> {
    let with = |namespace: &str, cells: Vec<String>| {
        let namespace = namespaces.then(|| namespace.to_owned());
        namespace.into_iter().chain(cells).collect::<Vec<_>>()
    };
    let head = with("NAMESPACE", head.iter().map(|name| (*name).to_owned()).collect());
    let row = |object: &&Value| with(object["metadata"]["namespace"].as_str().unwrap_or(""), row(object));
    std::iter::once(head).chain(objects.iter().map(row)).collect()
}

fn function(service: &Value, now: Timestamp) -> Vec<String> {
    let text = |value: &Value| value.as_str().unwrap_or("").to_string();
    let status = &service["status"];
    let mut cells = vec![
        text(&service["metadata"]["name"]),
        text(&status["url"]),
        text(&status["latestCreatedRevisionName"]),
        age(service, now),
    ];
    cells.extend(readiness(service));
    cells
}

fn revision(revision: &Value, routes: &Value, now: Timestamp) -> Vec<String> {
    let text = |value: &Value| value.as_str().unwrap_or("").to_string();
    let metadata = &revision["metadata"];
    let (percent, tags) = traffic(metadata, routes);
    let mut cells = vec![
        text(&metadata["name"]),
        text(&metadata["labels"]["serving.knative.dev/service"]),
        percent,
        tags,
        generation(revision),
        age(revision, now),
    ];
    cells.extend(readiness(revision));
    cells
}

fn generation(revision: &Value) -> String {
    let label = &revision["metadata"]["labels"]["serving.knative.dev/configurationGeneration"];
    label.as_str().unwrap_or("").to_string()
}

/// The share of requests that routes of its namespace send to a revision, and its tags.
fn traffic(revision: &Value, routes: &Value) -> (String, String) {
    let same = |route: &&Value| route["metadata"]["namespace"] == revision["namespace"];
    let targets = routes.as_array().into_iter().flatten().filter(same);
    let targets = targets.flat_map(|route| route["status"]["traffic"].as_array().into_iter().flatten());
    let (mut percent, mut tags) = (0, Vec::new());
    for target in targets.filter(|target| target["revisionName"] == revision["name"]) {
        percent += target["percent"].as_u64().unwrap_or(0);
        tags.extend(target["tag"].as_str().filter(|tag| !tag.is_empty()));
    }
    let share = if percent > 0 { format!("{percent}%") } else { String::new() };
    (share, tags.join(","))
}

/// How many conditions hold, whether it is ready, and why not.
fn readiness(object: &Value) -> [String; 3] {
    let all = object["status"]["conditions"].as_array().map(Vec::as_slice).unwrap_or_default();
    let hold = all.iter().filter(|c| c["status"] == "True").count();
    let ready = condition(object, "Ready");
    let text = |key: &str| ready[key].as_str().unwrap_or("");
    let reason = match (text("status"), text("reason"), text("message")) {
        ("True", ..) | (_, "", "") => String::new(),
        (_, reason, "") => reason.to_owned(),
        (_, reason, message) => format!("{reason} : {message}"),
    };
    let state = if text("status").is_empty() { "Unknown" } else { text("status") };
    [format!("{hold} OK / {}", all.len()), state.into(), reason]
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn readiness_is_told_as_by_kn() {
        let of = |conditions: Value| readiness(&json!({"status": {"conditions": conditions}}));
        let yes = |kind: &str| json!({"type": kind, "status": "True"});
        assert_eq!(of(json!([yes("Ready"), yes("RoutesReady")])), ["2 OK / 2", "True", ""]);
        let no = json!({"type": "Ready", "status": "False", "reason": "RevisionMissing", "message": "it is not there"});
        assert_eq!(
            of(json!([no, yes("RoutesReady")])),
            ["1 OK / 2", "False", "RevisionMissing : it is not there"]
        );
        assert_eq!(of(json!([])), ["0 OK / 0", "Unknown", ""]);
    }

    #[test]
    fn traffic_is_that_of_the_namespace() {
        let route = |namespace: &str, percent: u32, tag: &str| {
            json!({"metadata": {"namespace": namespace}, "status": {"traffic": [
                {"revisionName": "a-00001", "percent": percent, "tag": tag}]}})
        };
        let routes = json!([route("default", 30, ""), route("default", 0, "old"), route("other", 70, "new")]);
        let of = |name: &str| traffic(&json!({"name": name, "namespace": "default"}), &routes);
        assert_eq!((of("a-00001"), of("b")), (("30%".into(), "old".into()), (String::new(), String::new())));
    }
}
