//! What the integration tests share: runtimes in a temporary directory, and programs from text.
#![allow(dead_code, unreachable_pub, reason = "each test program uses its own part")]

pub mod registry;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use sha2::{Digest, Sha256};
use wasmk_runtime::{Program, Runtime, Settings, Spec, Tail};

/// Longest wait for anything in a test. Only a test that fails waits as long.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// A runtime whose directory goes with it.
pub struct Fixture {
    pub runtime: Runtime,
    pub dir: tempfile::TempDir,
}

pub fn fixture() -> Fixture {
    fixture_with(|_| {})
}

/// A runtime with a small pool and `change` applied to its settings.
pub fn fixture_with(change: impl FnOnce(&mut Settings)) -> Fixture {
    let dir = tempfile::tempdir().unwrap();
    let runtime = Runtime::new(settings(dir.path(), change)).unwrap();
    Fixture { runtime, dir }
}

pub fn settings(dir: &Path, change: impl FnOnce(&mut Settings)) -> Settings {
    let mut settings = Settings::new(dir);
    settings.max_instances = 50;
    change(&mut settings);
    settings
}

impl Fixture {
    pub async fn module(&self, text: &str) -> Arc<Program> {
        let wasm = wat::parse_str(text).unwrap();
        self.prepare(wasm).await
    }

    pub async fn http(&self, core: &str) -> Arc<Program> {
        self.prepare(component(core)).await
    }

    pub async fn prepare(&self, wasm: Vec<u8>) -> Arc<Program> {
        let digest = digest(&wasm);
        self.runtime.prepare_bytes(Bytes::from(wasm), &digest).await.unwrap()
    }

    /// A guest built by tools/build-test-guests.
    pub async fn guest(&self, name: &str) -> Arc<Program> {
        self.prepare(std::fs::read(guest_path(name)).unwrap()).await
    }
}

/// Where a built guest lies.
pub fn guest_path(name: &str) -> PathBuf {
    let Some(dir) = std::env::var_os("WASMK_GUESTS") else {
        panic!("WASMK_GUESTS is not set: export WASMK_GUESTS=$(tools/build-test-guests), or run `make test`");
    };
    let path = Path::new(&dir).join(format!("{name}.wasm"));
    assert!(path.is_file(), "{} is missing: run tools/build-test-guests", path.display());
    path
}

pub fn digest(bytes: &[u8]) -> String {
    format!("sha256:{}", hex::encode(Sha256::digest(bytes)))
}

/// Standard output and error that a test can read.
pub fn output() -> (Arc<Tail>, Arc<Tail>, Spec) {
    let (stdout, stderr) = (Arc::new(Tail::new(1 << 16)), Arc::new(Tail::new(1 << 16)));
    let spec = Spec { stdout: stdout.clone(), stderr: stderr.clone(), ..Spec::default() };
    (stdout, stderr, spec)
}

/// Waits until `value` gives something.
pub async fn until<T>(what: &str, mut value: impl FnMut() -> Option<T>) -> T {
    let wait = async {
        loop {
            if let Some(found) = value() {
                return found;
            }
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    match tokio::time::timeout(PATIENCE, wait).await {
        Ok(found) => found,
        Err(_) => panic!("still not after {PATIENCE:?}: {what}"),
    }
}

/// `future`'s value, if it comes within the patience of a test.
pub async fn soon<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, future).await.expect("takes too long")
}

/// A wasi:http component from a core module in text form. The world is that of the SDK.
pub fn component(core: &str) -> Vec<u8> {
    use wit_component::{ComponentEncoder, StringEncoding, embed_component_metadata};
    let mut core = wat::parse_str(core).unwrap();
    let mut resolve = wit_parser::Resolve::default();
    let (package, _) = resolve.push_dir("../sdk/wit").unwrap();
    let world = resolve.select_world(&[package], Some("function")).unwrap();
    embed_component_metadata(&mut core, &resolve, world, StringEncoding::UTF8).unwrap();
    ComponentEncoder::default().validate(true).module(&core).unwrap().encode().unwrap()
}

/// All interfaces of the SDK's packages, with their versions.
pub fn interfaces() -> Vec<String> {
    let mut resolve = wit_parser::Resolve::default();
    resolve.push_dir("../sdk/wit").unwrap();
    let packages = resolve.packages.iter();
    let names = packages.flat_map(|(_, p)| p.interfaces.keys().map(|name| p.name.interface_id(name)));
    names.collect()
}

/// A component that imports an interface with all it has, and exports nothing.
pub fn importer(interface: &str) -> Vec<u8> {
    use wit_component::{ComponentEncoder, StringEncoding, dummy_module, embed_component_metadata};
    let mut resolve = wit_parser::Resolve::default();
    resolve.push_dir("../sdk/wit").unwrap();
    let world = format!("package test:importer; world importer {{ import {interface}; }}");
    let package = resolve.push_str("importer.wit", &world).unwrap();
    let world = resolve.select_world(&[package], Some("importer")).unwrap();
    let mangling = wit_parser::ManglingAndAbi::Legacy(wit_parser::LiftLowerAbi::Sync);
    let mut core = dummy_module(&resolve, world, mangling);
    embed_component_metadata(&mut core, &resolve, world, StringEncoding::UTF8).unwrap();
    ComponentEncoder::default().validate(true).module(&core).unwrap().encode().unwrap()
}

/// A wasi:http guest whose `handle` is `code`. It can use:
/// `$answer` (sends the head with status 200 and leaves the body's stream in `$stream`, the body in
/// `$body`), `$say` (address, length), `$finish`, and the parameters `$request` and `$out`.
pub fn http_guest(code: &str) -> String {
    format!(
        "{HTTP_HEAD}\n(func (export \"wasi:http/incoming-handler@0.2.12#handle\") (param $request i32) (param $out i32)\n{code}))"
    )
}

const HTTP_HEAD: &str = r#"(module
  (import "wasi:http/types@0.2.12" "[constructor]fields" (func $fields (result i32)))
  (import "wasi:http/types@0.2.12" "[constructor]outgoing-response" (func $response (param i32) (result i32)))
  (import "wasi:http/types@0.2.12" "[method]outgoing-response.body" (func $body_of (param i32 i32)))
  (import "wasi:http/types@0.2.12" "[static]response-outparam.set"
    (func $set (param i32 i32 i32 i32 i64 i32 i32 i32 i32)))
  (import "wasi:http/types@0.2.12" "[method]outgoing-body.write" (func $write (param i32 i32)))
  (import "wasi:http/types@0.2.12" "[static]outgoing-body.finish" (func $finish_body (param i32 i32 i32 i32)))
  (import "wasi:io/streams@0.2.12" "[method]output-stream.blocking-write-and-flush"
    (func $flush (param i32 i32 i32 i32)))
  (import "wasi:io/streams@0.2.12" "[resource-drop]output-stream" (func $drop_stream (param i32)))
  (memory (export "memory") 1)
  (global $body (mut i32) (i32.const 0))
  (global $stream (mut i32) (i32.const 0))
  (global $count (export "count") (mut i32) (i32.const 0))
  (data (i32.const 1024) "hello wat\n")
  (func (export "cabi_realloc") (param i32 i32 i32 i32) (result i32) (i32.const 4096))
  (func $answer (param $out i32) (local $response i32)
    (local.set $response (call $response (call $fields)))
    (call $body_of (local.get $response) (i32.const 0))
    (global.set $body (i32.load (i32.const 4)))
    (call $set (local.get $out) (i32.const 0) (local.get $response)
      (i32.const 0) (i64.const 0) (i32.const 0) (i32.const 0) (i32.const 0) (i32.const 0))
    (call $write (global.get $body) (i32.const 0))
    (global.set $stream (i32.load (i32.const 4))))
  (func $say (param $from i32) (param $length i32)
    (call $flush (global.get $stream) (local.get $from) (local.get $length) (i32.const 0)))
  (func $finish
    (call $drop_stream (global.get $stream))
    (call $finish_body (global.get $body) (i32.const 0) (i32.const 0) (i32.const 0)))"#;

/// Answers `hello wat`.
pub const HELLO: &str =
    "(call $answer (local.get $out)) (call $say (i32.const 1024) (i32.const 10)) (call $finish)";

/// A WASI 0.1 module whose `_start` is `code`. It can use `$say` (address, length), `$exit` (status) and
/// four pages of memory with `hello wat` at 1024.
pub fn command(code: &str) -> String {
    format!("{COMMAND_HEAD}\n(func $main (export \"_start\")\n{code}))")
}

const COMMAND_HEAD: &str = r#"(module
  (import "wasi_snapshot_preview1" "fd_write" (func $fd_write (param i32 i32 i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "fd_read" (func $fd_read (param i32 i32 i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "proc_exit" (func $exit (param i32)))
  (memory (export "memory") 4)
  (data (i32.const 1024) "hello wat\n")
  (func $say (param $from i32) (param $length i32)
    (i32.store (i32.const 0) (local.get $from))
    (i32.store (i32.const 4) (local.get $length))
    (drop (call $fd_write (i32.const 1) (i32.const 0) (i32.const 1) (i32.const 8))))"#;
