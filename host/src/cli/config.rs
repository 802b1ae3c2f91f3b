//! `wasmk config`, `wasmk ctx` and `wasmk ns`: the kubeconfig, its contexts and their namespaces.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, anyhow, bail};
use base64::{Engine, engine::general_purpose::STANDARD};
use serde_json::{Value, json};
use wasmk_machinery::yaml;

use super::{Context, Exit};
use crate::{files, kubeconfig};

/// What `wasmk config` does.
#[derive(Debug, clap::Subcommand)]
pub(super) enum Command {
    /// Print it, without secrets
    View(View),
    /// List contexts
    GetContexts(GetContexts),
    /// Print the name of the current context
    CurrentContext,
    /// Make a context the current one
    #[command(visible_alias = "use")]
    UseContext(Named),
    /// Make or change a context
    SetContext(SetContext),
    /// Make or change a cluster
    SetCluster(SetCluster),
    /// Make or change a user
    SetCredentials(SetCredentials),
    /// Delete a context
    DeleteContext(Named),
}

#[derive(Debug, clap::Args)]
pub(super) struct View {
    /// With certificates, keys and tokens
    #[arg(long)]
    raw: bool,
    /// Only what the current context uses
    #[arg(long)]
    minify: bool,
    /// yaml or json
    #[arg(short, long, default_value = "yaml")]
    output: String,
}

#[derive(Debug, clap::Args)]
pub(super) struct GetContexts {
    /// `name` prints the names only
    #[arg(short, long)]
    output: Option<String>,
}

#[derive(Debug, clap::Args)]
pub(super) struct Named {
    name: String,
}

// `--namespace` is every command's flag.
#[derive(Debug, clap::Args)]
pub(super) struct SetContext {
    /// The context's name
    #[arg(required_unless_present = "current")]
    name: Option<String>,
    /// The current one
    #[arg(long, conflicts_with = "name")]
    current: bool,
}

#[derive(Debug, clap::Args)]
pub(super) struct SetCluster {
    name: String,
    /// A file with the certificate that signs the server's
    #[arg(long, value_name = "FILE")]
    certificate_authority: Option<PathBuf>,
    /// Put files' contents into the kubeconfig
    #[arg(long)]
    embed_certs: bool,
}

#[derive(Debug, clap::Args)]
pub(super) struct SetCredentials {
    name: String,
    /// A file with the client's certificate
    #[arg(long, value_name = "FILE")]
    client_certificate: Option<PathBuf>,
    /// A file with its key
    #[arg(long, value_name = "FILE")]
    client_key: Option<PathBuf>,
    /// Put files' contents into the kubeconfig
    #[arg(long)]
    embed_certs: bool,
}

/// Arguments of `wasmk ctx` and `wasmk ns`.
#[derive(Debug, clap::Args)]
pub(super) struct Switch {
    /// Where to go; `-` goes back; nothing prints what there is
    #[arg(allow_hyphen_values = true)]
    name: Option<String>,
}

pub(super) async fn run(command: Command, cx: &Context) -> Result<Exit> {
    let path = cx.kubeconfig();
    let mut config = read(&path)?;
    match command {
        Command::View(args) => return view(cx, config, &args),
        Command::GetContexts(args) => return contexts(cx, &config, &args),
        Command::CurrentContext => {
            let current = current(&config)?;
            cx.out.line(current);
            return Ok(Exit::Done);
        }
        Command::UseContext(args) => {
            use_context(&mut config, &args.name)?;
            cx.out.line(format!("Switched to context \"{}\".", args.name));
        }
        Command::DeleteContext(args) => {
            let list = entries(&mut config, "contexts");
            let before = list.len();
            list.retain(|e| e["name"] != args.name.as_str());
            if list.len() == before {
                bail!("cannot delete context {}, not in {}", args.name, path.display());
            }
            cx.out.line(format!("deleted context {} from {}", args.name, path.display()));
        }
        Command::SetContext(args) => {
            let name =
                if args.current { current(&config)?.to_string() } else { args.name.unwrap_or_default() };
            let chosen = cx.chosen();
            let fields =
                [("cluster", chosen.cluster), ("user", chosen.user), ("namespace", chosen.namespace)];
            let done =
                set(&mut config, "contexts", "context", &name, &fields.map(|(k, v)| (k, v.map(Value::from))));
            cx.out.line(format!("Context \"{name}\" {done}."));
        }
        Command::SetCluster(args) => {
            let chosen = cx.chosen();
            let ca = file(args.certificate_authority.as_deref(), args.embed_certs)?;
            let ca_field =
                if args.embed_certs { "certificate-authority-data" } else { "certificate-authority" };
            let insecure = chosen.insecure.then_some(Value::Bool(true));
            let fields = [
                ("server", chosen.server.map(Value::from)),
                (ca_field, ca),
                ("insecure-skip-tls-verify", insecure),
            ];
            set(&mut config, "clusters", "cluster", &args.name, &fields);
            if chosen.insecure {
                drop_certificate(&mut config, &args.name);
            }
            cx.out.line(format!("Cluster \"{}\" set.", args.name));
        }
        Command::SetCredentials(args) => {
            let data = if args.embed_certs { "-data" } else { "" };
            let (certificate, key) = (format!("client-certificate{data}"), format!("client-key{data}"));
            let fields = [
                (certificate.as_str(), file(args.client_certificate.as_deref(), args.embed_certs)?),
                (key.as_str(), file(args.client_key.as_deref(), args.embed_certs)?),
                ("token", cx.chosen().token.map(Value::from)),
            ];
            set(&mut config, "users", "user", &args.name, &fields);
            cx.out.line(format!("User \"{}\" set.", args.name));
        }
    }
    kubeconfig::write(&path, &config)?;
    Ok(Exit::Done)
}

/// A server whose certificate is not checked cannot have one to check it by.
fn drop_certificate(config: &mut Value, cluster: &str) {
    for entry in entries(config, "clusters").iter_mut().filter(|e| e["name"] == cluster) {
        if let Some(map) = entry["cluster"].as_object_mut() {
            map.shift_remove("certificate-authority");
            map.shift_remove("certificate-authority-data");
        }
    }
}

/// A file's whole path, or its contents.
fn file(path: Option<&Path>, embed: bool) -> Result<Option<Value>> {
    let Some(path) = path else { return Ok(None) };
    let why = || format!("cannot read {}", path.display());
    Ok(Some(match embed {
        true => STANDARD.encode(std::fs::read(path).with_context(why)?).into(),
        false => std::fs::canonicalize(path).with_context(why)?.display().to_string().into(),
    }))
}

fn read(path: &Path) -> Result<Value> {
    let text = files::read_if_there(path)?.unwrap_or_default();
    match serde_yaml::from_str(&text).with_context(|| format!("{} is not YAML", path.display()))? {
        Value::Null => Ok(json!({"apiVersion": "v1", "kind": "Config"})),
        map @ Value::Object(_) => Ok(map),
        _ => bail!("{} is not a kubeconfig (a map was expected)", path.display()),
    }
}

fn entries<'a>(config: &'a mut Value, list: &str) -> &'a mut Vec<Value> {
    if !config[list].is_array() {
        config[list] = json!([]);
    }
    config[list].as_array_mut().expect("it was made an array")
}

/// Sets the fields that are given, in the entry of that name; whether it was `created` or `modified`.
fn set(
    config: &mut Value,
    list: &str,
    key: &str,
    name: &str,
    fields: &[(&str, Option<Value>)],
) -> &'static str {
    let all = entries(config, list);
    let done = if all.iter().any(|e| e["name"] == name) {
        "modified"
    } else {
        all.push(json!({"name": name, key: {}}));
        "created"
    };
    for entry in all.iter_mut().filter(|e| e["name"] == name) {
        if !entry[key].is_object() {
            entry[key] = json!({});
        }
        for (field, value) in fields {
            if let Some(value) = value {
                entry[key][*field] = value.clone();
            }
        }
    }
    done
}

fn current(config: &Value) -> Result<&str> {
    config["current-context"]
        .as_str()
        .filter(|c| !c.is_empty())
        .ok_or_else(|| anyhow!("current-context is not set"))
}

fn use_context(config: &mut Value, name: &str) -> Result<()> {
    if !entries(config, "contexts").iter().any(|e| e["name"] == name) {
        bail!("no context exists with the name: \"{name}\"");
    }
    config["current-context"] = name.into();
    Ok(())
}

fn view(cx: &Context, mut config: Value, args: &View) -> Result<Exit> {
    if args.minify {
        let name = match cx.chosen_context() {
            Some(name) => name.to_string(),
            None => current(&config)?.to_string(),
        };
        entries(&mut config, "contexts").retain(|e| e["name"] == name.as_str());
        if entries(&mut config, "contexts").is_empty() {
            bail!("cannot locate context {name}");
        }
        config["current-context"] = name.into();
        let context = config["contexts"][0]["context"].clone();
        entries(&mut config, "clusters").retain(|e| e["name"] == context["cluster"]);
        entries(&mut config, "users").retain(|e| e["name"] == context["user"]);
    }
    if !args.raw {
        for (list, key, fields) in [
            ("clusters", "cluster", &["certificate-authority-data"][..]),
            ("users", "user", &["client-certificate-data", "client-key-data", "token", "password"][..]),
        ] {
            for entry in entries(&mut config, list) {
                for field in fields {
                    if entry[key].get(*field).is_some() {
                        let shown = if field.ends_with("-data") { "DATA+OMITTED" } else { "REDACTED" };
                        entry[key][*field] = shown.into();
                    }
                }
            }
        }
    }
    match args.output.as_str() {
        "json" => cx.out.line(serde_json::to_string_pretty(&config)?),
        "yaml" => cx.out.text(&yaml::write(&config)),
        other => bail!("--output must be yaml or json, not {other:?}"),
    }
    Ok(Exit::Done)
}

fn contexts(cx: &Context, config: &Value, args: &GetContexts) -> Result<Exit> {
    let current = current(config).unwrap_or("");
    let text = |v: &Value| v.as_str().unwrap_or("").to_string();
    let mut all: Vec<&Value> = config["contexts"].as_array().into_iter().flatten().collect();
    all.sort_by_key(|e| text(&e["name"]));
    if args.output.as_deref() == Some("name") {
        all.into_iter().for_each(|e| cx.out.line(text(&e["name"])));
        return Ok(Exit::Done);
    }
    let head = ["CURRENT", "NAME", "CLUSTER", "AUTHINFO", "NAMESPACE"].map(String::from).to_vec();
    let row = |e: &Value| {
        let mark = if e["name"] == current { "*" } else { "" };
        let context = &e["context"];
        vec![
            mark.into(),
            text(&e["name"]),
            text(&context["cluster"]),
            text(&context["user"]),
            text(&context["namespace"]),
        ]
    };
    cx.out.columns(&[vec![head], all.into_iter().map(row).collect()].concat());
    Ok(Exit::Done)
}

/// Where the place one came from is kept, beside the kubeconfig.
fn memory(path: &Path, what: &str) -> PathBuf {
    path.with_file_name(format!(".wasmk-previous-{what}"))
}

/// `wasmk ctx`: the current context.
pub(super) fn switch_context(args: &Switch, cx: &Context) -> Result<Exit> {
    let path = cx.kubeconfig();
    let mut config = read(&path)?;
    let Some(wanted) = &args.name else {
        return contexts(cx, &config, &GetContexts { output: Some("name".into()) });
    };
    let memory = memory(&path, "context");
    let wanted = target(wanted, &memory, "context")?;
    let before = current(&config).unwrap_or("").to_string();
    use_context(&mut config, &wanted)?;
    kubeconfig::write(&path, &config)?;
    files::write_private(&memory, before.as_bytes())?;
    cx.out.line(format!("Switched to context \"{wanted}\"."));
    Ok(Exit::Done)
}

/// `wasmk ns`: the namespace of the current context.
pub(super) async fn switch_namespace(args: &Switch, cx: &Context) -> Result<Exit> {
    let path = cx.kubeconfig();
    let mut config = read(&path)?;
    let name = current(&config)?.to_string();
    let now = config["contexts"].as_array().into_iter().flatten().find(|e| e["name"] == name.as_str());
    let before = now.and_then(|e| e["context"]["namespace"].as_str()).unwrap_or("default").to_string();
    let Some(wanted) = &args.name else {
        cx.out.line(before);
        return Ok(Exit::Done);
    };
    let memory = memory(&path, "namespace");
    let wanted = target(wanted, &memory, "namespace")?;
    super::api::Api::new(cx.client().await?).get(&format!("/api/v1/namespaces/{wanted}")).await?;
    set(&mut config, "contexts", "context", &name, &[("namespace", Some(wanted.as_str().into()))]);
    kubeconfig::write(&path, &config)?;
    files::write_private(&memory, before.as_bytes())?;
    cx.out.line(format!("Context \"{name}\" is now in namespace \"{wanted}\"."));
    Ok(Exit::Done)
}

fn target(wanted: &str, memory: &Path, what: &str) -> Result<String> {
    if wanted != "-" {
        return Ok(wanted.into());
    }
    files::read_if_there(memory)?
        .filter(|t| !t.is_empty())
        .ok_or_else(|| anyhow!("there is no previous {what}"))
}
