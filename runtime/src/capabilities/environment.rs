//! Variables and arguments of components, which all instances of one guest share: they are copied into the guest
//! that asks for them, and nowhere else. Otherwise a third of a short request's allocations would be copies.

use std::sync::Arc;

use wasmtime::StoreContextMut;
use wasmtime::component::Linker;

use crate::guest::Guest;
use crate::spec::Spec;

const ENVIRONMENT: &str = "wasi:cli/environment@0.2.12";

/// A guest's variables, each name once, and its arguments.
#[derive(Clone)]
pub(crate) struct Words {
    pub(crate) env: Arc<[(String, String)]>,
    pub(crate) args: Arc<[String]>,
}

impl Words {
    /// Takes the words out of `spec`.
    pub(crate) fn take(spec: &mut Spec) -> Self {
        Self { env: std::mem::take(&mut spec.env).into(), args: std::mem::take(&mut spec.args).into() }
    }
}

pub(crate) fn override_in(linker: &mut Linker<Guest>) -> wasmtime::Result<()> {
    linker.allow_shadowing(true);
    let mut instance = linker.instance(ENVIRONMENT)?;
    instance.func_wrap("get-environment", |store: StoreContextMut<'_, Guest>, (): ()| {
        Ok((Arc::clone(&store.data().words.env),))
    })?;
    instance.func_wrap("get-arguments", |store: StoreContextMut<'_, Guest>, (): ()| {
        Ok((Arc::clone(&store.data().words.args),))
    })?;
    linker.allow_shadowing(false);
    Ok(())
}
