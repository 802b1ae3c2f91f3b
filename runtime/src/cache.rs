//! Compiled code on disk.
//!
//! Mapping compiled code runs whatever it contains, so only files this runtime wrote may be mapped. Each
//! is sealed (AES-GCM over code and name) with a random key that lies beside them, readable by the owner
//! alone; a file that is damaged, renamed or foreign fails the check and is made again. The name covers
//! the program's digest and everything compiled code depends on.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use ring::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use ring::rand::{SecureRandom, SystemRandom};
use sha2::{Digest, Sha256};
use wasmtime::{Engine, Precompiled};

use crate::engine::fingerprint;
use crate::prepare::{Code, Compiled};

const KEY_FILE: &str = "key";
const CODE: &str = "cwasm";
const SEAL: &str = "seal";
const KEY_LEN: usize = 32;
/// Of code and seals; files of another are not looked at and go when room is needed.
const FORMAT: &[u8] = b"2";

/// A directory of sealed compiled code.
pub(crate) struct CodeCache {
    dir: PathBuf,
    key: LessSafeKey,
    fingerprint: [u8; 32],
    max_bytes: u64,
}

/// What was found under a name.
pub(crate) enum Found {
    Code(Compiled),
    Nothing,
    /// A file that may not be mapped; it is gone now.
    Rejected,
}

impl CodeCache {
    pub(crate) fn open(dir: PathBuf, engine: &Engine, max_bytes: u64) -> io::Result<Self> {
        DirBuilder::new().recursive(true).mode(0o700).create(&dir)?;
        fs::set_permissions(&dir, fs::Permissions::from_mode(0o700))?;
        let key = read_or_make_key(&dir.join(KEY_FILE))?;
        let key =
            UnboundKey::new(&AES_256_GCM, &key).map_err(|_| io::Error::other("cache key is unusable"))?;
        Ok(Self { dir, key: LessSafeKey::new(key), fingerprint: fingerprint(engine), max_bytes })
    }

    /// The code compiled from the program with this digest.
    pub(crate) fn load(&self, engine: &Engine, digest: &str) -> Found {
        let name = self.name(digest);
        let code_path = self.path(&name, CODE);
        let Ok(file) = File::open(&code_path) else {
            return Found::Nothing;
        };
        match self.checked(engine, &name, file) {
            Ok(compiled) => Found::Code(compiled),
            Err(error) => {
                tracing::warn!(path = %code_path.display(), "compiled code rejected: {error}");
                self.remove(&name);
                Found::Rejected
            }
        }
    }

    /// Code that was loaded or stored before, for another process to read.
    pub(crate) fn open_code(&self, digest: &str) -> Option<File> {
        File::open(self.path(&self.name(digest), CODE)).ok()
    }

    fn checked(&self, engine: &Engine, name: &str, mut file: File) -> io::Result<Compiled> {
        let mut code = Vec::new();
        file.read_to_end(&mut code)?;
        let mut seal = fs::read(self.path(name, SEAL))?;
        let reuse = self.verify(name, &code, &mut seal)?;
        // For the eviction of the least recently used; a file system without times loses only that.
        let _ = file.set_modified(SystemTime::now());
        let kind = Engine::detect_precompiled(&code);
        Ok(Compiled { code: map(engine, kind, file)?, reuse })
    }

    /// Keeps `compiled` for later. What was there before is replaced.
    pub(crate) fn store(&self, digest: &str, compiled: &Compiled) -> io::Result<()> {
        let name = self.name(digest);
        let code = compiled.code.serialize().map_err(|error| io::Error::other(format!("{error:#}")))?;
        if code.len() as u64 > self.max_bytes {
            return Ok(());
        }
        self.make_room(code.len() as u64)?;
        let seal = self.seal(&name, &code, compiled.reuse)?;
        write_whole(&self.path(&name, CODE), &code)?;
        write_whole(&self.path(&name, SEAL), &seal)
    }

    fn name(&self, digest: &str) -> String {
        let mut hash = Sha256::new();
        hash.update(FORMAT);
        hash.update(self.fingerprint);
        hash.update(digest);
        hex::encode(hash.finalize())
    }

    fn path(&self, name: &str, extension: &str) -> PathBuf {
        self.dir.join(format!("{name}.{extension}"))
    }

    fn remove(&self, name: &str) {
        for extension in [CODE, SEAL] {
            let _ = fs::remove_file(self.path(name, extension));
        }
    }

    /// Binds code to its name, and to what its program declared.
    fn seal(&self, name: &str, code: &[u8], reuse: Option<u32>) -> io::Result<Vec<u8>> {
        let mut nonce = [0; NONCE_LEN];
        fill_random(&mut nonce)?;
        let mut seal = reuse.unwrap_or(0).to_le_bytes().to_vec();
        seal.extend_from_slice(name.as_bytes());
        self.key
            .seal_in_place_append_tag(Nonce::assume_unique_for_key(nonce), Aad::from(code), &mut seal)
            .map_err(|_| io::Error::other("cannot seal compiled code"))?;
        Ok([&nonce[..], &seal].concat())
    }

    fn verify(&self, name: &str, code: &[u8], seal: &mut [u8]) -> io::Result<Option<u32>> {
        let bad = || io::Error::new(io::ErrorKind::InvalidData, "seal does not match");
        let (nonce, sealed) = seal.split_at_mut_checked(NONCE_LEN).ok_or_else(bad)?;
        let nonce = Nonce::try_assume_unique_for_key(nonce).map_err(|_| bad())?;
        let opened = self.key.open_in_place(nonce, Aad::from(code), sealed).map_err(|_| bad())?;
        let (reuse, sealed_name) = opened.split_first_chunk().ok_or_else(bad)?;
        let reuse = u32::from_le_bytes(*reuse);
        if sealed_name == name.as_bytes() { Ok((reuse > 0).then_some(reuse)) } else { Err(bad()) }
    }

    /// Removes the least recently used until `bytes` more fit.
    fn make_room(&self, bytes: u64) -> io::Result<()> {
        let mut files = Vec::new();
        for entry in fs::read_dir(&self.dir)? {
            let path = entry?.path();
            if path.extension().is_some_and(|extension| extension == CODE)
                && let Ok(data) = fs::metadata(&path)
            {
                files.push((data.modified().unwrap_or(SystemTime::UNIX_EPOCH), data.len(), path));
            }
        }
        files.sort();
        let mut total: u64 = bytes + files.iter().map(|(_, length, _)| length).sum::<u64>();
        for (_, length, path) in files {
            if total <= self.max_bytes {
                break;
            }
            if let Some(name) = path.file_stem().and_then(|name| name.to_str()) {
                self.remove(name);
            }
            total -= length;
        }
        Ok(())
    }
}

#[allow(unsafe_code)]
fn map(engine: &Engine, kind: Option<Precompiled>, file: File) -> io::Result<Code> {
    let fail = |error: wasmtime::Error| io::Error::new(io::ErrorKind::InvalidData, format!("{error:#}"));
    match kind {
        Some(Precompiled::Module) => {
            // SAFETY: the caller has checked the seal over this open file's content, so the engine wrote
            // it; nobody but the owner can write in the directory. The engine checks its own version.
            unsafe { wasmtime::Module::deserialize_open_file(engine, file) }.map(Code::Module).map_err(fail)
        }
        Some(Precompiled::Component) => {
            let path = PathBuf::from(format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&file)));
            // SAFETY: as above; the path names the very file that was checked.
            unsafe { wasmtime::component::Component::deserialize_file(engine, path) }
                .map(Code::Component)
                .map_err(fail)
        }
        None => Err(io::Error::new(io::ErrorKind::InvalidData, "not compiled code")),
    }
}

fn read_or_make_key(path: &Path) -> io::Result<Vec<u8>> {
    match fs::read(path) {
        Ok(key) if key.len() == KEY_LEN => return Ok(key),
        Ok(_) => tracing::warn!(path = %path.display(), "cache key is damaged; compiled code is made again"),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    let mut key = vec![0; KEY_LEN];
    fill_random(&mut key)?;
    write_whole(path, &key)?;
    // Another process may have been faster; whoever came last is right for both.
    fs::read(path)
}

fn fill_random(bytes: &mut [u8]) -> io::Result<()> {
    SystemRandom::new().fill(bytes).map_err(|_| io::Error::other("the system has no random numbers"))
}

/// Writes a file in one step: it is there whole or not at all.
fn write_whole(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut suffix = [0; 8];
    fill_random(&mut suffix)?;
    let temporary = path.with_extension(format!("tmp-{}", hex::encode(suffix)));
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&temporary)?;
    let written = file.write_all(bytes).and_then(|()| fs::rename(&temporary, path));
    if written.is_err() {
        let _ = fs::remove_file(&temporary);
    }
    written
}

#[cfg(test)]
mod tests {
    use super::*;

    fn compiled(engine: &Engine, text: &str) -> Compiled {
        crate::prepare::compile(engine, &wat::parse_str(text).unwrap()).unwrap()
    }

    fn files(dir: &Path, extension: &str) -> Vec<PathBuf> {
        let all = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
        all.filter(|path| path.extension().is_some_and(|found| found == extension)).collect()
    }

    fn open(dir: &Path, engine: &Engine, max: u64) -> CodeCache {
        CodeCache::open(dir.to_owned(), engine, max).unwrap()
    }

    #[test]
    fn only_intact_code_is_mapped() {
        let dir = tempfile::tempdir().unwrap();
        let engine = Engine::default();
        let module = compiled(&engine, "(module (func (export \"_start\")))");
        let component =
            compiled(&engine, "(component (core module (@custom \"wasmk:instance-reuse\" \"7\")))");
        let cache = open(dir.path(), &engine, u64::MAX);
        assert!(matches!(cache.load(&engine, "sha256:a"), Found::Nothing));

        cache.store("sha256:a", &module).unwrap();
        cache.store("sha256:b", &component).unwrap();
        let again = open(dir.path(), &engine, u64::MAX);
        let loaded = again.load(&engine, "sha256:a");
        assert!(matches!(loaded, Found::Code(Compiled { code: Code::Module(_), reuse: None })));
        let loaded = again.load(&engine, "sha256:b");
        assert!(matches!(loaded, Found::Code(Compiled { code: Code::Component(_), reuse: Some(7) })));

        type Damage = fn(&mut Vec<u8>);
        let damage: [(&str, Damage); 5] = [
            (CODE, |bytes| bytes.truncate(bytes.len() / 2)),
            (CODE, |bytes| *bytes.last_mut().unwrap() ^= 1),
            (CODE, Vec::clear),
            (SEAL, |bytes| bytes[0] ^= 1),
            (SEAL, |bytes| bytes.truncate(5)),
        ];
        for (extension, change) in damage {
            cache.store("sha256:a", &module).unwrap();
            cache.remove(&cache.name("sha256:b"));
            let path = files(dir.path(), extension).pop().unwrap();
            let mut bytes = fs::read(&path).unwrap();
            change(&mut bytes);
            fs::write(&path, bytes).unwrap();
            assert!(matches!(cache.load(&engine, "sha256:a"), Found::Rejected), "{extension}");
            assert!(files(dir.path(), CODE).is_empty(), "what was rejected is gone");
        }
    }

    #[test]
    fn code_under_another_name_or_key_is_rejected() {
        let dir = tempfile::tempdir().unwrap();
        let engine = Engine::default();
        let cache = open(dir.path(), &engine, u64::MAX);
        cache.store("sha256:a", &compiled(&engine, "(module)")).unwrap();
        for extension in [CODE, SEAL] {
            fs::copy(
                cache.path(&cache.name("sha256:a"), extension),
                cache.path(&cache.name("sha256:b"), extension),
            )
            .unwrap();
        }
        assert!(matches!(cache.load(&engine, "sha256:b"), Found::Rejected));

        fs::write(dir.path().join(KEY_FILE), [7; KEY_LEN]).unwrap();
        let other = open(dir.path(), &engine, u64::MAX);
        assert!(matches!(other.load(&engine, "sha256:a"), Found::Rejected));
    }

    #[test]
    fn least_recently_used_goes_first() {
        let dir = tempfile::tempdir().unwrap();
        let engine = Engine::default();
        let module = compiled(&engine, "(module)");
        let size = module.code.serialize().unwrap().len() as u64;
        let cache = open(dir.path(), &engine, 2 * size);
        for (age, digest) in [(30, "sha256:a"), (20, "sha256:b")] {
            cache.store(digest, &module).unwrap();
            let file = File::open(cache.path(&cache.name(digest), CODE)).unwrap();
            file.set_modified(SystemTime::now() - std::time::Duration::from_secs(age)).unwrap();
        }
        assert!(matches!(cache.load(&engine, "sha256:a"), Found::Code(_)));
        cache.store("sha256:c", &module).unwrap();
        assert!(matches!(cache.load(&engine, "sha256:b"), Found::Nothing));
        assert!(matches!(cache.load(&engine, "sha256:a"), Found::Code(_)));
        assert_eq!(files(dir.path(), SEAL).len(), 2);
    }
}
