//! The program's own commands.

use std::{path::Path, process::Command, sync::LazyLock};

use serde_json::Value;
use wasmk_tests::program::{Program, binary, guest};

static CLUSTER: LazyLock<Program> = LazyLock::new(Program::start);

fn words(line: &str) -> Vec<&str> {
    line.split_whitespace().collect()
}

#[test]
fn status_tells_where_things_listen() {
    let status: Value =
        serde_json::from_str(&CLUSTER.wasmk(&["status", "-o", "json", "--data-dir", &CLUSTER.data_dir()]))
            .unwrap();
    assert_eq!(status["ready"], true);
    for key in ["api", "gateway", "registry"] {
        assert_ne!(CLUSTER.address(key).port(), 0, "{key} in {status}");
    }
    let empty = tempfile::tempdir().unwrap();
    let out = CLUSTER.run(&["status", "-o", "json", "--data-dir", empty.path().to_str().unwrap()]);
    let status: Value = serde_json::from_slice(&out.stdout).unwrap();
    assert_eq!(status["ready"], false);
}

#[test]
fn a_second_start_is_refused_with_the_reason() {
    let said = CLUSTER.refused(&["up", "--data-dir", &CLUSTER.data_dir()]);
    assert!(said.contains("in use by another wasmk"), "{said}");

    let other = tempfile::tempdir().unwrap();
    let taken = CLUSTER.address("api").to_string();
    let said = CLUSTER.refused(&["up", "--data-dir", other.path().to_str().unwrap(), "--api-addr", &taken]);
    assert!(said.contains(&format!("cannot listen on {taken}: the port is in use")), "{said}");
}

#[test]
fn starts_in_the_background_merges_a_kubeconfig_and_stops() {
    let dir = tempfile::tempdir().unwrap();
    let (data, config) = (dir.path().join("data"), dir.path().join("config"));
    let (data, config) = (data.to_str().unwrap(), config.to_str().unwrap());
    // There are others in the file, which stay.
    let first = std::fs::read_to_string(CLUSTER.kubeconfig()).unwrap().replace(": wasmk\n", ": first\n");
    std::fs::write(config, first).unwrap();
    let free = "127.0.0.1:0";
    let up =
        ["up", "--detach", "--no-node", "--data-dir", data, "--merge-kubeconfig", config, "--api-addr", free];
    CLUSTER.wasmk(&[&up[..], &["--gateway-addr", free, "--registry-addr", free]].concat());
    let names =
        CLUSTER.kubectl(&["--kubeconfig", config, "--context", "wasmk", "get", "namespaces", "-o", "name"]);
    assert!(names.contains("namespace/default"), "{names}");
    for client in [Path::new("kubectl"), &binary()] {
        switches_between_clusters(client, config);
    }
    CLUSTER.wasmk(&["down", "--data-dir", data]);
    let out = CLUSTER.run(&["status", "-o", "json", "--data-dir", data]);
    let status: Value = serde_json::from_slice(&out.stdout).unwrap();
    assert_eq!(status["ready"], false);
}

/// The kubeconfig's context `first` is the tests' own cluster, `wasmk` another.
fn switches_between_clusters(client: &Path, config: &str) {
    let run = |args: &[&str]| {
        let out = CLUSTER.client(client, &[&["--kubeconfig", config], args].concat(), None);
        assert!(out.status.success(), "{args:?}: {}", String::from_utf8_lossy(&out.stderr));
        String::from_utf8_lossy(&out.stdout).into_owned()
    };
    let cluster = |flags: &[&str]| {
        run(&[flags, &["get", "namespace", "kube-system", "-o", "jsonpath={.metadata.uid}"]].concat())
    };
    let (first, second) = (cluster(&["--context", "first"]), cluster(&["--context", "wasmk"]));
    assert_eq!(first, CLUSTER.value("namespace/kube-system", "{.metadata.uid}"));
    assert_ne!(first, second);
    for (context, expected) in [("first", first), ("wasmk", second)] {
        run(&["config", "use-context", context]);
        assert_eq!(cluster(&[]), expected, "{context}");
    }
}

#[test]
fn the_api_listens_on_its_port_of_any_address() {
    // An address that another run of the tests has not.
    let process = std::process::id();
    let address = format!("127.91.{}.{}:6443", process / 250 % 250, process % 250 + 1);
    let program = Program::start_with(&["--no-node", "--api-addr", &address]);
    assert_eq!(program.address("api").to_string(), address);
    let ca = format!("{}/pki/ca.crt", program.data_dir());
    let url = format!("https://{address}/version");
    let out = Command::new("curl").args(["-sS", "--max-time", "10", "--cacert", &ca, &url]).output().unwrap();
    let said = String::from_utf8_lossy(&out.stdout);
    assert!(said.contains("v1.36."), "{said}{}", String::from_utf8_lossy(&out.stderr));
    let server = format!("--server=https://{address}");
    assert_eq!(
        program.kubectl(&[&server, "get", "namespace", "default", "-o", "name"]),
        "namespace/default\n"
    );
}

#[test]
fn has_the_verbs_of_kubectl() {
    let file = CLUSTER.scratch().join("things.yaml");
    let text = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: one, labels: {app: things}}\n---\n\
                apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: two}\nspec:\n  replicas: 0\n  \
                selector: {matchLabels: {app: two}}\n  template:\n    metadata: {labels: {app: two}}\n    \
                spec: {containers: [{name: c, image: none}]}\n";
    std::fs::write(&file, text).unwrap();
    let file = file.to_str().unwrap();
    assert_eq!(CLUSTER.wasmk(&["apply", "-f", file]), "configmap/one created\ndeployment.apps/two created\n");
    assert_eq!(
        CLUSTER.wasmk(&["apply", "-f", file]),
        "configmap/one unchanged\ndeployment.apps/two unchanged\n"
    );
    let table = CLUSTER.wasmk(&["get", "cm", "-l", "app=things"]);
    assert_eq!(words(table.lines().next().unwrap()), ["NAME", "DATA", "AGE"]);
    assert_eq!(words(table.lines().nth(1).unwrap())[..2], ["one", "0"]);
    let json: Value = serde_json::from_str(&CLUSTER.wasmk(&["get", "cm", "one", "-o", "json"])).unwrap();
    assert_eq!(json["metadata"]["name"], "one");
    assert!(CLUSTER.wasmk(&["describe", "deployment", "two"]).contains("two"));
    assert_eq!(
        CLUSTER.wasmk(&["scale", "deployment/two", "--replicas", "3"]),
        "deployment.apps/two scaled\n"
    );
    assert_eq!(CLUSTER.value("deployment/two", "{.spec.replicas}"), "3");
    assert_eq!(CLUSTER.wasmk(&["delete", "deployment", "two"]), "deployment.apps \"two\" deleted\n");
    assert!(CLUSTER.refused(&["get", "deployment", "two"]).contains("deployments.apps \"two\" not found"));
    assert!(CLUSTER.wasmk(&["explain", "deployment.spec.strategy"]).contains("DeploymentStrategy"));
    assert!(CLUSTER.wasmk(&["api-resources"]).contains("deployments"));
    assert!(CLUSTER.wasmk(&["version"]).contains("Server Version: v1.36."));
}

#[test]
fn pushes_what_is_webassembly() {
    let file = guest("command");
    let said = CLUSTER.wasmk(&["push", file.to_str().unwrap(), "default/pushed:1"]);
    assert!(said.starts_with(&format!("{}/default/pushed@sha256:", CLUSTER.address("registry"))), "{said}");
    let missing = CLUSTER.refused(&["push", "nowhere.wasm", "default/x:1"]);
    assert!(missing.contains("cannot read nowhere.wasm") && missing.contains("No such file"), "{missing}");
    let text = CLUSTER.scratch().join("text.wasm");
    std::fs::write(&text, "text").unwrap();
    assert!(CLUSTER.refused(&["push", text.to_str().unwrap(), "default/x:1"]).contains("not WebAssembly"));
}

#[test]
fn bad_input_is_named() {
    for (args, expected) in [
        (&["get", "nonsense"][..], "the server doesn't have a resource type \"nonsense\""),
        (&["get", "pod", "none"][..], "pods \"none\" not found"),
        (&["logs", "none"][..], "pods \"none\" not found"),
        (&["apply", "-f", "nowhere.yaml"][..], "nowhere.yaml"),
        (&["fn", "delete", "none"][..], "none"),
    ] {
        let said = CLUSTER.refused(args);
        assert!(said.contains(expected), "{args:?}: {said}");
    }
    let out = Command::new(binary()).arg("nonsense").output().unwrap();
    assert_eq!(out.status.code(), Some(1));
}
