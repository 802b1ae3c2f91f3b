//! Encryption at rest as kube-apiserver is told of it: a file with an EncryptionConfiguration.

use std::path::Path;

use anyhow::{Context, Result, bail};
use base64::{Engine, engine::general_purpose::STANDARD};
use serde::Deserialize;
use wasmk_store::{Cipher, Key, Provider, Rule};

/// The root of all keys in the store.
const ROOT: &str = "/registry/";

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct Configuration {
    api_version: String,
    kind: String,
    #[serde(default)]
    resources: Vec<Resources>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Resources {
    #[serde(default)]
    resources: Vec<String>,
    #[serde(default)]
    providers: Vec<Named>,
}

/// One provider: exactly one of the fields is set.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Named {
    identity: Option<Empty>,
    aesgcm: Option<Keys>,
    aescbc: Option<Keys>,
    secretbox: Option<Keys>,
    kms: Option<serde_json::Value>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Empty {}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Keys {
    #[serde(default)]
    keys: Vec<NamedKey>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct NamedKey {
    name: String,
    secret: String,
}

impl std::fmt::Debug for NamedKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("NamedKey").field("name", &self.name).finish_non_exhaustive()
    }
}

/// Reads a configuration file.
///
/// # Errors
/// When it cannot be read, or asks for what cannot be done; the message names the place.
pub(crate) fn read(path: &Path) -> Result<Vec<Rule>> {
    let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    parse(&text).with_context(|| format!("cannot use the encryption configuration {}", path.display()))
}

fn parse(text: &str) -> Result<Vec<Rule>> {
    let config: Configuration = serde_yaml::from_str(text)?;
    if (config.api_version.as_str(), config.kind.as_str())
        != ("apiserver.config.k8s.io/v1", "EncryptionConfiguration")
    {
        bail!(
            "it is {} {}, expected apiserver.config.k8s.io/v1 EncryptionConfiguration",
            config.api_version,
            config.kind
        );
    }
    if config.resources.is_empty() {
        bail!("resources: at least one entry is required");
    }
    config.resources.into_iter().enumerate().map(rule).collect()
}

fn rule((index, entry): (usize, Resources)) -> Result<Rule> {
    if entry.resources.is_empty() || entry.providers.is_empty() {
        bail!("resources[{index}]: resources and providers are both required");
    }
    let prefixes = entry.resources.iter().map(|resource| prefix(resource)).collect();
    let named =
        |(number, named)| provider(named).with_context(|| format!("resources[{index}].providers[{number}]"));
    let providers = entry.providers.into_iter().enumerate().map(named).collect::<Result<_>>()?;
    Ok(Rule { prefixes, providers })
}

/// Where a resource is kept: `secrets`, `deployments.apps`, `*.apps`, `*.` for the core group, `*.*` for all.
fn prefix(resource: &str) -> String {
    let (plural, group) = resource.split_once('.').unwrap_or((resource, ""));
    let group = if group.is_empty() { "core" } else { group };
    match (plural, group) {
        ("*", "*") => ROOT.into(),
        ("*", group) => format!("{ROOT}{group}/"),
        (plural, group) => format!("{ROOT}{group}/{plural}/"),
    }
}

fn provider(named: Named) -> Result<Provider> {
    let Named { identity, aesgcm, aescbc, secretbox, kms } = named;
    if kms.is_some() {
        bail!("kms is not supported; use aesgcm, aescbc, secretbox or identity");
    }
    let ciphers = [(Cipher::AesGcm, aesgcm), (Cipher::AesCbc, aescbc), (Cipher::Secretbox, secretbox)];
    let mut given: Vec<Provider> = identity.iter().map(|_| Provider::Identity).collect();
    for (cipher, keys) in ciphers {
        let Some(keys) = keys else { continue };
        let keys = keys.keys.into_iter().map(|key| decode(cipher, key)).collect::<Result<_>>()?;
        given.push(Provider::Keys { cipher, keys });
    }
    match (given.pop(), given.pop()) {
        (Some(provider), None) => Ok(provider),
        _ => bail!("exactly one of aesgcm, aescbc, secretbox and identity is expected"),
    }
}

fn decode(cipher: Cipher, key: NamedKey) -> Result<Key> {
    let secret = STANDARD.decode(key.secret.trim());
    let secret = secret
        .with_context(|| format!("the secret of key {} of {} is not base64", key.name, cipher.name()))?;
    Ok(Key { name: key.name, secret })
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEAD: &str = "apiVersion: apiserver.config.k8s.io/v1\nkind: EncryptionConfiguration\n";
    const SECRET: &str = "MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY=";

    #[test]
    fn a_usual_file_is_understood() {
        let text = format!(
            "{HEAD}resources:\n- resources: [secrets, '*.apps', pandas.awesome.bears.example]\n  providers:\n  \
             - aesgcm: {{keys: [{{name: k2, secret: {SECRET}}}, {{name: k1, secret: {SECRET}}}]}}\n  \
             - secretbox: {{keys: [{{name: old, secret: {SECRET}}}]}}\n  - identity: {{}}\n\
             - resources: ['*.*']\n  providers: [{{identity: {{}}}}]\n"
        );
        let rules = parse(&text).unwrap();
        let prefixes: Vec<_> = rules.iter().map(|rule| rule.prefixes.clone()).collect();
        let first = ["/registry/core/secrets/", "/registry/apps/", "/registry/awesome.bears.example/pandas/"];
        assert_eq!(prefixes, [first.map(String::from).to_vec(), vec!["/registry/".into()]]);
        let [Provider::Keys { cipher: Cipher::AesGcm, keys }, Provider::Keys { .. }, Provider::Identity] =
            &rules[0].providers[..]
        else {
            panic!("{rules:?}")
        };
        assert_eq!((keys[0].name.as_str(), keys[0].secret.len()), ("k2", 32));
        assert_eq!(prefix("*."), "/registry/core/");
        assert!(!format!("{rules:?}").contains("0123"), "no secret is printed");
    }

    #[test]
    fn mistakes_are_named() {
        for (body, word) in [
            ("resources: []", "at least one"),
            ("resources: [{resources: [secrets]}]", "resources[0]"),
            ("resources: [{resources: [secrets], providers: [{}]}]", "exactly one"),
            ("resources: [{resources: [secrets], providers: [{kms: {name: x}}]}]", "kms is not supported"),
            ("resources: [{resources: [secrets], providers: [{rot13: {}}]}]", "rot13"),
            (
                "resources: [{resources: [secrets], providers: [{aesgcm: {keys: [{name: a, secret: '!'}]}}]}]",
                "key a of aesgcm is not base64",
            ),
        ] {
            let error = format!("{:#}", parse(&format!("{HEAD}{body}\n")).unwrap_err());
            assert!(error.contains(word), "{body}: {error}");
        }
        let error = parse("apiVersion: v1\nkind: Secret\n").unwrap_err().to_string();
        assert!(error.contains("v1 Secret"), "{error}");
    }
}
