//! The certificates of Ingresses: which one a client is shown.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use arc_swap::ArcSwap;
use rustls::{
    server::{ClientHello, ResolvesServerCert},
    sign::CertifiedKey,
};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject};
use wasmk_api::k8s_openapi::api::{core::v1::Secret, networking::v1::Ingress};

use super::table::is_ours;

/// Certificates kept at the most; Ingresses beyond it, by name, have the default.
const CERTIFICATES: usize = 10_000;

/// A certificate that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum CertificateError {
    /// One of the two texts holds nothing, or something else.
    #[error("{0} is not PEM of a {1}")]
    Pem(&'static str, &'static str),
    /// The two do not go together, or are of a kind that is not supported.
    #[error("the certificate and the key cannot be used")]
    Pair(#[from] rustls::Error),
}

/// Reads a chain of certificates and the key of the first.
///
/// # Errors
/// When they are not PEM or do not go together.
pub fn certified(cert: &[u8], key: &[u8]) -> Result<Arc<CertifiedKey>, CertificateError> {
    let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(cert).collect();
    let chain = chain.ok().filter(|chain| !chain.is_empty());
    let chain = chain.ok_or(CertificateError::Pem("tls.crt", "certificate"))?;
    let key =
        PrivateKeyDer::from_pem_slice(key).map_err(|_| CertificateError::Pem("tls.key", "private key"))?;
    Ok(Arc::new(CertifiedKey::from_der(chain, key, &rustls::crypto::ring::default_provider())?))
}

/// Certificates by host name, and the one for all others.
#[derive(Debug)]
struct Certs {
    hosts: HashMap<String, Arc<CertifiedKey>>,
    default: Arc<CertifiedKey>,
}

/// Shows each client the certificate of the host it asks for. What is set takes the place of the former at once.
#[derive(Debug)]
pub(super) struct Resolver {
    certs: ArcSwap<Certs>,
}

impl Resolver {
    pub(super) fn new(default: Arc<CertifiedKey>) -> Self {
        Self { certs: ArcSwap::from_pointee(Certs { hosts: HashMap::new(), default }) }
    }

    pub(super) fn set(&self, hosts: HashMap<String, Arc<CertifiedKey>>) {
        let default = self.certs.load().default.clone();
        self.certs.store(Arc::new(Certs { hosts, default }));
    }

    fn find(&self, name: Option<&str>) -> Arc<CertifiedKey> {
        let certs = self.certs.load();
        let name = name.unwrap_or_default().to_lowercase();
        let wildcard = || certs.hosts.get(&format!("*.{}", name.split_once('.')?.1));
        certs.hosts.get(&name).or_else(wildcard).unwrap_or(&certs.default).clone()
    }
}

impl ResolvesServerCert for Resolver {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.find(hello.server_name()))
    }
}

type Key = (String, String);

/// Certificates that were read, with the version of the Secret each is from.
#[derive(Default)]
pub(super) struct Reader {
    known: BTreeMap<Key, (String, Option<Arc<CertifiedKey>>)>,
}

impl Reader {
    /// The certificates of all Ingresses by host. What cannot be read is said once.
    pub(super) fn read(
        &mut self,
        ingresses: &[Arc<Ingress>],
        secret: impl Fn(&str, &str) -> Option<Arc<Secret>>,
    ) -> HashMap<String, Arc<CertifiedKey>> {
        let mut sorted: Vec<&Arc<Ingress>> = ingresses.iter().filter(|i| is_ours(i)).collect();
        sorted.sort_by_key(|i| (&i.metadata.namespace, &i.metadata.name));
        let (mut hosts, mut used) = (HashMap::new(), BTreeMap::new());
        for ingress in sorted {
            let namespace = ingress.metadata.namespace.as_deref().unwrap_or("");
            let Some(spec) = &ingress.spec else { continue };
            for tls in spec.tls.iter().flatten() {
                if used.len() >= CERTIFICATES {
                    break;
                }
                let name = tls.secret_name.as_deref().unwrap_or("");
                let Some(found) = secret(namespace, name) else { continue };
                let key = (namespace.to_string(), name.to_string());
                let version = found.metadata.resource_version.clone().unwrap_or_default();
                let known = self.known.get(&key).filter(|(known, _)| *known == version);
                let (version, pair) = known.cloned().unwrap_or_else(|| (version, pair(&key, &found)));
                used.insert(key, (version, pair.clone()));
                let Some(pair) = pair else { continue };
                let own = tls.hosts.iter().flatten().filter(|host| !host.is_empty());
                let of_rules = spec.rules.iter().flatten().filter_map(|rule| rule.host.as_ref());
                let all: Vec<&String> =
                    if own.clone().next().is_some() { own.collect() } else { of_rules.collect() };
                for host in all {
                    hosts.entry(host.to_lowercase()).or_insert_with(|| pair.clone());
                }
            }
        }
        self.known = used;
        hosts
    }
}

fn pair((namespace, name): &Key, secret: &Secret) -> Option<Arc<CertifiedKey>> {
    let data =
        |key: &str| secret.data.as_ref().and_then(|data| data.get(key)).map_or(&[][..], |bytes| &bytes.0);
    let read = certified(data("tls.crt"), data("tls.key"));
    read.inspect_err(
        |error| tracing::warn!(namespace, name, %error, "a secret holds no certificate for an ingress"),
    )
    .ok()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn pem(name: &str) -> (String, String) {
        let made = rcgen::generate_simple_self_signed([name.to_string()]).unwrap();
        (made.cert.pem(), made.signing_key.serialize_pem())
    }

    #[test]
    fn hosts_have_their_certificates_and_others_the_default() {
        let (cert, key) = pem("default");
        let resolver = Resolver::new(certified(cert.as_bytes(), key.as_bytes()).unwrap());
        let ingress = json!({"metadata": {"namespace": "shop", "name": "web"}, "spec": {
            "rules": [{"host": "blue.example.com"}],
            "tls": [{"secretName": "named", "hosts": ["Green.example.com", "*.wild.example.com"]}, {"secretName": "rules"}, {"secretName": "bad"}, {"secretName": "none"}],
        }});
        let ingress = [Arc::new(serde_json::from_value(ingress).unwrap())];
        let mut made: BTreeMap<String, Arc<Secret>> = BTreeMap::new();
        for name in ["named", "rules", "bad"] {
            let (cert, key) = pem(name);
            let mut secret = Secret::default();
            secret.metadata.resource_version = Some("1".into());
            let cert = if name == "bad" { "x".into() } else { cert };
            let bytes = |text: String| wasmk_api::k8s_openapi::ByteString(text.into_bytes());
            secret.data = Some([("tls.crt".into(), bytes(cert)), ("tls.key".into(), bytes(key))].into());
            made.insert(name.into(), Arc::new(secret));
        }
        let mut reader = Reader::default();
        let hosts = reader.read(&ingress, |_, name| made.get(name).cloned());
        let (named, rules) = (hosts["green.example.com"].clone(), hosts["blue.example.com"].clone());
        resolver.set(hosts);
        let default = resolver.find(None);
        for (name, expect) in [
            ("green.example.com", &named),
            ("GREEN.example.com", &named),
            ("a.wild.example.com", &named),
            ("a.b.wild.example.com", &default),
            ("blue.example.com", &rules),
            ("elsewhere", &default),
        ] {
            assert!(Arc::ptr_eq(&resolver.find(Some(name)), expect), "{name}");
        }
        let again = reader.read(&ingress, |_, name| made.get(name).cloned());
        assert!(Arc::ptr_eq(&again["green.example.com"], &named), "what has not changed is not read again");
    }
}
