//! Control groups (cgroup v2) around worker processes, where the agent may make them: a worker gets no more memory
//! than its guests have limits, no more threads than it needs, and the processor by the cores that its guests may use.
//!
//! As root the groups are below the top of what the agent sees, otherwise below its own group if that was delegated
//! to its user. A group with processes cannot hand its controllers on to others: where that is the agent's alone, it
//! moves to a group beside its workers'.

use std::io;
use std::path::{Path, PathBuf};

use nix::unistd::geteuid;
use parking_lot::Mutex;

use crate::error::Error;
use crate::walls::THREADS;

/// What a worker needs besides its guests' memory, in bytes: code, the runtime's pools, bodies on their way.
const OVERHEAD: u64 = 512 << 20;
/// What each guest needs besides its memory, in bytes.
const PER_GUEST: u64 = 1 << 20;
/// Room above what is in use when a limit is lowered, in bytes: what is freed later must not end the others.
const SLACK: u64 = 64 << 20;
/// Weight of a whole core: the kernel's own for a group that says nothing.
const CORE: u64 = 100;
/// What a guest without a limit counts as, in thousandths of a core.
const UNLIMITED: u32 = 1000;
/// What groups are called, with the agent's process number.
const PREFIX: &str = "wasmk-";
/// What has to be there; the processor's share is left out where it is not.
const NEEDED: [&str; 2] = ["memory", "pids"];

/// The top of the control groups and this process's own, if the machine has cgroup v2.
fn mounted() -> Option<(PathBuf, PathBuf)> {
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").ok()?;
    places(&mounts, &std::fs::read_to_string("/proc/self/cgroup").ok()?)
}

/// The control group that this process is in.
pub(crate) fn own() -> Option<PathBuf> {
    mounted().map(|(_, own)| own)
}

/// Where the groups of an agent's workers are; removed when dropped.
pub(crate) struct Groups(PathBuf);

impl Groups {
    /// Makes the place.
    ///
    /// # Errors
    /// In words: why there can be none.
    pub(crate) fn new() -> Result<Self, String> {
        let (top, own) = mounted().ok_or("this machine has no cgroup v2")?;
        Self::below(if geteuid().is_root() { &top } else { &own }, std::process::id())
    }

    fn below(parent: &Path, agent: u32) -> Result<Self, String> {
        let fail = |error: io::Error| format!("{}: {error}", parent.display());
        let offered = std::fs::read_to_string(parent.join("cgroup.controllers")).map_err(fail)?;
        if let Some(lacking) = NEEDED.iter().find(|name| !offered.split_whitespace().any(|o| o == **name)) {
            return Err(format!("{} has no controller called {lacking}", parent.display()));
        }
        remove_left(parent);
        let groups = Self(parent.join(format!("{PREFIX}{agent}")));
        std::fs::create_dir(&groups.0).map_err(fail)?;
        hand_on(parent).or_else(|error| step_aside(parent, agent, error)).map_err(fail)?;
        hand_on(&groups.0).map_err(fail)?;
        Ok(groups)
    }

    /// A group with that process in it.
    ///
    /// # Errors
    /// When the kernel refuses; the process is where it was, then.
    pub(crate) fn group(&self, process: u32) -> io::Result<Group> {
        remove_empty(&self.0);
        let path = self.0.join(process.to_string());
        std::fs::create_dir(&path)?;
        let group = Group { path, sum: Mutex::default() };
        set(&group.path, "pids.max", THREADS)?;
        group.allow(&Sum::default())?;
        // Otherwise a limit would only move memory to the disk. Without swap there is no such file.
        let _ = set(&group.path, "memory.swap.max", 0);
        set(&group.path, "cgroup.procs", process)?;
        Ok(group)
    }
}

impl Drop for Groups {
    fn drop(&mut self) {
        remove_empty(&self.0);
        // Another time, then: whoever begins next removes what is left.
        let _ = std::fs::remove_dir(&self.0);
    }
}

/// A worker's group; removed when dropped, or later when the worker is still there.
pub(crate) struct Group {
    path: PathBuf,
    sum: Mutex<Sum>,
}

/// What the guests in a worker may use together.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Sum {
    guests: u64,
    memory: u64,
    millis: u64,
}

impl Sum {
    fn memory(&self) -> u64 {
        let guests = self.guests.saturating_mul(PER_GUEST);
        OVERHEAD.saturating_add(guests).saturating_add(self.memory)
    }

    fn weight(&self) -> u64 {
        (self.millis * CORE / u64::from(UNLIMITED)).clamp(1, 10_000)
    }
}

impl Group {
    /// Makes room for a guest that may have so much memory and so many thousandths of a core.
    pub(crate) fn enter(&self, memory: u64, millis: Option<u32>) {
        self.change(|sum| {
            sum.guests += 1;
            sum.memory = sum.memory.saturating_add(memory);
            sum.millis += u64::from(millis.unwrap_or(UNLIMITED));
        });
    }

    /// Takes back what such a guest was allowed.
    pub(crate) fn leave(&self, memory: u64, millis: Option<u32>) {
        self.change(|sum| {
            sum.guests = sum.guests.saturating_sub(1);
            sum.memory = sum.memory.saturating_sub(memory);
            sum.millis = sum.millis.saturating_sub(u64::from(millis.unwrap_or(UNLIMITED)));
        });
    }

    fn change(&self, change: impl FnOnce(&mut Sum)) {
        let mut sum = self.sum.lock();
        change(&mut sum);
        if let Err(error) = self.allow(&sum) {
            tracing::warn!("{}: {error}", self.path.display());
        }
    }

    fn allow(&self, sum: &Sum) -> io::Result<()> {
        let used = read(&self.path, "memory.current").unwrap_or(0);
        set(&self.path, "memory.max", sum.memory().max(used.saturating_add(SLACK)))?;
        if self.path.join("cpu.weight").exists() {
            set(&self.path, "cpu.weight", sum.weight())?;
        }
        Ok(())
    }

    /// Why the kernel has ended a process here, if it was for want of memory.
    pub(crate) fn ran_out(&self) -> Option<Error> {
        let events = std::fs::read_to_string(self.path.join("memory.events")).unwrap_or_default();
        let count = |name: &str| {
            let found = events.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
            found.is_some_and(|count| count.trim() != "0")
        };
        let own = || if count("oom") { Error::OverLimit } else { Error::OutOfMemory };
        count("oom_kill").then(own)
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        // A process that has not ended yet keeps it.
        let _ = std::fs::remove_dir(&self.path);
    }
}

/// The top of the hierarchy of version 2 as it is seen here, and this process's own group.
fn places(mounts: &str, own: &str) -> Option<(PathBuf, PathBuf)> {
    let own = Path::new(own.lines().find_map(|line| line.strip_prefix("0::"))?);
    mounts.lines().find_map(|line| {
        let (mount, kind) = line.split_once(" - ")?;
        if !kind.starts_with("cgroup2 ") {
            return None;
        }
        let mut columns = mount.split(' ').skip(3);
        let (root, top) = (columns.next()?, PathBuf::from(columns.next()?));
        let inside = own.strip_prefix(root).unwrap_or(Path::new(""));
        let own = top.join(inside.strip_prefix("/").unwrap_or(inside));
        Some((top, own))
    })
}

/// Has the groups below have controllers.
fn hand_on(group: &Path) -> io::Result<()> {
    let needed: Vec<String> = NEEDED.iter().map(|name| format!("+{name}")).collect();
    set(group, "cgroup.subtree_control", needed.join(" "))?;
    // The share of the processor is of use, and not needed.
    let _ = set(group, "cgroup.subtree_control", "+cpu");
    Ok(())
}

/// Moves the agent out of a group whose only process it is, so that the group can hand its controllers on.
fn step_aside(parent: &Path, agent: u32, error: io::Error) -> io::Result<()> {
    if error.raw_os_error() != Some(libc::EBUSY) {
        return Err(error);
    }
    let aside = parent.join(format!("{PREFIX}{agent}-agent"));
    std::fs::create_dir(&aside)?;
    let moved = set(&aside, "cgroup.procs", agent).and_then(|()| hand_on(parent));
    if moved.is_err() {
        // There are others: back to them, as if nothing had been.
        let _ = set(parent, "cgroup.procs", agent);
        let _ = std::fs::remove_dir(&aside);
        let others = "other processes are in it, so it cannot have groups with limits below it";
        return moved.map_err(|_| io::Error::other(others));
    }
    Ok(())
}

/// Removes what agents have left that are no more.
fn remove_left(parent: &Path) {
    for entry in std::fs::read_dir(parent).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let agent = name.to_str().and_then(|name| name.strip_prefix(PREFIX));
        let agent = agent.map(|agent| agent.trim_end_matches("-agent"));
        if agent.is_some_and(|agent| !Path::new("/proc").join(agent).exists()) {
            remove_empty(&entry.path());
            let _ = std::fs::remove_dir(entry.path());
        }
    }
}

/// Removes the groups in one that have no process: the kernel keeps the others.
fn remove_empty(group: &Path) {
    for entry in std::fs::read_dir(group).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            let _ = std::fs::remove_dir(entry.path());
        }
    }
}

fn set(group: &Path, file: &str, value: impl ToString) -> io::Result<()> {
    let done = std::fs::write(group.join(file), value.to_string());
    done.map_err(|error| match error.raw_os_error() {
        Some(libc::EBUSY) => error,
        _ => io::Error::new(error.kind(), format!("{file}: {error}")),
    })
}

fn read(group: &Path, file: &str) -> Option<u64> {
    std::fs::read_to_string(group.join(file)).ok()?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A directory with the files that a group has; nothing happens when they are written.
    fn pretended(controllers: &str) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("cgroup.controllers"), controllers).unwrap();
        dir
    }

    #[test]
    fn hierarchies_are_found_wherever_they_are() {
        let line = |root: &str, top: &str, kind: &str| {
            format!("31 23 0:28 {root} {top} rw shared:1 - {kind} x rw\n")
        };
        let check = |mounts: &str, own: &str, expect: Option<(&str, &str)>| {
            let expect = expect.map(|(top, own)| (PathBuf::from(top), PathBuf::from(own)));
            assert_eq!(places(mounts, own), expect, "{mounts}{own}");
        };
        let usual = line("/", "/sys/fs/cgroup", "cgroup2");
        check(
            &usual,
            "0::/a.slice/b.service\n",
            Some(("/sys/fs/cgroup", "/sys/fs/cgroup/a.slice/b.service")),
        );
        check(&usual, "0::/\n", Some(("/sys/fs/cgroup", "/sys/fs/cgroup/")));
        let both =
            line("/", "/sys/fs/cgroup/memory", "cgroup") + &line("/", "/sys/fs/cgroup/unified", "cgroup2");
        check(&both, "4:memory:/x\n0::/y\n", Some(("/sys/fs/cgroup/unified", "/sys/fs/cgroup/unified/y")));
        let container = line("/docker/1", "/sys/fs/cgroup", "cgroup2");
        check(&container, "0::/docker/1/in\n", Some(("/sys/fs/cgroup", "/sys/fs/cgroup/in")));
        check(&line("/", "/sys/fs/cgroup/memory", "cgroup"), "4:memory:/x\n", None);
    }

    #[test]
    fn what_there_cannot_be_is_said() {
        let none = pretended("cpu io");
        let why = |dir: &Path| Groups::below(dir, 1).err().unwrap();
        assert!(why(none.path()).contains("no controller called memory"));
        assert!(why(&none.path().join("missing")).contains("No such file"));
    }

    #[test]
    fn a_group_allows_what_its_guests_may_have() {
        let dir = pretended("cpuset cpu io memory pids");
        let gone = dir.path().join(format!("{PREFIX}4294967294"));
        std::fs::create_dir_all(gone.join("17")).unwrap();
        let groups = Groups::below(dir.path(), 7).unwrap();
        assert!(!gone.exists(), "an agent's that is no more");
        // The kernel makes the files of a group with it.
        let path = dir.path().join("wasmk-7/42");
        let group = groups.group(42).unwrap();
        let file = |name: &str| std::fs::read_to_string(path.join(name)).unwrap();
        assert_eq!((file("cgroup.procs"), file("pids.max")), ("42".into(), THREADS.to_string()));
        std::fs::write(path.join("cpu.weight"), "").unwrap();
        group.enter(64 << 20, Some(500));
        group.enter(1 << 30, None);
        assert_eq!(file("memory.max"), (OVERHEAD + 2 * PER_GUEST + (64 << 20) + (1 << 30)).to_string());
        assert_eq!(file("cpu.weight"), "150");
        // What is in use still is not taken away.
        std::fs::write(path.join("memory.current"), (1_u64 << 30).to_string()).unwrap();
        group.leave(1 << 30, None);
        assert_eq!((file("memory.max"), file("cpu.weight")), (((1 << 30) + SLACK).to_string(), "50".into()));
        group.leave(64 << 20, Some(500));
        assert_eq!(file("cpu.weight"), "1");
        let why = |events: &str| {
            std::fs::write(path.join("memory.events"), events).unwrap();
            group.ran_out().map(|error| error.to_string())
        };
        assert_eq!(why("low 0\noom 0\noom_kill 0\n"), None);
        assert!(why("low 0\noom 1\noom_kill 1\n").unwrap().contains("its guests may have"));
        assert!(why("low 0\noom 0\noom_kill 1\n").unwrap().contains("the machine ran out"));
    }
}
