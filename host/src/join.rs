//! How a machine becomes a node: a bootstrap token buys one client certificate.
//!
//! A join token is `ID.SECRET@HASH`: a bootstrap token of Kubernetes and the SHA-256 of the cluster's CA
//! certificate. The agent reads the CA from `kube-public/cluster-info` over an unverified connection,
//! believes it only if the hash agrees, and from then on verifies everything by it.

use std::{path::Path, time::Duration};

use anyhow::{Context, Result, bail};
use base64::{Engine, engine::general_purpose::STANDARD};
use k8s_openapi::api::{
    certificates::v1::CertificateSigningRequest,
    core::v1::{ConfigMap, Secret},
};
use kube::{
    Api, Client, Config,
    api::PostParams,
    config::{KubeConfigOptions, Kubeconfig},
};
use rand::Rng;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use time::OffsetDateTime;
use tokio::time::{Instant, sleep};

use crate::{files, kubeconfig, pki};

/// Longest wait for the certificate to be signed.
const PATIENCE: Duration = Duration::from_secs(60);
/// The group of those that come with a token of `wasmk token create`.
pub(crate) const JOINERS: &str = "system:bootstrappers:wasmk:default-node-token";
/// Characters of bootstrap tokens (kubeadm's alphabet).
const ALPHABET: &[u8] = b"0123456789abcdefghijklmnopqrstuvwxyz";

/// A join token taken apart.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Token {
    /// `ID.SECRET`, the bearer token.
    pub bearer: String,
    /// SHA-256 of the CA certificate (DER), in hex.
    pub ca_hash: String,
}

impl Token {
    /// Reads `ID.SECRET@HASH`.
    ///
    /// # Errors
    /// When it does not have that form.
    pub fn parse(text: &str) -> Result<Self> {
        let form = || "a join token has the form ID.SECRET@HASH; `wasmk token create` prints one";
        let (bearer, hash) = text.trim().split_once('@').with_context(form)?;
        let (id, secret) = bearer.split_once('.').with_context(form)?;
        let plain = |part: &str| part.bytes().all(|b| ALPHABET.contains(&b));
        if id.len() != 6
            || secret.len() != 16
            || !plain(id)
            || !plain(secret)
            || hex::decode(hash).map_or(0, |h| h.len()) != 32
        {
            bail!("{}", form());
        }
        Ok(Self { bearer: bearer.into(), ca_hash: hash.to_lowercase() })
    }
}

/// SHA-256 of a certificate, in hex.
///
/// # Errors
/// When the text is no PEM certificate.
pub fn hash_of(ca_pem: &str) -> Result<String> {
    let (_, pem) =
        x509_parser::pem::parse_x509_pem(ca_pem.as_bytes()).context("the CA is not a PEM certificate")?;
    Ok(hex::encode(Sha256::digest(&pem.contents)))
}

/// The authorities (PEM) by which the cluster lets itself be known.
///
/// # Errors
/// When the cluster does not publish them.
pub async fn published_ca(client: &Client) -> Result<String> {
    let info = Api::<ConfigMap>::namespaced(client.clone(), "kube-public").get("cluster-info").await;
    authorities(info.context("the cluster does not publish its CA")?)
}

/// Makes a bootstrap token that is good for joining nodes, and returns it with the CA's hash.
///
/// # Errors
/// When the API refuses the Secret.
pub async fn create_token(client: &Client, ca_pem: &str, life: Duration) -> Result<String> {
    let text = |n: usize| -> String {
        let mut random = rand::rng();
        (0..n).map(|_| char::from(ALPHABET[random.random_range(0..ALPHABET.len())])).collect()
    };
    let (id, secret) = (text(6), text(16));
    let until = jiff::Timestamp::now().checked_add(life)?;
    let object: Secret = serde_json::from_value(json!({
        "metadata": {"name": format!("bootstrap-token-{id}"), "namespace": "kube-system"},
        "type": "bootstrap.kubernetes.io/token",
        "stringData": {
            "token-id": id,
            "token-secret": secret,
            "expiration": wasmk_api::Timestamp(until).to_string(),
            "usage-bootstrap-authentication": "true",
            "usage-bootstrap-signing": "true",
            "auth-extra-groups": JOINERS,
            "description": "lets a machine join as a node",
        },
    }))?;
    Api::<Secret>::namespaced(client.clone(), "kube-system").create(&PostParams::default(), &object).await?;
    Ok(format!("{id}.{secret}@{}", hash_of(ca_pem)?))
}

/// The credentials of a node, kept in its data directory.
#[derive(Clone, Debug)]
pub struct Identity {
    kubeconfig: Value,
}

impl Identity {
    /// Those of an earlier start, while their certificate is good; `None` when there are none.
    ///
    /// # Errors
    /// When the file is there and cannot be understood.
    pub fn load(dir: &Path) -> Result<Option<Self>> {
        let Some(text) = files::read_if_there(&dir.join("kubeconfig"))? else { return Ok(None) };
        let kubeconfig: Value = serde_yaml::from_str(&text).context("the node's kubeconfig is damaged")?;
        let cert = kubeconfig["users"][0]["user"]["client-certificate-data"].as_str().unwrap_or("");
        let cert = String::from_utf8(STANDARD.decode(cert)?)?;
        let good = pki::expiry(&cert)? > OffsetDateTime::now_utc();
        Ok(good.then_some(Self { kubeconfig }))
    }

    /// Buys a certificate for the node with a join token, and keeps it.
    ///
    /// # Errors
    /// When the server is not the token's, refuses the token, or does not sign in time.
    pub async fn join(server: &str, token: &Token, node: &str, dir: &Path) -> Result<Self> {
        let ca = trusted_ca(server, token).await?;
        let bearer = kubeconfig::of(server, &ca, json!({"token": token.bearer}));
        let client = client_of(&bearer, false).await?;
        Self::enrol(&client, server, &ca, node, dir).await
    }

    /// Asks for a certificate for a new key, and keeps both.
    async fn enrol(client: &Client, server: &str, ca: &str, node: &str, dir: &Path) -> Result<Self> {
        let (request, key) = pki::client_request(&format!("system:node:{node}"), "system:nodes")?;
        let cert = signed(client, node, &request).await?;
        let user = json!({
            "client-certificate-data": STANDARD.encode(cert),
            "client-key-data": STANDARD.encode(key),
        });
        let kubeconfig = kubeconfig::of(server, ca, user);
        kubeconfig::write(&dir.join("kubeconfig"), &kubeconfig)?;
        Ok(Self { kubeconfig })
    }

    /// Whether these are a node's of that name, in a cluster of one of these authorities (PEM).
    pub fn is_of(&self, node: &str, authorities: &str) -> bool {
        let Ok((_, ca, _)) = self.parts() else { return false };
        let known = hashes_of(&ca);
        self.node().is_some_and(|own| own == node) && hashes_of(authorities).iter().any(|h| known.contains(h))
    }

    /// The node's name, as its certificate has it.
    pub fn node(&self) -> Option<String> {
        let (_, _, pair) = self.parts().ok()?;
        let user = pki::user(&pair.cert).ok()?;
        user.strip_prefix("system:node:").map(Into::into)
    }

    /// The same node, finding its cluster at another address from now on.
    ///
    /// # Errors
    /// When that cannot be written down.
    pub fn moved_to(mut self, server: &str, dir: &Path) -> Result<Self> {
        let known = &mut self.kubeconfig["clusters"][0]["cluster"]["server"];
        if *known != server {
            *known = server.into();
            kubeconfig::write(&dir.join("kubeconfig"), &self.kubeconfig)?;
        }
        Ok(self)
    }

    /// Whether the certificate is in its last third of life.
    ///
    /// # Errors
    /// When the credentials are incomplete.
    pub fn is_due(&self, now: OffsetDateTime) -> Result<bool> {
        let (_, _, pair) = self.parts()?;
        Ok(!pki::lasts(&pair.cert, now.unix_timestamp())?)
    }

    /// Gets another certificate by the present one, and hears what authorities the cluster has now.
    ///
    /// # Errors
    /// When the cluster cannot be reached or does not sign in time; the present one stays.
    pub async fn renew(&self, client: &Client, node: &str, dir: &Path) -> Result<Self> {
        let (server, ca, _) = self.parts()?;
        let info = Api::<ConfigMap>::namespaced(client.clone(), "kube-public").get("cluster-info").await;
        let ca = info.ok().and_then(|map| authorities(map).ok()).unwrap_or(ca);
        Self::enrol(client, &server, &ca, node, dir).await
    }

    /// A client with these credentials.
    ///
    /// # Errors
    /// When they cannot be used.
    pub async fn client(&self) -> Result<Client> {
        client_of(&self.kubeconfig, false).await
    }

    /// The parts of a mutually authenticated connection: server URL, CA, certificate and key (PEM).
    ///
    /// # Errors
    /// When the file lacks one.
    pub fn parts(&self) -> Result<(String, String, pki::Pair)> {
        let cluster = &self.kubeconfig["clusters"][0]["cluster"];
        let user = &self.kubeconfig["users"][0]["user"];
        let pem = |value: &Value| -> Result<String> {
            Ok(String::from_utf8(
                STANDARD.decode(value.as_str().context("the node's kubeconfig is incomplete")?)?,
            )?)
        };
        let server = cluster["server"].as_str().context("the node's kubeconfig names no server")?.to_string();
        let pair =
            pki::Pair { cert: pem(&user["client-certificate-data"])?, key: pem(&user["client-key-data"])? };
        Ok((server, pem(&cluster["certificate-authority-data"])?, pair))
    }
}

async fn client_of(kubeconfig: &Value, unverified: bool) -> Result<Client> {
    let kubeconfig: Kubeconfig = serde_json::from_value(kubeconfig.clone())?;
    let mut config = Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await?;
    config.accept_invalid_certs = unverified;
    Ok(Client::try_from(config)?)
}

/// The authorities (PEM) that the cluster publishes.
fn authorities(info: ConfigMap) -> Result<String> {
    let text =
        info.data.and_then(|mut d| d.remove("kubeconfig")).context("cluster-info has no kubeconfig")?;
    let info: Value = serde_yaml::from_str(&text).context("cluster-info is damaged")?;
    let ca = info["clusters"][0]["cluster"]["certificate-authority-data"].as_str().unwrap_or("");
    Ok(String::from_utf8(STANDARD.decode(ca)?)?)
}

/// SHA-256 of each certificate of a bundle, in hex.
fn hashes_of(bundle: &str) -> Vec<String> {
    let all = x509_parser::pem::Pem::iter_from_buffer(bundle.as_bytes());
    all.filter_map(Result::ok).map(|pem| hex::encode(Sha256::digest(&pem.contents))).collect()
}

/// The CA of the cluster, if it is the one the token was made for.
async fn trusted_ca(server: &str, token: &Token) -> Result<String> {
    let anonymous = json!({
        "apiVersion": "v1", "kind": "Config", "current-context": "c",
        "clusters": [{"name": "c", "cluster": {"server": server, "insecure-skip-tls-verify": true}}],
        "users": [{"name": "c", "user": {}}],
        "contexts": [{"name": "c", "context": {"cluster": "c", "user": "c"}}],
    });
    let client = client_of(&anonymous, true).await?;
    let found = Api::<ConfigMap>::namespaced(client, "kube-public").get("cluster-info").await;
    let found = found.with_context(|| format!("cannot read what {server} says about its cluster"))?;
    let ca = authorities(found)?;
    if !hashes_of(&ca).contains(&token.ca_hash) {
        bail!("{server} is not the cluster that the token was made for: its CA certificate is another");
    }
    Ok(ca)
}

/// Has a request signed and returns the certificate, PEM.
async fn signed(client: &Client, node: &str, request: &str) -> Result<Vec<u8>> {
    let requests: Api<CertificateSigningRequest> = Api::all(client.clone());
    let object: CertificateSigningRequest = serde_json::from_value(json!({
        "metadata": {"generateName": format!("node-csr-{node}-")},
        "spec": {
            "request": STANDARD.encode(request),
            "signerName": "kubernetes.io/kube-apiserver-client-kubelet",
            "usages": ["digital signature", "client auth"],
        },
    }))?;
    let made =
        requests.create(&PostParams::default(), &object).await.context("the server refused the token")?;
    let name = made.metadata.name.context("the request got no name")?;
    let deadline = Instant::now() + PATIENCE;
    loop {
        let now = requests
            .get(&name)
            .await
            .with_context(|| format!("cannot read the certificate request {name}"))?;
        let status = now.status.unwrap_or_default();
        if let Some(cert) = status.certificate {
            return Ok(cert.0);
        }
        let refused = status.conditions.iter().flatten().find(|c| c.type_ == "Denied" || c.type_ == "Failed");
        if let Some(condition) = refused {
            bail!(
                "the certificate request {name} was refused: {}",
                condition.message.as_deref().unwrap_or("")
            );
        }
        if Instant::now() > deadline {
            bail!(
                "the certificate request {name} was not signed within {} s; `kubectl certificate approve {name}` may help",
                PATIENCE.as_secs()
            );
        }
        sleep(Duration::from_millis(100)).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens() {
        let hash = "ab".repeat(32);
        let token = Token::parse(&format!("abcdef.0123456789abcdef@{hash}\n")).unwrap();
        assert_eq!(
            (token.bearer.as_str(), token.ca_hash.as_str()),
            ("abcdef.0123456789abcdef", hash.as_str())
        );
        for bad in [
            "",
            "abcdef.0123456789abcdef",
            "abcdef.0123456789abcdef@12",
            &format!("ABCDEF.0123456789abcdef@{hash}"),
        ] {
            assert!(Token::parse(bad).is_err(), "{bad}");
        }
    }
}
