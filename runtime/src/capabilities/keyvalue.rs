//! wasi:keyvalue: the stores that a guest was given, in its owner's [`Database`].

use std::sync::Arc;

use wasmtime::StoreContextMut;
use wasmtime::component::{ComponentType, Lift, Linker, LinkerInstance, Lower, Resource, ResourceType};
use wasmtime_wasi::WasiView;

use super::keys::Keys as Database;
pub use super::keys::{KeyValueElsewhere, Told, Wish};
use crate::guest::Guest;
use crate::keyvalue::KeyValueError;

/// Versions of the interfaces, and whether positions in a list are text and numbers signed.
const VERSIONS: [(&str, bool); 2] = [("0.2.0-draft2", true), ("0.2.0-draft", false)];
/// Most keys of one call about many.
const MAX_BATCH: usize = 1000;

/// The stores a guest may open. Clones are the same stores.
#[derive(Clone)]
pub struct KeyValue(Arc<Given>);

struct Given {
    database: Database,
    stores: Vec<String>,
}

impl KeyValue {
    pub(crate) fn new(database: Arc<crate::keyvalue::Database>, stores: Vec<String>) -> Self {
        Self(Arc::new(Given { database: Database::Here(database), stores }))
    }

    /// Stores by these names that another process keeps.
    pub fn elsewhere(keeper: Arc<dyn KeyValueElsewhere>, stores: Vec<String>) -> Self {
        Self(Arc::new(Given { database: Database::Elsewhere(keeper), stores }))
    }

    /// Does what a guest in another process wishes, if it is about one of these stores.
    ///
    /// # Errors
    /// In the words that the guest is told.
    pub async fn fulfil(&self, wish: Wish) -> Result<Told, String> {
        if wish.store().is_some_and(|store| !self.0.stores.iter().any(|given| given == store)) {
            return Err("no such store".into());
        }
        self.0.database.fulfil(wish).await.map_err(|error| error.to_string())
    }

    /// The names of the stores.
    pub fn stores(&self) -> &[String] {
        &self.0.stores
    }
}

#[derive(ComponentType, Lift, Lower)]
#[component(variant)]
enum StoreError {
    #[component(name = "no-such-store")]
    NoSuchStore,
    #[component(name = "access-denied")]
    AccessDenied,
    #[component(name = "other")]
    Other(String),
}

impl From<KeyValueError> for StoreError {
    fn from(error: KeyValueError) -> Self {
        Self::Other(error.to_string())
    }
}

#[derive(ComponentType, Lift, Lower)]
#[component(record)]
struct Keys<P> {
    keys: Vec<String>,
    cursor: Option<P>,
}

#[derive(ComponentType, Lift, Lower)]
#[component(variant)]
enum SwapError {
    #[component(name = "store-error")]
    Store(StoreError),
    #[component(name = "cas-failed")]
    Failed(Resource<Seen>),
}

/// An open store.
#[derive(Clone)]
struct Bucket {
    database: Database,
    store: Arc<str>,
}

/// A key with the value it had.
struct Seen {
    bucket: Bucket,
    key: String,
    value: Option<Vec<u8>>,
}

type Caller<'a> = StoreContextMut<'a, Guest>;
type Answer<T> = wasmtime::Result<(Result<T, StoreError>,)>;

pub(crate) fn add_to(linker: &mut Linker<Guest>) -> wasmtime::Result<()> {
    for (version, second) in VERSIONS {
        let mut store = linker.instance(&format!("wasi:keyvalue/store@{version}"))?;
        add_store(&mut store)?;
        if second {
            list_after_key(&mut store)?
        } else {
            list_by_number(&mut store)?
        }
        let mut atomics = linker.instance(&format!("wasi:keyvalue/atomics@{version}"))?;
        if second {
            atomics.func_wrap("increment", increment)?;
            add_swap(&mut atomics)?;
        } else {
            atomics.func_wrap("increment", increment_unsigned)?;
        }
        add_batch(&mut linker.instance(&format!("wasi:keyvalue/batch@{version}"))?)?;
    }
    Ok(())
}

fn add_store(instance: &mut LinkerInstance<'_, Guest>) -> wasmtime::Result<()> {
    instance.resource("bucket", ResourceType::host::<Bucket>(), |mut caller: Caller<'_>, rep| {
        caller.data_mut().ctx().table.delete(Resource::<Bucket>::new_own(rep))?;
        Ok(())
    })?;
    instance.func_wrap_async("open", |caller, (name,): (String,)| Box::new(open(caller, name)))?;
    instance.func_wrap("[method]bucket.get", |mut caller: Caller<'_>, (this, key): (Of, String)| {
        let bucket = bucket(&mut caller, &this)?;
        answer(bucket.database.get(&bucket.store, &key))
    })?;
    instance.func_wrap(
        "[method]bucket.set",
        |mut caller: Caller<'_>, (this, key, value): (Of, String, Vec<u8>)| {
            let bucket = bucket(&mut caller, &this)?;
            answer(bucket.database.set(&bucket.store, &key, value))
        },
    )?;
    instance.func_wrap("[method]bucket.delete", |mut caller: Caller<'_>, (this, key): (Of, String)| {
        let bucket = bucket(&mut caller, &this)?;
        answer(bucket.database.delete(&bucket.store, &key))
    })?;
    instance.func_wrap("[method]bucket.exists", |mut caller: Caller<'_>, (this, key): (Of, String)| {
        let bucket = bucket(&mut caller, &this)?;
        answer(bucket.database.exists(&bucket.store, &key))
    })
}

type Of = Resource<Bucket>;

fn bucket<'a>(caller: &'a mut Caller<'_>, this: &Of) -> wasmtime::Result<&'a Bucket> {
    Ok(caller.data_mut().ctx().table.get(this)?)
}

fn answer<T>(result: Result<T, KeyValueError>) -> Answer<T> {
    Ok((result.map_err(StoreError::from),))
}

async fn open(mut caller: Caller<'_>, name: String) -> Answer<Of> {
    let Some(KeyValue(given)) = caller.data().keyvalue.clone() else {
        return Ok((Err(StoreError::AccessDenied),));
    };
    if !given.stores.contains(&name) {
        return Ok((Err(StoreError::NoSuchStore),));
    }
    if let Err(error) = given.database.load().await {
        return Ok((Err(error.into()),));
    }
    let bucket = Bucket { database: given.database.clone(), store: name.into() };
    Ok((Ok(caller.data_mut().ctx().table.push(bucket)?),))
}

fn list_after_key(instance: &mut LinkerInstance<'_, Guest>) -> wasmtime::Result<()> {
    instance.func_wrap(
        "[method]bucket.list-keys",
        |mut caller: Caller<'_>, (this, cursor): (Of, Option<String>)| {
            let bucket = bucket(&mut caller, &this)?;
            answer(bucket.database.keys(&bucket.store, cursor.as_deref()).map(|(keys, more)| {
                let cursor = more.then(|| keys.last().cloned()).flatten();
                Keys { keys, cursor }
            }))
        },
    )
}

/// The earlier interface: a position is how many keys were told.
fn list_by_number(instance: &mut LinkerInstance<'_, Guest>) -> wasmtime::Result<()> {
    instance.func_wrap(
        "[method]bucket.list-keys",
        |mut caller: Caller<'_>, (this, cursor): (Of, Option<u64>)| {
            let bucket = bucket(&mut caller, &this)?;
            let told = cursor.unwrap_or(0);
            answer(bucket.database.keys_from(&bucket.store, told).map(|(keys, more)| {
                let cursor = more.then_some(told + keys.len() as u64);
                Keys { keys, cursor }
            }))
        },
    )
}

fn increment(mut caller: Caller<'_>, (this, key, delta): (Of, String, i64)) -> Answer<i64> {
    let bucket = bucket(&mut caller, &this)?;
    answer(bucket.database.add(&bucket.store, &key, delta))
}

fn increment_unsigned(mut caller: Caller<'_>, (this, key, delta): (Of, String, u64)) -> Answer<u64> {
    let bucket = bucket(&mut caller, &this)?;
    let delta = i64::try_from(delta).map_err(|_| KeyValueError::NoNumber);
    let sum = delta.and_then(|delta| bucket.database.add(&bucket.store, &key, delta));
    answer(sum.and_then(|sum| u64::try_from(sum).map_err(|_| KeyValueError::NoNumber)))
}

fn add_swap(instance: &mut LinkerInstance<'_, Guest>) -> wasmtime::Result<()> {
    instance.resource("cas", ResourceType::host::<Seen>(), |mut caller: Caller<'_>, rep| {
        caller.data_mut().ctx().table.delete(Resource::<Seen>::new_own(rep))?;
        Ok(())
    })?;
    instance.func_wrap("[static]cas.new", |mut caller: Caller<'_>, (this, key): (Of, String)| {
        let bucket = bucket(&mut caller, &this)?.clone();
        match bucket.database.get(&bucket.store, &key) {
            Ok(value) => Ok((Ok(caller.data_mut().ctx().table.push(Seen { bucket, key, value })?),)),
            Err(error) => answer(Err(error)),
        }
    })?;
    instance.func_wrap("[method]cas.current", |mut caller: Caller<'_>, (this,): (Resource<Seen>,)| {
        let seen = caller.data_mut().ctx().table.get(&this)?;
        answer(Ok(seen.value.clone()))
    })?;
    instance.func_wrap("swap", |mut caller: Caller<'_>, (this, value): (Resource<Seen>, Vec<u8>)| {
        let Seen { bucket, key, value: seen } = caller.data_mut().ctx().table.delete(this)?;
        Ok((match bucket.database.swap(&bucket.store, &key, seen.as_deref(), value) {
            Ok(Ok(())) => Ok(()),
            Ok(Err(value)) => {
                let now = caller.data_mut().ctx().table.push(Seen { bucket, key, value })?;
                Err(SwapError::Failed(now))
            }
            Err(error) => Err(SwapError::Store(error.into())),
        },))
    })
}

/// Many keys in one call, one after another: the first that fails ends it.
fn add_batch(instance: &mut LinkerInstance<'_, Guest>) -> wasmtime::Result<()> {
    instance.func_wrap("get-many", |mut caller: Caller<'_>, (this, keys): (Of, Vec<String>)| {
        let bucket = bucket(&mut caller, &this)?;
        answer(few(keys).and_then(|keys| {
            let one = |key: String| {
                let value = bucket.database.get(&bucket.store, &key)?;
                Ok(value.map(|value| (key, value)))
            };
            keys.into_iter().map(one).collect::<Result<Vec<_>, _>>()
        }))
    })?;
    instance.func_wrap(
        "set-many",
        |mut caller: Caller<'_>, (this, pairs): (Of, Vec<(String, Vec<u8>)>)| {
            let bucket = bucket(&mut caller, &this)?;
            answer(few(pairs).and_then(|pairs| {
                pairs.into_iter().try_for_each(|(key, value)| bucket.database.set(&bucket.store, &key, value))
            }))
        },
    )?;
    instance.func_wrap("delete-many", |mut caller: Caller<'_>, (this, keys): (Of, Vec<String>)| {
        let bucket = bucket(&mut caller, &this)?;
        answer(
            few(keys)
                .and_then(|keys| keys.iter().try_for_each(|key| bucket.database.delete(&bucket.store, key))),
        )
    })
}

fn few<T>(list: Vec<T>) -> Result<Vec<T>, KeyValueError> {
    if list.len() > MAX_BATCH { Err(KeyValueError::Batch(list.len())) } else { Ok(list) }
}
