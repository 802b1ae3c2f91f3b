//! The official Python client against the real program.

use std::{path::Path, sync::LazyLock};

use wasmk_tests::program::{Program, repository};

static CLUSTER: LazyLock<Program> = LazyLock::new(Program::start);

/// Runs a script of `tests/clients`, which must end well.
fn script(name: &str, args: &[&str]) {
    let venv = std::env::var("WASMK_TEST_VENV")
        .expect("WASMK_TEST_VENV names the Python clients; `make test` sets it");
    let python = format!("{venv}/bin/python3");
    let file = repository().join("tests/clients").join(name);
    let args: Vec<_> = [file.to_str().unwrap()].into_iter().chain(args.iter().copied()).collect();
    let out = CLUSTER.client(Path::new(&python), &args, None);
    assert!(out.status.success(), "{name}:\n{}", String::from_utf8_lossy(&out.stderr));
}

#[test]
fn objects_are_made_changed_listed_and_watched() {
    script("objects.py", &[]);
}

#[test]
fn a_kind_of_ones_own_is_used_by_the_dynamic_client() {
    script("dynamic_kinds.py", &[]);
}

#[test]
fn the_log_of_a_pod_is_read() {
    script("pod_log.py", &[&CLUSTER.push("command")]);
}

#[test]
fn one_of_two_candidates_leads() {
    script("leader.py", &[]);
}

#[test]
fn an_operator_counts_down_with_the_rights_it_is_given() {
    script("countdown.py", &[&CLUSTER.push("command")]);
}
