//! Objects read from files, directories, standard input and the web.

use std::{
    io::Read,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, anyhow, bail};
use serde_json::Value;
use wasmk_machinery::decode::{self, Format};

use super::{
    hint::WithHint,
    resources::{Resource, Resources},
    web,
};

/// Largest file that is read, in bytes.
const MAX_FILE: u64 = 32 << 20;

/// One object of a file.
#[derive(Clone, Debug)]
pub(super) struct Manifest {
    /// The object as it was written.
    pub(super) object: Value,
    /// `metadata.name`, or empty.
    pub(super) name: String,
    /// Where it was read from, for messages.
    source: String,
}

impl Manifest {
    fn new(object: Value, source: &str) -> Result<Self> {
        for key in ["apiVersion", "kind"] {
            if object[key].as_str().unwrap_or("").is_empty() {
                bail!("error validating \"{source}\": {key} not set");
            }
        }
        let name = object["metadata"]["name"].as_str().unwrap_or("").to_string();
        Ok(Self { object, name, source: source.into() })
    }

    /// What the server calls its kind.
    ///
    /// # Errors
    /// In kubectl's words, when the server has no such kind.
    pub(super) fn resource<'a>(&self, resources: &'a Resources) -> Result<&'a Resource> {
        let (version, kind) = (self.text("apiVersion"), self.text("kind"));
        resources
            .of_kind(version, kind)
            .ok_or_else(|| {
                anyhow!(
                    "resource mapping not found for name: \"{}\" namespace: \"{}\" from \"{}\": no matches for kind \"{kind}\" in version \"{version}\"",
                    self.name,
                    self.object["metadata"]["namespace"].as_str().unwrap_or(""),
                    self.source
                )
            })
            .hint(|| match resources.served_as(version, kind) {
                Some(now) => format!("{kind} is not served in that version: use apiVersion {now}"),
                None => {
                    "ensure CRDs are installed first; `wasmk api-resources` lists what the server has".into()
                }
            })
    }

    /// The object's own path.
    ///
    /// # Errors
    /// When it has no name.
    pub(super) fn path(&self, resource: &Resource, default_namespace: &str) -> Result<String> {
        if self.name.is_empty() {
            bail!("{}: the {} has no metadata.name", self.source, self.text("kind"));
        }
        let namespace = self.object["metadata"]["namespace"].as_str().unwrap_or(default_namespace);
        Ok(format!("{}/{}", resource.path(Some(namespace)), self.name))
    }

    fn text(&self, key: &str) -> &str {
        self.object[key].as_str().unwrap_or("")
    }
}

/// Reads every object of the named files, directories (`*.yaml`, `*.yml`, `*.json`), URLs and `-`.
/// Lists are taken apart.
///
/// # Errors
/// When a file cannot be read or understood; the message names file and line.
pub(super) async fn read(names: &[String], recursive: bool) -> Result<Vec<Manifest>> {
    let mut all = Vec::new();
    for name in names {
        if name == "-" {
            let mut text = String::new();
            std::io::stdin()
                .lock()
                .take(MAX_FILE)
                .read_to_string(&mut text)
                .context("cannot read standard input")?;
            read_text(&text, "STDIN", &mut all)?;
            continue;
        }
        if web::is_url(name) {
            read_text(&web::fetch(name).await?, name, &mut all)?;
            continue;
        }
        for file in files(Path::new(name), recursive)? {
            let shown = file.display().to_string();
            if std::fs::metadata(&file).is_ok_and(|m| m.len() > MAX_FILE) {
                bail!("{shown} is larger than {} MiB", MAX_FILE >> 20);
            }
            let text = std::fs::read_to_string(&file).with_context(|| format!("cannot read {shown}"))?;
            read_text(&text, &shown, &mut all)?;
        }
    }
    Ok(all)
}

fn files(path: &Path, recursive: bool) -> Result<Vec<PathBuf>> {
    let meta =
        std::fs::metadata(path).map_err(|_| anyhow!("the path \"{}\" does not exist", path.display()))?;
    if !meta.is_dir() {
        return Ok(vec![path.into()]);
    }
    let mut found = Vec::new();
    let entries = std::fs::read_dir(path).with_context(|| format!("cannot read {}", path.display()))?;
    let mut entries: Vec<_> =
        entries.collect::<std::io::Result<Vec<_>>>()?.into_iter().map(|e| e.path()).collect();
    entries.sort();
    for entry in entries {
        let is_manifest =
            entry.extension().and_then(|e| e.to_str()).is_some_and(|e| ["yaml", "yml", "json"].contains(&e));
        if entry.is_dir() && recursive {
            found.extend(files(&entry, true)?);
        } else if entry.is_file() && is_manifest {
            found.push(entry);
        }
    }
    Ok(found)
}

fn read_text(text: &str, source: &str, all: &mut Vec<Manifest>) -> Result<()> {
    for document in documents(text) {
        let (object, repeated) = decode::plain(document.as_bytes(), Format::Yaml)
            .map_err(|e| anyhow!("error parsing {source}: {e}"))?;
        if let Some(first) = repeated.first() {
            bail!("error parsing {source}: {first}");
        }
        take(object, source, all)?;
    }
    Ok(())
}

/// The documents of a YAML or JSON text: parts between lines that begin with `---`.
fn documents(text: &str) -> Vec<String> {
    let mut parts = vec![String::new()];
    for line in text.lines() {
        if line == "---" || line.starts_with("--- ") || line.starts_with("---\t") {
            parts.push(String::new());
            continue;
        }
        let part = parts.last_mut().expect("never empty");
        part.push_str(line);
        part.push('\n');
    }
    parts.retain(|part| !part.trim().is_empty());
    parts
}

fn take(object: Value, source: &str, all: &mut Vec<Manifest>) -> Result<()> {
    if object.is_null() {
        return Ok(());
    }
    let is_list = object["kind"].as_str().is_some_and(|k| k.ends_with("List"));
    match object.get("items").and_then(Value::as_array) {
        Some(items) if is_list => items.iter().try_for_each(|item| take(item.clone(), source, all)),
        _ => {
            all.push(Manifest::new(object, source)?);
            Ok(())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn several_documents_and_lists_become_objects() {
        let text = "apiVersion: v1\nkind: A\nmetadata: {name: a}\n---\n# nothing\n---\napiVersion: v1\nkind: List\nitems:\n- {apiVersion: v1, kind: B, metadata: {name: b}}\n";
        let mut all = Vec::new();
        read_text(text, "test", &mut all).unwrap();
        let names: Vec<_> = all.iter().map(|m| (m.text("kind"), m.name.as_str())).collect();
        assert_eq!(names, [("A", "a"), ("B", "b")]);
    }

    #[test]
    fn bad_files_are_named() {
        for (text, says) in
            [("a: [", "error parsing"), ("kind: A", "apiVersion not set"), ("apiVersion: v1", "kind not set")]
        {
            let error = read_text(text, "x.yaml", &mut Vec::new()).unwrap_err().to_string();
            assert!(error.contains(says) && error.contains("x.yaml"), "{error}");
        }
    }
}
