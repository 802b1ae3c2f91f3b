//! The end of the log: the segment being written.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use super::disk::{Disk, DiskFile};
use super::record::{Batch, Header, SEGMENT_HEADER};
use crate::{Error, Revision};

/// Most space filled with zeros ahead of the end, so that a sync finds the file's size and blocks settled and has
/// only data to write.
const MAX_AHEAD: u64 = 1 << 20;
/// Most bytes of records held back.
const MAX_HELD: usize = 64 << 10;
/// Largest buffer kept between groups.
const KEEP_BUFFER: usize = 1 << 20;

/// A failed write, and whether the log can still be trusted with another.
#[derive(Debug)]
pub(crate) struct Failure {
    pub(crate) error: Error,
    pub(crate) fatal: bool,
}

/// The log from its end.
pub(crate) struct Log {
    disk: Arc<dyn Disk>,
    file: Box<dyn DiskFile>,
    header: Header,
    len: u64,
    allocated: u64,
    synced: u64,
    /// Whether the file changed since it was synced, be it by a write that failed and was undone.
    dirty: bool,
    ahead: u64,
    chain: u32,
    buffer: Vec<u8>,
    /// Records that follow the end of the file and are written with what comes next.
    held: Vec<u8>,
    /// Number and base of every segment there is, oldest first; the last is the one being written.
    pub(crate) segments: Vec<(u64, Revision)>,
}

/// The file of a segment.
pub(crate) fn segment_name(number: u64) -> String {
    format!("log-{number:016x}")
}

/// The segment a file name stands for.
pub(crate) fn segment_number(name: &str) -> Option<u64> {
    let digits = name.strip_prefix("log-").filter(|digits| digits.len() == 16)?;
    u64::from_str_radix(digits, 16).ok()
}

impl Log {
    /// Starts a segment that is to take about `size` bytes: durable, with its name, before it is used.
    pub(crate) fn create(disk: Arc<dyn Disk>, number: u64, base: Revision, size: u64) -> Result<Self, Error> {
        let (name, header) = (segment_name(number), Header { number, base, salt: salt() });
        let file = create_segment(&*disk, &name, &header)
            .map_err(|error| Error::io("create log segment", &disk.path(&name), error))?;
        Ok(Self::at(disk, file, header, SEGMENT_HEADER as u64, header.chain(), size, vec![(number, base)]))
    }

    /// Goes on with the last segment behind its last record at `len`; what follows there is cut off.
    pub(crate) fn resume(
        disk: Arc<dyn Disk>,
        header: Header,
        len: u64,
        chain: u32,
        size: u64,
        segments: Vec<(u64, Revision)>,
    ) -> Result<Self, Error> {
        let name = segment_name(header.number);
        let cut = || -> io::Result<Box<dyn DiskFile>> {
            let mut file = disk.open(&name)?;
            file.set_len(len)?;
            // What was read may never have been synced; from here on it counts.
            file.sync()?;
            disk.sync_dir()?;
            Ok(file)
        };
        let file = cut().map_err(|error| Error::io("prepare log segment", &disk.path(&name), error))?;
        Ok(Self::at(disk, file, header, len, chain, size, segments))
    }

    fn at(
        disk: Arc<dyn Disk>,
        file: Box<dyn DiskFile>,
        header: Header,
        len: u64,
        chain: u32,
        size: u64,
        segments: Vec<(u64, Revision)>,
    ) -> Self {
        let (ahead, buffer) = (size.min(MAX_AHEAD), Vec::new());
        Self {
            disk,
            file,
            header,
            len,
            allocated: len,
            synced: len,
            dirty: false,
            ahead,
            chain,
            buffer,
            held: Vec::new(),
            segments,
        }
    }

    /// An empty batch to fill and hand to [`append`](Self::append).
    pub(crate) fn batch(&mut self) -> Batch {
        let mut buffer = std::mem::take(&mut self.buffer);
        buffer.clear();
        Batch::new(buffer, self.chain, self.header.salt, self.synced)
    }

    /// Takes a batch that is written with the next one that has to be, or by [`sync`](Self::sync).
    ///
    /// # Errors
    /// When so much is held that it is written at once, as [`append`](Self::append).
    pub(crate) fn hold(&mut self, batch: Batch) -> Result<(), Failure> {
        if self.held.len() + batch.bytes.len() > MAX_HELD {
            return self.append(batch);
        }
        self.held.extend_from_slice(&batch.bytes);
        self.adopt(batch);
        Ok(())
    }

    /// Writes a batch at the end, all or nothing, without a sync. What is held goes before it; when that fails it is
    /// held on.
    pub(crate) fn append(&mut self, batch: Batch) -> Result<(), Failure> {
        if self.held.is_empty() {
            self.write(&batch.bytes)?;
        } else {
            let before = self.held.len();
            let mut bytes = std::mem::take(&mut self.held);
            bytes.extend_from_slice(&batch.bytes);
            let written = self.write(&bytes);
            bytes.truncate(if written.is_ok() { 0 } else { before });
            self.held = bytes;
            written?;
        }
        self.adopt(batch);
        Ok(())
    }

    /// Goes on from the end of a batch that was written or is held.
    fn adopt(&mut self, batch: Batch) {
        self.chain = batch.chain;
        if batch.bytes.capacity() <= KEEP_BUFFER {
            self.buffer = batch.bytes;
        }
    }

    fn write(&mut self, bytes: &[u8]) -> Result<(), Failure> {
        let end = self.len + bytes.len() as u64;
        self.dirty = true;
        if end > self.allocated {
            self.allocate(end + self.ahead);
        }
        if let Err(error) = self.file.write_at(self.len, bytes) {
            let error = Error::io("write to", &self.path(), error);
            let undone = self.file.set_len(self.len);
            self.allocated = self.len;
            return Err(Failure { error, fatal: undone.is_err() });
        }
        self.len = end;
        self.allocated = self.allocated.max(end);
        Ok(())
    }

    fn flush(&mut self) -> Result<(), Failure> {
        if self.held.is_empty() {
            return Ok(());
        }
        let mut bytes = std::mem::take(&mut self.held);
        let written = self.write(&bytes);
        if written.is_ok() {
            bytes.clear();
        }
        self.held = bytes;
        written
    }

    /// Fills space ahead with zeros; without room for that, writing goes on without.
    fn allocate(&mut self, to: u64) {
        let zeros = vec![0; (to - self.allocated) as usize];
        match self.file.write_at(self.allocated, &zeros) {
            Ok(()) => self.allocated = to,
            // Give the room back to the record that follows; if that fails too, the record's write will tell.
            Err(_) => drop(self.file.set_len(self.len).map(|()| self.allocated = self.len)),
        }
    }

    /// Makes everything appended and held durable. After a fatal failure nothing is known about what the disk holds.
    pub(crate) fn sync(&mut self) -> Result<(), Failure> {
        self.flush()?;
        if !self.dirty {
            return Ok(());
        }
        match self.file.sync() {
            Ok(()) => {
                self.synced = self.len;
                self.dirty = false;
                Ok(())
            }
            Err(error) => Err(Failure { error: Error::io("sync", &self.path(), error), fatal: true }),
        }
    }

    /// Closes the segment and starts the next. Unless fatal, a failure leaves the old one in use.
    pub(crate) fn rotate(&mut self, base: Revision) -> Result<(), Failure> {
        self.sync()?;
        let number = self.header.number + 1;
        match Self::create(self.disk.clone(), number, base, self.ahead) {
            Ok(next) => {
                let mut segments = std::mem::take(&mut self.segments);
                segments.push((number, base));
                *self = Self { segments, ..next };
                Ok(())
            }
            Err(error) => {
                let removed = self.disk.remove(&segment_name(number)).or_else(absent_is_fine);
                let fatal = removed.and_then(|()| self.disk.sync_dir()).is_err();
                Err(Failure { error, fatal })
            }
        }
    }

    /// Cuts off the space not used, for a log that is closed.
    pub(crate) fn finish(&mut self) -> Result<(), Failure> {
        self.sync()?;
        let trimmed = self.file.set_len(self.len).and_then(|()| self.file.sync());
        self.allocated = self.len;
        trimmed.map_err(|error| Failure { error: Error::io("trim", &self.path(), error), fatal: true })
    }

    /// Where the log ends, in bytes of the segment, with what is held.
    pub(crate) fn len(&self) -> u64 {
        self.len + self.held.len() as u64
    }

    pub(crate) fn number(&self) -> u64 {
        self.header.number
    }

    pub(crate) fn path(&self) -> PathBuf {
        self.disk.path(&segment_name(self.header.number))
    }
}

fn create_segment(disk: &dyn Disk, name: &str, header: &Header) -> io::Result<Box<dyn DiskFile>> {
    let mut file = disk.open(name)?;
    file.set_len(0)?;
    file.write_at(0, &header.encode())?;
    file.sync()?;
    disk.sync_dir()?;
    Ok(file)
}

fn absent_is_fine(error: io::Error) -> io::Result<()> {
    if error.kind() == io::ErrorKind::NotFound { Ok(()) } else { Err(error) }
}

/// A number nobody can guess.
fn salt() -> u64 {
    use std::hash::{BuildHasher, RandomState};
    // Seeded from the operating system's randomness.
    RandomState::new().hash_one(std::process::id())
}
