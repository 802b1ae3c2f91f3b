//! `wasmk create`: objects from files, or of a common kind from flags.

mod access;
mod configuration;
mod service;
mod workloads;

use anyhow::{Result, bail};
use clap::Subcommand;
use serde_json::{Value, json};

use super::{
    Context, Exit,
    api::Api,
    make::{self, Flags},
    manifests,
    resources::Resources,
};
pub(super) use workloads::{cron_job, deployment, job};

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// A file, a directory of files, a URL, or `-` for standard input; may be repeated
    #[arg(short, long, value_name = "FILE")]
    filename: Vec<String>,
    #[command(flatten)]
    flags: Flags,
    #[command(subcommand)]
    kind: Option<Kind>,
}

#[derive(Debug, Subcommand)]
enum Kind {
    /// A namespace
    #[command(visible_alias = "ns")]
    Namespace(Named),
    /// A service account
    #[command(visible_alias = "sa")]
    Serviceaccount(Named),
    /// A config map from literals, files, directories or env files
    #[command(visible_alias = "cm")]
    Configmap(configuration::ConfigMap),
    /// A secret
    #[command(subcommand)]
    Secret(configuration::Secret),
    /// A role of a namespace
    Role(access::Role),
    /// A role of the cluster
    Clusterrole(access::Role),
    /// Gives a role to subjects in a namespace
    Rolebinding(access::Binding),
    /// Gives a cluster role to subjects everywhere
    Clusterrolebinding(access::Binding),
    /// A token of a service account
    Token(access::Token),
    /// A deployment
    #[command(visible_alias = "deploy")]
    Deployment(workloads::Deployment),
    /// A job, also from a cron job
    Job(workloads::Job),
    /// A cron job
    #[command(visible_alias = "cj")]
    Cronjob(workloads::CronJob),
    /// A service
    #[command(subcommand, visible_alias = "svc")]
    Service(service::Command),
}

/// An object that is no more than its name.
#[derive(Clone, Debug, clap::Args)]
struct Named {
    name: String,
    #[command(flatten)]
    flags: Flags,
}

pub(super) async fn run(args: Args, cx: &Context) -> Result<Exit> {
    let Some(kind) = args.kind else { return files(args, cx).await };
    // Flags of the cluster may stand before the kind, those of the object stand behind it.
    if !args.filename.is_empty() || args.flags.dry_run.is_some() || args.flags.output.is_some() {
        bail!("-f goes without a kind, and --dry-run and -o stand behind the kind");
    }
    match kind {
        Kind::Namespace(named) => {
            make::make(cx, &named.flags, object("v1", "Namespace", &named.name)).await?
        }
        Kind::Serviceaccount(named) => {
            make::make(cx, &named.flags, object("v1", "ServiceAccount", &named.name)).await?;
        }
        Kind::Configmap(args) => args.run(cx).await?,
        Kind::Secret(args) => args.run(cx).await?,
        Kind::Role(args) => args.run(cx, "Role").await?,
        Kind::Clusterrole(args) => args.run(cx, "ClusterRole").await?,
        Kind::Rolebinding(args) => args.run(cx, "RoleBinding").await?,
        Kind::Clusterrolebinding(args) => args.run(cx, "ClusterRoleBinding").await?,
        Kind::Token(args) => args.run(cx).await?,
        Kind::Deployment(args) => args.run(cx).await?,
        Kind::Job(args) => args.run(cx).await?,
        Kind::Cronjob(args) => args.run(cx).await?,
        Kind::Service(args) => args.run(cx).await?,
    }
    Ok(Exit::Done)
}

/// Creates every object of the files; the first that is there already ends it.
async fn files(args: Args, cx: &Context) -> Result<Exit> {
    if args.filename.is_empty() {
        bail!("must specify one of -f and a kind; `wasmk create --help` lists the kinds");
    }
    let manifests = manifests::read(&args.filename, false).await?;
    if manifests.is_empty() {
        bail!("no objects passed to create");
    }
    let api = Api::new(cx.client().await?);
    let mut resources = Resources::discover(&api).await?;
    for manifest in manifests {
        if manifest.resource(&resources).is_err() {
            // A definition earlier in the same files may have brought the kind.
            resources = Resources::discover(&api).await?;
            manifest.resource(&resources)?;
        }
        make::make_with(cx, &api, &resources, &args.flags, manifest.object, "created").await?;
    }
    Ok(Exit::Done)
}

/// An object with a name and nothing else.
pub(super) fn object(version: &str, kind: &str, name: &str) -> Value {
    json!({"apiVersion": version, "kind": kind, "metadata": {"name": name}})
}
