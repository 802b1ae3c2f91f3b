//! `wasmk describe`: an object for people, with its events.

use anyhow::Result;
use base64::{Engine, engine::general_purpose::STANDARD};
use serde_json::Value;

use super::{
    Context, Exit,
    api::{Api, TABLE},
    resources::{Resource, Resources},
    selection::{self, with_query},
    table::Table,
};

/// Metadata that says nothing to people.
const HIDDEN: [&str; 4] = ["managedFields", "uid", "resourceVersion", "generation"];
/// Values that are shown by their size only.
const MAX_TEXT: usize = 2000;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// TYPE, TYPE NAME..., or TYPE/NAME...
    #[arg(value_name = "TYPE", required = true)]
    words: Vec<String>,
    /// Over all namespaces
    #[arg(short = 'A', long)]
    all_namespaces: bool,
    /// Only objects with these labels
    #[arg(short = 'l', long, value_name = "SELECTOR")]
    selector: Option<String>,
    /// Without events
    #[arg(long)]
    no_events: bool,
}

pub(super) async fn run(args: Args, cx: &Context) -> Result<Exit> {
    let api = Api::new(cx.client().await?);
    let resources = Resources::discover(&api).await?;
    let namespace = (!args.all_namespaces).then(|| api.default_namespace());
    let mut shown = 0;
    for selection in selection::read(&resources, &args.words)? {
        let path = selection.resource.path(namespace);
        let mut objects = Vec::new();
        for name in &selection.names {
            objects.extend(one_or_by_prefix(&api, &path, name).await?);
        }
        if selection.names.is_empty() {
            let list = api
                .get(&with_query(&path, &[("labelSelector", args.selector.as_deref().unwrap_or(""))]))
                .await?;
            objects = list["items"].as_array().cloned().unwrap_or_default();
        }
        for object in objects {
            let gap = if shown > 0 { "\n\n" } else { "" };
            cx.out.text(&format!("{gap}{}", described(selection.resource, &object)));
            if !args.no_events {
                cx.out.text(&events(&api, &object).await?);
            }
            shown += 1;
        }
    }
    if shown == 0 {
        cx.out.note(format!("No resources found in {} namespace.", api.default_namespace()));
    }
    Ok(Exit::Done)
}

/// The object of that name, or those whose names begin with it.
async fn one_or_by_prefix(api: &Api, path: &str, name: &str) -> Result<Vec<Value>> {
    match api.get(&format!("{path}/{name}")).await {
        Ok(object) => Ok(vec![object]),
        Err(e) if super::api::is_not_found(&e) => {
            let list = api.get(path).await?;
            let fits = |o: &&Value| o["metadata"]["name"].as_str().is_some_and(|n| n.starts_with(name));
            let found: Vec<Value> =
                list["items"].as_array().into_iter().flatten().filter(fits).cloned().collect();
            if found.is_empty() { Err(e) } else { Ok(found) }
        }
        Err(e) => Err(e),
    }
}

fn described(resource: &Resource, object: &Value) -> String {
    let mut lines = Lines::default();
    let metadata = &object["metadata"];
    lines.pair("Name", metadata["name"].as_str().unwrap_or(""));
    if resource.namespaced {
        lines.pair("Namespace", metadata["namespace"].as_str().unwrap_or(""));
    }
    lines.map("Labels", &metadata["labels"], "=");
    lines.map("Annotations", &without_last_applied(&metadata["annotations"]), ": ");
    lines.pair("API Version", &resource.api_version());
    lines.pair("Kind", &resource.kind);
    let rest = metadata.as_object().into_iter().flatten().filter(|(key, _)| {
        !HIDDEN.contains(&key.as_str())
            && !["name", "namespace", "labels", "annotations"].contains(&key.as_str())
    });
    for (key, value) in rest {
        lines.tree(key, value, 0);
    }
    let secret = resource.kind == "Secret" && resource.group.is_empty();
    let of_account = object["type"] == "kubernetes.io/service-account-token";
    for (key, value) in object.as_object().into_iter().flatten() {
        match key.as_str() {
            "apiVersion" | "kind" | "metadata" => {}
            "data" | "stringData" if secret => lines.sizes(value, of_account),
            _ => lines.tree(key, value, 0),
        }
    }
    lines.0
}

fn without_last_applied(annotations: &Value) -> Value {
    let mut annotations = annotations.clone();
    if let Some(map) = annotations.as_object_mut() {
        map.shift_remove("kubectl.kubernetes.io/last-applied-configuration");
    }
    annotations
}

/// Text in the layout of `kubectl describe`.
#[derive(Default)]
struct Lines(String);

impl Lines {
    fn pair(&mut self, name: &str, value: &str) {
        self.0.push_str(&format!("{:<14}{value}\n", format!("{name}:")));
    }

    fn map(&mut self, name: &str, map: &Value, joint: &str) {
        let pairs = map.as_object().into_iter().flatten();
        let texts: Vec<_> = pairs.map(|(k, v)| format!("{k}{joint}{}", v.as_str().unwrap_or(""))).collect();
        self.pair(name, texts.first().map_or("<none>", |t| t));
        for text in texts.iter().skip(1) {
            self.0.push_str(&format!("{:14}{text}\n", ""));
        }
    }

    /// How large the parts of a secret are; only an account's token is shown.
    fn sizes(&mut self, data: &Value, of_account: bool) {
        self.0.push_str("\nData\n====\n");
        for (key, value) in data.as_object().into_iter().flatten() {
            let encoded = value.as_str().unwrap_or("");
            let decoded = STANDARD.decode(encoded).unwrap_or_default();
            let shown = match String::from_utf8(decoded) {
                Ok(token) if of_account && key == "token" => token,
                Ok(text) => format!("{} bytes", text.len()),
                Err(e) => format!("{} bytes", e.as_bytes().len()),
            };
            self.0.push_str(&format!("{key}:  {shown}\n"));
        }
    }

    fn tree(&mut self, key: &str, value: &Value, depth: usize) {
        let indent = "  ".repeat(depth);
        let name = title(key);
        match value {
            Value::Object(map) if map.is_empty() => {}
            Value::Array(list) if list.is_empty() => {}
            Value::Object(map) => {
                self.0.push_str(&format!("{indent}{name}:\n"));
                map.iter().for_each(|(key, value)| self.tree(key, value, depth + 1));
            }
            Value::Array(list) => {
                self.0.push_str(&format!("{indent}{name}:\n"));
                list.iter().for_each(|value| self.element(value, depth + 1));
            }
            plain => self.0.push_str(&format!("{indent}{name}:  {}\n", text(plain))),
        }
    }

    fn element(&mut self, value: &Value, depth: usize) {
        match value {
            Value::Object(map) => map.iter().for_each(|(key, value)| self.tree(key, value, depth)),
            Value::Array(list) => list.iter().for_each(|value| self.element(value, depth + 1)),
            plain => self.0.push_str(&format!("{}{}\n", "  ".repeat(depth), text(plain))),
        }
    }
}

fn text(value: &Value) -> String {
    match value {
        Value::String(text) if text.len() > MAX_TEXT => format!("({} bytes)", text.len()),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

/// `containerPort` → `Container Port`.
fn title(key: &str) -> String {
    let mut out = String::new();
    for (i, c) in key.chars().enumerate() {
        match c {
            c if i == 0 => out.extend(c.to_uppercase()),
            c if c.is_uppercase() && out.ends_with(|p: char| p.is_lowercase()) => {
                out.push(' ');
                out.push(c);
            }
            c => out.push(c),
        }
    }
    out
}

async fn events(api: &Api, object: &Value) -> Result<String> {
    let metadata = &object["metadata"];
    let namespace = metadata["namespace"].as_str().unwrap_or("default");
    let uid = metadata["uid"].as_str().unwrap_or("");
    let selector = format!("involvedObject.uid={uid}");
    let path = with_query(&format!("/api/v1/namespaces/{namespace}/events"), &[("fieldSelector", &selector)]);
    let mut table = Table::new(false, false);
    table.add(&api.get_as(&path, TABLE).await?)?;
    Ok(match table.is_empty() {
        true => "Events:  <none>\n".into(),
        false => {
            format!("Events:\n{}", table.text(true).lines().map(|l| format!("  {l}\n")).collect::<String>())
        }
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn trees_read_like_kubectls() {
        let mut lines = Lines::default();
        lines.tree("spec", &json!({"containers": [{"name": "c", "containerPort": 80}], "empty": {}}), 0);
        assert_eq!(lines.0, "Spec:\n  Containers:\n    Name:  c\n    Container Port:  80\n");
        assert_eq!(title("podCIDRs"), "Pod CIDRs");
    }

    #[test]
    fn only_tokens_of_accounts_are_shown() {
        let data = json!({"token": "dG9rZW4=", "ca.crt": "/////w=="});
        for (of_account, token) in [(true, "token"), (false, "5 bytes")] {
            let mut lines = Lines::default();
            lines.sizes(&data, of_account);
            assert_eq!(lines.0, format!("\nData\n====\ntoken:  {token}\nca.crt:  4 bytes\n"));
        }
    }
}
