//! wasi:config: a guest's variables by name. What is in them, the guest could read as its environment as well;
//! a pod fills them from ConfigMaps and Secrets.

use std::sync::Arc;

use wasmtime::StoreContextMut;
use wasmtime::component::{ComponentType, Lift, Linker, Lower};

use crate::guest::Guest;

/// The interface has one shape and several names.
const STORES: [&str; 3] =
    ["wasi:config/store@0.2.0-rc.1", "wasi:config/store@0.2.0-draft", "wasi:config/runtime@0.2.0-draft"];

/// Never given: variables are there or not.
#[derive(ComponentType, Lift, Lower)]
#[component(variant)]
#[allow(dead_code, reason = "part of the interface")]
enum ConfigError {
    #[component(name = "upstream")]
    Upstream(String),
    #[component(name = "io")]
    Io(String),
}

pub(crate) fn add_to(linker: &mut Linker<Guest>) -> wasmtime::Result<()> {
    for name in STORES {
        let mut instance = linker.instance(name)?;
        instance.func_wrap("get", |store: StoreContextMut<'_, Guest>, (key,): (String,)| {
            let found = store.data().words.env.iter().find(|(name, _)| *name == key);
            Ok((Ok::<_, ConfigError>(found.map(|(_, value)| value.clone())),))
        })?;
        instance.func_wrap("get-all", |store: StoreContextMut<'_, Guest>, (): ()| {
            Ok((Ok::<_, ConfigError>(Arc::clone(&store.data().words.env)),))
        })?;
    }
    Ok(())
}
