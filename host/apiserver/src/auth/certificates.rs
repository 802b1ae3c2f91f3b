//! Client certificates: whether an authority that is trusted has signed them, and who they say it is.

use std::collections::HashMap;

use arc_swap::ArcSwap;
use parking_lot::RwLock;
use rustls_pki_types::CertificateDer;
use sha2::{Digest, Sha256};
use x509_parser::{
    certificate::X509Certificate,
    pem::Pem,
    prelude::{FromDer, X509Name},
};

/// Most verified certificates that are remembered.
const MAX_REMEMBERED: usize = 4096;
/// Most certificates between a client's and its authority's.
const MAX_INTERMEDIATE: usize = 4;

/// What a verified certificate says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Subject {
    /// The common name.
    pub(crate) name: String,
    /// The organisations.
    pub(crate) groups: Vec<String>,
    /// The certificate's SHA-256, in hex.
    pub(crate) fingerprint: String,
}

/// Subjects of certificates by hash, each with the second it ends in.
type Remembered = HashMap<[u8; 32], (i64, Subject)>;

/// A set of trusted authorities, which can be replaced as a whole.
pub(crate) struct Authorities {
    roots: ArcSwap<Vec<Vec<u8>>>,
    verified: RwLock<Remembered>,
}

impl Authorities {
    /// Those of a PEM bundle; what is no certificate is left out.
    pub(crate) fn new(bundle: &str) -> Self {
        Self { roots: ArcSwap::from_pointee(roots(bundle)), verified: RwLock::default() }
    }

    /// From now on others.
    pub(crate) fn replace(&self, bundle: &str) {
        let mut verified = self.verified.write();
        self.roots.store(std::sync::Arc::new(roots(bundle)));
        verified.clear();
    }

    /// Who the first certificate of a chain is of, if an authority vouches for it at that second.
    pub(crate) fn verify(&self, chain: &[CertificateDer<'_>], now: i64) -> Option<Subject> {
        let leaf = chain.first()?;
        let hash: [u8; 32] = Sha256::digest(leaf).into();
        if let Some((until, subject)) = self.verified.read().get(&hash) {
            return (*until > now).then(|| subject.clone());
        }
        let roots = self.roots.load_full();
        let (_, certificate) = X509Certificate::from_der(leaf).ok()?;
        let until = trusted(&certificate, chain.get(1..).unwrap_or_default(), &roots, now)?;
        let client_use =
            certificate.extended_key_usage().ok()?.is_none_or(|u| u.value.client_auth || u.value.any);
        if !client_use {
            return None;
        }
        let subject = subject(certificate.subject(), &hash)?;
        let mut known = self.verified.write();
        // Another set may have been put in place meanwhile; then nothing is remembered by the old one.
        if std::sync::Arc::ptr_eq(&roots, &self.roots.load()) {
            if known.len() >= MAX_REMEMBERED {
                known.clear();
            }
            known.insert(hash, (until, subject.clone()));
        }
        Some(subject)
    }
}

fn roots(bundle: &str) -> Vec<Vec<u8>> {
    let all = Pem::iter_from_buffer(bundle.as_bytes());
    all.filter_map(|pem| Some(pem.ok()?).filter(|p| p.label == "CERTIFICATE")).map(|p| p.contents).collect()
}

fn subject(name: &X509Name<'_>, hash: &[u8; 32]) -> Option<Subject> {
    let groups = name.iter_organization().filter_map(|o| o.as_str().ok()).map(Into::into).collect();
    let name = name.iter_common_name().next()?.as_str().ok()?.to_owned();
    Some(Subject { name, groups, fingerprint: hex::encode(hash) })
}

/// The second up to which a chain of signatures leads to one of the roots; `None` when none does.
fn trusted(
    leaf: &X509Certificate<'_>,
    between: &[CertificateDer<'_>],
    roots: &[Vec<u8>],
    now: i64,
) -> Option<i64> {
    let between: Vec<X509Certificate<'_>> = between
        .iter()
        .take(MAX_INTERMEDIATE)
        .filter_map(|der| X509Certificate::from_der(der).ok().map(|(_, c)| c))
        .collect();
    let roots: Vec<X509Certificate<'_>> =
        roots.iter().filter_map(|der| X509Certificate::from_der(der).ok().map(|(_, c)| c)).collect();
    let mut current = leaf;
    let mut until = i64::MAX;
    for _ in 0..=MAX_INTERMEDIATE {
        let validity = current.validity();
        if validity.not_before.timestamp() > now || validity.not_after.timestamp() <= now {
            return None;
        }
        until = until.min(validity.not_after.timestamp());
        let valid = |c: &X509Certificate<'_>| {
            c.validity().not_before.timestamp() <= now && c.validity().not_after.timestamp() > now
        };
        if let Some(root) = roots.iter().find(|root| valid(root) && signed(current, root)) {
            return Some(until.min(root.validity().not_after.timestamp()));
        }
        current = between.iter().find(|c| c.is_ca() && signed(current, c))?;
    }
    None
}

fn signed(certificate: &X509Certificate<'_>, by: &X509Certificate<'_>) -> bool {
    certificate.issuer() == by.subject() && certificate.verify_signature(Some(by.public_key())).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};

    struct Made {
        params: CertificateParams,
        key: KeyPair,
        der: CertificateDer<'static>,
        pem: String,
    }

    fn params(name: &str, ca: bool) -> CertificateParams {
        let mut params = CertificateParams::default();
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, name);
        params.distinguished_name.push(DnType::OrganizationName, "ops");
        params.not_before = rcgen::date_time_ymd(2020, 1, 1);
        params.not_after = rcgen::date_time_ymd(2030, 1, 1);
        if ca {
            params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        }
        params
    }

    fn make(name: &str, ca: bool, by: Option<&Made>) -> Made {
        let (params, key) = (params(name, ca), KeyPair::generate().unwrap());
        let cert = match by {
            None => params.self_signed(&key).unwrap(),
            Some(by) => params.signed_by(&key, &Issuer::from_params(&by.params, &by.key)).unwrap(),
        };
        Made { der: cert.der().clone(), pem: cert.pem(), params, key }
    }

    #[test]
    fn only_what_leads_to_a_trusted_authority() {
        let (ours, theirs) = (make("ours", true, None), make("theirs", true, None));
        let middle = make("middle", true, Some(&ours));
        let false_ca = make("false", false, Some(&ours));
        let set = Authorities::new(&ours.pem);
        let (inside, after) = (1_700_000_000, 1_900_000_000);
        let check = |chain: &[&Made], now: i64, expect: bool| {
            let chain: Vec<_> = chain.iter().map(|m| m.der.clone()).collect();
            assert_eq!(set.verify(&chain, now).is_some(), expect);
        };
        let direct = make("ann", false, Some(&ours));
        check(&[&direct], inside, true);
        check(&[&direct], after, false);
        check(&[&make("ann", false, Some(&theirs))], inside, false);
        let deep = make("ann", false, Some(&middle));
        check(&[&deep], inside, false);
        check(&[&deep, &middle], inside, true);
        check(&[&make("ann", false, Some(&false_ca)), &false_ca], inside, false);
        check(&[], inside, false);
        let found = set.verify(std::slice::from_ref(&direct.der), inside).unwrap();
        assert_eq!((found.name.as_str(), found.groups), ("ann", vec!["ops".to_owned()]));
    }

    #[test]
    fn another_set_takes_the_place_of_the_first() {
        let (old, new) = (make("old", true, None), make("new", true, None));
        let (by_old, by_new) = (make("a", false, Some(&old)), make("a", false, Some(&new)));
        let set = Authorities::new(&old.pem);
        let good = |m: &Made| set.verify(std::slice::from_ref(&m.der), 1_700_000_000).is_some();
        assert!(good(&by_old) && !good(&by_new));
        set.replace(&format!("{}{}", old.pem, new.pem));
        assert!(good(&by_old) && good(&by_new));
        set.replace(&new.pem);
        assert!(!good(&by_old) && good(&by_new));
    }
}
