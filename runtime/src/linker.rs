//! What guests may import, linked once for each engine.

use wasmtime::Engine;
use wasmtime::component;

use crate::capabilities::{blobstore, config, environment, keyvalue, logging, sockets};
use crate::guest::{Guest, ModuleGuest};

/// WASI 0.2 in full, with wasi:http and the sockets that ask the guest's network; wasi:config, wasi:logging,
/// wasi:keyvalue and wasi:blobstore besides. A program costs only what it imports.
pub(crate) fn components(engine: &Engine) -> wasmtime::Result<component::Linker<Guest>> {
    let mut linker = component::Linker::new(engine);
    wasmtime_wasi::p2::add_to_linker_async(&mut linker)?;
    wasmtime_wasi_http::p2::add_only_http_to_linker_async(&mut linker)?;
    sockets::override_in(&mut linker)?;
    environment::override_in(&mut linker)?;
    config::add_to(&mut linker)?;
    logging::add_to(&mut linker)?;
    keyvalue::add_to(&mut linker)?;
    blobstore::add_to(&mut linker)?;
    Ok(linker)
}

/// WASI 0.1 for core modules. It has no way to open a socket.
pub(crate) fn modules(engine: &Engine) -> wasmtime::Result<wasmtime::Linker<ModuleGuest>> {
    let mut linker = wasmtime::Linker::new(engine);
    wasmtime_wasi::p1::add_to_linker_async(&mut linker, |guest: &mut ModuleGuest| &mut guest.wasi)?;
    Ok(linker)
}
