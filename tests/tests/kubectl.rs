//! The real kubectl against the real program.

use std::{
    io::{BufRead, BufReader},
    process::{Command, Stdio},
    sync::LazyLock,
};

use wasmk_tests::program::Program;

static CLUSTER: LazyLock<Program> = LazyLock::new(Program::start);

/// A namespace of the test's own.
fn namespace(name: &'static str) -> &'static str {
    CLUSTER.kubectl(&["create", "namespace", name]);
    name
}

fn config_map(name: &str, value: &str) -> String {
    format!(
        "apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: {name}, labels: {{app: {name}}}}}\ndata: {{key: {value}}}\n"
    )
}

fn words(line: &str) -> Vec<&str> {
    line.split_whitespace().collect()
}

#[test]
fn version_names_the_server() {
    let text = CLUSTER.kubectl(&["version"]);
    assert!(text.contains("Server Version: v1.36."), "{text}");
    let json = CLUSTER.kubectl(&["version", "-o", "json"]);
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!(
        (&json["serverVersion"]["major"], &json["serverVersion"]["minor"]),
        (&"1".into(), &"36".into())
    );
}

#[test]
fn api_resources_have_short_names() {
    let text = CLUSTER.kubectl(&["api-resources", "--no-headers"]);
    for row in [
        ["pods", "po", "v1", "true", "Pod"],
        ["deployments", "deploy", "apps/v1", "true", "Deployment"],
        ["nodes", "no", "v1", "false", "Node"],
        ["services", "kservice,ksvc", "serving.knative.dev/v1", "true", "Service"],
        [
            "customresourcedefinitions",
            "crd,crds",
            "apiextensions.k8s.io/v1",
            "false",
            "CustomResourceDefinition",
        ],
    ] {
        assert!(text.lines().any(|line| words(line) == row), "{row:?} in {text}");
    }
}

#[test]
fn explain_reads_the_published_schema() {
    let text = CLUSTER.kubectl(&["explain", "deployment.spec.strategy"]);
    assert!(
        text.contains("FIELD: strategy <DeploymentStrategy>") && text.contains("rollingUpdate"),
        "{text}"
    );
    let all = CLUSTER.kubectl(&["explain", "pod", "--recursive"]);
    assert!(all.contains("terminationGracePeriodSeconds\t<integer>"), "{all}");
    let wrong = CLUSTER.kubectl_refused(&["explain", "pod.nope"], None);
    assert!(wrong.contains("field \"nope\" does not exist"), "{wrong}");
}

#[test]
fn applies_files_folders_and_standard_input() {
    let ns = namespace("apply");
    let dir = CLUSTER.scratch().join("manifests");
    std::fs::create_dir(&dir).unwrap();
    std::fs::write(dir.join("one.yaml"), config_map("one", "'1'")).unwrap();
    std::fs::write(
        dir.join("more.yaml"),
        format!("{}---\n{}", config_map("two", "'2'"), config_map("three", "'3'")),
    )
    .unwrap();
    let (dir, one) = (dir.to_str().unwrap(), format!("{}/one.yaml", dir.display()));

    assert_eq!(CLUSTER.kubectl(&["apply", "-n", ns, "-f", &one]), "configmap/one created\n");
    let second = CLUSTER.kubectl(&["apply", "-n", ns, "-f", dir]);
    assert_eq!(second, "configmap/two created\nconfigmap/three created\nconfigmap/one unchanged\n");
    let third = CLUSTER.kubectl(&["apply", "-n", ns, "-f", dir]);
    assert_eq!(third.matches("unchanged").count(), 3, "{third}");

    let args = ["apply", "-n", ns, "-f", "-"];
    let changed = CLUSTER.kubectl_output(&args, Some(&config_map("one", "other")));
    assert_eq!(String::from_utf8_lossy(&changed.stdout), "configmap/one configured\n");
    let value = CLUSTER.kubectl(&["get", "cm", "one", "-n", ns, "-o", "jsonpath={.data.key}"]);
    assert_eq!(value, "other");
    CLUSTER.kubectl(&["delete", "-n", ns, "-f", dir]);
    assert_eq!(CLUSTER.kubectl(&["get", "cm", "-n", ns, "-l", "app in (one, two)", "-o", "name"]), "");
}

#[test]
fn gets_in_every_form() {
    let ns = namespace("forms");
    for name in ["a", "b"] {
        CLUSTER.kubectl(&["create", "-n", ns, "configmap", name, "--from-literal=k=v"]);
    }
    CLUSTER.kubectl(&["label", "-n", ns, "cm", "b", "tier=front"]);
    let get = |more: &[&str]| CLUSTER.kubectl(&[&["get", "configmaps", "-n", ns], more].concat());

    let table = get(&["a"]);
    assert_eq!(words(table.lines().next().unwrap()), ["NAME", "DATA", "AGE"]);
    assert_eq!(words(table.lines().nth(1).unwrap())[..2], ["a", "1"]);
    assert_eq!(get(&["-l", "tier=front", "-o", "name"]), "configmap/b\n");
    assert_eq!(
        get(&["-l", "tier notin (front),!x", "--field-selector", "metadata.name=a", "-o", "name"]),
        "configmap/a\n"
    );
    assert!(get(&["a", "-o", "yaml"]).contains("data:\n  k: v\nkind: ConfigMap\n"));
    let json: serde_json::Value = serde_json::from_str(&get(&["-o", "json"])).unwrap();
    assert_eq!(json["items"].as_array().unwrap().iter().filter(|i| i["data"]["k"] == "v").count(), 2);
    let columns = get(&["b", "-o", "custom-columns=N:.metadata.name,V:.data.k", "--no-headers"]);
    assert_eq!(words(&columns), ["b", "v"]);
    assert_eq!(get(&["b", "-o", "go-template={{.data.k}}"]), "v");
    let all = CLUSTER.kubectl(&["get", "cm", "-A", "-l", "tier=front"]);
    assert_eq!(words(all.lines().nth(1).unwrap())[..2], ["forms", "b"]);
    let wide = CLUSTER.kubectl(&["get", "nodes", "-o", "wide"]);
    assert!(wide.contains("INTERNAL-IP") && wide.contains("wasmtime://"), "{wide}");
}

#[test]
fn watches_changes() {
    let ns = namespace("watch");
    let mut child = Command::new("kubectl")
        .args(["get", "secrets", "-n", ns, "-w", "-o", "name"])
        .env("KUBECONFIG", CLUSTER.kubeconfig())
        .stdout(Stdio::piped())
        .spawn()
        .expect("kubectl starts");
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    for name in ["first", "second"] {
        CLUSTER.kubectl(&["create", "-n", ns, "secret", "generic", name]);
        assert_eq!(lines.next().unwrap().unwrap(), format!("secret/{name}"));
    }
    child.kill().unwrap();
    child.wait().unwrap();
}

#[test]
fn describes_and_deletes() {
    let ns = namespace("describe");
    CLUSTER.kubectl(&["create", "-n", ns, "service", "clusterip", "web", "--tcp=80:8080"]);
    let text = CLUSTER.kubectl(&["describe", "-n", ns, "service", "web"]);
    assert!(text.contains("TargetPort:") && text.contains("8080/TCP"), "{text}");
    assert_eq!(CLUSTER.kubectl(&["delete", "-n", ns, "service/web"]), "service \"web\" deleted\n");
    let gone = CLUSTER.kubectl_refused(&["get", "-n", ns, "service", "web"], None);
    assert_eq!(gone, "Error from server (NotFound): services \"web\" not found\n");
    assert!(CLUSTER.kubectl(&["describe", "node", "node-a"]).contains("Container Runtime Version:"));
}

#[test]
fn scales_rolls_out_and_follows_logs() {
    let ns = namespace("rollout");
    let image = CLUSTER.push("command");
    CLUSTER.kubectl(&["create", "-n", ns, "deployment", "cat", "--image", &image, "--", "sleep", "600000"]);
    CLUSTER.kubectl(&[
        "patch",
        "-n",
        ns,
        "deployment",
        "cat",
        "--type=json",
        "-p",
        r#"[
        {"op": "remove", "path": "/spec/template/spec/containers/0/command"},
        {"op": "add", "path": "/spec/template/spec/containers/0/args", "value": ["sleep", "600000"]}]"#,
    ]);
    CLUSTER.kubectl(&["scale", "-n", ns, "deployment/cat", "--replicas", "2"]);
    let text = CLUSTER.kubectl(&["rollout", "status", "-n", ns, "deployment/cat", "--timeout=60s"]);
    assert!(text.contains("successfully rolled out"), "{text}");
    let row = CLUSTER.kubectl(&["get", "-n", ns, "deployment", "cat", "--no-headers"]);
    assert_eq!(words(&row)[..4], ["cat", "2/2", "2", "2"]);

    let args = [
        r#"--overrides={"spec":{"containers":[{"name":"speaker","image":"IMAGE","args":["print","a word"]}]}}"#,
    ];
    let overrides = args[0].replace("IMAGE", &image);
    CLUSTER.kubectl(&["run", "-n", ns, "speaker", "--image", &image, "--restart=Never", &overrides]);
    CLUSTER.kubectl(&[
        "wait",
        "-n",
        ns,
        "--for=jsonpath={.status.phase}=Succeeded",
        "pod/speaker",
        "--timeout=60s",
    ]);
    let log = CLUSTER.kubectl(&["logs", "-n", ns, "-f", "speaker"]);
    assert!(log.starts_with("args [\"print\", \"a word\"]\n"), "{log}");
    assert_eq!(CLUSTER.kubectl(&["logs", "-n", ns, "speaker", "--tail", "1"]).lines().count(), 1);
}

#[test]
fn says_what_is_wrong_with_a_manifest() {
    let refused = |text: &str| CLUSTER.kubectl_refused(&["apply", "-f", "-"], Some(text));
    let check = |text: &str, expected: &str| {
        let said = refused(text);
        assert!(said.contains(expected), "{expected} in {said}");
    };
    check("a: [", "error converting YAML to JSON");
    check(
        "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: a}\ndat: {}\n",
        "strict decoding error: unknown field \"dat\"",
    );
    check(
        "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: A_b}\n",
        "metadata.name: Invalid value: \"A_b\"",
    );
    check(
        "apiVersion: v1\nkind: Pod\nmetadata: {name: a}\nspec: {containers: []}\n",
        "spec.containers: Required value",
    );
}

#[test]
fn a_stale_write_is_a_conflict() {
    CLUSTER.kubectl(&["create", "configmap", "contested"]);
    let old = CLUSTER.kubectl(&["get", "configmap", "contested", "-o", "json"]);
    CLUSTER.kubectl(&["label", "configmap", "contested", "won=yes"]);
    let said = CLUSTER.kubectl_refused(&["replace", "-f", "-"], Some(&old));
    assert!(said.contains("(Conflict)") && said.contains("the object has been modified"), "{said}");
}

#[test]
fn a_namespace_goes_with_all_that_is_in_it() {
    let ns = namespace("short-lived");
    CLUSTER.kubectl(&["create", "-n", ns, "configmap", "inside"]);
    CLUSTER.kubectl(&["delete", "namespace", ns, "--timeout=30s"]);
    assert!(CLUSTER.kubectl_refused(&["get", "namespace", ns], None).contains("not found"));
    assert!(CLUSTER.kubectl_refused(&["create", "-n", ns, "configmap", "late"], None).contains("not found"));
}
