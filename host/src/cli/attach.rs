//! `wasmk attach`: the input and output of a container's own process.

use anyhow::{Result, bail};
use k8s_openapi::api::core::v1::Pod;

use super::{Context, Exit, api::Api, exec, pods};

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    target: exec::Target,
}

pub(super) async fn run(args: Args, cx: &Context) -> Result<Exit> {
    let api = Api::new(cx.client().await?);
    let pod = args.target.pod(&api).await?;
    let phase = pods::text(&pod["status"]["phase"]);
    if matches!(&*phase, "Succeeded" | "Failed") {
        bail!("cannot attach a container in a completed pod; current phase is {phase}");
    }
    let kube: kube::Api<Pod> = kube::Api::default_namespaced(api.client.clone());
    let process = kube.attach(&pods::text(&pod["metadata"]["name"]), &args.target.parameters(&pod)).await?;
    if args.target.tty && args.target.stdin {
        cx.out.note("If you don't see a command prompt, try pressing enter.");
    }
    exec::converse(process, args.target.tty).await
}
