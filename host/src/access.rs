//! Who may use the API, and what is remembered of it: files that flags name, read into settings.

use std::{path::Path, time::Duration};

use anyhow::{Context, Result, bail};
use kube::config::Kubeconfig;
use wasmk_apiserver::{
    AbacPolicy, AdmissionPlugins, Authentication, Authorization, Config, RequestHeader, User, Webhook, audit,
};

/// Everything about access that is not the cluster's own.
#[derive(Clone, Debug, Default)]
pub struct Access {
    /// Static tokens with their users.
    pub tokens: Vec<(String, User)>,
    /// Authorities (PEM) of client certificates, besides the cluster's own.
    pub client_ca: Option<String>,
    /// Proxies that name users, besides the cluster's own.
    pub request_header: Option<RequestHeader>,
    /// Other ways to show who one is.
    pub authentication: Authentication,
    /// Who decides.
    pub authorization: Authorization,
    /// The admission plugins that are on.
    pub admission: AdmissionPlugins,
    /// What is remembered of requests.
    pub audit: Option<audit::Settings>,
    /// The issuer of service accounts' tokens, when it is not the usual one.
    pub issuer: Option<String>,
    /// The key (PEM) that signs them, when it is not the cluster's own.
    pub signing_key: Option<String>,
}

impl Access {
    /// Brings it into the settings of an API server.
    pub(crate) fn apply(&self, config: &mut Config) {
        config.static_tokens.clone_from(&self.tokens);
        if let Some(more) = &self.client_ca {
            config.client_ca = joined(&config.client_ca, more);
        }
        if self.request_header.is_some() {
            config.request_header.clone_from(&self.request_header);
        }
        config.authentication = self.authentication.clone();
        config.authorization = self.authorization.clone();
        config.admission = self.admission.clone();
        config.audit.clone_from(&self.audit);
        if let Some(issuer) = &self.issuer {
            config.issuer.clone_from(issuer);
        }
        if let Some(key) = &self.signing_key {
            let own = std::mem::replace(&mut config.service_account_key, key.clone());
            // Tokens that were signed before stay good.
            config.authentication.accounts.more_keys.push(own);
        }
    }
}

/// Two PEM bundles in one.
pub(crate) fn joined(first: &str, second: &str) -> String {
    format!("{}\n{}", first.trim_end(), second)
}

/// A file's text.
///
/// # Errors
/// When it cannot be read.
pub(crate) fn read(path: &Path) -> Result<String> {
    std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))
}

/// Certificates in PEM.
///
/// # Errors
/// When the file cannot be read or holds none.
pub(crate) fn certificates(path: &Path) -> Result<String> {
    let text = read(path)?;
    if !text.contains("-----BEGIN CERTIFICATE-----") {
        bail!("{} holds no PEM certificate", path.display());
    }
    Ok(text)
}

/// A policy file of attribute based access control.
///
/// # Errors
/// When it cannot be read or a line is no policy.
pub(crate) fn policy(path: &Path) -> Result<AbacPolicy> {
    AbacPolicy::parse(&read(path)?).with_context(|| format!("cannot use the policy file {}", path.display()))
}

/// An audit policy.
///
/// # Errors
/// When it cannot be read or is no policy.
pub(crate) fn audit_policy(path: &Path) -> Result<audit::Policy> {
    audit::Policy::parse(&read(path)?).with_context(|| format!("cannot use {}", path.display()))
}

/// A service that a kubeconfig file says how to reach.
///
/// # Errors
/// When it is no kubeconfig.
pub(crate) fn kubeconfig(path: &Path) -> Result<Kubeconfig> {
    Kubeconfig::read_from(path).with_context(|| format!("cannot use the kubeconfig {}", path.display()))
}

/// A service that reviews, with the times its answers hold.
///
/// # Errors
/// When the file is no kubeconfig, or the version is unknown.
pub(crate) fn webhook(path: &Path, version: &str, good: Duration, bad: Duration) -> Result<Webhook> {
    if !["v1", "v1beta1"].contains(&version) {
        bail!("version {version:?} of reviews: `v1` or `v1beta1` was expected");
    }
    Ok(Webhook { config: kubeconfig(path)?, version: version.into(), good, bad })
}

/// A file of static tokens: a line each of `token,user,uid` and, in quotes when there are several, groups.
///
/// # Errors
/// When a line has less than three columns, or an empty token or user.
pub(crate) fn tokens(path: &Path) -> Result<Vec<(String, User)>> {
    let mut all = Vec::new();
    for (number, line) in read(path)?.lines().enumerate() {
        if line.trim().is_empty() || line.starts_with('#') {
            continue;
        }
        let wrong = |why: &str| format!("{}, line {}: {why}", path.display(), number + 1);
        let columns = columns(line);
        let [token, name, uid, rest @ ..] = columns.as_slice() else {
            bail!(wrong("token, user name and user id were expected"));
        };
        if token.is_empty() || name.is_empty() {
            bail!(wrong("the token and the user name must not be empty"));
        }
        let groups = rest.first().map_or("", String::as_str).split(',').map(str::trim);
        let mut user = User::new(name, groups.filter(|group| !group.is_empty()));
        user.uid.clone_from(uid);
        all.push((token.clone(), user));
    }
    Ok(all)
}

/// The columns of a line of comma separated values, where quotes keep commas together.
fn columns(line: &str) -> Vec<String> {
    let (mut all, mut column, mut quoted) = (Vec::new(), String::new(), false);
    let mut characters = line.chars().peekable();
    while let Some(character) = characters.next() {
        match character {
            '"' if quoted && characters.peek() == Some(&'"') => {
                column.push('"');
                characters.next();
            }
            '"' => quoted = !quoted,
            ',' if !quoted => all.push(std::mem::take(&mut column).trim().to_owned()),
            other => column.push(other),
        }
    }
    all.push(column.trim().to_owned());
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn token_files() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("tokens.csv");
        type Row = (&'static str, &'static str, &'static str, &'static [&'static str]);
        let check = |text: &str, expect: Result<&[Row], &str>| {
            std::fs::write(&path, text).unwrap();
            match (tokens(&path), expect) {
                (Ok(found), Ok(expect)) => {
                    let found: Vec<_> = found
                        .iter()
                        .map(|(t, u)| (t.as_str(), u.name.as_str(), u.uid.as_str(), u.groups.clone()))
                        .collect();
                    let expect: Vec<_> = expect
                        .iter()
                        .map(|(t, n, u, g)| {
                            let groups = g.iter().chain(&["system:authenticated"]);
                            (*t, *n, *u, groups.map(|g| (*g).to_owned()).collect::<Vec<_>>())
                        })
                        .collect();
                    assert_eq!(found, expect);
                }
                (Err(error), Err(expect)) => assert!(error.to_string().contains(expect), "{error}"),
                (found, _) => panic!("{text}: {found:?}"),
            }
        };
        check("t1,ann,7\n\n# no\n", Ok(&[("t1", "ann", "7", &[])]));
        check(
            "t1,ann,7,\"dev,ops\"\nt2,bob,,dev",
            Ok(&[("t1", "ann", "7", &["dev", "ops"]), ("t2", "bob", "", &["dev"])]),
        );
        check("t1,ann", Err("line 1: token, user name"));
        check("t1,ann,1\n,bob,2", Err("line 2: the token"));
    }
}
