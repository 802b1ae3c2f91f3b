//! Turns pods and their containers into the runtime's terms. Pure.

use std::{
    collections::HashMap,
    net::IpAddr,
    path::{Path, PathBuf},
};

use wasmk_api::{
    Quantity,
    k8s_openapi::api::core::v1::{
        Capabilities, Container, Pod, PodSecurityContext, PodSpec, SeccompProfile, SecurityContext,
    },
};
use wasmk_cri::v1::{
    Capability, CdiDevice, ContainerConfig, ContainerMetadata, Device as CriDevice, DnsConfig, ImageSpec,
    Int64Value, KeyValue, LinuxContainerConfig, LinuxContainerResources, LinuxContainerSecurityContext,
    LinuxPodSandboxConfig, LinuxSandboxSecurityContext, Mount as CriMount, MountPropagation, NamespaceMode,
    NamespaceOption, PodSandboxConfig, PodSandboxMetadata, PortMapping, Protocol, SecurityProfile,
    security_profile::ProfileType,
};

use super::image::User;
use crate::{
    engine::{Failure, Mount},
    pod::env::{CONFIG_ERROR, hostname},
};

/// Period of processor quotas, in microseconds.
const CPU_PERIOD: i64 = 100_000;
/// Smallest quota the kernel takes, in microseconds.
const CPU_QUOTA_MIN: i64 = 1000;
/// Shares of a whole core.
const CPU_SHARES: i64 = 1024;
/// Fewest shares the kernel takes.
const CPU_SHARES_MIN: i64 = 2;
/// Domain of the cluster's names.
const DOMAIN: &str = "cluster.local";

/// Paths that no container sees, unless it is privileged.
const MASKED: [&str; 11] = [
    "/proc/acpi",
    "/proc/asound",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/sys/firmware",
];
/// Paths that no container writes to, unless it is privileged.
const READ_ONLY: [&str; 5] = ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];

/// A device of this machine that a container is given.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Device {
    /// On this machine.
    pub host: PathBuf,
    /// In the container.
    pub guest: String,
    /// What may be done with it: some of `r`, `w` and `m`.
    pub permissions: String,
}

/// What one run of a container is given.
pub(crate) struct Identity<'a> {
    pub(crate) pod: &'a Pod,
    pub(crate) container: &'a Container,
    /// Counts its runs.
    pub(crate) attempt: u32,
    /// What the runtime calls its image.
    pub(crate) image: &'a str,
    /// Who the image's program runs as.
    pub(crate) user: &'a User,
    pub(crate) env: &'a [(String, String)],
    pub(crate) command: Option<Vec<String>>,
    pub(crate) args: Option<Vec<String>>,
    pub(crate) mounts: Vec<Mount>,
    pub(crate) devices: Vec<Device>,
    /// Devices by the names of the container device interface, which the runtime looks up.
    pub(crate) cdi: Vec<String>,
    /// Notes for the runtime and its hooks.
    pub(crate) annotations: HashMap<String, String>,
    /// Memory of the node in bytes, which the order of killing depends on.
    pub(crate) node_memory: i64,
}

fn spec(pod: &Pod) -> PodSpec {
    pod.spec.clone().unwrap_or_default()
}

/// The pod's sandbox.
pub(super) fn sandbox(
    pod: &Pod,
    attempt: u32,
    labels: HashMap<String, String>,
    logs: &Path,
    dns_server: Option<IpAddr>,
) -> PodSandboxConfig {
    let spec = spec(pod);
    let part = |s: &Option<String>| s.clone().unwrap_or_default();
    let meta = &pod.metadata;
    let (name, namespace, uid) = (part(&meta.name), part(&meta.namespace), part(&meta.uid));
    let host_network = spec.host_network == Some(true);
    let security = spec.security_context.clone().unwrap_or_default();
    let privileged = spec.containers.iter().chain(spec.init_containers.iter().flatten()).any(is_privileged);
    let sysctls = security.sysctls.iter().flatten().map(|s| (s.name.clone(), s.value.clone())).collect();
    PodSandboxConfig {
        log_directory: logs.join(format!("{namespace}_{name}_{uid}")).display().to_string(),
        metadata: Some(PodSandboxMetadata { name, uid, namespace, attempt }),
        // A host name needs a namespace of its own, which a pod on the host's network has not.
        hostname: if host_network { String::new() } else { hostname(pod) },
        dns_config: dns(pod, dns_server),
        port_mappings: if host_network { Vec::new() } else { port_mappings(&spec) },
        labels,
        annotations: HashMap::new(),
        linux: Some(LinuxPodSandboxConfig {
            cgroup_parent: String::new(),
            sysctls,
            security_context: Some(LinuxSandboxSecurityContext {
                namespace_options: Some(namespaces(&spec)),
                run_as_user: id(security.run_as_user),
                run_as_group: id(security.run_as_group.filter(|_| security.run_as_user.is_some())),
                supplemental_groups: groups(&security),
                privileged,
                readonly_rootfs: false,
                seccomp: Some(profile(None, security.seccomp_profile.as_ref())),
            }),
        }),
    }
}

fn id(value: Option<i64>) -> Option<Int64Value> {
    value.map(|value| Int64Value { value })
}

fn groups(security: &PodSecurityContext) -> Vec<i64> {
    security.supplemental_groups.iter().flatten().copied().chain(security.fs_group).collect()
}

fn namespaces(spec: &PodSpec) -> NamespaceOption {
    let mode = |host: Option<bool>, own: NamespaceMode| {
        i32::from(if host == Some(true) { NamespaceMode::Node } else { own })
    };
    let pid = match spec.share_process_namespace {
        Some(true) => NamespaceMode::Pod,
        _ => NamespaceMode::Container,
    };
    NamespaceOption {
        network: mode(spec.host_network, NamespaceMode::Pod),
        pid: mode(spec.host_pid, pid),
        ipc: mode(spec.host_ipc, NamespaceMode::Pod),
        target_id: String::new(),
    }
}

fn port_mappings(spec: &PodSpec) -> Vec<PortMapping> {
    let ports = spec.containers.iter().flat_map(|c| c.ports.iter().flatten());
    let mapping = |p: &wasmk_api::k8s_openapi::api::core::v1::ContainerPort| {
        let host_port = p.host_port.filter(|port| *port > 0)?;
        let protocol = match p.protocol.as_deref() {
            Some("UDP") => Protocol::Udp,
            Some("SCTP") => Protocol::Sctp,
            _ => Protocol::Tcp,
        };
        Some(PortMapping {
            protocol: protocol.into(),
            container_port: p.container_port,
            host_port,
            host_ip: p.host_ip.clone().unwrap_or_default(),
        })
    };
    ports.filter_map(mapping).collect()
}

/// How names are resolved in the pod; `None` is as on the node itself.
pub(crate) fn dns(pod: &Pod, server: Option<IpAddr>) -> Option<DnsConfig> {
    let spec = spec(pod);
    let namespace = pod.metadata.namespace.clone().unwrap_or_default();
    let host_network = spec.host_network == Some(true);
    let cluster = match spec.dns_policy.as_deref() {
        Some("ClusterFirstWithHostNet") => true,
        Some("Default" | "None") => false,
        _ => !host_network,
    };
    let mut config = DnsConfig::default();
    if let Some(server) = server.filter(|_| cluster) {
        config.servers = vec![server.to_string()];
        config.searches =
            vec![format!("{namespace}.svc.{DOMAIN}"), format!("svc.{DOMAIN}"), DOMAIN.to_string()];
        config.options = vec!["ndots:5".into()];
    }
    if let Some(more) = &spec.dns_config {
        config.servers.extend(more.nameservers.iter().flatten().cloned());
        config.searches.extend(more.searches.iter().flatten().cloned());
        config.options.extend(more.options.iter().flatten().filter_map(|o| {
            let name = o.name.clone()?;
            Some(o.value.as_ref().map_or(name.clone(), |v| format!("{name}:{v}")))
        }));
    }
    (!config.servers.is_empty() || !config.searches.is_empty()).then_some(config)
}

/// The pod's `/etc/hosts`.
pub(crate) fn hosts(pod: &Pod, ip: Option<IpAddr>, of_node: &str) -> String {
    let spec = spec(pod);
    let mut text = if spec.host_network == Some(true) {
        of_node.to_string()
    } else {
        let own = ip.map(|ip| format!("{ip}\t{}\n", hostname(pod))).unwrap_or_default();
        format!("127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n{own}")
    };
    for alias in spec.host_aliases.iter().flatten() {
        let names: Vec<&str> = alias.hostnames.iter().flatten().map(String::as_str).collect();
        text.push_str(&format!("{}\t{}\n", alias.ip, names.join("\t")));
    }
    text
}

/// One container.
///
/// # Errors
/// [`CONFIG_ERROR`] when it must not run as root and would.
pub(super) fn container(
    of: Identity<'_>,
    labels: HashMap<String, String>,
) -> Result<ContainerConfig, Failure> {
    let c = of.container;
    let spec = spec(of.pod);
    let security_context = Some(security(&of, &spec)?);
    let env = of.env.iter().map(|(key, value)| KeyValue { key: key.clone(), value: value.clone() });
    Ok(ContainerConfig {
        metadata: Some(ContainerMetadata { name: c.name.clone(), attempt: of.attempt }),
        image: Some(ImageSpec { image: of.image.into(), ..ImageSpec::default() }),
        command: of.command.unwrap_or_default(),
        args: of.args.unwrap_or_default(),
        working_dir: c.working_dir.clone().unwrap_or_default(),
        envs: env.collect(),
        mounts: of.mounts.into_iter().map(mount).collect(),
        devices: of.devices.into_iter().map(device).collect(),
        cdi_devices: of.cdi.into_iter().map(|name| CdiDevice { name }).collect(),
        labels,
        annotations: of.annotations,
        log_path: format!("{}/{}.log", c.name, of.attempt),
        stdin: c.stdin == Some(true),
        stdin_once: c.stdin_once == Some(true),
        tty: c.tty == Some(true),
        linux: Some(LinuxContainerConfig {
            resources: Some(resources(c, &spec, of.node_memory)),
            security_context,
        }),
    })
}

fn device(device: Device) -> CriDevice {
    CriDevice {
        container_path: device.guest,
        host_path: device.host.display().to_string(),
        permissions: device.permissions,
    }
}

fn mount(mount: Mount) -> CriMount {
    let propagation = match mount.propagation.as_deref() {
        Some("HostToContainer") => MountPropagation::PropagationHostToContainer,
        Some("Bidirectional") => MountPropagation::PropagationBidirectional,
        _ => MountPropagation::PropagationPrivate,
    };
    CriMount {
        container_path: mount.guest,
        host_path: mount.host.display().to_string(),
        readonly: mount.read_only,
        propagation: propagation.into(),
    }
}

fn is_privileged(container: &Container) -> bool {
    container.security_context.as_ref().and_then(|s| s.privileged) == Some(true)
}

fn security(of: &Identity<'_>, spec: &PodSpec) -> Result<LinuxContainerSecurityContext, Failure> {
    let own = of.container.security_context.clone().unwrap_or_default();
    let pods = spec.security_context.clone().unwrap_or_default();
    let user = own.run_as_user.or(pods.run_as_user);
    let group = own.run_as_group.or(pods.run_as_group);
    refuse_root(of, &own, &pods, user)?;
    let privileged = own.privileged == Some(true);
    let paths = |list: &[&str]| {
        let shown = privileged || own.proc_mount.as_deref() == Some("Unmasked");
        if shown { Vec::new() } else { list.iter().map(|p| (*p).to_string()).collect() }
    };
    let (run_as_user, run_as_username) = match (user, of.user) {
        (Some(uid), _) => (id(Some(uid)), String::new()),
        (None, User::Id(uid)) => (id(Some(*uid)), String::new()),
        (None, User::Name(name)) => (None, name.clone()),
    };
    Ok(LinuxContainerSecurityContext {
        capabilities: Some(capabilities(own.capabilities.as_ref())),
        privileged,
        namespace_options: Some(namespaces(spec)),
        // A group is taken only beside a user.
        run_as_group: id(group),
        run_as_user,
        run_as_username,
        readonly_rootfs: own.read_only_root_filesystem == Some(true),
        supplemental_groups: groups(&pods),
        no_new_privs: own.allow_privilege_escalation == Some(false),
        masked_paths: paths(&MASKED),
        readonly_paths: paths(&READ_ONLY),
        seccomp: (!privileged).then(|| profile(own.seccomp_profile.as_ref(), pods.seccomp_profile.as_ref())),
    })
}

fn refuse_root(
    of: &Identity<'_>,
    own: &SecurityContext,
    pods: &PodSecurityContext,
    user: Option<i64>,
) -> Result<(), Failure> {
    if own.run_as_non_root.or(pods.run_as_non_root) != Some(true) {
        return Ok(());
    }
    let part = |s: &Option<String>| s.clone().unwrap_or_default();
    let meta = &of.pod.metadata;
    let place = format!(
        "(pod: \"{}_{}({})\", container: {})",
        part(&meta.name),
        part(&meta.namespace),
        part(&meta.uid),
        of.container.name
    );
    let text = match (user, of.user) {
        (Some(0), _) => {
            format!("container's runAsUser breaks non-root policy {place}")
        }
        (None, User::Id(0)) => format!("container has runAsNonRoot and image will run as root {place}"),
        (None, User::Name(name)) => format!(
            "container has runAsNonRoot and image has non-numeric user ({name}), cannot verify user is non-root {place}"
        ),
        _ => return Ok(()),
    };
    Err(Failure::new(CONFIG_ERROR, text))
}

fn capabilities(wanted: Option<&Capabilities>) -> Capability {
    let list = |names: Option<&Vec<String>>| names.cloned().unwrap_or_default();
    Capability {
        add_capabilities: list(wanted.and_then(|c| c.add.as_ref())),
        drop_capabilities: list(wanted.and_then(|c| c.drop.as_ref())),
    }
}

/// The system calls allowed: what the container says, else the pod, else the runtime's usual ones.
fn profile(own: Option<&SeccompProfile>, pods: Option<&SeccompProfile>) -> SecurityProfile {
    let profile_type = match own.or(pods).map(|p| p.type_.as_str()) {
        Some("Unconfined") => ProfileType::Unconfined,
        Some("Localhost") => ProfileType::Localhost,
        _ => ProfileType::RuntimeDefault,
    };
    let file = own.or(pods).and_then(|p| p.localhost_profile.clone()).unwrap_or_default();
    SecurityProfile { profile_type: profile_type.into(), localhost_ref: file }
}

fn resources(container: &Container, spec: &PodSpec, node_memory: i64) -> LinuxContainerResources {
    let resources = container.resources.as_ref();
    let amount = |limits: bool, name: &str| {
        let map = resources.and_then(|r| if limits { r.limits.as_ref() } else { r.requests.as_ref() });
        map.and_then(|m| m.get(name)).and_then(|q| q.0.parse::<Quantity>().ok())
    };
    let limit = amount(true, "cpu").map(Quantity::milli_value).filter(|m| *m > 0);
    let request = amount(false, "cpu").map(Quantity::milli_value).or(limit).unwrap_or(0);
    let memory = amount(true, "memory").map(Quantity::value).unwrap_or(0);
    LinuxContainerResources {
        cpu_period: CPU_PERIOD,
        cpu_quota: limit.map_or(0, |m| (m.saturating_mul(CPU_PERIOD) / 1000).max(CPU_QUOTA_MIN)),
        cpu_shares: (request.saturating_mul(CPU_SHARES) / 1000).max(CPU_SHARES_MIN),
        memory_limit_in_bytes: memory,
        oom_score_adj: score(
            crate::pod::status::qos_class(spec),
            amount(false, "memory").map(Quantity::value).unwrap_or(memory),
            node_memory,
        ),
    }
}

/// Who is killed first when the node is out of memory; higher goes earlier.
fn score(class: &str, request: i64, node_memory: i64) -> i64 {
    match class {
        "Guaranteed" => -997,
        "BestEffort" => 1000,
        _ => {
            let share = i128::from(request) * 1000 / i128::from(node_memory.max(1));
            i64::try_from((1000 - share).clamp(3, 999)).unwrap_or(999)
        }
    }
}

/// A file of the agent's own, mounted for writing.
pub(super) fn own_file(host: PathBuf, guest: &str) -> Mount {
    Mount { host, guest: guest.into(), read_only: false, propagation: None }
}

#[cfg(test)]
#[path = "config_tests.rs"]
mod tests;
