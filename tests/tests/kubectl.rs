//! The real kubectl against the real program: the one on the path, and an old one that the distribution has.

use std::{
    io::{BufRead, BufReader},
    path::PathBuf,
    process::{Command, Output, Stdio},
    sync::LazyLock,
};

use serde_json::Value;
use wasmk_tests::program::{Program, binary};

static CLUSTER: LazyLock<Program> = LazyLock::new(Program::start);

/// One of the clients.
struct Kubectl {
    program: PathBuf,
    /// Its minor version.
    minor: u32,
}

impl Kubectl {
    fn at(program: PathBuf) -> Self {
        let out = CLUSTER.client(&program, &["version", "--client", "-o", "json"], None);
        let version: Value = serde_json::from_slice(&out.stdout).expect("a version");
        let minor = version["clientVersion"]["minor"].as_str().expect("a minor version");
        Self { minor: minor.trim_end_matches('+').parse().expect("a number"), program }
    }

    fn output(&self, args: &[&str], stdin: Option<&str>) -> Output {
        CLUSTER.client(&self.program, args, stdin)
    }

    /// What it prints; it must succeed.
    fn run(&self, args: &[&str]) -> String {
        self.run_with(args, None)
    }

    fn run_with(&self, args: &[&str], stdin: Option<&str>) -> String {
        let out = self.output(args, stdin);
        let (text, error) = (String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr));
        assert!(out.status.success(), "kubectl 1.{} {}:\n{text}{error}", self.minor, args.join(" "));
        text.into_owned()
    }

    /// What it says is wrong; it must fail.
    fn refused(&self, args: &[&str], stdin: Option<&str>) -> String {
        let out = self.output(args, stdin);
        assert!(!out.status.success(), "kubectl 1.{} {} succeeded", self.minor, args.join(" "));
        String::from_utf8_lossy(&out.stderr).into_owned()
    }

    /// A namespace of the test's own.
    fn namespace(&self, name: &str) -> String {
        let name = format!("{name}-{}", self.minor);
        self.run(&["create", "namespace", &name]);
        name
    }
}

/// The clients, each of another version.
static CLIENTS: LazyLock<Vec<Kubectl>> = LazyLock::new(|| {
    let folder = std::env::var("WASMK_TEST_VENV").expect("WASMK_TEST_VENV is set by `make test`");
    let mut clients =
        vec![Kubectl::at("kubectl".into()), Kubectl::at(format!("{folder}/bin/kubectl-old").into())];
    clients.dedup_by_key(|client| client.minor);
    clients
});

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
    for kubectl in CLIENTS.iter() {
        let text = kubectl.run(&["version"]);
        assert!(text.contains("Server Version: v1.36.") || text.contains("GitVersion:\"v1.36."), "{text}");
        let json = kubectl.run(&["version", "-o", "json"]);
        let json: serde_json::Value = serde_json::from_str(&json).unwrap();
        assert_eq!(
            (&json["serverVersion"]["major"], &json["serverVersion"]["minor"]),
            (&"1".into(), &"36".into())
        );
    }
}

#[test]
fn api_resources_have_short_names() {
    for kubectl in CLIENTS.iter() {
        let text = kubectl.run(&["api-resources", "--no-headers"]);
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
}

#[test]
fn explain_reads_the_published_schema() {
    for kubectl in CLIENTS.iter() {
        let text = kubectl.run(&["explain", "deployment.spec.strategy"]);
        assert!(
            (text.contains("FIELD: strategy <DeploymentStrategy>")
                || text.contains("RESOURCE: strategy <Object>"))
                && text.contains("rollingUpdate"),
            "{text}"
        );
        let all = kubectl.run(&["explain", "pod", "--recursive"]);
        assert!(all.contains("terminationGracePeriodSeconds\t<integer>"), "{all}");
        let wrong = kubectl.refused(&["explain", "pod.nope"], None);
        assert!(wrong.contains("field \"nope\" does not exist"), "{wrong}");
    }
}

#[test]
fn applies_files_folders_and_standard_input() {
    for kubectl in CLIENTS.iter() {
        let ns = &kubectl.namespace("apply");
        let dir = CLUSTER.scratch().join(format!("manifests-{}", kubectl.minor));
        std::fs::create_dir(&dir).unwrap();
        std::fs::write(dir.join("one.yaml"), config_map("one", "'1'")).unwrap();
        std::fs::write(
            dir.join("more.yaml"),
            format!("{}---\n{}", config_map("two", "'2'"), config_map("three", "'3'")),
        )
        .unwrap();
        let (dir, one) = (dir.to_str().unwrap(), format!("{}/one.yaml", dir.display()));

        assert_eq!(kubectl.run(&["apply", "-n", ns, "-f", &one]), "configmap/one created\n");
        let second = kubectl.run(&["apply", "-n", ns, "-f", dir]);
        assert_eq!(second, "configmap/two created\nconfigmap/three created\nconfigmap/one unchanged\n");
        let third = kubectl.run(&["apply", "-n", ns, "-f", dir]);
        assert_eq!(third.matches("unchanged").count(), 3, "{third}");

        let args = ["apply", "-n", ns, "-f", "-"];
        let changed = kubectl.run_with(&args, Some(&config_map("one", "other")));
        assert_eq!(changed, "configmap/one configured\n");
        let value = kubectl.run(&["get", "cm", "one", "-n", ns, "-o", "jsonpath={.data.key}"]);
        assert_eq!(value, "other");
        kubectl.run(&["delete", "-n", ns, "-f", dir]);
        assert_eq!(kubectl.run(&["get", "cm", "-n", ns, "-l", "app in (one, two)", "-o", "name"]), "");
    }
}

#[test]
fn gets_in_every_form() {
    for kubectl in CLIENTS.iter() {
        let ns = &kubectl.namespace("forms");
        for name in ["a", "b"] {
            kubectl.run(&["create", "-n", ns, "configmap", name, "--from-literal=k=v"]);
        }
        kubectl.run(&["label", "-n", ns, "cm", "b", "tier=front"]);
        let get = |more: &[&str]| kubectl.run(&[&["get", "configmaps", "-n", ns], more].concat());

        let table = get(&["a"]);
        assert_eq!(words(table.lines().next().unwrap()), ["NAME", "DATA", "AGE"]);
        assert_eq!(words(table.lines().nth(1).unwrap())[..2], ["a", "1"]);
        assert_eq!(get(&["-l", "tier=front", "-o", "name"]), "configmap/b\n");
        assert_eq!(
            get(&["-l", "tier notin (front),!x", "--field-selector", "metadata.name=a", "-o", "name"]),
            "configmap/a\n"
        );
        // The authority's map, which every namespace has, comes a moment after it.
        let named = |selector: &str| {
            let all = get(&["-l", selector, "-o", "name"]);
            words(&all).into_iter().filter(|name| !name.contains("root-ca")).collect::<Vec<_>>().join(" ")
        };
        kubectl.run(&["label", "-n", ns, "cm", "a", "x=1"]);
        for (selector, expected) in [
            ("tier", "configmap/b"),
            ("!tier", "configmap/a"),
            ("tier in (front, back)", "configmap/b"),
            ("x notin (2)", "configmap/a configmap/b"),
            ("x=1,tier=front", ""),
            ("x!=1,tier", "configmap/b"),
        ] {
            assert_eq!(named(selector), expected, "{selector}");
        }
        assert!(get(&["a", "-o", "yaml"]).contains("data:\n  k: v\nkind: ConfigMap\n"));
        let json: serde_json::Value = serde_json::from_str(&get(&["-o", "json"])).unwrap();
        assert_eq!(json["items"].as_array().unwrap().iter().filter(|i| i["data"]["k"] == "v").count(), 2);
        let columns = get(&["b", "-o", "custom-columns=N:.metadata.name,V:.data.k", "--no-headers"]);
        assert_eq!(words(&columns), ["b", "v"]);
        assert_eq!(get(&["b", "-o", "go-template={{.data.k}}"]), "v");
        let all = kubectl.run(&["get", "cm", "-A", "-l", "tier=front"]);
        assert!(all.lines().any(|line| words(line)[..2] == [ns.as_str(), "b"]), "{all}");
        let wide = kubectl.run(&["get", "nodes", "-o", "wide"]);
        assert!(wide.contains("INTERNAL-IP") && wide.contains("wasmtime://"), "{wide}");
    }
}

#[test]
fn watches_changes() {
    let wasmk = Kubectl { program: binary(), minor: 0 };
    for kubectl in CLIENTS.iter().chain([&wasmk]) {
        let ns = &kubectl.namespace("watch");
        kubectl.run(&["create", "-n", ns, "secret", "generic", "there"]);
        let mut child = Command::new(&kubectl.program)
            .args(["get", "secrets", "-n", ns, "-w", "-o", "name"])
            .env("KUBECONFIG", CLUSTER.kubeconfig())
            .stdout(Stdio::piped())
            .spawn()
            .expect("kubectl starts");
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        assert_eq!(lines.next().unwrap().unwrap(), "secret/there");
        for name in ["first", "second"] {
            kubectl.run(&["create", "-n", ns, "secret", "generic", name]);
            assert_eq!(lines.next().unwrap().unwrap(), format!("secret/{name}"));
        }
        kubectl.run(&["label", "-n", ns, "secret", "first", "a=b"]);
        assert_eq!(lines.next().unwrap().unwrap(), "secret/first");
        child.kill().unwrap();
        child.wait().unwrap();
    }
}

#[test]
fn describes_and_deletes() {
    for kubectl in CLIENTS.iter() {
        let ns = &kubectl.namespace("describe");
        kubectl.run(&["create", "-n", ns, "service", "clusterip", "web", "--tcp=80:8080"]);
        let text = kubectl.run(&["describe", "-n", ns, "service", "web"]);
        assert!(text.contains("TargetPort:") && text.contains("8080/TCP"), "{text}");
        let deleted = kubectl.run(&["delete", "-n", ns, "service/web"]);
        assert!(deleted.starts_with("service \"web\" deleted"), "{deleted}");
        let gone = kubectl.refused(&["get", "-n", ns, "service", "web"], None);
        assert_eq!(gone, "Error from server (NotFound): services \"web\" not found\n");
        let node = kubectl.run(&["describe", "node", "node-a"]);
        let has = |expected: &[&str]| node.lines().any(|line| words(line).starts_with(expected));
        for expected in [
            &["Labels:"][..],
            &["kubernetes.io/hostname=node-a"],
            &["Taints:", "<none>"],
            &["Ready", "True"],
            &["Capacity:"],
            &["Container", "Runtime", "Version:"],
            &["Non-terminated", "Pods:"],
        ] {
            assert!(has(expected), "{expected:?} in {node}");
        }
    }
}

#[test]
fn scales_rolls_out_and_follows_logs() {
    for kubectl in CLIENTS.iter() {
        let ns = &kubectl.namespace("rollout");
        let image = CLUSTER.push("command");
        kubectl.run(&["create", "-n", ns, "deployment", "cat", "--image", &image, "--", "sleep", "600000"]);
        kubectl.run(&[
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
        kubectl.run(&["scale", "-n", ns, "deployment/cat", "--replicas", "2"]);
        let text = kubectl.run(&["rollout", "status", "-n", ns, "deployment/cat", "--timeout=60s"]);
        assert!(text.contains("successfully rolled out"), "{text}");
        let row = kubectl.run(&["get", "-n", ns, "deployment", "cat", "--no-headers"]);
        assert_eq!(words(&row)[..4], ["cat", "2/2", "2", "2"]);

        let args = [
            r#"--overrides={"spec":{"containers":[{"name":"speaker","image":"IMAGE","args":["print","a word"]}]}}"#,
        ];
        let overrides = args[0].replace("IMAGE", &image);
        kubectl.run(&["run", "-n", ns, "speaker", "--image", &image, "--restart=Never", &overrides]);
        let phase = || kubectl.run(&["get", "-n", ns, "pod", "speaker", "-o", "jsonpath={.status.phase}"]);
        CLUSTER.until("the end of speaker", |_| phase(), |phase| phase == "Succeeded");
        let log = kubectl.run(&["logs", "-n", ns, "-f", "speaker"]);
        assert!(log.starts_with("args [\"print\", \"a word\"]\n"), "{log}");
        assert_eq!(kubectl.run(&["logs", "-n", ns, "speaker", "--tail", "1"]).lines().count(), 1);
    }
}

#[test]
fn says_what_is_wrong_with_a_manifest() {
    for kubectl in CLIENTS.iter() {
        let refused = |text: &str| kubectl.refused(&["apply", "-f", "-"], Some(text));
        let check = |text: &str, expected: &str| {
            let said = refused(text);
            assert!(said.contains(expected), "{expected} in {said}");
        };
        check("a: [", "error converting YAML to JSON");
        check("apiVersion: v1\nkind: ConfigMap\nmetadata: {name: a}\ndat: {}\n", "unknown field \"dat\"");
        check(
            "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: A_b}\n",
            "metadata.name: Invalid value: \"A_b\"",
        );
        check(
            "apiVersion: v1\nkind: Pod\nmetadata: {name: a}\nspec: {containers: []}\n",
            "spec.containers: Required value",
        );
    }
}

#[test]
fn a_stale_write_is_a_conflict() {
    for kubectl in CLIENTS.iter() {
        let contested = format!("contested-{}", kubectl.minor);
        kubectl.run(&["create", "configmap", &contested]);
        let old = kubectl.run(&["get", "configmap", &contested, "-o", "json"]);
        kubectl.run(&["label", "configmap", &contested, "won=yes"]);
        let said = kubectl.refused(&["replace", "-f", "-"], Some(&old));
        assert!(said.contains("(Conflict)") && said.contains("the object has been modified"), "{said}");
    }
}

#[test]
fn a_namespace_goes_with_all_that_is_in_it() {
    for kubectl in CLIENTS.iter() {
        let ns = &kubectl.namespace("short-lived");
        kubectl.run(&["create", "-n", ns, "configmap", "inside"]);
        kubectl.run(&["delete", "namespace", ns, "--timeout=30s"]);
        assert!(kubectl.refused(&["get", "namespace", ns], None).contains("not found"));
        assert!(kubectl.refused(&["create", "-n", ns, "configmap", "late"], None).contains("not found"));
    }
}

const WEB: &str = "apiVersion: apps/v1
kind: Deployment
metadata: {name: web, labels: {app: web}}
spec:
  replicas: 0
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec: {containers: [{name: main, image: 'example.org/web:1', ports: [{containerPort: 8080}]}]}
";

/// One line of a walk: the arguments, and what the output has in it.
type Line = (&'static [&'static str], &'static str);

const CHANGES: &[Line] = &[
    (&["expose", "deployment", "web", "--port=80", "--target-port=8080"], "service/web exposed"),
    (&["autoscale", "deployment", "web", "--min=1", "--max=3", "--cpu-percent=50"], "/web autoscaled"),
    (&["get", "hpa", "web", "-o", "jsonpath={.spec.minReplicas} {.spec.maxReplicas}"], "1 3"),
    (&["delete", "hpa", "web"], "deleted"),
    (&["annotate", "deployment", "web", "note=first"], "deployment.apps/web annotated"),
    (&["annotate", "deployment", "web", "note=second", "--overwrite"], "deployment.apps/web annotated"),
    (&["label", "deployment", "web", "tier=front"], "deployment.apps/web labeled"),
    (&["get", "deployments", "-l", "tier=front", "-L", "tier", "--no-headers"], "front"),
    (&["label", "deployment", "web", "tier-"], "deployment.apps/web"),
    (&["set", "image", "deployment/web", "main=example.org/web:2"], "deployment.apps/web image updated"),
    (&["set", "env", "deployment/web", "COLOUR=blue"], "deployment.apps/web env updated"),
    (&["set", "env", "deployment/web", "--list"], "COLOUR=blue"),
    (
        &["set", "resources", "deployment/web", "--limits=cpu=200m"],
        "deployment.apps/web resource requirements updated",
    ),
    (&["set", "serviceaccount", "deployment/web", "robot"], "deployment.apps/web serviceaccount updated"),
    (&["set", "selector", "service/web", "app=other"], "service/web selector updated"),
    (&["rollout", "pause", "deployment/web"], "deployment.apps/web paused"),
    (&["rollout", "resume", "deployment/web"], "deployment.apps/web resumed"),
    (&["rollout", "restart", "deployment/web"], "deployment.apps/web restarted"),
    (
        &["patch", "deployment", "web", "-p", r#"{"spec":{"minReadySeconds":1}}"#],
        "deployment.apps/web patched",
    ),
    (
        &["patch", "deployment", "web", "--type=merge", "-p", r#"{"spec":{"minReadySeconds":1}}"#],
        "(no change)",
    ),
    (
        &[
            "patch",
            "deployment",
            "web",
            "--type=json",
            "-p",
            r#"[{"op":"remove","path":"/spec/minReadySeconds"}]"#,
        ],
        "deployment.apps/web patched",
    ),
    (&["get", "all"], "service/web"),
    (&["describe", "deployment", "web"], "example.org/web:2"),
    (&["scale", "deployment", "web", "--replicas=0", "--current-replicas=0"], "deployment.apps/web scaled"),
];

const MAKES: &[Line] = &[
    (&["create", "serviceaccount", "robot"], "serviceaccount/robot created"),
    (
        &["create", "role", "reader", "--verb=get,list", "--resource=pods"],
        "role.rbac.authorization.k8s.io/reader created",
    ),
    (
        &["create", "rolebinding", "robots", "--role=reader", "--user=robot"],
        "rolebinding.rbac.authorization.k8s.io/robots created",
    ),
    (&["auth", "can-i", "list", "pods", "--as=robot"], "yes"),
    (&["auth", "can-i", "create", "pods"], "yes"),
    (&["auth", "can-i", "--list", "--as=robot"], "pods"),
    (&["create", "quota", "small", "--hard=configmaps=9"], "resourcequota/small created"),
    (&["create", "job", "once", "--image=example.org/once:1"], "job.batch/once created"),
    (&["create", "secret", "generic", "token", "--from-literal=a=b"], "secret/token created"),
    (&["create", "service", "nodeport", "open", "--tcp=80"], "service/open created"),
    (&["create", "service", "externalname", "far", "--external-name=example.org"], "service/far created"),
    (&["create", "configmap", "dry", "--dry-run=server", "-o", "name"], "configmap/dry"),
    (&["delete", "job", "once", "--cascade=foreground"], "deleted"),
];

/// What clients before 1.21 ask for in a version that is gone.
const NEWER: &[Line] = &[(
    &["create", "poddisruptionbudget", "careful", "--selector=app=web", "--min-available=1"],
    "poddisruptionbudget.policy/careful created",
)];

const READS: &[Line] = &[
    (&["cluster-info"], "127.0.0.1"),
    (&["api-versions"], "apps/v1"),
    (&["get", "--raw", "/healthz"], "ok"),
    (&["get", "--raw", "/readyz?verbose"], "readyz check passed"),
    (&["config", "view", "--minify"], "server: https://127.0.0.1"),
    (&["config", "current-context"], "wasmk"),
    (&["cordon", "node-a", "--dry-run=server"], "node/node-a cordoned"),
    (&["taint", "node", "node-a", "a=b:NoSchedule", "--dry-run=server"], "node/node-a tainted"),
    (&["drain", "node-a", "--dry-run=client", "--ignore-daemonsets", "--force"], "node/node-a"),
    (&["get", "ns", "default", "kube-system", "-o", "name"], "namespace/kube-system"),
    (&["get", "events", "-A"], ""),
    (&["get", "crd", "services.serving.knative.dev"], "services.serving.knative.dev"),
];

/// Each line of the tables, in a namespace.
fn walk(kubectl: &Kubectl, ns: &str, tables: &[&[Line]]) {
    for (args, expected) in tables.iter().copied().flatten() {
        let all = [&["-n", ns], *args].concat();
        let said = kubectl.run(&all);
        assert!(said.contains(expected), "kubectl 1.{} {}: {said}", kubectl.minor, args.join(" "));
    }
}

#[test]
fn the_everyday_verbs_do_their_work() {
    for kubectl in CLIENTS.iter() {
        let ns = kubectl.namespace("everyday");
        kubectl.run_with(&["apply", "-n", &ns, "-f", "-"], Some(WEB));
        walk(kubectl, &ns, &[CHANGES, MAKES, READS]);
        if kubectl.minor > 20 {
            walk(kubectl, &ns, &[NEWER]);
        }
        let revisions = |_: &Program| kubectl.run(&["rollout", "history", "-n", &ns, "deployment/web"]);
        CLUSTER.until("revisions", revisions, |text| {
            text.lines().filter(|l| l.starts_with(char::is_numeric)).count() > 3
        });
        let undone = kubectl.run(&["rollout", "undo", "-n", &ns, "deployment/web", "--to-revision=1"]);
        assert!(undone.contains("deployment.apps/web rolled back"), "{undone}");
        let image = "jsonpath={.spec.template.spec.containers[0].image}";
        let image = kubectl.run(&["get", "-n", &ns, "deployment", "web", "-o", image]);
        assert_eq!(image, "example.org/web:1");
        assert!(
            kubectl.refused(&["auth", "can-i", "delete", "pods", "--as=robot", "-n", &ns], None).is_empty()
        );
        edits(kubectl, &ns);
        compares(kubectl, &ns);
    }
}

fn edits(kubectl: &Kubectl, ns: &str) {
    let program = kubectl.program.to_str().expect("a path");
    let args =
        ["KUBE_EDITOR=sed -i s/blue/green/;s/web:1/web:3/", program, "edit", "-n", ns, "deployment", "web"];
    let out = CLUSTER.client("env".as_ref(), &args, None);
    assert!(String::from_utf8_lossy(&out.stdout).contains("deployment.apps/web edited"), "{out:?}");
    let text = kubectl.run(&["get", "-n", ns, "deployment", "web", "-o", "yaml"]);
    assert!(text.contains("image: example.org/web:3"), "{text}");
}

fn compares(kubectl: &Kubectl, ns: &str) {
    let there = kubectl.output(&["diff", "-n", ns, "-f", "-"], Some(WEB));
    assert_eq!(there.status.code(), Some(1), "{there:?}");
    let text = String::from_utf8_lossy(&there.stdout).into_owned();
    assert!(text.contains("- image: example.org/web:3"), "{text}");
    kubectl.run_with(&["apply", "-n", ns, "-f", "-"], Some(WEB));
    assert_eq!(
        kubectl.run_with(&["apply", "-n", ns, "-f", "-"], Some(WEB)),
        "deployment.apps/web unchanged\n"
    );
    let last = kubectl.run(&["apply", "-n", ns, "view-last-applied", "deployment/web"]);
    assert!(last.contains("image: example.org/web:1"), "{last}");
    let replaced = kubectl.run_with(&["replace", "-n", ns, "-f", "-"], Some(WEB));
    assert_eq!(replaced, "deployment.apps/web replaced\n");
    kubectl.run(&["delete", "-n", ns, "deployment/web", "--wait=false"]);
    let gone = |_: &Program| kubectl.output(&["get", "-n", ns, "deployment/web"], None).status.success();
    CLUSTER.until("the deployment's end", gone, |there| !there);
}

/// Made by one tool and changed by the other, in both directions, with the real kubectl.
#[test]
fn objects_are_applied_by_kubectl_and_by_wasmk_in_turn() {
    let ns = "turns";
    CLUSTER.kubectl(&["create", "namespace", ns]);
    let manifest = |name: &str, labels: &str, env: &str| {
        format!(
            "apiVersion: apps/v1\nkind: Deployment\nmetadata: {{name: {name}, namespace: {ns}, labels: {{{labels}}}}}\nspec:\n  replicas: 0\n  \
             selector: {{matchLabels: {{app: {name}}}}}\n  template:\n    metadata: {{labels: {{app: {name}}}}}\n    spec:\n      \
             containers:\n      - {{name: c, image: i, ports: [{{containerPort: 80}}], env: [{env}]}}\n"
        )
    };
    let kubectl = |text: &str| {
        let out = CLUSTER.kubectl_output(&["apply", "-f", "-"], Some(text));
        assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    };
    let wasmk = |text: &str| {
        let out = CLUSTER.client(&binary(), &["apply", "-f", "-"], Some(text));
        assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    };
    let shown = |name: &str| {
        let text = CLUSTER.kubectl(&["get", "deployment", name, "-n", ns, "-o", "json"]);
        let object: Value = serde_json::from_str(&text).unwrap();
        let container = &object["spec"]["template"]["spec"]["containers"];
        assert_eq!(
            (container.as_array().unwrap().len(), container[0]["ports"].as_array().unwrap().len()),
            (1, 1)
        );
        let pair =
            |one: &Value| format!("{}={}", one["name"].as_str().unwrap(), one["value"].as_str().unwrap());
        let mut env: Vec<String> = container[0]["env"].as_array().unwrap().iter().map(pair).collect();
        env.sort();
        format!("{} {}", object["metadata"]["labels"], env.join(" "))
    };
    // What kubectl applied is known to it; what wasmk leaves out stays, for it is not its own.
    kubectl(&manifest("one", "a: '1', b: '1'", "{name: A, value: '1'}, {name: B, value: '1'}"));
    wasmk(&manifest("one", "a: '2', c: '1'", "{name: A, value: '2'}, {name: C, value: '1'}"));
    assert_eq!(shown("one"), r#"{"a":"2","b":"1","c":"1"} A=2 B=1 C=1"#);
    // kubectl takes away what it applied and no longer applies, and nothing of wasmk's.
    kubectl(&manifest("one", "a: '3'", "{name: A, value: '3'}"));
    assert_eq!(shown("one"), r#"{"a":"3","c":"1"} A=3 C=1"#);
    wasmk(&manifest("one", "a: '4'", "{name: A, value: '4'}"));
    assert_eq!(shown("one"), r#"{"a":"4"} A=4"#);
    // The other way round.
    wasmk(&manifest("two", "a: '1', b: '1'", "{name: A, value: '1'}, {name: B, value: '1'}"));
    kubectl(&manifest("two", "a: '2', c: '1'", "{name: A, value: '2'}, {name: C, value: '1'}"));
    assert_eq!(shown("two"), r#"{"a":"2","b":"1","c":"1"} A=2 B=1 C=1"#);
    wasmk(&manifest("two", "a: '3'", "{name: A, value: '3'}"));
    assert_eq!(shown("two"), r#"{"a":"3","c":"1"} A=3 C=1"#);
}
