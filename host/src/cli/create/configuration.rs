//! Config maps and secrets.

use std::path::Path;

use anyhow::{Context as _, Result, bail};
use base64::{Engine, engine::general_purpose::STANDARD};
use serde_json::{Map, Value, json};

use super::{super::Context, object};
use crate::cli::make::{self, Flags};

/// Most bytes of all values together, as the server has it.
const MAX_DATA: usize = 1 << 20;

/// Where keys and values come from.
#[derive(Clone, Debug, clap::Args)]
struct Sources {
    /// `KEY=VALUE`; may be repeated
    #[arg(long, value_name = "KEY=VALUE")]
    from_literal: Vec<String>,
    /// A file, `KEY=FILE`, or a directory whose files become keys; may be repeated
    #[arg(long, value_name = "[KEY=]FILE")]
    from_file: Vec<String>,
    /// A file of lines `KEY=VALUE`; may be repeated
    #[arg(long, value_name = "FILE")]
    from_env_file: Vec<String>,
}

impl Sources {
    fn read(&self) -> Result<Vec<(String, Vec<u8>)>> {
        let mut all = Vec::new();
        for literal in &self.from_literal {
            let (key, value) = literal
                .split_once('=')
                .with_context(|| format!("invalid literal source {literal}, expected key=value"))?;
            all.push((key.into(), unquoted(value).as_bytes().to_vec()));
        }
        for source in &self.from_file {
            read_file(source, &mut all)?;
        }
        for file in &self.from_env_file {
            let text = std::fs::read_to_string(file).with_context(|| format!("cannot read {file}"))?;
            all.extend(env_lines(&text));
        }
        let mut keys: Vec<&String> = all.iter().map(|(key, _)| key).collect();
        keys.sort();
        if let Some(pair) = keys.windows(2).find(|pair| pair[0] == pair[1]) {
            bail!("cannot add key {}, another key by that name already exists", pair[0]);
        }
        let bytes: usize = all.iter().map(|(_, value)| value.len()).sum();
        if bytes > MAX_DATA {
            bail!("the values have {bytes} bytes, at most {MAX_DATA} can be stored in one object");
        }
        Ok(all)
    }
}

fn unquoted(value: &str) -> &str {
    let inside = |quote| value.strip_prefix(quote).and_then(|v| v.strip_suffix(quote));
    inside('"').or_else(|| inside('\'')).unwrap_or(value)
}

fn read_file(source: &str, all: &mut Vec<(String, Vec<u8>)>) -> Result<()> {
    let (key, file) = source.split_once('=').map_or((None, source), |(key, file)| (Some(key), file));
    let path = Path::new(file);
    let name = |path: &Path| path.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
    let read = |path: &Path| std::fs::read(path).with_context(|| format!("error reading {}", path.display()));
    if !path.is_dir() {
        all.push((key.map_or_else(|| name(path), str::to_string), read(path)?));
        return Ok(());
    }
    if key.is_some() {
        bail!("cannot give a key name for a directory path: {source}");
    }
    let entries = std::fs::read_dir(path).with_context(|| format!("error reading {file}"))?;
    let mut files: Vec<_> = entries.filter_map(|e| Some(e.ok()?.path())).filter(|p| p.is_file()).collect();
    files.sort();
    for file in files {
        all.push((name(&file), read(&file)?));
    }
    Ok(())
}

/// Lines `KEY=VALUE`; empty ones and comments are left out, a key alone takes this process's variable.
fn env_lines(text: &str) -> Vec<(String, Vec<u8>)> {
    let lines = text.lines().map(str::trim_start).filter(|l| !l.is_empty() && !l.starts_with('#'));
    lines
        .map(|line| match line.split_once('=') {
            Some((key, value)) => (key.to_string(), value.as_bytes().to_vec()),
            None => (line.to_string(), std::env::var(line).unwrap_or_default().into_bytes()),
        })
        .collect()
}

#[derive(Clone, Debug, clap::Args)]
pub(super) struct ConfigMap {
    name: String,
    #[command(flatten)]
    sources: Sources,
    #[command(flatten)]
    flags: Flags,
}

impl ConfigMap {
    pub(super) async fn run(self, cx: &Context) -> Result<()> {
        let (mut data, mut binary) = (Map::new(), Map::new());
        for (key, value) in self.sources.read()? {
            match String::from_utf8(value) {
                Ok(text) => data.insert(key, text.into()),
                Err(e) => binary.insert(key, STANDARD.encode(e.into_bytes()).into()),
            };
        }
        let mut config = object("v1", "ConfigMap", &self.name);
        for (field, map) in [("data", data), ("binaryData", binary)] {
            if !map.is_empty() {
                config[field] = Value::Object(map);
            }
        }
        make::make(cx, &self.flags, config).await
    }
}

#[derive(Clone, Debug, clap::Subcommand)]
pub(super) enum Secret {
    /// Any keys and values
    Generic(Generic),
    /// A certificate and its key
    Tls(Tls),
    /// Credentials of an image registry
    DockerRegistry(DockerRegistry),
}

#[derive(Clone, Debug, clap::Args)]
pub(super) struct Generic {
    name: String,
    /// The secret's type [default: Opaque]
    #[arg(long = "type", value_name = "TYPE")]
    kind: Option<String>,
    #[command(flatten)]
    sources: Sources,
    #[command(flatten)]
    flags: Flags,
}

#[derive(Clone, Debug, clap::Args)]
pub(super) struct Tls {
    name: String,
    /// The certificate, PEM
    #[arg(long, value_name = "FILE")]
    cert: String,
    /// Its private key, PEM
    #[arg(long, value_name = "FILE")]
    key: String,
    #[command(flatten)]
    flags: Flags,
}

#[derive(Clone, Debug, clap::Args)]
pub(super) struct DockerRegistry {
    name: String,
    /// The registry [default: the one of images that name none]
    #[arg(long, default_value = "docker.io", hide_default_value = true)]
    docker_server: String,
    #[arg(long)]
    docker_username: String,
    #[arg(long)]
    docker_password: String,
    #[arg(long, default_value = "")]
    docker_email: String,
    #[command(flatten)]
    flags: Flags,
}

impl Secret {
    pub(super) async fn run(self, cx: &Context) -> Result<()> {
        let (name, kind, data, flags) = match self {
            Self::Generic(args) => (args.name, args.kind, args.sources.read()?, args.flags),
            Self::Tls(args) => {
                let read = |file: &str| std::fs::read(file).with_context(|| format!("error reading {file}"));
                let data = vec![("tls.crt".into(), read(&args.cert)?), ("tls.key".into(), read(&args.key)?)];
                (args.name, Some("kubernetes.io/tls".into()), data, args.flags)
            }
            Self::DockerRegistry(args) => {
                let login = format!("{}:{}", args.docker_username, args.docker_password);
                let config = json!({"auths": {args.docker_server: {
                    "username": args.docker_username, "password": args.docker_password,
                    "email": args.docker_email, "auth": STANDARD.encode(login),
                }}});
                let data = vec![(".dockerconfigjson".into(), config.to_string().into_bytes())];
                (args.name, Some("kubernetes.io/dockerconfigjson".into()), data, args.flags)
            }
        };
        let mut secret = object("v1", "Secret", &name);
        if let Some(kind) = kind {
            secret["type"] = kind.into();
        }
        if !data.is_empty() {
            secret["data"] =
                data.into_iter().map(|(key, value)| (key, Value::from(STANDARD.encode(value)))).collect();
        }
        make::make(cx, &flags, secret).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_come_from_everywhere() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name).display().to_string();
        std::fs::write(path("app.conf"), "x").unwrap();
        std::fs::write(path("env"), "# note\nA=1\n\nB=2=3\n").unwrap();
        let read = |literal: &[&str], file: &[String], env: &[String]| {
            let literal = literal.iter().map(ToString::to_string).collect();
            let sources =
                Sources { from_literal: literal, from_file: file.to_vec(), from_env_file: env.to_vec() };
            let show = |(k, v): (String, Vec<u8>)| format!("{k}={}", String::from_utf8_lossy(&v));
            sources.read().map(|all| all.into_iter().map(show).collect::<Vec<_>>())
        };
        assert_eq!(read(&["a=1", "b='c d'"], &[], &[]).unwrap(), ["a=1", "b=c d"]);
        assert_eq!(
            read(&[], &[path("app.conf"), format!("other={}", path("app.conf"))], &[]).unwrap(),
            ["app.conf=x", "other=x"]
        );
        assert_eq!(read(&[], &[dir.path().display().to_string()], &[]).unwrap().len(), 2);
        assert_eq!(read(&[], &[], &[path("env")]).unwrap(), ["A=1", "B=2=3"]);
        assert!(
            read(&["a=1", "a=2"], &[], &[]).unwrap_err().to_string().contains("another key by that name")
        );
        assert!(read(&["a"], &[], &[]).unwrap_err().to_string().contains("expected key=value"));
        assert!(read(&[], &[path("none")], &[]).is_err());
    }
}
