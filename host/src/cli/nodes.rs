//! Work on nodes: `cordon`, `uncordon`, `drain`, `taint`.

use anyhow::{Context as _, Result, bail};
use futures::{TryStreamExt, stream};
use http::Method;
use serde_json::{Value, json};
use tokio::time::{Duration, Instant, sleep};

use super::{
    Context, Exit,
    api::{Api, Refusal, is_not_found},
    pods::text,
    selection::with_query,
    wait::duration,
};

/// Most pods evicted at the same time.
const EVICTIONS: usize = 256;
/// Between attempts at an eviction that a budget holds back, and looks at a pod that goes.
const PAUSE: Duration = Duration::from_millis(500);

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The nodes
    #[arg(value_name = "NODE", required = true)]
    nodes: Vec<String>,
}

/// Arguments of `wasmk drain`.
#[derive(Debug, clap::Args)]
pub(super) struct Drain {
    /// The nodes
    #[arg(value_name = "NODE", required = true)]
    nodes: Vec<String>,
    /// Leave pods of daemon sets
    #[arg(long)]
    ignore_daemonsets: bool,
    /// Also pods with directories that go with them
    #[arg(long)]
    delete_emptydir_data: bool,
    /// Also pods that nothing makes again
    #[arg(long)]
    force: bool,
    /// Give up after so long, like 30s or 5m
    #[arg(long, value_name = "DURATION", default_value = "10m")]
    timeout: String,
}

/// The names of nodes that are given as `NAME` or `node/NAME`.
fn names(nodes: &[String]) -> impl Iterator<Item = &str> {
    nodes.iter().map(|node| match node.split_once('/') {
        Some(("node" | "nodes" | "no", name)) => name,
        _ => node,
    })
}

fn path(node: &str) -> String {
    format!("/api/v1/nodes/{node}")
}

pub(super) async fn cordon(args: Args, closed: bool, cx: &Context) -> Result<Exit> {
    let api = Api::new(cx.client().await?);
    for node in names(&args.nodes) {
        close(cx, &api, node, closed).await?;
    }
    Ok(Exit::Done)
}

async fn close(cx: &Context, api: &Api, node: &str, closed: bool) -> Result<()> {
    let before = api.get(&path(node)).await?;
    let word = if closed { "cordoned" } else { "uncordoned" };
    if (before["spec"]["unschedulable"] == true) == closed {
        cx.out.line(format!("node/{node} already {word}"));
        return Ok(());
    }
    let patch = json!({"spec": {"unschedulable": if closed { json!(true) } else { Value::Null }}});
    api.send_as(Method::PATCH, &path(node), "application/merge-patch+json", &patch).await?;
    cx.out.line(format!("node/{node} {word}"));
    Ok(())
}

pub(super) async fn drain(args: Drain, cx: &Context) -> Result<Exit> {
    let api = &Api::new(cx.client().await?);
    let deadline = Instant::now() + duration(&args.timeout)?;
    for node in names(&args.nodes) {
        close(cx, api, node, true).await?;
        let query = [("fieldSelector", &*format!("spec.nodeName={node}"))];
        let list = api.get(&with_query("/api/v1/pods", &query)).await?;
        let pods: Vec<&Value> =
            list["items"].as_array().into_iter().flatten().filter(|p| !stays(p, &args)).collect();
        let held: Vec<String> = pods.iter().filter_map(|p| held_by(p, &args)).collect();
        if !held.is_empty() {
            bail!("unable to drain node {node:?}: {}", held.join("; "));
        }
        // One that a budget holds back keeps no other waiting.
        stream::iter(pods.into_iter().map(Ok))
            .try_for_each_concurrent(EVICTIONS, |pod| async move {
                evict(cx, api, pod, deadline).await?;
                gone(api, pod, deadline).await
            })
            .await?;
        cx.out.line(format!("node/{node} drained"));
    }
    Ok(Exit::Done)
}

fn owner(pod: &Value) -> &str {
    let owners = pod["metadata"]["ownerReferences"].as_array();
    owners
        .into_iter()
        .flatten()
        .find(|o| o["controller"] == true)
        .and_then(|o| o["kind"].as_str())
        .unwrap_or("")
}

/// Pods that draining has nothing to do with.
fn stays(pod: &Value, args: &Drain) -> bool {
    let mirror = !pod["metadata"]["annotations"]["kubernetes.io/config.mirror"].is_null();
    mirror || owner(pod) == "DaemonSet" && args.ignore_daemonsets
}

/// Why a pod must not be evicted without a word of the user.
fn held_by(pod: &Value, args: &Drain) -> Option<String> {
    let name = format!("{}/{}", text(&pod["metadata"]["namespace"]), text(&pod["metadata"]["name"]));
    let over = matches!(pod["status"]["phase"].as_str(), Some("Succeeded" | "Failed"));
    let local = pod["spec"]["volumes"].as_array().into_iter().flatten().any(|v| v.get("emptyDir").is_some());
    match owner(pod) {
        _ if over => None,
        "DaemonSet" => {
            Some(format!("cannot delete DaemonSet-managed Pods (use --ignore-daemonsets to ignore): {name}"))
        }
        "" if !args.force => {
            Some(format!("cannot delete Pods that declare no controller (use --force to override): {name}"))
        }
        _ if local && !args.delete_emptydir_data => Some(format!(
            "cannot delete Pods with local storage (use --delete-emptydir-data to override): {name}"
        )),
        _ => None,
    }
}

fn pod_path(pod: &Value) -> String {
    format!(
        "/api/v1/namespaces/{}/pods/{}",
        text(&pod["metadata"]["namespace"]),
        text(&pod["metadata"]["name"])
    )
}

async fn evict(cx: &Context, api: &Api, pod: &Value, deadline: Instant) -> Result<()> {
    let (namespace, name) = (text(&pod["metadata"]["namespace"]), text(&pod["metadata"]["name"]));
    cx.out.line(format!("evicting pod {namespace}/{name}"));
    let eviction = json!({"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": name, "namespace": namespace}});
    loop {
        match api.send(Method::POST, &format!("{}/eviction", pod_path(pod)), &eviction).await {
            Ok(_) => return Ok(()),
            Err(e) if is_not_found(&e) => return Ok(()),
            // A budget has no room at the moment.
            Err(e)
                if e.downcast_ref::<Refusal>().is_some_and(|r| r.reason == "TooManyRequests")
                    && Instant::now() < deadline =>
            {
                cx.out.note(format!("error when evicting pods/{name} -n {namespace} (will retry): {e}"));
                sleep(PAUSE).await;
            }
            Err(e) => return Err(e),
        }
    }
}

async fn gone(api: &Api, pod: &Value, deadline: Instant) -> Result<()> {
    loop {
        match api.get(&pod_path(pod)).await {
            Err(e) if is_not_found(&e) => return Ok(()),
            now if now.as_ref().is_ok_and(|now| now["metadata"]["uid"] != pod["metadata"]["uid"]) => {
                return Ok(());
            }
            now => drop(now?),
        }
        if Instant::now() > deadline {
            bail!("timed out waiting for pod {} to end", text(&pod["metadata"]["name"]));
        }
        sleep(PAUSE / 5).await;
    }
}

/// Arguments of `wasmk taint`.
#[derive(Debug, clap::Args)]
pub(super) struct Taint {
    /// `node` NAME..., then KEY[=VALUE]:EFFECT, KEY:EFFECT- or KEY-
    #[arg(required = true)]
    words: Vec<String>,
    /// All nodes
    #[arg(long)]
    all: bool,
    /// Also change what is there
    #[arg(long)]
    overwrite: bool,
}

pub(super) async fn taint(args: Taint, cx: &Context) -> Result<Exit> {
    let [kind, rest @ ..] = args.words.as_slice() else { bail!("name the nodes and the taints") };
    if !["node", "nodes", "no"].contains(&kind.as_str()) {
        bail!("invalid resource type {kind}, only node types are supported");
    }
    let is_change = |word: &&String| word.contains(':') || word.ends_with('-');
    let (changes, mut nodes): (Vec<&String>, Vec<String>) = (
        rest.iter().filter(is_change).collect(),
        rest.iter().filter(|word| !is_change(word)).cloned().collect(),
    );
    let api = Api::new(cx.client().await?);
    if args.all {
        let list = api.get("/api/v1/nodes").await?;
        nodes =
            list["items"].as_array().into_iter().flatten().map(|n| text(&n["metadata"]["name"])).collect();
    }
    if nodes.is_empty() || changes.is_empty() {
        bail!("at least one node and one taint update are required");
    }
    for node in names(&nodes) {
        let before = api.get(&path(node)).await?;
        let mut taints = before["spec"]["taints"].as_array().cloned().unwrap_or_default();
        let mut removed = true;
        for change in &changes {
            removed &= apply(&mut taints, change, args.overwrite, node)?;
        }
        let patch = json!({"metadata": {"resourceVersion": before["metadata"]["resourceVersion"]}, "spec": {"taints": taints}});
        api.send_as(Method::PATCH, &path(node), "application/merge-patch+json", &patch).await?;
        cx.out.line(format!("node/{node} {}", if removed { "untainted" } else { "tainted" }));
    }
    Ok(Exit::Done)
}

/// Makes one change; whether it took a taint away.
fn apply(taints: &mut Vec<Value>, change: &str, overwrite: bool, node: &str) -> Result<bool> {
    if let Some(gone) = change.strip_suffix('-') {
        let (key, effect) = gone.split_once(':').map_or((gone, None), |(key, effect)| (key, Some(effect)));
        let key = key.split('=').next().unwrap_or(key);
        let before = taints.len();
        taints.retain(|t| t["key"] != key || effect.is_some_and(|e| t["effect"] != e));
        if taints.len() == before {
            bail!("taint {gone:?} not found on node {node}");
        }
        return Ok(true);
    }
    let (pair, effect) = change.split_once(':').context("a taint is KEY[=VALUE]:EFFECT")?;
    if !["NoSchedule", "PreferNoSchedule", "NoExecute"].contains(&effect) {
        bail!("invalid taint effect: {effect}, unsupported taint effect");
    }
    let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
    let mut taint = json!({"key": key, "effect": effect});
    if !value.is_empty() {
        taint["value"] = json!(value);
    }
    match taints.iter_mut().find(|t| t["key"] == key && t["effect"] == effect) {
        Some(_) if !overwrite => {
            bail!("node {node} already has {key} taint(s) with same effect(s) and --overwrite is false")
        }
        Some(old) => *old = taint,
        None => taints.push(taint),
    }
    Ok(false)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nodes_are_named_with_or_without_their_type() {
        let given = ["a", "node/b", "nodes/c.d", "no/e"].map(String::from);
        let got: Vec<&str> = names(&given).collect();
        assert_eq!(got, ["a", "b", "c.d", "e"]);
    }

    #[test]
    fn taints_come_and_go() {
        let mut taints = Vec::new();
        assert!(!apply(&mut taints, "a=b:NoSchedule", false, "n").unwrap());
        assert!(!apply(&mut taints, "a:NoExecute", false, "n").unwrap());
        assert!(apply(&mut taints, "a=c:NoSchedule", false, "n").is_err());
        apply(&mut taints, "a=c:NoSchedule", true, "n").unwrap();
        assert_eq!(taints[0], json!({"key": "a", "value": "c", "effect": "NoSchedule"}));
        assert!(apply(&mut taints, "a:NoExecute-", false, "n").unwrap());
        assert_eq!(taints.len(), 1);
        assert!(apply(&mut taints, "a-", false, "n").unwrap() && taints.is_empty());
        assert!(
            apply(&mut taints, "a-", false, "n").is_err()
                && apply(&mut taints, "a:Never", false, "n").is_err()
        );
    }
}
