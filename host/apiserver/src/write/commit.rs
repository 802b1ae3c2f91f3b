//! The last step of a write: one transaction of the store.

use bytes::Bytes;
use wasmk_api::{Object, Status};
use wasmk_store::{Compare, Durability, Op, Txn, TxnOutcome};

use super::Work;
use crate::{
    cache::{encode, unavailable},
    special,
    table::Resource,
};

/// What a transaction came to.
#[derive(Debug)]
pub(crate) enum Written {
    /// The object is stored, at that revision.
    Done(u64),
    /// Somebody else changed the object first.
    Raced,
    /// Somebody else took one of the claims first.
    ClaimTaken,
}

/// A key that must be taken or given back together with a write, for instance an address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Claim {
    /// Must be absent; holds the value afterwards.
    Take(String, Vec<u8>),
    /// Is removed.
    Release(String),
}

/// Resources whose writes need not survive a power failure one by one: heartbeats and events.
const RELAXED: [&str; 2] = ["coordination.k8s.io/leases", "core/events"];

/// Stores an object if its key was last changed at `expected` (0: absent).
///
/// # Errors
/// When the store fails.
pub(crate) async fn put(
    work: &Work<'_>,
    object: &mut Object,
    expected: u64,
    claims: Vec<Claim>,
) -> Result<Written, Status> {
    super::meta::order(object);
    let stored = work.resource.to_stored(work.core, object.clone()).await?;
    if work.resource.is_lossy() {
        *object = work.resource.served(stored.clone());
    }
    let key = work.resource.store_key(object.namespace(), object.name());
    let txn = Txn::put(key, encode(&stored), expected);
    let written = transact(work, txn, claims).await?;
    if let Written::Done(revision) = written {
        object.set_meta("resourceVersion", revision.to_string());
        super::meta::order(object);
    }
    Ok(written)
}

/// Removes an object if it was last changed at `expected`.
///
/// # Errors
/// When the store fails.
pub(crate) async fn remove(
    work: &Work<'_>,
    object: &Object,
    expected: u64,
    claims: Vec<Claim>,
) -> Result<Written, Status> {
    let key = work.resource.store_key(object.namespace(), object.name());
    transact(work, Txn::delete(key, expected), claims).await
}

async fn transact(work: &Work<'_>, mut txn: Txn, claims: Vec<Claim>) -> Result<Written, Status> {
    if work.dry_run {
        return Ok(Written::Done(txn.compares.first().map_or(0, |c| c.mod_revision)));
    }
    for claim in claims {
        match claim {
            Claim::Take(key, value) => {
                let key = Bytes::from(key);
                txn.compares.push(Compare { key: key.clone(), mod_revision: 0 });
                txn.ops.push(Op::Put { key, value: value.into() });
            }
            Claim::Release(key) => txn.ops.push(Op::Delete { key: key.into() }),
        }
    }
    if is_relaxed(work.resource) {
        txn.durability = Durability::Relaxed;
    }
    let expected = txn.compares.first().map_or(0, |c| c.mod_revision);
    match work.core.config.store.txn(txn).await.map_err(|e| unavailable(&e))? {
        TxnOutcome::Committed { revision } => {
            if special::decides_access(work.resource) {
                // Whoever is told of it may rely on it with the next request.
                work.core.caches.wait_for(revision).await?;
            }
            Ok(Written::Done(revision))
        }
        TxnOutcome::Failed { current } => {
            let object = current.into_iter().next().flatten().map_or(0, |kv| kv.mod_revision);
            Ok(if object == expected { Written::ClaimTaken } else { Written::Raced })
        }
    }
}

fn is_relaxed(resource: &Resource) -> bool {
    RELAXED.contains(&&*resource.storage)
}
