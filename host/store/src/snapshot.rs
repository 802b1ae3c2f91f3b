//! A whole state as one stream: consistent, checksummed, readable by any backend.
//!
//! Layout, all numbers little-endian: magic, u32 version, u64 revision, u64 number of entries; then per entry
//! u32 key length, u32 value length, u64 create revision, u64 mod revision, key, value; at the end the CRC32C of
//! everything before it.

use std::io::{self, Read, Write};

use bytes::Bytes;

use crate::mvcc::State;
use crate::shared::Shared;
use crate::{
    Compare, Error, KeyValue, MAX_KEY_BYTES, MAX_VALUE_BYTES, Op, Range, Revision, Store, Txn, TxnOutcome,
};

const MAGIC: &[u8; 12] = b"wasmk-snap\r\n";
const VERSION: u32 = 1;
const ENTRY_HEADER: usize = 24;
/// How far a restored store starts beyond its snapshot: more than any store writes between taking a snapshot and
/// being replaced by it, so that no revision ever means two things.
pub(crate) const REVISION_GAP: Revision = 1_000_000_000;

/// Keys, and about as many bytes, that one transaction of an import has: what an etcd takes with its defaults.
const IMPORT_KEYS: usize = 100;
const IMPORT_BYTES: usize = 1 << 20;

/// What a snapshot holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SnapshotInfo {
    /// The revision it shows.
    pub revision: Revision,
    /// Number of keys.
    pub keys: u64,
}

/// Writes everything a store of any kind holds at one revision, with a checksum.
pub async fn export(store: &dyn Store, writer: impl Write + Send) -> Result<SnapshotInfo, Error> {
    let all = store.range(Range::default()).await?;
    let info = SnapshotInfo { revision: all.revision, keys: all.items.len() as u64 };
    write_items(info, &all.items, writer)
        .map_err(|error| Error::BadSnapshot(format!("cannot write it: {error}")))?;
    Ok(info)
}

/// Reads a snapshot to its end and tells what it holds, if its checksum is right.
pub fn check(reader: impl Read) -> Result<SnapshotInfo, Error> {
    parse(reader).map(|(info, _)| info)
}

/// Writes what a snapshot holds into an empty store of any kind, in transactions. The keys get revisions of that
/// store, in the order of their last change. An embedded store keeps their revisions with
/// [`Embedded::restore`](crate::Embedded::restore) instead.
pub async fn import(store: &dyn Store, reader: impl Read + Send) -> Result<SnapshotInfo, Error> {
    let (info, mut items) = parse(reader)?;
    let first = store.range(Range { limit: 1, ..Range::default() }).await?.items.pop();
    if let Some(kv) = first {
        let key = String::from_utf8_lossy(&kv.key);
        return Err(Error::Invalid(format!("cannot restore into a store that is not empty: it has {key}")));
    }
    items.sort_by_key(|kv| kv.mod_revision);
    let mut rest = &items[..];
    while !rest.is_empty() {
        let mut bytes = 0;
        let fits = rest.iter().take(IMPORT_KEYS).take_while(|kv| {
            bytes += kv.key.len() + kv.value.len();
            bytes <= IMPORT_BYTES
        });
        let (part, others) = rest.split_at(fits.count().max(1));
        put_all(store, part).await?;
        rest = others;
    }
    Ok(info)
}

async fn put_all(store: &dyn Store, items: &[KeyValue]) -> Result<(), Error> {
    let compares = items.iter().map(|kv| Compare { key: kv.key.clone(), mod_revision: 0 }).collect();
    let ops = items.iter().map(|kv| Op::Put { key: kv.key.clone(), value: kv.value.clone() }).collect();
    match store.txn(Txn { compares, ops, ..Txn::default() }).await? {
        TxnOutcome::Committed { .. } => Ok(()),
        TxnOutcome::Failed { .. } => {
            Err(Error::Invalid("somebody else writes to the store that is being restored".into()))
        }
    }
}

/// Writes the state as it is now. The entries are collected under the lock, written without it.
pub(crate) fn write(shared: &Shared, writer: impl Write) -> Result<SnapshotInfo, Error> {
    let (revision, items) = {
        let state = shared.state.read();
        (state.revision(), state.all().collect::<Vec<KeyValue>>())
    };
    let info = SnapshotInfo { revision, keys: items.len() as u64 };
    write_items(info, &items, writer)
        .map_err(|error| Error::BadSnapshot(format!("cannot write it: {error}")))?;
    Ok(info)
}

fn write_items(info: SnapshotInfo, items: &[KeyValue], writer: impl Write) -> io::Result<()> {
    let mut out = Summed { inner: io::BufWriter::new(writer), crc: 0 };
    out.write_all(MAGIC)?;
    out.write_all(&VERSION.to_le_bytes())?;
    out.write_all(&info.revision.to_le_bytes())?;
    out.write_all(&info.keys.to_le_bytes())?;
    for kv in items {
        out.write_all(&(kv.key.len() as u32).to_le_bytes())?;
        out.write_all(&(kv.value.len() as u32).to_le_bytes())?;
        out.write_all(&kv.create_revision.to_le_bytes())?;
        out.write_all(&kv.mod_revision.to_le_bytes())?;
        out.write_all(&kv.key)?;
        out.write_all(&kv.value)?;
    }
    let crc = out.crc;
    out.inner.write_all(&crc.to_le_bytes())?;
    out.inner.flush()
}

/// Reads a snapshot to a state beyond its revision. Nothing is returned unless the checksum holds.
pub(crate) fn read(reader: impl Read) -> Result<(SnapshotInfo, State), Error> {
    let (info, items) = parse(reader)?;
    let mut state = State::load(info.revision, items);
    state.skip(info.revision + REVISION_GAP);
    state.compact(info.revision + REVISION_GAP)?;
    Ok((info, state))
}

fn parse(reader: impl Read) -> Result<(SnapshotInfo, Vec<KeyValue>), Error> {
    let mut input = Summed { inner: io::BufReader::new(reader), crc: 0 };
    read_items(&mut input).map_err(|error| match error.kind() {
        io::ErrorKind::UnexpectedEof => Error::BadSnapshot("it ends too early".into()),
        _ => Error::BadSnapshot(error.to_string()),
    })
}

fn read_items<R: Read>(input: &mut Summed<R>) -> io::Result<(SnapshotInfo, Vec<KeyValue>)> {
    let bad = |what: &str| Err(io::Error::other(what.to_string()));
    let mut head = [0; 32];
    input.read_exact(&mut head)?;
    if &head[..12] != MAGIC {
        return bad("it does not start like a snapshot of this program");
    }
    let version = u32::from_le_bytes(array(&head[12..16]));
    if version != VERSION {
        return bad(&format!("it has version {version}, this program reads {VERSION}"));
    }
    let (revision, keys) =
        (u64::from_le_bytes(array(&head[16..24])), u64::from_le_bytes(array(&head[24..32])));
    let mut items = Vec::new();
    for _ in 0..keys {
        items.push(read_entry(input)?);
    }
    let expected = input.crc;
    let mut sum = [0; 4];
    input.read_exact(&mut sum)?;
    if u32::from_le_bytes(sum) != expected {
        return bad("its checksum does not match its contents");
    }
    Ok((SnapshotInfo { revision, keys }, items))
}

fn read_entry(input: &mut impl Read) -> io::Result<KeyValue> {
    let mut head = [0; ENTRY_HEADER];
    input.read_exact(&mut head)?;
    let key_len = u32::from_le_bytes(array(&head[..4])) as usize;
    let value_len = u32::from_le_bytes(array(&head[4..8])) as usize;
    if key_len > MAX_KEY_BYTES || value_len > MAX_VALUE_BYTES {
        return Err(io::Error::other("an entry is longer than any that can be stored"));
    }
    let mut data = vec![0; key_len + value_len];
    input.read_exact(&mut data)?;
    let value = Bytes::from(data);
    Ok(KeyValue {
        key: Bytes::copy_from_slice(&value[..key_len]),
        value: value.slice(key_len..),
        create_revision: u64::from_le_bytes(array(&head[8..16])),
        mod_revision: u64::from_le_bytes(array(&head[16..24])),
    })
}

/// The bytes of a slice whose length the caller fixed.
fn array<const N: usize>(slice: &[u8]) -> [u8; N] {
    let mut out = [0; N];
    out.copy_from_slice(slice);
    out
}

/// Sums what passes through.
struct Summed<T> {
    inner: T,
    crc: u32,
}

impl<T: Write> Write for Summed<T> {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        let written = self.inner.write(data)?;
        self.crc = crc32c::crc32c_append(self.crc, &data[..written]);
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

impl<T: Read> Read for Summed<T> {
    fn read(&mut self, data: &mut [u8]) -> io::Result<usize> {
        let read = self.inner.read(data)?;
        self.crc = crc32c::crc32c_append(self.crc, &data[..read]);
        Ok(read)
    }
}
