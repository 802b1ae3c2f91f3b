//! The runtime without directories: for a process that only runs programs which another has prepared.
//!
//! It is made in two steps, because the walls around such a process are put up between them: first the
//! engine, which looks at the machine and starts no thread, then everything else.

use std::fs::File;
use std::io::Read;
use std::sync::Arc;

use wasmtime::component::Component;
use wasmtime::{Engine, Module, Precompiled};

use crate::engine::{self, Allocation};
use crate::error::{Error, PrepareError};
use crate::metrics::Tally;
use crate::prepare::{Code, Compiled, link};
use crate::program::Program;
use crate::settings::Settings;
use crate::shared::Shared;

/// An engine that nothing runs on yet.
pub struct Bare {
    engine: Engine,
    allocation: Allocation,
}

impl Bare {
    /// Makes the engine. Starts no thread.
    ///
    /// # Errors
    /// If the engine refuses its configuration.
    pub fn new(settings: &Settings) -> Result<Self, Error> {
        let (engine, allocation) = engine::build(settings)?;
        Ok(Self { engine, allocation })
    }
}

/// Runs programs that were prepared elsewhere.
pub struct Isolated(Arc<Shared>);

impl Isolated {
    /// Starts the runtime's threads. Of the settings only the bounds on instances and memory count.
    ///
    /// # Errors
    /// If a thread cannot be started.
    pub fn new(bare: Bare, settings: &Settings) -> Result<Self, Error> {
        Shared::over(bare.engine, bare.allocation, settings).map(|shared| Self(Arc::new(shared)))
    }

    /// The program in a file that [`Runtime::code`](crate::Runtime::code) gave. Nobody else may be able to give
    /// such a file: the machine code in it is run as it is. `reuse` is what [`Program::reuse`] said there.
    ///
    /// # Errors
    /// If the file cannot be read, or was made by another engine.
    pub fn load(
        &self,
        mut file: File,
        digest: &str,
        reuse: Option<u32>,
    ) -> Result<Arc<Program>, PrepareError> {
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes)?;
        let code = read(&self.0.engine, &bytes)?;
        link(&self.0, digest.to_owned(), 0, &Compiled { code, reuse }).map(Arc::new)
    }

    /// What has been counted so far, for [`Runtime::count`](crate::Runtime::count).
    pub fn tally(&self) -> Tally {
        let all = self.0.metrics(0);
        Tally {
            instances: all.instances,
            waits: all.waits,
            refused: all.refused,
            requests: all.requests,
            traps: all.traps,
            out_of_memory: all.out_of_memory,
            timeouts: all.timeouts,
            over_cpu: all.over_cpu,
            instantiate: self.0.phases.instantiate.times(),
        }
    }
}

#[allow(unsafe_code)]
fn read(engine: &Engine, bytes: &[u8]) -> Result<Code, PrepareError> {
    let code = match Engine::detect_precompiled(bytes) {
        // SAFETY: the caller vouches that the bytes are an engine's own; the engine checks that it is of its kind.
        Some(Precompiled::Module) => unsafe { Module::deserialize(engine, bytes) }.map(Code::Module),
        // SAFETY: as above.
        Some(Precompiled::Component) => unsafe { Component::deserialize(engine, bytes) }.map(Code::Component),
        None => return Err(PrepareError::Compile("not compiled code".into())),
    };
    code.map_err(|error| PrepareError::Compile(format!("{error:#}")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Runtime, Spec, StopSignal};

    #[tokio::test]
    async fn programs_run_where_they_were_not_prepared() {
        let dir = tempfile::tempdir().unwrap();
        let settings = Settings { max_instances: 4, ..Settings::new(dir.path()) };
        let here = Runtime::new(settings.clone()).unwrap();
        let bytes = wat::parse_str(
            r#"(module (import "wasi_snapshot_preview1" "proc_exit" (func $exit (param i32)))
                (memory (export "memory") 1) (func (export "_start") (call $exit (i32.const 7))))"#,
        );
        let bytes = bytes.unwrap();
        let digest = crate::digest(&bytes);
        let program = here.prepare_bytes(bytes.into(), &digest).await.unwrap();
        let there = Isolated::new(Bare::new(&settings).unwrap(), &settings).unwrap();
        let copy = there.load(here.code(&program).unwrap(), &digest, None).unwrap();
        assert_eq!(copy.run(Spec::default(), StopSignal::new()).await.unwrap().code, 7);
        assert_eq!(there.tally().instances, 1);

        // Without the file on disk it is made again.
        std::fs::remove_dir_all(dir.path().join("compiled")).unwrap();
        assert!(there.load(here.code(&program).unwrap(), &digest, None).is_ok());
        let mut other = tempfile::tempfile().unwrap();
        std::io::Write::write_all(&mut other, b"no code").unwrap();
        assert!(there.load(other, &digest, None).is_err());
    }
}
