//! A program ready to run.

use std::sync::Arc;

use wasmtime_wasi::p2::bindings::CommandPre;
use wasmtime_wasi_http::p2::bindings::ProxyPre;

use crate::guest::{Guest, ModuleGuest};
use crate::shared::Shared;

/// What a program is made to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ProgramKind {
    /// A core module of WASI 0.1 with `_start`.
    Module,
    /// A component that exports `wasi:cli/run`.
    Command,
    /// A component that exports `wasi:http/incoming-handler`.
    Http,
}

impl ProgramKind {
    /// The kind in words, for messages.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Module => "a WASI 0.1 command module",
            Self::Command => "a wasi:cli command component",
            Self::Http => "a wasi:http component",
        }
    }
}

/// A compiled and linked program. Any number of instances run from it at the same time.
pub struct Program {
    pub(crate) digest: String,
    pub(crate) size: u64,
    pub(crate) imports: Vec<String>,
    pub(crate) weight: u32,
    pub(crate) reuse: Option<u32>,
    pub(crate) linked: Linked,
    pub(crate) shared: Arc<Shared>,
}

pub(crate) enum Linked {
    Module(wasmtime::InstancePre<ModuleGuest>),
    Command(CommandPre<Guest>),
    Http(ProxyPre<Guest>),
}

impl Program {
    /// Its machine code, for another engine of the same kind.
    pub(crate) fn serialize(&self) -> wasmtime::Result<Vec<u8>> {
        match &self.linked {
            Linked::Module(linked) => linked.module().serialize(),
            Linked::Command(linked) => linked.instance_pre().component().serialize(),
            Linked::Http(linked) => linked.instance_pre().component().serialize(),
        }
    }

    /// What it is made to do.
    pub fn kind(&self) -> ProgramKind {
        match self.linked {
            Linked::Module(_) => ProgramKind::Module,
            Linked::Command(_) => ProgramKind::Command,
            Linked::Http(_) => ProgramKind::Http,
        }
    }

    /// `sha256:` digest of its Wasm bytes.
    pub fn digest(&self) -> &str {
        &self.digest
    }

    /// Length of its Wasm bytes; 0 if it was loaded from compiled code without them.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// The most requests that one instance may serve, one after another, if the program declares that it can.
    pub fn reuse(&self) -> Option<u32> {
        self.reuse
    }

    /// Interfaces (or `module::name` of a core module) that it imports.
    pub fn imports(&self) -> &[String] {
        &self.imports
    }
}
