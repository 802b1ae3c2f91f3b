//! Sockets that ask the guest's [`Network`] before anything reaches the operating system.
//!
//! A few functions of wasi:sockets are replaced, because the answer may be another address than the guest
//! asked for: binds (the wildcard becomes the guest's own address), TCP connects (which may be redirected
//! and always start from the own address), name lookups, and where a socket is made. Everything else is the engine's.

use std::collections::VecDeque;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::task::{Context as TaskContext, Poll};

use wasmtime::StoreContextMut;
use wasmtime::component::{Linker, Resource, ResourceType};
use wasmtime_wasi::WasiView;
use wasmtime_wasi::async_trait;
use wasmtime_wasi::p2::bindings::sockets::network::{
    ErrorCode, IpAddress, IpAddressFamily, IpSocketAddress, Network as Handle,
};
use wasmtime_wasi::p2::bindings::sockets::tcp::HostTcpSocket;
use wasmtime_wasi::p2::bindings::sockets::tcp_create_socket::Host as _;
use wasmtime_wasi::p2::bindings::sockets::udp::HostUdpSocket;
use wasmtime_wasi::p2::bindings::sockets::udp_create_socket::Host as _;
use wasmtime_wasi::p2::{DynPollable, Pollable, SocketResult, TcpSocket, UdpSocket, subscribe};
use wasmtime_wasi::runtime::{AbortOnDropJoinHandle, spawn};
use wasmtime_wasi::sockets::{WasiSocketsCtxView, WasiSocketsView};

use crate::guest::Guest;
use crate::network::{Network, NetworkError, Protocol, rewrite};

const TCP: &str = "wasi:sockets/tcp@0.2.12";
const UDP: &str = "wasi:sockets/udp@0.2.12";
const TCP_CREATE: &str = "wasi:sockets/tcp-create-socket@0.2.12";
const UDP_CREATE: &str = "wasi:sockets/udp-create-socket@0.2.12";
const LOOKUP: &str = "wasi:sockets/ip-name-lookup@0.2.12";

/// Longest name that is looked up, as in the domain name system.
const MAX_NAME: usize = 253;

pub(crate) fn override_in(linker: &mut Linker<Guest>) -> wasmtime::Result<()> {
    linker.allow_shadowing(true);
    linker.instance(TCP)?.func_wrap_async("[method]tcp-socket.start-bind", |store, args| {
        Box::new(async move { answer(tcp_bind(store, args).await) })
    })?;
    linker.instance(TCP)?.func_wrap_async("[method]tcp-socket.start-connect", |store, args| {
        Box::new(async move { answer(tcp_connect(store, args).await) })
    })?;
    linker.instance(UDP)?.func_wrap_async("[method]udp-socket.start-bind", |store, args| {
        Box::new(async move { answer(udp_bind(store, args).await) })
    })?;
    linker.instance(TCP_CREATE)?.func_wrap(
        "create-tcp-socket",
        |mut store: StoreContextMut<'_, Guest>, (family,): (IpAddressFamily,)| {
            answer(make(store.data_mut(), |sockets| sockets.create_tcp_socket(family)))
        },
    )?;
    linker.instance(UDP_CREATE)?.func_wrap_async("create-udp-socket", |store, args| {
        Box::new(async move { answer(udp_create(store, args).await) })
    })?;
    name_lookup(linker)?;
    linker.allow_shadowing(false);
    Ok(())
}

type Answer<T> = wasmtime::Result<(Result<T, ErrorCode>,)>;

/// Splits what the guest gets to see from what ends it.
fn answer<T>(result: SocketResult<T>) -> Answer<T> {
    match result {
        Ok(value) => Ok((Ok(value),)),
        Err(error) => Ok((Err(error.downcast()?),)),
    }
}

fn refusal(error: &NetworkError) -> ErrorCode {
    tracing::debug!("guest's network: {error}");
    match error {
        NetworkError::Denied(_) => ErrorCode::AccessDenied,
        NetworkError::NotFound(_) => ErrorCode::NameUnresolvable,
        NetworkError::Unreachable(_) => ErrorCode::RemoteUnreachable,
    }
}

/// Makes a socket where the guest's sockets belong.
fn make<S: Send>(
    guest: &mut Guest,
    create: impl Fn(&mut WasiSocketsCtxView<'_>) -> SocketResult<S> + Send + Sync,
) -> SocketResult<S> {
    if !crate::descriptors::any_left() {
        return Err(ErrorCode::NewSocketLimit.into());
    }
    let network = Arc::clone(&guest.network);
    let mut made = None;
    network.enter(None, &mut || made = Some(create(&mut guest.sockets())));
    made.unwrap_or_else(|| Err(ErrorCode::AccessDenied.into()))
}

/// Makes a socket where the guest's sockets belong, and then waits here until it is ready.
async fn udp_create(
    mut store: StoreContextMut<'_, Guest>,
    (family,): (IpAddressFamily,),
) -> SocketResult<Resource<UdpSocket>> {
    if !crate::descriptors::any_left() {
        return Err(ErrorCode::NewSocketLimit.into());
    }
    let guest = store.data_mut();
    let network = Arc::clone(&guest.network);
    let mut sockets = guest.sockets();
    let mut creating = std::pin::pin!(sockets.create_udp_socket(family));
    // The first step is the one that makes it.
    let mut entered = false;
    std::future::poll_fn(|cx| {
        if std::mem::replace(&mut entered, true) {
            return creating.as_mut().poll(cx);
        }
        let (waker, mut polled) = (cx.waker().clone(), Poll::Pending);
        network.enter(None, &mut || polled = creating.as_mut().poll(&mut TaskContext::from_waker(&waker)));
        polled
    })
    .await
}

type BindArgs<S> = (Resource<S>, Resource<Handle>, IpSocketAddress);

async fn tcp_bind(
    mut store: StoreContextMut<'_, Guest>,
    (socket, handle, local): BindArgs<TcpSocket>,
) -> SocketResult<()> {
    let local = own(&*store.data().network, Protocol::Tcp, local)?;
    HostTcpSocket::start_bind(&mut store.data_mut().sockets(), socket, handle, local.into()).await
}

async fn udp_bind(
    mut store: StoreContextMut<'_, Guest>,
    (socket, handle, local): BindArgs<UdpSocket>,
) -> SocketResult<()> {
    let local = own(&*store.data().network, Protocol::Udp, local)?;
    HostUdpSocket::start_bind(&mut store.data_mut().sockets(), socket, handle, local.into()).await
}

/// The address a guest is bound to when it asks for `local`.
fn own(network: &dyn Network, protocol: Protocol, local: IpSocketAddress) -> Result<SocketAddr, ErrorCode> {
    let local = rewrite(network, local.into());
    network.bind(protocol, local).map_err(|error| refusal(&error))?;
    Ok(local)
}

async fn tcp_connect(
    mut store: StoreContextMut<'_, Guest>,
    (socket, handle, remote): BindArgs<TcpSocket>,
) -> SocketResult<()> {
    let network = Arc::clone(&store.data().network);
    let remote = network.connect(Protocol::Tcp, remote.into()).map_err(|error| refusal(&error))?;
    let mut sockets = store.data_mut().sockets();
    if let Some(own) = network.source(remote).filter(|own| own.is_ipv4() == remote.is_ipv4()) {
        let (this, other) = (borrow(&socket), borrow(&handle));
        // A socket that is bound already says so, and stays where it is.
        let local = SocketAddr::new(own, 0).into();
        if HostTcpSocket::start_bind(&mut sockets, this, other, local).await.is_ok() {
            HostTcpSocket::finish_bind(&mut sockets, borrow(&socket))?;
        }
    }
    sockets.start_connect(socket, handle, remote.into())
}

fn borrow<T: 'static>(resource: &Resource<T>) -> Resource<T> {
    Resource::new_borrow(resource.rep())
}

/// Addresses on their way to the guest.
struct Lookup {
    task: Option<AbortOnDropJoinHandle<Result<Vec<IpAddr>, NetworkError>>>,
    found: Result<VecDeque<IpAddr>, ErrorCode>,
}

#[async_trait]
impl Pollable for Lookup {
    async fn ready(&mut self) {
        if let Some(task) = &mut self.task {
            self.found = task.await.map(VecDeque::from).map_err(|error| refusal(&error));
            self.task = None;
        }
    }
}

fn name_lookup(linker: &mut Linker<Guest>) -> wasmtime::Result<()> {
    let mut instance = linker.instance(LOOKUP)?;
    instance.resource("resolve-address-stream", ResourceType::host::<Lookup>(), |mut store, rep| {
        store.data_mut().ctx().table.delete(Resource::<Lookup>::new_own(rep))?;
        Ok(())
    })?;
    instance.func_wrap(
        "resolve-addresses",
        |mut store: StoreContextMut<'_, Guest>, (_handle, name): (Resource<Handle>, String)| {
            answer(start_lookup(store.data_mut(), name))
        },
    )?;
    instance.func_wrap(
        "[method]resolve-address-stream.resolve-next-address",
        |mut store: StoreContextMut<'_, Guest>, (stream,): (Resource<Lookup>,)| {
            answer(next_address(store.data_mut(), &stream))
        },
    )?;
    instance.func_wrap(
        "[method]resolve-address-stream.subscribe",
        |mut store: StoreContextMut<'_, Guest>, (stream,): (Resource<Lookup>,)| {
            let pollable: Resource<DynPollable> = subscribe(store.data_mut().ctx().table, stream)?;
            Ok((pollable,))
        },
    )?;
    Ok(())
}

fn start_lookup(guest: &mut Guest, name: String) -> SocketResult<Resource<Lookup>> {
    if name.is_empty() || name.len() > MAX_NAME {
        return Err(ErrorCode::InvalidArgument.into());
    }
    let network = Arc::clone(&guest.network);
    let task = spawn(async move { network.resolve(&name).await });
    let lookup = Lookup { task: Some(task), found: Ok(VecDeque::new()) };
    Ok(guest.ctx().table.push(lookup)?)
}

fn next_address(guest: &mut Guest, stream: &Resource<Lookup>) -> SocketResult<Option<IpAddress>> {
    let lookup = guest.ctx().table.get_mut(stream)?;
    if lookup.task.is_some() {
        return Err(ErrorCode::WouldBlock.into());
    }
    match &mut lookup.found {
        Ok(found) => Ok(found.pop_front().map(Into::into)),
        Err(error) => Err((*error).into()),
    }
}
