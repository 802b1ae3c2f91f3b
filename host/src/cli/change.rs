//! Changes of objects that are there: `label`, `annotate`, `patch`, `replace`, `edit`.

use std::process::Command;

use anyhow::{Context as _, Result, anyhow, bail};
use http::Method;
use serde_json::{Map, Value, json};
use wasmk_machinery::{
    decode::{self, Format as Encoding},
    yaml,
};

use super::{
    Context, Exit,
    api::Api,
    make::{Flags, MANAGER},
    manifests,
    resources::{Resource, Resources},
    selection::{self, Selection, with_query},
};

const MERGE: &str = "application/merge-patch+json";

/// Arguments of `wasmk label` and `wasmk annotate`.
#[derive(Debug, clap::Args)]
pub(super) struct Tags {
    /// TYPE NAME... or TYPE/NAME..., then KEY=VALUE or KEY-
    #[arg(value_name = "TYPE", required = true)]
    words: Vec<String>,
    /// Also change what is there
    #[arg(long)]
    overwrite: bool,
    /// All objects of the type in the namespace
    #[arg(long)]
    all: bool,
    /// Only objects with these labels
    #[arg(short = 'l', long, value_name = "SELECTOR")]
    selector: Option<String>,
    #[command(flatten)]
    flags: Flags,
}

/// `label` or `annotate`: the field, and what is said afterwards.
#[derive(Clone, Copy, Debug)]
pub(super) struct Kind {
    field: &'static str,
    done: &'static str,
}

/// `wasmk label`.
pub(super) const LABELS: Kind = Kind { field: "labels", done: "labeled" };
/// `wasmk annotate`.
pub(super) const ANNOTATIONS: Kind = Kind { field: "annotations", done: "annotated" };

pub(super) async fn tag(args: Tags, kind: Kind, cx: &Context) -> Result<Exit> {
    let is_change = |word: &&String| !word.contains('/') && word.ends_with('-') || word.contains('=');
    let (changes, words): (Vec<&String>, Vec<&String>) = args.words.iter().partition(is_change);
    if changes.is_empty() {
        bail!("at least one {} update is required", kind.field.trim_end_matches('s'));
    }
    let changes = read_changes(&changes);
    let words: Vec<String> = words.into_iter().cloned().collect();
    let api = Api::new(cx.client().await?);
    let resources = Resources::discover(&api).await?;
    for selection in selection::read(&resources, &words)? {
        if selection.names.is_empty() && !args.all && args.selector.is_none() {
            bail!(
                "one or more resources must be specified as <resource> <name> or <resource>/<name>, or with --all or -l"
            );
        }
        for (path, object) in found(&api, &selection, args.selector.as_deref()).await? {
            tag_one(cx, &api, selection.resource, &path, &object, &changes, &args, kind).await?;
        }
    }
    Ok(Exit::Done)
}

/// `KEY=VALUE` sets, `KEY-` takes away.
fn read_changes(words: &[&String]) -> Map<String, Value> {
    let change = |word: &&String| match word.split_once('=') {
        Some((key, value)) => (key.to_string(), Value::from(value)),
        None => (word.trim_end_matches('-').to_string(), Value::Null),
    };
    words.iter().map(change).collect()
}

/// The objects of a selection with their paths.
async fn found(api: &Api, selection: &Selection<'_>, labels: Option<&str>) -> Result<Vec<(String, Value)>> {
    let path = selection.resource.path(Some(api.default_namespace()));
    let mut found = Vec::new();
    for name in &selection.names {
        let path = format!("{path}/{name}");
        found.push((path.clone(), api.get(&path).await?));
    }
    if selection.names.is_empty() {
        let list = api.get(&with_query(&path, &[("labelSelector", labels.unwrap_or(""))])).await?;
        for object in list["items"].as_array().into_iter().flatten() {
            let name = object["metadata"]["name"].as_str().unwrap_or("");
            found.push((format!("{path}/{name}"), object.clone()));
        }
    }
    Ok(found)
}

#[allow(clippy::too_many_arguments, reason = "all of it is needed once")]
async fn tag_one(
    cx: &Context,
    api: &Api,
    resource: &Resource,
    path: &str,
    object: &Value,
    changes: &Map<String, Value>,
    args: &Tags,
    kind: Kind,
) -> Result<()> {
    let name = object["metadata"]["name"].as_str().unwrap_or("");
    let now = &object["metadata"][kind.field];
    let mut same = true;
    for (key, value) in changes {
        same &= now.get(key).unwrap_or(&Value::Null) == value;
        if let (Some(old), false, false) = (now[key].as_str(), value.is_null(), args.overwrite)
            && now[key] != *value
        {
            bail!("'{key}' already has a value ({old}), and --overwrite is false");
        }
    }
    let removed = changes.values().all(Value::is_null);
    let done = match (same, removed, kind.field) {
        (true, ..) => format!("not {}", kind.done),
        (_, true, "labels") => "unlabeled".into(),
        _ => kind.done.to_string(),
    };
    let patch = json!({"metadata": {kind.field: changes}});
    let after = match same || args.flags.stays_here() {
        true => object.clone(),
        false => {
            let query = [("fieldManager", MANAGER), ("dryRun", args.flags.query())];
            api.send_as(Method::PATCH, &with_query(path, &query), MERGE, &patch).await?
        }
    };
    if args.flags.output.is_none() {
        cx.out.line(format!("{} {done}{}", resource.named(name), args.flags.mark()));
        return Ok(());
    }
    args.flags.print(cx, resource, &after, &done)
}

/// Arguments of `wasmk patch`.
#[derive(Debug, clap::Args)]
pub(super) struct Patch {
    /// TYPE NAME... or TYPE/NAME...
    #[arg(value_name = "TYPE", required = true)]
    words: Vec<String>,
    /// The patch, JSON or YAML
    #[arg(short, long)]
    patch: Option<String>,
    /// The patch, in a file
    #[arg(long, value_name = "FILE", conflicts_with = "patch")]
    patch_file: Option<String>,
    /// strategic, merge or json
    #[arg(long = "type", value_name = "KIND", default_value = "strategic")]
    kind: String,
    /// Patch a part only: status or scale
    #[arg(long)]
    subresource: Option<String>,
    #[command(flatten)]
    flags: Flags,
}

pub(super) async fn patch(args: Patch, cx: &Context) -> Result<Exit> {
    let text = match (&args.patch, &args.patch_file) {
        (Some(text), _) => text.clone(),
        (None, Some(file)) => std::fs::read_to_string(file).with_context(|| format!("cannot read {file}"))?,
        (None, None) => bail!("must specify --patch or --patch-file containing the contents of the patch"),
    };
    let (body, _) = decode::plain(text.as_bytes(), Encoding::Yaml)
        .map_err(|e| anyhow!("unable to parse {text:?}: {e}"))?;
    let api = Api::new(cx.client().await?);
    let resources = Resources::discover(&api).await?;
    for selection in selection::read(&resources, &args.words)? {
        if selection.names.is_empty() {
            bail!("name the {} to patch", selection.resource.singular);
        }
        for name in &selection.names {
            let kind = content_type(&args.kind, selection.resource)?;
            let part = args.subresource.as_ref().map(|part| format!("/{part}")).unwrap_or_default();
            let path = format!("{}/{name}{part}", selection.resource.path(Some(api.default_namespace())));
            let before = api.get(&path).await?;
            let dry = if args.flags.stays_here() { "All" } else { args.flags.query() };
            let query = [("fieldManager", MANAGER), ("fieldValidation", "Strict"), ("dryRun", dry)];
            let after = api.send_as(Method::PATCH, &with_query(&path, &query), kind, &body).await?;
            let revision = |object: &Value| object["metadata"]["resourceVersion"].clone();
            let done = if revision(&before) == revision(&after) && dry.is_empty() {
                "patched (no change)"
            } else {
                "patched"
            };
            args.flags.print(cx, selection.resource, &after, done)?;
        }
    }
    Ok(Exit::Done)
}

/// The content type of a patch; what knows no strategic merge gets a plain one.
fn content_type(kind: &str, resource: &Resource) -> Result<&'static str> {
    let builtin = !resource.group.contains('.') || resource.group.ends_with(".k8s.io");
    Ok(match kind {
        "json" => "application/json-patch+json",
        "strategic" if builtin => "application/strategic-merge-patch+json",
        "merge" | "strategic" => MERGE,
        other => bail!("--type must be one of [json merge strategic], not {other:?}"),
    })
}

/// Arguments of `wasmk replace`.
#[derive(Debug, clap::Args)]
pub(super) struct Replace {
    /// A file, a directory of files, a URL, or `-` for standard input; may be repeated
    #[arg(short, long, value_name = "FILE", required = true)]
    filename: Vec<String>,
    #[command(flatten)]
    flags: Flags,
}

pub(super) async fn replace(args: Replace, cx: &Context) -> Result<Exit> {
    let api = Api::new(cx.client().await?);
    let resources = Resources::discover(&api).await?;
    for manifest in manifests::read(&args.filename, false).await? {
        let resource = manifest.resource(&resources)?;
        let dry = if args.flags.stays_here() { "All" } else { args.flags.query() };
        let query = [("fieldManager", MANAGER), ("fieldValidation", "Strict"), ("dryRun", dry)];
        let path = with_query(&manifest.path(resource, api.default_namespace())?, &query);
        let after = api.send(Method::PUT, &path, &manifest.object).await?;
        args.flags.print(cx, resource, &after, "replaced")?;
    }
    Ok(Exit::Done)
}

/// Arguments of `wasmk edit`.
#[derive(Debug, clap::Args)]
pub(super) struct Edit {
    /// TYPE NAME or TYPE/NAME
    #[arg(value_name = "TYPE", required = true)]
    words: Vec<String>,
}

/// Most times a text that was refused is shown again.
const ATTEMPTS: usize = 20;

pub(super) async fn edit(args: Edit, cx: &Context) -> Result<Exit> {
    let api = Api::new(cx.client().await?);
    let resources = Resources::discover(&api).await?;
    for selection in selection::read(&resources, &args.words)? {
        for (path, mut object) in found(&api, &selection, None).await? {
            if let Some(metadata) = object["metadata"].as_object_mut() {
                metadata.shift_remove("managedFields");
            }
            let name = selection.resource.named(object["metadata"]["name"].as_str().unwrap_or(""));
            let done = edit_one(&api, &path, &object).await?;
            match done {
                true => cx.out.line(format!("{name} edited")),
                false => cx.out.note("Edit cancelled, no changes made."),
            }
        }
    }
    Ok(Exit::Done)
}

/// Shows the object in an editor until the server takes it, or nothing is changed any more.
async fn edit_one(api: &Api, path: &str, object: &Value) -> Result<bool> {
    let file = std::env::temp_dir().join(format!("wasmk-edit-{}.yaml", std::process::id()));
    let original = yaml::write(object);
    let mut text = original.clone();
    let mut complaint: Option<String> = None;
    let result = async {
        for _ in 0..ATTEMPTS {
            let note: String = complaint.iter().flat_map(|c| c.lines()).map(|l| format!("# {l}\n")).collect();
            let head = "# Lines that begin with '#' are left out; a text without changes cancels.\n";
            crate::files::write_private(&file, format!("{head}{note}{text}").as_bytes())?;
            open_editor(&file)?;
            let edited = std::fs::read_to_string(&file)?;
            let bare: String =
                edited.lines().filter(|l| !l.starts_with('#')).map(|l| format!("{l}\n")).collect();
            if bare.trim().is_empty() || bare == original || complaint.is_some() && bare == text {
                return complaint.take().map_or(Ok(false), |why| Err(anyhow!(why)));
            }
            text = bare;
            let sent = match decode::plain(text.as_bytes(), Encoding::Yaml) {
                Ok((object, _)) => {
                    let query = [("fieldManager", MANAGER), ("fieldValidation", "Strict")];
                    api.send(Method::PUT, &with_query(path, &query), &object).await
                }
                Err(e) => Err(anyhow!("the text is not YAML: {e}")),
            };
            match sent {
                Ok(_) => return Ok(true),
                Err(why) => complaint = Some(format!("{why:#}")),
            }
        }
        bail!("the object was refused {ATTEMPTS} times: {}", complaint.unwrap_or_default())
    };
    let done = result.await;
    let _ = std::fs::remove_file(&file);
    done
}

fn open_editor(file: &std::path::Path) -> Result<()> {
    let variable = |name: &str| std::env::var(name).ok().filter(|v| !v.trim().is_empty());
    let editor = variable("KUBE_EDITOR").or_else(|| variable("EDITOR")).unwrap_or_else(|| "vi".into());
    // The variable may carry arguments: the shell takes it apart.
    let status = Command::new("sh")
        .args(["-c", &format!("{editor} \"$1\""), "sh"])
        .arg(file)
        .status()
        .with_context(|| format!("cannot start the editor {editor}"))?;
    if !status.success() {
        bail!("the editor {editor} ended with {status}");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_changes() {
        let words = ["a=b".to_string(), "c-".into(), "d=e=f".into()];
        let changes = read_changes(&words.iter().collect::<Vec<_>>());
        assert_eq!(Value::Object(changes), json!({"a": "b", "c": null, "d": "e=f"}));
    }
}
