//! The walls around a process that runs guests, put up by itself before it has seen any, and before it has a
//! second thread: a user of its own, limits, Landlock, and filters of system calls.

pub(crate) mod calls;
mod files;
mod user;

use std::io;
use std::os::fd::OwnedFd;
use std::path::PathBuf;

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use serde::{Deserialize, Serialize};

use crate::message::Standing;

/// The first of the users that workers of an agent that is root are, each another; unused by convention.
pub(crate) const FIRST_USER: u32 = 1_879_048_192;
/// How many of them there are.
pub(crate) const USERS: u32 = 65_536;
/// Most threads of a worker that is a user of its own.
pub(crate) const THREADS: u64 = 4096;
/// Most open files of a worker, if the agent may have as many.
const OPEN_FILES: u64 = 65_536;

/// A directory that a process may see.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Directory {
    /// On this machine.
    pub path: PathBuf,
    /// It may change nothing there.
    pub read_only: bool,
}

/// What is inside the walls.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Room {
    /// The user and group to become, which needs root.
    pub user: Option<u32>,
    /// The process to end with.
    pub parent: Option<u32>,
    /// All that is to be seen of the machine's files, besides its trusted certificates.
    pub directories: Vec<Directory>,
}

/// Walls that are up, but for the last.
#[derive(Debug)]
pub struct Raised {
    /// Which they are.
    pub standing: Standing,
    /// Whoever has this answers the process's calls for sockets. To be sent away before [`seal`](Self::seal).
    pub sockets: Option<OwnedFd>,
}

/// Puts the walls up around this process, which must have one thread only. They stay for good.
///
/// # Errors
/// When one that this kernel has cannot be put up; the process is then to end.
pub fn raise(room: &Room) -> io::Result<Raised> {
    limit(room.user.is_some())?;
    // What is first to go when the machine runs out of memory; without it the kernel chooses by size.
    let _ = std::fs::write("/proc/self/oom_score_adj", "1000");
    let landlock = files::version();
    if landlock == 0 && !room.directories.is_empty() {
        return Err(io::Error::new(io::ErrorKind::Unsupported, "this kernel has no Landlock"));
    }
    if landlock > 0 {
        files::restrict(&room.directories)?;
    }
    let user = user::become_another(room.user, !room.directories.is_empty())?;
    user::end_with(room.parent)?;
    nix::sys::prctl::set_no_new_privs()?;
    let sockets = calls::hand_over_sockets()?;
    let standing = Standing { user, landlock, seccomp: true, sockets: sockets.is_some() };
    Ok(Raised { standing, sockets })
}

impl Raised {
    /// The last wall: from now on no call is allowed but those that running guests needs.
    ///
    /// # Errors
    /// When the kernel refuses; the process is then to end.
    pub fn seal(self) -> io::Result<()> {
        calls::allow_few(self.standing.sockets, self.standing.landlock > 0)
    }
}

fn limit(own_user: bool) -> io::Result<()> {
    setrlimit(Resource::RLIMIT_CORE, 0, 0)?;
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    let files = hard.min(OPEN_FILES);
    setrlimit(Resource::RLIMIT_NOFILE, files, files)?;
    if own_user {
        // Another's limit would count all that the user has.
        let (_, hard) = getrlimit(Resource::RLIMIT_NPROC)?;
        setrlimit(Resource::RLIMIT_NPROC, hard.min(THREADS), hard.min(THREADS))?;
    }
    Ok(())
}
