//! Where objects are kept: which store, how it is reached, what is encrypted on the way into it.

use std::{
    path::{Path, PathBuf},
    str::FromStr,
    sync::Arc,
};

use anyhow::{Context, Result, bail};
use wasmk_store::{Embedded, Etcd, EtcdTls, Memory, Sealed, Store};

use crate::encryption;

/// The port of an etcd that is named without one.
const ETCD_PORT: u16 = 2379;

/// Where objects are kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StoreKind {
    /// On this disk; survives everything.
    Embedded,
    /// In memory; gone when the process ends.
    Memory,
    /// In an etcd, by its members: `HOST:PORT`.
    Etcd(Vec<String>),
}

impl FromStr for StoreKind {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "embedded" => Ok(Self::Embedded),
            "memory" => Ok(Self::Memory),
            _ => {
                let hosts = text.strip_prefix("etcd://").filter(|hosts| !hosts.is_empty());
                let hosts = hosts.ok_or("`embedded`, `memory` or `etcd://HOST:PORT,...` was expected")?;
                hosts.split(',').map(member).collect::<Result<_, _>>().map(Self::Etcd)
            }
        }
    }
}

/// A member as it is dialled: with its port.
fn member(host: &str) -> Result<String, String> {
    let (name, port) = match host.rsplit_once(':') {
        // The colons of an IPv6 address are inside brackets.
        Some((name, port)) if !port.ends_with(']') => {
            let port = port.parse().map_err(|_| format!("`{host}` of the etcd has no usable port"))?;
            (name, port)
        }
        _ => (host, ETCD_PORT),
    };
    if name.is_empty() || name.contains('/') {
        return Err(format!("`{host}` is no member of an etcd; HOST or HOST:PORT was expected"));
    }
    Ok(format!("{name}:{port}"))
}

/// Which store, and how.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoreSettings {
    /// Where objects are kept.
    pub kind: StoreKind,
    /// Certificates of the authority that signed etcd's; without one, etcd is reached without TLS.
    pub etcd_ca: Option<PathBuf>,
    /// Certificate and key to show to etcd.
    pub etcd_identity: Option<(PathBuf, PathBuf)>,
    /// An EncryptionConfiguration.
    pub encryption: Option<PathBuf>,
    /// A snapshot to start from; the store must be empty.
    pub snapshot: Option<PathBuf>,
}

/// An open store.
pub(crate) struct Opened {
    /// As the API server uses it.
    pub(crate) store: Arc<dyn Store>,
    /// As it is kept: what is encrypted is seen encrypted.
    pub(crate) kept: Arc<dyn Store>,
    /// If it is on this disk, to be closed at the end.
    pub(crate) embedded: Option<Arc<Embedded>>,
}

impl StoreSettings {
    /// The embedded store with nothing special.
    pub fn new(kind: StoreKind) -> Self {
        Self { kind, etcd_ca: None, etcd_identity: None, encryption: None, snapshot: None }
    }

    /// Whether other servers may keep their objects in the same place.
    pub(crate) fn is_shared(&self) -> bool {
        matches!(self.kind, StoreKind::Etcd(_))
    }

    /// Opens the store; an embedded one is at `path`.
    ///
    /// # Errors
    /// When it cannot be opened or reached, a file that is named cannot be used, or something in the store
    /// cannot be decrypted.
    pub(crate) async fn open(&self, path: &Path) -> Result<Opened> {
        let rules = self.encryption.as_deref().map(encryption::read).transpose()?;
        let (kept, embedded) = self.open_kept(path).await?;
        let Some(rules) = rules else { return Ok(Opened { store: kept.clone(), kept, embedded }) };
        let sealed = Sealed::new(kept.clone(), rules);
        let file = self.encryption.clone().unwrap_or_default();
        let sealed = sealed.with_context(|| format!("cannot use {}", file.display()))?;
        let rewritten = sealed.reseal().await.with_context(|| {
            format!("cannot bring what is stored into the form that {} asks for", file.display())
        })?;
        if rewritten > 0 {
            tracing::info!(rewritten, "values rewritten with the first key of the encryption configuration");
        }
        Ok(Opened { store: Arc::new(sealed), kept, embedded })
    }

    async fn open_kept(&self, path: &Path) -> Result<(Arc<dyn Store>, Option<Arc<Embedded>>)> {
        match &self.kind {
            StoreKind::Memory => Ok((Arc::new(self.memory()?), None)),
            StoreKind::Etcd(_) => {
                let store = self.etcd().await?;
                if let Some(snapshot) = &self.snapshot {
                    restore_into(&store, snapshot).await?;
                }
                Ok((Arc::new(store), None))
            }
            StoreKind::Embedded => {
                if let Some(snapshot) = &self.snapshot {
                    let restored = Embedded::restore(path, open_file(snapshot)?);
                    restored.with_context(|| format!("cannot start from {}", snapshot.display()))?;
                }
                let opened = Embedded::open(path, Default::default());
                let (store, _) =
                    opened.with_context(|| format!("cannot open the store in {}", path.display()))?;
                let store = Arc::new(store);
                Ok((store.clone(), Some(store)))
            }
        }
    }

    fn memory(&self) -> Result<Memory> {
        let Some(snapshot) = &self.snapshot else { return Ok(Memory::new()) };
        Memory::restore(open_file(snapshot)?)
            .with_context(|| format!("cannot start from {}", snapshot.display()))
    }

    /// Connects to the etcd.
    ///
    /// # Errors
    /// When it cannot be reached, or certificates cannot be used.
    pub(crate) async fn etcd(&self) -> Result<Etcd> {
        let StoreKind::Etcd(members) = &self.kind else { bail!("the store is not an etcd") };
        let tls = self.etcd_tls()?;
        let scheme = if tls.is_some() { "https" } else { "http" };
        let endpoints: Vec<String> = members.iter().map(|member| format!("{scheme}://{member}")).collect();
        let store = Etcd::connect(&endpoints, tls).await;
        store.with_context(|| format!("cannot use the etcd at {}", endpoints.join(",")))
    }

    fn etcd_tls(&self) -> Result<Option<EtcdTls>> {
        let read = |path: &PathBuf| {
            std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))
        };
        let Some(ca) = &self.etcd_ca else {
            return match self.etcd_identity {
                Some(_) => {
                    bail!("--etcd-certfile needs --etcd-cafile: the etcd's own certificate is checked too")
                }
                None => Ok(None),
            };
        };
        let identity = match &self.etcd_identity {
            Some((certificate, key)) => Some((read(certificate)?, read(key)?)),
            None => None,
        };
        Ok(Some(EtcdTls { ca: read(ca)?, identity }))
    }
}

/// Fills an empty store of any kind from a snapshot.
///
/// # Errors
/// When the store is not empty, or the snapshot cannot be used.
pub(crate) async fn restore_into(store: &dyn Store, snapshot: &Path) -> Result<wasmk_store::SnapshotInfo> {
    let restored = wasmk_store::import(store, open_file(snapshot)?).await;
    restored.with_context(|| format!("cannot restore {}", snapshot.display()))
}

fn open_file(path: &Path) -> Result<std::fs::File> {
    std::fs::File::open(path).with_context(|| format!("cannot open {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_are_read_and_ports_filled_in() {
        let etcd = |members: &[&str]| Ok(StoreKind::Etcd(members.iter().map(ToString::to_string).collect()));
        for (text, expected) in [
            ("embedded", Ok(StoreKind::Embedded)),
            ("memory", Ok(StoreKind::Memory)),
            ("etcd://a", etcd(&["a:2379"])),
            ("etcd://a,b:1,10.0.0.1:2", etcd(&["a:2379", "b:1", "10.0.0.1:2"])),
            ("etcd://[::1],[::1]:7", etcd(&["[::1]:2379", "[::1]:7"])),
            ("etcd://", Err("expected")),
            ("etcd://a,,b", Err("HOST")),
            ("etcd://a:x", Err("port")),
            ("etcd://http://a:1", Err("member")),
            ("sqlite", Err("expected")),
        ] {
            match (text.parse::<StoreKind>(), expected) {
                (Ok(kind), Ok(expected)) => assert_eq!(kind, expected, "{text}"),
                (Err(error), Err(word)) => assert!(error.contains(word), "{text}: {error}"),
                (found, _) => panic!("{text}: {found:?}"),
            }
        }
    }
}
