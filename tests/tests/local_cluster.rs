//! A cluster of several nodes on this machine by one command, its ingress on a port of one's choice.

use std::{collections::BTreeSet, path::Path, process::Command};

use serde_json::Value;
use wasmk_tests::program::Program;

const READY: &str = "{.status.conditions[?(@.type=='Ready')].status}";

/// Three pods of which no two can be on one node, behind a Service and an Ingress.
fn spread(image: &str) -> String {
    format!(
        "apiVersion: apps/v1\nkind: Deployment\nmetadata: {{name: web}}\nspec: {{replicas: 3, selector: {{matchLabels: {{app: web}}}}, \
         template: {{metadata: {{labels: {{app: web}}}}, spec: {{terminationGracePeriodSeconds: 1, \
         topologySpreadConstraints: [{{maxSkew: 1, topologyKey: kubernetes.io/hostname, whenUnsatisfiable: DoNotSchedule, \
         labelSelector: {{matchLabels: {{app: web}}}}}}], containers: [{{name: main, image: '{image}', \
         ports: [{{containerPort: 8000}}], env: [{{name: TARGET, valueFrom: {{fieldRef: {{fieldPath: metadata.name}}}}}}]}}]}}}}}}\n---\n\
         apiVersion: v1\nkind: Service\nmetadata: {{name: web}}\nspec: {{selector: {{app: web}}, ports: [{{port: 80, targetPort: 8000}}]}}\n---\n\
         apiVersion: networking.k8s.io/v1\nkind: Ingress\nmetadata: {{name: web}}\nspec: {{rules: [{{host: web.example.com, http: {{paths: \
         [{{path: /, pathType: Prefix, backend: {{service: {{name: web, port: {{number: 80}}}}}}}}]}}}}]}}\n"
    )
}

/// What the pods answer at the ingress to a few requests.
fn answers(p: &Program) -> BTreeSet<String> {
    let url = format!("http://{}/", p.address("ingress"));
    let ask = |_| {
        let out = Command::new("curl")
            .args(["-s", "--max-time", "5", "-H", "Host: web.example.com", &url])
            .output();
        String::from_utf8_lossy(&out.expect("curl runs").stdout).trim().to_owned()
    };
    (0..24).map(ask).filter(|text| text.contains("hello web-")).collect()
}

fn until_all_answer(p: &Program) -> BTreeSet<String> {
    p.until("all three pods answer", answers, |all| all.len() == 3)
}

fn status(p: &Program) -> Value {
    let out = p.run(&["status", "-o", "json", "--data-dir", &p.data_dir()]);
    serde_json::from_slice(&out.stdout).expect("a status")
}

/// The process of an agent, if it runs.
fn process(p: &Program, agent: usize) -> Option<u64> {
    status(p)["agents"][agent]["pid"].as_u64()
}

/// Processes that were started with this directory, or one below it, in their arguments.
fn processes_of(dir: &str) -> Vec<String> {
    let all = std::fs::read_dir("/proc").expect("a list of processes").flatten();
    let lines = all.filter_map(|entry| std::fs::read_to_string(entry.path().join("cmdline")).ok());
    lines.filter(|line| line.contains(dir) && line.contains("--data-dir")).collect()
}

fn nodes(p: &Program) -> String {
    p.kubectl(&["get", "nodes", "-o", "jsonpath={.items[*].metadata.name}"])
}

#[test]
fn a_cluster_of_three_nodes_is_one_command() {
    let program = Program::start_with(&["--agents", "2", "--publish", "0:80@loadbalancer"]);
    let p = &program;
    assert_eq!(nodes(p), "node-a node-a-agent-0 node-a-agent-1");
    for name in ["node-a", "node-a-agent-0", "node-a-agent-1"] {
        p.until_value(&format!("node/{name}"), READY, "True");
    }
    let told = p.wasmk(&["status", "--data-dir", &p.data_dir()]);
    assert!(
        told.contains(&format!("node-a-agent-1 (process {})", process(p, 1).expect("a process"))),
        "{told}"
    );
    assert_eq!(status(p)["ingressTls"], Value::Null, "only what is published is served");

    let hello = p.push("hello");
    p.apply(&spread(&hello));
    p.kubectl(&["rollout", "status", "deployment/web", "--timeout=60s"]);
    let places = p.kubectl(&["get", "pods", "-l", "app=web", "-o", "jsonpath={.items[*].spec.nodeName}"]);
    let places: BTreeSet<_> = places.split(' ').collect();
    assert_eq!(places, ["node-a", "node-a-agent-0", "node-a-agent-1"].into());
    let first = until_all_answer(p);

    an_agent_that_is_killed_comes_back(p, &first);
    let program = they_go_and_come_with_the_cluster(program, &first);
    fewer_are_enough(program);
}

/// Its pod, which nothing else could have started again, answers as before.
fn an_agent_that_is_killed_comes_back(p: &Program, first: &BTreeSet<String>) {
    let before = process(p, 0).expect("a process");
    let killed = Command::new("kill").args(["-9", &before.to_string()]).status();
    assert!(killed.is_ok_and(|status| status.success()));
    p.until("another process", |p| process(p, 0), |now| now.is_some_and(|now| now != before));
    p.until_value("node/node-a-agent-0", READY, "True");
    assert_eq!(&until_all_answer(p), first);
    let said = p.log();
    assert!(said.contains("an agent has ended; it is started again after 1 s"), "{said}");
}

fn they_go_and_come_with_the_cluster(program: Program, first: &BTreeSet<String>) -> Program {
    let data = program.data_dir();
    assert_eq!(processes_of(&data).len(), 3, "{:?}", processes_of(&data));
    program.wasmk(&["down", "--data-dir", &data]);
    assert_eq!(processes_of(&data), Vec::<String>::new());
    // How many there are need not be said again, and the API may be elsewhere: its port is another one.
    let program = program.kill_with(&["--publish", "0:80"]);
    assert_eq!(nodes(&program), "node-a node-a-agent-0 node-a-agent-1");
    assert_eq!(&until_all_answer(&program), first);
    program
}

/// The control plane is killed, which takes its agents along, and starts with one of them.
fn fewer_are_enough(program: Program) {
    let data = program.data_dir();
    let program = program.kill_with(&["--agents", "1", "--no-ingress"]);
    let p = &program;
    assert_eq!(nodes(p), "node-a node-a-agent-0");
    assert_eq!(processes_of(&data).len(), 2, "{:?}", processes_of(&data));
    assert!(!Path::new(&data).join("agent-1").exists() && !Path::new(&data).join("agent-1.log").exists());
    assert_eq!(status(p)["agents"].as_array().map(Vec::len), Some(1));
    p.until_value("deployment/web", "{.status.readyReplicas}", "2");

    // Left out, the ingress is nobody's until another controller takes it.
    let told = p.wasmk(&["status", "--data-dir", &data]);
    assert!(told.lines().any(|line| line.split_whitespace().eq(["ingress", "off"])), "{told}");
    assert_eq!(status(p)["ingress"], Value::Null);
}

#[test]
fn what_cannot_be_is_said_at_once() {
    let place = tempfile::tempdir().expect("a directory");
    let up = |flags: &[&str]| {
        let mut command = Command::new(wasmk_tests::program::binary());
        command.args(["up", "--data-dir"]).arg(place.path().join("d")).args(flags);
        let out = command.output().expect("wasmk runs");
        assert!(!out.status.success(), "{flags:?}");
        String::from_utf8_lossy(&out.stderr).into_owned()
    };
    let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = taken.local_addr().expect("an address").port();
    let free =
        ["--api-addr", "127.0.0.1:0", "--gateway-addr", "127.0.0.1:0", "--registry-addr", "127.0.0.1:0"];
    for (flags, expect) in [
        (&["--agents", "16"][..], "16 is not in 0..=15"),
        (
            &["--agents", "4", "--pod-cidr", "127.42.4.0/22"],
            "5 nodes need as many parts of --pod-cidr 127.42.4.0/22",
        ),
        (&["--publish", "8080:8080"], "only Ingresses' are, 80 and 443"),
        (&["--publish", &format!("{port}:80")], "the ingress cannot listen on 127.0.0.1:"),
    ] {
        let said = up(&[flags, &free].concat());
        assert!(said.contains(expect), "{flags:?}: {said}");
    }
}
