//! `wasmk get`: objects as tables, YAML, JSON or names; `-w` goes on with every change.

use anyhow::{Result, anyhow, bail};
use futures::TryStreamExt;
use http_body_util::BodyExt;
use serde_json::{Value, json};
use tokio_util::{codec, io::StreamReader};

use super::{
    Context, Exit,
    api::{Api, TABLE, is_not_found},
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
    #[arg(value_name = "TYPE", required_unless_present = "raw")]
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
    /// wide, yaml, json or name
    #[arg(short, long, value_name = "FORMAT")]
    output: Option<String>,
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
    let selections = selection::read(&resources, &args.words)?;
    let get = Get { api: &api, args: &args, cx };
    match args.output.as_deref() {
        None | Some("wide") => get.tables(&selections).await,
        Some("name") => get.names(&selections).await,
        Some("json") => {
            get.whole(&selections, |v| Ok(format!("{}\n", serde_json::to_string_pretty(v)?))).await
        }
        Some("yaml") => get.whole(&selections, |v| Ok(serde_yaml::to_string(v)?)).await,
        Some(other) => bail!(
            "unable to match a printer suitable for the output format \"{other}\", allowed formats are: json,name,wide,yaml"
        ),
    }
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
        let several = selections.len() > 1;
        let mut printed = false;
        for selection in selections {
            let mut table = Table::new(wide, self.args.all_namespaces && selection.resource.namespaced);
            table.show_labels = self.args.show_labels;
            table.prefix = several.then(|| selection.resource.named(""));
            for answer in self.answers(selection, TABLE).await? {
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
    async fn whole(
        &self,
        selections: &[Selection<'_>],
        print: impl Fn(&Value) -> Result<String>,
    ) -> Result<Exit> {
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
        let one_by_name = matches!(selections, [one] if one.names.len() == 1);
        let shown = match found.pop() {
            Some(one) if one_by_name => one,
            None if one_by_name => return Ok(Exit::Done),
            last => {
                found.extend(last);
                json!({"apiVersion": "v1", "items": found, "kind": "List", "metadata": {"resourceVersion": ""}})
            }
        };
        self.cx.out.text(&print(&without_managed_fields(shown))?);
        Ok(Exit::Done)
    }
}

/// Items of a list do not say what they are.
fn with_kind(mut item: Value, api_version: &str, kind: &str) -> Value {
    if let Some(map) = item.as_object_mut() {
        map.entry("apiVersion").or_insert_with(|| api_version.into());
        map.entry("kind").or_insert_with(|| kind.into());
    }
    item
}

fn without_managed_fields(mut value: Value) -> Value {
    let strip = |object: &mut Value| {
        if let Some(metadata) = object.get_mut("metadata").and_then(Value::as_object_mut) {
            metadata.shift_remove("managedFields");
        }
    };
    strip(&mut value);
    value.get_mut("items").and_then(Value::as_array_mut).into_iter().flatten().for_each(strip);
    value
}
