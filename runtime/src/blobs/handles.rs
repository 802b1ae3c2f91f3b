//! What a guest reads and writes just now, and its wishes carried out.

use std::collections::HashMap;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use parking_lot::Mutex;

use super::{BlobError, BlobTold, BlobWish, MAX_OBJECT, Result, Store};

/// Most objects that a guest reads and writes at a time, all its instances together.
pub(crate) const MAX_HANDLES: usize = 256;
/// Most bytes that are read or written at a time.
pub(crate) const MAX_PIECE: usize = 1 << 20;

/// The objects that one guest has open.
pub(crate) struct Handles {
    store: Arc<Store>,
    open: Mutex<Open>,
}

#[derive(Default)]
struct Open {
    last: u64,
    all: HashMap<u64, Handle>,
}

#[derive(Clone)]
enum Handle {
    Reading { file: Arc<File>, first: u64, length: u64 },
    Writing(Arc<Mutex<Part>>),
}

/// An object that is being written; nothing is left of one that is not finished.
pub(crate) struct Part {
    store: Arc<Store>,
    file: File,
    number: u64,
    size: u64,
    broken: bool,
    finished: bool,
}

impl Part {
    fn begin(store: &Arc<Store>) -> Result<Self> {
        let (file, number) = store.begin()?;
        Ok(Self { store: Arc::clone(store), file, number, size: 0, broken: false, finished: false })
    }

    fn append(&mut self, bytes: &[u8]) -> Result<()> {
        let written = self.write(bytes);
        self.broken |= written.is_err();
        written
    }

    fn write(&mut self, bytes: &[u8]) -> Result<()> {
        let more = bytes.len() as u64;
        if self.size + more > MAX_OBJECT {
            return Err(BlobError::TooLong);
        }
        self.store.reserve(more)?;
        let at = self.size;
        self.size += more;
        Ok(self.file.write_all_at(bytes, at)?)
    }

    fn finish(&mut self, container: &str, object: &str) -> Result<()> {
        if self.broken {
            return Err(BlobError::Broken);
        }
        if self.finished {
            return Err(BlobError::NoHandle);
        }
        // The object is there only when its bytes are.
        self.file.sync_data()?;
        let mut state = self.store.state()?;
        self.store.put(&mut state, container, object, self.number, self.size)?;
        self.finished = true;
        Ok(())
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        if !self.finished {
            self.store.abandon(self.number, self.size);
        }
    }
}

impl Handles {
    pub(crate) fn new(store: Arc<Store>) -> Self {
        Self { store, open: Mutex::default() }
    }

    pub(crate) fn store(&self) -> &Arc<Store> {
        &self.store
    }

    fn keep(&self, handle: Handle) -> Result<u64> {
        let mut open = self.open.lock();
        if open.all.len() >= MAX_HANDLES {
            return Err(BlobError::Handles(MAX_HANDLES));
        }
        open.last += 1;
        let number = open.last;
        open.all.insert(number, handle);
        Ok(number)
    }

    fn handle(&self, number: u64) -> Result<Handle> {
        self.open.lock().all.get(&number).cloned().ok_or(BlobError::NoHandle)
    }

    fn part(&self, number: u64) -> Result<Arc<Mutex<Part>>> {
        match self.handle(number)? {
            Handle::Writing(part) => Ok(part),
            Handle::Reading { .. } => Err(BlobError::NoHandle),
        }
    }

    fn close(&self, number: u64) {
        let closed = self.open.lock().all.remove(&number);
        // Outside of the lock: it may have a file to remove.
        drop(closed);
    }

    fn read(&self, number: u64, at: u64, most: u32) -> Result<Vec<u8>> {
        let Handle::Reading { file, first, length } = self.handle(number)? else {
            return Err(BlobError::NoHandle);
        };
        let left = length.saturating_sub(at).min(most.into()).min(MAX_PIECE as u64);
        let mut bytes = vec![0; left as usize];
        file.read_exact_at(&mut bytes, first + at.min(length))?;
        Ok(bytes)
    }

    /// Does as wished; blocks as files do. The store is to be loaded.
    pub(crate) fn fulfil(&self, wish: BlobWish) -> Result<BlobTold> {
        let store = &self.store;
        match wish {
            BlobWish::Create { container } => store.create(&container).map(BlobTold::Container),
            BlobWish::Container { container } => store.need(&container).map(BlobTold::Container),
            BlobWish::Exists { container } => Ok(BlobTold::Flag(store.container(&container)?.is_some())),
            BlobWish::Remove { container } => store.clear(&container, true).map(|()| BlobTold::Done),
            BlobWish::Clear { container } => store.clear(&container, false).map(|()| BlobTold::Done),
            BlobWish::Copy { from, to, keep } => {
                store.copy((&from.0, &from.1), (&to.0, &to.1), keep).map(|()| BlobTold::Done)
            }
            BlobWish::Objects { container, after, most } => {
                let (names, more) = store.objects(&container, after.as_deref(), most as usize)?;
                Ok(BlobTold::Names(names, more))
            }
            BlobWish::Delete { container, objects } => {
                store.delete(&container, &objects).map(|()| BlobTold::Done)
            }
            BlobWish::Object { container, object } => {
                let found = store.object(&container, &object)?;
                Ok(BlobTold::Object(found.map(|entry| (entry.size, entry.created))))
            }
            BlobWish::Open { container, object, first, last } => {
                let (file, length) = store.open(&container, &object, first, last)?;
                let number = self.keep(Handle::Reading { file: Arc::new(file), first, length })?;
                Ok(BlobTold::Opened(number, length))
            }
            BlobWish::Read { handle, at, most } => self.read(handle, at, most).map(BlobTold::Bytes),
            BlobWish::Begin => {
                let part = Part::begin(store)?;
                let number = self.keep(Handle::Writing(Arc::new(Mutex::new(part))))?;
                Ok(BlobTold::Opened(number, 0))
            }
            BlobWish::Append { handle, bytes } => {
                self.part(handle)?.lock().append(&bytes).map(|()| BlobTold::Done)
            }
            BlobWish::Finish { handle, container, object } => {
                let done = self.part(handle)?.lock().finish(&container, &object);
                self.close(handle);
                done.map(|()| BlobTold::Done)
            }
            BlobWish::Close { handle } => {
                self.close(handle);
                Ok(BlobTold::Done)
            }
        }
    }
}
