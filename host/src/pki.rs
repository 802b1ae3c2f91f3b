//! The cluster's certificates and keys, made at the first start and kept in the data directory.
//!
//! One certificate authority signs everything: the API's serving certificate, the
//! administrator's client certificate and, on request, the nodes'. Private keys are
//! readable by their owner only (0600). A leaf is made anew when it is missing, in its last
//! third of life, not covering a wanted name, or not signed by the present authority.
//!
//! The authority changes in three steps, so that nobody meets a certificate of one they do
//! not trust: the next is trusted, then it signs, and when nothing the old one signed can
//! be good any more, the old one is forgotten.

use std::{
    net::IpAddr,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyPair, KeyUsagePurpose,
};
use time::{Duration, OffsetDateTime};
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

use crate::files;

/// Life of the authority.
const CA_LIFE: Duration = Duration::days(3650);
/// Life of serving and client certificates.
pub const LEAF_LIFE: Duration = Duration::days(365);
/// How long another authority is trusted before it signs, so that everybody hears of it.
pub const OVERLAP: std::time::Duration = std::time::Duration::from_secs(24 * 3600);
/// The file names of the authorities that come and went, and of the plan of the change.
const NEXT: &str = "ca-next";
const OLD: &str = "ca-old";
const CHANGE: &str = "ca-change.json";
/// Clocks of other machines may be behind by this much.
const SKEW: Duration = Duration::minutes(5);

/// A certificate chain with its private key, both PEM.
#[derive(Clone, Debug)]
pub struct Pair {
    /// The certificate.
    pub cert: String,
    /// Its private key (PKCS#8).
    pub key: String,
}

/// What a leaf certificate says.
#[derive(Clone, Debug)]
pub struct Leaf<'a> {
    /// Common name: the user.
    pub user: &'a str,
    /// Organisation: the user's group; empty for none.
    pub group: &'a str,
    /// Names and addresses a server answers to; empty for a client.
    pub names: &'a [String],
}

/// What the time is.
pub type Now = fn() -> OffsetDateTime;

/// The directory of certificates and keys.
#[derive(Debug)]
pub struct Pki {
    dir: PathBuf,
    ca: Pair,
    bundle: String,
    now: Now,
}

/// When the next step of a change of the authority is due, in seconds since 1970.
#[derive(Debug, serde::Serialize, serde::Deserialize)]
struct Change {
    /// When the next authority begins to sign.
    switch_at: Option<i64>,
    /// When the old authority is no longer trusted.
    drop_at: Option<i64>,
}

impl Pki {
    /// Opens the directory, making the authority and the token key when they are not there.
    ///
    /// # Errors
    /// When a file cannot be read or written, or holds no certificate.
    pub fn open(dir: &Path) -> Result<Self> {
        Self::open_at(dir, OffsetDateTime::now_utc)
    }

    /// The same at another time.
    ///
    /// # Errors
    /// As [`Pki::open`].
    pub fn open_at(dir: &Path, now: Now) -> Result<Self> {
        files::private_dir(dir)?;
        let ca = match read_pair(dir, "ca")? {
            Some(pair) => pair,
            None => write_pair(dir, "ca", &authority(now())?)?,
        };
        let mut pki = Self { dir: dir.into(), ca, bundle: String::new(), now };
        pki.token_key()?;
        pki.read_bundle()?;
        Ok(pki)
    }

    /// The certificates (PEM) of every authority that is trusted, the one that signs first.
    pub fn ca_cert(&self) -> &str {
        &self.bundle
    }

    fn read_bundle(&mut self) -> Result<()> {
        self.bundle.clone_from(&self.ca.cert);
        for file in [NEXT, OLD] {
            if let Some(more) = files::read_if_there(&self.dir.join(format!("{file}.crt")))? {
                self.bundle = crate::access::joined(&self.bundle, &more);
            }
        }
        Ok(())
    }

    /// Begins to change the authority: another is made and trusted at once, and signs after `overlap`.
    ///
    /// # Errors
    /// When a change is under way, or a file cannot be written.
    pub fn rotate(&mut self, overlap: std::time::Duration) -> Result<()> {
        if self.change()?.is_some() {
            anyhow::bail!("a change of the authority is under way already");
        }
        write_pair(&self.dir, NEXT, &authority((self.now)())?)?;
        let switch_at = (self.now)().unix_timestamp() + i64::try_from(overlap.as_secs())?;
        self.plan(&Change { switch_at: Some(switch_at), drop_at: None })?;
        self.read_bundle()
    }

    /// Takes the step of a change of the authority that is due, or begins one when the authority is in its last
    /// third of life. Whether anything changed since this directory was opened or this was last called.
    ///
    /// # Errors
    /// When a file cannot be read or written.
    pub fn advance(&mut self) -> Result<bool> {
        let before = self.bundle.clone();
        let now = (self.now)().unix_timestamp();
        match self.change()? {
            None if !lasts(&self.ca.cert, now)? => self.rotate(OVERLAP)?,
            Some(Change { switch_at: Some(at), .. }) if at <= now => self.switch(now)?,
            Some(Change { drop_at: Some(at), .. }) if at <= now => {
                files::remove_if_there(&self.dir.join(format!("{OLD}.crt")))?;
                files::remove_if_there(&self.dir.join(CHANGE))?;
            }
            _ => {}
        }
        self.read_bundle()?;
        Ok(self.bundle != before)
    }

    /// The next authority becomes the one that signs.
    fn switch(&mut self, now: i64) -> Result<()> {
        let Some(next) = read_pair(&self.dir, NEXT)? else {
            anyhow::bail!("{}/{NEXT}.crt or its key is missing", self.dir.display());
        };
        files::write_private(&self.dir.join(format!("{OLD}.crt")), self.ca.cert.as_bytes())?;
        self.ca = write_pair(&self.dir, "ca", &next)?;
        self.plan(&Change { switch_at: None, drop_at: Some(now + LEAF_LIFE.whole_seconds()) })?;
        for file in [format!("{NEXT}.crt"), format!("{NEXT}.key")] {
            files::remove_if_there(&self.dir.join(file))?;
        }
        Ok(())
    }

    fn change(&self) -> Result<Option<Change>> {
        let Some(text) = files::read_if_there(&self.dir.join(CHANGE))? else { return Ok(None) };
        serde_json::from_str(&text).map(Some).with_context(|| format!("{CHANGE} is damaged"))
    }

    fn plan(&self, change: &Change) -> Result<()> {
        files::write_private(&self.dir.join(CHANGE), &serde_json::to_vec(change)?)
    }

    /// The authority with its key, for the controller that signs nodes' requests.
    pub fn ca(&self) -> &Pair {
        &self.ca
    }

    /// The key that signs service-account tokens (PKCS#8 PEM, P-256).
    ///
    /// # Errors
    /// When the file cannot be read or written.
    pub fn token_key(&self) -> Result<String> {
        let path = self.dir.join("sa.key");
        if let Some(pem) = files::read_if_there(&path)? {
            return Ok(pem);
        }
        let pem = KeyPair::generate()?.serialize_pem();
        files::write_private(&path, pem.as_bytes())?;
        Ok(pem)
    }

    /// The leaf kept under that file name, made or renewed when needed.
    ///
    /// # Errors
    /// When a name is not a DNS name or address, or a file cannot be read or written.
    pub fn leaf(&self, file: &str, leaf: &Leaf<'_>) -> Result<Pair> {
        if let Some(pair) = read_pair(&self.dir, file)?
            && still_good(&pair.cert, leaf.names, (self.now)()).unwrap_or(false)
            && signed_by(&pair.cert, &self.ca.cert).unwrap_or(false)
        {
            return Ok(pair);
        }
        write_pair(&self.dir, file, &self.sign(leaf)?)
    }

    fn sign(&self, leaf: &Leaf<'_>) -> Result<Pair> {
        let mut params = CertificateParams::new(leaf.names.to_vec())
            .with_context(|| format!("a certificate for {:?}", leaf.names))?;
        params.distinguished_name = name(leaf.user, leaf.group);
        lasting(&mut params, LEAF_LIFE, (self.now)());
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::KeyEncipherment];
        params.extended_key_usages = vec![match leaf.names {
            [] => ExtendedKeyUsagePurpose::ClientAuth,
            _ => ExtendedKeyUsagePurpose::ServerAuth,
        }];
        params.use_authority_key_identifier_extension = true;
        let key = KeyPair::generate()?;
        let issuer = Issuer::from_ca_cert_pem(&self.ca.cert, KeyPair::from_pem(&self.ca.key)?)?;
        let cert = params.signed_by(&key, &issuer)?;
        Ok(Pair { cert: cert.pem(), key: key.serialize_pem() })
    }
}

/// A request for a client certificate: the request (PEM) and the new private key (PEM).
///
/// # Errors
/// When the key cannot be made.
pub fn client_request(user: &str, group: &str) -> Result<(String, String)> {
    let mut params = CertificateParams::default();
    params.distinguished_name = name(user, group);
    let key = KeyPair::generate()?;
    Ok((params.serialize_request(&key)?.pem()?, key.serialize_pem()))
}

/// When a certificate's life ends.
///
/// # Errors
/// When the text is no certificate.
pub fn expiry(pem: &str) -> Result<OffsetDateTime> {
    with_cert(pem, |cert| Ok(cert.validity().not_after.to_datetime()))
}

/// The user whose certificate it is: its common name.
///
/// # Errors
/// When the text is no certificate, or names nobody.
pub fn user(pem: &str) -> Result<String> {
    with_cert(pem, |cert| {
        let name = cert.subject().iter_common_name().next().context("the certificate names nobody")?;
        Ok(name.as_str().context("the certificate's name is no text")?.to_owned())
    })
}

fn authority(now: OffsetDateTime) -> Result<Pair> {
    let mut params = CertificateParams::default();
    params.distinguished_name = name("wasmk-ca", "");
    lasting(&mut params, CA_LIFE, now);
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages =
        vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign, KeyUsagePurpose::DigitalSignature];
    let key = KeyPair::generate()?;
    Ok(Pair { cert: params.self_signed(&key)?.pem(), key: key.serialize_pem() })
}

fn name(user: &str, group: &str) -> DistinguishedName {
    let mut name = DistinguishedName::new();
    if !group.is_empty() {
        name.push(DnType::OrganizationName, group);
    }
    name.push(DnType::CommonName, user);
    name
}

fn lasting(params: &mut CertificateParams, life: Duration, now: OffsetDateTime) {
    params.not_before = now - SKEW;
    params.not_after = now + life;
}

/// Whether a certificate has more than a third of its life left and covers the names.
fn still_good(pem: &str, names: &[String], now: OffsetDateTime) -> Result<bool> {
    if !lasts(pem, now.unix_timestamp())? {
        return Ok(false);
    }
    with_cert(pem, |cert| {
        let covered = match cert.subject_alternative_name()? {
            None => Vec::new(),
            Some(extension) => extension.value.general_names.iter().filter_map(text_of).collect(),
        };
        Ok(names.iter().all(|n| covered.contains(n)))
    })
}

/// Whether a certificate has more than a third of its life left.
///
/// # Errors
/// When the text is no certificate.
pub fn lasts(pem: &str, now: i64) -> Result<bool> {
    with_cert(pem, |cert| {
        let validity = cert.validity();
        let (from, to) = (validity.not_before.timestamp(), validity.not_after.timestamp());
        Ok(to - now > (to - from) / 3)
    })
}

fn signed_by(pem: &str, ca: &str) -> Result<bool> {
    with_cert(ca, |ca| with_cert(pem, |cert| Ok(cert.verify_signature(Some(ca.public_key())).is_ok())))
}

fn text_of(name: &GeneralName<'_>) -> Option<String> {
    match name {
        GeneralName::DNSName(name) => Some((*name).into()),
        GeneralName::IPAddress(bytes) => match bytes.len() {
            4 => <[u8; 4]>::try_from(*bytes).ok().map(|b| IpAddr::from(b).to_string()),
            16 => <[u8; 16]>::try_from(*bytes).ok().map(|b| IpAddr::from(b).to_string()),
            _ => None,
        },
        _ => None,
    }
}

fn with_cert<T>(pem: &str, read: impl FnOnce(&X509Certificate<'_>) -> Result<T>) -> Result<T> {
    let (_, pem) = x509_parser::pem::parse_x509_pem(pem.as_bytes()).context("not a PEM certificate")?;
    let (_, cert) = X509Certificate::from_der(&pem.contents).context("not a certificate")?;
    read(&cert)
}

fn read_pair(dir: &Path, file: &str) -> Result<Option<Pair>> {
    let cert = files::read_if_there(&dir.join(format!("{file}.crt")))?;
    let key = files::read_if_there(&dir.join(format!("{file}.key")))?;
    Ok(cert.zip(key).map(|(cert, key)| Pair { cert, key }))
}

fn write_pair(dir: &Path, file: &str, pair: &Pair) -> Result<Pair> {
    files::write_private(&dir.join(format!("{file}.key")), pair.key.as_bytes())?;
    files::write_private(&dir.join(format!("{file}.crt")), pair.cert.as_bytes())?;
    Ok(pair.clone())
}

/// The names an API server answers to, wherever it listens: loopback, this host's name,
/// the in-cluster names of the `kubernetes` service, and `extra`.
pub fn server_names(hostname: &str, service_ip: IpAddr, extra: &[String]) -> Vec<String> {
    let fixed = [
        "localhost",
        "127.0.0.1",
        "kubernetes",
        "kubernetes.default",
        "kubernetes.default.svc",
        "kubernetes.default.svc.cluster.local",
    ];
    let mut names: Vec<String> = fixed.map(String::from).into();
    names.push(service_ip.to_string());
    names.push(hostname.to_lowercase());
    names.extend(extra.iter().cloned());
    names.retain(|n| !n.is_empty());
    names.sort();
    names.dedup();
    names
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn leaves_are_kept_and_renewed_for_new_names() {
        let dir = tempfile::tempdir().unwrap();
        let pki = Pki::open(dir.path()).unwrap();
        let names = vec!["localhost".to_string(), "127.0.0.1".to_string()];
        let leaf = Leaf { user: "api", group: "", names: &names };
        let first = pki.leaf("api", &leaf).unwrap();
        let again = Pki::open(dir.path()).unwrap().leaf("api", &leaf).unwrap();
        assert_eq!(first.cert, again.cert);
        let more = vec!["10.0.0.1".to_string()];
        let renewed = pki.leaf("api", &Leaf { names: &more, ..leaf }).unwrap();
        assert_ne!(first.cert, renewed.cert);
    }

    thread_local! {
        static DAYS: std::cell::Cell<i64> = const { std::cell::Cell::new(0) };
    }

    fn later() -> OffsetDateTime {
        OffsetDateTime::now_utc() + Duration::days(DAYS.get())
    }

    #[test]
    fn leaves_are_renewed_in_their_last_third() {
        let dir = tempfile::tempdir().unwrap();
        let pki = Pki::open_at(dir.path(), later).unwrap();
        let leaf = Leaf { user: "admin", group: "system:masters", names: &[] };
        let first = pki.leaf("admin", &leaf).unwrap().cert;
        DAYS.set(200);
        assert_eq!(pki.leaf("admin", &leaf).unwrap().cert, first);
        DAYS.set(250);
        let second = pki.leaf("admin", &leaf).unwrap().cert;
        assert_ne!(second, first);
        assert!(expiry(&second).unwrap() > later() + Duration::days(360));
    }

    #[test]
    fn the_authority_changes_with_an_overlap() {
        let dir = tempfile::tempdir().unwrap();
        let mut pki = Pki::open_at(dir.path(), later).unwrap();
        let authorities = |pki: &Pki| pki.ca_cert().matches("BEGIN CERTIFICATE").count();
        let leaf = Leaf { user: "a", group: "", names: &[] };
        let by_old = pki.leaf("a", &leaf).unwrap().cert;
        assert!(!pki.advance().unwrap());
        pki.rotate(OVERLAP).unwrap();
        assert!(pki.rotate(OVERLAP).is_err());
        // Trusted at once, signing later; another process sees it too.
        assert_eq!((authorities(&pki), pki.leaf("a", &leaf).unwrap().cert == by_old), (2, true));
        assert_eq!(authorities(&Pki::open_at(dir.path(), later).unwrap()), 2);
        DAYS.set(2);
        assert!(pki.advance().unwrap());
        let by_new = pki.leaf("a", &leaf).unwrap().cert;
        assert_eq!((authorities(&pki), by_new == by_old), (2, false));
        assert!(signed_by(&by_new, &pki.ca().cert).unwrap());
        assert!(!pki.advance().unwrap());
        // Nothing the old one signed is good any more.
        DAYS.set(368);
        assert!(pki.advance().unwrap());
        assert_eq!(authorities(&pki), 1);
        // In its last third the authority is changed without being asked.
        DAYS.set(368 + 2500);
        assert!(pki.advance().unwrap());
        assert_eq!(authorities(&pki), 2);
    }

    #[test]
    fn keys_are_private() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        Pki::open(dir.path()).unwrap();
        for file in ["ca.key", "sa.key"] {
            let mode = std::fs::metadata(dir.path().join(file)).unwrap().permissions().mode();
            assert_eq!(mode & 0o777, 0o600, "{file}");
        }
    }
}
