//! `wasmk attach`: the input and output of a container's own process.

use anyhow::{Result, bail};
use k8s_openapi::api::core::v1::Pod;
use kube::api::AttachParams;

use super::{Context, Exit, api::Api, exec, pods};

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// POD, or TYPE/NAME of something that has pods
    pod: String,
    /// The container [default: the first]
    #[arg(short, long, value_name = "NAME")]
    container: Option<String>,
    /// Pass standard input on
    #[arg(short = 'i', long)]
    stdin: bool,
    /// In a terminal
    #[arg(short, long)]
    tty: bool,
}

pub(super) async fn run(args: Args, cx: &Context) -> Result<Exit> {
    let api = Api::new(cx.client().await?);
    let pod = pods::one(&api, &args.pod).await?;
    let name = pods::text(&pod["metadata"]["name"]);
    let phase = pods::text(&pod["status"]["phase"]);
    if matches!(&*phase, "Succeeded" | "Failed") {
        bail!("cannot attach a container in a completed pod; current phase is {phase}");
    }
    let container = args.container.unwrap_or_else(|| pods::text(&pod["spec"]["containers"][0]["name"]));
    let parameters = AttachParams::default()
        .container(&container)
        .stdin(args.stdin)
        .stdout(true)
        .stderr(!args.tty)
        .tty(args.tty);
    let kube: kube::Api<Pod> = kube::Api::default_namespaced(api.client.clone());
    let process = kube.attach(&name, &parameters).await?;
    if args.tty && args.stdin {
        cx.out.note("If you don't see a command prompt, try pressing enter.");
    }
    exec::converse(process, args.tty).await
}
