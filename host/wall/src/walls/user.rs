//! Another user, and no capabilities.

use std::io;

use nix::sys::prctl;
use nix::sys::signal::Signal;
use nix::unistd::{Gid, Uid, geteuid, getppid, setgroups, setresgid, setresuid};

/// To use directories whatever they say about who may, as the agent itself does: Landlock says which they are.
const FILES: u32 = 1 << 1 | 1 << 3;

/// Becomes the user and gives up all privileges; with directories, all but those over files. Who it is now, if
/// another than before: root in a small user namespace cannot be anybody else.
pub(super) fn become_another(user: Option<u32>, directories: bool) -> io::Result<Option<u32>> {
    let mut became = None;
    let root = geteuid().is_root();
    if let Some(id) = user.filter(|_| root) {
        let (uid, gid) = (Uid::from_raw(id), Gid::from_raw(id));
        prctl::set_keepcaps(true)?;
        if setresgid(gid, gid, gid).is_ok() {
            // Once it is no longer of root's group there is no way back.
            setgroups(&[])?;
            setresuid(uid, uid, uid)?;
            became = Some(id);
        }
        // The agent looks at what its calls for sockets point to. No other process is of this user.
        prctl::set_dumpable(true)?;
    }
    keep(if root && directories { FILES } else { 0 })?;
    Ok(became)
}

/// Has the kernel end this process with that one.
pub(super) fn end_with(parent: Option<u32>) -> io::Result<()> {
    let Some(parent) = parent else {
        return Ok(());
    };
    prctl::set_pdeathsig(Signal::SIGKILL)?;
    // It may have ended before that.
    if getppid().as_raw().cast_unsigned() != parent {
        return Err(io::Error::new(io::ErrorKind::NotFound, "the agent has ended"));
    }
    Ok(())
}

#[repr(C)]
struct Header {
    version: u32,
    process: i32,
}

#[repr(C)]
#[derive(Clone, Copy)]
struct Sets {
    effective: u32,
    permitted: u32,
    inheritable: u32,
}

/// Gives up all capabilities but these.
#[allow(unsafe_code)]
fn keep(few: u32) -> io::Result<()> {
    const VERSION: u32 = 0x2008_0522;
    let mut header = Header { version: VERSION, process: 0 };
    let mut now = [Sets { effective: 0, permitted: 0, inheritable: 0 }; 2];
    // SAFETY: the kernel writes the two sets of this version to the live locals it is given.
    if unsafe { libc::syscall(libc::SYS_capget, &raw mut header, now.as_mut_ptr()) } != 0 {
        return Err(io::Error::last_os_error());
    }
    // Not every root has them.
    let few = few & now[0].permitted;
    let sets = [
        Sets { effective: few, permitted: few, inheritable: 0 },
        Sets { effective: 0, permitted: 0, inheritable: 0 },
    ];
    // SAFETY: the kernel reads the header and the two sets, which live until it returns.
    if unsafe { libc::syscall(libc::SYS_capset, &raw const header, sets.as_ptr()) } != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}
