//! Gives a volume's files to a pod's group.

use std::{
    fs, io,
    os::unix::fs::{MetadataExt, PermissionsExt, lchown},
    path::{Path, PathBuf},
};

/// What a file's group may do beside what it could.
const FILE: u32 = 0o660;
const FILE_READ_ONLY: u32 = 0o440;
/// What is made in a directory goes to the group, too.
const DIRECTORY: u32 = 0o2770;
const DIRECTORY_READ_ONLY: u32 = 0o2550;

/// Gives everything in a directory to a group. With `root_only`, nothing is done if the directory itself is
/// the group's already. Links are not followed.
pub(super) fn give(dir: &Path, group: u32, read_only: bool, root_only: bool) -> io::Result<()> {
    let root = fs::metadata(dir)?;
    let wanted = if read_only { DIRECTORY_READ_ONLY } else { DIRECTORY };
    if root_only && root.gid() == group && root.mode() & wanted == wanted {
        return Ok(());
    }
    let mut ahead: Vec<PathBuf> = vec![dir.to_path_buf()];
    while let Some(path) = ahead.pop() {
        let meta = fs::symlink_metadata(&path)?;
        lchown(&path, None, Some(group))?;
        if meta.is_symlink() {
            continue;
        }
        let more = match (meta.is_dir(), read_only) {
            (true, _) => wanted,
            (false, true) => FILE_READ_ONLY,
            (false, false) => FILE,
        };
        fs::set_permissions(&path, fs::Permissions::from_mode(meta.mode() & 0o7777 | more))?;
        if meta.is_dir() {
            for entry in fs::read_dir(&path)? {
                ahead.push(entry?.path());
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn all_goes_to_the_group_and_links_are_not_followed() {
        let dir = tempfile::tempdir().unwrap();
        let (root, outside) = (dir.path().join("root"), dir.path().join("outside"));
        fs::create_dir_all(root.join("deep")).unwrap();
        for file in [root.join("deep/file"), outside.clone()] {
            fs::write(&file, "").unwrap();
            fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).unwrap();
        }
        symlink(&outside, root.join("link")).unwrap();
        let group = nix::unistd::getegid().as_raw();
        let mode = |path: &Path| fs::metadata(path).unwrap().mode() & 0o7777;
        give(&root, group, false, false).unwrap();
        assert_eq!((mode(&root.join("deep")) & DIRECTORY, mode(&root.join("deep/file"))), (DIRECTORY, 0o660));
        assert_eq!(mode(&outside), 0o600);
        fs::set_permissions(root.join("deep/file"), fs::Permissions::from_mode(0o600)).unwrap();
        give(&root, group, false, true).unwrap();
        assert_eq!(mode(&root.join("deep/file")), 0o600, "the root says it is done");
    }
}
