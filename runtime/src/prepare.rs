//! From bytes to a program that is linked and ready.

use std::sync::Arc;

use sha2::{Digest, Sha256};
use wasmtime::component::Component;
use wasmtime::{Engine, Module};
use wasmtime_wasi::p2::bindings::CommandPre;
use wasmtime_wasi_http::p2::bindings::ProxyPre;

use crate::declared;
use crate::engine::TABLES_PER_INSTANCE;
use crate::error::PrepareError;
use crate::program::{Linked, Program};
use crate::shared::Shared;

const MAGIC: &[u8] = b"\0asm";
/// The second half of the version field: 0 in a core module, 1 in a component.
const LAYER: usize = 6;

const START: &str = "_start";
const COMMAND: &str = "wasi:cli/run@0.2.";
const HTTP: &str = "wasi:http/incoming-handler@0.2.";

/// One program, compiled.
pub(crate) struct Compiled {
    pub(crate) code: Code,
    /// The most requests of one instance, if the program declares that.
    pub(crate) reuse: Option<u32>,
}

/// Machine code.
pub(crate) enum Code {
    Module(Module),
    Component(Component),
}

impl Code {
    pub(crate) fn serialize(&self) -> wasmtime::Result<Vec<u8>> {
        match self {
            Self::Module(module) => module.serialize(),
            Self::Component(component) => component.serialize(),
        }
    }

    fn names(&self, engine: &Engine) -> (Vec<String>, Vec<String>) {
        match self {
            Self::Module(module) => (
                module.imports().map(|import| format!("{}::{}", import.module(), import.name())).collect(),
                module.exports().map(|export| export.name().to_owned()).collect(),
            ),
            Self::Component(component) => {
                let shape = component.component_type();
                (
                    shape.imports(engine).map(|(name, _)| name.to_owned()).collect(),
                    shape.exports(engine).map(|(name, _)| name.to_owned()).collect(),
                )
            }
        }
    }

    /// Instance slots that one instance takes.
    fn weight(&self) -> u32 {
        let needs = match self {
            Self::Module(module) => module.resources_required(),
            Self::Component(component) => match component.resources_required() {
                Some(needs) => needs,
                None => return 1,
            },
        };
        needs.num_memories.max(needs.num_tables.div_ceil(TABLES_PER_INSTANCE)).max(1)
    }
}

/// The digest that names `bytes` as a program or as content: `sha256:` and hexadecimal.
pub fn digest_of(bytes: &[u8]) -> String {
    format!("sha256:{}", hex::encode(Sha256::digest(bytes)))
}

pub(crate) fn compile(engine: &Engine, bytes: &[u8]) -> Result<Compiled, PrepareError> {
    if !bytes.starts_with(MAGIC) || bytes.len() <= LAYER {
        let start = hex::encode(&bytes[..bytes.len().min(MAGIC.len())]);
        return Err(PrepareError::NotWasm(format!("it starts with {start:?}")));
    }
    // Malformed bytes and proposals that are off are told by the validator inside.
    let fail = |error: wasmtime::Error| PrepareError::Compile(format!("{error:#}"));
    let code = if bytes[LAYER] == 0 {
        Module::from_binary(engine, bytes).map(Code::Module)
    } else {
        Component::from_binary(engine, bytes).map(Code::Component)
    };
    Ok(Compiled { code: code.map_err(fail)?, reuse: declared::reuse(bytes)? })
}

/// Links `compiled` so that an instance of it costs no more lookups.
pub(crate) fn link(
    shared: &Arc<Shared>,
    digest: String,
    size: u64,
    compiled: &Compiled,
) -> Result<Program, PrepareError> {
    let (imports, exports) = compiled.code.names(&shared.engine);
    let linked = match &compiled.code {
        Code::Module(module) => {
            let linked = shared.modules.instantiate_pre(module).map_err(|error| missing(&error, &imports))?;
            exports.iter().any(|name| name == START).then_some(Linked::Module(linked))
        }
        Code::Component(component) => {
            let linked =
                shared.components.instantiate_pre(component).map_err(|error| missing(&error, &imports))?;
            let exports_one = |prefix: &str| exports.iter().any(|name| name.starts_with(prefix));
            let fail = |error: wasmtime::Error| PrepareError::Compile(format!("{error:#}"));
            if exports_one(HTTP) {
                Some(Linked::Http(ProxyPre::new(linked).map_err(fail)?))
            } else if exports_one(COMMAND) {
                Some(Linked::Command(CommandPre::new(linked).map_err(fail)?))
            } else {
                None
            }
        }
    };
    let linked = linked.ok_or(PrepareError::NoEntryPoint { exports })?;
    Ok(Program {
        digest,
        size,
        imports,
        weight: compiled.code.weight(),
        reuse: compiled.reuse,
        linked,
        shared: Arc::clone(shared),
    })
}

/// Names the import that a linker's error is about.
fn missing(error: &wasmtime::Error, imports: &[String]) -> PrepareError {
    let text = format!("{error:#}");
    match imports.iter().filter(|name| text.contains(name.as_str())).max_by_key(|name| name.len()) {
        Some(name) => PrepareError::MissingImport { interface: name.clone() },
        None => PrepareError::Compile(text),
    }
}
