//! `wasmk apply` and `wasmk create -f`: make objects be as files say.

use anyhow::{Result, bail};
use http::Method;
use serde_json::Value;

use super::{
    Context, Exit,
    api::{Api, is_not_found},
    manifests::{self, Manifest},
    resources::{Resource, Resources},
    selection::with_query,
};

/// Who owns the fields that `wasmk apply` sets.
const MANAGER: &str = "wasmk";
/// Server-side apply; its JSON form is YAML as well.
const APPLY: &str = "application/apply-patch+yaml";

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// A file, a directory of files, a URL, or `-` for standard input; may be repeated
    #[arg(short, long, value_name = "FILE", required = true)]
    filename: Vec<String>,
    /// Also directories below a directory
    #[arg(short = 'R', long)]
    recursive: bool,
    /// `server` to check without changing anything
    #[arg(long, value_name = "WHERE", num_args = 0..=1, default_missing_value = "server", require_equals = true)]
    dry_run: Option<DryRun>,
    /// Refuse to take fields over from another manager
    #[arg(long)]
    no_force: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, clap::ValueEnum)]
enum DryRun {
    None,
    Server,
}

pub(super) async fn run(args: Args, cx: &Context) -> Result<Exit> {
    let manifests = manifests::read(&args.filename, args.recursive).await?;
    if manifests.is_empty() {
        bail!("no objects passed to apply");
    }
    let api = Api::new(cx.client().await?);
    let mut resources = Resources::discover(&api).await?;
    for manifest in &manifests {
        let resource = match manifest.resource(&resources) {
            Ok(resource) => resource.clone(),
            // A definition earlier in the same files may have brought the kind.
            Err(_) => {
                resources = Resources::discover(&api).await?;
                manifest.resource(&resources)?.clone()
            }
        };
        let done = apply(&api, &resource, manifest, &args).await?;
        let dry = if args.dry_run == Some(DryRun::Server) { " (server dry run)" } else { "" };
        cx.out.line(format!("{} {done}{dry}", resource.named(&manifest.name)));
    }
    Ok(Exit::Done)
}

async fn apply(api: &Api, resource: &Resource, manifest: &Manifest, args: &Args) -> Result<&'static str> {
    let path = manifest.path(resource, api.default_namespace())?;
    let before = match api.get(&path).await {
        Err(e) if is_not_found(&e) => None,
        object => Some(object?),
    };
    let dry = if args.dry_run == Some(DryRun::Server) { "All" } else { "" };
    let force = if args.no_force { "" } else { "true" };
    let query = [("fieldManager", MANAGER), ("force", force), ("fieldValidation", "Strict"), ("dryRun", dry)];
    let after = api.send_as(Method::PATCH, &with_query(&path, &query), APPLY, &manifest.object).await?;
    Ok(match before.map(wanted) {
        None => "created",
        Some(before) if before == wanted(after) => "unchanged",
        Some(_) => "configured",
    })
}

/// An object without its status, which others write meanwhile, and without what every write changes.
fn wanted(mut object: Value) -> Value {
    if let Some(map) = object.as_object_mut() {
        map.shift_remove("status");
    }
    if let Some(metadata) = object["metadata"].as_object_mut() {
        for field in ["resourceVersion", "managedFields"] {
            metadata.shift_remove(field);
        }
    }
    object
}
