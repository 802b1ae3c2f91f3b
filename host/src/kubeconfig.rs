//! The kubeconfig that `wasmk up` writes, and merging it into the user's.

use std::path::Path;

use anyhow::{Context, Result, bail};
use base64::{Engine, engine::general_purpose::STANDARD};
use serde_json::{Value, json};

use crate::{files, pki::Pair};

/// The name under which cluster, user and context appear.
pub const CONTEXT: &str = "wasmk";

/// A kubeconfig with one cluster, one user and one context, all named [`CONTEXT`].
pub fn admin(server: &str, ca: &str, client: &Pair) -> Value {
    let user = json!({
        "client-certificate-data": STANDARD.encode(&client.cert),
        "client-key-data": STANDARD.encode(&client.key),
    });
    of(server, ca, user)
}

/// The same with any user entry.
pub fn of(server: &str, ca: &str, user: Value) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": CONTEXT, "cluster": {"server": server, "certificate-authority-data": STANDARD.encode(ca)}}],
        "users": [{"name": CONTEXT, "user": user}],
        "contexts": [{"name": CONTEXT, "context": {"cluster": CONTEXT, "user": CONTEXT}}],
        "current-context": CONTEXT,
    })
}

/// Writes it as YAML, readable by its owner only.
///
/// # Errors
/// When the file cannot be written.
pub fn write(path: &Path, config: &Value) -> Result<()> {
    files::write_private(path, serde_yaml::to_string(config)?.as_bytes())
}

/// Writes it as [`write`] does, unless the file holds just that.
///
/// # Errors
/// When the file cannot be read or written.
pub fn write_if_changed(path: &Path, config: &Value) -> Result<()> {
    let text = serde_yaml::to_string(config)?;
    if files::read_if_there(path)?.as_deref() == Some(&text) {
        return Ok(());
    }
    files::write_private(path, text.as_bytes())
}

/// Puts cluster, user and context of `config` into the kubeconfig at `path`, in place of
/// entries of the same name, and makes the context current. Everything else stays.
///
/// # Errors
/// When the file is no kubeconfig or cannot be written.
pub fn merge(path: &Path, config: &Value) -> Result<()> {
    let Some(text) = files::read_if_there(path)? else {
        if let Some(dir) = path.parent() {
            files::private_dir(dir)?;
        }
        return write(path, config);
    };
    let old: Value = serde_yaml::from_str(&text)
        .with_context(|| format!("{} is not YAML; it was left as it is", path.display()))?;
    let mut merged = match old {
        Value::Null => json!({"apiVersion": "v1", "kind": "Config"}),
        map @ Value::Object(_) => map,
        _ => bail!("{} is not a kubeconfig (a map was expected); it was left as it is", path.display()),
    };
    for list in ["clusters", "users", "contexts"] {
        let mut entries = merged[list].as_array().cloned().unwrap_or_default();
        entries.retain(|e| e["name"] != CONTEXT);
        entries.extend(config[list].as_array().into_iter().flatten().cloned());
        merged[list] = entries.into();
    }
    merged["current-context"] = CONTEXT.into();
    write(path, &merged)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn merging_keeps_the_rest_and_replaces_ours() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("sub/config");
        let config = |port: u16| of(&format!("https://127.0.0.1:{port}"), "ca", json!({"token": "t"}));
        merge(&path, &config(1)).unwrap();
        let mut other: Value = serde_yaml::from_str(&std::fs::read_to_string(&path).unwrap()).unwrap();
        other["clusters"].as_array_mut().unwrap().push(json!({"name": "theirs", "cluster": {}}));
        other["preferences"] = json!({"colors": true});
        write(&path, &other).unwrap();
        merge(&path, &config(2)).unwrap();
        let merged: Value = serde_yaml::from_str(&std::fs::read_to_string(&path).unwrap()).unwrap();
        assert_eq!(merged["clusters"].as_array().unwrap().len(), 2);
        assert_eq!(merged["clusters"][1]["cluster"]["server"], "https://127.0.0.1:2");
        assert_eq!(merged["preferences"]["colors"], true);
    }

    #[test]
    fn a_file_that_is_no_kubeconfig_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("config");
        std::fs::write(&path, "- a\n- b\n").unwrap();
        assert!(merge(&path, &json!({})).is_err());
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "- a\n- b\n");
    }
}
