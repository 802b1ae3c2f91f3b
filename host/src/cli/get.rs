//! `wasmk get`: objects as tables, or whole in any form of `-o`; `-w` goes on with every change.

use anyhow::{Result, anyhow, bail};
use futures::TryStreamExt;
use serde_json::{Value, json};
use wasmk_api::Quantity;

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
    /// The objects of a file, a directory of files, a URL, or `-`; may be repeated
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
    let words = if args.filename.is_empty() {
        args.words.clone()
    } else {
        of_files(&resources, &args.filename).await?
    };
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
async fn of_files(resources: &Resources, files: &[String]) -> Result<Vec<String>> {
    let manifests = manifests::read(files, false).await?;
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
        // What tables are put in order by need not be among what their rows usually carry.
        let include = if accept == TABLE && self.args.sort_by.is_some() { "Object" } else { "" };
        for name in &selection.names {
            if self.args.all_namespaces && selection.resource.namespaced {
                bail!("a resource cannot be retrieved by name across all namespaces");
            }
            let path = with_query(&format!("{path}/{name}"), &[("includeObject", include)]);
            match self.api.get_as(&path, accept).await {
                Err(e) if self.args.ignore_not_found && is_not_found(&e) => {}
                answer => answers.push(answer?),
            }
        }
        let mut token = String::new();
        while selection.names.is_empty() {
            let pairs = self.query(&[("limit", PAGE), ("continue", &token), ("includeObject", include)]);
            let page = self.api.get_as(&with_query(&path, &pairs), accept).await?;
            token = page["metadata"]["continue"].as_str().unwrap_or("").into();
            answers.push(page);
            if token.is_empty() {
                break;
            }
        }
        Ok(answers)
    }

    /// The answers as tables; with an order, all rows in the first of them.
    async fn pages(&self, selection: &Selection<'_>) -> Result<Vec<Value>> {
        let sort = self.args.sort_by.as_deref().map(Template::parse_path).transpose()?;
        let pages = self.answers(selection, TABLE).await?;
        match sort {
            Some(path) => sorted(pages, &path),
            None => Ok(pages),
        }
    }

    async fn tables(&self, selections: &[Selection<'_>]) -> Result<Exit> {
        let wide = self.args.output.is_some();
        let several = selections.len() > 1;
        let mut printed = false;
        for selection in selections {
            let mut table = Table::new(wide, self.args.all_namespaces && selection.resource.namespaced);
            table.show_labels = self.args.show_labels;
            table.prefix = several.then(|| selection.resource.named(""));
            for page in self.pages(selection).await? {
                table.add(&page)?;
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
        let mut events = self.api.events(&path, TABLE).await?;
        while let Some((_, rows)) = events.try_next().await? {
            table.clear();
            table.add(&rows)?;
            self.cx.out.text(&table.text(std::mem::take(&mut header)));
        }
        Ok(Exit::Done)
    }

    async fn names(&self, selections: &[Selection<'_>]) -> Result<Exit> {
        for selection in selections {
            for answer in self.pages(selection).await? {
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
            found.sort_by_cached_key(|object| SortKey::of(&path, object));
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
        let mut events = self.api.events(&path, "application/json").await?;
        let mut header = !self.args.no_headers;
        while let Some((_, object)) = events.try_next().await? {
            let object = self.shown(object);
            self.cx.out.text(&format.text(&object, std::mem::take(&mut header), named)?);
        }
        Ok(Exit::Done)
    }

    fn shown(&self, object: Value) -> Value {
        let object = without_managed_fields(object);
        if self.args.export { exported(object) } else { object }
    }
}

/// What objects are put in order by: those without it come first, then numbers and amounts, then texts.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum SortKey {
    Missing,
    Amount(Quantity),
    Text(String),
}

impl SortKey {
    fn of(path: &Template, object: &Value) -> Self {
        let found = path.find(object).unwrap_or_default();
        let text = match found.first() {
            None | Some(Value::Null) => return Self::Missing,
            Some(Value::String(text)) => text.clone(),
            Some(other) => other.to_string(),
        };
        text.parse().map_or_else(|_| Self::Text(text), Self::Amount)
    }
}

/// All rows of tables in one, in the order of what is at a path.
fn sorted(pages: Vec<Value>, path: &Template) -> Result<Vec<Value>> {
    let mut rows = Vec::new();
    let mut all = None;
    for mut page in pages {
        let Some(Value::Array(more)) = page.get_mut("rows").map(Value::take) else {
            bail!("the server sent no table");
        };
        rows.extend(more);
        all.get_or_insert(page);
    }
    rows.sort_by_cached_key(|row| SortKey::of(path, &row["object"]));
    if let Some(all) = &mut all {
        all["rows"] = rows.into();
    }
    Ok(all.into_iter().collect())
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_of_all_pages_are_in_one_order() {
        let row = |name: &str, value: Value| json!({"cells": [name], "object": {"metadata": {"name": name}, "spec": {"v": value}}});
        let table = |rows: Vec<Value>| json!({"columnDefinitions": [{"name": "Name"}], "rows": rows});
        let pages = vec![
            table(vec![row("text", json!("b")), row("ten", json!(10)), row("half", json!(0.5))]),
            table(vec![row("none", Value::Null), row("nine", json!(9)), row("minus", json!(-3))]),
            table(vec![row("kibi", json!("1Ki")), row("first", json!("a")), row("mebi", json!("1Mi"))]),
        ];
        let path = Template::parse_path(".spec.v").unwrap();
        let all = sorted(pages, &path).unwrap();
        assert_eq!((all.len(), &all[0]["columnDefinitions"][0]["name"]), (1, &json!("Name")));
        let names: Vec<&str> =
            all[0]["rows"].as_array().unwrap().iter().map(|r| r["cells"][0].as_str().unwrap()).collect();
        assert_eq!(names, ["none", "minus", "half", "nine", "ten", "kibi", "mebi", "first", "text"]);
        assert!(sorted(vec![json!({"kind": "PodList"})], &path).is_err());
        assert!(sorted(Vec::new(), &path).unwrap().is_empty());
    }
}
