//! The program says which one it is. Being a test of this package, it also makes `cargo test` build the program,
//! which the tests in `tests/` drive.

use std::process::Command;

#[test]
fn the_program_tells_its_version() {
    let out = Command::new(env!("CARGO_BIN_EXE_wasmk")).arg("--version").output().unwrap();
    assert!(out.status.success());
    assert_eq!(String::from_utf8(out.stdout).unwrap(), format!("wasmk {}\n", env!("CARGO_PKG_VERSION")));
}
