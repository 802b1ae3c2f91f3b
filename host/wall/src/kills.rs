//! Whether the kernel has killed for want of memory, for workers without a control group of their own that would say so.
//!
//! The agent's own group counts the processes in it that were killed, workers among them, and no others: what happens to
//! containers and programs beside it is not taken for a worker's end. Where there is no such group, all of the machine counts.

use std::path::{Path, PathBuf};

/// A count at a moment.
pub(crate) struct Kills {
    file: PathBuf,
    before: u64,
}

impl Kills {
    /// Counts from now on.
    pub(crate) fn from_now() -> Self {
        let group = crate::groups::own().map(|group| group.join("memory.events.local"));
        Self::by(group.into_iter().chain([PathBuf::from("/proc/vmstat")]))
    }

    /// By the first of these that counts.
    fn by(mut files: impl Iterator<Item = PathBuf>) -> Self {
        let found = files.find_map(|file| Some((count(&file)?, file)));
        let (before, file) = found.unwrap_or_default();
        Self { file, before }
    }

    /// Whether there was one since.
    pub(crate) fn more(&self) -> bool {
        count(&self.file).is_some_and(|now| now > self.before)
    }
}

fn count(file: &Path) -> Option<u64> {
    let text = std::fs::read_to_string(file).ok()?;
    text.lines().find_map(|line| line.strip_prefix("oom_kill "))?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn what_is_nearest_counts() {
        let dir = tempfile::tempdir().unwrap();
        let (group, machine) = (dir.path().join("group"), dir.path().join("machine"));
        let kills = || Kills::by([group.clone(), machine.clone()].into_iter());
        assert!(!kills().more(), "nothing counts here");

        fs::write(&machine, "oom_kill_disable 0\noom_kill 3\n").unwrap();
        let alone = kills();
        fs::write(&group, "low 0\noom 0\noom_kill 1\noom_group_kill 0\n").unwrap();
        let grouped = kills();
        fs::write(&machine, "oom_kill 4\n").unwrap();
        assert!(alone.more() && !grouped.more(), "another's end is not the group's");
        fs::write(&group, "oom 1\noom_kill 2\n").unwrap();
        assert!(grouped.more());
    }

    #[test]
    fn this_machine_counts() {
        assert!(!Kills::from_now().file.as_os_str().is_empty());
    }
}
