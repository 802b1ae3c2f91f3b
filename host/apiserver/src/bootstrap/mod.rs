//! What every cluster has from its first start: namespaces, roles, priorities, the service of the API itself.

mod objects;
mod roles;

pub(crate) use roles::rules_of;

use std::sync::Arc;

use futures::{StreamExt, TryStreamExt, stream};
use wasmk_api::{Object, Status};

use crate::{
    crd::own_call,
    flow,
    server::{Core, StartError},
    write::{Mode, Work, create_object, update_object},
};

/// Writes what is missing, and brings the roles the server keeps up to date.
///
/// # Errors
/// When an object is refused.
pub(crate) async fn write(core: &Arc<Core>) -> Result<(), StartError> {
    let config = &core.config;
    // Each group needs those before it.
    for (objects, keep) in [
        (objects::all(config), Keep::AsItIs),
        (flow::defaults::all(), Keep::AsItIs),
        (roles::all(), Keep::Roles),
        (objects::own_service(config), Keep::UpToDate),
    ] {
        // Several at a time, so that they share a sync of the disk.
        let writes = stream::iter(objects).map(|object| ensure(core, object, keep));
        writes.buffer_unordered(AT_ONCE).try_collect::<()>().await?;
    }
    release_orphans(core).await;
    Ok(())
}

/// Objects on their way at a time.
const AT_ONCE: usize = 16;

/// What happens to an object that is there already.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Keep {
    /// Whatever somebody made of it stays.
    AsItIs,
    /// Rules and subjects that are missing are added, unless it says not to.
    Roles,
    /// It is made what it should be.
    UpToDate,
}

async fn ensure(core: &Arc<Core>, object: Object, keep: Keep) -> Result<(), StartError> {
    let shown = format!("{} {}", object.kind(), object.name());
    one(core, object, keep)
        .await
        .map_err(|status| StartError::Bootstrap { object: shown, why: status.message })
}

async fn one(core: &Arc<Core>, mut object: Object, keep: Keep) -> Result<(), Status> {
    let gvk = object.gvk().ok_or_else(|| Status::internal("an object without a kind"))?;
    let resource = core.table.load().by_kind(&gvk).cloned().ok_or_else(Status::no_such_path)?;
    let mut call = own_call(&resource, object.name());
    call.info.namespace = object.namespace().into();
    let work = Work { trusted: true, ..Work::new(core, &call, &resource)? };
    core.caches.catch_up().await?;
    crate::machine::default(&resource, &mut object);
    let key = crate::cache::key(object.namespace(), object.name());
    let Some(entry) = resource.cache.get(&key) else {
        return match create_object(&work, object).await {
            Ok(_) => Ok(()),
            // Another server of the same cluster was faster.
            Err(status) if status.code == 409 => Ok(()),
            Err(status) => Err(status),
        };
    };
    let present = entry.object();
    let wanted = match keep {
        Keep::AsItIs => return Ok(()),
        Keep::Roles => roles::reconciled(&present, &object),
        Keep::UpToDate => objects::reconciled(&present, &object),
    };
    if wanted == present {
        return Ok(());
    }
    let name = present.name().to_owned();
    update_object(&work, &name, Mode::Main, false, |_| {
        let mut new = wanted.clone();
        new.set_meta("resourceVersion", serde_json::Value::Null);
        Ok(new)
    })
    .await
    .map(|_| ())
}

/// Gives back addresses and ports of services that are gone.
async fn release_orphans(core: &Arc<Core>) {
    for key in crate::alloc::orphans(&core.caches) {
        let op = wasmk_store::Op::Delete { key: key.clone().into() };
        let txn = wasmk_store::Txn { ops: vec![op], ..Default::default() };
        if let Err(error) = core.config.store.txn(txn).await {
            tracing::warn!(key, %error, "a claim of a service that is gone could not be given back");
        }
    }
}
