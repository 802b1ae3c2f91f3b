//! `wasmk up`: a control plane, a node and a gateway in this process, or detached from it.

use std::{
    net::SocketAddr,
    os::unix::process::CommandExt,
    path::PathBuf,
    process::{Child, Command, Stdio},
    time::Duration,
};

use anyhow::{Context as _, Result, bail};
use tokio::{
    signal::unix::{SignalKind, signal},
    time::{Instant, sleep},
};

use wasmk_apiserver::ServiceRange;

use super::{
    Context, Exit,
    client::{default_data_dir, home},
    hint::WithHint,
    publish::IngressArgs,
    status,
    store::StoreArgs,
};
use crate::{
    agent::NodeOptions,
    agents,
    cluster::{Cluster, Settings},
    data_dir::{DataDir, Running},
    files, footprint, kubeconfig, own_log, scheduler_config,
    store::StoreSettings,
};

/// Longest wait of `--detach` for the process to be ready, without agents.
const PATIENCE: Duration = Duration::from_secs(60);
/// Added for each agent.
const PATIENCE_FOR_ONE: Duration = Duration::from_secs(10);

#[derive(Clone, Debug, clap::Args)]
pub(super) struct Args {
    /// Where everything is kept
    #[arg(long, value_name = "DIR", default_value_os_t = default_data_dir())]
    data_dir: PathBuf,
    /// Where the Kubernetes API listens; port 0 picks a free one
    #[arg(long, value_name = "IP:PORT", default_value = "127.0.0.1:6443")]
    api_addr: SocketAddr,
    /// Where functions are answered by Host header; port 0 picks a free one
    #[arg(long, value_name = "IP:PORT", default_value = "127.0.0.1:8080")]
    gateway_addr: SocketAddr,
    /// Where the OCI registry listens; port 0 picks a free one
    #[arg(long, value_name = "IP:PORT", default_value = "127.0.0.1:5050")]
    registry_addr: SocketAddr,
    #[command(flatten)]
    ingress: IngressArgs,
    /// More names or addresses for the API's certificate
    #[arg(long, value_name = "NAME", value_delimiter = ',')]
    tls_san: Vec<String>,
    /// Name of this machine's node [default: the host's name]
    #[arg(long, value_name = "NAME")]
    node_name: Option<String>,
    /// Serve the API without a node on this machine
    #[arg(long)]
    no_node: bool,
    #[command(flatten)]
    node: NodeOptions,
    /// Nodes beside it, each a `wasmk agent` on this machine, named after it with `-agent-0` and so on; 0 makes those of an
    /// earlier start go [default: as many as at the last start]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(0..=i64::from(agents::MOST)))]
    agents: Option<u16>,
    /// Keep ordinary pods off this machine's node, for clusters with agents: label and taint
    /// `node-role.kubernetes.io/control-plane`
    #[arg(long)]
    control_plane: bool,
    /// Controllers to run: `*` for all, `name`, `-name` to leave one out, `-*` for none
    #[arg(long, value_name = "LIST", value_delimiter = ',', default_value = "*", allow_hyphen_values = true)]
    controllers: Vec<String>,
    /// The scheduler's profiles: a KubeSchedulerConfiguration, as kube-scheduler takes it
    #[arg(long, value_name = "FILE")]
    scheduler_config: Option<PathBuf>,
    #[command(flatten)]
    store: StoreArgs,
    /// What is encrypted in the store, and with which keys: an EncryptionConfiguration, as kube-apiserver takes it
    #[arg(long, value_name = "FILE")]
    encryption_provider_config: Option<PathBuf>,
    /// How long Events are kept after they were written last; 0 for ever
    #[arg(long, value_name = "DURATION", default_value = "1h", value_parser = super::access::duration)]
    event_ttl: Duration,
    /// Start an empty store with what is in a snapshot
    #[arg(long, value_name = "FILE")]
    from_snapshot: Option<PathBuf>,
    /// Domain of functions' host names
    #[arg(long, value_name = "DOMAIN", default_value = "example.com")]
    domain: String,
    /// Where pods get their addresses from; two clusters on one machine need parts of the default
    #[arg(long, value_name = "CIDR", default_value = "127.42.0.0/16", value_parser = pod_range)]
    pod_cidr: String,
    /// Length of the prefix of each node's part of the pods' range, at most 30; without it 20, for 4,094 pods, or
    /// else so long that the range has four parts
    #[arg(long, alias = "node-cidr-mask-size-ipv4", value_name = "BITS", value_parser = clap::value_parser!(u8).range(8..=30))]
    node_cidr_mask_size: Option<u8>,
    /// Where services get their addresses from; two clusters on one machine need parts of the default
    #[arg(long, alias = "service-cluster-ip-range", value_name = "CIDR", default_value = "127.43.0.0/16", value_parser = service_range)]
    service_cidr: ServiceRange,
    /// Ports that services get on nodes
    #[arg(long, value_name = "FIRST-LAST", default_value = "30000-32767", value_parser = port_range)]
    service_node_port_range: (u16, u16),
    /// Add a context `wasmk` to ~/.kube/config (or to FILE) and make it current
    #[arg(long, value_name = "FILE", num_args = 0..=1)]
    merge_kubeconfig: Option<Option<PathBuf>>,
    #[command(flatten)]
    access: super::access::AccessArgs,
    /// Return when it is ready and leave it running; output goes to wasmk.log in the data directory
    #[arg(long)]
    detach: bool,
}

pub(super) async fn run(args: Args, cx: &Context) -> Result<Exit> {
    let data = DataDir::new(&args.data_dir);
    let merge = args.merge_kubeconfig.clone();
    if !args.detach {
        return foreground(args, cx).await;
    }
    let agents = args.agents.map_or_else(|| data.agents(), usize::from);
    let patience = PATIENCE + PATIENCE_FOR_ONE * u32::try_from(agents)?;
    let running = detached(&data, patience).await?;
    announce(cx, &data, &running, merge)?;
    Ok(Exit::Done)
}

async fn foreground(args: Args, cx: &Context) -> Result<Exit> {
    let data = DataDir::new(&args.data_dir);
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let merge = args.merge_kubeconfig.clone();
    let cluster = Cluster::start(settings(args)?).await?;
    announce(cx, &data, cluster.running(), merge)?;
    tokio::spawn(own_log::keep_short(data.join("wasmk.log")));
    tokio::spawn(footprint::keep_small());
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => cx.out.note("stopping; press Ctrl-C again to stop at once"),
        failed = cluster.failed() => {
            cluster.shutdown().await;
            bail!("a part that must not stop has stopped: {failed}")
        }
    }
    tokio::select! {
        () = cluster.shutdown() => {}
        _ = interrupt.recv() => bail!("stopped at once; nothing acknowledged is lost"),
    }
    Ok(Exit::Done)
}

fn settings(args: Args) -> Result<Settings> {
    let data = DataDir::new(args.data_dir);
    let name = args.node_name.unwrap_or_else(hostname);
    let agents = args.agents.map_or_else(|| data.agents(), usize::from);
    let node_mask = node_mask(&args.pod_cidr, args.node_cidr_mask_size)?;
    room_for_nodes(agents + usize::from(!args.no_node), &args.pod_cidr, node_mask)?;
    Ok(Settings {
        access: args.access.read()?,
        data,
        api: args.api_addr,
        gateway: args.gateway_addr,
        registry: args.registry_addr,
        ingress: args.ingress.addresses()?,
        names: args.tls_san,
        agents: (0..agents).map(|index| format!("{name}-agent-{index}")).collect(),
        node: (!args.no_node).then_some(name),
        node_options: args.node,
        control_plane: args.control_plane,
        controllers: args.controllers,
        scheduler: args
            .scheduler_config
            .as_deref()
            .map(scheduler_config::read)
            .transpose()?
            .unwrap_or_default(),
        store: StoreSettings {
            encryption: args.encryption_provider_config,
            snapshot: args.from_snapshot,
            ..args.store.settings()
        },
        event_ttl: args.event_ttl,
        domain: args.domain,
        node_mask,
        pod_range: args.pod_cidr,
        service_range: args.service_cidr,
        node_ports: args.service_node_port_range,
    })
}

/// A range of IPv4 addresses that pods can have: not where this machine itself is.
fn pod_range(text: &str) -> Result<String, String> {
    let range =
        ServiceRange::parse(text).ok_or("expected a range of IPv4 addresses such as 127.42.0.0/16")?;
    if range.base.octets()[0] == 127 && (range.base.octets()[1] == 0 || range.prefix < 16) {
        return Err(
            "pods cannot be in 127.0.0.0/16, which is this machine itself; 127.42.0.0/16 is free".into()
        );
    }
    Ok(text.to_owned())
}

/// Length of the prefix of a node's part of the pods' range: that asked for, or room for 4,094 pods, or else a quarter.
fn node_mask(range: &str, asked: Option<u8>) -> Result<u8> {
    let length = ServiceRange::parse(range).context("the pods' range is none")?.prefix;
    if let Some(asked) = asked.filter(|asked| *asked < length) {
        bail!(
            "--node-cidr-mask-size {asked} is larger than the whole of --pod-cidr {range}: {length} or more was expected"
        );
    }
    Ok(asked.unwrap_or(20.max(length.saturating_add(2))))
}

/// Refuses more nodes than the pods' range has parts.
fn room_for_nodes(nodes: usize, range: &str, mask: u8) -> Result<()> {
    let length = ServiceRange::parse(range).context("the pods' range is none")?.prefix;
    let parts = 1_usize << mask.saturating_sub(length).min(31);
    if nodes > parts {
        bail!(
            "{nodes} nodes need as many parts of --pod-cidr {range}, which has {parts} of /{mask}: give it a larger range, \
             or --node-cidr-mask-size a larger number"
        );
    }
    Ok(())
}

fn service_range(text: &str) -> Result<ServiceRange, String> {
    ServiceRange::parse(text)
        .ok_or_else(|| "an IPv4 range like 127.43.0.0/16 was expected, of 4 addresses or more".into())
}

/// `30000-32767`.
fn port_range(text: &str) -> Result<(u16, u16), String> {
    let range =
        text.split_once('-').and_then(|(first, last)| Some((first.parse().ok()?, last.parse().ok()?)));
    let range = range.filter(|(first, last)| *first > 0 && first <= last);
    range.ok_or_else(|| "two ports like 30000-32767 were expected".into())
}

/// This machine's name, as a node may be called.
pub(super) fn hostname() -> String {
    let name = nix::unistd::gethostname().ok().and_then(|n| n.into_string().ok()).unwrap_or_default();
    let name: String = name
        .to_lowercase()
        .chars()
        .map(|c| if c.is_ascii_alphanumeric() || c == '.' { c } else { '-' })
        .collect();
    match name.trim_matches(['-', '.']) {
        "" => "node".into(),
        name => name.into(),
    }
}

/// Starts this program again without `--detach`, on its own, and waits until it is ready.
async fn detached(data: &DataDir, patience: Duration) -> Result<Running> {
    if let Some(running) = data.running()? {
        bail!("already running in {} (process {})", data.path().display(), running.pid);
    }
    files::private_dir(data.path())?;
    let path = data.join("wasmk.log");
    let log = own_log::open(&path).with_context(|| format!("cannot write {}", path.display()))?;
    let args = std::env::args_os().skip(1).filter(|a| a != "--detach");
    let mut child = Command::new(std::env::current_exe()?)
        .args(args)
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log)
        .process_group(0)
        .spawn()
        .context("cannot start the detached process")?;
    let deadline = Instant::now() + patience;
    while Instant::now() < deadline {
        failed(&mut child, &path)?;
        if let Some(running) = data.running()?
            && status::is_ready(data, &running).await
        {
            return Ok(running);
        }
        sleep(Duration::from_millis(10)).await;
    }
    let _ = child.kill();
    Err(anyhow::anyhow!("it was not ready within {} s", patience.as_secs()))
        .hint(|| format!("its output is in {}", path.display()))
}

/// Passes on what the detached process said, when it has ended.
fn failed(child: &mut Child, log: &std::path::Path) -> Result<()> {
    let Some(status) = child.try_wait()? else { return Ok(()) };
    let said = files::read_if_there(log)?.unwrap_or_default();
    let said =
        said.lines().filter_map(|l| l.strip_prefix("error: ").or_else(|| l.strip_prefix("  caused by: ")));
    match said.collect::<Vec<_>>().join(": ") {
        why if why.is_empty() => {
            bail!("the detached process ended at once ({status}); see {}", log.display())
        }
        why => bail!("{why}"),
    }
}

fn announce(cx: &Context, data: &DataDir, running: &Running, merge: Option<Option<PathBuf>>) -> Result<()> {
    cx.out.columns(&status::rows(data, running, true)?);
    cx.out.line(format!("kubeconfig   {}", data.kubeconfig().display()));
    if let Some(target) = merge {
        let target = target.unwrap_or_else(|| home().join(".kube/config"));
        let text = files::read_if_there(&data.kubeconfig())?.unwrap_or_default();
        kubeconfig::merge(&target, &serde_yaml::from_str(&text)?)?;
        cx.out.line(format!("context      {} (added to {})", kubeconfig::CONTEXT, target.display()));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_has_room_for_its_pods() {
        let check = |range: &str, asked: Option<u8>, expect: u8| {
            assert_eq!(node_mask(range, asked).unwrap(), expect, "{range} {asked:?}");
        };
        check("127.42.0.0/16", None, 20);
        check("127.42.64.0/18", None, 20);
        check("127.42.4.0/22", None, 24);
        check("127.42.0.0/16", Some(17), 17);
        let error = node_mask("127.42.4.0/22", Some(21)).unwrap_err().to_string();
        assert!(error.starts_with("--node-cidr-mask-size 21 is larger than"), "{error}");
    }

    #[test]
    fn nodes_have_parts_of_the_range() {
        assert!(room_for_nodes(16, "127.42.0.0/16", 20).is_ok());
        assert!(room_for_nodes(4, "127.42.4.0/22", 24).is_ok());
        let error = room_for_nodes(5, "127.42.4.0/22", 24).unwrap_err().to_string();
        assert!(
            error.starts_with("5 nodes need as many parts of --pod-cidr 127.42.4.0/22, which has 4"),
            "{error}"
        );
    }

    #[test]
    fn the_api_has_its_usual_port() {
        use clap::Parser;
        #[derive(Parser)]
        struct Line {
            #[command(flatten)]
            args: Args,
        }
        assert_eq!(Line::parse_from(["up"]).args.api_addr.port(), 6443);
    }

    #[test]
    fn ranges() {
        assert_eq!(port_range("30000-30010"), Ok((30_000, 30_010)));
        for bad in ["30000", "2-1", "0-5", "a-b", "1-70000"] {
            assert!(port_range(bad).is_err(), "{bad}");
        }
        assert!(service_range("127.43.4.0/22").is_ok() && service_range("127.43.4.0").is_err());
    }
}
