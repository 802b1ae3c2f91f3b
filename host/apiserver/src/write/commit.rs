//! The last step of a write: one transaction of the store.

use bytes::Bytes;
use wasmk_api::{Object, Status};
use wasmk_store::{Compare, Durability, Op, Txn, TxnOutcome};

use super::Work;
use crate::{
    cache::{encode, unavailable},
    expiry::EVENTS,
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

/// Stores an object in place of `old` if its key was last changed at `expected` (0: absent).
///
/// # Errors
/// When the store fails.
pub(crate) async fn put(
    work: &Work<'_>,
    object: &mut Object,
    old: Option<&Object>,
    expected: u64,
    claims: Vec<Claim>,
) -> Result<Written, Status> {
    super::meta::order(object);
    let value = if work.resource.stores(object) {
        encode(object)
    } else {
        let stored = work.resource.to_stored(work.core, object.clone()).await?;
        let value = encode(&stored);
        if work.resource.is_lossy() {
            *object = work.resource.served(stored);
        }
        value
    };
    let key = work.resource.store_key(object.namespace(), object.name());
    let mut txn = Txn::put(key, value, expected);
    txn.durability = durability(work.resource, object, old);
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
    let mut txn = Txn::delete(key, expected);
    txn.durability = durability(work.resource, object, None);
    transact(work, txn, claims).await
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

/// Events need not survive a power failure one by one, renewals of Leases not even the death of the process: who holds
/// it renews again. Who holds a Lease survives everything.
fn durability(resource: &Resource, new: &Object, old: Option<&Object>) -> Durability {
    match (&*resource.storage, old) {
        (EVENTS, _) => Durability::Relaxed,
        ("coordination.k8s.io/leases", Some(old)) if only_renews(new, old) => Durability::Held,
        _ => Durability::Synced,
    }
}

/// Whether two states of a Lease differ in its time of renewal at most, and in who wrote what.
fn only_renews(new: &Object, old: &Object) -> bool {
    let rest = |lease: &Object| {
        let mut value = lease.clone().into_value();
        for (part, field) in
            [("spec", "renewTime"), ("metadata", "managedFields"), ("metadata", "resourceVersion")]
        {
            if let Some(part) = value.get_mut(part).and_then(serde_json::Value::as_object_mut) {
                part.remove(field);
            }
        }
        value
    };
    rest(new) == rest(old)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_renewal_is_told_from_an_acquisition() {
        let lease = |holder: &str, at: &str, version: &str| {
            let spec = json!({"holderIdentity": holder, "renewTime": at, "leaseDurationSeconds": 40});
            Object::from_value(json!({"metadata": {"name": "n", "resourceVersion": version}, "spec": spec}))
                .unwrap()
        };
        let old = lease("a", "2026-01-01T00:00:00.000000Z", "1");
        assert!(only_renews(&lease("a", "2026-01-01T00:00:10.000000Z", "2"), &old));
        assert!(!only_renews(&lease("b", "2026-01-01T00:00:10.000000Z", "2"), &old));
        let mut labelled = lease("a", "2026-01-01T00:00:10.000000Z", "2");
        labelled.set_meta("labels", json!({"a": "b"}));
        assert!(!only_renews(&labelled, &old));
    }
}
