//! `wasmk rollout`: status, history and course of changes of workloads.

use anyhow::{Context as _, Result, anyhow, bail};
use http::Method;
use serde_json::{Value, json};
use tokio::time::{Duration, Instant, sleep};
use wasmk_machinery::yaml;

use super::{
    Context, Exit,
    api::Api,
    make::MANAGER,
    pods::selector_of,
    resources::{Resource, Resources},
    selection::{self, with_query},
    wait::duration,
};

const REVISION: &str = "deployment.kubernetes.io/revision";
const CAUSE: &str = "kubernetes.io/change-cause";
/// How often the status is looked at.
const LOOK: Duration = Duration::from_millis(200);

/// What `wasmk rollout` does.
#[derive(Debug, clap::Subcommand)]
pub(super) enum Command {
    /// Wait until a change has reached every pod
    Status(Status),
    /// List revisions, or show one
    History(History),
    /// Go back to an earlier revision
    Undo(Undo),
    /// Hold changes back
    Pause(Workload),
    /// Let changes go on
    Resume(Workload),
    /// Replace every pod, with nothing changed
    Restart(Workload),
}

#[derive(Debug, clap::Args)]
pub(super) struct Workload {
    /// TYPE NAME or TYPE/NAME
    #[arg(value_name = "TYPE", required = true)]
    words: Vec<String>,
}

#[derive(Debug, clap::Args)]
pub(super) struct Status {
    #[command(flatten)]
    workload: Workload,
    /// Wait until it is done
    #[arg(short, long, default_value_t = true, num_args = 0..=1, default_missing_value = "true", require_equals = true)]
    watch: bool,
    /// Give up after so long, like 30s or 5m [default: never]
    #[arg(long, value_name = "DURATION")]
    timeout: Option<String>,
}

#[derive(Debug, clap::Args)]
pub(super) struct History {
    #[command(flatten)]
    workload: Workload,
    /// Show the template of that revision
    #[arg(long)]
    revision: Option<i64>,
}

#[derive(Debug, clap::Args)]
pub(super) struct Undo {
    #[command(flatten)]
    workload: Workload,
    /// The revision to go back to [default: the one before]
    #[arg(long, default_value_t = 0)]
    to_revision: i64,
}

/// One workload as it is.
struct Target<'a> {
    resource: &'a Resource,
    name: String,
    path: String,
    object: Value,
}

pub(super) async fn run(command: Command, cx: &Context) -> Result<Exit> {
    let words = match &command {
        Command::Status(args) => &args.workload.words,
        Command::History(args) => &args.workload.words,
        Command::Undo(args) => &args.workload.words,
        Command::Pause(args) | Command::Resume(args) | Command::Restart(args) => &args.words,
    };
    let api = Api::new(cx.client().await?);
    let resources = Resources::discover(&api).await?;
    for selection in selection::read(&resources, words)? {
        let resource = selection.resource;
        if !["Deployment", "DaemonSet", "StatefulSet"].contains(&resource.kind.as_str()) {
            bail!("{} have no rollouts; deployments, daemonsets and statefulsets have", resource.plural);
        }
        for name in &selection.names {
            let path = format!("{}/{name}", resource.path(Some(api.default_namespace())));
            let target = Target { resource, name: name.clone(), object: api.get(&path).await?, path };
            match &command {
                Command::Status(args) => status(cx, &api, target, args).await?,
                Command::History(args) => history(cx, &api, &target, args.revision).await?,
                Command::Undo(args) => undo(cx, &api, &target, args.to_revision).await?,
                Command::Pause(_) => pause(cx, &api, &target, true).await?,
                Command::Resume(_) => pause(cx, &api, &target, false).await?,
                Command::Restart(_) => restart(cx, &api, &target).await?,
            }
        }
    }
    Ok(Exit::Done)
}

async fn status(cx: &Context, api: &Api, mut target: Target<'_>, args: &Status) -> Result<()> {
    let limit = args.timeout.as_deref().map(duration).transpose()?;
    let deadline = limit.filter(|l| !l.is_zero()).map(|l| Instant::now() + l);
    let mut said = String::new();
    loop {
        let (text, done) = progress(&target)?;
        if text != said {
            cx.out.line(&text);
            said = text;
        }
        if done || !args.watch {
            return Ok(());
        }
        if deadline.is_some_and(|d| Instant::now() > d) {
            bail!("timed out waiting for the condition");
        }
        sleep(LOOK).await;
        target.object = api.get(&target.path).await?;
    }
}

/// What kubectl says of a rollout, and whether it is over.
fn progress(target: &Target<'_>) -> Result<(String, bool)> {
    let (object, name) = (&target.object, &target.name);
    let status = |key: &str| object["status"][key].as_i64().unwrap_or(0);
    let wanted = object["spec"]["replicas"].as_i64().unwrap_or(1);
    if object["metadata"]["generation"].as_i64() > object["status"]["observedGeneration"].as_i64() {
        return Ok((
            format!("Waiting for {} spec update to be observed...", target.resource.singular),
            false,
        ));
    }
    let waiting = |what: String| {
        Ok((format!("Waiting for {} {name:?} rollout to finish: {what}...", target.resource.singular), false))
    };
    let done = match target.resource.kind.as_str() {
        "Deployment" => {
            let conditions = object["status"]["conditions"].as_array();
            if conditions.into_iter().flatten().any(|c| c["reason"] == "ProgressDeadlineExceeded") {
                bail!("deployment {name:?} exceeded its progress deadline");
            }
            let (updated, all, available) =
                (status("updatedReplicas"), status("replicas"), status("availableReplicas"));
            if updated < wanted {
                return waiting(format!("{updated} out of {wanted} new replicas have been updated"));
            }
            if all > updated {
                return waiting(format!("{} old replicas are pending termination", all - updated));
            }
            if available < updated {
                return waiting(format!("{available} of {updated} updated replicas are available"));
            }
            format!("deployment {name:?} successfully rolled out")
        }
        "DaemonSet" => {
            let wanted = status("desiredNumberScheduled");
            let (updated, available) = (status("updatedNumberScheduled"), status("numberAvailable"));
            if updated < wanted {
                return waiting(format!("{updated} out of {wanted} new pods have been updated"));
            }
            if available < wanted {
                return waiting(format!("{available} of {wanted} updated pods are available"));
            }
            format!("daemon set {name:?} successfully rolled out")
        }
        _ => {
            let partition =
                object["spec"]["updateStrategy"]["rollingUpdate"]["partition"].as_i64().unwrap_or(0);
            if status("readyReplicas") < wanted {
                return waiting(format!("{} of {wanted} pods are ready", status("readyReplicas")));
            }
            if status("updatedReplicas") < wanted - partition {
                return waiting(format!(
                    "{} of {} pods have been updated",
                    status("updatedReplicas"),
                    wanted - partition
                ));
            }
            let all = object["status"]["currentRevision"] == object["status"]["updateRevision"];
            if !all && partition == 0 {
                return waiting("the last pods are being replaced".into());
            }
            format!(
                "statefulset rolling update complete {wanted} pods at revision {}...",
                object["status"]["updateRevision"].as_str().unwrap_or("")
            )
        }
    };
    Ok((done, true))
}

/// A revision: its number, why it came to be, and its pods' template.
struct Revision {
    number: i64,
    cause: String,
    template: Value,
}

/// The revisions of a workload, oldest first.
async fn revisions(api: &Api, target: &Target<'_>) -> Result<Vec<Revision>> {
    let of_deployment = target.resource.kind == "Deployment";
    let plural = if of_deployment { "replicasets" } else { "controllerrevisions" };
    let path = format!("/apis/apps/v1/namespaces/{}/{plural}", api.default_namespace());
    let list = api.get(&with_query(&path, &[("labelSelector", &selector_of(&target.object))])).await?;
    let uid = &target.object["metadata"]["uid"];
    let owned = |o: &&Value| {
        o["metadata"]["ownerReferences"].as_array().into_iter().flatten().any(|r| r["uid"] == *uid)
    };
    let read = |object: &Value| Revision {
        number: match of_deployment {
            true => {
                object["metadata"]["annotations"][REVISION].as_str().and_then(|n| n.parse().ok()).unwrap_or(0)
            }
            false => object["revision"].as_i64().unwrap_or(0),
        },
        cause: object["metadata"]["annotations"][CAUSE].as_str().unwrap_or("<none>").into(),
        template: if of_deployment {
            object["spec"]["template"].clone()
        } else {
            object["data"]["spec"]["template"].clone()
        },
    };
    let mut all: Vec<Revision> =
        list["items"].as_array().into_iter().flatten().filter(owned).map(read).collect();
    all.sort_by_key(|r| r.number);
    Ok(all)
}

async fn history(cx: &Context, api: &Api, target: &Target<'_>, wanted: Option<i64>) -> Result<()> {
    let all = revisions(api, target).await?;
    let named = target.resource.named(&target.name);
    let Some(number) = wanted else {
        let rows: String = all.into_iter().map(|r| format!("{:<10}{}\n", r.number, r.cause)).collect();
        cx.out.text(&format!("{named} \n{:<10}CHANGE-CAUSE\n{rows}\n", "REVISION"));
        return Ok(());
    };
    let one = all.iter().find(|r| r.number == number);
    let one = one.with_context(|| format!("unable to find the specified revision {number}"))?;
    cx.out.line(format!("{named} with revision #{number}"));
    cx.out.text(&format!("Pod Template:\n{}", template_text(&one.template)?));
    Ok(())
}

fn template_text(template: &Value) -> Result<String> {
    let mut text = String::new();
    for line in yaml::write(template).lines() {
        text.push_str(&format!("  {line}\n"));
    }
    Ok(text)
}

async fn undo(cx: &Context, api: &Api, target: &Target<'_>, to: i64) -> Result<()> {
    let named = target.resource.named(&target.name);
    if target.object["spec"]["paused"] == true {
        bail!(
            "you cannot rollback a paused deployment; resume it first with 'wasmk rollout resume {named}' and try again"
        );
    }
    let all = revisions(api, target).await?;
    let found = match to {
        0 => all.iter().rev().nth(1),
        to => all.iter().find(|r| r.number == to),
    };
    let revision = found.ok_or_else(|| match to {
        0 => anyhow!("no rollout history found for {named}"),
        to => anyhow!("unable to find specified revision {to} in history"),
    })?;
    let mut template = revision.template.clone();
    if let Some(labels) = template["metadata"]["labels"].as_object_mut() {
        labels.shift_remove("pod-template-hash");
    }
    if let Some(map) = template.as_object_mut() {
        // The marker with which histories of sets replace the whole template.
        map.shift_remove("$patch");
    }
    if template["spec"]["containers"] == target.object["spec"]["template"]["spec"]["containers"]
        && template["metadata"] == target.object["spec"]["template"]["metadata"]
    {
        cx.out.line(format!(
            "{named} skipped rollback (current template already matches revision {})",
            revision.number
        ));
        return Ok(());
    }
    let patch = json!([{"op": "replace", "path": "/spec/template", "value": template}]);
    send(api, target, "application/json-patch+json", &patch).await?;
    cx.out.line(format!("{named} rolled back"));
    Ok(())
}

async fn pause(cx: &Context, api: &Api, target: &Target<'_>, paused: bool) -> Result<()> {
    let named = target.resource.named(&target.name);
    if target.resource.kind != "Deployment" {
        bail!("{} cannot be paused", target.resource.plural);
    }
    if (target.object["spec"]["paused"] == true) == paused {
        bail!("{named} is {}", if paused { "already paused" } else { "not paused" });
    }
    send(api, target, "application/merge-patch+json", &json!({"spec": {"paused": paused}})).await?;
    cx.out.line(format!("{named} {}", if paused { "paused" } else { "resumed" }));
    Ok(())
}

async fn restart(cx: &Context, api: &Api, target: &Target<'_>) -> Result<()> {
    if target.object["spec"]["paused"] == true {
        bail!("can't restart paused deployment (run rollout resume first)");
    }
    let now = jiff::Timestamp::now().to_string();
    let patch = json!({"spec": {"template": {"metadata": {"annotations": {"kubectl.kubernetes.io/restartedAt": now}}}}});
    send(api, target, "application/merge-patch+json", &patch).await?;
    cx.out.line(format!("{} restarted", target.resource.named(&target.name)));
    Ok(())
}

async fn send(api: &Api, target: &Target<'_>, kind: &str, patch: &Value) -> Result<Value> {
    let path = with_query(&target.path, &[("fieldManager", MANAGER)]);
    api.send_as(Method::PATCH, &path, kind, patch).await
}
