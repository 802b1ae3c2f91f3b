//! Creating an object, or only showing it.

use anyhow::{Context as _, Result};
use http::Method;
use serde_json::{Value, json};

use super::{
    Context,
    api::Api,
    format::Format,
    resources::{Resource, Resources},
    selection::with_query,
};

/// Who owns the fields that commands other than `apply` set.
pub(super) const MANAGER: &str = "wasmk";

/// Flags of every command that makes an object.
#[derive(Clone, Debug, Default, clap::Args)]
pub(super) struct Flags {
    /// Make nothing: `client` only shows, `server` has the server check
    #[arg(long, value_name = "WHERE", num_args = 0..=1, default_missing_value = "client", require_equals = true)]
    pub(super) dry_run: Option<DryRun>,
    /// yaml, json, name, jsonpath=...
    #[arg(short, long, value_name = "FORMAT")]
    pub(super) output: Option<String>,
}

/// How far a command goes without changing anything.
#[derive(Clone, Copy, Debug, PartialEq, clap::ValueEnum)]
pub(super) enum DryRun {
    None,
    #[value(alias = "true")]
    Client,
    Server,
}

impl Flags {
    /// What is printed behind `created` and the like.
    pub(super) fn mark(&self) -> &'static str {
        match self.dry_run {
            Some(DryRun::Client) => " (dry run)",
            Some(DryRun::Server) => " (server dry run)",
            _ => "",
        }
    }

    /// The value of the request's `dryRun`.
    pub(super) fn query(&self) -> &'static str {
        if self.dry_run == Some(DryRun::Server) { "All" } else { "" }
    }

    /// Whether nothing is sent to the server.
    pub(super) fn stays_here(&self) -> bool {
        self.dry_run == Some(DryRun::Client)
    }

    /// Prints an object as asked for, or that it was `done`.
    pub(super) fn print(&self, cx: &Context, resource: &Resource, object: &Value, done: &str) -> Result<()> {
        let named = |object: &Value| resource.named(object["metadata"]["name"].as_str().unwrap_or(""));
        match Format::parse(self.output.as_deref(), None)? {
            Some(format) => cx.out.text(&format.text(object, true, named)?),
            None => cx.out.line(format!("{} {done}{}", named(object), self.mark())),
        }
        Ok(())
    }
}

/// Makes an object in the namespace to act in, and says so.
pub(super) async fn make(cx: &Context, flags: &Flags, object: Value) -> Result<()> {
    let api = Api::new(cx.client().await?);
    let resources = Resources::discover(&api).await?;
    make_with(cx, &api, &resources, flags, object, "created").await
}

/// The same with what is already known of the server.
pub(super) async fn make_with(
    cx: &Context,
    api: &Api,
    resources: &Resources,
    flags: &Flags,
    mut object: Value,
    done: &str,
) -> Result<()> {
    let (version, kind) =
        (object["apiVersion"].as_str().unwrap_or(""), object["kind"].as_str().unwrap_or(""));
    let resource = resources
        .of_kind(version, kind)
        .with_context(|| format!("the server has no {kind} in version {version}"))?;
    let namespace = object["metadata"]["namespace"].as_str().unwrap_or(api.default_namespace()).to_string();
    if flags.stays_here() {
        if resource.namespaced && cx.chosen_namespace().is_some() {
            object["metadata"]["namespace"] = json!(namespace);
        }
        return flags.print(cx, resource, &object, done);
    }
    let query = [("fieldManager", MANAGER), ("fieldValidation", "Strict"), ("dryRun", flags.query())];
    let path = with_query(&resource.path(Some(&namespace)), &query);
    let made = api.send(Method::POST, &path, &object).await?;
    flags.print(cx, resource, &made, done)
}
