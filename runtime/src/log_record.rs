//! One change in a key-value log: checksum, lengths, store, key, value.

/// Checksum (4), kind (1), length of the store's name (1), of the key (2) and of the value (4).
const HEAD: usize = 12;
const PUT: u8 = 1;
const DELETE: u8 = 2;

/// A value set, or (`None`) a key removed.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Record<'a> {
    /// At most 255 bytes.
    pub(crate) store: &'a str,
    /// At most 65,535 bytes.
    pub(crate) key: &'a str,
    pub(crate) value: Option<&'a [u8]>,
}

pub(crate) fn write(record: &Record<'_>, to: &mut Vec<u8>) {
    let start = to.len();
    let value = record.value.unwrap_or_default();
    to.extend([0; 4]);
    to.extend([if record.value.is_some() { PUT } else { DELETE }, record.store.len() as u8]);
    to.extend((record.key.len() as u16).to_le_bytes());
    to.extend((value.len() as u32).to_le_bytes());
    to.extend(record.store.as_bytes());
    to.extend(record.key.as_bytes());
    to.extend(value);
    let sum = crc32c::crc32c(&to[start + 4..]);
    to[start..start + 4].copy_from_slice(&sum.to_le_bytes());
}

/// The record at the beginning of `bytes` and its length; `None` when there is no whole one.
pub(crate) fn read(bytes: &[u8]) -> Option<(Record<'_>, usize)> {
    let head = bytes.first_chunk::<HEAD>()?;
    let [s0, s1, s2, s3, kind, store, k0, k1, v0, v1, v2, v3] = *head;
    let store = usize::from(store);
    let key = usize::from(u16::from_le_bytes([k0, k1]));
    let value = u32::from_le_bytes([v0, v1, v2, v3]) as usize;
    let length = HEAD + store + key + value;
    let body = bytes.get(4..length)?;
    if crc32c::crc32c(body) != u32::from_le_bytes([s0, s1, s2, s3]) {
        return None;
    }
    let (store, rest) = bytes.get(HEAD..length)?.split_at(store);
    let (key, value) = rest.split_at(key);
    let value = match kind {
        PUT => Some(value),
        DELETE => None,
        _ => return None,
    };
    Some((
        Record { store: std::str::from_utf8(store).ok()?, key: std::str::from_utf8(key).ok()?, value },
        length,
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_read_as_written_and_damage_is_seen() {
        let records = [
            Record { store: "s", key: "k", value: Some(b"value") },
            Record { store: "s", key: "k", value: None },
            Record { store: "", key: "", value: Some(b"") },
        ];
        let mut bytes = Vec::new();
        records.iter().for_each(|record| write(record, &mut bytes));
        let mut at = 0;
        for record in &records {
            let (found, length) = read(&bytes[at..]).unwrap();
            assert_eq!(&found, record);
            at += length;
        }
        assert_eq!(at, bytes.len());
        for damaged in 0..read(&bytes).unwrap().1 {
            let mut bytes = bytes.clone();
            bytes[damaged] ^= 1;
            assert_eq!(read(&bytes), None, "byte {damaged}");
        }
        assert_eq!(read(&bytes[..10]), None);
    }
}
