//! The host's side of one instance: its WASI state, built from a [`Spec`].

use std::future::Future;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;

use wasmtime::Store;
use wasmtime::component::ResourceTable;
use wasmtime_wasi::p1::WasiP1Ctx;
use wasmtime_wasi::sockets::SocketAddrUse;
use wasmtime_wasi::{FsPerms, WasiCtx, WasiCtxBuilder, WasiCtxView, WasiView};
use wasmtime_wasi_http::{WasiHttpCtx, WasiHttpCtxView, WasiHttpView};

use crate::capabilities::blobstore::Blobs;
use crate::capabilities::environment::Words;
use crate::capabilities::http::Outgoing;
use crate::capabilities::keyvalue::KeyValue;
use crate::capabilities::stdio::{Input, Output};
use crate::error::Error;
use crate::limits::Limits;
use crate::network::{Network, Protocol};
use crate::shared::Shared;
use crate::spec::Spec;

/// Most handles (streams, files, sockets, fields) one instance holds.
pub(crate) const MAX_RESOURCES: usize = 1000;
/// Most random bytes a guest gets in one call.
const MAX_RANDOM: u64 = 1 << 20;
/// Most bytes a guest passes to the host in one call.
const MAX_COPY: usize = 16 << 20;
/// Ticks a guest computes before it yields; the first may be nearly over when it starts.
pub(crate) const TICKS: u64 = 2;

/// State of a component's instance.
pub(crate) struct Guest {
    wasi: WasiCtx,
    http: WasiHttpCtx,
    outgoing: Outgoing,
    table: ResourceTable,
    pub(crate) network: Arc<dyn Network>,
    pub(crate) words: Words,
    pub(crate) keyvalue: Option<KeyValue>,
    pub(crate) blobs: Option<Blobs>,
    pub(crate) limits: Limits,
}

/// State of a core module's instance.
pub(crate) struct ModuleGuest {
    pub(crate) wasi: WasiP1Ctx,
    pub(crate) limits: Limits,
}

impl WasiView for Guest {
    fn ctx(&mut self) -> WasiCtxView<'_> {
        WasiCtxView { ctx: &mut self.wasi, table: &mut self.table }
    }
}

impl WasiHttpView for Guest {
    fn http(&mut self) -> WasiHttpCtxView<'_> {
        WasiHttpCtxView { hooks: &mut self.outgoing, table: &mut self.table, ctx: &mut self.http }
    }
}

/// What is told apart when a guest fails.
pub(crate) trait HasLimits: Send + 'static {
    fn limits(&mut self) -> &mut Limits;
}

impl HasLimits for Guest {
    fn limits(&mut self) -> &mut Limits {
        &mut self.limits
    }
}

impl HasLimits for ModuleGuest {
    fn limits(&mut self) -> &mut Limits {
        &mut self.limits
    }
}

impl Guest {
    pub(crate) fn store(shared: &Shared, spec: &Spec, words: &Words) -> Result<Store<Self>, Error> {
        let mut http = WasiHttpCtx::new();
        http.set_field_size_limit(spec.http.max_header_bytes);
        let mut table = ResourceTable::new();
        table.set_max_capacity(MAX_RESOURCES);
        let guest = Self {
            wasi: context(spec)?.build(),
            http,
            outgoing: Outgoing::new(Arc::clone(&spec.network), &spec.http),
            table,
            network: Arc::clone(&spec.network),
            words: words.clone(),
            keyvalue: spec.keyvalue.clone(),
            blobs: spec.blobs.clone(),
            limits: limits(shared, spec).at_most(spec.http.max_memory.unwrap_or(u64::MAX)),
        };
        Ok(prepared(shared, guest))
    }

    /// Begins the count of what one request may send out.
    pub(crate) fn begin_request(&mut self) {
        self.outgoing.begin_request();
    }
}

impl ModuleGuest {
    pub(crate) fn store(shared: &Shared, spec: &Spec) -> Result<Store<Self>, Error> {
        let guest = Self {
            wasi: context(spec)?.args(&spec.args).envs(&spec.env).build_p1(),
            limits: limits(shared, spec).at_most(spec.http.max_memory.unwrap_or(u64::MAX)),
        };
        Ok(prepared(shared, guest))
    }
}

fn limits(shared: &Shared, spec: &Spec) -> Limits {
    let limit = spec.memory_limit.unwrap_or(shared.default_memory_limit);
    Limits::new(&spec.usage, limit, &shared.total, shared.memory_budget)
}

fn prepared<T: HasLimits>(shared: &Shared, guest: T) -> Store<T> {
    let mut store = Store::new(&shared.engine, guest);
    store.limiter(|guest| guest.limits());
    store.set_hostcall_fuel(MAX_COPY);
    store.set_epoch_deadline(TICKS);
    store.epoch_deadline_async_yield_and_update(TICKS);
    shared.counters.instances.add(1);
    store
}

fn context(spec: &Spec) -> Result<WasiCtxBuilder, Error> {
    let mut context = WasiCtxBuilder::new();
    context
        .stdout(Output(Arc::clone(&spec.stdout)))
        .stderr(Output(Arc::clone(&spec.stderr)))
        .max_random_size(MAX_RANDOM)
        .allow_tcp(spec.http.max_egress.is_none())
        .allow_udp(spec.http.max_egress.is_none())
        // Names are resolved by the guest's network, never by the engine's own lookup.
        .allow_ip_name_lookup(false)
        .socket_addr_check(check(&spec.network));
    if let Some(stdin) = &spec.stdin {
        context.stdin(Input(stdin.clone()));
    }
    if let Some(directory) = &spec.working_dir {
        context.initial_cwd(directory);
    }
    for mount in &spec.mounts {
        let perms = if mount.read_only { FsPerms::ReadOnly } else { FsPerms::ReadWrite };
        context.preopened_dir(&mount.host, &mount.guest, perms).map_err(|error| Error::Mount {
            host: mount.host.clone(),
            guest: mount.guest.clone(),
            message: format!("{error:#}"),
        })?;
    }
    Ok(context)
}

/// Each variable once, with its last value, at the place of its first: what a guest's environment is made of.
pub(crate) fn environment(variables: Vec<(String, String)>) -> Vec<(String, String)> {
    let mut seen: Vec<(String, String)> = Vec::with_capacity(variables.len());
    for (name, value) in variables {
        match seen.iter_mut().find(|(earlier, _)| *earlier == name) {
            Some(entry) => entry.1 = value,
            None => seen.push((name, value)),
        }
    }
    seen
}

type Check = Pin<Box<dyn Future<Output = bool> + Send + Sync>>;

/// The last word on each address a socket uses. Binds and connects were decided before, where they
/// could still be redirected (see [`crate::capabilities::sockets`]).
fn check(network: &Arc<dyn Network>) -> impl Fn(SocketAddr, SocketAddrUse) -> Check + Send + Sync + 'static {
    let network = Arc::clone(network);
    move |address, purpose| {
        let allowed = match purpose {
            SocketAddrUse::TcpBind
            | SocketAddrUse::TcpListen
            | SocketAddrUse::TcpConnect
            | SocketAddrUse::UdpBind => true,
            SocketAddrUse::TcpAccept => network.accept(Protocol::Tcp, address),
            SocketAddrUse::UdpSend => network.connect(Protocol::Udp, address) == Ok(address),
            SocketAddrUse::UdpReceive => network.accept(Protocol::Udp, address),
        };
        Box::pin(std::future::ready(allowed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn last_value_of_a_variable_wins() {
        let pair = |(name, value): (&str, &str)| (name.to_owned(), value.to_owned());
        let check = |given: &[(&str, &str)], expect: &[(&str, &str)]| {
            let pairs = |list: &[(&str, &str)]| list.iter().copied().map(pair).collect::<Vec<_>>();
            assert_eq!(environment(pairs(given)), pairs(expect));
        };
        check(&[], &[]);
        check(&[("A", "1"), ("B", "2"), ("A", "3")], &[("A", "3"), ("B", "2")]);
    }
}
