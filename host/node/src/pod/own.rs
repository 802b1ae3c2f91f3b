//! Who owns a volume's files, and links to volumes that are elsewhere.

use std::{
    io,
    os::unix::fs::{PermissionsExt, symlink},
    path::Path,
};

use nix::unistd::{Gid, chown, geteuid};
use wasmk_api::k8s_openapi::api::core::v1::Pod;

/// The group that a pod's volumes belong to, if it names one and this agent may give files away.
pub(crate) fn group(pod: &Pod) -> Option<u32> {
    let group = pod.spec.as_ref()?.security_context.as_ref()?.fs_group?;
    u32::try_from(group).ok().filter(|_| geteuid().is_root())
}

/// Gives a file to the group.
pub(super) fn give(path: &Path, group: Option<u32>) -> io::Result<()> {
    match group {
        Some(group) => Ok(chown(path, None, Some(Gid::from_raw(group)))?),
        None => Ok(()),
    }
}

/// A directory that everybody in the pod may write to; what is made in it goes to the group.
pub(super) fn scratch(path: &Path, group: Option<u32>) -> io::Result<()> {
    give(path, group)?;
    let by_group = if group.is_some() { 0o2000 } else { 0 };
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o777 | by_group))
}

/// Makes `link` point to `target`, whatever it was before.
pub(crate) fn link(link: &Path, target: &Path) -> io::Result<()> {
    if std::fs::read_link(link).is_ok_and(|now| now == target) {
        return Ok(());
    }
    if let Some(parent) = link.parent() {
        std::fs::create_dir_all(parent)?;
    }
    match std::fs::symlink_metadata(link) {
        Ok(meta) if meta.is_dir() => std::fs::remove_dir_all(link)?,
        Ok(_) => std::fs::remove_file(link)?,
        Err(_) => {}
    }
    symlink(target, link)
}
