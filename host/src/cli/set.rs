//! `wasmk set`: images, variables and the service account of a workload's pods; selectors of services.

use anyhow::{Context as _, Result, bail};
use http::Method;
use serde_json::{Value, json};

use super::{
    Context, Exit,
    api::Api,
    make::{Flags, MANAGER},
    resources::Resources,
    selection::{self, with_query},
};

/// What `wasmk set` changes.
#[derive(Debug, clap::Subcommand)]
pub(super) enum Command {
    /// The images of containers: CONTAINER=IMAGE
    Image(Args),
    /// Variables of all containers: NAME=VALUE, or NAME- to take one away
    Env(Args),
    /// The service account of the pods
    #[command(visible_alias = "sa")]
    Serviceaccount(Args),
    /// The selector of a service: KEY=VALUE,...
    Selector(Args),
}

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// TYPE NAME or TYPE/NAME, then the changes
    #[arg(value_name = "TYPE", required = true)]
    words: Vec<String>,
    #[command(flatten)]
    flags: Flags,
}

pub(super) async fn run(command: Command, cx: &Context) -> Result<Exit> {
    let (args, done) = match &command {
        Command::Image(args) => (args, "image updated"),
        Command::Env(args) => (args, "env updated"),
        Command::Serviceaccount(args) => (args, "serviceaccount updated"),
        Command::Selector(args) => (args, "selector updated"),
    };
    let named = if args.words[0].contains('/') { 1 } else { 2 };
    let (words, changes) = args.words.split_at(named.min(args.words.len()));
    if changes.is_empty() {
        bail!("nothing to set: the changes follow TYPE/NAME");
    }
    let api = Api::new(cx.client().await?);
    let resources = Resources::discover(&api).await?;
    for selection in selection::read(&resources, words)? {
        for name in &selection.names {
            let path = format!("{}/{name}", selection.resource.path(Some(api.default_namespace())));
            let object = api.get(&path).await?;
            let patch = match &command {
                Command::Selector(_) => selector(changes)?,
                Command::Image(_) => in_pod(&object, &images(&object, changes)?),
                Command::Env(_) => in_pod(&object, &variables(&object, changes)?),
                Command::Serviceaccount(_) => in_pod(&object, &json!({"serviceAccountName": changes[0]})),
            };
            let dry = if args.flags.stays_here() { "All" } else { args.flags.query() };
            let query = [("fieldManager", MANAGER), ("dryRun", dry)];
            let kind = "application/strategic-merge-patch+json";
            let after = api.send_as(Method::PATCH, &with_query(&path, &query), kind, &patch).await?;
            let changed = after["metadata"]["resourceVersion"] != object["metadata"]["resourceVersion"];
            if changed || !dry.is_empty() || args.flags.output.is_some() {
                args.flags.print(cx, selection.resource, &after, done)?;
            }
        }
    }
    Ok(Exit::Done)
}

/// The pod's specification inside the object, and a patch of it as a patch of the object.
fn in_pod(object: &Value, patch: &Value) -> Value {
    match object["kind"].as_str() {
        Some("Pod") => json!({"spec": patch}),
        Some("CronJob") => json!({"spec": {"jobTemplate": {"spec": {"template": {"spec": patch}}}}}),
        _ => json!({"spec": {"template": {"spec": patch}}}),
    }
}

fn pod_spec(object: &Value) -> &Value {
    match object["kind"].as_str() {
        Some("Pod") => &object["spec"],
        Some("CronJob") => &object["spec"]["jobTemplate"]["spec"]["template"]["spec"],
        _ => &object["spec"]["template"]["spec"],
    }
}

fn containers(object: &Value) -> Vec<(&'static str, &str)> {
    let of = |list: &'static str| {
        let all = pod_spec(object)[list].as_array().into_iter().flatten();
        all.filter_map(move |c| Some((list, c["name"].as_str()?)))
    };
    of("initContainers").chain(of("containers")).collect()
}

fn images(object: &Value, changes: &[String]) -> Result<Value> {
    let all = containers(object);
    let mut patch = json!({});
    for change in changes {
        let (name, image) =
            change.split_once('=').with_context(|| format!("{change} is not CONTAINER=IMAGE"))?;
        let meant: Vec<_> = all.iter().filter(|(_, c)| name == "*" || *c == name).collect();
        if meant.is_empty() {
            bail!("unable to find container named \"{name}\"");
        }
        for (list, container) in meant {
            push(&mut patch, list, json!({"name": container, "image": image}));
        }
    }
    Ok(patch)
}

fn variables(object: &Value, changes: &[String]) -> Result<Value> {
    let mut env = Vec::new();
    for change in changes {
        env.push(match (change.split_once('='), change.strip_suffix('-')) {
            (Some((name, value)), _) => json!({"name": name, "value": value, "valueFrom": null}),
            (None, Some(name)) => json!({"name": name, "$patch": "delete"}),
            (None, None) => bail!("{change} is neither NAME=VALUE nor NAME-"),
        });
    }
    let mut patch = json!({});
    for (list, name) in containers(object).into_iter().filter(|(list, _)| *list == "containers") {
        push(&mut patch, list, json!({"name": name, "env": env}));
    }
    Ok(patch)
}

fn push(patch: &mut Value, list: &str, entry: Value) {
    match patch[list].as_array_mut() {
        Some(entries) => entries.push(entry),
        None => patch[list] = json!([entry]),
    }
}

fn selector(changes: &[String]) -> Result<Value> {
    let mut selector = json!({"$patch": "replace"});
    for pair in changes.iter().flat_map(|c| c.split(',')) {
        let (key, value) = pair.split_once('=').with_context(|| format!("{pair} is not KEY=VALUE"))?;
        selector[key] = json!(value);
    }
    Ok(json!({"spec": {"selector": selector}}))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn changes_become_patches() {
        let object = json!({"kind": "Deployment", "spec": {"template": {"spec": {"containers": [{"name": "a"}, {"name": "b"}]}}}});
        let words = |list: &[&str]| -> Vec<String> { list.iter().map(ToString::to_string).collect() };
        let one = images(&object, &words(&["a=x:2"])).unwrap();
        assert_eq!(one, json!({"containers": [{"name": "a", "image": "x:2"}]}));
        assert_eq!(images(&object, &words(&["*=x"])).unwrap()["containers"].as_array().unwrap().len(), 2);
        assert!(images(&object, &words(&["c=x"])).is_err());
        let env = variables(&object, &words(&["A=1", "B-"])).unwrap();
        assert_eq!(env["containers"][1]["env"][1], json!({"name": "B", "$patch": "delete"}));
        assert_eq!(in_pod(&object, &json!(1)), json!({"spec": {"template": {"spec": 1}}}));
    }
}
