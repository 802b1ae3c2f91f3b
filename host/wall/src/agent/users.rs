//! Which users workers are: each another, also among several agents on one machine.

use std::{
    collections::BTreeSet,
    fs::{File, OpenOptions},
    io,
    os::unix::fs::OpenOptionsExt,
    path::Path,
    sync::Arc,
};

use nix::{
    errno::Errno,
    fcntl::{FcntlArg, fcntl},
    libc,
};
use parking_lot::Mutex;

use crate::walls::{FIRST_USER, USERS};

/// The users of one agent's workers. Clones are the same.
#[derive(Clone)]
pub(super) struct Users(Arc<Inner>);

struct Inner {
    /// A byte of it is locked for each user that is somebody's; the locks end with the agent.
    file: Option<File>,
    taken: Mutex<BTreeSet<u32>>,
}

impl Users {
    /// Shared with all agents that name the same file. Where it cannot be used they are this agent's own, which is
    /// said.
    pub(super) fn new(path: &Path) -> Self {
        let open = || -> io::Result<File> {
            OpenOptions::new().create(true).truncate(false).write(true).mode(0o600).open(path)
        };
        let file = open()
            .inspect_err(|error| {
                let path = path.display();
                tracing::warn!(%error, %path, "workers of another agent on this machine may be the same users");
            })
            .ok();
        Self(Arc::new(Inner { file, taken: Mutex::default() }))
    }

    /// One that nobody is; `None` when there are no more.
    pub(super) fn take(&self) -> Option<User> {
        let mut taken = self.0.taken.lock();
        let free = |id: &u32| !taken.contains(id) && self.0.lock(*id, libc::F_WRLCK);
        let id = (FIRST_USER..FIRST_USER + USERS).find(free)?;
        taken.insert(id);
        Some(User { id, of: self.clone() })
    }
}

impl Inner {
    /// Whether nobody else had the byte of a user, which is locked now, or let go. Where it cannot be asked nobody had.
    fn lock(&self, id: u32, kind: i32) -> bool {
        let Some(file) = &self.file else { return true };
        // Belongs to the open file, so that two agents in one process are told apart, too.
        let range = libc::flock {
            l_type: i16::try_from(kind).unwrap_or_default(),
            l_whence: i16::try_from(libc::SEEK_SET).unwrap_or_default(),
            l_start: i64::from(id - FIRST_USER),
            l_len: 1,
            l_pid: 0,
        };
        !matches!(fcntl(file, FcntlArg::F_OFD_SETLK(&range)), Err(Errno::EAGAIN | Errno::EACCES))
    }
}

/// A user that no other worker is, until this is dropped.
pub(super) struct User {
    pub(super) id: u32,
    of: Users,
}

impl Drop for User {
    fn drop(&mut self) {
        self.of.0.lock(self.id, libc::F_UNLCK);
        self.of.0.taken.lock().remove(&self.id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn agents_of_one_machine_have_different_users() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("users");
        let (one, other) = (Users::new(&path), Users::new(&path));
        let (a, b, c) = (one.take().unwrap(), other.take().unwrap(), one.take().unwrap());
        assert_eq!([a.id, b.id, c.id].map(|id| id - FIRST_USER), [0, 1, 2]);
        drop(b);
        let again = one.take().unwrap();
        assert_eq!(again.id, FIRST_USER + 1);
        drop(one);
        drop((a, c, again));
        assert_eq!(other.take().unwrap().id, FIRST_USER);
    }

    #[test]
    fn without_a_file_they_are_the_agents_own() {
        let users = Users::new(Path::new("/nonexistent/users"));
        let (a, b) = (users.take().unwrap(), users.take().unwrap());
        assert_ne!(a.id, b.id);
    }
}
