//! wasi:blobstore: the containers that a guest was given, in its owner's [`Store`](crate::blobs::Store).

use std::sync::Arc;

use bytes::Bytes;
use wasmtime::StoreContextMut;
use wasmtime::component::{ComponentType, Lift, Linker, LinkerInstance, Lower, Resource, ResourceType};
use wasmtime_wasi::async_trait;
use wasmtime_wasi::p2::{
    DynInputStream, DynOutputStream, InputStream, OutputStream, Pollable, StreamError, StreamResult,
};
use wasmtime_wasi::{WasiView, runtime::spawn_blocking};

use crate::blobs::{BlobError, Handles, MAX_PIECE, PAGE, Store};
pub use crate::blobs::{BlobTold, BlobWish};
use crate::guest::Guest;

const TYPES: &str = "wasi:blobstore/types@0.2.0-draft";
const CONTAINER: &str = "wasi:blobstore/container@0.2.0-draft";
const BLOBSTORE: &str = "wasi:blobstore/blobstore@0.2.0-draft";
/// Most bytes of an object that is handed over in one piece.
const MAX_WHOLE: u64 = 16 << 20;
/// Bytes of a stream that are taken or given at a time.
const CHUNK: usize = 64 << 10;

/// The process that keeps the objects. It is asked from a guest's thread, which waits.
pub trait BlobsElsewhere: Send + Sync + 'static {
    /// Has a wish done.
    ///
    /// # Errors
    /// In the words that the guest is told.
    fn ask(&self, wish: &BlobWish) -> Result<BlobTold, String>;
}

/// The containers a guest may use, and what it has open there. Clones are the same.
#[derive(Clone)]
pub struct Blobs(Arc<Given>);

struct Given {
    place: Place,
    containers: Vec<String>,
}

enum Place {
    Here(Arc<Handles>),
    Elsewhere(Arc<dyn BlobsElsewhere>),
}

impl Blobs {
    pub(crate) fn new(store: Arc<Store>, containers: Vec<String>) -> Self {
        Self(Arc::new(Given { place: Place::Here(Arc::new(Handles::new(store))), containers }))
    }

    /// Containers of these names that another process keeps.
    pub fn elsewhere(keeper: Arc<dyn BlobsElsewhere>, containers: Vec<String>) -> Self {
        Self(Arc::new(Given { place: Place::Elsewhere(keeper), containers }))
    }

    /// The names of the containers.
    pub fn containers(&self) -> &[String] {
        &self.0.containers
    }

    fn check(&self, wish: &BlobWish) -> Result<(), String> {
        match wish.containers().find(|name| !self.0.containers.iter().any(|given| given == name)) {
            Some(other) => Err(BlobError::NotGiven(other.to_owned()).to_string()),
            None => Ok(()),
        }
    }

    /// Does what a guest wishes, if it is about one of these containers.
    ///
    /// # Errors
    /// In the words that the guest is told.
    pub async fn fulfil(&self, wish: BlobWish) -> Result<BlobTold, String> {
        if wish.is_piece() {
            return self.piece(wish);
        }
        self.check(&wish)?;
        match &self.0.place {
            Place::Here(handles) => {
                handles.store().load().await.map_err(|error| error.to_string())?;
                let handles = Arc::clone(handles);
                spawn_blocking(move || handles.fulfil(wish).map_err(|error| error.to_string())).await
            }
            Place::Elsewhere(keeper) => keeper.ask(&wish),
        }
    }

    /// A wish about what is open, done at once.
    fn piece(&self, wish: BlobWish) -> Result<BlobTold, String> {
        match &self.0.place {
            Place::Here(handles) => handles.fulfil(wish).map_err(|error| error.to_string()),
            Place::Elsewhere(keeper) => keeper.ask(&wish),
        }
    }
}

/// Something open, until this is dropped.
struct Open {
    blobs: Blobs,
    handle: u64,
}

impl Open {
    fn read(&self, at: u64, most: usize) -> Result<Vec<u8>, String> {
        let most = u32::try_from(most.min(MAX_PIECE)).unwrap_or(u32::MAX);
        match self.blobs.piece(BlobWish::Read { handle: self.handle, at, most })? {
            BlobTold::Bytes(bytes) => Ok(bytes),
            _ => strange(),
        }
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        // Nobody can be told.
        let _ = self.blobs.piece(BlobWish::Close { handle: self.handle });
    }
}

fn strange<T>() -> Result<T, String> {
    Err("the answer is to another question".into())
}

fn failed(text: String) -> StreamError {
    StreamError::LastOperationFailed(wasmtime::Error::msg(text))
}

/// An object's bytes on their way to the guest.
struct Incoming {
    open: Open,
    at: u64,
    length: u64,
}

#[async_trait]
impl Pollable for Incoming {
    async fn ready(&mut self) {}
}

#[async_trait]
impl InputStream for Incoming {
    fn read(&mut self, size: usize) -> StreamResult<Bytes> {
        if self.at >= self.length {
            return Err(StreamError::Closed);
        }
        let bytes = self.open.read(self.at, size.min(CHUNK)).map_err(failed)?;
        self.at += bytes.len() as u64;
        Ok(bytes.into())
    }
}

/// An object to come; what is written of it, and where it belongs.
#[derive(Default)]
struct Outgoing {
    open: Option<Arc<Open>>,
    target: Option<(Blobs, String, String)>,
}

/// A guest's bytes on their way to an object.
struct Writing(Arc<Open>);

#[async_trait]
impl Pollable for Writing {
    async fn ready(&mut self) {}
}

#[async_trait]
impl OutputStream for Writing {
    fn write(&mut self, bytes: Bytes) -> StreamResult<()> {
        for piece in bytes.chunks(MAX_PIECE) {
            let wish = BlobWish::Append { handle: self.0.handle, bytes: piece.to_vec() };
            self.0.blobs.piece(wish).map_err(failed)?;
        }
        Ok(())
    }

    fn flush(&mut self) -> StreamResult<()> {
        Ok(())
    }

    fn check_write(&mut self) -> StreamResult<usize> {
        Ok(CHUNK)
    }
}

struct Container {
    blobs: Blobs,
    name: String,
}

/// A list of a container's objects, read up to one.
struct Names {
    blobs: Blobs,
    container: String,
    after: Option<String>,
    over: bool,
}

#[derive(ComponentType, Lift, Lower)]
#[component(record)]
struct ContainerMetadata {
    name: String,
    #[component(name = "created-at")]
    created_at: u64,
}

#[derive(ComponentType, Lift, Lower)]
#[component(record)]
struct ObjectMetadata {
    name: String,
    container: String,
    #[component(name = "created-at")]
    created_at: u64,
    size: u64,
}

#[derive(ComponentType, Lift, Lower)]
#[component(record)]
struct ObjectId {
    container: String,
    object: String,
}

type Caller<'a> = StoreContextMut<'a, Guest>;
/// What the guest is told; the outer failure ends it.
type Answer<T> = wasmtime::Result<(Result<T, String>,)>;

pub(crate) fn add_to(linker: &mut Linker<Guest>) -> wasmtime::Result<()> {
    add_outgoing(&mut linker.instance(TYPES)?)?;
    add_incoming(&mut linker.instance(TYPES)?)?;
    add_container(&mut linker.instance(CONTAINER)?)?;
    add_names(&mut linker.instance(CONTAINER)?)?;
    add_blobstore(&mut linker.instance(BLOBSTORE)?)
}

/// A resource whose host's side is a `T`.
fn resource<T: Send + 'static>(instance: &mut LinkerInstance<'_, Guest>, name: &str) -> wasmtime::Result<()> {
    instance.resource(name, ResourceType::host::<T>(), |mut caller: Caller<'_>, rep| {
        caller.data_mut().ctx().table.delete(Resource::<T>::new_own(rep))?;
        Ok(())
    })
}

fn given(caller: &Caller<'_>) -> Result<Blobs, String> {
    caller.data().blobs.clone().ok_or_else(|| "this guest was given no containers".into())
}

async fn begin(blobs: &Blobs) -> Result<Arc<Open>, String> {
    match blobs.fulfil(BlobWish::Begin).await? {
        BlobTold::Opened(handle, _) => Ok(Arc::new(Open { blobs: blobs.clone(), handle })),
        _ => strange(),
    }
}

fn add_outgoing(instance: &mut LinkerInstance<'_, Guest>) -> wasmtime::Result<()> {
    resource::<Outgoing>(instance, "outgoing-value")?;
    instance.func_wrap("[static]outgoing-value.new-outgoing-value", |mut caller: Caller<'_>, ()| {
        Ok((caller.data_mut().ctx().table.push(Outgoing::default())?,))
    })?;
    instance.func_wrap_async("[method]outgoing-value.outgoing-value-write-body", |caller, (this,)| {
        Box::new(write_body(caller, this))
    })?;
    instance
        .func_wrap_async("[static]outgoing-value.finish", |caller, (this,)| Box::new(finish(caller, this)))
}

async fn write_body(
    mut caller: Caller<'_>,
    this: Resource<Outgoing>,
) -> wasmtime::Result<(Result<Resource<DynOutputStream>, ()>,)> {
    let Ok(blobs) = given(&caller) else { return Ok((Err(()),)) };
    if caller.data_mut().ctx().table.get(&this)?.open.is_some() {
        return Ok((Err(()),));
    }
    let Ok(open) = begin(&blobs).await else { return Ok((Err(()),)) };
    let table = caller.data_mut().ctx().table;
    table.get_mut(&this)?.open = Some(Arc::clone(&open));
    let stream: DynOutputStream = Box::new(Writing(open));
    Ok((Ok(table.push(stream)?),))
}

async fn finish(mut caller: Caller<'_>, this: Resource<Outgoing>) -> Answer<()> {
    let Outgoing { open, target } = caller.data_mut().ctx().table.delete(this)?;
    Ok((finished(open, target).await,))
}

async fn finished(open: Option<Arc<Open>>, target: Option<(Blobs, String, String)>) -> Result<(), String> {
    let (blobs, container, object) =
        target.ok_or("the value is written to no object: write-data was not called")?;
    let open = match open {
        Some(open) => open,
        // An object without bytes.
        None => begin(&blobs).await?,
    };
    blobs.fulfil(BlobWish::Finish { handle: open.handle, container, object }).await.map(drop)
}

fn add_incoming(instance: &mut LinkerInstance<'_, Guest>) -> wasmtime::Result<()> {
    resource::<Incoming>(instance, "incoming-value")?;
    instance.func_wrap(
        "[method]incoming-value.size",
        |mut caller: Caller<'_>, (this,): (Resource<Incoming>,)| {
            Ok((caller.data_mut().ctx().table.get(&this)?.length,))
        },
    )?;
    instance.func_wrap(
        "[static]incoming-value.incoming-value-consume-sync",
        |mut caller: Caller<'_>, (this,): (Resource<Incoming>,)| {
            let value = caller.data_mut().ctx().table.delete(this)?;
            Ok((whole(&value),))
        },
    )?;
    instance.func_wrap(
        "[static]incoming-value.incoming-value-consume-async",
        |mut caller: Caller<'_>, (this,): (Resource<Incoming>,)| {
            let table = caller.data_mut().ctx().table;
            let stream: DynInputStream = Box::new(table.delete(this)?);
            Ok((Ok::<_, String>(table.push(stream)?),))
        },
    )
}

fn whole(value: &Incoming) -> Result<Vec<u8>, String> {
    if value.length > MAX_WHOLE {
        return Err(format!(
            "{} bytes are more than the {MAX_WHOLE} that are given at once; read them from a stream",
            value.length
        ));
    }
    let mut all = Vec::new();
    while (all.len() as u64) < value.length {
        let piece = value.open.read(all.len() as u64, MAX_PIECE)?;
        if piece.is_empty() {
            return Err("the object is shorter than it was".into());
        }
        all.extend(piece);
    }
    Ok(all)
}

type Of = Resource<Container>;

/// The container, for a call that may wait.
fn of(caller: &mut Caller<'_>, this: &Of) -> wasmtime::Result<(Blobs, String)> {
    let container = caller.data_mut().ctx().table.get(this)?;
    Ok((container.blobs.clone(), container.name.clone()))
}

async fn done(blobs: &Blobs, wish: BlobWish) -> Result<(), String> {
    blobs.fulfil(wish).await.map(drop)
}

fn add_container(instance: &mut LinkerInstance<'_, Guest>) -> wasmtime::Result<()> {
    resource::<Container>(instance, "container")?;
    instance.func_wrap("[method]container.name", |mut caller: Caller<'_>, (this,): (Of,)| {
        let (_, name) = of(&mut caller, &this)?;
        Ok((Ok::<_, String>(name),))
    })?;
    instance.func_wrap_async("[method]container.info", |caller, (this,)| Box::new(info(caller, this)))?;
    instance
        .func_wrap_async("[method]container.get-data", |caller, args| Box::new(get_data(caller, args)))?;
    instance.func_wrap(
        "[method]container.write-data",
        |mut caller: Caller<'_>, (this, object, value): (Of, String, Resource<Outgoing>)| {
            let (blobs, container) = of(&mut caller, &this)?;
            caller.data_mut().ctx().table.get_mut(&value)?.target = Some((blobs, container, object));
            Ok((Ok::<(), String>(()),))
        },
    )?;
    instance.func_wrap_async(
        "[method]container.delete-object",
        |mut caller: Caller<'_>, (this, object): (Of, String)| {
            Box::new(async move {
                let (blobs, container) = of(&mut caller, &this)?;
                Ok((done(&blobs, BlobWish::Delete { container, objects: vec![object] }).await,))
            })
        },
    )?;
    instance.func_wrap_async(
        "[method]container.delete-objects",
        |mut caller: Caller<'_>, (this, objects): (Of, Vec<String>)| {
            Box::new(async move {
                let (blobs, container) = of(&mut caller, &this)?;
                Ok((done(&blobs, BlobWish::Delete { container, objects }).await,))
            })
        },
    )?;
    instance.func_wrap_async("[method]container.clear", |mut caller: Caller<'_>, (this,): (Of,)| {
        Box::new(async move {
            let (blobs, container) = of(&mut caller, &this)?;
            Ok((done(&blobs, BlobWish::Clear { container }).await,))
        })
    })?;
    instance.func_wrap_async("[method]container.has-object", |caller, (this, object)| {
        Box::new(async move {
            let found = object_info(caller, this, object).await?;
            Ok((found.map(|found| found.is_some()),))
        })
    })?;
    instance.func_wrap_async("[method]container.object-info", |caller, (this, object): (Of, String)| {
        Box::new(async move {
            let missing = format!("object {object} does not exist");
            let found = object_info(caller, this, object).await?;
            Ok((found.and_then(|found| found.ok_or(missing)),))
        })
    })
}

async fn info(mut caller: Caller<'_>, this: Of) -> Answer<ContainerMetadata> {
    let (blobs, name) = of(&mut caller, &this)?;
    Ok((match blobs.fulfil(BlobWish::Container { container: name.clone() }).await {
        Ok(BlobTold::Container(created_at)) => Ok(ContainerMetadata { name, created_at }),
        Ok(_) => strange(),
        Err(error) => Err(error),
    },))
}

async fn object_info(
    mut caller: Caller<'_>,
    this: Of,
    object: String,
) -> wasmtime::Result<Result<Option<ObjectMetadata>, String>> {
    let (blobs, container) = of(&mut caller, &this)?;
    let wish = BlobWish::Object { container: container.clone(), object: object.clone() };
    Ok(match blobs.fulfil(wish).await {
        Ok(BlobTold::Object(found)) => {
            Ok(found.map(|(size, created_at)| ObjectMetadata { name: object, container, created_at, size }))
        }
        Ok(_) => strange(),
        Err(error) => Err(error),
    })
}

async fn get_data(
    mut caller: Caller<'_>,
    (this, object, first, last): (Of, String, u64, u64),
) -> Answer<Resource<Incoming>> {
    let (blobs, container) = of(&mut caller, &this)?;
    Ok((match blobs.fulfil(BlobWish::Open { container, object, first, last }).await {
        Ok(BlobTold::Opened(handle, length)) => {
            let incoming = Incoming { open: Open { blobs, handle }, at: 0, length };
            Ok(caller.data_mut().ctx().table.push(incoming)?)
        }
        Ok(_) => strange(),
        Err(error) => Err(error),
    },))
}

fn add_names(instance: &mut LinkerInstance<'_, Guest>) -> wasmtime::Result<()> {
    resource::<Names>(instance, "stream-object-names")?;
    instance.func_wrap_async(
        "[method]container.list-objects",
        |mut caller: Caller<'_>, (this,): (Of,)| {
            Box::new(async move {
                let (blobs, container) = of(&mut caller, &this)?;
                if let Err(error) = done(&blobs, BlobWish::Container { container: container.clone() }).await {
                    return Ok((Err(error),));
                }
                let names = Names { blobs, container, after: None, over: false };
                Ok((Ok(caller.data_mut().ctx().table.push(names)?),))
            })
        },
    )?;
    instance.func_wrap_async(
        "[method]stream-object-names.read-stream-object-names",
        |caller, (this, most): (Resource<Names>, u64)| Box::new(read_names(caller, this, most)),
    )?;
    instance.func_wrap_async(
        "[method]stream-object-names.skip-stream-object-names",
        |caller, (this, most): (Resource<Names>, u64)| Box::new(skip_names(caller, this, most)),
    )
}

/// The next names, at most a page; whether they were the last.
async fn read_names(mut caller: Caller<'_>, this: Resource<Names>, most: u64) -> Answer<(Vec<String>, bool)> {
    let list = caller.data_mut().ctx().table.get(&this)?;
    if list.over || most == 0 {
        return Ok((Ok((Vec::new(), list.over)),));
    }
    let (blobs, container, after) = (list.blobs.clone(), list.container.clone(), list.after.clone());
    let most = u32::try_from(most.min(PAGE as u64)).unwrap_or(u32::MAX);
    Ok((match blobs.fulfil(BlobWish::Objects { container, after, most }).await {
        Ok(BlobTold::Names(names, more)) => {
            let list = caller.data_mut().ctx().table.get_mut(&this)?;
            list.over = !more;
            list.after = names.last().cloned().or(list.after.take());
            Ok((names, !more))
        }
        Ok(_) => strange(),
        Err(error) => Err(error),
    },))
}

async fn skip_names(mut caller: Caller<'_>, this: Resource<Names>, most: u64) -> Answer<(u64, bool)> {
    let mut skipped = 0;
    loop {
        let again = Resource::new_borrow(this.rep());
        let (page,) = read_names(reborrow(&mut caller), again, most - skipped).await?;
        match page {
            Ok((names, over)) => {
                skipped += names.len() as u64;
                if over || skipped >= most {
                    return Ok((Ok((skipped, over)),));
                }
            }
            Err(error) => return Ok((Err(error),)),
        }
    }
}

fn reborrow<'a>(caller: &'a mut Caller<'_>) -> Caller<'a> {
    wasmtime::AsContextMut::as_context_mut(caller)
}

fn add_blobstore(instance: &mut LinkerInstance<'_, Guest>) -> wasmtime::Result<()> {
    instance.func_wrap_async("create-container", |caller, (name,): (String,)| {
        Box::new(container(caller, name.clone(), BlobWish::Create { container: name }))
    })?;
    instance.func_wrap_async("get-container", |caller, (name,): (String,)| {
        Box::new(container(caller, name.clone(), BlobWish::Container { container: name }))
    })?;
    instance.func_wrap_async("delete-container", |caller, (container,): (String,)| {
        Box::new(simple(caller, BlobWish::Remove { container }))
    })?;
    instance.func_wrap_async("container-exists", |caller: Caller<'_>, (container,): (String,)| {
        Box::new(async move {
            let told = match given(&caller) {
                Ok(blobs) => blobs.fulfil(BlobWish::Exists { container }).await,
                Err(error) => Err(error),
            };
            Ok((told.map(|told| told == BlobTold::Flag(true)),))
        })
    })?;
    for (name, keep) in [("copy-object", true), ("move-object", false)] {
        instance.func_wrap_async(name, move |caller, (from, to): (ObjectId, ObjectId)| {
            let pair = |id: ObjectId| (id.container, id.object);
            Box::new(simple(caller, BlobWish::Copy { from: pair(from), to: pair(to), keep }))
        })?;
    }
    Ok(())
}

async fn simple(caller: Caller<'_>, wish: BlobWish) -> Answer<()> {
    Ok((match given(&caller) {
        Ok(blobs) => done(&blobs, wish).await,
        Err(error) => Err(error),
    },))
}

async fn container(mut caller: Caller<'_>, name: String, wish: BlobWish) -> Answer<Of> {
    let blobs = match given(&caller) {
        Ok(blobs) => blobs,
        Err(error) => return Ok((Err(error),)),
    };
    if let Err(error) = done(&blobs, wish).await {
        return Ok((Err(error),));
    }
    Ok((Ok(caller.data_mut().ctx().table.push(Container { blobs, name })?),))
}
