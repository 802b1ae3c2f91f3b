//! The bytes of the log: segment headers and records.
//!
//! A segment is a header and records up to its end; zeros after the last record are space not used yet.
//!
//! | record | bytes | |
//! |---|---|---|
//! | length | 4 | of the payload |
//! | crc | 4 | CRC32C of the segment's salt and everything else in the record |
//! | previous | 4 | crc of the record before, of the segment header for the first |
//! | kind | 4 | see [`Kind`] |
//! | revision | 8 | the store's revision after this record |
//! | synced | 8 | how much of this segment was durable when the record was written |
//! | payload | length | |
//!
//! `previous` chains records, so that what a failed write left behind never counts as a continuation. `synced`
//! tells a torn tail from damage: if any record says that the place where reading fails had been synced, the disk
//! lost it; if none does, it was never acknowledged. The salt keeps values that look like records from being
//! taken for some.

use bytes::Bytes;

use crate::Revision;
use crate::mvcc::Change;

/// Bytes of a segment header.
pub(crate) const SEGMENT_HEADER: usize = 44;
/// Bytes of a record before its payload.
pub(crate) const RECORD_HEADER: usize = 32;
/// Largest payload; above anything [`crate::Txn`]'s bounds allow.
const MAX_PAYLOAD: usize = 32 << 20;
const MAGIC: &[u8; 8] = b"WASMKLOG";
const FORMAT: u32 = 1;

/// What a record means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// A transaction: its changes.
    Txn = 1,
    /// Revisions up to the u64 in the payload may be given to changes that are not synced.
    Reserve = 2,
    /// History before the u64 in the payload is forgotten.
    Compact = 3,
    /// The revisions after the u64 in the payload and before this record's may have been given out and lost.
    Skip = 4,
    /// A transaction whose new values are told by what they have in common with the old ones. Since format 2.
    Edit = 5,
}

impl Kind {
    fn parse(number: u32) -> Option<Self> {
        [Self::Txn, Self::Reserve, Self::Compact, Self::Skip, Self::Edit]
            .into_iter()
            .find(|kind| *kind as u32 == number)
    }

    /// Whether it is a transaction, in either form.
    pub(crate) fn is_txn(self) -> bool {
        matches!(self, Self::Txn | Self::Edit)
    }
}

/// One change as it stands in a record, borrowed from its segment.
#[derive(Debug, Clone, Copy)]
pub(crate) struct RawChange<'a> {
    pub(crate) key: &'a [u8],
    /// What is new of the value; `None` for a deletion.
    pub(crate) new: Option<&'a [u8]>,
    /// How it is put together with the old value, and the whole's CRC32C.
    edit: Option<(usize, usize, u32)>,
}

impl RawChange<'_> {
    /// Length of the whole value; `None` for a deletion.
    pub(crate) fn value_len(&self) -> Option<usize> {
        let (prefix, suffix, _) = self.edit.unwrap_or_default();
        Some(self.new?.len() + prefix + suffix)
    }

    /// The whole value, given the old one.
    fn value(&self, before: impl FnOnce() -> Option<Bytes>) -> Result<Option<Bytes>, &'static str> {
        let Some(new) = self.new else { return Ok(None) };
        let Some((prefix, suffix, crc)) = self.edit else { return Ok(Some(Bytes::copy_from_slice(new))) };
        let before = if prefix + suffix > 0 { before().unwrap_or_default() } else { Bytes::new() };
        if prefix + suffix > before.len() {
            return Err("a change builds on a value that is not there");
        }
        let whole = [&before[..prefix], new, &before[before.len() - suffix..]].concat();
        if crc32c::crc32c(&whole) != crc {
            return Err("a change builds on another value");
        }
        Ok(Some(whole.into()))
    }
}

/// The beginning of a segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Header {
    /// Position of the segment in the log, rising by one.
    pub(crate) number: u64,
    /// The store's revision before the first record.
    pub(crate) base: Revision,
    /// Random, so that no value can contain a record.
    pub(crate) salt: u64,
}

impl Header {
    pub(crate) fn encode(&self) -> [u8; SEGMENT_HEADER] {
        let mut out = [0; SEGMENT_HEADER];
        out[..8].copy_from_slice(MAGIC);
        out[8..12].copy_from_slice(&FORMAT.to_le_bytes());
        out[16..24].copy_from_slice(&self.number.to_le_bytes());
        out[24..32].copy_from_slice(&self.base.to_le_bytes());
        out[32..40].copy_from_slice(&self.salt.to_le_bytes());
        let crc = crc32c::crc32c(&out[..40]);
        out[40..].copy_from_slice(&crc.to_le_bytes());
        out
    }

    pub(crate) fn decode(data: &[u8]) -> Result<Self, &'static str> {
        let head = data.get(..SEGMENT_HEADER).ok_or("the segment header is cut short")?;
        if &head[..8] != MAGIC || read_u32(head, 8) != FORMAT {
            return Err("this is not a log segment");
        }
        if read_u32(head, 40) != crc32c::crc32c(&head[..40]) {
            return Err("the segment header's checksum does not match");
        }
        Ok(Self { number: read_u64(head, 16), base: read_u64(head, 24), salt: read_u64(head, 32) })
    }

    /// Where the chain of records starts.
    pub(crate) fn chain(&self) -> u32 {
        read_u32(&self.encode(), 40)
    }
}

/// One record, borrowed from its segment.
#[derive(Debug)]
pub(crate) struct Record<'a> {
    pub(crate) kind: Kind,
    pub(crate) revision: Revision,
    pub(crate) synced: u64,
    pub(crate) previous: u32,
    pub(crate) crc: u32,
    pub(crate) payload: &'a [u8],
}

impl<'a> Record<'a> {
    /// Reads the record at the beginning of `data`.
    pub(crate) fn decode(data: &'a [u8], salt: u64) -> Result<Self, &'static str> {
        let head = data.get(..RECORD_HEADER).ok_or("a record header is cut short")?;
        let length = read_u32(head, 0) as usize;
        let kind = Kind::parse(read_u32(head, 12)).ok_or("a record has an unknown kind")?;
        if length > MAX_PAYLOAD {
            return Err("a record claims an impossible length");
        }
        let whole = data.get(..RECORD_HEADER + length).ok_or("a record is cut short")?;
        let crc = read_u32(head, 4);
        if crc != checksum(whole, salt) {
            return Err("a record's checksum does not match");
        }
        Ok(Self {
            kind,
            revision: read_u64(head, 16),
            synced: read_u64(head, 24),
            previous: read_u32(head, 8),
            crc,
            payload: &whole[RECORD_HEADER..],
        })
    }

    /// Bytes it takes in the segment.
    pub(crate) fn len(&self) -> usize {
        RECORD_HEADER + self.payload.len()
    }

    /// The number that makes up the payload of every kind but a transaction.
    pub(crate) fn number(&self) -> Result<u64, &'static str> {
        if self.payload.len() == 8 {
            Ok(read_u64(self.payload, 0))
        } else {
            Err("a record's payload is not a number")
        }
    }

    /// The changes of a transaction, copied out of the segment; `before` tells the value a key had.
    pub(crate) fn changes(
        &self,
        before: impl Fn(&[u8]) -> Option<Bytes>,
    ) -> Result<Vec<Change>, &'static str> {
        let whole = |raw: RawChange<'_>| {
            let value = raw.value(|| before(raw.key))?;
            Ok(Change { key: Bytes::copy_from_slice(raw.key), value })
        };
        self.raw_changes()?.into_iter().map(whole).collect()
    }

    /// The changes of a transaction as they stand here.
    pub(crate) fn raw_changes(&self) -> Result<Vec<RawChange<'a>>, &'static str> {
        let header = if self.kind == Kind::Edit { CHANGE_HEADER + EDIT_HEADER } else { CHANGE_HEADER };
        let mut rest = self.payload;
        let mut changes = Vec::new();
        while !rest.is_empty() {
            let head = rest.get(..header).ok_or("a change is cut short")?;
            let (key_len, new_len) = (read_u32(head, 0) as usize, read_u32(head, 4) as usize);
            let end = header + key_len + new_len.saturating_sub(1);
            let data = rest.get(header..end).ok_or("a change is cut short")?;
            let (key, new) = data.split_at(key_len);
            let edit = (self.kind == Kind::Edit)
                .then(|| (read_u32(head, 8) as usize, read_u32(head, 12) as usize, read_u32(head, 16)));
            changes.push(RawChange { key, new: (new_len > 0).then_some(new), edit });
            rest = &rest[end..];
        }
        Ok(changes)
    }
}

/// Bytes before the key of a change: lengths of the key and of what is new of the value.
const CHANGE_HEADER: usize = 8;
/// What an edit adds: lengths of what the old value has in common at its beginning and end, CRC32C of the whole.
const EDIT_HEADER: usize = 12;

/// How many bytes two values share at the beginning, and how many more at the end.
fn common(before: &[u8], after: &[u8]) -> (usize, usize) {
    let same = |(a, b): &(&u8, &u8)| a == b;
    let prefix = before.iter().zip(after).take_while(same).count();
    let rest = before[prefix..].iter().rev().zip(after[prefix..].iter().rev());
    (prefix, rest.take_while(same).count())
}

/// Records on their way into one segment.
#[derive(Debug)]
pub(crate) struct Batch {
    pub(crate) bytes: Vec<u8>,
    pub(crate) chain: u32,
    salt: u64,
    synced: u64,
}

impl Batch {
    /// An empty batch behind the record with crc `chain`.
    pub(crate) fn new(buffer: Vec<u8>, chain: u32, salt: u64, synced: u64) -> Self {
        Self { bytes: buffer, chain, salt, synced }
    }

    /// Adds a transaction, in the form that takes fewer bytes; `before` tells the value a key has until then.
    pub(crate) fn txn(
        &mut self,
        revision: Revision,
        changes: &[Change],
        before: impl Fn(&Bytes) -> Option<Bytes>,
    ) {
        let shared = |change: &Change| {
            let after = change.value.as_deref()?;
            Some(common(&before(&change.key)?, after))
        };
        let shared: Vec<(usize, usize)> =
            changes.iter().map(|change| shared(change).unwrap_or_default()).collect();
        let saved: usize = shared.iter().map(|(prefix, suffix)| prefix + suffix).sum();
        let edit = saved > EDIT_HEADER * changes.len();
        let kind = if edit { Kind::Edit } else { Kind::Txn };
        self.record(kind, revision, |out| {
            for (change, (prefix, suffix)) in changes.iter().zip(shared) {
                let (prefix, suffix) = if edit { (prefix, suffix) } else { (0, 0) };
                let value = change.value.as_deref();
                let new = value.map(|value| &value[prefix..value.len() - suffix]);
                // A length one too large leaves zero to mean "deleted".
                let new_len = new.map_or(0, |new| new.len() as u32 + 1);
                out.extend_from_slice(&(change.key.len() as u32).to_le_bytes());
                out.extend_from_slice(&new_len.to_le_bytes());
                if edit {
                    out.extend_from_slice(&(prefix as u32).to_le_bytes());
                    out.extend_from_slice(&(suffix as u32).to_le_bytes());
                    out.extend_from_slice(&value.map_or(0, crc32c::crc32c).to_le_bytes());
                }
                out.extend_from_slice(&change.key);
                out.extend_from_slice(new.unwrap_or_default());
            }
        });
    }

    /// Adds a record of any other kind.
    pub(crate) fn number(&mut self, kind: Kind, revision: Revision, number: u64) {
        self.record(kind, revision, |out| out.extend_from_slice(&number.to_le_bytes()));
    }

    fn record(&mut self, kind: Kind, revision: Revision, payload: impl FnOnce(&mut Vec<u8>)) {
        let start = self.bytes.len();
        let out = &mut self.bytes;
        out.extend_from_slice(&[0; 8]);
        out.extend_from_slice(&self.chain.to_le_bytes());
        out.extend_from_slice(&(kind as u32).to_le_bytes());
        out.extend_from_slice(&revision.to_le_bytes());
        out.extend_from_slice(&self.synced.to_le_bytes());
        payload(out);
        let length = (out.len() - start - RECORD_HEADER) as u32;
        out[start..start + 4].copy_from_slice(&length.to_le_bytes());
        self.chain = checksum(&out[start..], self.salt);
        out[start + 4..start + 8].copy_from_slice(&self.chain.to_le_bytes());
    }
}

/// The checksum of a whole record, leaving out the place where it is kept.
fn checksum(record: &[u8], salt: u64) -> u32 {
    let crc = crc32c::crc32c_append(crc32c::crc32c(&salt.to_le_bytes()), &record[..4]);
    crc32c::crc32c_append(crc, &record[8..])
}

/// The u32 at `at`; the caller has checked the length.
fn read_u32(data: &[u8], at: usize) -> u32 {
    let mut bytes = [0; 4];
    bytes.copy_from_slice(&data[at..at + 4]);
    u32::from_le_bytes(bytes)
}

/// The u64 at `at`; the caller has checked the length.
fn read_u64(data: &[u8], at: usize) -> u64 {
    let mut bytes = [0; 8];
    bytes.copy_from_slice(&data[at..at + 8]);
    u64::from_le_bytes(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn batch() -> Batch {
        let mut batch = Batch::new(Vec::new(), 7, 99, 44);
        batch.txn(
            5,
            &[
                Change { key: "a".into(), value: Some("".into()) },
                Change { key: "b".into(), value: None },
                Change { key: "c".into(), value: Some("xyz".into()) },
            ],
            |_| None,
        );
        batch.number(Kind::Reserve, 5, 4101);
        batch
    }

    #[test]
    fn records_read_back_as_written() {
        let batch = batch();
        let first = Record::decode(&batch.bytes, 99).unwrap();
        assert_eq!((first.kind, first.revision, first.synced, first.previous), (Kind::Txn, 5, 44, 7));
        let values: Vec<_> =
            first.changes(|_| None).unwrap().into_iter().map(|change| change.value).collect();
        assert_eq!(values, [Some("".into()), None, Some("xyz".into())]);
        let second = Record::decode(&batch.bytes[first.len()..], 99).unwrap();
        assert_eq!((second.kind, second.number(), second.previous), (Kind::Reserve, Ok(4101), first.crc));
        assert_eq!(first.len() + second.len(), batch.bytes.len());
    }

    #[test]
    fn a_value_that_hardly_changes_is_told_by_its_difference() {
        let long = "x".repeat(400);
        for (before, after, small) in [
            (format!("{long}1{long}"), format!("{long}23{long}"), true),
            (format!("{long}{long}"), long.clone(), true),
            (long.clone(), format!("{long}{long}"), false),
            (long.clone(), long.clone(), true),
            ("abc".into(), "abd".into(), true),
            (long, String::new(), true),
        ] {
            let old = |_: &[u8]| Some(Bytes::from(before.clone()));
            let mut batch = Batch::new(Vec::new(), 7, 99, 44);
            let changes = [
                Change { key: "k".into(), value: Some(after.clone().into()) },
                Change { key: "gone".into(), value: None },
            ];
            batch.txn(5, &changes, |key| old(key));
            assert_eq!(batch.bytes.len() < 100, small, "{before} to {after} took {}", batch.bytes.len());
            let record = Record::decode(&batch.bytes, 99).unwrap();
            assert_eq!(record.changes(old).unwrap(), changes);
            assert_eq!(record.raw_changes().unwrap()[0].value_len(), Some(after.len()));
            if record.kind == Kind::Edit {
                assert!(record.changes(|_| None).is_err(), "nothing to build on");
                assert!(record.changes(|_| Some(Bytes::from("y".repeat(900)))).is_err(), "another value");
            }
        }
    }

    #[test]
    fn every_flipped_bit_and_every_cut_is_noticed() {
        let bytes = batch().bytes;
        let len = Record::decode(&bytes, 99).unwrap().len();
        for bit in 0..len * 8 {
            let mut copy = bytes.clone();
            copy[bit / 8] ^= 1 << (bit % 8);
            assert!(Record::decode(&copy, 99).is_err(), "bit {bit}");
        }
        for cut in 0..len {
            assert!(Record::decode(&bytes[..cut], 99).is_err(), "cut at {cut}");
        }
        assert!(Record::decode(&bytes, 98).is_err(), "another segment's salt");
    }

    #[test]
    fn every_flipped_bit_of_a_segment_header_is_noticed_or_means_nothing() {
        let header = Header { number: 3, base: 17, salt: 0xdead_beef };
        let bytes = header.encode();
        assert_eq!(Header::decode(&bytes), Ok(header));
        for bit in 0..bytes.len() * 8 {
            let mut copy = bytes;
            copy[bit / 8] ^= 1 << (bit % 8);
            assert!(Header::decode(&copy).is_err(), "bit {bit}");
        }
    }
}
