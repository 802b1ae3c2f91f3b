//! Landlock: which of the machine's files there are.

use std::io;
use std::path::Path;

use landlock::{
    ABI, Access, AccessFs, AccessNet, BitFlags, PathBeneath, PathFd, Ruleset, RulesetAttr, RulesetCreated,
    RulesetCreatedAttr, RulesetStatus, Scope, make_bitflags,
};

use super::Directory;

/// The newest kind that is asked for; older kernels give what they have.
const NEWEST: ABI = ABI::V6;
/// Where machines keep the certificates they trust: guests' outgoing HTTPS needs them.
const CERTIFICATES: [&str; 6] = [
    "/etc/ssl/certs",
    "/etc/ssl/cert.pem",
    "/etc/pki/tls/certs",
    "/etc/pki/ca-trust/extracted",
    "/etc/ca-certificates",
    "/usr/share/ca-certificates",
];

/// The kernel's version of Landlock; 0 if it has none, or has it switched off.
#[allow(unsafe_code)]
pub(super) fn version() -> u32 {
    const ASK: libc::c_uint = 1;
    // SAFETY: with this flag the call takes no pointer and only answers with a number.
    let version = unsafe {
        libc::syscall(libc::SYS_landlock_create_ruleset, std::ptr::null::<libc::c_void>(), 0_usize, ASK)
    };
    u32::try_from(version).unwrap_or(0)
}

/// Leaves this thread, and those it starts, the directories and nothing else: no other file, no TCP of its own, no
/// signal to others and no abstract socket of theirs.
pub(super) fn restrict(directories: &[Directory]) -> io::Result<()> {
    let fail = |error: landlock::RulesetError| io::Error::other(format!("Landlock: {error}"));
    let mut rules = Ruleset::default()
        .handle_access(AccessFs::from_all(NEWEST))
        .and_then(|rules| rules.handle_access(AccessNet::from_all(NEWEST)))
        .and_then(|rules| rules.scope(Scope::from_all(NEWEST)))
        .and_then(Ruleset::create)
        .map_err(fail)?;
    rules = allow(rules, Path::new("/dev/null"), make_bitflags!(AccessFs::{ReadFile | WriteFile}))?;
    for path in CERTIFICATES {
        if Path::new(path).exists() {
            rules = allow(rules, Path::new(path), reading())?;
        }
    }
    for directory in directories {
        let access = if directory.read_only { reading() } else { writing() };
        rules = allow(rules, &directory.path, access)?;
    }
    let status = rules.restrict_self().map_err(fail)?;
    match status.ruleset {
        RulesetStatus::NotEnforced => Err(io::Error::other("Landlock is there and does not work")),
        _ => Ok(()),
    }
}

fn reading() -> BitFlags<AccessFs> {
    make_bitflags!(AccessFs::{ReadFile | ReadDir})
}

/// Never devices, sockets, pipes or programs.
fn writing() -> BitFlags<AccessFs> {
    let change = make_bitflags!(AccessFs::{WriteFile | RemoveDir | RemoveFile | MakeDir | MakeReg | MakeSym});
    reading() | change | make_bitflags!(AccessFs::{Refer | Truncate})
}

fn allow(rules: RulesetCreated, path: &Path, access: BitFlags<AccessFs>) -> io::Result<RulesetCreated> {
    let fail = |error: &dyn std::fmt::Display| io::Error::other(format!("{}: {error}", path.display()));
    let opened = PathFd::new(path).map_err(|error| fail(&error))?;
    let file = path.metadata().map_err(|error| fail(&error))?.is_file();
    let access = if file { access & AccessFs::from_file(NEWEST) } else { access };
    rules.add_rule(PathBeneath::new(opened, access)).map_err(|error| fail(&error))
}
