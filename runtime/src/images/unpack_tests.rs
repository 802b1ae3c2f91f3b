use std::io::Write;

use super::*;

/// An entry: kind, path, content or target of the link.
type Entry<'a> = (EntryType, &'a str, &'a str);

const DIR: EntryType = EntryType::Directory;
const FILE: EntryType = EntryType::Regular;
const LINK: EntryType = EntryType::Symlink;
const HARD: EntryType = EntryType::Link;

/// An archive, also of what no proper tool would make.
fn archive(entries: &[Entry<'_>]) -> Vec<u8> {
    let mut out = tar::Builder::new(Vec::new());
    for (kind, path, text) in entries {
        let mut header = Header::new_gnu();
        header.set_entry_type(*kind);
        header.set_mode(0o4751);
        header.set_mtime(1_000_000);
        header.set_uid(nix::unistd::getuid().as_raw().into());
        header.set_gid(0);
        header.as_old_mut().name[..path.len()].copy_from_slice(path.as_bytes());
        if matches!(*kind, LINK | HARD) {
            header.as_old_mut().linkname[..text.len()].copy_from_slice(text.as_bytes());
        }
        let content = if *kind == FILE { text.as_bytes() } else { b"" };
        header.set_size(content.len() as u64);
        header.set_cksum();
        out.append(&header, content).unwrap();
    }
    out.into_inner().unwrap()
}

/// What is in a directory, in order: `a/`, `a/b=content`, `c->target`.
fn listing(root: &Path) -> Vec<String> {
    let mut out = Vec::new();
    let mut entries: Vec<_> = fs::read_dir(root).unwrap().map(|e| e.unwrap().path()).collect();
    entries.sort();
    for path in entries {
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        let meta = fs::symlink_metadata(&path).unwrap();
        if meta.is_dir() {
            out.push(format!("{name}/"));
            out.extend(listing(&path).into_iter().map(|below| format!("{name}/{below}")));
        } else if meta.is_symlink() {
            out.push(format!("{name}->{}", fs::read_link(&path).unwrap().display()));
        } else {
            out.push(format!("{name}={}", fs::read_to_string(&path).unwrap()));
        }
    }
    out
}

/// Unpacks layers beside a file that they must not touch.
fn unpack(layers: &[Vec<u8>], limit: u64) -> Result<Vec<String>, String> {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("outside"), "untouched").unwrap();
    let root = dir.path().join("root");
    fs::create_dir(&root).unwrap();
    let mut unpacker = Unpacker::new(root.clone(), limit);
    let result = layers.iter().try_for_each(|layer| unpacker.layer(&layer[..]));
    let around: Vec<_> = listing(dir.path()).into_iter().filter(|e| !e.starts_with("root/")).collect();
    assert_eq!(around, ["outside=untouched"]);
    result.map(|()| listing(&root)).map_err(|e| e.to_string())
}

fn check(layers: &[&[Entry<'_>]], expect: &[&str]) {
    let layers: Vec<_> = layers.iter().map(|entries| archive(entries)).collect();
    assert_eq!(unpack(&layers, 1 << 20).unwrap(), expect);
}

fn refused(entries: &[Entry<'_>], expect: &str) {
    let error = unpack(&[archive(entries)], 1 << 20).unwrap_err();
    assert!(error.contains(expect), "{entries:?}: {error}");
}

#[test]
fn layers_cover_each_other() {
    check(
        &[&[(DIR, "./", ""), (DIR, "./a/", ""), (FILE, "./a/b", "1"), (FILE, "c", "2")]],
        &["a/", "a/b=1", "c=2"],
    );
    check(&[&[(FILE, "a/b", "1")], &[(FILE, "a/b", "2")]], &["a/", "a/b=2"]);
    check(&[&[(FILE, "a", "1")], &[(DIR, "a", ""), (FILE, "a/b", "2")]], &["a/", "a/b=2"]);
    check(&[&[(FILE, "a/b", "1")], &[(FILE, "a", "2")]], &["a=2"]);
    // Whiteouts take away what layers below brought, and nothing of their own.
    check(&[&[(FILE, "a", "1"), (FILE, "b", "1")], &[(FILE, ".wh.a", "")]], &["b=1"]);
    check(&[&[(FILE, "a/x", "1")], &[(FILE, ".wh.a", ""), (FILE, "none/.wh.b", "")]], &[]);
    check(
        &[
            &[(FILE, "d/old", "1"), (FILE, "d/e/old", "1")],
            &[(FILE, "d/e/new", "2"), (FILE, "d/.wh..wh..opq", ""), (FILE, "d/late", "2")],
        ],
        &["d/", "d/e/", "d/e/new=2", "d/late=2"],
    );
    check(&[&[(FILE, "a", "1"), (FILE, ".wh.a", ""), (FILE, ".wh...", ""), (FILE, ".wh.", "")]], &["a=1"]);
}

#[test]
fn links_stay_within_the_image() {
    check(
        &[&[(LINK, "bin", "usr/bin"), (FILE, "usr/bin/a", "1"), (FILE, "bin/b", "2")]],
        &["bin->usr/bin", "usr/", "usr/bin/", "usr/bin/a=1", "usr/bin/b=2"],
    );
    // As in a root directory; it may point anywhere, and nothing goes there.
    check(&[&[(LINK, "l", "/etc"), (FILE, "l/passwd", "1")]], &["etc/", "etc/passwd=1", "l->/etc"]);
    check(&[&[(LINK, "l", "../outside")]], &["l->../outside"]);
    check(&[&[(LINK, "l", "../outside"), (FILE, "l", "1")]], &["l=1"]);
    check(&[&[(FILE, "a", "1"), (HARD, "b", "a"), (HARD, "a", "a")]], &["a=1", "b=1"]);
    refused(&[(LINK, "l", ".."), (FILE, "l/outside", "1")], "leads out of the image");
    refused(&[(LINK, "d/l", "../../.."), (FILE, "d/l/outside", "1")], "leads out of the image");
    refused(&[(LINK, "a", "b"), (LINK, "b", "a"), (FILE, "a/x", "1")], "too many links");
    refused(&[(HARD, "h", "../outside")], "leads out of the image");
    refused(&[(HARD, "h", "/etc/passwd")], "leads out of the image");
    refused(&[(LINK, "l", ".."), (HARD, "h", "l/outside")], "leads out of the image");
    refused(&[(HARD, "h", "none")], "does not have");
}

#[test]
fn what_leads_out_or_is_no_file_is_refused() {
    for path in ["../outside", "a/../../outside", "/outside"] {
        refused(&[(FILE, path, "1")], "leads out of the image");
        refused(&[(DIR, path, "")], "leads out of the image");
    }
    for kind in [EntryType::Char, EntryType::Block, EntryType::Fifo, EntryType::GNUSparse] {
        refused(&[(kind, "dev/x", "")], "only directories, files and links");
    }
    refused(&[(FILE, "a", "1"), (FILE, "a/b", "2")], "is a file");
    assert!(unpack(&[vec![7; 2048]], 1 << 20).is_err());
}

#[test]
fn bounds_hold_for_what_is_unpacked() {
    let zeros = "0".repeat(1 << 20);
    let mut zipped = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    zipped.write_all(&archive(&[(FILE, "zeros", &zeros)])).unwrap();
    let bomb = zipped.finish().unwrap();
    assert!(bomb.len() < 20_000);
    let layers = [bomb.clone(), bomb];
    assert!(unpack(&layers[..1], 3 << 19).is_ok());
    assert!(unpack(&layers, 3 << 19).unwrap_err().contains("more than the 1572864 bytes"));
    // A name as long as an archive is not read into memory.
    let mut header = Header::new_gnu();
    header.set_entry_type(EntryType::GNULongName);
    header.set_size(1 << 19);
    header.set_cksum();
    let long = [header.as_bytes().as_slice(), &vec![b'a'; 1 << 19]].concat();
    assert!(unpack(&[long], 1 << 20).unwrap_err().contains("a name has more than"));
}

#[test]
fn long_names_and_modes_are_kept() {
    let mut out = tar::Builder::new(Vec::new());
    let name = format!("{}/{}", "d".repeat(120), "f".repeat(120));
    let mut header = Header::new_gnu();
    header.set_size(1);
    header.set_mode(0o4700);
    header.set_uid(nix::unistd::getuid().as_raw().into());
    header.set_gid(0);
    out.append_data(&mut header, &name, &b"1"[..]).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let mut unpacker = Unpacker::new(dir.path().into(), 1 << 20);
    unpacker.layer(&out.into_inner().unwrap()[..]).unwrap();
    let meta = fs::metadata(dir.path().join(&name)).unwrap();
    assert_eq!((meta.permissions().mode() & 0o7777, meta.len()), (0o700, 1));
    let file = dir.path().join("blob");
    fs::write(&file, "artifact").unwrap();
    unpacker.file("models/m.bin", &file).unwrap();
    assert_eq!(fs::read_to_string(dir.path().join("models/m.bin")).unwrap(), "artifact");
    fs::write(&file, "artifact").unwrap();
    for name in ["../m", "/m", "", "."] {
        assert!(unpacker.file(name, &file).is_err(), "{name:?}");
    }
}
