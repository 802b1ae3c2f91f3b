//! Facts about the machine, for the Node's status.

use std::{fs, path::Path};

use wasmk_api::k8s_openapi::api::core::v1::NodeSystemInfo;

use crate::{engine::Usage, settings::Capacity};

/// Version of Kubernetes whose node behaviour this agent has, and what it is.
pub(crate) const KUBELET_VERSION: &str = "v1.36.0+wasmk";
/// Ticks of a second in `/proc/stat`; fixed by the kernel's interface.
const TICKS: u64 = 100;
/// Memory assumed when the system does not tell, in bytes.
const UNKNOWN_MEMORY: i64 = 1 << 30;

/// Cores, memory and disk of this machine, bounded by this process's control group.
pub(crate) fn capacity(data_dir: &Path) -> Capacity {
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let total = fs::read_to_string("/proc/meminfo").ok().and_then(|t| meminfo(&t, "MemTotal"));
    let group = fs::read_to_string("/sys/fs/cgroup/memory.max").ok().and_then(|t| t.trim().parse().ok());
    let memory = [total, group].into_iter().flatten().min().unwrap_or(UNKNOWN_MEMORY);
    let storage = nix::sys::statvfs::statvfs(data_dir)
        .map(|s| i64::try_from(s.blocks() as u128 * s.fragment_size() as u128).unwrap_or(i64::MAX))
        .unwrap_or(0);
    Capacity { cpu_millis: i64::try_from(cores).unwrap_or(1) * 1000, memory, storage }
}

/// A row of `/proc/meminfo` in bytes.
pub(crate) fn meminfo(text: &str, row: &str) -> Option<i64> {
    let line = text.lines().find_map(|l| l.strip_prefix(row)?.strip_prefix(':'))?;
    let kibibytes: i64 = line.trim().strip_suffix(" kB")?.trim().parse().ok()?;
    Some(kibibytes * 1024)
}

/// Memory not in use, in bytes.
pub(crate) fn memory_available() -> Option<i64> {
    memory().map(|(available, _)| available)
}

/// Memory not in use, and all of it, in bytes.
pub(crate) fn memory() -> Option<(i64, i64)> {
    let text = fs::read_to_string("/proc/meminfo").ok()?;
    Some((meminfo(&text, "MemAvailable")?, meminfo(&text, "MemTotal")?))
}

/// Bytes of the disk under a directory that are free, and all of them.
pub(crate) fn disk(dir: &Path) -> Option<(i64, i64)> {
    let stat = nix::sys::statvfs::statvfs(dir).ok()?;
    let bytes = |blocks: u64| i64::try_from(u128::from(blocks) * u128::from(stat.fragment_size())).ok();
    Some((bytes(stat.blocks_available())?, bytes(stat.blocks())?))
}

/// Numbers of processes (threads count, too) that are free, and all of them.
pub(crate) fn processes() -> Option<(i64, i64)> {
    let read = |path: &str| fs::read_to_string(path).ok();
    let number = |path: &str| read(path)?.trim().parse::<i64>().ok();
    let most = [number("/proc/sys/kernel/pid_max"), number("/proc/sys/kernel/threads-max")];
    let most = most.into_iter().flatten().min()?;
    Some((most - tasks(&read("/proc/loadavg")?)?, most))
}

/// How many tasks there are, out of `/proc/loadavg`.
fn tasks(loadavg: &str) -> Option<i64> {
    loadavg.split_whitespace().nth(3)?.split_once('/')?.1.parse().ok()
}

/// What all of the machine uses: processor time since its start, and memory that is not available.
pub(crate) fn usage() -> Usage {
    let total = fs::read_to_string("/proc/meminfo").ok().and_then(|t| meminfo(&t, "MemTotal"));
    let used = total.zip(memory_available()).map_or(0, |(total, free)| total - free);
    let stat = fs::read_to_string("/proc/stat").unwrap_or_default();
    Usage { cpu_nanos: busy(&stat) * (1_000_000_000 / TICKS), memory: u64::try_from(used).unwrap_or(0) }
}

/// Ticks that all processors together were busy, out of `/proc/stat`.
fn busy(stat: &str) -> u64 {
    let Some(all) = stat.lines().find_map(|l| l.strip_prefix("cpu ")) else { return 0 };
    let ticks: Vec<u64> = all.split_whitespace().map(|t| t.parse().unwrap_or(0)).collect();
    // Idle and waiting for disks are the fourth and fifth; guests are counted in the first two already.
    ticks.iter().take(8).enumerate().filter(|(i, _)| !matches!(i, 3 | 4)).map(|(_, t)| t).sum()
}

/// What the Node's status tells of the system.
pub(crate) fn system_info(runtime: &str) -> NodeSystemInfo {
    let read = |path: &str| fs::read_to_string(path).map(|t| t.trim().to_string()).unwrap_or_default();
    let machine_id = read("/etc/machine-id");
    NodeSystemInfo {
        architecture: architecture().into(),
        boot_id: read("/proc/sys/kernel/random/boot_id"),
        container_runtime_version: runtime.into(),
        kernel_version: read("/proc/sys/kernel/osrelease"),
        kube_proxy_version: KUBELET_VERSION.into(),
        kubelet_version: KUBELET_VERSION.into(),
        operating_system: "linux".into(),
        os_image: os_image(&read("/etc/os-release")),
        system_uuid: machine_id.clone(),
        machine_id,
        swap: None,
    }
}

/// The processor as Kubernetes labels it.
pub(crate) fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

fn os_image(release: &str) -> String {
    let name = release.lines().find_map(|l| l.strip_prefix("PRETTY_NAME="));
    name.map_or("Linux", |n| n.trim_matches('"')).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_the_systems_files() {
        assert_eq!(meminfo("MemTotal:       2048 kB\nMemFree: 1 kB\n", "MemTotal"), Some(2 << 20));
        assert_eq!(meminfo("MemTotalX: 1 kB\n", "MemTotal"), None);
        assert_eq!(os_image("NAME=x\nPRETTY_NAME=\"Some Linux 12\"\n"), "Some Linux 12");
        assert_eq!(os_image(""), "Linux");
        assert_eq!((tasks("0.1 0.2 0.3 2/345 6789\n"), tasks("")), (Some(345), None));
        assert_eq!(busy("cpu  1 2 4 1000 1000 8 16 32 64 64\ncpu0 1 1 1 1\n"), 63);
    }

    #[test]
    fn this_machine_has_something() {
        let capacity = capacity(Path::new("/"));
        assert!(capacity.cpu_millis >= 1000 && capacity.memory > 0 && capacity.storage > 0);
    }
}
