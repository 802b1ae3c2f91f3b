//! A node whose cluster is elsewhere.

use std::{ffi::OsString, path::PathBuf, str::FromStr, sync::Arc, time::Duration};

use anyhow::{Context, Result};
use arc_swap::ArcSwap;
use hyper_util::rt::TokioIo;
use k8s_openapi::api::core::v1::Taint;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject};
use tokio::net::TcpStream;
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tonic::transport::{Channel, Endpoint as Remote, Uri};
use wasmk_net::tunnel;
use wasmk_node::{
    ImageCollection, Node, Thresholds,
    wasm::{Isolation, WasmEngine},
};
use wasmk_wall::Wall;

use crate::{data_dir::DataDir, door, join::Identity, rotating::Rotating};

/// Longest time for pods to end when the agent stops.
const STOP: Duration = Duration::from_secs(30);
/// Silence after which the connection to the cluster is tried with a ping.
const KEEP_ALIVE: Duration = Duration::from_secs(20);
/// Longest wait for a connection to the cluster.
const CONNECT: Duration = Duration::from_secs(10);

/// How often the agent looks whether its certificate is in its last third of life.
const LOOK: Duration = Duration::from_secs(60);

/// A running agent.
pub struct Agent {
    node: Node,
    stop: CancellationToken,
    tasks: TaskTracker,
}

impl Agent {
    /// Starts the node and keeps it connected. Does not wait for the cluster.
    ///
    /// # Errors
    /// When the runtime, the node's directories or its credentials cannot be used.
    pub async fn start(
        name: &str,
        data: &DataDir,
        identity: &Identity,
        options: &NodeOptions,
    ) -> Result<Self> {
        let client = Rotating::new(identity.client().await?);
        let node = node(name, data, client.client(), options).await?;
        let (stop, tasks) = (CancellationToken::new(), TaskTracker::new());
        let router = node.router();
        let serve = move |stream| wasmk_node::serve_stream(router.clone(), stream);
        let (server, _, _) = identity.parts()?;
        let tls = Arc::new(ArcSwap::new(tls(identity)?));
        let (channel, uplink) = (channel(&server, tls.clone())?, tunnel::Uplink::default());
        tasks.spawn(tunnel::run(channel, name.to_string(), serve, uplink.clone(), stop.clone()));
        tasks.spawn(door::keep(client.client(), uplink, stop.clone()));
        let renewal =
            Renewal { name: name.into(), data: data.clone(), identity: identity.clone(), client, tls };
        tasks.spawn(renewal.run(stop.clone()));
        tasks.close();
        Ok(Self { node, stop, tasks })
    }

    /// Stops pods and tasks.
    pub async fn shutdown(self) {
        self.node.shutdown(STOP).await;
        self.stop.cancel();
        self.tasks.wait().await;
    }
}

/// Keeps the node's certificate good.
struct Renewal {
    name: String,
    data: DataDir,
    identity: Identity,
    client: Rotating,
    tls: Arc<ArcSwap<rustls::ClientConfig>>,
}

impl Renewal {
    async fn run(mut self, stop: CancellationToken) {
        loop {
            let look = async {
                tokio::time::sleep(LOOK).await;
                self.once().await
            };
            let outcome = tokio::select! {
                () = stop.cancelled() => return,
                outcome = look => outcome,
            };
            if let Err(error) = outcome {
                let error = format!("{error:#}");
                tracing::warn!(error, "the node's certificate could not be renewed; trying again");
            }
        }
    }

    async fn once(&mut self) -> Result<()> {
        let now = time::OffsetDateTime::now_utc();
        if !self.identity.is_due(now)? {
            return Ok(());
        }
        let renewed = self.identity.renew(&self.client.client(), &self.name, self.data.path()).await?;
        self.client.replace(renewed.client().await?);
        self.tls.store(tls(&renewed)?);
        self.identity = renewed;
        tracing::info!("the node has a new certificate");
        Ok(())
    }
}

/// How the node proves itself, and whom it believes.
fn tls(identity: &Identity) -> Result<Arc<rustls::ClientConfig>> {
    let (_, ca, pair) = identity.parts()?;
    let mut roots = rustls::RootCertStore::empty();
    for authority in CertificateDer::pem_slice_iter(ca.as_bytes()) {
        roots.add(authority?)?;
    }
    let chain = CertificateDer::pem_slice_iter(pair.cert.as_bytes()).collect::<Result<Vec<_>, _>>()?;
    let key = PrivateKeyDer::from_pem_slice(pair.key.as_bytes())?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots)
        .with_client_auth_cert(chain, key)?;
    config.alpn_protocols = vec![b"h2".to_vec()];
    Ok(Arc::new(config))
}

/// A connection to the cluster by the node's present certificate, made when it is needed.
fn channel(server: &str, tls: Arc<ArcSwap<rustls::ClientConfig>>) -> Result<Channel> {
    let uri: Uri = server.parse().with_context(|| format!("{server} is no URL"))?;
    let host = uri.host().with_context(|| format!("{server} names no host"))?.to_owned();
    let port = uri.port_u16().unwrap_or(443);
    let bare = host.trim_start_matches('[').trim_end_matches(']').to_owned();
    let name =
        ServerName::try_from(bare.clone()).with_context(|| format!("{host} is no name of a server"))?;
    // The connector speaks TLS itself, by the certificate of the moment.
    let connect = tower::service_fn(move |_: Uri| {
        let (tls, name, bare) = (tls.load_full(), name.clone(), bare.clone());
        async move {
            let stream = TcpStream::connect((bare.as_str(), port)).await?;
            let stream = tokio_rustls::TlsConnector::from(tls).connect(name, stream).await?;
            Ok::<_, std::io::Error>(TokioIo::new(stream))
        }
    });
    let endpoint = Remote::from_shared(format!("http://{host}:{port}"))?
        .connect_timeout(CONNECT)
        .http2_keep_alive_interval(KEEP_ALIVE)
        .keep_alive_while_idle(true);
    Ok(endpoint.connect_with_connector_lazy(connect))
}

/// What tells agents of one machine which users the workers of the others are.
const WORKERS_USERS: &str = "/run/wasmk-users";

/// Where a container runtime usually is.
const RUNTIME_SOCKETS: [&str; 2] = ["/run/containerd/containerd.sock", "/run/crio/crio.sock"];

/// What a node is told by flags.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct NodeOptions {
    /// Socket of the container runtime for OCI containers, `unix:///...`, or `none` [default: containerd's or
    /// CRI-O's, where this user may use it]
    #[arg(long, value_name = "URL")]
    pub container_runtime_endpoint: Option<Endpoint>,
    /// Directory of pod manifests that the node runs by itself (static pods)
    #[arg(long, value_name = "DIR")]
    pub pod_manifest_path: Option<PathBuf>,
    /// Directory of links to the containers' logs, named POD_NAMESPACE_CONTAINER-ID.log as collectors of logs
    /// expect them in /var/log/containers [default: node/logs/containers in the data directory]
    #[arg(long, value_name = "DIR")]
    pub container_log_dir: Option<PathBuf>,
    /// Directory where device plugins register, at the socket kubelet.sock; plugins expect /var/lib/kubelet/device-plugins
    /// [default: node/device-plugins in the data directory]
    #[arg(long, value_name = "DIR")]
    pub device_plugin_dir: Option<PathBuf>,
    /// What is to be left of the node's resources before pods are evicted, as kubelets take it:
    /// memory.available<64Mi,nodefs.available<256Mi,pid.available<200
    #[arg(long, value_name = "LIST", default_value = "", hide_default_value = true)]
    pub eviction_hard: Thresholds,
    /// Use of the disk in percent above which images that nothing uses are removed
    #[arg(long, value_name = "PERCENT", default_value_t = 85, value_parser = clap::value_parser!(u8).range(0..=100))]
    pub image_gc_high_threshold: u8,
    /// Seconds that an image is to be unused before it is removed
    #[arg(long, value_name = "SECONDS", default_value_t = 120)]
    pub minimum_image_ttl: u64,
    /// Where images of a registry are looked for first: `docker.io=mirror.example.com`; for Wasm and the files of
    /// images, container runtimes have mirrors of their own
    #[arg(long, value_name = "REGISTRY=MIRROR", value_delimiter = ',', value_parser = mirror)]
    pub registry_mirror: Vec<(String, String)>,
    /// Registries spoken to without TLS, `host` or `host:port`, beside those on this machine
    #[arg(long, value_name = "HOST", value_delimiter = ',')]
    pub plain_http_registry: Vec<String>,
    /// Where WebAssembly runs: `none` is in this process, `process` in processes of its own, one for each namespace
    /// and one for each container with volumes, which may do nothing but that. A pod's runtimeClassName
    /// `wasmtime-isolated` asks for the latter on any node
    #[arg(long, value_name = "HOW", default_value = "none")]
    pub wasm_isolation: WasmIsolation,
    /// Pods on the node at a time
    #[arg(long, value_name = "N", default_value_t = wasmk_node::DEFAULT_MAX_PODS)]
    pub max_pods: u32,
    /// Taints of the node when it is registered: `key=value:Effect`, `key:Effect`
    #[arg(long, value_name = "TAINTS", value_delimiter = ',', value_parser = taint)]
    pub register_with_taints: Vec<Taint>,
}

/// Where WebAssembly runs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum WasmIsolation {
    /// In the agent's own process.
    #[default]
    None,
    /// In processes behind a second wall.
    Process,
}

/// A registry and its mirror.
fn mirror(text: &str) -> Result<(String, String), String> {
    let pair = text.split_once('=').filter(|(of, at)| !of.is_empty() && !at.is_empty());
    let plain = pair.filter(|(of, at)| !of.contains('/') && !at.contains('/'));
    let (of, at) = plain.ok_or("`registry=mirror` was expected, both as `host` or `host:port`")?;
    Ok((of.into(), at.into()))
}

/// A taint as kubelet's flag has it.
fn taint(text: &str) -> Result<Taint, String> {
    let expected = || "`key=value:Effect` or `key:Effect` was expected".to_owned();
    let (pair, effect) = text.split_once(':').ok_or_else(expected)?;
    let (key, value) = pair.split_once('=').map_or((pair, None), |(key, value)| (key, Some(value)));
    if key.is_empty() || !matches!(effect, "NoSchedule" | "PreferNoSchedule" | "NoExecute") {
        return Err(expected());
    }
    let value = value.filter(|v| !v.is_empty()).map(Into::into);
    Ok(Taint { key: key.into(), value, effect: effect.into(), time_added: None })
}

/// A container runtime's socket, or that there is none.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Endpoint {
    /// No containers.
    None,
    /// At that path.
    Socket(PathBuf),
}

impl FromStr for Endpoint {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let path = text.strip_prefix("unix://").unwrap_or(text);
        match path {
            "none" => Ok(Self::None),
            path if path.starts_with('/') => Ok(Self::Socket(path.into())),
            _ => Err("`unix:///path/to/socket` or `none` was expected".into()),
        }
    }
}

impl NodeOptions {
    /// Flags that make other nodes on this machine like this one. What is this node's alone is not among them: its static
    /// pods, its taints, and directories that no two nodes can share.
    pub(crate) fn for_agents(&self) -> Vec<OsString> {
        let mut flags: Vec<OsString> = Vec::new();
        let mut flag = |name: &str, value: &str| flags.extend([name.into(), value.into()]);
        match &self.container_runtime_endpoint {
            Some(Endpoint::None) => flag("--container-runtime-endpoint", "none"),
            Some(Endpoint::Socket(path)) => {
                flag("--container-runtime-endpoint", &format!("unix://{}", path.display()));
            }
            None => {}
        }
        for (registry, mirror) in &self.registry_mirror {
            flag("--registry-mirror", &format!("{registry}={mirror}"));
        }
        for registry in &self.plain_http_registry {
            flag("--plain-http-registry", registry);
        }
        if self.wasm_isolation == WasmIsolation::Process {
            flag("--wasm-isolation", "process");
        }
        flag("--eviction-hard", &self.eviction_hard.to_string());
        flag("--image-gc-high-threshold", &self.image_gc_high_threshold.to_string());
        flag("--minimum-image-ttl", &self.minimum_image_ttl.to_string());
        flag("--max-pods", &self.max_pods.to_string());
        flags
    }

    /// The socket that is named, or a usual one that answers.
    fn socket(&self) -> Option<PathBuf> {
        match &self.container_runtime_endpoint {
            Some(Endpoint::Socket(path)) => Some(path.clone()),
            Some(Endpoint::None) => None,
            None => {
                let usual = RUNTIME_SOCKETS.iter().map(PathBuf::from);
                usual.into_iter().find(|p| std::os::unix::net::UnixStream::connect(p).is_ok())
            }
        }
    }
}

/// Starts a node that keeps its things in `node/` of the data directory.
///
/// # Errors
/// When the runtime or the node's directories cannot be used.
pub async fn node(name: &str, data: &DataDir, client: kube::Client, options: &NodeOptions) -> Result<Node> {
    let dir = data.join("node");
    let mut settings = wasmk_runtime::Settings::new(dir.join("runtime"));
    settings.mirrors.clone_from(&options.registry_mirror);
    settings.plain_http_registries.clone_from(&options.plain_http_registry);
    let bounds = settings.clone();
    let runtime = wasmk_runtime::Runtime::new(settings).context("the WebAssembly runtime cannot start")?;
    let isolation = isolation(&runtime, bounds, options.wasm_isolation).await?;
    let mut settings = wasmk_node::Settings::new(name, &dir);
    settings.container_runtime = options.socket();
    settings.manifests = options.pod_manifest_path.clone();
    settings.max_pods = options.max_pods;
    settings.taints.clone_from(&options.register_with_taints);
    settings.thresholds = options.eviction_hard;
    settings.images = ImageCollection {
        above_percent: options.image_gc_high_threshold,
        unused_for: Duration::from_secs(options.minimum_image_ttl),
    };
    if let Some(dir) = &options.device_plugin_dir {
        settings.device_plugins = dir.clone();
    }
    if let Some(links) = &options.container_log_dir {
        settings.log_links = links.clone();
    }
    let node = Node::start(settings, client, WasmEngine::with_isolation(runtime, isolation)).await;
    node.context("the node cannot start")
}

/// The command that this program is a worker by; no user ever gives it.
pub(crate) const WORKER: &str = "wasm-worker";

/// The second wall; when all guests are to be behind it, it has to stand.
async fn isolation(
    runtime: &wasmk_runtime::Runtime,
    bounds: wasmk_runtime::Settings,
    how: WasmIsolation,
) -> Result<Isolation> {
    let settings = wasmk_wall::Settings {
        // This very program, also when another was put into its place.
        program: "/proc/self/exe".into(),
        arguments: vec![WORKER.into()],
        bounds,
        users: nix::unistd::geteuid().is_root().then(|| WORKERS_USERS.into()),
    };
    let wall = Wall::new(runtime.clone(), settings);
    let always = how == WasmIsolation::Process;
    if always {
        let standing = wall.probe().await.context("WebAssembly cannot run in processes of its own")?;
        tracing::info!("WebAssembly runs in processes of its own, with these walls: {standing}");
    }
    Ok(Isolation { wall, always })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nodes_of_one_machine_are_told_the_same() {
        use clap::Parser;
        #[derive(Parser)]
        struct Line {
            #[command(flatten)]
            node: NodeOptions,
        }
        let shared = "x --container-runtime-endpoint unix:///r.sock --registry-mirror a=b,c=d --plain-http-registry e,f \
                      --wasm-isolation process --eviction-hard memory.available<1Gi,nodefs.available<2.5% \
                      --image-gc-high-threshold 70 --minimum-image-ttl 7 --max-pods 9";
        let read = |line: &[&str]| Line::try_parse_from(line).map_err(|e| e.to_string()).unwrap().node;
        let shared: Vec<_> = shared.split_whitespace().collect();
        let alone = ["--pod-manifest-path", "/m", "--register-with-taints", "a=b:NoExecute"];
        let passed = read(&[&shared[..], &alone].concat()).for_agents();
        let passed: Vec<_> = std::iter::once("x").chain(passed.iter().filter_map(|f| f.to_str())).collect();
        assert_eq!(format!("{:?}", read(&passed)), format!("{:?}", read(&shared)));
    }

    #[test]
    fn mirrors_name_two_hosts() {
        let pair = |text| mirror(text).ok();
        let expect = Some(("docker.io".to_owned(), "10.0.0.1:5000".to_owned()));
        assert_eq!(pair("docker.io=10.0.0.1:5000"), expect);
        for wrong in ["docker.io", "=x", "x=", "docker.io=http://x", "docker.io/library=x"] {
            assert_eq!(pair(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn taints_are_written_as_for_kubelet() {
        for (text, expect) in [
            ("a=b:NoSchedule", Some(("a", Some("b"), "NoSchedule"))),
            ("example.com/a:NoExecute", Some(("example.com/a", None, "NoExecute"))),
            ("a=:NoExecute", Some(("a", None, "NoExecute"))),
            ("a=b", None),
            (":NoSchedule", None),
            ("a:Never", None),
        ] {
            let read = taint(text).ok();
            let read = read.as_ref().map(|t| (t.key.as_str(), t.value.as_deref(), t.effect.as_str()));
            assert_eq!(read, expect, "{text}");
        }
    }

    #[test]
    fn endpoints_are_paths() {
        for (text, expect) in [
            ("unix:///run/x.sock", Some(Endpoint::Socket("/run/x.sock".into()))),
            ("/run/x.sock", Some(Endpoint::Socket("/run/x.sock".into()))),
            ("none", Some(Endpoint::None)),
            ("tcp://127.0.0.1:1", None),
        ] {
            assert_eq!(text.parse().ok(), expect, "{text}");
        }
    }
}
