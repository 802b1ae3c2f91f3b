//! A controller of a stranger's, written with kube-rs, against the real program over TLS.

use std::path::Path;

use wasmk_tests::program::Program;

#[test]
fn a_controller_of_a_derived_kind_does_its_work() {
    let cluster = Program::start();
    let folder = std::env::var("WASMK_TEST_VENV").expect("WASMK_TEST_VENV is set by `make test`");
    let out = cluster.client(Path::new(&format!("{folder}/bin/greeter")), &[], None);
    assert!(out.status.success(), "{}\n{}", String::from_utf8_lossy(&out.stderr), cluster.log());
}
