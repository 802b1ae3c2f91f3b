//! What an API server is started with.

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use async_trait::async_trait;
use tokio::io::{AsyncRead, AsyncWrite};
use wasmk_api::{Object, Status, Timestamp};
use wasmk_store::Store;

use crate::{
    admission::AdmissionPlugins,
    auth::settings::{Authentication, Authorization, RequestHeader},
};

/// How long events live when nothing else is said.
const EVENT_TTL: Duration = Duration::from_secs(3600);

/// A byte stream to a node, over which HTTP/1.1 is spoken.
pub trait NodeStream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> NodeStream for T {}

/// Reaches the HTTP API of nodes.
#[async_trait]
pub trait NodeDialer: Send + Sync {
    /// Opens a stream to the node of that name.
    ///
    /// # Errors
    /// When the node is unknown or cannot be reached.
    async fn dial(&self, node: &str) -> std::io::Result<Box<dyn NodeStream>>;
}

/// A dialer that reaches no node, for servers without any.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoNodes;

#[async_trait]
impl NodeDialer for NoNodes {
    async fn dial(&self, node: &str) -> std::io::Result<Box<dyn NodeStream>> {
        Err(std::io::Error::new(std::io::ErrorKind::NotFound, format!("node {node} is not connected")))
    }
}

/// Defaults and rules of resources whose meaning another part of the program knows, called inside the process in
/// the place where admission webhooks are.
pub trait KindHook: Send + Sync {
    /// Whether it has a say in a resource (plural) of a group, empty for the core.
    fn applies(&self, group: &str, resource: &str) -> bool;

    /// Fills in what an object leaves open. `old` is the object before an update.
    fn mutate(&self, object: &mut Object, old: Option<&Object>, user: &str);

    /// Refuses an object that breaks a rule.
    ///
    /// # Errors
    /// With the refusal.
    fn validate(&self, object: &Object, old: Option<&Object>) -> Result<(), Status>;

    /// What whoever makes an object is warned of.
    fn warnings(&self, _object: &Object) -> Vec<String> {
        Vec::new()
    }
}

/// What `/version` says.
#[derive(Clone, Debug)]
pub struct VersionInfo {
    /// For instance `v1.36.2+wasmk.0.1.0`.
    pub git_version: String,
    /// The commit it was built from; may be empty.
    pub git_commit: String,
    /// When it was built; may be empty.
    pub build_date: String,
}

impl Default for VersionInfo {
    fn default() -> Self {
        Self {
            git_version: format!("v1.36.2+wasmk.{}", env!("CARGO_PKG_VERSION")),
            git_commit: String::new(),
            build_date: String::new(),
        }
    }
}

/// An IPv4 range of service addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ServiceRange {
    /// The first address, which is never given out.
    pub base: Ipv4Addr,
    /// The length of the prefix, at most 30.
    pub prefix: u8,
}

impl ServiceRange {
    /// Reads `127.43.0.0/16`; `None` when it is no such range.
    pub fn parse(text: &str) -> Option<Self> {
        let (base, prefix) = text.split_once('/')?;
        let (base, prefix): (Ipv4Addr, u8) = (base.parse().ok()?, prefix.parse().ok()?);
        let masked = u32::from(base) & u32::MAX.checked_shl(u32::from(32 - prefix.min(32))).unwrap_or(0);
        (8..=30).contains(&prefix).then_some(Self { base: masked.into(), prefix })
    }

    /// How many addresses it has.
    pub fn size(self) -> u32 {
        1 << (32 - u32::from(self.prefix))
    }

    /// The address at that offset.
    pub fn at(self, offset: u32) -> Ipv4Addr {
        Ipv4Addr::from(u32::from(self.base).wrapping_add(offset))
    }

    /// Whether an address is inside.
    pub fn contains(self, address: Ipv4Addr) -> bool {
        u32::from(address).wrapping_sub(u32::from(self.base)) < self.size()
    }
}

impl std::fmt::Display for ServiceRange {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.base, self.prefix)
    }
}

/// How the server proves itself to the servers of aggregated APIs, and to webhooks that ask for it. Empty texts: not
/// at all.
#[derive(Clone, Default)]
pub struct FrontProxy {
    /// Its client certificate, PEM.
    pub cert: String,
    /// The private key of that, PEM.
    pub key: String,
    /// The common name in the certificate, which those servers are told to accept.
    pub name: String,
    /// The authority that signed it, PEM; published to them.
    pub ca: String,
}

/// Another part of the control plane, whose state `componentstatuses` tells.
#[derive(Clone)]
pub struct Component {
    /// Its name there.
    pub name: &'static str,
    /// What is wrong with it at present, if anything.
    pub problem: Arc<dyn Fn() -> Option<String> + Send + Sync>,
}

/// A service without endpoints (`ExternalName`) that is served where this server runs, wherever that is.
#[derive(Clone, Debug)]
pub struct LocalService {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Where it listens, whatever its port.
    pub address: SocketAddr,
}

/// A file that is served below `/logs`.
#[derive(Clone, Debug)]
pub struct LogFile {
    /// The last part of its URL.
    pub name: String,
    /// Where it is; one that is not there is not listed.
    pub path: PathBuf,
}

/// The settings of an API server.
#[derive(Clone)]
pub struct Config {
    /// Where objects are kept.
    pub store: Arc<dyn Store>,
    /// How long events live after they were written last; zero for ever.
    pub event_ttl: Duration,
    /// Where ClusterIPs come from.
    pub service_range: ServiceRange,
    /// The first and last port of NodePort services.
    pub node_ports: (u16, u16),
    /// How nodes are reached.
    pub dialer: Arc<dyn NodeDialer>,
    /// The private key that signs service account tokens: PKCS#8 PEM, P-256 or RSA.
    pub service_account_key: String,
    /// The issuer of those tokens.
    pub issuer: String,
    /// The authorities (PEM) of client certificates; also published to pods.
    pub client_ca: String,
    /// The address clients reach the server at.
    pub advertise_address: IpAddr,
    /// The port clients reach the server at.
    pub advertise_port: u16,
    /// Services that are found in this process instead of where their objects say.
    pub local_services: Vec<LocalService>,
    /// How it proves itself to servers it calls.
    pub front_proxy: FrontProxy,
    /// What `/version` says.
    pub version: VersionInfo,
    /// Proxies that name users in headers.
    pub request_header: Option<RequestHeader>,
    /// Who is believed to be whom.
    pub authentication: Authentication,
    /// Who decides who may do what.
    pub authorization: Authorization,
    /// Which admission plugins are on.
    pub admission: AdmissionPlugins,
    /// What is remembered of requests; `None`: nothing.
    pub audit: Option<crate::audit::Settings>,
    /// Bearer tokens with the users they stand for.
    pub static_tokens: Vec<(String, crate::User)>,
    /// The parts beside the store that `componentstatuses` tells of.
    pub components: Vec<Component>,
    /// What `/logs` lists.
    pub logs: Vec<LogFile>,
    /// The present.
    pub clock: fn() -> Timestamp,
    /// Defaults and rules that other parts of the program bring.
    pub hooks: Vec<Arc<dyn KindHook>>,
}

impl Config {
    /// Settings with defaults for everything but the store and the keys.
    pub fn new(store: Arc<dyn Store>, service_account_key: String, client_ca: String) -> Self {
        Self {
            store,
            event_ttl: EVENT_TTL,
            service_range: ServiceRange { base: Ipv4Addr::new(127, 43, 0, 0), prefix: 16 },
            node_ports: (30_000, 32_767),
            dialer: Arc::new(NoNodes),
            service_account_key,
            issuer: "https://kubernetes.default.svc.cluster.local".into(),
            client_ca,
            advertise_address: IpAddr::V4(Ipv4Addr::LOCALHOST),
            advertise_port: 6443,
            local_services: Vec::new(),
            front_proxy: FrontProxy::default(),
            version: VersionInfo::default(),
            request_header: None,
            authentication: Authentication::default(),
            authorization: Authorization::default(),
            admission: AdmissionPlugins::default(),
            audit: None,
            static_tokens: Vec::new(),
            components: Vec::new(),
            logs: Vec::new(),
            clock: Timestamp::now,
            hooks: Vec::new(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn service_ranges() {
        let range = ServiceRange::parse("127.43.7.9/16").unwrap();
        assert_eq!(range.to_string(), "127.43.0.0/16");
        assert_eq!((range.size(), range.at(10).to_string()), (65_536, "127.43.0.10".into()));
        assert!(
            range.contains("127.43.255.1".parse().unwrap()) && !range.contains("127.44.0.1".parse().unwrap())
        );
        for text in ["1.2.3.4", "1.2.3.4/33", "1.2.3.4/31", "x/16", "::1/64"] {
            assert_eq!(ServiceRange::parse(text), None, "{text}");
        }
    }
}
