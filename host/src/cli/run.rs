//! `wasmk run`: a pod of an image; with the flags of older clients a deployment, job or cron job.

use anyhow::{Context as _, Result, bail};
use http::Method;
use serde_json::{Value, json};
use tokio::time::{Duration, Instant, sleep};

use super::{
    Context, Exit,
    api::Api,
    create,
    make::{self, Flags},
};

/// Longest wait of `-i` for the pod to run.
const PATIENCE: Duration = Duration::from_secs(120);

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    name: String,
    /// The image to run
    #[arg(long)]
    image: String,
    /// Always, OnFailure (a job) or Never
    #[arg(long, default_value = "Always")]
    restart: String,
    /// The port the container has
    #[arg(long)]
    port: Option<u16>,
    /// That port, on the node as well
    #[arg(long, value_name = "PORT", requires = "port")]
    hostport: Option<u16>,
    /// `NAME=VALUE`; may be repeated
    #[arg(long, value_name = "NAME=VALUE")]
    env: Vec<String>,
    /// `KEY=VALUE,...` [default: run=NAME]
    #[arg(short, long, value_delimiter = ',')]
    labels: Vec<String>,
    /// A deployment of so many pods
    #[arg(long)]
    replicas: Option<u32>,
    /// A cron job at these times
    #[arg(long)]
    schedule: Option<String>,
    /// `deployment/apps.v1` makes a deployment as older clients did
    #[arg(long)]
    generator: Option<String>,
    /// The service account the pod runs with
    #[arg(long, value_name = "NAME")]
    serviceaccount: Option<String>,
    /// JSON that is merged into the object
    #[arg(long, value_name = "JSON")]
    overrides: Option<String>,
    /// The words behind `--` are the program and not its arguments
    #[arg(long)]
    command: bool,
    /// Wait for the pod and print what it says
    #[arg(short = 'i', long)]
    stdin: bool,
    /// With -i; a program that runs in a terminal elsewhere prints here the same
    #[arg(short, long)]
    tty: bool,
    /// Print nothing but what the pod says
    #[arg(short, long)]
    quiet: bool,
    /// Delete the pod when it has ended
    #[arg(long)]
    rm: bool,
    #[command(flatten)]
    flags: Flags,
    /// Arguments of the program
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    words: Vec<String>,
}

pub(super) async fn run(args: Args, cx: &Context) -> Result<Exit> {
    let object = object(&args)?;
    if object["kind"] == "Deployment" {
        let old = args.generator.as_deref().unwrap_or("deployment/apps.v1");
        let better = "use wasmk create deployment instead";
        cx.out.note(format!("wasmk run --generator={old} is DEPRECATED; {better}"));
    }
    let is_pod = object["kind"] == "Pod";
    if args.rm && !(args.stdin && is_pod) {
        bail!(
            "--rm should only be used for attached pods: give -i, and no --replicas, --schedule or --restart=OnFailure"
        );
    }
    if !args.stdin || args.flags.stays_here() {
        make::make(cx, &args.flags, object).await?;
        return Ok(Exit::Done);
    }
    let api = Api::new(cx.client().await?);
    let path = format!("/api/v1/namespaces/{}/pods", api.default_namespace());
    api.send(Method::POST, &path, &object).await?;
    let path = format!("{path}/{}", args.name);
    let ended = attached(cx, &api, &path).await;
    if args.rm {
        let done = format!("pod \"{}\" deleted", args.name);
        api.send(Method::DELETE, &path, &json!({})).await?;
        if !args.quiet {
            cx.out.line(done);
        }
    }
    ended
}

fn object(args: &Args) -> Result<Value> {
    let containers = [container(args)?];
    let labels = labels(args)?;
    let old = args.generator.as_deref().is_some_and(|g| g.starts_with("deployment/"));
    let mut object = if let Some(schedule) = &args.schedule {
        let restart = if args.restart == "Always" { "OnFailure" } else { &args.restart };
        create::cron_job(&args.name, schedule, restart, &containers)
    } else if args.replicas.is_some() || old {
        create::deployment(&args.name, &labels, args.replicas.unwrap_or(1), &containers)
    } else if args.restart == "OnFailure" {
        create::job(&args.name, "OnFailure", &containers)
    } else {
        let mut pod = create::object("v1", "Pod", &args.name);
        pod["spec"] = json!({"restartPolicy": args.restart, "containers": containers});
        pod
    };
    object["metadata"]["labels"] = labels;
    if let Some(account) = &args.serviceaccount {
        pod_spec(&mut object)["serviceAccountName"] = json!(account);
    }
    if let Some(text) = &args.overrides {
        let more: Value = serde_json::from_str(text).context("--overrides is not JSON")?;
        merge(&mut object, more);
    }
    Ok(object)
}

/// Where the object has the pod's specification.
fn pod_spec(object: &mut Value) -> &mut Value {
    match object["kind"].as_str() {
        Some("Pod") => &mut object["spec"],
        Some("CronJob") => &mut object["spec"]["jobTemplate"]["spec"]["template"]["spec"],
        _ => &mut object["spec"]["template"]["spec"],
    }
}

fn container(args: &Args) -> Result<Value> {
    let mut container = json!({"name": args.name, "image": args.image});
    if let Some(port) = args.port {
        container["ports"] = json!([{"containerPort": port}]);
        if let Some(host) = args.hostport {
            container["ports"][0]["hostPort"] = json!(host);
        }
    }
    let env = args.env.iter().map(|text| {
        let (name, value) =
            text.split_once('=').with_context(|| format!("--env: {text} is not NAME=VALUE"))?;
        Ok(json!({"name": name, "value": value}))
    });
    let env = env.collect::<Result<Vec<_>>>()?;
    if !env.is_empty() {
        container["env"] = env.into();
    }
    if !args.words.is_empty() {
        container[if args.command { "command" } else { "args" }] = json!(args.words);
    }
    Ok(container)
}

fn labels(args: &Args) -> Result<Value> {
    if args.labels.is_empty() {
        return Ok(json!({"run": args.name}));
    }
    let pairs = args.labels.iter().map(|text| {
        let (key, value) =
            text.split_once('=').with_context(|| format!("--labels: {text} is not KEY=VALUE"))?;
        Ok((key.to_string(), Value::from(value)))
    });
    Ok(Value::Object(pairs.collect::<Result<_>>()?))
}

/// Merges as RFC 7386 does.
pub(super) fn merge(into: &mut Value, from: Value) {
    let Value::Object(from) = from else {
        *into = from;
        return;
    };
    if !into.is_object() {
        *into = json!({});
    }
    for (key, value) in from {
        match value {
            Value::Null => {
                into.as_object_mut().map(|map| map.shift_remove(&key));
            }
            value => merge(&mut into[&key], value),
        }
    }
}

/// Follows the pod's output to its end; its exit code decides.
async fn attached(cx: &Context, api: &Api, path: &str) -> Result<Exit> {
    use futures::TryStreamExt;
    use http_body_util::BodyExt;

    let deadline = Instant::now() + PATIENCE;
    loop {
        let pod = api.get(path).await?;
        match pod["status"]["phase"].as_str() {
            Some("Running" | "Succeeded" | "Failed") => break,
            _ if Instant::now() > deadline => bail!("timed out waiting for the pod to run"),
            _ => sleep(Duration::from_millis(50)).await,
        }
    }
    let body = api.stream(&format!("{path}/log?follow=true"), "*/*").await?;
    let mut chunks = body.into_data_stream();
    while let Some(chunk) = chunks.try_next().await? {
        cx.out.bytes(&chunk);
    }
    loop {
        let pod = api.get(path).await?;
        match pod["status"]["phase"].as_str() {
            Some("Failed") => return Ok(Exit::Code(exit_code(&pod))),
            Some("Running" | "Pending") if Instant::now() < deadline => {
                sleep(Duration::from_millis(50)).await
            }
            _ => return Ok(Exit::Done),
        }
    }
}

/// How the program of a pod that failed ended.
fn exit_code(pod: &Value) -> u8 {
    let code = pod.pointer("/status/containerStatuses/0/state/terminated/exitCode").and_then(Value::as_u64);
    // A pod may have failed without its program's doing, an eviction for instance.
    code.and_then(|code| u8::try_from(code).ok()).filter(|code| *code != 0).unwrap_or(1)
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        args: Args,
    }

    #[test]
    fn flags_choose_the_kind() {
        let check = |line: &str, kind: &str, path: &str, expected: Value| {
            let words = ["run", "web", "--image", "hello"].into_iter().chain(line.split_whitespace());
            let made = object(&Line::try_parse_from(words).unwrap().args).unwrap();
            assert_eq!(made["kind"], kind, "{line}");
            assert_eq!(made.pointer(path), Some(&expected), "{line}: {made}");
        };
        check("", "Pod", "/metadata/labels/run", json!("web"));
        check("--restart=Never ping 1.1.1.1", "Pod", "/spec/containers/0/args", json!(["ping", "1.1.1.1"]));
        check("--command -- sh -c x", "Pod", "/spec/containers/0/command", json!(["sh", "-c", "x"]));
        check("--replicas=3", "Deployment", "/spec/replicas", json!(3));
        check("--restart=OnFailure", "Job", "/spec/template/spec/restartPolicy", json!("OnFailure"));
        check("--schedule=@daily", "CronJob", "/spec/schedule", json!("@daily"));
        check("--port 80 --hostport 8001", "Pod", "/spec/containers/0/ports/0/hostPort", json!(8001));
        check(
            "--serviceaccount=v --generator=deployment/apps.v1",
            "Deployment",
            "/spec/template/spec/serviceAccountName",
            json!("v"),
        );
        check("--overrides={\"spec\":{\"hostNetwork\":true}}", "Pod", "/spec/hostNetwork", json!(true));
    }
}
