//! Files of volumes whose content comes from the API: all of a volume's change in one step.

use std::{
    collections::BTreeMap,
    io,
    os::unix::fs::{OpenOptionsExt, PermissionsExt, symlink},
    path::{Component, Path},
};

use super::{super::own, make_dir};

/// The files of a volume: path in it, content, mode.
pub(super) type Files = BTreeMap<String, (Vec<u8>, i32)>;

/// Replaces the volume's content in one step: the files stand in a directory of their own,
/// `..data` points to it, and each name in the volume is a link through `..data`.
pub(super) fn write_files(target: &Path, files: &Files, group: Option<u32>) -> io::Result<()> {
    make_dir(target)?;
    if !files.keys().all(|p| is_inside(p)) {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "a path leads out of the volume"));
    }
    let data = target.join("..data");
    let old = std::fs::read_link(&data).ok();
    if old.is_some() && same(&data, files) {
        return Ok(());
    }
    let fresh = format!("..{:.9}", wasmk_api::Timestamp::now().0).replace([':', '-', 'T', 'Z'], "_");
    let folder = target.join(&fresh);
    for (path, (content, mode)) in files {
        let path = folder.join(path);
        if let Some(parent) = path.parent() {
            make_dir(parent)?;
        }
        write_file(&path, content, *mode, group)?;
    }
    make_dir(&folder)?;
    let link = target.join("..data_tmp");
    let _ = std::fs::remove_file(&link);
    symlink(&fresh, &link)?;
    std::fs::rename(&link, &data)?;
    link_names(target, files)?;
    match old {
        Some(old) => std::fs::remove_dir_all(target.join(old)),
        None => Ok(()),
    }
}

fn write_file(path: &Path, content: &[u8], mode: i32, group: Option<u32>) -> io::Result<()> {
    let mode = u32::try_from(mode).unwrap_or(0o644) & 0o777;
    let mut file = std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    io::Write::write_all(&mut file, content)?;
    let readable_by_group = if group.is_some() { 0o040 } else { 0 };
    own::give(path, group)?;
    // After writing: a mode without the write bit is allowed, and the umask has no say.
    file.set_permissions(std::fs::Permissions::from_mode(mode | 0o400 | readable_by_group))
}

/// Links each top-level name, removes links to names that are gone.
fn link_names(target: &Path, files: &Files) -> io::Result<()> {
    let first = |p: &str| p.split('/').next().unwrap_or(p).to_string();
    let wanted: std::collections::BTreeSet<String> = files.keys().map(|p| first(p)).collect();
    for entry in std::fs::read_dir(target)? {
        let name = entry?.file_name().to_string_lossy().into_owned();
        if !name.starts_with("..") && !wanted.contains(&name) {
            std::fs::remove_file(target.join(name))?;
        }
    }
    for name in wanted {
        let link = target.join(&name);
        if link.symlink_metadata().is_err() {
            symlink(Path::new("..data").join(&name), link)?;
        }
    }
    Ok(())
}

fn same(data: &Path, files: &Files) -> bool {
    let count = files.len();
    let equal =
        files.iter().all(|(path, (content, _))| std::fs::read(data.join(path)).is_ok_and(|c| c == *content));
    equal && count_files(data) == count
}

fn count_files(dir: &Path) -> usize {
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    entries.map(|e| if e.path().is_dir() { count_files(&e.path()) } else { 1 }).sum()
}

/// Whether a path stays below where it begins.
pub(super) fn is_inside(path: &str) -> bool {
    let mut parts = Path::new(path).components().peekable();
    parts.peek().is_some() && parts.all(|p| matches!(p, Component::Normal(_)))
}
