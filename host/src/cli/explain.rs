//! `wasmk explain`: the fields of a kind, from the server's OpenAPI documents.

use anyhow::{Result, anyhow, bail};
use serde_json::Value;

use super::{
    Context, Exit,
    api::Api,
    resources::{Resource, Resources},
};

/// Deepest nesting that --recursive shows; schemas may contain themselves.
const MAX_DEPTH: usize = 20;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// TYPE[.FIELD...]
    #[arg(value_name = "TYPE")]
    word: String,
    /// All fields below
    #[arg(long)]
    recursive: bool,
    /// In this group and version
    #[arg(long, value_name = "GROUP/VERSION")]
    api_version: Option<String>,
}

pub(super) async fn run(args: Args, cx: &Context) -> Result<Exit> {
    let api = Api::new(cx.client().await?);
    let resources = Resources::discover(&api).await?;
    let (kind, fields) = split(&resources, &args.word)?;
    let resource = match &args.api_version {
        None => kind,
        Some(version) => resources
            .of_kind(version, &kind.kind)
            .ok_or_else(|| anyhow!("couldn't find resource for \"{version}, Kind={}\"", kind.kind))?,
    };
    let root = if resource.group.is_empty() { "api" } else { "apis" };
    let document = api.get(&format!("/openapi/v3/{root}/{}", resource.api_version())).await?;
    let document = Document(&document);
    let mut schema = document.of(resource)?;
    for field in &fields {
        schema = document.field(schema, field).ok_or_else(|| anyhow!("field \"{field}\" does not exist"))?;
    }
    cx.out.text(&page(&document, resource, schema, &fields, args.recursive));
    Ok(Exit::Done)
}

/// `deploy.spec.replicas` → the resource and the fields.
fn split<'a>(resources: &'a Resources, word: &str) -> Result<(&'a Resource, Vec<String>)> {
    let mut parts = word.split('.');
    let kind = parts.next().unwrap_or("");
    if kind.is_empty() {
        bail!(
            "You must specify the type of resource to explain. Use \"wasmk api-resources\" for a complete list of supported resources."
        );
    }
    Ok((resources.single(kind)?, parts.map(String::from).collect()))
}

/// An OpenAPI v3 document.
struct Document<'a>(&'a Value);

impl<'a> Document<'a> {
    fn of(&self, resource: &Resource) -> Result<&'a Value> {
        let schemas = self.0["components"]["schemas"].as_object();
        let is_it = |schema: &&Value| {
            let kinds = schema["x-kubernetes-group-version-kind"].as_array();
            kinds.into_iter().flatten().any(|k| {
                k["kind"] == *resource.kind
                    && k["version"] == *resource.version
                    && k["group"].as_str().unwrap_or("") == resource.group
            })
        };
        schemas
            .and_then(|all| all.values().find(is_it))
            .ok_or_else(|| anyhow!("the server does not describe {}", resource.kind))
    }

    /// The schema a `$ref`, alone or as the only `allOf`, stands for.
    fn resolved(&self, schema: &'a Value) -> &'a Value {
        let link = schema["$ref"].as_str().or_else(|| schema["allOf"][0]["$ref"].as_str());
        let name = link.and_then(|l| l.strip_prefix("#/components/schemas/"));
        name.map_or(schema, |name| &self.0["components"]["schemas"][name])
    }

    /// The schema whose properties a field has: through references, lists and maps.
    fn element(&self, schema: &'a Value) -> &'a Value {
        let schema = self.resolved(schema);
        if schema["items"].is_object() {
            return self.element(&schema["items"]);
        }
        if schema["additionalProperties"].is_object() {
            return self.element(&schema["additionalProperties"]);
        }
        schema
    }

    fn field(&self, schema: &'a Value, name: &str) -> Option<&'a Value> {
        self.element(schema)["properties"].get(name)
    }

    fn type_of(&self, schema: &'a Value) -> String {
        let name = schema["$ref"].as_str().or_else(|| schema["allOf"][0]["$ref"].as_str());
        let resolved = self.resolved(schema);
        if resolved["items"].is_object() {
            return format!("[]{}", self.type_of(&resolved["items"]));
        }
        if resolved["additionalProperties"].is_object() {
            return format!("map[string]{}", self.type_of(&resolved["additionalProperties"]));
        }
        match (name, resolved["type"].as_str()) {
            (Some(name), Some("object") | None) => name.rsplit('.').next().unwrap_or("Object").into(),
            (_, Some("object")) => "Object".into(),
            (_, Some(plain)) => plain.into(),
            (_, None) => "any".into(),
        }
    }
}

fn page(
    document: &Document<'_>,
    resource: &Resource,
    schema: &Value,
    fields: &[String],
    recursive: bool,
) -> String {
    let mut text = String::new();
    if !resource.group.is_empty() {
        text.push_str(&format!("GROUP:      {}\n", resource.group));
    }
    text.push_str(&format!("KIND:       {}\nVERSION:    {}\n\n", resource.kind, resource.version));
    if let Some(name) = fields.last() {
        text.push_str(&format!("FIELD: {name} <{}>\n\n", document.type_of(schema)));
    }
    let element = document.element(schema);
    let said =
        schema["description"].as_str().or_else(|| element["description"].as_str()).unwrap_or("<empty>");
    text.push_str("DESCRIPTION:\n");
    text.push_str(&wrapped(said, 4));
    if element["properties"].is_object() {
        text.push_str("\nFIELDS:\n");
        list(document, element, 1, recursive, &mut text);
    }
    text
}

fn list(document: &Document<'_>, element: &Value, depth: usize, recursive: bool, text: &mut String) {
    let required = element["required"].as_array();
    let is_required = |name: &str| required.is_some_and(|all| all.iter().any(|r| r == name));
    for (name, schema) in element["properties"].as_object().into_iter().flatten() {
        let mark = if is_required(name) { " -required-" } else { "" };
        let indent = "  ".repeat(depth);
        text.push_str(&format!("{indent}{name}\t<{}>{mark}\n", document.type_of(schema)));
        if recursive {
            let below = document.element(schema);
            if depth < MAX_DEPTH && !std::ptr::eq(below, element) {
                list(document, below, depth + 1, true, text);
            }
        } else {
            let said =
                schema["description"].as_str().or_else(|| document.element(schema)["description"].as_str());
            text.push_str(&wrapped(said.unwrap_or("<no description>"), 4));
            text.push('\n');
        }
    }
}

/// Text in lines of at most 80 characters, indented.
fn wrapped(text: &str, indent: usize) -> String {
    let mut out = String::new();
    for paragraph in text.lines() {
        let mut line = String::new();
        for word in paragraph.split_whitespace() {
            if !line.is_empty() && indent + line.len() + 1 + word.len() > 80 {
                out.push_str(&format!("{:indent$}{line}\n", ""));
                line.clear();
            }
            if !line.is_empty() {
                line.push(' ');
            }
            line.push_str(word);
        }
        out.push_str(format!("{:indent$}{line}", "").trim_end());
        out.push('\n');
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_text_is_wrapped() {
        let text = wrapped(&"word ".repeat(30), 4);
        assert!(
            text.lines().count() == 2 && text.lines().all(|l| l.len() <= 80 && l.starts_with("    word"))
        );
    }
}
