//! The official JavaScript client against the real program.

use std::path::Path;

use wasmk_tests::program::{Program, repository};

#[test]
fn objects_kinds_pods_and_logs_are_used() {
    let cluster = Program::start();
    let file = repository().join("tests/clients/objects.mjs");
    let args = [file.to_str().expect("a UTF-8 path"), &cluster.push("command")];
    let out = cluster.client(Path::new("node"), &args, None);
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
}
