//! Unpacks the layers of an image into a directory.
//!
//! Layers are strangers' archives. Nothing of them is followed out of the directory, nothing but
//! directories, files and links is made, and all of them together have bounds. Nobody else may write to
//! the directory meanwhile.

use std::collections::{BTreeSet, VecDeque};
use std::ffi::{OsStr, OsString};
use std::fs::{self, Permissions};
use std::io::{self, Read};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{PermissionsExt, lchown, symlink};
use std::path::{Component, Path, PathBuf};
use std::time::{Duration, SystemTime};

use tar::{EntryType, Header, PaxExtensions};

use super::inflate::inflate;

/// Most entries of all layers together.
const MAX_ENTRIES: usize = 200_000;
/// Most bytes of the headers that carry long names.
const MAX_EXTENSION: u64 = 64 << 10;
/// Most links on the way to one file.
const MAX_LINKS: usize = 40;
/// Names that begin so say what a layer takes away from those below it.
const WHITEOUT: &[u8] = b".wh.";
/// A directory with this has nothing of the layers below.
const OPAQUE: &[u8] = b".wh..wh..opq";

/// A directory that layers are unpacked into, the lowest first.
pub(super) struct Unpacker {
    root: PathBuf,
    limit: u64,
    /// Bytes that may still come.
    left: u64,
    entries: usize,
    /// Files keep their owners; only root may give files away.
    owners: bool,
}

/// An entry's names, which may stand in headers before it.
#[derive(Default)]
struct Extension {
    path: Option<Vec<u8>>,
    link: Option<Vec<u8>>,
}

impl Unpacker {
    /// Unpacks to `root`, a directory that is there; at most `limit` bytes of all layers.
    pub(super) fn new(root: PathBuf, limit: u64) -> Self {
        let owners = nix::unistd::geteuid().is_root();
        Self { root, limit, left: limit, entries: 0, owners }
    }

    /// Bytes unpacked so far, with the archives' headers.
    pub(super) fn size(&self) -> u64 {
        self.limit - self.left
    }

    /// Unpacks one layer over those before it.
    ///
    /// # Errors
    /// Naming the entry that leads out or is none of what is allowed, or the bound that is passed.
    pub(super) fn layer(&mut self, archive: impl Read) -> io::Result<()> {
        let source = inflate(archive)?;
        let mut metered = Metered { source, left: self.left, limit: self.limit };
        let unpacked = self.entries(&mut metered);
        self.left = metered.left;
        unpacked
    }

    /// Puts one file into the directory, for artifacts whose layers are files.
    ///
    /// # Errors
    /// If its name leads out of the directory, or it is too large.
    pub(super) fn file(&mut self, name: &str, from: &Path) -> io::Result<()> {
        let size = fs::metadata(from)?.len();
        self.left = self.left.checked_sub(size).ok_or_else(|| too_large(self.limit))?;
        self.count()?;
        let place = self.place(&inside(name.as_bytes())?, &mut BTreeSet::new())?;
        let place = place.ok_or_else(|| io::Error::other(format!("{name:?} is no name of a file")))?;
        fs::rename(from, &place)?;
        fs::set_permissions(place, Permissions::from_mode(0o644))
    }

    fn count(&mut self) -> io::Result<()> {
        self.entries += 1;
        if self.entries > MAX_ENTRIES {
            return Err(io::Error::other(format!("it has more than {MAX_ENTRIES} files")));
        }
        Ok(())
    }

    fn entries(&mut self, archive: impl Read) -> io::Result<()> {
        let mut archive = tar::Archive::new(archive);
        let mut made = BTreeSet::new();
        let mut extension = Extension::default();
        // Raw, for otherwise a name as long as an archive is read into memory.
        for entry in archive.entries()?.raw(true) {
            let mut entry = entry?;
            self.count()?;
            if extension.take(&mut entry)? {
                continue;
            }
            let Extension { path, link } = std::mem::take(&mut extension);
            let path = path.unwrap_or_else(|| entry.path_bytes().into_owned());
            let link = link.or_else(|| entry.link_name_bytes().map(|l| l.into_owned()));
            let shown = String::from_utf8_lossy(&path).into_owned();
            let header = entry.header().clone();
            self.entry(&path, link, &header, &mut entry, &mut made)
                .map_err(|e| io::Error::new(e.kind(), format!("{shown:?}: {e}")))?;
        }
        Ok(())
    }

    fn entry(
        &self,
        path: &[u8],
        link: Option<Vec<u8>>,
        header: &Header,
        content: &mut impl Read,
        made: &mut BTreeSet<PathBuf>,
    ) -> io::Result<()> {
        let path = inside(path)?;
        let name = path.file_name().map(OsStr::as_bytes).unwrap_or_default();
        if name.starts_with(WHITEOUT) {
            return self.take_away(&path, made);
        }
        let kind = header.entry_type();
        let link = || link.clone().ok_or_else(|| io::Error::other("it links to nothing"));
        if kind == EntryType::Directory {
            return self.make_directory(&path, header, made);
        }
        let allowed = kind.is_file() || matches!(kind, EntryType::Symlink | EntryType::Link);
        if !allowed {
            return Err(io::Error::other("only directories, files and links are taken from images"));
        }
        // Found before anything is removed: a link to what stands here would lose it.
        let target = if kind == EntryType::Link { Some(self.existing(&inside(&link()?)?)?) } else { None };
        if target.is_some() && self.existing(&path).ok() == target {
            // A second name of itself.
            return Ok(());
        }
        let Some(place) = self.place(&path, made)? else {
            return Err(io::Error::other("it stands for the whole image"));
        };
        match target {
            Some(target) => return fs::hard_link(target, place),
            None if kind == EntryType::Symlink => symlink(OsString::from_vec(link()?), &place)?,
            None => write(&place, header, content)?,
        }
        self.give(&place, header)
    }

    fn make_directory(&self, path: &Path, header: &Header, made: &mut BTreeSet<PathBuf>) -> io::Result<()> {
        let Some(name) = path.file_name() else { return Ok(()) };
        let place = self.directory(path.parent().unwrap_or(Path::new("")), true)?.join(name);
        if !fs::symlink_metadata(&place).is_ok_and(|m| m.is_dir()) {
            remove(&place)?;
            fs::create_dir(&place)?;
        }
        // This process is to read and remove it.
        let mode = header.mode().unwrap_or(0o755) & 0o777 | 0o700;
        fs::set_permissions(&place, Permissions::from_mode(mode))?;
        self.give(&place, header)?;
        made.insert(place);
        Ok(())
    }

    fn give(&self, place: &Path, header: &Header) -> io::Result<()> {
        if !self.owners {
            return Ok(());
        }
        let id = |id: io::Result<u64>| id.ok().and_then(|id| u32::try_from(id).ok());
        lchown(place, id(header.uid()), id(header.gid()))
    }

    /// Where a file goes, with nothing there any longer; `None` for the directory itself.
    fn place(&self, path: &Path, made: &mut BTreeSet<PathBuf>) -> io::Result<Option<PathBuf>> {
        let Some(name) = path.file_name() else { return Ok(None) };
        let place = self.directory(path.parent().unwrap_or(Path::new("")), true)?.join(name);
        remove(&place)?;
        made.insert(place.clone());
        Ok(Some(place))
    }

    /// What a whiteout takes away; what its own layer brings stays.
    fn take_away(&self, path: &Path, made: &BTreeSet<PathBuf>) -> io::Result<()> {
        let name = path.file_name().map(OsStr::as_bytes).unwrap_or_default();
        let dir = match self.directory(path.parent().unwrap_or(Path::new("")), false) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            dir => dir?,
        };
        if name == OPAQUE {
            return clear(&dir, made);
        }
        let name = &name[WHITEOUT.len()..];
        // Others with this beginning are notes of the file system the layer was made on.
        if name.is_empty() || name == b"." || name == b".." || name.starts_with(WHITEOUT) {
            return Ok(());
        }
        let place = dir.join(OsStr::from_bytes(name));
        if made.contains(&place) { Ok(()) } else { remove(&place) }
    }

    /// The real place of something that is there.
    fn existing(&self, path: &Path) -> io::Result<PathBuf> {
        let name = path.file_name().ok_or_else(|| io::Error::other("it links to the whole image"))?;
        let place = self.directory(path.parent().unwrap_or(Path::new("")), false)?.join(name);
        match fs::symlink_metadata(&place) {
            Ok(meta) if meta.is_dir() => Err(io::Error::other("it is a second name of a directory")),
            Ok(_) => Ok(place),
            Err(_) => Err(io::Error::other("it links to what the image does not have")),
        }
    }

    /// The real directory a path stands for. Links are followed as in a root directory; one that climbs
    /// above it is refused.
    fn directory(&self, path: &Path, make: bool) -> io::Result<PathBuf> {
        let mut ahead: VecDeque<OsString> = path.iter().map(OsString::from).collect();
        let (mut at, mut links) = (PathBuf::new(), 0);
        while let Some(name) = ahead.pop_front() {
            if name == ".." {
                if !at.pop() {
                    return Err(io::Error::other("a link leads out of the image"));
                }
                continue;
            }
            let next = self.root.join(&at).join(&name);
            match fs::symlink_metadata(&next) {
                Ok(meta) if meta.is_dir() => at.push(name),
                Ok(meta) if meta.is_symlink() => {
                    links += 1;
                    if links > MAX_LINKS {
                        return Err(io::Error::other("too many links follow each other"));
                    }
                    let target = fs::read_link(&next)?;
                    if target.is_absolute() {
                        at = PathBuf::new();
                    }
                    let parts = target.components().filter_map(|c| match c {
                        Component::Normal(name) => Some(name.to_os_string()),
                        Component::ParentDir => Some("..".into()),
                        _ => None,
                    });
                    parts.rev().for_each(|part| ahead.push_front(part));
                }
                Ok(_) => return Err(io::Error::other("a part of the way to it is a file")),
                Err(error) if error.kind() == io::ErrorKind::NotFound && make => {
                    fs::create_dir(&next)?;
                    fs::set_permissions(&next, Permissions::from_mode(0o755))?;
                    at.push(name);
                }
                Err(error) => return Err(error),
            }
        }
        Ok(self.root.join(at))
    }
}

impl Extension {
    /// Whether an entry is only a header of the next one, which is then read.
    fn take(&mut self, entry: &mut tar::Entry<'_, impl Read>) -> io::Result<bool> {
        let kind = entry.header().entry_type();
        let mut read = || {
            if entry.size() > MAX_EXTENSION {
                return Err(io::Error::other(format!("a name has more than {MAX_EXTENSION} bytes")));
            }
            let mut bytes = Vec::new();
            entry.take(MAX_EXTENSION).read_to_end(&mut bytes).map(|_| bytes)
        };
        let text = |mut bytes: Vec<u8>| {
            bytes.truncate(bytes.iter().position(|b| *b == 0).unwrap_or(bytes.len()));
            bytes
        };
        match kind {
            EntryType::GNULongName => self.path = Some(text(read()?)),
            EntryType::GNULongLink => self.link = Some(text(read()?)),
            EntryType::XHeader => {
                for record in PaxExtensions::new(&read()?) {
                    let record = record?;
                    match record.key_bytes() {
                        b"path" => self.path = Some(record.value_bytes().to_vec()),
                        b"linkpath" => self.link = Some(record.value_bytes().to_vec()),
                        _ => {}
                    }
                }
            }
            EntryType::XGlobalHeader => {}
            _ => return Ok(false),
        }
        Ok(true)
    }
}

/// A path that stays below where it begins.
fn inside(path: &[u8]) -> io::Result<PathBuf> {
    let mut out = PathBuf::new();
    for part in Path::new(OsStr::from_bytes(path)).components() {
        match part {
            Component::Normal(name) => out.push(name),
            Component::CurDir => {}
            _ => return Err(io::Error::other("its path leads out of the image")),
        }
    }
    Ok(out)
}

fn write(place: &Path, header: &Header, content: &mut impl Read) -> io::Result<()> {
    let mut file = fs::File::create_new(place)?;
    io::copy(content, &mut file)?;
    let mode = header.mode().unwrap_or(0o644) & 0o777 | 0o400;
    file.set_permissions(Permissions::from_mode(mode))?;
    if let Ok(seconds) = header.mtime() {
        // A time that cannot be said is no reason to refuse the file.
        let _ = SystemTime::UNIX_EPOCH
            .checked_add(Duration::from_secs(seconds))
            .map(|time| file.set_modified(time));
    }
    Ok(())
}

/// Removes whatever is there; links are not followed.
fn remove(place: &Path) -> io::Result<()> {
    match fs::symlink_metadata(place) {
        Ok(meta) if meta.is_dir() => fs::remove_dir_all(place),
        Ok(_) => fs::remove_file(place),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
    }
}

/// Empties a directory but for what was made in this layer.
fn clear(dir: &Path, made: &BTreeSet<PathBuf>) -> io::Result<()> {
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        // Paths in order: what is below one comes right behind it.
        if !made.range(path.clone()..).next().is_some_and(|m| m.starts_with(&path)) {
            remove(&path)?;
        } else if fs::symlink_metadata(&path)?.is_dir() {
            clear(&path, made)?;
        }
    }
    Ok(())
}

fn too_large(limit: u64) -> io::Error {
    io::Error::other(format!("its content has more than the {limit} bytes there is room for"))
}

/// Fails once so many bytes were read.
struct Metered<R> {
    source: R,
    left: u64,
    limit: u64,
}

impl<R: Read> Read for Metered<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.source.read(buffer)?;
        self.left = self.left.checked_sub(read as u64).ok_or_else(|| too_large(self.limit))?;
        Ok(read)
    }
}

#[cfg(test)]
#[path = "unpack_tests.rs"]
mod tests;
