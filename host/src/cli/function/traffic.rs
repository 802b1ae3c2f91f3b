//! `wasmk fn traffic` and `wasmk fn rollback`: which revisions requests go to.

use anyhow::{Context as _, Result, bail};
use http::Method;
use serde_json::{Value, json};

use super::{
    super::{Context, Exit, api::Api, hint::WithHint, selection::with_query},
    path, wait,
};

/// Stands for whatever revision is the latest that is ready.
const LATEST: &str = "@latest";

#[derive(Debug, clap::Args)]
pub(in super::super) struct Args {
    /// The function
    name: String,
    /// Send this share to a revision (`@latest` follows the newest); the shares add up to 100
    #[arg(long, value_name = "REVISION=PERCENT", value_delimiter = ',', alias = "traffic")]
    set: Vec<String>,
    /// Give a revision a host name of its own, TAG-NAME.…
    #[arg(long, value_name = "REVISION=TAG", value_delimiter = ',')]
    tag: Vec<String>,
    /// Take a tag away
    #[arg(long, value_name = "TAG", value_delimiter = ',')]
    untag: Vec<String>,
    /// Send everything to the newest revision, and to each one that follows
    #[arg(long, conflicts_with = "set")]
    to_latest: bool,
    /// How to print
    #[arg(short, long, value_enum)]
    output: Option<Format>,
}

#[derive(Clone, Copy, Debug, clap::ValueEnum)]
enum Format {
    Json,
}

#[derive(Debug, clap::Args)]
pub(in super::super) struct Rollback {
    /// The function
    name: String,
    /// The revision to go back to [default: the one before the one that answers now]
    #[arg(long, value_name = "REVISION")]
    to: Option<String>,
}

pub(in super::super) async fn run(args: Args, cx: &Context) -> Result<Exit> {
    let api = Api::new(cx.client().await?);
    let service = api.get(&path(api.default_namespace(), &args.name)).await?;
    let shares = match args.to_latest {
        true => vec![(LATEST.to_string(), 100)],
        false => args.set.iter().map(|pair| share(pair)).collect::<Result<_>>()?,
    };
    let tags = args.tag.iter().map(|pair| pair_of(pair, "REVISION=TAG")).collect::<Result<Vec<_>>>()?;
    if !shares.is_empty() || !tags.is_empty() || !args.untag.is_empty() {
        let traffic = targets(&service["spec"]["traffic"], &shares, &tags, &args.untag)?;
        set(&api, &args.name, traffic).await?;
        wait::until_ready(&api, &args.name).await?;
    }
    let service = api.get(&path(api.default_namespace(), &args.name)).await?;
    if args.output.is_some() {
        cx.out.line(serde_json::to_string_pretty(&service["status"]["traffic"])?);
    } else {
        cx.out.columns(&rows(&service["status"]["traffic"]));
    }
    Ok(Exit::Done)
}

pub(in super::super) async fn rollback(args: Rollback, cx: &Context) -> Result<Exit> {
    let api = Api::new(cx.client().await?);
    let namespace = api.default_namespace();
    let service = api.get(&path(namespace, &args.name)).await?;
    let query = [("labelSelector", format!("serving.knative.dev/service={}", args.name))];
    let query: Vec<(&str, &str)> = query.iter().map(|(k, v)| (*k, v.as_str())).collect();
    let all = format!("/apis/serving.knative.dev/v1/namespaces/{namespace}/revisions");
    let revisions = api.get(&with_query(&all, &query)).await?;
    let to = match args.to {
        Some(revision) => revision,
        None => previous(&service["status"]["traffic"], &revisions["items"])
            .with_context(|| format!("{} has no earlier revision that is ready", args.name))
            .hint(|| format!("`wasmk fn describe {}` lists its revisions", args.name))?,
    };
    let traffic = targets(&service["spec"]["traffic"], &[(to.clone(), 100)], &[], &[])?;
    set(&api, &args.name, traffic).await?;
    wait::until_ready(&api, &args.name).await?;
    cx.out.line(format!("{} is answered by {to}", args.name));
    cx.out.note(format!("follow the newest again with `wasmk fn traffic {} --to-latest`", args.name));
    Ok(Exit::Done)
}

/// Writes a function's traffic.
pub(super) async fn set(api: &Api, name: &str, traffic: Vec<Value>) -> Result<()> {
    let body = json!({"spec": {"traffic": traffic}});
    // Under a name of its own, so that a later deploy leaves the split as it is.
    let target = with_query(&path(api.default_namespace(), name), &[("fieldManager", "wasmk-traffic")]);
    api.send_as(Method::PATCH, &target, "application/merge-patch+json", &body).await?;
    Ok(())
}

fn pair_of(text: &str, form: &str) -> Result<(String, String)> {
    match text.split_once('=') {
        Some((left, right)) if !left.is_empty() && !right.is_empty() => Ok((left.into(), right.into())),
        _ => bail!("{text}: {form} was expected"),
    }
}

/// `REVISION=PERCENT`
pub(super) fn share(text: &str) -> Result<(String, u32)> {
    let (revision, percent) = pair_of(text, "REVISION=PERCENT")?;
    let number: u32 = percent
        .trim_end_matches('%')
        .parse()
        .ok()
        .filter(|p| *p <= 100)
        .with_context(|| format!("{text}: a percentage from 0 to 100 was expected"))?;
    Ok((revision, number))
}

/// The traffic of a function after changes. Shares, where any are given, replace the ones before; tags stay.
pub(super) fn targets(
    now: &Value,
    shares: &[(String, u32)],
    tags: &[(String, String)],
    untag: &[String],
) -> Result<Vec<Value>> {
    let sum: u32 = shares.iter().map(|(_, percent)| percent).sum();
    if !shares.is_empty() && sum != 100 {
        bail!("the shares add up to {sum}, not to 100");
    }
    let mut all: Vec<Value> = now.as_array().cloned().unwrap_or_default();
    let tag_of = |target: &Value| target["tag"].as_str().unwrap_or("").to_string();
    let gone = |target: &Value| {
        let tag = tag_of(target);
        untag.contains(&tag) || tags.iter().any(|(_, new)| *new == tag)
    };
    for target in all.iter_mut().filter(|target| gone(target)) {
        if let Some(map) = target.as_object_mut() {
            map.remove("tag");
        }
    }
    if !shares.is_empty() {
        all.iter_mut().for_each(|target| target["percent"] = 0.into());
    }
    for (revision, percent) in shares {
        place(&mut all, revision, "")["percent"] = (*percent).into();
    }
    for (revision, tag) in tags {
        place(&mut all, revision, tag)["tag"] = tag.as_str().into();
    }
    all.retain(|target| target["percent"].as_u64().unwrap_or(0) > 0 || !tag_of(target).is_empty());
    Ok(all)
}

/// The target of a revision that can take this tag (none: any target), made where there is none.
fn place<'a>(all: &'a mut Vec<Value>, revision: &str, tag: &str) -> &'a mut Value {
    let names = |target: &Value| target["revisionName"].as_str().unwrap_or(LATEST).to_string();
    let fits = |target: &Value| names(target) == revision && (tag.is_empty() || target["tag"].is_null());
    let index = all.iter().position(fits).unwrap_or_else(|| {
        all.push(match revision {
            LATEST => json!({"latestRevision": true, "percent": 0}),
            name => json!({"revisionName": name, "latestRevision": false, "percent": 0}),
        });
        all.len() - 1
    });
    &mut all[index]
}

/// The newest ready revision that is older than every one that answers now.
fn previous(traffic: &Value, revisions: &Value) -> Option<String> {
    let generation = |r: &Value| -> i64 {
        let label = &r["metadata"]["labels"]["serving.knative.dev/configurationGeneration"];
        label.as_str().and_then(|g| g.parse().ok()).unwrap_or(0)
    };
    let name = |r: &Value| r["metadata"]["name"].as_str().unwrap_or("").to_string();
    let all: Vec<&Value> = revisions.as_array()?.iter().collect();
    let serving = |r: &&&Value| {
        let mut targets = traffic.as_array().into_iter().flatten();
        targets.any(|t| t["revisionName"] == name(r) && t["percent"].as_i64().unwrap_or(0) > 0)
    };
    let present = all.iter().filter(serving).map(|r| generation(r)).min()?;
    let ready = |r: &&&Value| {
        let mut conditions = r["status"]["conditions"].as_array().into_iter().flatten();
        conditions.any(|c| c["type"] == "Ready" && c["status"] == "True")
    };
    let older = all.iter().filter(|r| generation(r) < present).filter(ready);
    older.max_by_key(|r| generation(r)).map(|r| name(r))
}

/// A split as a table.
pub(super) fn rows(traffic: &Value) -> Vec<Vec<String>> {
    let head = ["REVISION", "PERCENT", "LATEST", "TAG", "URL"].map(String::from).to_vec();
    let row = |t: &Value| {
        let text = |key: &str| t[key].as_str().unwrap_or("").to_string();
        let latest = if t["latestRevision"] == true { "yes" } else { "" };
        vec![
            text("revisionName"),
            t["percent"].as_i64().unwrap_or(0).to_string(),
            latest.into(),
            text("tag"),
            text("url"),
        ]
    };
    std::iter::once(head).chain(traffic.as_array().into_iter().flatten().map(row)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(now: Value, shares: &[(&str, u32)], tags: &[(&str, &str)], untag: &[&str], expected: Value) {
        let shares: Vec<_> = shares.iter().map(|(r, p)| (r.to_string(), *p)).collect();
        let tags: Vec<_> = tags.iter().map(|(r, t)| (r.to_string(), t.to_string())).collect();
        let untag: Vec<_> = untag.iter().map(|t| t.to_string()).collect();
        assert_eq!(Value::from(targets(&now, &shares, &tags, &untag).unwrap()), expected);
    }

    #[test]
    fn shares_and_tags_change_what_they_name() {
        let latest = json!([{"latestRevision": true, "percent": 100}]);
        check(
            latest.clone(),
            &[("@latest", 10), ("hello-00001", 90)],
            &[],
            &[],
            json!([
                {"latestRevision": true, "percent": 10},
                {"revisionName": "hello-00001", "latestRevision": false, "percent": 90},
            ]),
        );
        check(
            latest.clone(),
            &[],
            &[("hello-00001", "old")],
            &[],
            json!([
                {"latestRevision": true, "percent": 100},
                {"revisionName": "hello-00001", "latestRevision": false, "percent": 0, "tag": "old"},
            ]),
        );
        let tagged = json!([{"latestRevision": true, "percent": 100, "tag": "new"}]);
        check(tagged.clone(), &[], &[], &["new"], latest);
        // A share elsewhere leaves the tag's host.
        check(
            tagged,
            &[("hello-00001", 100)],
            &[],
            &[],
            json!([
                {"latestRevision": true, "percent": 0, "tag": "new"},
                {"revisionName": "hello-00001", "latestRevision": false, "percent": 100},
            ]),
        );
    }

    #[test]
    fn shares_add_up() {
        assert!(targets(&json!([]), &[("a".into(), 60), ("b".into(), 50)], &[], &[]).is_err());
        assert_eq!(share("a=5%").unwrap(), ("a".into(), 5));
        for wrong in ["a", "a=", "=5", "a=101", "a=x"] {
            assert!(share(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn going_back_means_the_last_that_was_ready() {
        let revision = |generation: u32, ready: &str| {
            json!({"metadata": {"name": format!("r{generation}"),
                "labels": {"serving.knative.dev/configurationGeneration": generation.to_string()}},
                "status": {"conditions": [{"type": "Ready", "status": ready}]}})
        };
        let all =
            json!([revision(1, "True"), revision(2, "True"), revision(3, "False"), revision(4, "True")]);
        let serving = |name: &str| json!([{"revisionName": name, "percent": 100}]);
        assert_eq!(previous(&serving("r4"), &all).as_deref(), Some("r2"));
        assert_eq!(previous(&serving("r2"), &all).as_deref(), Some("r1"));
        assert_eq!(previous(&serving("r1"), &all), None);
    }
}
