//! Programs are compiled once, and nothing damaged or foreign is run.

mod common;

use std::fs;
use std::path::Path;

use bytes::Bytes;
use common::{
    HELLO, command, component, digest, fixture, fixture_with, http_guest, importer, interfaces, settings,
    soon,
};
use wasmk_runtime::{PrepareError, ProgramKind, Runtime, Spec, StopSignal, offers};

async fn prepare(runtime: &Runtime, wasm: Vec<u8>) -> Result<ProgramKind, PrepareError> {
    let name = digest(&wasm);
    soon(runtime.prepare_bytes(Bytes::from(wasm), &name)).await.map(|program| program.kind())
}

#[tokio::test]
async fn bad_programs_are_refused_by_name() {
    let fixture = fixture_with(|settings| settings.max_program_bytes = 100_000);
    let check = async |wasm: Vec<u8>, expect: &str| {
        let error = prepare(&fixture.runtime, wasm).await.unwrap_err().to_string();
        assert!(error.contains(expect), "{error}");
    };
    let text = |text: &str| wat::parse_str(text).unwrap();
    check(b"".to_vec(), "not a WebAssembly module").await;
    check(b"#!/bin/sh\n".to_vec(), "not a WebAssembly module").await;
    check(b"\0asm\x01\0\0\0\xff\xff".to_vec(), "cannot compile").await;
    check(text("(module)"), "exports none of _start").await;
    check(text("(component)"), "exports none of _start").await;
    check(text("(module (func (export \"other\")))"), "it exports other").await;
    check(
        text("(module (import \"env\" \"magic\" (func)) (func (export \"_start\")))"),
        "imports env::magic, which this runtime does not offer",
    )
    .await;
    check(
        text("(component (import \"acme:tools/hammer@1.0.0\" (instance (export \"hit\" (func)))))"),
        "imports acme:tools/hammer@1.0.0, which this runtime does not offer",
    )
    .await;
    check(vec![0; 100_001], "100001 bytes, more than the 100000 allowed").await;
    assert_eq!(fixture.runtime.metrics().programs, 0);
}

#[tokio::test]
async fn what_is_said_to_be_offered_is_what_can_be_linked() {
    let fixture = fixture();
    let mut counted = (0, 0);
    for interface in interfaces() {
        let error = prepare(&fixture.runtime, importer(&interface)).await.unwrap_err();
        let linked =
            !matches!(&error, PrepareError::MissingImport { interface: missing } if *missing == interface);
        assert_eq!(offers(&interface), linked, "{interface}: {error}");
        if linked { counted.0 += 1 } else { counted.1 += 1 }
    }
    assert!(counted.0 > 30 && counted.1 > 1, "{counted:?}");
}

#[tokio::test]
async fn bytes_must_have_the_digest_asked_for() {
    let fixture = fixture();
    let wasm = Bytes::from(wat::parse_str(command("")).unwrap());
    let other = digest(b"other");
    let error = fixture.runtime.prepare_bytes(wasm, &other).await.map(drop).unwrap_err();
    assert!(matches!(&error, PrepareError::Digest { expected, .. } if *expected == other), "{error}");
}

#[tokio::test]
async fn kinds_and_imports_are_known() {
    let fixture = fixture();
    let module = fixture.module(&command("")).await;
    assert_eq!(module.kind(), ProgramKind::Module);
    assert!(
        module.imports().contains(&"wasi_snapshot_preview1::proc_exit".to_owned()),
        "{:?}",
        module.imports()
    );
    let http = fixture.http(&http_guest(HELLO)).await;
    assert_eq!(http.kind(), ProgramKind::Http);
    assert!(http.imports().iter().any(|name| name == "wasi:http/types@0.2.12"), "{:?}", http.imports());
}

#[tokio::test]
async fn many_that_ask_cause_one_compilation() {
    let fixture = fixture();
    let wasm = component(&http_guest(HELLO));
    let all = (0..8).map(|_| prepare(&fixture.runtime, wasm.clone()));
    for kind in futures::future::join_all(all).await {
        assert_eq!(kind.unwrap(), ProgramKind::Http);
    }
    assert_eq!(fixture.runtime.metrics().compiled, 1);
}

fn cached(dir: &Path, extension: &str) -> Vec<std::path::PathBuf> {
    let files = fs::read_dir(dir.join("compiled")).unwrap().map(|entry| entry.unwrap().path());
    files.filter(|path| path.extension().is_some_and(|found| found == extension)).collect()
}

#[tokio::test]
async fn compiled_code_outlives_the_process_unless_it_is_damaged() {
    let dir = tempfile::tempdir().unwrap();
    let wasm = component(&http_guest(HELLO));
    let start = async || {
        let runtime = Runtime::new(settings(dir.path(), |_| {})).unwrap();
        assert_eq!(prepare(&runtime, wasm.clone()).await.unwrap(), ProgramKind::Http);
        let metrics = runtime.metrics();
        (metrics.compiled, metrics.cache_hits, metrics.cache_rejected)
    };
    assert_eq!(start().await, (1, 0, 0));
    assert_eq!(start().await, (0, 1, 0));
    let damage: [fn(&Path); 4] = [
        |dir| {
            fs::OpenOptions::new().write(true).open(&cached(dir, "cwasm")[0]).unwrap().set_len(1000).unwrap()
        },
        |dir| fs::write(&cached(dir, "cwasm")[0], b"nonsense").unwrap(),
        |dir| fs::remove_file(&cached(dir, "seal")[0]).unwrap(),
        |dir| fs::write(dir.join("compiled/key"), b"short").unwrap(),
    ];
    for hit in damage {
        hit(dir.path());
        assert_eq!(start().await, (1, 0, 1));
        assert_eq!(start().await, (0, 1, 0));
    }
}

#[tokio::test]
async fn unused_programs_are_unloaded_and_used_ones_stay() {
    let fixture = fixture_with(|settings| settings.max_idle_programs = 2);
    let program =
        |status: u8| wat::parse_str(command(&format!("(call $exit (i32.const {status}))"))).unwrap();
    let held = fixture.prepare(program(0)).await;
    for status in 1..6 {
        fixture.prepare(program(status)).await;
    }
    // The one held, the two that may idle, and the last, which was in use when the others were counted.
    assert_eq!(fixture.runtime.metrics().programs, 4);
    assert!(fixture.runtime.loaded(&digest(&program(1))).is_none());
    assert!(fixture.runtime.loaded(&digest(&program(5))).is_some());
    let again = fixture.runtime.loaded(held.digest()).unwrap();
    assert!(soon(again.run(Spec::default(), StopSignal::new())).await.unwrap().success());
    fixture.prepare(program(1)).await;
    assert_eq!(fixture.runtime.metrics().compiled, 6, "it was mapped from disk");
}
