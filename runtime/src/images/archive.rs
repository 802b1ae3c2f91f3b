//! The one Wasm file in an image's archives.

use std::io::{self, Read, Write};
use std::path::Path;

use super::inflate::inflate;

/// Most entries of an archive that are looked at.
const MAX_ENTRIES: usize = 10_000;

/// Copies the wanted file of an archive to `out`, at most `limit` bytes; its length.
///
/// Wanted is `program` if it is given, otherwise the only file whose name ends in `.wasm`. `Ok(None)`:
/// there is no such file here.
pub(super) fn extract(
    archive: impl Read,
    program: Option<&str>,
    limit: u64,
    out: &mut impl Write,
) -> io::Result<Option<u64>> {
    search(inflate(archive)?, program, limit, out)
}

fn search(
    archive: impl Read,
    program: Option<&str>,
    limit: u64,
    out: &mut impl Write,
) -> io::Result<Option<u64>> {
    let mut found = None;
    // A small archive may unpack to anything: the limit holds for all that is read.
    let mut archive = tar::Archive::new(archive.take(limit.saturating_mul(2)));
    for (count, entry) in archive.entries()?.enumerate() {
        if count >= MAX_ENTRIES {
            return Err(io::Error::other(format!("archive has more than {MAX_ENTRIES} entries")));
        }
        let mut entry = entry?;
        if !entry.header().entry_type().is_file() || !wanted(&entry.path()?, program) {
            continue;
        }
        if found.is_some() {
            return Err(io::Error::other("archive has several Wasm files and its image names none"));
        }
        if entry.size() > limit {
            return Err(io::Error::other(format!("Wasm file in the archive is larger than {limit} bytes")));
        }
        found = Some(io::copy(&mut entry, out)?);
    }
    Ok(found)
}

fn wanted(path: &Path, program: Option<&str>) -> bool {
    let relative = |path: &Path| {
        path.components()
            .filter(|part| matches!(part, std::path::Component::Normal(_)))
            .collect::<std::path::PathBuf>()
    };
    match program {
        Some(program) => relative(path) == relative(Path::new(program)),
        None => path.extension().is_some_and(|extension| extension == "wasm"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn archive(files: &[(&str, &[u8])]) -> Vec<u8> {
        let mut builder = tar::Builder::new(Vec::new());
        for (name, content) in files {
            let mut header = tar::Header::new_gnu();
            header.set_size(content.len() as u64);
            header.set_mode(0o644);
            builder.append_data(&mut header, name, *content).unwrap();
        }
        builder.into_inner().unwrap()
    }

    fn check(files: &[(&str, &[u8])], program: Option<&str>, expect: Result<Option<&str>, &str>) {
        let plain = archive(files);
        let mut zipped = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        zipped.write_all(&plain).unwrap();
        for bytes in [plain, zipped.finish().unwrap()] {
            let mut out = Vec::new();
            let found = extract(&bytes[..], program, 100_000, &mut out);
            match expect {
                Ok(None) => assert_eq!(found.unwrap(), None),
                Ok(Some(text)) => {
                    assert_eq!(found.unwrap(), Some(text.len() as u64));
                    assert_eq!(out, text.as_bytes());
                }
                Err(text) => assert!(found.unwrap_err().to_string().contains(text)),
            }
        }
    }

    #[test]
    fn the_one_wasm_file_is_found() {
        check(&[("etc/x", b"x"), ("app.wasm", b"wasm")], None, Ok(Some("wasm")));
        check(&[("a.wasm", b"1"), ("b/b.wasm", b"2")], Some("/b/b.wasm"), Ok(Some("2")));
        check(&[("program", b"1")], Some("program"), Ok(Some("1")));
        check(&[("etc/x", b"x")], None, Ok(None));
        check(&[("a.wasm", b"1")], Some("/other.wasm"), Ok(None));
        check(&[("a.wasm", b"1"), ("b.wasm", b"2")], None, Err("several Wasm files"));
        check(&[("a.wasm", &[0; 100_001])], None, Err("larger than 100000 bytes"));
    }

    #[test]
    fn noise_is_an_error() {
        let mut out = Vec::new();
        assert!(extract(&[7u8; 2048][..], None, 1 << 20, &mut out).is_err());
        assert!(extract(&[0x1f, 0x8b, 1, 2, 3][..], None, 1 << 20, &mut out).is_err());
        assert_eq!(extract(&[][..], None, 1 << 20, &mut out).unwrap(), None);
    }
}
