//! Between the store's words and etcd's.

use bytes::Bytes;

use super::proto;
use crate::{Error, Event, KeyValue, Op, Revision, Txn, TxnOutcome};

/// A lone zero byte: from the first key, or up to the last.
const EVERYTHING: &[u8] = &[0];

/// etcd counts in i64; no store gets beyond that.
pub(super) fn to_i64(revision: Revision) -> i64 {
    i64::try_from(revision).unwrap_or(i64::MAX)
}

/// Revisions and counts are never negative.
pub(super) fn to_u64(number: i64) -> u64 {
    u64::try_from(number).unwrap_or_default()
}

/// The revision a response was made at.
pub(super) fn revision(header: Option<&proto::ResponseHeader>) -> Revision {
    header.map_or(0, |header| to_u64(header.revision))
}

/// The first key that starts with `prefix`, and the first beyond those.
pub(super) fn prefix_range(prefix: &[u8]) -> (Bytes, Bytes) {
    let first = if prefix.is_empty() { EVERYTHING } else { prefix };
    let mut end = prefix.to_vec();
    while let Some(last) = end.pop() {
        if last < u8::MAX {
            end.push(last + 1);
            return (Bytes::copy_from_slice(first), end.into());
        }
    }
    (Bytes::copy_from_slice(first), Bytes::from_static(EVERYTHING))
}

pub(super) fn key_value(kv: proto::KeyValue) -> KeyValue {
    KeyValue {
        // Copies of their own: these are parts of a message, and whoever keeps one of them would keep all of it.
        key: Bytes::copy_from_slice(&kv.key),
        value: Bytes::copy_from_slice(&kv.value),
        create_revision: to_u64(kv.create_revision),
        mod_revision: to_u64(kv.mod_revision),
    }
}

/// The transaction, reading the compared keys if it fails.
pub(super) fn txn_request(txn: Txn) -> proto::TxnRequest {
    use proto::request_op::Request;
    let op = |request| proto::RequestOp { request: Some(request) };
    let read = |key: &Bytes| proto::RangeRequest { key: key.clone(), ..Default::default() };
    let compare = |compare: &crate::Compare| proto::Compare {
        result: proto::compare::Result::Equal.into(),
        target: proto::compare::Target::Mod.into(),
        key: compare.key.clone(),
        target_union: Some(proto::compare::TargetUnion::ModRevision(to_i64(compare.mod_revision))),
    };
    proto::TxnRequest {
        failure: txn.compares.iter().map(|compare| op(Request::RequestRange(read(&compare.key)))).collect(),
        compare: txn.compares.iter().map(compare).collect(),
        success: txn
            .ops
            .into_iter()
            .map(|change| match change {
                Op::Put { key, value } => op(Request::RequestPut(proto::PutRequest { key, value })),
                Op::Delete { key } => op(Request::RequestDeleteRange(proto::DeleteRangeRequest { key })),
            })
            .collect(),
    }
}

pub(super) fn txn_outcome(response: proto::TxnResponse) -> TxnOutcome {
    if response.succeeded {
        return TxnOutcome::Committed { revision: revision(response.header.as_ref()) };
    }
    let current = |op: proto::ResponseOp| {
        let Some(proto::response_op::Response::ResponseRange(range)) = op.response else { return None };
        range.kvs.into_iter().next().map(key_value)
    };
    TxnOutcome::Failed { current: response.responses.into_iter().map(current).collect() }
}

/// The events of a watch response, grouped by revision.
pub(super) fn revisions(events: Vec<proto::Event>) -> Vec<(Revision, Vec<Event>)> {
    let mut out: Vec<(Revision, Vec<Event>)> = Vec::new();
    for event in events {
        let deleted = event.r#type() == proto::event::EventType::Delete;
        let Some(kv) = event.kv.map(key_value) else { continue };
        let (revision, previous) = (kv.mod_revision, event.prev_kv.map(key_value));
        let event = if deleted {
            Event::Delete { key: kv.key, revision, previous }
        } else {
            Event::Put { kv, previous }
        };
        match out.last_mut().filter(|(last, _)| *last == revision) {
            Some((_, events)) => events.push(event),
            None => out.push((revision, vec![event])),
        }
    }
    out
}

/// What a refused request means; the numbers missing here are for the caller to find out.
pub(super) enum Refusal {
    Compacted,
    Future,
    Other(Error),
}

pub(super) fn refusal(status: &tonic::Status) -> Refusal {
    let message = status.message();
    match status.code() {
        tonic::Code::OutOfRange if message.contains("compacted") => Refusal::Compacted,
        tonic::Code::OutOfRange if message.contains("future revision") => Refusal::Future,
        code => Refusal::Other(Error::Backend(format!("etcd: {message} ({code:?})"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prefixes_become_ranges() {
        for (prefix, first, end) in [
            (&b""[..], &b"\0"[..], &b"\0"[..]),
            (b"/a/", b"/a/", b"/a0"),
            (b"a\xff", b"a\xff", b"b"),
            (b"\xff\xff", b"\xff\xff", b"\0"),
        ] {
            assert_eq!(prefix_range(prefix), (Bytes::from(first), Bytes::from(end)), "{prefix:?}");
        }
    }
}
