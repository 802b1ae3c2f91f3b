//! `wasmk get`: objects as tables, or whole in any form of `-o`; `-w` goes on with every change.

use anyhow::{Result, anyhow, bail};
use futures::TryStreamExt;
use http_body_util::BodyExt;
use serde_json::{Value, json};
use tokio_util::{codec, io::StreamReader};

use super::{
    Context, Exit,
    api::{Api, TABLE, is_not_found},
    format::Format,
    jsonpath::Template,
    manifests,
    resources::Resources,
    selection::{self, Selection, with_query},
    table::Table,
};

/// Objects asked for per page.
const PAGE: &str = "500";
/// Longest line of a watch: an object with its overhead.
const MAX_EVENT: usize = 8 << 20;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// TYPE[,TYPE] [NAME...], TYPE/NAME..., or `all`
    #[arg(value_name = "TYPE", required_unless_present_any = ["raw", "filename"])]
    words: Vec<String>,
    /// Over all namespaces
    #[arg(short = 'A', long)]
    all_namespaces: bool,
    /// Only objects with these labels
    #[arg(short = 'l', long, value_name = "SELECTOR", overrides_with = "selector")]
    selector: Option<String>,
    /// Only objects with these field values
    #[arg(long, value_name = "SELECTOR")]
    field_selector: Option<String>,
    /// wide, yaml, json, name, jsonpath=..., custom-columns=..., go-template=... (fields and ranges)
    #[arg(short, long, value_name = "FORMAT")]
    output: Option<String>,
    /// The template of `-o jsonpath` and `-o go-template`
    #[arg(long)]
    template: Option<String>,
    /// In the order of what is at that path
    #[arg(long, value_name = "PATH")]
    sort_by: Option<String>,
    /// Without what belongs to this cluster: uid, namespace, status and the like
    #[arg(long)]
    export: bool,
    /// Also what has ended; it is always shown
    #[arg(short = 'a', long, hide = true)]
    show_all: bool,
    /// The objects of a file, a directory of files, or `-`; may be repeated
    #[arg(short, long, value_name = "FILE")]
    filename: Vec<String>,
    /// Go on and print every change
    #[arg(short, long)]
    watch: bool,
    /// No header line
    #[arg(long)]
    no_headers: bool,
    /// A column with all labels
    #[arg(long)]
    show_labels: bool,
    /// No error for a name that is not there
    #[arg(long)]
    ignore_not_found: bool,
    /// Print what the server answers at this path
    #[arg(long, value_name = "PATH")]
    raw: Option<String>,
}

pub(super) async fn run(args: Args, cx: &Context) -> Result<Exit> {
    let api = Api::new(cx.client().await?);
    if let Some(path) = &args.raw {
        cx.out.text(&api.text(path).await?);
        return Ok(Exit::Done);
    }
    let resources = Resources::discover(&api).await?;
    let words =
        if args.filename.is_empty() { args.words.clone() } else { of_files(&resources, &args.filename)? };
    let selections = selection::read(&resources, &words)?;
    let get = Get { api: &api, args: &args, cx };
    match Format::parse(args.output.as_deref(), args.template.as_deref())? {
        None => get.tables(&selections).await,
        Some(_) if args.watch => get.watch_whole(&selections).await,
        Some(Format::Name) => get.names(&selections).await,
        Some(format) => get.whole(&selections, &format).await,
    }
}

/// `TYPE/NAME` of each object of the files.
fn of_files(resources: &Resources, files: &[String]) -> Result<Vec<String>> {
    let manifests = manifests::read(files, false)?;
    manifests.iter().map(|m| Ok(format!("{}/{}", m.resource(resources)?.qualified(), m.name))).collect()
}

struct Get<'a> {
    api: &'a Api,
    args: &'a Args,
    cx: &'a Context,
}

impl Get<'_> {
    fn namespace(&self) -> Option<&str> {
        (!self.args.all_namespaces).then(|| self.api.default_namespace())
    }

    fn query<'b>(&'b self, extra: &[(&'b str, &'b str)]) -> Vec<(&'b str, &'b str)> {
        let mut pairs = vec![
            ("labelSelector", self.args.selector.as_deref().unwrap_or("")),
            ("fieldSelector", self.args.field_selector.as_deref().unwrap_or("")),
        ];
        pairs.extend_from_slice(extra);
        pairs
    }

    /// Every answer of a selection: one per name, or one per page.
    async fn answers(&self, selection: &Selection<'_>, accept: &str) -> Result<Vec<Value>> {
        let path = selection.resource.path(self.namespace());
        let mut answers = Vec::new();
        for name in &selection.names {
            if self.args.all_namespaces && selection.resource.namespaced {
                bail!("a resource cannot be retrieved by name across all namespaces");
            }
            match self.api.get_as(&format!("{path}/{name}"), accept).await {
                Err(e) if self.args.ignore_not_found && is_not_found(&e) => {}
                answer => answers.push(answer?),
            }
        }
        let mut token = String::new();
        while selection.names.is_empty() {
            let pairs = self.query(&[("limit", PAGE), ("continue", &token)]);
            let page = self.api.get_as(&with_query(&path, &pairs), accept).await?;
            token = page["metadata"]["continue"].as_str().unwrap_or("").into();
            answers.push(page);
            if token.is_empty() {
                break;
            }
        }
        Ok(answers)
    }

    async fn tables(&self, selections: &[Selection<'_>]) -> Result<Exit> {
        let wide = self.args.output.is_some();
        let sort = self.args.sort_by.as_deref().map(Template::parse_path).transpose()?;
        let several = selections.len() > 1;
        let mut printed = false;
        for selection in selections {
            let mut table = Table::new(wide, self.args.all_namespaces && selection.resource.namespaced);
            table.show_labels = self.args.show_labels;
            table.prefix = several.then(|| selection.resource.named(""));
            for mut answer in self.answers(selection, TABLE).await? {
                if let (Some(path), Some(rows)) = (&sort, answer["rows"].as_array_mut()) {
                    rows.sort_by_cached_key(|row| sort_key(path, &row["object"]));
                }
                table.add(&answer)?;
            }
            if !table.is_empty() {
                let gap = if printed { "\n" } else { "" };
                self.cx.out.text(&format!("{gap}{}", table.text(!self.args.no_headers)));
                printed = true;
            }
            if self.args.watch {
                return self.watch(selection, table).await;
            }
        }
        if !printed && !self.args.ignore_not_found {
            self.cx.out.note(
                match self.namespace().filter(|_| selections.iter().any(|s| s.resource.namespaced)) {
                    Some(namespace) => format!("No resources found in {namespace} namespace."),
                    None => "No resources found".into(),
                },
            );
        }
        Ok(Exit::Done)
    }

    /// Prints each change as a line of the same table.
    async fn watch(&self, selection: &Selection<'_>, mut table: Table) -> Result<Exit> {
        let by_name = match &*selection.names {
            [] => String::new(),
            [one] => format!("metadata.name={one}"),
            _ => bail!("watch is only supported on individual resources and resource collections"),
        };
        let revision = table.revision.clone();
        let mut pairs = self.query(&[("watch", "true"), ("resourceVersion", &revision)]);
        if !by_name.is_empty() {
            pairs.retain(|(key, _)| *key != "fieldSelector");
            pairs.push(("fieldSelector", &by_name));
        }
        let path = with_query(&selection.resource.path(self.namespace()), &pairs);
        let mut header = table.is_empty() && !self.args.no_headers;
        let body = self.api.stream(&path, TABLE).await?;
        let reader = StreamReader::new(body.into_data_stream().map_err(std::io::Error::other));
        let mut lines = codec::FramedRead::new(reader, codec::LinesCodec::new_with_max_length(MAX_EVENT));
        while let Some(line) = lines.try_next().await? {
            let event: Value = serde_json::from_str(&line)?;
            match event["type"].as_str() {
                Some("ERROR") => {
                    bail!("{}", event["object"]["message"].as_str().unwrap_or("the watch failed"))
                }
                Some("BOOKMARK") => continue,
                _ => {}
            }
            table.clear();
            table.add(&event["object"])?;
            self.cx.out.text(&table.text(std::mem::take(&mut header)));
        }
        Ok(Exit::Done)
    }

    async fn names(&self, selections: &[Selection<'_>]) -> Result<Exit> {
        for selection in selections {
            for answer in self.answers(selection, TABLE).await? {
                for row in answer["rows"].as_array().ok_or_else(|| anyhow!("the server sent no table"))? {
                    let name = row["object"]["metadata"]["name"].as_str().unwrap_or("");
                    self.cx.out.line(selection.resource.named(name));
                }
            }
        }
        Ok(Exit::Done)
    }

    /// One named object as it is; anything else as a `List`.
    async fn whole(&self, selections: &[Selection<'_>], format: &Format) -> Result<Exit> {
        let mut found = Vec::new();
        for selection in selections {
            for answer in self.answers(selection, "application/json").await? {
                if selection.names.is_empty() {
                    let items = answer["items"].as_array().cloned().unwrap_or_default();
                    let kind = (selection.resource.api_version(), &selection.resource.kind);
                    found.extend(items.into_iter().map(|item| with_kind(item, &kind.0, kind.1)));
                } else {
                    found.push(answer);
                }
            }
        }
        if let Some(path) = self.args.sort_by.as_deref().map(Template::parse_path).transpose()? {
            found.sort_by_cached_key(|object| sort_key(&path, object));
        }
        let found: Vec<Value> = found.into_iter().map(|object| self.shown(object)).collect();
        let one_by_name = matches!(selections, [one] if one.names.len() == 1);
        let shown = match (found.as_slice(), one_by_name) {
            ([one], true) => one.clone(),
            ([], true) => return Ok(Exit::Done),
            _ => {
                json!({"apiVersion": "v1", "items": found, "kind": "List", "metadata": {"resourceVersion": ""}})
            }
        };
        self.cx.out.text(&format.text(&shown, !self.args.no_headers, |_| String::new())?);
        Ok(Exit::Done)
    }

    /// Prints each object, as it is and after every change, in a form of `-o`.
    async fn watch_whole(&self, selections: &[Selection<'_>]) -> Result<Exit> {
        let [selection] = selections else {
            bail!("watch is only supported on individual resources and resource collections")
        };
        let Some(format) = Format::parse(self.args.output.as_deref(), self.args.template.as_deref())? else {
            return Ok(Exit::Done);
        };
        let by_name = selection.names.first().map(|name| format!("metadata.name={name}"));
        let mut pairs = self.query(&[("watch", "true")]);
        if let Some(name) = &by_name {
            pairs.retain(|(key, _)| *key != "fieldSelector");
            pairs.push(("fieldSelector", name));
        }
        let path = with_query(&selection.resource.path(self.namespace()), &pairs);
        let named =
            |object: &Value| selection.resource.named(object["metadata"]["name"].as_str().unwrap_or(""));
        let body = self.api.stream(&path, "application/json").await?;
        let reader = StreamReader::new(body.into_data_stream().map_err(std::io::Error::other));
        let mut lines = codec::FramedRead::new(reader, codec::LinesCodec::new_with_max_length(MAX_EVENT));
        let mut header = !self.args.no_headers;
        while let Some(line) = lines.try_next().await? {
            let mut event: Value = serde_json::from_str(&line)?;
            if event["type"] == "ERROR" {
                bail!("{}", event["object"]["message"].as_str().unwrap_or("the watch failed"));
            }
            if event["type"] != "BOOKMARK" {
                let object = self.shown(event["object"].take());
                self.cx.out.text(&format.text(&object, std::mem::take(&mut header), named)?);
            }
        }
        Ok(Exit::Done)
    }

    fn shown(&self, object: Value) -> Value {
        let object = without_managed_fields(object);
        if self.args.export { exported(object) } else { object }
    }
}

/// What objects are put in order by: numbers before texts.
fn sort_key(path: &Template, object: &Value) -> (u64, String) {
    match path.find(object).unwrap_or_default().first() {
        Some(Value::Number(n)) => (n.as_u64().unwrap_or(0), String::new()),
        Some(Value::String(text)) => (u64::MAX, text.clone()),
        other => (u64::MAX, other.map(ToString::to_string).unwrap_or_default()),
    }
}

/// An object as it could be made elsewhere.
fn exported(mut object: Value) -> Value {
    if let Some(map) = object.as_object_mut() {
        map.shift_remove("status");
    }
    if let Some(metadata) = object["metadata"].as_object_mut() {
        for key in [
            "namespace",
            "uid",
            "resourceVersion",
            "creationTimestamp",
            "generation",
            "selfLink",
            "ownerReferences",
        ] {
            metadata.shift_remove(key);
        }
    }
    object
}

/// Items of a list do not say what they are.
fn with_kind(mut item: Value, api_version: &str, kind: &str) -> Value {
    if let Some(map) = item.as_object_mut() {
        map.entry("apiVersion").or_insert_with(|| api_version.into());
        map.entry("kind").or_insert_with(|| kind.into());
    }
    item
}

fn without_managed_fields(mut object: Value) -> Value {
    if let Some(metadata) = object.get_mut("metadata").and_then(Value::as_object_mut) {
        metadata.shift_remove("managedFields");
    }
    object
}
